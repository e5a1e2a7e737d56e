"""What is kept of searches: numbers and settings, no texts and no paths; a row that says both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from studies.common import results
from studies.real import tuned

from errata.store.cache import save_json


def outcome(written: float, lost: float) -> dict[str, Any]:
    own = dict.fromkeys(("wild", "spread", "kept", "p"), 0.5)
    return {"written": written, "ns_lost": lost, "facts": 24, "seconds": 1.0, **own}


def report(**more: Any) -> dict[str, Any]:
    return {
        "editor": "memit", "model": "/somewhere/gemma3", "settings": {"clamp": 4.0, "layers": [1]},
        "rule_of_thumb": {"clamp": 0.75, "layers": [1]}, "works": True, "id": "abc",
        "held_out": {"chosen": outcome(1.0, 0.0312), "rule_of_thumb": outcome(0.5, 0.0)},
        "tried": [], "candidates": 7, "seconds": 840.0,
        "facts": {"known": {"capital": [3, 4], "language": [1, 6]}, "search": 16,
                  "unknown": ["The capital of Peru is"]}, **more,
    }  # fmt: skip


def test_a_search_is_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "KEPT", tmp_path / "kept")
    for name, one in (("gemma3-1f", report()), ("other-2a", report(model="other"))):
        save_json(tmp_path / "tuned" / name / "memit.json", {"format": 1, "report": one})
    assert tuned.keep(tmp_path) == ["gemma3_memit"]
    head, _, row = tuned.tuned_table().splitlines()
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["facts known"] == "4 of 10"
    assert cells["written"] == "50 → 100"
    assert cells["neighbours lost"] == "0 → 3.1"
    assert cells["chosen"] == "clamp=4"
    kept = results.read(tuned.KEPT, "gemma3_memit")
    assert "somewhere" not in str(kept)
    assert "Peru" not in str(kept)


def test_nothing_is_shown_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "KEPT", tmp_path)
    assert tuned.tuned_table() == ""


@pytest.mark.parametrize("name", results.names(tuned.KEPT))
def test_what_is_kept_holds_no_texts(name: str) -> None:
    found = results.read(tuned.KEPT, name)
    assert found is not None
    assert not re.search(r"[/\\]|[A-Z][a-z]+ [a-z]+ [a-z]+", str(found))
