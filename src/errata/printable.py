"""Texts of data and patches as they may be shown: to a terminal, in Markdown, in a spreadsheet.

They may be a stranger's, and each of these places reads some signs as more than text.
"""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All control characters but tab and newline: terminals obey them, and the C1 ones too."""

_LINES = re.compile(r"[\r\n\t\v\f\x1c-\x1e\x85\u2028\u2029]+")

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

_MARKDOWN = "\\|*_<>`[]"


def printable(text: str) -> str:
    """Return a text without what a terminal would obey; lines and tabs stay."""
    return _CONTROLS.sub("", text)


def one_line(text: str) -> str:
    """Return a text in one line, without what a terminal would obey."""
    return printable(_LINES.sub(" ", text))


def markdown(text: str) -> str:
    """Return a text as Markdown shows it: one line, no link, no markup, no cell of its own."""
    text = one_line(text)
    for sign in _MARKDOWN:
        text = text.replace(sign, f"\\{sign}")
    return text


def code(text: str) -> str:
    """Return a text as inline code of Markdown, also within a table."""
    text = one_line(text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def cell(value: object) -> object:
    """Return what a spreadsheet takes for a text, where it would take it for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if value.startswith(_FORMULA) else text
