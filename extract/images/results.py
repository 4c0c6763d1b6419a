"""An expert that is a folder of another program's SR images, which are matched to the LR images, checked and read."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from championship_sr.extract.config import ExpertConfig
from championship_sr.extract.images.bicubic import downscale, upscale
from championship_sr.extract.images.decode import UnreadableImage, decode, read_header
from championship_sr.extract.images.names import match_names, relative_stem
from championship_sr.extract.images.pairs import Pair, image_files, joined
from championship_sr.extract.images.picture import eight_bit
from championship_sr.store.errors import StoreError
from championship_sr.store.format.entries import Image as StoredImage

log = logging.getLogger(__name__)

MIDDLE_PX, RIM_PX = 128, 4  # side of the LR window that is compared, and the width of its excluded border
WORSE_DB = 2.0  # further from LR than the others' images by this: worth a warning


@dataclass(frozen=True)
class Asked:
    """An image for which a folder of results must have a result.

    name    of the LR file without its suffix, or of the HR file where LR is made from it
    nested  the same, preceded by the folders in which the images lie
    """

    id: str
    name: str
    nested: str
    lr_size: tuple[int, int]


@dataclass(frozen=True)
class GivenImage:
    """One image of an expert that is not run: (1, 3, H, W) in 0..1."""

    name: str
    scale: int
    image: Tensor


@dataclass(frozen=True)
class ResultFile:
    """What is known of a result's file.

    stamp       see `stamp_of`
    closeness   PSNR in dB between LR and the middle of the SR image, reduced bicubically; None where they are equal
    of_bicubic  the same for LR enlarged bicubically
    """

    stamp: list
    sha256: str
    closeness: float | None
    of_bicubic: float | None


class ResultImages(AbstractContextManager):
    """A folder of results instead of a network.

    files    image id -> the file
    digests  image id -> the file's sha256, where it is known
    """

    def __init__(
        self, config: ExpertConfig, scale: int, files: Mapping[str, Path], digests: Mapping[str, str] | None = None
    ) -> None:
        self.config, self.name, self.scale = config, config.name, scale
        self.files, self.digests = dict(files), dict(digests or {})

    def __exit__(self, *_exception: object) -> None:
        """Does nothing: there is nothing to close."""

    def identity(self, images: Sequence[StoredImage]) -> dict[str, Any]:
        """What decides the bytes that a store of these images gets."""
        lines = "".join(f"{image.id} {self.digests[image.id]}\n" for image in images)
        digest = hashlib.sha256(lines.encode()).hexdigest()
        return {"images": {"count": len(images), "sha256": digest}, "random_weights": False, "variants": ["identity"]}

    def given(self, image_id: str) -> GivenImage:
        """The image of this id.

        raises  UnreadableImage
        """
        pixels = decode(self.files[image_id])
        values = torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max)
        return GivenImage(self.name, self.scale, values.permute(2, 0, 1)[None])


def asked_of(pairs: Sequence[Pair]) -> list[Asked]:
    """What a folder of results must have for these pairs."""
    paths = [pair.files[0] for pair in pairs]  # LR's, where there is one
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    return [
        Asked(pair.id, path.stem, relative_stem(path, root), pair.lr_size)
        for pair, path in zip(pairs, paths, strict=True)
    ]


def asked_for(path: Path) -> Asked:
    """What a folder of results must have for an LR image in a file."""
    try:
        size = read_header(path).size
    except UnreadableImage:
        size = (0, 0)  # found out, and said, when it is read
    return Asked(str(path), path.stem, path.stem, size)


def result_images(config: ExpertConfig, asked: Sequence[Asked], scale: int) -> ResultImages:
    """The folder's images, one for each image asked for.

    raises  StoreError listing every image that is missing, there twice or of another size
    """
    faults: list[str] = []
    files = match_results(config, asked, scale, faults)
    if faults:
        raise StoreError(joined(faults))
    return ResultImages(config, scale, files)


def match_results(config: ExpertConfig, asked: Sequence[Asked], scale: int, faults: list[str]) -> dict[str, Path]:
    """Image id -> its file in the folder of results, by its name and by its header.

    faults  collects what does not fit
    """
    assert config.images, "an expert with weights has no folder of results"
    folder = Path(config.images).expanduser()
    try:
        files = image_files(folder)
    except StoreError as error:
        faults.append(f"expert {config.name}: {error}")
        return {}
    # folders distinguish images of the same name
    flat = len({image.name for image in asked}) == len(asked)
    names = {image.id: image.name if flat else image.nested for image in asked}
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.stem if flat else relative_stem(file, folder), []).append(file)
    stems = [stem for stem, paths in by_stem.items() for _ in paths]
    matches = match_names(list(names.values()), stems, scale)
    if not matches.files and not matches.twice:
        faults.append(
            f"expert {config.name}: none of the {len(files)} images in {folder}, such as {files[0].name}, is called as "
            f"one of the {len(asked)} LR images, such as {asked[0].name}"
        )
        return {}
    faults += [f"expert {config.name}: {folder} has no image for {name}" for name in matches.missing]
    for name, several in matches.twice.items():
        paths = ", ".join(str(path.relative_to(folder)) for stem in dict.fromkeys(several) for path in by_stem[stem])
        faults.append(f"expert {config.name}: {folder} has more than one image for {name}: {paths}")
    lossy = [file.name for file in files if file.suffix.lower() in (".jpg", ".jpeg")]
    if lossy:
        log.warning("expert %s: %d of its images are JPEG files, for example %s, so the fusion also learns their "
                    "artefacts; save results as PNG", config.name, len(lossy), lossy[0])  # fmt: skip
    if matches.unused:
        log.info("expert %s: %d images in %s match none of the LR images", config.name, len(matches.unused), folder)
    matched = {id_: by_stem[matches.files[name]][0] for id_, name in names.items() if name in matches.files}
    sizes = {image.id: image.lr_size for image in asked}
    faults += filter(None, (_size_fault(path, sizes[name], scale) for name, path in matched.items()))
    return matched


def _size_fault(path: Path, lr_size: tuple[int, int], scale: int) -> str | None:
    try:
        size = read_header(path).size
    except UnreadableImage:
        return None  # found out, and said, when it is read
    expected = tuple(n * scale for n in lr_size)
    if size == expected or 0 in lr_size:
        return None
    factors = {n / m for n, m in zip(size, lr_size, strict=True)}
    why = f"x{factors.pop():g} of it" if len(factors) == 1 else "another crop"
    wanted = f"{expected[0]} x {expected[1]}, x{scale} of the LR image"
    return f"{path}: {size[0]} x {size[1]} is {why}, expected {wanted}"


def look_at(path: Path, lr: np.ndarray, scale: int) -> ResultFile:
    """What must be known of a result, whose file is read to its end.

    raises  UnreadableImage
    """
    stamp, sr = stamp_of(path), decode(path)
    top, left = (max(0, (n - MIDDLE_PX) // 2) for n in lr.shape[:2])
    small = lr[top : top + MIDDLE_PX, left : left + MIDDLE_PX]
    large = sr[top * scale : (top + MIDDLE_PX) * scale, left * scale : (left + MIDDLE_PX) * scale]
    closeness, of_bicubic = (_closeness(image, small, scale) for image in (eight_bit(large), upscale(small, scale)))
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ResultFile(stamp, digest, closeness, of_bicubic)


def stamp_of(path: Path) -> list:
    """What stays the same while a file is unchanged: [path, bytes, time of change in ns]."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _closeness(sr: np.ndarray, lr: np.ndarray, scale: int) -> float | None:
    if sr.shape[:2] != tuple(n * scale for n in lr.shape[:2]):
        return None  # its size is reported as a fault of its own
    rim = RIM_PX if min(lr.shape[:2]) > 4 * RIM_PX else 0
    inside = (slice(rim, n - rim) for n in lr.shape[:2])
    difference = (downscale(sr, scale).astype(np.float64) - lr)[*inside]
    error = np.mean(difference**2)
    return float(10 * np.log10(255**2 / error)) if error else None


