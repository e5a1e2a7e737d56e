"""Files that are whole or absent: atomic writes, checksums, the cache folder."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from errata.errors import ErrataError
from errata.untrusted import refuse_special


def cache_root() -> Path:
    """Return the folder of caches: `$ERRATA_CACHE`, else `errata` in the user's cache folder."""
    given = os.environ.get("ERRATA_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "errata"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        Refused: If it is no file but a pipe or a device, which may never end.
    """
    digest = hashlib.sha256()
    refuse_special(path)
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# ---------------------------------------------------------------------- what is not whole yet

PART = "part"
"""Ending of what is being written; its name says by which process of which machine."""


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def unfinished(path: Path, ending: str = PART) -> Path:
    """Return a name beside `path` that is free, for what may take its place when it is written.

    It is short, so that every name that is allowed can be written, and begins with what tells
    leftovers of this path from those of others.
    """
    return path.with_name(f"{_start(path)}{_host()}-{os.getpid()}-{secrets.token_hex(4)}.{ending}")


def _start(path: Path) -> str:
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}-"


def leftovers(path: Path) -> list[Path]:
    """Return what processes that have ended left beside `path`: killed before it was whole."""
    own = re.compile(re.escape(_start(path)) + rf"{_host()}-(\d+)-[0-9a-f]{{8}}\.[a-z]+")
    try:
        found = [(own.fullmatch(entry.name), entry) for entry in path.parent.iterdir()]
    except OSError:
        return []
    return sorted(entry for match, entry in found if match and not _lives(int(match[1])))


def _lives(process: int) -> bool:
    if process == os.getpid() or os.name == "nt":  # there, asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True


def open_beside(path: Path) -> BinaryIO:
    """Open a new file beside `path`, which may take its place when it is written.

    Others may read it as far as the user's umask allows: tempfile would make it private.
    """
    return unfinished(path).open("xb")


def open_to_others(folder: Path) -> None:
    """Give the files of a folder the rights that the user's umask allows.

    safetensors writes private files; who may read the configuration may read the weights.
    """
    with open_beside(folder / "rights") as probe:
        probed = Path(probe.name)
    mode = probed.stat().st_mode & 0o777
    probed.unlink()
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


# ---------------------------------------------------------------------- whole files


def write_whole(path: Path, data: bytes) -> None:
    """Write a new file and bring it to disk."""
    with path.open("xb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def cannot_write(path: Path, error: OSError) -> ErrataError:
    """Return what is said if a file or folder cannot be written."""
    return ErrataError(
        f"cannot write {path}: {error.strerror or error}",
        "Choose a folder you may write to, with enough free space.",
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it.

    Raises:
        ErrataError: If the folder cannot be written or the disk is full; nothing is left behind.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes], *, last: Path | None = None) -> None:
    """Write several files; if one of them cannot be written, all the old ones stay as they are.

    Everything is written beside its place first and only then moved there, in the given order. A
    process that is killed between two moves leaves a mixture: files that belong together are
    written as a folder, by `errata.store.folders.write_folder`.

    Args:
        files: Content by path.
        last: The one without which nobody reads the others: it is gone while they are moved, so
            that nothing new is ever read by something old.

    Raises:
        ErrataError: If a folder cannot be written or the disk is full; nothing is left behind.
    """
    staged: list[tuple[Path, Path]] = []
    path = next(iter(files))
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in leftovers(path):
                old.unlink(missing_ok=True)
            temporary = unfinished(path)
            staged.append((temporary, path))
            write_whole(temporary, data)
        if last is not None:
            last.unlink(missing_ok=True)
        for temporary, path in staged:
            temporary.replace(path)
    except BaseException as error:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise
