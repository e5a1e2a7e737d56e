"""One writer per folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO

from errata.errors import RunError

LOCK = "lock"


def take_lock(path: Path) -> BinaryIO:
    """Take the folder for this process; the system lets go of it when the process ends.

    Raises:
        RunError: If another process has it.
    """
    handle = (path / LOCK).open("a+b")
    try:
        if sys.platform == "win32":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.seek(0)
        owner = handle.read().decode(errors="replace").strip() or "unknown"
        handle.close()
        raise RunError(
            f"another process (pid {owner}) writes {path}",
            "Wait for it, or choose another --out.",
        ) from None
    handle.seek(0)
    handle.truncate()
    handle.write(f"{os.getpid()}\n".encode())
    handle.flush()
    return handle
