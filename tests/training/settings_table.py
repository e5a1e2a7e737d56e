"""The table of settings in docs/training.md: `python -m tests.training.settings_table FILE`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

from errata.training import TrainConfig

BLOCK = re.compile(r"(<!-- settings of training -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table() -> str:
    """Return the settings of the loop as a table."""
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in TrainConfig.model_fields.items():
        kind = field.annotation
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        default = "none" if field.default is None else str(field.default).lower()
        text = (field.description or "").replace("|", "\\|")
        if choices:
            text += " (" + ", ".join(f"`{choice}`" for choice in choices) + ")"
        lines.append(f"| `{name}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


def renewed(document: str) -> str:
    """Return a document with its table as it should be."""
    return BLOCK.sub(lambda match: match[1] + table() + match[3], document)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
