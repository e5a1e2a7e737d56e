"""What every editor owes: one suite over all editors of errata and all pairs.

A new editor is tested by being there. The bodies stand in `errata.testing`. Of a strategy that goes
over many hosts, the pair with one of the best known is tested always, the others with the slow
tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from errata.editors import editors
from errata.editors.base import Editor
from errata.testing import EditorContract

NAMES = [name for name, entry in editors.all.items() if entry.is_own]

ALWAYS = {
    "nas": {"rome"}, "simie": {"memit"}, "sphere": {"alphaedit"},
    "blue": {"memit", "alphaedit"}, "rep": {"rome"}, "are": {"unke"},
}  # fmt: skip
"""Strategies that go over many hosts, and those with which they are always tested."""

WITHOUT_ADDRESS = {"none", "ibke", "ibke-retrieval"}
"""Editors without a paper, or whose paper has no public address."""

WITHOUT_TRAINING = {"none", "ike", "rag"}
"""Editors that leave it to the model what becomes of an edit; a random one does not read."""


def marked(name: str) -> object:
    """Return a name as a parameter: slow, if the same strategy is tested on other hosts."""
    host, _, strategy = name.partition("+")
    slow = host not in ALWAYS.get(strategy, {host})
    return pytest.param(name, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("name", [marked(name) for name in NAMES])
class TestEditors(EditorContract):
    @pytest.fixture
    def make(self, name: str, make: Callable[..., Editor]) -> Callable[..., Editor]:
        return partial(make, name)

    @pytest.fixture(autouse=True)
    def _files_of_its_own(self, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ERRATA_CACHE", str(cache_folder))

    def check_taken(self, name: str, before: float, after: float) -> None:
        if name in WITHOUT_TRAINING:
            assert (after == before) is (name == "none")
        elif name.endswith("+sphere"):  # a random matrix has no main directions to spare
            assert after != before
        elif name == "erase":  # the target is what goes; this model never held it
            assert after != before
        else:
            super().check_taken(name, before, after)

    def test_its_paper_can_be_found(self, name: str) -> None:
        paper = editors.load(name).paper
        assert name in WITHOUT_ADDRESS or "arXiv" in paper or "http" in paper
