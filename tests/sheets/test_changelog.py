"""What builds changed, from one to the next."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from errata.patch import Patch
from errata.sheets.changelog import NAME, changelog, noted


def build(made: str, digest: str, *facts: dict[str, Any]) -> Patch:
    meta = {"made": made, "sheet": {"name": "s", "digest": digest, "facts": list(facts)}}
    return Patch((), (), meta=meta)


def fact(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "prompt": "p", "target": "t", "editor": "rome", **more}


ONE = build("2026-01-01T00:00:00+00:00", "1", fact("a"), fact("b"))
TWO = build("2026-01-02T00:00:00+00:00", "2", fact("a", target="u"), fact("c"), fact("d"))


def note_build(folder: Path, before: Patch | None, now: Patch) -> None:
    """Write the changelog of a build, as `errata sheet build` does together with its patch."""
    text = noted(folder, before, now)
    if text is not None:
        (folder / NAME).write_bytes(text)


def test_builds_are_told_one_after_another(tmp_path: Path) -> None:
    note_build(tmp_path, None, ONE)
    note_build(tmp_path, ONE, replace(ONE, meta={**ONE.meta, "made": "later"}))
    note_build(tmp_path, ONE, TWO)
    assert [str(entry) for entry in changelog(tmp_path, TWO)] == [
        "first build: 2 facts",
        "+2 facts (c, d), 1 changed (a), 1 removed (b)",
    ]
    assert [entry.made for entry in changelog(tmp_path, TWO)] == [
        "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00",
    ]  # fmt: skip
    assert changelog(tmp_path, ONE) == ()  # it is of another build


def test_an_editor_is_no_change(tmp_path: Path) -> None:
    other = build("x", "3", fact("a", editor="ft"), fact("b"))
    note_build(tmp_path, None, ONE)
    note_build(tmp_path, ONE, other)
    assert str(changelog(tmp_path, other)[-1]).startswith("first build")


@pytest.mark.parametrize("text", ["{", "[]", '{"builds": [{"digest": 3}]}', '{"builds": "x"}'])
def test_a_damaged_one_is_told_and_begun_again(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).write_text(text)
    assert changelog(tmp_path, ONE) == ()
    assert "cannot be read" in caplog.text
    note_build(tmp_path, ONE, TWO)
    assert [str(entry) for entry in changelog(tmp_path, TWO)][-1].startswith("+2 facts")
    assert len(json.loads((tmp_path / NAME).read_text())["builds"]) == 2


def test_a_build_without_a_changelog_that_is_made_again_is_one_build(tmp_path: Path) -> None:
    """As an earlier errata left it when it was killed between the patch and its changelog."""
    note_build(tmp_path, ONE, replace(ONE, meta={**ONE.meta, "made": "later"}))
    (entry,) = changelog(tmp_path, ONE)
    assert (str(entry), entry.made) == ("first build: 2 facts", ONE.meta["made"])
