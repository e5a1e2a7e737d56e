"""Files that are whole or absent: atomic writes, checksums, the cache folder."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from errata.errors import ErrataError


def cache_root() -> Path:
    """Return the folder of caches: `$ERRATA_CACHE`, else `errata` in the user's cache folder."""
    given = os.environ.get("ERRATA_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "errata"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def open_beside(path: Path) -> BinaryIO:
    """Open a new file beside `path`, which may take its place when it is written.

    Others may read it as far as the user's umask allows: tempfile would make it private.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}").open("xb")


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


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it.

    Raises:
        ErrataError: If the folder cannot be written or the disk is full; nothing is left behind.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write several files; if one of them cannot be written, all the old ones stay as they are.

    Everything is written beside its place first and only then moved there, in the given order.

    Raises:
        ErrataError: If a folder cannot be written or the disk is full; nothing is left behind.
    """
    staged: list[tuple[Path, Path]] = []
    path = next(iter(files))
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_beside(path) as handle:
                staged.append((Path(handle.name), path))
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
        for temporary, path in staged:
            temporary.replace(path)
    except OSError as error:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
        raise ErrataError(
            f"cannot write {path}: {error.strerror or error}",
            "Choose a folder you may write to, with enough free space.",
        ) from error
