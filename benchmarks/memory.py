"""Peak memory of a ROME edit and of an evaluation, each in a fresh process.

Memory of the work is the peak during it less what the process held just before (interpreter,
libraries, model); the whole process is reported beside it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import _common as common
from benchmarks._common import SMALL

STEPS = 3


def _status(field: str) -> float:
    """Return a field of /proc/self/status in MiB."""
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith(field + ":"):
            return int(row.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def work(kind: str, args: Any) -> Any:
    """Return the function whose memory is measured, everything else prepared."""
    lm = common.build_model(SMALL, args)
    cases = common.records(SMALL, args.records)
    if kind.startswith("evaluation"):
        from benchmarks.evaluation import Given, plain_evaluation, random_patches
        from errata.evaluation import evaluate

        patches = random_patches(lm, cases, 5)
        if kind == "evaluation, plain":
            return lambda: plain_evaluation(lm, cases, patches)
        if kind == "evaluation, padded batches":
            return lambda: padded_batches(lm, cases)
        return lambda: evaluate(lm, Given(patches), cases, keep_collisions=True)
    from benchmarks.rome_edit import PlainRome, errata_rome, settings

    given = settings(lm, 5, STEPS)
    edits = [case.edits[0] for case in cases]
    if kind == "ROME, plain":
        plain = PlainRome(lm, given)
        return lambda: plain.edit(edits[0])
    editor = errata_rome(lm, given)
    if kind == "ROME, one edit":
        return lambda: editor.edit_one(lm, [edits[0]])
    return lambda: editor.edit(lm, [[edit] for edit in edits[:4]])


def padded_batches(lm: Any, cases: list[Any]) -> None:
    """Score all answers of 16 records per padded batch, with logits of all positions."""
    import torch

    for start in range(0, len(cases), 16):
        rows = []
        for case in cases[start : start + 16]:
            edit = case.edits[0]
            asked = [(edit.prompt, edit.target, edit.target_true)]
            asked += [(p.prompt, p.target, p.foil) for p in case.probes]
            rows += [lm.row(prompt, answer) for prompt, *both in asked for answer in both]
        batch = lm.batch(rows, range(len(rows)))
        with torch.no_grad():
            logits = lm.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits
            torch.log_softmax(logits.float(), -1).argmax(-1)


def child(kind: str, args: Any) -> dict[str, float]:
    """Measure one kind of work in this process, in MiB."""
    import torch

    run = work(kind, args)
    if args.device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        run()
        return {"before": before, "peak": torch.cuda.max_memory_allocated() / 2**20}
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    run()
    return {"before": before, "peak": _status("VmHWM")}


def main() -> None:
    args = common.options(__doc__, records=16, child="")
    if args.child:
        print(json.dumps(child(args.child, args)))
        return
    found: dict[str, dict[str, float]] = {}
    for kind in (
        "ROME, plain", "ROME, one edit", "ROME, 4 edits",
        "evaluation, plain", "evaluation, padded batches", "evaluation, stacked",
    ):  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.memory", "--child", kind]
        command += ["--records", str(args.records), "--device", args.device]
        done = subprocess.run(command, capture_output=True, text=True, cwd=common.ROOT, check=False)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            raise SystemExit(done.returncode)
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    lines = []
    for plain, other, what, baseline, aim in (
        ("ROME, plain", "ROME, one edit", "ROME, one edit", "the plain loop", 2.0),
        ("ROME, plain", "ROME, 4 edits", "ROME, 4 edits together", "the plain loop", None),
        ("evaluation, padded batches", "evaluation, stacked", "evaluation, 16 records together",
         "16 records per padded batch, all logits", 2.0),
        ("evaluation, plain", "evaluation, stacked", "evaluation, 16 records together",
         "one row per pass", None),
    ):  # fmt: skip
        a, b = found[plain], found[other]
        over = {key: (entry["peak"] - entry["before"]) for key, entry in found.items()}
        lines.append(
            common.Line(
                what, SMALL, baseline, over[plain] / max(over[other], 0.1), over[plain],
                over[other], aim, "MiB",
                note=f"whole process {a['peak']:.0f} → {b['peak']:.0f} MiB, "
                f"{a['peak'] / b['peak']:.2f}×",
            )
        )  # fmt: skip
    common.finish("memory", args, lines, {"processes": found})


if __name__ == "__main__":
    main()
