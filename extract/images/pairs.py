"""Finds LR/HR pairs on disk, matches them by name and checks them by their headers."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from championship_sr.extract.config import ImagesConfig
from championship_sr.extract.images.bicubic import downscale
from championship_sr.extract.images.decode import IMAGE_SUFFIXES, UnreadableImage, decode, is_image, read_header
from championship_sr.extract.images.ids import ids_of
from championship_sr.extract.images.names import (
    is_high_resolution,
    is_low_resolution,
    match_names,
    printable,
    relative_stem,
    without_ending,
)
from championship_sr.extract.images.picture import eight_bit
from championship_sr.store.errors import StoreError

log = logging.getLogger(__name__)

SHOWN_FAULTS = 10
# (split, HR folder, LR folder) under a root, in the layouts in use; {s} is the scale
LAYOUTS = (
    ("train", "train_HR", "train_LR"),  # DF2K as the reference document has it
    ("val", "val_HR", "val_LR"),
    ("train", "DIV2K_train_HR", "DIV2K_train_LR_bicubic/X{s}"),  # DIV2K and Flickr2K as published, BasicSR's layout
    ("val", "DIV2K_valid_HR", "DIV2K_valid_LR_bicubic/X{s}"),
    ("train", "Flickr2K_HR", "Flickr2K_LR_bicubic/X{s}"),
    ("train", "DF2K_train_HR", "DF2K_train_LR_bicubic/X{s}"),
    ("all", "HR", "LR_bicubic/X{s}"),  # benchmarks: the official EDSR repository's, ours, BasicSR's
    ("all", "HR", "LR_x{s}"),
    ("all", "HR", "LR/X{s}"),
    ("all", "HR", "LR"),
    ("all", "GTmod12", "LRbicx{s}"),
    ("all", "HR", None),
)


@dataclass(frozen=True)
class Pair:
    """One photograph: an HR and an LR file, an HR file that LR is made from, or an LR file alone."""

    id: str
    name: str
    hr: Path | None
    lr: Path | None
    scale: int
    lr_size: tuple[int, int] = (0, 0)  # rows and columns, by the headers
    cut: bool = False  # whether HR is slightly larger than `scale` times its LR file

    @property
    def path(self) -> Path:
        """The file that the photograph is named after."""
        return self.files[-1]

    @property
    def lr_source(self) -> str:
        return "bicubic" if self.lr is None else "file"

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.lr, self.hr) if path)

    def read(self) -> tuple[np.ndarray, np.ndarray | None]:
        """LR (h, w, 3) uint8 and HR (scale*h, scale*w, 3) uint8 or uint16, None where there is none.

        HR is cut to multiples of the scale; without an LR file, LR is made from it by the bicubic recipe.
        raises  UnreadableImage
        """
        if self.hr is None:
            return eight_bit(decode(self.path)), None
        hr = decode(self.hr)
        height, width = (n - n % self.scale for n in hr.shape[:2])
        hr = np.ascontiguousarray(hr[:height, :width])
        lr = eight_bit(downscale(hr, self.scale) if self.lr is None else decode(self.lr))
        if tuple(n * self.scale for n in lr.shape[:2]) != hr.shape[:2]:
            sizes = " and ".join(f"{image.shape[0]} x {image.shape[1]}" for image in (hr, lr))
            raise UnreadableImage(
                f"{self.hr}: it and {self.lr} have {sizes} pixels, which is not a factor of {self.scale}"
            )
        return lr, hr


def find_pairs(data: ImagesConfig, scale: int, left_out: list[str] | None = None, *, nested: bool = True) -> list[Pair]:
    """Every pair of the data, in the order of the folders, then of the names.

    nested    also use the images in subfolders
    left_out  collects the faults of images that do not fit, to continue without them
    raises    StoreError listing all that does not fit: missing partners, sizes that are not `scale` times each other,
              files that are not images; always for empty folders
    """
    faults: list[str] = []
    if data.has_hr:
        pairs = [pair for hr, lr in _folders(data, scale) for pair in _pairs_of(hr, lr, scale, nested, faults)]
    else:
        pairs = [pair for lr in data.lr for pair in _lr_alone(Path(lr), scale, nested)]
    pairs = checked(_with_ids(pairs, faults), faults)
    faults = [printable(fault) for fault in faults]
    if faults and left_out is None:
        raise StoreError(joined(faults))
    if left_out is not None:
        left_out += faults
    return pairs


def in_short(names: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    more = f" and {len(names) - SHOWN_FAULTS} more" if len(names) > SHOWN_FAULTS else ""
    return ", ".join(names[:SHOWN_FAULTS]) + more


def joined(faults: Sequence[str]) -> str:
    """All faults in one line; the log has those that do not fit into it."""
    for fault in faults[SHOWN_FAULTS:]:
        log.error("%s", fault)
    more = f"; and {len(faults) - SHOWN_FAULTS} more, in the log" if len(faults) > SHOWN_FAULTS else ""
    many = f"{len(faults)} images do not fit: " if len(faults) > 1 else ""
    return many + "; ".join(faults[:SHOWN_FAULTS]) + more


def _folders(data: ImagesConfig, scale: int) -> list[tuple[Path, Path | None]]:
    """(HR folder, LR folder, None where there is none) of everything that the configuration names."""
    folders: list[tuple[Path, Path | None]] = []
    for root in map(Path, data.roots):
        pairs = _known_layouts(root, data.split, scale)
        if not pairs and root.is_dir():
            pairs = [pair for child in sorted(root.iterdir()) for pair in _known_layouts(child, data.split, scale)]
        if not pairs:
            names = ", ".join(sorted({hr for _, hr, _ in LAYOUTS}))
            raise StoreError(
                f"{root}: no images in a known layout ({data.split} of {names}); name the folders with data.hr"
            )
        folders += pairs
    folders += zip(map(Path, data.hr), map(Path, data.lr) if data.lr else [None] * len(data.hr), strict=True)
    return folders


def _known_layouts(root: Path, split: str, scale: int) -> list[tuple[Path, Path | None]]:
    folders: dict[Path, Path | None] = {}
    for part, hr_name, lr_name in LAYOUTS:
        if split not in ("all", part) and part != "all":
            continue
        hr, lr = root / hr_name, root / lr_name.format(s=scale) if lr_name else None
        lr = lr if lr is not None and lr.is_dir() else None
        if hr.is_dir() and folders.get(hr) is None:
            folders[hr] = lr
    return list(folders.items())


def image_files(folder: Path, *, nested: bool = True) -> list[Path]:
    """The images in the folder and, with `nested`, in the folders under it, by name; hidden ones are left out.

    raises  StoreError if there is no such folder, or no image in it
    """
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder")
    files = sorted(_walk(folder, nested))
    if not files:
        raise StoreError(f"{folder}: no images in it ({', '.join(IMAGE_SUFFIXES)})")
    return files


def _walk(folder: Path, nested: bool) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error

    seen = set()  # links may form loops
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=stop):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if nested and not name.startswith(".")]
        yield from (Path(parent, name) for name in names if is_image(Path(name)) and not name.startswith("."))


def warn_of_nested(folder: Path) -> None:
    """Logs which subfolders have images that are not read."""
    skipped = sorted(
        {path.relative_to(folder).parts[0] for path in _walk(folder, nested=True) if path.parent != folder}
    )
    if skipped:
        log.warning("%s: images in its subfolders are not read: %s", folder, in_short(skipped))


def _lr_alone(folder: Path, scale: int, nested: bool) -> list[Pair]:
    files = image_files(folder, nested=nested)
    return [Pair(relative_stem(lr, folder), printable(lr.name), None, lr, scale) for lr in files]


def _pairs_of(hr_folder: Path, lr_folder: Path | None, scale: int, nested: bool, faults: list[str]) -> list[Pair]:
    hr_files = image_files(hr_folder, nested=nested)
    lr_files = image_files(lr_folder, nested=nested) if lr_folder else []
    high, low = _of_one_folder(hr_files, scale)
    shared = bool(low) and (lr_folder is None or lr_folder.resolve() == hr_folder.resolve())
    if shared:
        hr_files, lr_files, lr_folder = high, low, hr_folder
    if lr_folder is None:
        return [_pair(hr, relative_stem(hr, hr_folder), None, scale) for hr in hr_files]
    return [
        _pair(hr, without_ending(stem, scale) if shared else stem, lr, scale)
        for hr, stem, lr in _matched(hr_files, hr_folder, lr_files, lr_folder, scale, faults)
    ]


def _matched(
    hr_files: list[Path], hr_folder: Path, lr_files: list[Path], lr_folder: Path, scale: int, faults: list[str]
) -> Iterator[tuple[Path, str, Path]]:
    """(HR file, its stem under its folder, LR file) of each pair."""
    names = {hr: relative_stem(hr, hr_folder) for hr in hr_files}
    paths: dict[str, list[Path]] = {}
    for lr in lr_files:
        paths.setdefault(relative_stem(lr, lr_folder), []).append(lr)
    matches = match_names(list(names.values()), [relative_stem(lr, lr_folder) for lr in lr_files], scale)
    for stems in matches.twice.values():
        first, *others = [path for stem in dict.fromkeys(stems) for path in paths[stem]]
        faults += [f"{other}: stands for the same image as {first.name}" for other in others]
    missing = set(matches.missing)
    faults += [f"{hr}: has no LR image in {lr_folder}" for hr in hr_files if names[hr] in missing]
    faults += [
        f"{path}: has no HR image in {hr_folder}" for stem in dict.fromkeys(matches.unused) for path in paths[stem]
    ]
    for hr, stem in names.items():
        if stem in matches.files:
            yield hr, stem, paths[matches.files[stem]][0]


def _of_one_folder(files: list[Path], scale: int) -> tuple[list[Path], list[Path]]:
    """(HR files, LR files) of a folder; LR only where the name of every file says which of the two it is."""
    low = [file for file in files if is_low_resolution(file.stem, scale)]
    high = [file for file in files if is_high_resolution(file.stem)]
    return (high, low) if low and len(low) + len(high) == len(files) else (files, [])


def _pair(hr: Path, stem: str, lr: Path | None, scale: int) -> Pair:
    return Pair(stem, printable(hr.name), hr, lr, scale)


def _with_ids(pairs: list[Pair], faults: list[str]) -> list[Pair]:
    ids = ids_of({pair.path: pair.id for pair in pairs})
    seen: dict[str, Path] = {}
    for pair in pairs:
        name = ids[pair.path]
        if name in seen:
            faults.append(f"{pair.path}: would have the same id as {seen[name]}: {name}")
        seen[name] = pair.path
    return [replace(pair, id=ids[pair.path]) for pair in pairs]


def checked(pairs: Sequence[Pair], faults: list[str]) -> list[Pair]:
    """The pairs whose files' headers agree on a size, which is filled in; the others are added to `faults`."""
    modes: Counter[str] = Counter()
    sized = [_with_size(pair, modes, faults) for pair in pairs]
    fitting = [pair for pair in sized if pair is not None]
    _say_once(fitting, modes)
    return fitting


