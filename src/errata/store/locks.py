"""One writer per folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from errata.errors import RunError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = "lock"
"""Says who wrote the folder last; stays, and marks the folder as one of errata's."""

HELD = ".lock"
"""What is locked. A file of its own: some releases of filelock empty or remove what they lock."""


def take_lock(path: Path) -> BaseFileLock:
    """Take the folder for this process; the system lets go of it when the process ends.

    Returns:
        The lock; `release` lets go of the folder earlier.

    Raises:
        RunError: If another process has it.
    """
    from filelock import FileLock, Timeout

    (path / LOCK).touch()  # first: a folder with HELD alone would count as a stranger's
    lock = FileLock(path / HELD, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"another process (pid {_owner(path)}) writes {path}",
            "Wait for it, or choose another --out.",
        ) from None
    try:
        (path / LOCK).write_text(f"{os.getpid()}\n", encoding="ascii")
    except BaseException:
        lock.release()
        raise
    return lock


def _owner(path: Path) -> str:
    try:
        return (path / LOCK).read_text(encoding="ascii", errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"
