"""The Python in README.md and in the pages of docs/ runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from errata.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("docs/api.md", "docs/patches.md", "docs/sheets.md")
"""Pages whose blocks run one after another, each page on a fresh set of names."""

GIVEN = """
import errata
lm = errata.load("pocket")
other = errata.edit(lm, "The capital of Italy is the city named", "Oslo", subject="Italy")
patch_a, patch_b = other, other
rows = [lm.row("The capital of Italy is the city named", "Oslo")] * 3
"""
"""Names that pages use without making them."""


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_pages_run(here: Path, page: str) -> None:
    from errata.world import pocket_path

    try:
        pocket_path()
    except DataError:
        pytest.skip("the pocket model is not in this checkout")
    names: dict[str, Any] = {}
    exec(GIVEN, names)
    found = blocks((ROOT / page).read_text(encoding="utf-8"))
    assert found
    for code in found:
        exec(code, names)


def block(containing: str) -> str:
    (found,) = (code for code in blocks(README) if containing in code)
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


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 180


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        *(f"docs/{name}.md" for name in ("tour", "index", "compare-editors", "train-an-editor")),
    ],
)
def test_no_command_reads_what_a_clone_does_not_have(page: str) -> None:
    """Sessions make what they read, or take samples that ship."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fences = "".join(re.findall(r"^```(?:console|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    commands = re.findall(r"^[$>] (.*)", fences, re.MULTILINE)
    assert commands
    for command in commands:
        assert "../" not in command
        for data in re.findall(r"(?:--data|--cases|--edits) (\S+)", command):
            name, _, where = data.partition(":")
            assert where in ("", "sample"), command
            assert not name.endswith((".json", ".jsonl")), command
