"""What an edit prints fits 80 columns, whatever the editor."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import FACT, Errata

EDITORS = {
    "rome": ("mom2_adjustment=false", "steps=2", "contexts=bare"),
    "r_rome": ("mom2_adjustment=false", "steps=2", "contexts=bare"),
    "ft": ("steps=2", "layers=1"),
    "grace": ("steps=2",),
    "lora": ("steps=2",),
}


@pytest.mark.parametrize("editor", EDITORS)
def test_an_edit_fits(
    errata: Errata, model: str, here: Path, monkeypatch: pytest.MonkeyPatch, editor: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    settings = [word for one in EDITORS[editor] for word in ("--set", one)]
    done = errata("edit", "-m", model, "-e", editor, *FACT, *settings)
    assert done.code == 0, done.stderr
    for line in done.stdout.splitlines():
        # a folder's name, as long as it is, is not torn apart
        assert len(line) <= 80 or model in line, line
