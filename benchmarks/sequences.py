"""A long sequence of edits in batches: time of a batch against its position, and growth of memory.

The whole evaluation runs: edits, checkpoints in a run folder, measurements along the way, and the
questions at the end. Editing has to stay linear in the number of edits, and memory bounded.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _common as common
from benchmarks.memory import _status


class Watched:
    """An editor that notes the CPU seconds of every batch and the memory held before it."""

    def __init__(self, editor: Any) -> None:
        self.editor = editor
        self.batches: list[dict[str, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.editor, name)

    def edit(self, lm: Any, groups: Any, *, after: Any = None) -> Any:
        """Edit, and take note."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        held = _status("VmRSS")
        cpu, wall = time.process_time(), time.perf_counter()
        patches = self.editor.edit(lm, groups, after=after)
        self.batches.append(
            {
                "edits": sum(map(len, groups)), "held": held, "patch": patches[0].nbytes / 2**20,
                "seconds": time.process_time() - cpu, "wall": time.perf_counter() - wall,
            }
        )  # fmt: skip
        return patches


def measure(name: str, args: Any) -> tuple[list[common.Line], dict[str, Any]]:
    """Run one editor over the sequence."""
    from dataclasses import replace

    from errata.data import load_cases
    from errata.editors import get_editor
    from errata.evaluation import evaluate

    lm = common.build_model(common.POCKET, args)
    cases = [
        replace(case, probes=tuple(replace(probe, hops=()) for probe in case.probes))
        for case in load_cases("world", "train", limit=args.edits, seed=0).cases
    ]
    wanted = {"steps": args.steps}
    editor = Watched(get_editor(name, wanted, model=args.pocket))
    editor.prepare(lm)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        evaluate(
            lm, editor, cases, regime=f"sequential:{args.edits}", batch=args.batch,
            every=max(1, args.edits // args.batch // 4), retention=True, bootstrap=0,
            keep_collisions=True, out=Path(folder) / "run",
        )  # fmt: skip
    total = time.process_time() - start
    quarter = max(1, len(editor.batches) // 4)
    first, last = editor.batches[:quarter], editor.batches[-quarter:]
    early, late = (
        statistics.median(batch["seconds"] / batch["edits"] * args.batch for batch in part)
        for part in (first, last)
    )
    # the first batch makes what is made once
    low, high = editor.batches[1]["held"], max(batch["held"] for batch in last)
    middle = editor.batches[len(editor.batches) // 2]["held"]
    editing = sum(batch["seconds"] for batch in editor.batches)
    size = f"{args.edits:,} edits, {args.batch} per batch, {args.steps} steps of v*"
    return [
        common.Line(
            f"{name}: a batch in the last quarter of the sequence", common.POCKET,
            "a batch in the first quarter", early / late, early, late, aim=0.8, note=size,
        ),
        common.Line(
            f"{name}: memory held at the end of the sequence", common.POCKET,
            "after the first batch", low / high, low, high, aim=0.9, unit="MiB",
            note=f"{middle:.0f} MiB half way; patch {editor.batches[-1]['patch']:.1f} MiB",
        ),
        common.Line(
            f"{name}: editing", common.POCKET, "the whole evaluation", total / editing, total,
            editing, note="checkpoints, measurements at five points, all questions at the end",
        ),
    ], {"batches": editor.batches}  # fmt: skip


def main() -> None:
    args = common.options(__doc__, edits=1000, batch=50, steps=5, editors="memit,alphaedit")
    if args.quick:
        args.edits, args.batch, args.steps = 60, 15, 2
    lines: list[common.Line] = []
    extra: dict[str, Any] = {}
    for name in args.editors.split(","):
        found, extra[name] = measure(name, args)
        lines += found
    common.finish("sequences", args, lines, extra)


if __name__ == "__main__":
    main()
