"""All benches of a server: one for each key that a tab brings along in its address."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from errata.errors import RunError
from errata.store.locks import HELD, take_lock
from errata.web.bench import Bench

if TYPE_CHECKING:
    from errata.web.models import Models

MOST = 64
"""Benches that are kept; beyond it those go that nobody looks at, the oldest first."""

PREFIX = "errata-web-"
"""Of the temporary folder of a server."""

YOUNG = 60.0
"""Seconds in which a folder may not be locked yet, though its server lives."""

_KEY = re.compile(r"[0-9a-f]{32}")


class Room:
    """The benches of a server.

    A tab that is closed leaves its bench behind: whoever opens the same address again, before the
    server ends, finds everything as it was.

    Args:
        models: The models of the server.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = take_lock(self.folder)
        self._benches: OrderedDict[str, Bench] = OrderedDict()
        self._looking: dict[str, str] = {}  # session of a tab -> key
        self._guard = threading.Lock()

    def bench(self, key: str) -> Bench:
        """Return the bench of a key, made when it is first asked for.

        Raises:
            RunError: If it is no key, or too many tabs are open.
        """
        if not _KEY.fullmatch(key):
            raise RunError("this address belongs to no tab", "Open the page again.")
        with self._guard:
            if key not in self._benches:
                self._make_room()
                folder = self.folder / key[:8]
                folder.mkdir(exist_ok=True)
                self._benches[key] = Bench(self.models, folder)
            self._benches.move_to_end(key)
            return self._benches[key]

    def _make_room(self) -> None:
        if len(self._benches) < MOST:
            return
        seen = set(self._looking.values())
        free = next((k for k, b in self._benches.items() if k not in seen and not b.busy), None)
        if free is None:
            raise RunError(f"{MOST} tabs are open", "Close one of them.")
        self._benches.pop(free).close()

    def come(self, session: str, key: str) -> Bench:
        """Note that a tab shows a bench, and return it."""
        bench = self.bench(key)
        with self._guard:
            self._looking[session] = key
        bench.come()
        return bench

    def leave(self, session: str) -> None:
        """Note that a tab is gone."""
        with self._guard:
            key = self._looking.pop(session, None)
            left = None if key in self._looking.values() else self._benches.get(key or "")
        if left is not None:
            left.leave()

    def close(self) -> None:
        """End all work, and remove all files."""
        for bench in list(self._benches.values()):
            bench.cancel()
        for bench in list(self._benches.values()):
            bench.close()
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)


def sweep() -> None:
    """Remove what servers left behind that were killed: folders of this user that nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, RunError):
            about = folder.lstat()
            if folder.is_symlink() or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
                continue
            if time.time() - (folder / HELD).stat().st_mtime < YOUNG:
                continue
            take_lock(folder).release()
            shutil.rmtree(folder, ignore_errors=True)
