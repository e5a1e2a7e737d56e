"""Folders that are whole or absent: several files that belong together take their place at once.

They are written to a folder beside the old one; then the two change places in one step of the file
system, and the old one is removed last. Whenever the process is killed, the old folder or the new
one is there, whole; what it left beside is taken up or removed by the next that writes there.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from errata.errors import ErrataError, PatchError
from errata.store.files import cannot_write, leftovers, unfinished, write_together, write_whole

OLD = "old"
"""Ending of a folder that is being replaced."""

_HERE = -100
"""AT_FDCWD: paths count from the current folder."""
_EXCHANGE = 2
"""RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS."""


@cache
def _exchange() -> Callable[[bytes, bytes], int] | None:
    """Return the system's call that lets two names change places, if it has one."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            swap = library.renamex_np
            return lambda a, b: swap(a, b, ctypes.c_uint(_EXCHANGE))
        rename = library.renameat2
    except (OSError, AttributeError, TypeError):
        return None
    return lambda a, b: rename(_HERE, a, _HERE, b, ctypes.c_uint(_EXCHANGE))


def _changed_places(new: Path, folder: Path) -> bool:
    """Let two folders change places in one step; whether this system and disk can."""
    call = _exchange()
    return call is not None and call(os.fsencode(new), os.fsencode(folder)) == 0


@contextmanager
def replacing(
    folder: Path, *, force: bool, owned: Collection[str] | None, what: str = "something"
) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` when the block has ended well.

    Files of the old folder that are not `owned` stay: they are moved to the new one.

    Args:
        folder: What is made or replaced. One that holds nothing of errata's is filled.
        force: Whether what is there may be replaced.
        owned: Names that go with the old folder; None: all.
        what: What is there if it may not be replaced, for the message.

    Raises:
        PatchError: If somebody else has put something there meanwhile and `force` is off.
        ErrataError: If it cannot be written; what was there is there then.
    """
    folder = Path(os.path.realpath(folder))  # of a link, what it points to is replaced
    if _stays(folder):
        raise ErrataError(
            f"{folder} cannot be replaced as a whole: it is the current folder, where a disk is "
            "mounted, or in a folder that you may not write to",
            "Choose another folder.",
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear(folder, owned)
        new = unfinished(folder)
        new.mkdir()
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        yield new
        for entry in new.iterdir():
            _to_disk(entry)
        _to_disk(new)
        _put(new, folder, force, owned, what)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_folder(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    force: bool,
    what: str = "something",
    gone: Collection[str] = (),
) -> None:
    """Write files that belong together: all of them are there, or what was there before.

    Args:
        folder: Where.
        files: Content by name; the most important one last.
        force: Whether such files that are there may be replaced.
        what: What is there if they may not, for the message.
        gone: Names of files that belong to what is replaced, and go with it.

    Raises:
        ErrataError: If they cannot be written.
    """
    if not _stays(Path(os.path.realpath(folder))):
        with replacing(folder, force=force, owned=(*files, *gone), what=what) as new:
            for name, data in files.items():
                write_whole(new / name, data)
        return
    for name in gone:
        with suppress(FileNotFoundError):
            (folder / name).unlink()
    staged = {folder / name: data for name, data in files.items()}
    *_, last = files  # without it the folder holds nothing that could be read by mistake
    write_together(staged, last=folder / last)


def _stays(folder: Path) -> bool:
    """Whether a folder cannot be moved, so that its files have to be replaced one by one."""
    if not folder.is_dir():
        return False
    current = False
    with suppress(OSError):
        current = Path.cwd().is_relative_to(folder)
    writable = os.access(folder.parent, os.W_OK | os.X_OK)
    return current or os.path.ismount(folder) or not writable


def _put(new: Path, folder: Path, force: bool, owned: Collection[str] | None, what: str) -> None:
    """Put the new folder in its place."""
    try:
        new.rename(folder)  # a folder that is empty or not there
    except OSError:
        if not folder.is_dir():
            raise
    else:
        _to_disk(folder.parent)
        return
    if not force and (owned is None or any((folder / name).exists() for name in owned)):
        raise PatchError(f"{folder} already holds {what}", "Choose another folder, or add --force.")
    old = unfinished(folder, OLD)
    if _changed_places(new, folder):
        new.rename(old)
    else:  # a system without that step: `clear` puts the old one back if we are killed here
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
    _to_disk(folder.parent)
    _take_over(old, folder, owned)


def _take_over(old: Path, folder: Path, owned: Collection[str] | None) -> None:
    """Move what is not errata's from the old folder to the new one, then remove the old one."""
    if owned is not None:
        for entry in old.iterdir():
            if entry.name not in owned and not (folder / entry.name).exists():
                entry.rename(folder / entry.name)
    shutil.rmtree(old, ignore_errors=True)


def clear(folder: Path, owned: Collection[str] | None) -> None:
    """Take up what processes that were killed have left beside a folder.

    Raises:
        OSError: If it cannot be moved.
    """
    for left in leftovers(folder):
        if left.suffix == f".{OLD}" and left.is_dir():
            if folder.exists():
                _take_over(left, folder, owned)
            else:  # killed between two steps
                left.rename(folder)
        elif left.is_dir():
            foreign = folder.is_dir() and _exchanged(left, owned)
            if foreign:  # killed right after the two had changed places
                _take_over(left, folder, owned)
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _exchanged(left: Path, owned: Collection[str] | None) -> bool:
    """Whether a leftover holds what is not errata's: then it is the old folder."""
    return bool(owned) and any(entry.name not in owned for entry in left.iterdir())


def _to_disk(path: Path) -> None:
    """Bring a file, or the entries of a folder, to disk, where the system lets it be opened."""
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
