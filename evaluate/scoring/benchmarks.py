"""Benchmark folders as people have them: Set5, Set14, B100, Urban100, Manga109, DIV2K, in every usual layout."""

from collections.abc import Iterator
from pathlib import Path

from championship_sr.extract.config import ImagesConfig
from championship_sr.extract.images.decode import is_image
from championship_sr.extract.images.pairs import LAYOUTS, Pair, find_pairs, joined
from championship_sr.store.errors import StoreError

# HR folder, LR folder, under a benchmark's own folder, besides those that extraction knows
MORE_LAYOUTS = (
    ("GTmod{s}", "LRbicx{s}"),
    ("GT", "LRbicx{s}"),
    ("GT", "LR"),
    ("GT", None),
    ("original", "LR_bicubic/X{s}"),
    ("original", None),
)
SAME_FOLDER = "image_SRF_{s}"  # img_001_SRF_4_HR.png beside img_001_SRF_4_LR.png; Huang et al. 2015


def find_benchmarks(folder: Path, scale: int, left_out: list[str]) -> dict[str, list[Pair]]:
    """Name -> pairs of every benchmark in the folder, or of the folder itself if it is one.

    left_out  collects the faults of files that do not fit
    raises    StoreError if there is none
    """
    sets: dict[str, list[Pair]] = {}
    for child in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        inside = any(path.is_relative_to(child) for pairs in sets.values() for pair in pairs for path in pair.files)
        pairs = [] if inside else benchmark_pairs(child, scale, left_out)
        if pairs:
            sets[child.resolve().name] = pairs
    if not sets and left_out:
        raise StoreError(f"{folder}: no image can be scored: {joined(left_out)}")
    if not sets:
        raise StoreError(f"{folder}: no benchmark in a known layout, such as Set5/HR with Set5/LR_bicubic/X{scale}")
    return sets


def benchmark_pairs(folder: Path, scale: int, left_out: list[str]) -> list[Pair]:
    """The pairs of one benchmark's folder; none if it is in no known layout."""
    if any((folder / hr).is_dir() for split, hr, _ in LAYOUTS if split != "train"):
        return find_pairs(ImagesConfig(roots=(str(folder),), split="val"), scale, left_out)
    same = folder / SAME_FOLDER.format(s=scale)
    if same.is_dir():
        return find_pairs(ImagesConfig(hr=(str(same),), lr=(str(same),)), scale, left_out)
    for hr, lr in _more_layouts(folder, scale):
        if hr.is_dir() and (lr is None or lr.is_dir()):
            return find_pairs(ImagesConfig(hr=(str(hr),), lr=(str(lr),) if lr else ()), scale, left_out)
    if folder.is_dir() and any(is_image(path) for path in folder.iterdir()):
        return find_pairs(ImagesConfig(hr=(str(folder),)), scale, left_out, nested=False)
    return []


def _more_layouts(folder: Path, scale: int) -> Iterator[tuple[Path, Path | None]]:
    for hr, lr in MORE_LAYOUTS:
        yield folder / hr.format(s=scale), folder / lr.format(s=scale) if lr else None