def warn_of_artefacts(results: Mapping[str, Mapping[str, ResultFile]]) -> None:
    """Warns of folders, and images in them, that when downscaled are further from LR than the others'.

    results  expert -> image id -> result

    JPEG's artefacts, another degradation and another crop all show in this way. Networks differ too: an image is judged
    by how much worse it is than the others' of it, beside what is usual for its folder.
    """
    for name, mine in results.items():
        others = [theirs for other, theirs in results.items() if other != name]
        behind = {
            id_: _behind(result, [theirs[id_] for theirs in others if id_ in theirs]) for id_, result in mine.items()
        }
        known = {id_: value for id_, value in behind.items() if value is not None}
        if not known:
            continue
        usual = median(known.values())
        if others and usual > WORSE_DB:
            log.warning(
                "expert %s: its images, downscaled bicubically, are %.1f dB further from LR than the other experts'. "
                "They may have JPEG artefacts or be made from other LR images; a weaker network's are further away too",
                name, usual,
            )  # fmt: skip
        worse = sorted((id_ for id_ in known if known[id_] - usual > WORSE_DB), key=lambda id_: -known[id_])
        if worse:
            text = ", ".join(f"{Path(mine[id_].stamp[0]).name} ({known[id_] - usual:.1f} dB)" for id_ in worse[:5])
            more = f" and {len(worse) - 5} more" if len(worse) > 5 else ""
            log.warning(
                "expert %s: downscaled bicubically, %s%s are further from LR than its other images. They may have JPEG "
                "artefacts, be cropped differently or show another image", name, text, more,
            )  # fmt: skip


def _behind(result: ResultFile, others: Sequence[ResultFile]) -> float | None:
    """By how many dB a result is further from LR than the others' or, without others, than a bicubic one."""
    values = [other.closeness for other in others] or [result.of_bicubic]
    known = [value for value in values if value is not None]
    if result.closeness is None or len(known) < len(values):
        return None
    return fmean(known) - result.closeness