def _with_size(pair: Pair, modes: Counter[str], faults: list[str]) -> Pair | None:
    try:
        headers = [read_header(path) for path in pair.files]
    except UnreadableImage as error:
        faults.append(str(error))
        return None
    modes.update(header.mode for header in headers)
    (height, width), scale = headers[-1].size, pair.scale
    lr_size = headers[0].size if pair.lr else (height // scale, width // scale)
    if pair.hr is None:
        return replace(pair, lr_size=lr_size)
    if not min(lr_size):
        faults.append(f"{pair.hr}: {height} x {width} is smaller than one LR pixel at x{scale}")
        return None
    if pair.lr and (height // scale, width // scale) != lr_size:
        lr = f"{lr_size[0]} x {lr_size[1]}"
        faults.append(f"{pair.hr}: {height} x {width} is not {scale} times {pair.lr.name}, {lr}")
        return None
    return replace(pair, lr_size=lr_size, cut=pair.lr is not None and bool(height % scale or width % scale))


def _say_once(pairs: list[Pair], modes: Counter[str]) -> None:
    made = sum(pair.lr is None for pair in pairs)
    if made:
        log.info("LR of %d images is made with bicubic x%d from HR cropped to multiples of it", made, pairs[0].scale)
    cut = [pair.name for pair in pairs if pair.cut]
    if cut:
        scale = pairs[0].scale
        log.warning(
            "HR is cropped on the right and bottom to %d times its LR in %d images: %s", scale, len(cut), in_short(cut)
        )
    other = ", ".join(f"{count} of mode {mode}" for mode, count in sorted(modes.items()) if mode != "RGB")
    if other:
        log.warning("converted to RGB (grey repeated, alpha dropped): %s", other)
