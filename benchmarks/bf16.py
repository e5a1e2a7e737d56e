"""Forward passes in bfloat16 instead of float32: how much faster, and what it does to the scores.

The model is loaded in bfloat16; scores, optimisation and solves stay in float32 or wider.
"""

from __future__ import annotations

from typing import Any

from benchmarks import _common as common
from benchmarks._common import SMALL
from benchmarks.evaluation import Given, forget, random_patches
from benchmarks.rome_edit import errata_rome, settings


def scores_differ(exact: Any, rough: Any) -> str:
    """Say how far two evaluations differ."""
    hits = positions = 0
    worst = 0.0
    for one, other in zip(exact.records, rough.records, strict=True):
        for a, b in zip(one["questions"], other["questions"], strict=True):
            positions += len(a["hits"])
            hits += sum(x != y for x, y in zip(a["hits"], b["hits"], strict=True))
            if a.get("nll") is not None and b.get("nll") is not None:
                worst = max(worst, abs(a["nll"] - b["nll"]))
    rates = [
        f"{key} {100 * exact.summary[key]:.1f} → {100 * rough.summary[key]:.1f} %"
        for key in ("reliability", "generality", "locality")
    ]
    text = f"{hits} of {positions} hits differ; " + ", ".join(rates)
    return text + (f"; NLL by at most {worst:.1e}" if worst else "")


def measure(args: Any, model: str) -> list[common.Line]:
    """Time evaluation and ROME in both types on one model."""
    from errata.evaluation import evaluate

    layer = 5 if model == SMALL else 0
    exact = common.build_model(model, args)
    rough = common.build_model(model, args, "bfloat16")
    cases = common.records(model, args.records)
    patches = random_patches(exact, cases, layer)

    def run(lm: Any) -> Any:
        forget()
        return evaluate(lm, Given(patches), cases, keep_collisions=True)

    timings, results = common.interleaved(
        {"float32": lambda: run(exact), "bfloat16": lambda: run(rough)}, args.repeats, args.device
    )
    evaluation = common.line(
        "evaluation, bfloat16 forwards", model, "the same in float32", timings["float32"],
        timings["bfloat16"], args.device, note=f"{len(cases)} records",
        equal=scores_differ(results["float32"], results["bfloat16"]),
    )  # fmt: skip
    return [evaluation, *edits_of(args, model, exact, rough, layer)]


def edits_of(args: Any, model: str, exact: Any, rough: Any, layer: int) -> list[common.Line]:
    """Time ROME in float32, on the model in bfloat16, and searching in bfloat16 (`--compute`)."""
    edits = [case.edits[0] for case in common.records(model, args.edits)]
    groups = [[edit] for edit in edits]
    given = settings(exact, layer, args.steps)
    editors = {lm: errata_rome(lm, given) for lm in (exact, rough)}

    def run(lm: Any, compute: str = "float32") -> Any:
        lm.compute = compute
        try:
            return editors[lm].edit(lm, groups)
        finally:
            lm.compute = "float32"

    ways = {
        "float32": lambda: run(exact),
        "bfloat16 forwards": lambda: run(rough),
        "searching in bfloat16": lambda: run(exact, "bfloat16"),
    }
    timings, results = common.interleaved(ways, args.repeats, args.device)
    return [
        common.line(
            f"ROME, {len(edits)} edits together, {name}", model, "the same in float32",
            timings["float32"], timings[name], args.device, note=f"{args.steps} steps",
            equal=patches_differ(exact, edits, results["float32"], results[name]),
        )
        for name in list(ways)[1:]
    ]  # fmt: skip


def patches_differ(exact: Any, edits: Any, ones: Any, others: Any) -> str:
    """Say how far two sets of rank-one patches differ, and what the edited model says."""
    import torch

    gap, drop = 0.0, 0.0
    for edit, one, other in zip(edits, ones, others, strict=True):
        a, b = (p.changes[0].B.double() @ p.changes[0].A.double() for p in (one, other))
        gap = max(gap, float((a - b).norm() / a.norm()))
        nll = []
        for patch in (one, other):
            with patch.applied(exact), torch.no_grad():
                (score,) = exact.score([exact.row(edit.prompt, edit.target)])
            nll.append(-sum(score.logprobs) / len(score.logprobs))
        drop = max(drop, abs(nll[0] - nll[1]))
    return (
        f"weight changes differ by at most {gap:.1e} (relative); "
        f"NLL of the target under the float32 model by at most {drop:.1e}"
    )


def main() -> None:
    args = common.options(__doc__, records=24, repeats=2, edits=2, steps=20)
    if args.quick:
        args.steps = 3
    lines = [line for model in args.models for line in measure(args, model)]
    common.finish("bf16", args, lines)


if __name__ == "__main__":
    main()
