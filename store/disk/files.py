"""Files that appear whole or not at all, and locks that die with their process."""

import ctypes
import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from championship_sr.store.disk.small_files import open_regular
from championship_sr.store.errors import StoreError, Unreadable

TMP = ".tmp"  # suffix of unfinished files; the next holder of the lock removes them
_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Runs the block and tells a failure to read a file apart from a missing file.

    raises  FileNotFoundError if there is no such file; Unreadable for every other failure of the system, and where a
            link leads to nothing
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        link = _link_to_nowhere(path)
        if link:
            raise Unreadable(
                f"{link}: cannot be read: it is a link to {os.readlink(link)}, which does not exist"
            ) from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read: {error.strerror or error}") from None


def _link_to_nowhere(path: Path) -> Path | None:
    """The link on the way to a path whose target is not there, such as a disk that is not mounted."""
    missing = (place for place in (path, *path.parents) if not os.path.exists(place))
    return next((place for place in missing if os.path.islink(place)), None)


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if the folder does not exist.

    raises  Unreadable
    """
    try:
        with reading(folder):
            return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def open_file(path: Path) -> io.BufferedReader:
    """A regular file, open for reading.

    raises  as `reading`; StoreError if the name belongs to something other than a file
    """
    with reading(path):
        return open_regular(path)


def is_there(path: Path) -> bool:
    """Whether anything has this name, even a dangling link.

    raises  Unreadable if the system cannot tell
    """
    try:
        with reading(path):
            os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def read_bytes(path: Path) -> bytes:
    """What a file holds.

    raises  as `open_file`
    """
    with reading(path), open_file(path) as file:
        return file.read()


def sync(path: Path) -> None:
    """Put a file's or a folder's own entries on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Put a file, or a folder with everything in it, on the disk; contents before the names that lead to them."""
    if path.is_dir():
        for folder, _, names in os.walk(path, topdown=False):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
    else:
        sync(path)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file as a whole, or leave it as it was; the caller holds the lock that guards the file."""
    unfinished = path.with_name(path.name + TMP)
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)  # the unfinished file may be what fills the disk
        raise
    sync(path.parent)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Runs a block that writes this path in a long job.

    raises  StoreError with a one-line message if the system refuses, for instance on a full disk
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise StoreError(
            f"{path}: cannot be written ({reason}). Everything saved earlier is intact; "
            "make room, then run the same command again"
        ) from error


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A temporary folder; what the block puts there moves into `folder` when the block ends, or not at all.

    raises  StoreError if the folder is not empty
    """
    inside = folder / TMP
    if folder.exists() and any(path != inside for path in folder.iterdir()):
        raise StoreError(f"{folder}: not empty; choose another folder")
    remove(inside)
    inside.mkdir(parents=True)
    try:
        yield inside
        sync_tree(inside)
    except BaseException:
        remove(inside)
        raise
    for path in inside.iterdir():
        path.rename(folder / path.name)
    inside.rmdir()
    sync(folder)


def publish(unfinished: Path, final: Path) -> None:
    """Sync a finished file or folder and give it its name; an unrecorded one of that name is removed."""
    sync_tree(unfinished)
    remove(final)
    unfinished.rename(final)
    sync(final.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder with its contents, if it exists; another process may be removing it too."""

    def gone_is_well(_function: object, _path: str, error: tuple) -> None:
        if not isinstance(error[1], FileNotFoundError):
            raise error[1]

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=gone_is_well)
    else:
        path.unlink(missing_ok=True)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False if the system or the file system cannot do that."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            return False
        raise OSError(number, os.strerror(number), str(one))
    sync(one.parent)
    return True
