"""LR/HR pairs on disk: found, matched by name, checked by their headers, decoded as BasicSR does."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from championship_sr.extract.config import DataConfig
from championship_sr.extract.images.bicubic import downscale
from championship_sr.extract.images.decode import IMAGE_SUFFIXES, _reason, decode, eight_bit
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
    ("all", "HR", "LR"),
    ("all", "GTmod12", "LRbicx{s}"),
    ("all", "HR", None),
)


@dataclass(frozen=True)
class Pair:
    """One photograph: an HR file, and the LR file or none where LR is made from HR."""

    id: str
    name: str
    hr: Path
    lr: Path | None
    scale: int
    lr_size: tuple[int, int] = (0, 0)  # rows and columns, by the headers

    @property
    def lr_source(self) -> str:
        return "bicubic" if self.lr is None else "file"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.hr,) if self.lr is None else (self.lr, self.hr)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """LR (h, w, 3) uint8 and HR (scale*h, scale*w, 3) uint8 or uint16.

        Without an LR file HR is cut to multiples of the scale and LR made by the bicubic recipe.
        raises  UnreadableImage
        """
        hr = decode(self.hr)
        if self.lr is not None:
            return eight_bit(decode(self.lr)), hr
        height, width = (n - n % self.scale for n in hr.shape[:2])
        hr = np.ascontiguousarray(hr[:height, :width])
        return eight_bit(downscale(hr, self.scale)), hr


def find_pairs(data: DataConfig, scale: int, left_out: list[str] | None = None) -> list[Pair]:
    """Every pair of the data, in the order of the folders, then of the names.

    left_out  takes what does not fit, for those who go on without it
    raises    StoreError listing all that does not fit: missing partners, sizes that are not `scale` times each other,
              files that are no images; for empty folders always
    """
    folders = _folders(data, scale)
    faults: list[str] = []
    pairs = [pair for hr, lr in folders for pair in _pairs_of(hr, lr, scale, faults)]
    pairs = _with_ids(pairs, faults)
    modes: Counter[str] = Counter()
    sized = [(len(faults), _with_size(pair, modes, faults), len(faults)) for pair in pairs]
    if faults and left_out is None:
        raise StoreError(joined(faults))
    if left_out is not None:
        left_out += faults
    pairs = [pair for before, pair, after in sized if before == after]
    _say_once(pairs, modes)
    return pairs


def joined(faults: Sequence[str]) -> str:
    """All faults in one line; the log has those that are too many for it."""
    for fault in faults[SHOWN_FAULTS:]:
        log.error("%s", fault)
    more = f"; and {len(faults) - SHOWN_FAULTS} more, in the log" if len(faults) > SHOWN_FAULTS else ""
    many = f"{len(faults)} images do not fit: " if len(faults) > 1 else ""
    return many + "; ".join(faults[:SHOWN_FAULTS]) + more


def _folders(data: DataConfig, scale: int) -> list[tuple[Path, Path | None]]:
    """(HR folder, LR folder or None) of everything that the configuration names."""
    folders: list[tuple[Path, Path | None]] = []
    for root in map(Path, data.roots):
        found = _known_layouts(root, data.split, scale)
        if not found and root.is_dir():
            found = [pair for child in sorted(root.iterdir()) for pair in _known_layouts(child, data.split, scale)]
        if not found:
            names = ", ".join(sorted({hr for _, hr, _ in LAYOUTS}))
            raise StoreError(
                f"{root}: no images in a known layout ({data.split} of {names}); name the folders as data.hr"
            )
        folders += found
    folders += zip(map(Path, data.hr), map(Path, data.lr) if data.lr else [None] * len(data.hr), strict=True)
    return folders


def _known_layouts(root: Path, split: str, scale: int) -> list[tuple[Path, Path | None]]:
    found: dict[Path, Path | None] = {}
    for part, hr_name, lr_name in LAYOUTS:
        if split not in ("all", part) and part != "all":
            continue
        hr, lr = root / hr_name, root / lr_name.format(s=scale) if lr_name else None
        lr = lr if lr is not None and lr.is_dir() else None
        if hr.is_dir() and found.get(hr) is None:
            found[hr] = lr
    return list(found.items())


def image_files(folder: Path) -> list[Path]:
    """The folder's images by name.

    raises  StoreError if there is no such folder, or no image in it
    """
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise StoreError(f"{folder}: no images in it ({', '.join(IMAGE_SUFFIXES)})")
    return files


def _pairs_of(hr_folder: Path, lr_folder: Path | None, scale: int, faults: list[str]) -> Iterable[Pair]:
    hr_files = image_files(hr_folder)
    if lr_folder is None:
        return [Pair("", hr.name, hr, None, scale) for hr in hr_files]
    partners: dict[str, Path] = {}
    lr_files = image_files(lr_folder)
    for lr in sorted(lr_files, key=lambda path: _key(path, scale) == path.stem):  # a name of its own wins over x4
        if _key(lr, scale) in partners and _key(lr, scale) != lr.stem:
            faults.append(f"{lr}: stands for the same image as {partners[_key(lr, scale)].name}")
        partners[_key(lr, scale)] = lr
        partners[lr.stem] = lr
    pairs, used = [], set()
    for hr in hr_files:
        lr = partners.get(hr.stem) or partners.get(_key(hr, scale))
        if lr is None:
            faults.append(f"{hr}: has no LR image in {lr_folder}")
        else:
            used.add(lr)
            pairs.append(Pair("", hr.name, hr, lr, scale))
    faults += [f"{lr}: has no HR image in {hr_folder}" for lr in lr_files if lr not in used]
    return pairs


def _key(path: Path, scale: int) -> str:
    """The name without what tells an LR file from its HR file: 0001x4, img_x4, img_LR, img_HR."""
    return re.sub(rf"(?:_?[xX]{scale})?(?:_(?:LR|HR))?$", "", path.stem) or path.stem


def _with_ids(pairs: list[Pair], faults: list[str]) -> list[Pair]:
    """The pairs with ids: the HR file's name, after as many of its folders' as tell it from files of the same name."""
    ids = {pair.hr: _safe(pair.hr.stem) for pair in pairs}
    for depth in range(1, max((len(pair.hr.parts) for pair in pairs), default=1)):
        taken = Counter(ids.values())
        for path in ids:
            if taken[ids[path]] > 1:
                ids[path] = _safe("-".join([*path.parts[-1 - depth : -1], path.stem]))
    seen: dict[str, Path] = {}
    for pair in pairs:
        if ids[pair.hr] in seen:
            faults.append(f"{pair.hr}: would have the same id as {seen[ids[pair.hr]]}: {ids[pair.hr]}")
        seen[ids[pair.hr]] = pair.hr
    return [replace(pair, id=ids[pair.hr]) for pair in pairs]


def _safe(name: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._+-]", "-", name)
    return name if name[:1].isalnum() else f"i{name}"


def _with_size(pair: Pair, modes: Counter[str], faults: list[str]) -> Pair:
    """The pair with its LR size, if the headers of its files agree on it."""
    sizes = []
    for path in pair.files:
        try:
            with Image.open(path) as image:
                sizes.append(image.size[::-1])
                modes[image.mode] += 1
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            faults.append(f"{path}: {_reason(error)}")
            return pair
    (height, width), scale = sizes[-1], pair.scale
    if pair.lr is None and min(height, width) < scale:
        faults.append(f"{pair.hr}: {height} x {width} is smaller than one LR pixel at x{scale}")
    if pair.lr is not None and (height, width) != tuple(n * scale for n in sizes[0]):
        lr = f"{sizes[0][0]} x {sizes[0][1]}"
        faults.append(f"{pair.hr}: {height} x {width} is not {scale} times {pair.lr.name}, {lr}")
    return replace(pair, lr_size=(height // scale, width // scale))


def _say_once(pairs: list[Pair], modes: Counter[str]) -> None:
    made = sum(pair.lr is None for pair in pairs)
    if made:
        log.info("LR of %d images is made by bicubic x%d, HR cut to multiples of it", made, pairs[0].scale)
    other = ", ".join(f"{count} of mode {mode}" for mode, count in sorted(modes.items()) if mode != "RGB")
    if other:
        log.warning("converted to RGB (grey repeated, alpha left out): %s", other)
