"""Matches files to images by the names that data sets, their scripts and other programs use."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# What is added to a photograph's name, in any order and number; {s} is the scale.
ENDINGS = (
    r"[_-]?x{s}(?:m|d|w[1-4]?)?",  # DIV2K: 0801x4; NTIRE 2018's mild, difficult and wild LR: 0801x4m, 0801x4w1
    r"_SRF_{s}",  # Huang et al. 2015: img_001_SRF_4_HR
    r"[_-](?:bic)?(?:LR|HR|SR)(?:x?{s})?",  # img_LR, RealSR's _LR4, BasicSR's _bicLRx4, results: _SR, _SRx4
    r"_LR(?:BI|BD|DN)",  # RCAN's scripts: img_LRBI_x4
    r"[_-](?:GT|LQ|HQ|bicubic|out)",  # BasicSR's configurations; Real-ESRGAN's results
)
# An ending that is none of these, such as _HAT-L_SRx4_pretrained, begins at a separator or with the scale
# and has a letter: img_1 is not img_1_2.
OTHER_ENDING = r"(?:[_-]?x{s})?[_. -](?=.*[a-z]).*"


@dataclass(frozen=True)
class Matches:
    """Which file belongs to which name.

    files    name -> its file, where there is exactly one
    missing  the names to which no file belongs
    twice    name -> its files, where there are several
    unused   the files that belong to no name
    """

    files: dict[str, str]
    missing: tuple[str, ...]
    twice: dict[str, tuple[str, ...]]
    unused: tuple[str, ...]


def match_names(names: Sequence[str], files: Sequence[str], scale: int) -> Matches:
    """Finds the file that belongs to each name, whatever data sets or programs have added to either.

    names   of the images asked for: `relative_stem`s, such as 0801 or 0801x4 or street/0801
    files   the names among which each partner is sought: LR images of HR images, or a program's results;
            `relative_stem`s too, each once for every file of that name

    A file belongs to a name if it has the same name, or that with one of the known ENDINGS (0801, 0801x4,
    0801_LR4, 0801_SR), or the name without its own ending. The longest name wins: img_2_SR belongs to img_2,
    not to img. Where less than half of the names have a file in this way, an ending that most files or images share is
    taken as the program's own: 0801_SwinIR, 0801x4_HAT-L_SRx4_pretrained. Files of other folders are never partners.
    """
    bases = _bases(names, scale)
    owners = [_owner(file, bases, _known(scale)) for file in files]
    if 2 * len({owner for owner in owners if owner}) < len(names):
        shared = _by_shared_ending(files, bases, scale)
        owners = [known or other for known, other in zip(owners, shared, strict=True)]
    claims: dict[str, list[str]] = {}
    for file, owner in zip(files, owners, strict=True):
        if owner:
            claims.setdefault(owner, []).append(file)
    return Matches(
        files={name: claims[name][0] for name in names if len(claims.get(name, ())) == 1},
        missing=tuple(name for name in names if name not in claims),
        twice={name: tuple(claims[name]) for name in names if len(claims.get(name, ())) > 1},
        unused=tuple(file for file, owner in zip(files, owners, strict=True) if not owner),
    )


def relative_stem(path: Path, folder: Path) -> str:
    """The file's name without its suffix, behind the names of its folders under `folder`: street/0801."""
    return path.relative_to(folder).with_suffix("").as_posix() if path.suffix else path.relative_to(folder).as_posix()


def printable(name: str | Path) -> str:
    """The name as text, even if its bytes are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def without_ending(name: str, scale: int) -> str:
    """The photograph's own name: 0801 of 0801x4, img_001 of img_001_SRF_4_HR; never nothing."""
    folder, slash, stem = name.rpartition("/")
    bare = re.sub(rf"(?<=.)(?:{_known(scale).pattern})$", "", stem, flags=re.IGNORECASE)
    return folder + slash + bare


def is_low_resolution(name: str, scale: int) -> bool:
    """Whether the name itself says that the file is an LR image, beside an HR image in one folder."""
    return re.search(rf"[_-](?:bic)?LR(?:BI|BD|DN)?(?:_?x?{scale})?$", name, re.IGNORECASE) is not None


def is_high_resolution(name: str) -> bool:
    """Whether the name itself says that the file is an HR image."""
    return re.search(r"[_-](?:HR|GT)$", name, re.IGNORECASE) is not None


def _known(scale: int) -> re.Pattern[str]:
    return re.compile(f"(?:{'|'.join(ENDINGS)})+".replace("{s}", str(scale)), re.IGNORECASE)


def _bases(names: Sequence[str], scale: int) -> dict[str, str]:
    """The possible beginnings of a file's name -> the name to which the file then belongs."""
    bare = {name: without_ending(name, scale) for name in names}
    shared = Counter(bare.values())
    return {base: name for name, base in bare.items() if shared[base] == 1} | {name: name for name in names}


def _beginnings(file: str, bases: dict[str, str]) -> Iterable[tuple[str, str]]:
    """(name, ending) of every base that the file's name begins with, the longest base first."""
    for end in range(len(file), file.rfind("/") + 1, -1):
        if file[:end] in bases:
            yield bases[file[:end]], file[end:]


def _owner(file: str, bases: dict[str, str], known: re.Pattern[str]) -> str | None:
    for name, ending in _beginnings(file, bases):
        if not ending or known.fullmatch(ending):
            return name
    return None


def _by_shared_ending(files: Sequence[str], bases: dict[str, str], scale: int) -> list[str | None]:
    """The owners by the ending that more than half of the files or of the images have; a tie is left to the caller."""
    possible = re.compile(OTHER_ENDING.replace("{s}", str(scale)), re.IGNORECASE)
    owners = [
        {ending: name for name, ending in _beginnings(file, bases) if possible.fullmatch(ending)} for file in files
    ]
    counts = Counter(ending for endings in owners for ending in endings)
    most = max(counts.values(), default=0)
    if 2 * most <= min(len(files), len(set(bases.values()))):
        return [None] * len(files)
    # the longest name that one of these endings follows
    return [next((name for ending, name in endings.items() if counts[ending] == most), None) for endings in owners]
