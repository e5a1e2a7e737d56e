"""GitHub's Markdown as Python-Markdown: lists and tables are found, and no word is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.scripts import ROOT, script

dialect, pages = script("dialect"), script("pages")

PAIRS = {
    "a list behind a paragraph": ("about:\n* a\n* b", "about:\n\n* a\n* b"),
    "no list in a paragraph's arithmetic": ("2\n*3* is", "2\n*3* is"),
    "a number keeps its list": ("1. one\n2. two", "1. one\n2. two"),
    "contents of an item": ("* a\n  more\n\n  again", "* a\n    more\n\n    again"),
    "contents of a numbered item": ("1. a\n\n   more", "1. a\n\n    more"),
    "an inner list": (
        "1. a\n   - b\n     c\n   - d\n2. e",
        "1. a\n    - b\n        c\n    - d\n2. e",
    ),
    "a table of an item": ("* a\n\n  | x |\n  |---|", "* a\n\n    | x |\n    |---|"),
    "code of an item": (
        "* a\n\n  ```\n  x\n    y\n  ```\n* b",
        "* a\n\n    ```\n    x\n      y\n    ```\n\n* b",
    ),
    "no list in code": ("```\ntext\n* a\n```", "```\ntext\n* a\n```"),
    "a paragraph after a list": ("* a\n\ntext\n* b", "* a\n\ntext\n\n* b"),
    "a bar in code in a table": (r"| `a\|b` | x\|y |", r"| `a|b` | x\|y |"),
    "an interval in a table": ("| 8 [4, 12] |", "| 8 [4,\u00a012] |"),
    "a table behind a paragraph": ("text\n| a |\n|---|", "text\n\n| a |\n|---|"),
    "code by indentation": ("text\n\n    * code", "text\n\n    * code"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_translation(name: str) -> None:
    given, expected = PAIRS[name]
    assert dialect.translated(given) == expected


PAGES = [path for path in pages.pages() if path.suffix == ".md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_nothing_is_lost(page: Path) -> None:
    def words(text: str) -> list[str]:
        return [line.strip().replace(r"\|", "|") for line in text.splitlines() if line.strip()]

    text = page.read_text(encoding="utf-8")
    # markers of lists keep one space behind them
    assert [" ".join(x.split()) for x in words(dialect.translated(text))] == [
        " ".join(x.split()) for x in words(text)
    ]


def test_the_changelog_too() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert dialect.translated(text).split() == text.split()
