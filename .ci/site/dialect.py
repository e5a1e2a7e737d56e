r"""From GitHub's Markdown, in which docs are written, to the one that MkDocs reads.

Python-Markdown wants an empty line before a list and a table, contents of a list item indented by
four columns whatever its marker, and leaves the backslash of `a\|b` in code within a table:

    about this:            about this:
    1. one                                      (empty)
       - inner             1. one
         more                  - inner
                                   more

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

MARKER = re.compile(r"( *)([*+-]|\d{1,9}[.)])( +)(?=\S)")
FENCE = re.compile(r" *(`{3,}|~{3,})")
CODE = re.compile(r"(`+)(.+?)\1(?!`)")
INTERVAL = re.compile(r"(?<=\[)([-+−]?[\d.]+), ([-+−]?[\d.]+)(?=\])")
HEADING = re.compile(r"#{1,6} ")
TAB = 4


def indent(line: str) -> int:
    """Return how many spaces a line begins with."""
    return len(line) - len(line.lstrip(" "))


def translated(text: str) -> str:
    """Return a page of GitHub's Markdown as Python-Markdown."""
    items: list[int] = []  # the column at which the contents of each open list item begin
    out: list[str] = []
    fence, before = "", ""  # the fence that is open; the last line read
    for line in text.split("\n"):
        if fence:
            out.append(moved(line, items) if line.strip() else "")
            fence = "" if line.strip() == fence else fence
            before = line
            continue
        marked = MARKER.match(line)
        if line.strip() and not (lazy(before) and not marked and not starts(line)):
            while items and indent(line) < items[-1]:
                items.pop()
        inside = len(items) and indent(line) - items[-1] >= TAB  # indented code of an item
        if marked and not inside and (items or indent(line) < TAB):
            if before.strip() and (not MARKER.match(before) or not items) and not sibling(out):
                out.append("")
            shown = TAB * len(items) * " " + marked[2] + " " + line[marked.end() :]
            items.append(marked.end())
            out.append(shown)
        else:
            if line.lstrip().startswith("|") and before.strip() and not table(before):
                out.append("")
            found = FENCE.match(line)
            fence = found[1] if found else ""
            out.append(cells(moved(line, items)) if line.strip() else "")
        before = line
    return "\n".join(out)


def moved(line: str, items: list[int]) -> str:
    """Return a line of an item's contents at the column where Python-Markdown looks for it."""
    if not items:
        return line
    return (TAB * len(items) + max(indent(line) - items[-1], 0)) * " " + line.lstrip(" ")


def lazy(before: str) -> bool:
    """Return whether a paragraph may go on behind a line."""
    return bool(before.strip()) and not HEADING.match(before) and not table(before)


def starts(line: str) -> bool:
    """Return whether a line begins a block of its own."""
    return bool(HEADING.match(line) or FENCE.match(line) or line.lstrip().startswith(("|", "<")))


def table(line: str) -> bool:
    """Return whether a line is a row of a table."""
    return line.lstrip().startswith("|")


def sibling(out: list[str]) -> bool:
    """Return whether the list that a new item belongs to is open: the block above is a list's."""
    for line in reversed(out):
        if not line.strip():
            return False
        if MARKER.match(line):
            return True
        if indent(line) < TAB:
            return False
    return False


def cells(line: str) -> str:
    """Return a row of a table: bars in code without backslashes, intervals in one piece."""
    if not table(line):
        return line
    return CODE.sub(lambda code: code[0].replace(r"\|", "|"), INTERVAL.sub("\\1,\u00a0\\2", line))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Change a page line by line, but for fences; code within a line is put out of reach."""
    return "\n".join(_changed(text.split("\n"), change))


def _changed(lines: list[str], change: Callable[[str], str]) -> Iterator[str]:
    fence = ""
    for line in lines:
        found = FENCE.match(line)
        if fence:
            fence = "" if line.strip() == fence else fence
            yield line
        elif found:
            fence = found[1]
            yield line
        else:
            # every other piece is code
            pieces = re.split(r"((?<!`)`+(?!`).*?(?<!`)`+(?!`))", line)
            kept = [p if n % 2 else change(p) for n, p in enumerate(pieces)]
            yield "".join(kept)
