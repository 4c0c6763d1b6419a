"""An NTIRE submission: one PNG for each input, readme.txt and the zip, all checked."""

import logging
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from championship_sr.evaluate.deliver.made import Made, PictureOrigin, fingerprint, note_made, origin_of, read_made
from championship_sr.evaluate.inference.pictures import check_writable, write_picture
from championship_sr.evaluate.model import Model
from championship_sr.extract.images.decode import UnreadableImage, read_header, read_picture
from championship_sr.extract.images.names import printable
from championship_sr.extract.images.pairs import image_files, joined, warn_of_nested
from championship_sr.extract.images.picture import Picture
from championship_sr.extract.images.results import asked_for
from championship_sr.store.disk import files
from championship_sr.store.disk.small_files import sha256_of
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.progress import progress

log = logging.getLogger(__name__)

RESULTS, README, ZIP = "results", "readme.txt", "submission.zip"


@dataclass(frozen=True)
class Facts:
    """The fields of readme.txt that the user must give."""

    extra_data: bool  # whether the run or an expert was trained on more than the challenge's own images
    description: str


@dataclass(frozen=True)
class Submission:
    """What was made."""

    zip: Path
    images: int
    seconds_per_image: float


def submit(model: Model, lr: Path, out: Path, facts: Facts, *, self_ensemble: bool = False) -> Submission:
    """Super-resolves a folder of LR images and packs the results; called again, it makes missing ones.

    A picture is reused if the same run made it with the same options from the same input, and made again otherwise.

    raises  StoreError if an input cannot be read, or names, number or sizes of the results do not fit the inputs
    """
    inputs = image_files(lr, nested=False)
    warn_of_nested(lr)
    _check_names(inputs)
    of_experts = model.results([asked_for(path) for path in inputs])
    results = out / RESULTS
    check_writable(results)
    _check_strays(inputs, results)
    by = fingerprint(model, self_ensemble=self_ensemble)
    origins = {path: origin_of(path, of_experts, by) for path in inputs}
    made = _taken_over(out, origins)
    for path, origin in progress(origins.items(), desc="submission", unit="image"):
        if path.name in made:
            continue
        picture = read_picture(path)
        given = [images.given(str(path)) for images in of_experts]
        began = time.perf_counter()
        result = model.upscale(Picture(picture.pixels), given=given, self_ensemble=self_ensemble)
        seconds = time.perf_counter() - began
        target = _result_of(path, results)
        write_picture(target, Picture(result.pixels), overwrite=True)
        made[path.name] = Made(origin, sha256_of(target), seconds)
        note_made(out, path.name, made[path.name])
    check(inputs, results, model.scale)
    seconds_each = sum(made[path.name].seconds for path in inputs) / len(inputs)
    files.write_atomic(out / README, readme(seconds_each, model.device.type != "cpu", facts).encode())
    return Submission(_pack(inputs, out), len(inputs), seconds_each)


def _result_of(path: Path, results: Path) -> Path:
    return results / f"{path.stem}.png"


def _taken_over(out: Path, origins: dict[Path, PictureOrigin]) -> dict[str, Made]:
    """Name of the input -> its existing picture, if it is the one that would be made now."""
    there = {path: _result_of(path, out / RESULTS) for path in origins}
    there = {path: result for path, result in there.items() if result.exists()}
    made = read_made(out)
    same = {
        path.name: made[path.name]
        for path, result in there.items()
        if path.name in made and made[path.name].is_of(origins[path], result)
    }
    if len(there) > len(same):
        log.warning(
            "%s: %d of %d pictures come from another run, option or input, or were changed; making them again",
            out / RESULTS, len(there) - len(same), len(there),
        )  # fmt: skip
    return same


def _check_strays(inputs: Sequence[Path], results: Path) -> None:
    """Raises StoreError listing files among the results that do not belong there, before any work."""
    expected = {_result_of(path, results) for path in inputs}
    strays = [path for path in sorted(results.iterdir()) if path not in expected and path.suffix != files.TMP]
    if strays:
        faults = [f"{printable(path.name)}: stands for no input" for path in strays]
        raise StoreError(f"{results}: {joined(faults)}. Remove them, or choose another folder")


def _check_names(inputs: Sequence[Path]) -> None:
    """Raises StoreError listing inputs whose results would share a name, or have one that a zip cannot hold."""
    faults = [f"{printable(path.name)}: the name is no UTF-8" for path in inputs if printable(path.name) != path.name]
    first: dict[str, Path] = {}
    for path in inputs:
        other = first.setdefault(path.stem, path)
        if other != path:
            faults.append(f"{path.name} and {other.name}: both results would be {path.stem}.png; leave one out")
    if faults:
        raise StoreError(f"{inputs[0].parent}: {joined(faults)}")


def readme(seconds: float, gpu: bool, facts: Facts) -> str:
    """The text of readme.txt, in the fields and order that the challenge's server reads."""
    if "\n" in facts.description:
        raise ConfigError("--description: must be a single line, since readme.txt has one line for it")
    return (
        f"runtime per image [s] : {seconds:.2f}\n"
        f"CPU[1] / GPU[0] : {int(not gpu)}\n"
        f"Extra Data [1] / No Extra Data [0] : {int(facts.extra_data)}\n"
        f"Other description : {facts.description}\n"
    )


def check(inputs: Sequence[Path], results: Path, scale: int) -> None:
    """Raises StoreError listing every result that is missing, superfluous, unreadable, of another size or not RGB."""
    expected = {f"{path.stem}.png": path for path in inputs}
    there = {path.name for path in results.iterdir()}
    faults = [f"{name}: missing" for name in sorted(expected.keys() - there)]
    faults += [f"{name}: stands for no input" for name in sorted(there - expected.keys())]
    for name in sorted(expected.keys() & there):
        faults += _faults(results / name, expected[name], scale)
    if faults:
        raise StoreError(f"{results}: {joined(faults)}")


def _faults(result: Path, source: Path, scale: int) -> list[str]:
    rows, columns = (n * scale for n in read_header(source).size)
    try:
        read_picture(result)
        header = read_header(result)
    except UnreadableImage as error:
        return [f"{result.name}: unreadable: {str(error).removeprefix(f'{result}: ')}"]
    if header.size != (rows, columns):
        return [f"{result.name}: {header.size[1]} x {header.size[0]}, expected {columns} x {rows}"]
    return [] if header.mode == "RGB" else [f"{result.name}: of mode {header.mode}, expected RGB"]


def _pack(inputs: Sequence[Path], out: Path) -> Path:
    unfinished, final = out / f".{ZIP}{files.TMP}", out / ZIP
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
            archive.write(out / README, README)
            for path in inputs:
                archive.write(_result_of(path, out / RESULTS), f"{path.stem}.png")
        with zipfile.ZipFile(unfinished) as archive:
            broken = archive.testzip()
        if broken:
            raise StoreError(f"{unfinished}: {broken} was damaged while it was being written; check the disk")
        unfinished.replace(final)
    finally:
        unfinished.unlink(missing_ok=True)
    return final
