"""The code in README.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from errata.errors import DataError

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def block(containing: str) -> str:
    (found,) = (
        code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if containing in code
    )
    return found


def test_python_example(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from errata.world import pocket_path

    try:
        pocket_path()
    except DataError:
        pytest.skip("the pocket model is not in this checkout")
    exec(block("errata.load(").replace("limit=20", "limit=2"), {})
    assert "Tokyo" in capsys.readouterr().out
    assert (here / "tokyo" / "patch.json").is_file()
