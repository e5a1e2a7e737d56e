"""What the campaign has done so far, line by line, so that it goes on where it was stopped."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

KEPT = Path(__file__).with_name("record.json")
"""The counts that docs/security.md cites."""


class Record:
    """Lines of JSON in a file, each under a number; the last line of a number holds."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that was cut off by a kill does not count."""
        self.path = path
        self.lines: dict[int, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")  # so that what comes does not go on with a line that was cut off
            for line in path.read_text("utf-8").splitlines():
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                self.lines[found["number"]] = found

    def add(self, number: int, **what: Any) -> None:
        """Write a line."""
        line = {"number": number, **{k: v for k, v in what.items() if v not in (None, "", [])}}
        self.lines[number] = line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Return those that have no line, or one with a fault, which may have been mended."""
        return [n for n in numbers if "fault" in self.lines.get(n, {"fault": "not tried"})]

    def counted(self, numbers: Iterable[int], *fields: str) -> dict[str, int]:
        """Count lines by some of their fields."""
        there = [self.lines[n] for n in numbers if n in self.lines]
        counts = Counter(" ".join(str(line.get(name, "")) for name in fields) for line in there)
        return dict(sorted(counts.items()))

    def faults(self, numbers: Iterable[int]) -> list[str]:
        """Return what must not be."""
        there = [self.lines[n] for n in numbers if n in self.lines]
        return [f"{line['number']}: {line['fault']}" for line in there if "fault" in line]


def keep(result: dict[str, Any], path: Path) -> None:
    """Write the counts, with the releases that they hold for."""
    import torch
    import transformers

    releases = {"python": platform.python_version(), "torch": torch.__version__,
                "transformers": transformers.__version__}  # fmt: skip
    path.write_text(json.dumps({**result, "releases": releases}, indent=1) + "\n", "utf-8")
