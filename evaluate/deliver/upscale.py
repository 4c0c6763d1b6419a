"""Image files through a run: they are found, checked, super-resolved one by one, and written whole."""

import glob
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from tqdm import tqdm

from championship_sr.evaluate.inference.pictures import check_writable, format_of, write_picture
from championship_sr.evaluate.model import Model
from championship_sr.extract.images.decode import UnreadableImage, is_image, read_header, read_picture
from championship_sr.extract.images.pairs import joined, warn_of_nested
from championship_sr.extract.images.picture import Picture
from championship_sr.extract.images.results import GivenImage, asked_for
from championship_sr.store.errors import ConfigError, StoreError
from championship_sr.store.progress import progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpscaleOptions:
    """How images are made and written."""

    suffix: str | None = None  # of the outputs, such as ".png"; None: that of each input
    quality: int = 95  # of JPEG and WebP; WebP at 100 is lossless
    self_ensemble: bool = False
    experts_only: bool = False  # write each expert's own image, named NAME-EXPERT, instead of the fusion's
    overwrite: bool = False


def find_inputs(given: str) -> list[Path]:
    """The image files that a file name, a folder or a glob pattern stands for.

    raises  StoreError if there is none
    """
    path = Path(given)
    if path.is_dir():
        inputs = sorted(file for file in path.iterdir() if is_image(file) and not file.is_dir())
        warn_of_nested(path)
    elif path.exists():
        inputs = [path]
    else:
        inputs = sorted(Path(name) for name in glob.glob(given, recursive=True) if is_image(Path(name)))
    if not inputs:
        raise StoreError(f"{given}: not an image file, a folder with images or a pattern that matches images")
    return inputs


def plan_outputs(
    inputs: Sequence[Path], output: Path, options: UpscaleOptions, experts: Sequence[str], *, into_folder: bool
) -> list[dict[str | None, Path]]:
    """For each input the path of its result (under None) or of each expert's (under its name).

    into_folder  the output is a folder even if its name ends as an image's
    raises       ConfigError if two results have one name or an input would be replaced, StoreError for existing files
    """
    single = len(inputs) == 1 and not into_folder and not output.is_dir() and output.suffix != ""
    names = experts if options.experts_only else (None,)
    plans = [{name: _output(path, output, options, name, single) for name in names} for path in inputs]
    every = [path for plan in plans for path in plan.values()]
    for path in every:
        format_of(path)
    twice = [path for path, count in Counter(every).items() if count > 1]
    if twice:
        raise ConfigError(f"{twice[0]}: more than one input would be written to it")
    replaced = {path.resolve() for path in inputs} & {path.resolve() for path in every}
    if replaced:
        raise ConfigError(f"{min(replaced)}: the output would replace an input; choose another output")
    existing = [path for path in every if path.exists()]
    if existing and not options.overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise StoreError(f"{existing[0]}{more}: already exists. Give --overwrite to replace it")
    return plans


def _output(path: Path, output: Path, options: UpscaleOptions, expert: str | None, single: bool) -> Path:
    target = output if single else output / path.name
    if options.suffix:
        target = target.with_suffix(options.suffix)
    return target.with_stem(f"{target.stem}-{expert}") if expert else target


def upscale_files(
    model: Model, inputs: Sequence[Path], output: Path, options: UpscaleOptions, *, into_folder: bool = False
) -> list[Path]:
    """Super-resolves the files and returns the paths of the results.

    raises  StoreError at the end, naming the files that could not be read or written; the others are done
    """
    plans = plan_outputs(inputs, output, options, model.expert_names, into_folder=into_folder)
    model.experts  # noqa: B018, missing weights are found before anything is written
    results = model.results([asked_for(path) for path in inputs])  # and so are missing results
    check_writable(next(iter(plans[0].values())).parent)
    faults, written = [], []
    passes = 8 if options.self_ensemble else 1
    total = passes * sum(map(_pixels, inputs))
    with progress(total=total, desc="upscaling", unit="px", unit_scale=True) as bar:
        for path, plan in zip(inputs, plans, strict=True):
            bar.set_description_str(path.name)
            try:
                given = [images.given(str(path)) for images in results]
                for name, picture in _results(model, read_picture(path), given, options, bar).items():
                    write_picture(plan[name], picture, quality=options.quality, overwrite=options.overwrite)
                    written.append(plan[name])
            except StoreError as error:
                faults.append(str(error))
    if faults:
        raise StoreError(f"{len(written)} written; left out: {joined(faults)}")
    return written


def _results(
    model: Model, picture: Picture, given: Sequence[GivenImage], options: UpscaleOptions, bar: tqdm
) -> dict[str | None, Picture]:
    wanted, told = options.self_ensemble, bar.update
    if options.experts_only:
        pictures = model.upscale_by_experts(picture, given=given, self_ensemble=wanted, progress=told)
        return dict[str | None, Picture](pictures.items())
    return {None: model.upscale(picture, given=given, self_ensemble=wanted, progress=told)}


def _pixels(path: Path) -> int:
    try:
        return prod(read_header(path).size)
    except UnreadableImage:
        return 0  # reported when the file is read
