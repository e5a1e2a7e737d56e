"""The card of trained networks: what they are, what they were trained on, how to use them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from errata.printable import code, markdown, one_line


def write_card(facts: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Return the text of README.md beside trained networks.

    Args:
        facts: Editor, model, settings, training settings and data of the run.
        result: Step and validation losses.
    """
    losses = result.get("validation") or {}
    data = [
        f"* {markdown(str(d.get('spec')))}, split {markdown(str(d.get('split')))}: "
        f"{d.get('groups')} groups, version {code(str(d.get('version')))}"
        for d in facts.get("data", ())
    ]
    paths = ", ".join(f"`{path}`" for path in facts["matrices"])
    matrices = [f"Edited matrices: {paths}.", ""] if paths else []
    lines = [
        f"# {facts['editor']} for {markdown(facts['model'])}",
        "",
        f"Networks of the knowledge editor `{facts['editor']}`, trained with errata for the model "
        f"{code(facts['model'])} (weights `{facts['fingerprint'][:16]}`); no other model will do.",
        "",
        "```",
        f"errata eval --editor DIR --model {shlex.quote(one_line(facts['model']))} --data world",
        "```",
        "",
        "Made by:",
        "",
        "```",
        shlex.join(["errata", *map(one_line, sys.argv[1:])]),
        "```",
        "",
        "Trained on:",
        "",
        *(data or ["* groups given from Python"]),
        "",
        *matrices,
        f"Step {result['step']}"
        + "".join(f", {name} {value:.4f}" for name, value in losses.items())
        + (" (validation, no noise)." if losses else "; there were no validation groups."),
        "",
    ]
    return "\n".join(lines)
