"""Files that are whole or absent: atomic writes, checksums, the cache folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

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
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f".{path.name}.", delete=False
            ) as handle:
                staged.append((Path(handle.name), path))
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
        for temporary, path in staged:
            temporary.chmod(0o644)
            temporary.replace(path)
    except OSError as error:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
        raise ErrataError(
            f"cannot write {path}: {error.strerror or error}",
            "Choose a folder you may write to, with enough free space.",
        ) from error
