"""General ability along a sequence: after every thousand edits, and before the first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import errata
from errata.case import Edit
from errata.editors.base import Editor
from errata.evaluation.general import General
from errata.model.lm import LM
from errata.patch import Patch
from studies.common import results

KEPT = Path(__file__).parent / "abilities"
EVERY = 1000
TURN = 100
TASKS = ("sst2", "rte", "mmlu")


def measured(
    lm: LM, editor: Editor, edits: Sequence[Edit], general: General, every: int = EVERY,
    turn: int = TURN,
) -> dict[str, Any]:  # fmt: skip
    """Edit in turns, and measure general ability before the first and after every so many edits.

    Args:
        lm: The model.
        editor: The editor.
        edits: In order.
        general: The tasks.
        every: Edits between two measurements, a multiple of a turn.
        turn: Edits of one turn.
    """
    start = time.process_time()
    points = [{"edits": 0, **general.measure(None)}]
    patch: Patch | None = None
    for first in range(0, len(edits), turn):
        patch = editor.edit_one(lm, edits[first : first + turn], patch)
        made = min(first + turn, len(edits))
        if made % every == 0 or made == len(edits):
            points.append({"edits": made, **general.measure(patch)})
            print(points[-1], flush=True)
    return {"points": points, "cpu": round(time.process_time() - start), "turn": turn}


def along(name: str, tasks: Sequence[str], data: Path) -> None:
    """Measure one editor on the sequence of 3,000 edits, and keep what came of it."""
    lm = errata.load("smollm2")
    cases = errata.load_cases(f"wikibigedit:{data}/lifelong/wikibigedit_3k.json").cases
    editor = errata.get_editor(name, {"conflicts": "keep"}, model="smollm2")
    general = General(lm, tasks, data / "ability")
    found = measured(lm, editor, [case.edits[0] for case in cases], general)
    results.write(KEPT, name, {"editor": name, "tasks": list(tasks), **found})
