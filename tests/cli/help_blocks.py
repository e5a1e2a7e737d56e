"""The help texts in docs/cli.md: `python -m tests.cli.help_blocks docs/cli.md` writes them anew."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

from typer.testing import CliRunner

from errata.cli.app import app

BLOCK = re.compile(
    r"(<!-- help: errata(?P<words>[^>]*?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL
)
WIDTH = "100"


def as_locked() -> bool:
    """Whether those who print the help, typer and rich, are the releases that the lock names."""
    lock = (Path(__file__).resolve().parents[2] / "requirements.lock").read_text(encoding="utf-8")
    return all(f"{name}=={version(name)}" in lock.split() for name in ("typer", "rich"))


def help_of(words: list[str]) -> str:
    """Return the help of one command as the documentation shows it."""
    environment = {"COLUMNS": WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="errata", env=environment)
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    return "\n".join(lines).strip("\n")


def renewed(document: str) -> str:
    """Return a document with all its help blocks as they should be."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}```text\n{help_of(match['words'].split())}\n```\n{match[4]}"

    return BLOCK.sub(block, document)


def commands_in(document: str) -> set[tuple[str, ...]]:
    """Return the commands whose help a document shows."""
    return {tuple(match["words"].split()) for match in BLOCK.finditer(document)}


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
