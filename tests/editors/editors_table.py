"""The table of editors in README.md: `python -m tests.editors.editors_table README.md`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from errata.cli.ls import What, address, rows_of
from errata.editors import editors
from errata.strategies import strategies

BLOCK = re.compile(r"(<!-- editors -->\n)(.*?)(<!-- end of editors -->)", re.DOTALL)


def linked(paper: str) -> str:
    """Return the addresses of a citation as links."""
    found = [name.removeprefix("arXiv:") for name in address(paper).split()]
    return ", ".join(f"[{name}](https://arxiv.org/abs/{name})" for name in found) or "–"


def table() -> str:
    """Return all editors, then all strategies, as two tables."""
    lines = ["| editor | what it is | needs | strategies | paper |", "|---|---|---|---|---|"]
    for row in rows_of(What.editors):
        if not editors.entry(row["name"]).is_own:
            continue
        needs = ", ".join(row.get("needs", ())) or "–"
        on_top = ", ".join(f"`+{name}`" for name in row["strategies"]) or "–"
        cells = (f"`{row['name']}`", row["summary"], needs, on_top, linked(row.get("paper", "")))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| strategy | what it is | works on | paper |", "|---|---|---|---|"]
    for row in rows_of(What.strategies):
        if not strategies.entry(row["name"]).is_own:
            continue
        hosts = ", ".join(f"`{host}`" for host in row["hosts"])
        cells = (f"`+{row['name']}`", row["summary"], hosts, linked(row.get("paper", "")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def renewed(document: str) -> str:
    """Return a document with its tables as they should be."""
    return BLOCK.sub(lambda match: match[1] + table() + match[3], document)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
