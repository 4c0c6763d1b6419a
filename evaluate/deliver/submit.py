"""An NTIRE submission: one PNG for each input, readme.txt, and the zip, checked before it is offered."""

import csv
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from championship_sr.evaluate.inference.pictures import check_writable, write_picture
from championship_sr.evaluate.model import Model
from championship_sr.extract.images.decode import UnreadableImage, read_header, read_picture
from championship_sr.extract.images.names import printable
from championship_sr.extract.images.pairs import image_files, joined, warn_of_nested
from championship_sr.extract.images.picture import Picture
from championship_sr.extract.images.results import asked_for
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.progress import progress

RESULTS, README, TIMES, ZIP = "results", "readme.txt", "seconds.csv", "submission.zip"


@dataclass(frozen=True)
class Facts:
    """The fields of readme.txt that no program can know."""

    extra_data: bool  # trained on more than the challenge's own images, the experts included
    description: str


@dataclass(frozen=True)
class Submission:
    """What was made."""

    zip: Path
    images: int
    seconds_per_image: float


def submit(model: Model, lr: Path, out: Path, facts: Facts, *, self_ensemble: bool = False) -> Submission:
    """Super-resolves a folder of LR images and packs the results; called again, it goes on with what is missing.

    raises  StoreError if an input cannot be read, or names, number or sizes of the results do not fit the inputs
    """
    inputs = image_files(lr, nested=False)
    warn_of_nested(lr)
    _check_names(inputs)
    of_experts = model.results([asked_for(path) for path in inputs])
    results = out / RESULTS
    check_writable(results)
    seconds = _seconds(out)
    for path in progress(inputs, desc="submission", unit="image"):
        target = results / f"{path.stem}.png"
        if target.exists() and path.name in seconds:
            continue
        picture = read_picture(path)
        given = [images.given(str(path)) for images in of_experts]
        began = time.perf_counter()
        result = model.upscale(Picture(picture.pixels), given=given, self_ensemble=self_ensemble)
        seconds[path.name] = time.perf_counter() - began
        write_picture(target, Picture(result.pixels), overwrite=True)
        _note(out, path.name, seconds[path.name])
    check(inputs, results, model.scale)
    each = sum(seconds[path.name] for path in inputs) / len(inputs)
    (out / README).write_text(readme(each, model.device.type != "cpu", facts), encoding="utf-8")
    return Submission(_pack(inputs, out), len(inputs), each)


def _check_names(inputs: Sequence[Path]) -> None:
    """Raises StoreError listing the inputs whose results would have one name, or one that a zip cannot hold."""
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
        raise ConfigError("--description: must be one line, as readme.txt has one for it")
    return (
        f"runtime per image [s] : {seconds:.2f}\n"
        f"CPU[1] / GPU[0] : {int(not gpu)}\n"
        f"Extra Data [1] / No Extra Data [0] : {int(facts.extra_data)}\n"
        f"Other description : {facts.description}\n"
    )


def check(inputs: Sequence[Path], results: Path, scale: int) -> None:
    """Raises StoreError listing every result that is missing, too many, unreadable, of another size or not RGB."""
    expected = {f"{path.stem}.png": path for path in inputs}
    found = {path.name for path in results.iterdir()}
    faults = [f"{name}: missing" for name in sorted(expected.keys() - found)]
    faults += [f"{name}: stands for no input" for name in sorted(found - expected.keys())]
    for name in sorted(expected.keys() & found):
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
    unfinished, final = out / f".{ZIP}.tmp", out / ZIP
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        archive.write(out / README, README)
        for path in inputs:
            archive.write(out / RESULTS / f"{path.stem}.png", f"{path.stem}.png")
    with zipfile.ZipFile(unfinished) as archive:
        broken = archive.testzip()
        if broken:
            raise StoreError(f"{unfinished}: {broken} was damaged while it was written; is the disk sound?")
    unfinished.replace(final)
    return final


def _seconds(out: Path) -> dict[str, float]:
    path = out / TIMES
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {row[0]: float(row[1]) for row in csv.reader(file) if len(row) == 2}


def _note(out: Path, name: str, seconds: float) -> None:
    with open(out / TIMES, "a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([name, f"{seconds:.4f}"])
