"""Loaded models, and the one lock under which anything is done with them."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from errata.errors import ModelError
from errata.model.loading import BY_NAME
from errata.untrusted import reachable, shortened

if TYPE_CHECKING:
    from errata.model.lm import LM

KEPT = 2
"""Models that stay loaded: two tabs may work on two of them."""


class Models:
    """The models of a server.

    Attributes:
        lock: Held by whoever does anything with a model: torch's hooks and weights are shared.

    Args:
        load: Loads one by name.
        named: Models named when the server was started; they may be Hub ids.
        anywhere: Whether any folder and file of this machine may be named in a browser; not where
            others than the user of this machine can open the page.
    """

    def __init__(
        self, load: Callable[[str], LM], named: Sequence[str] = (), anywhere: bool = True
    ) -> None:
        self.lock = threading.Lock()
        self._load, self._anywhere = load, anywhere
        self.offered = tuple(dict.fromkeys([*named, *BY_NAME]))
        self._loaded: OrderedDict[str, LM] = OrderedDict()

    def check(self, name: str) -> str:
        """Return the name of a model that may be loaded.

        Raises:
            ModelError: If it names nothing on this machine, or nothing that may be named here.
        """
        name = name.strip()
        if not name:
            raise ModelError("no model is named", f"Choose one: {', '.join(self.offered)}")
        if name in self.offered:
            return name
        if not self._anywhere:
            raise ModelError(
                f"{shortened(name)} is not one of the models of this page",
                f"Choose one: {', '.join(self.offered)}. Others are named where errata web is "
                "started: --model FOLDER",
            )
        with reachable(name, ModelError):
            there = Path(name).expanduser().exists()
        if not there:
            raise ModelError(
                f"there is no folder and no GGUF file {shortened(name)} on this machine",
                f"Give a folder, a GGUF file, or one of {', '.join(self.offered)}. A model of the "
                "Hub is named where errata web is started: errata web --model OWNER/NAME",
            )
        return name

    def get(self, name: str) -> LM:
        """Return a model, loading it if it is not there; the lock has to be held.

        Raises:
            ModelError: If it cannot be loaded.
        """
        name = self.check(name)
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        while len(self._loaded) >= KEPT:
            self._loaded.popitem(last=False)
            gc.collect()
        self._loaded[name] = self._load(name)
        return self._loaded[name]

    def loaded(self, name: str) -> bool:
        """Whether a model is in memory."""
        return name in self._loaded

    def restored(self, name: str) -> bool:
        """Look whether a model is what it was, after work on it was broken off; the lock is held.

        One that is not is dropped, and loaded again when it is needed.
        """
        lm = self._loaded.get(name)
        if lm is None:
            return True
        from errata.model.weights import weight_fingerprint

        same = lm.installed.nothing and not lm.installed.depth
        if same and weight_fingerprint(lm.model) == lm.fingerprint:
            return True
        del self._loaded[name]
        return False
