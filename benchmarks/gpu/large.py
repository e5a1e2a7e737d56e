"""Random weights in the shapes of 1.5 and 7 billion parameters: what does not show on small ones.

Weights are drawn on the device in bfloat16; memory, seconds and tokens per second are those of a
real model of the shape, answers are not.
"""

from __future__ import annotations

from typing import Any

from benchmarks.gpu import facts, models, pocket
from benchmarks.gpu.run import Bench
from benchmarks.gpu.smollm2 import LOCATED

NEEDS = {"1.5b": 15.0, "7b": 40.0}
"""Seconds that a shape takes, about."""


def run(bench: Bench) -> None:
    """Measure both shapes, the second one if there is time."""
    for name, seconds in NEEDS.items():
        if bench.left < seconds:
            bench.record("left out", of=name, left=round(bench.left, 1))
            continue
        with bench.guarded(name):
            _measure(bench, name)


def _measure(bench: Bench, name: str) -> None:
    import torch

    import errata

    bench.forget_peak()
    tokenizer = pocket.load("cpu").tokenizer
    seconds, lm = bench.timed(lambda: models.random_model(bench, name, "bfloat16", tokenizer))
    count = sum(p.numel() for p in lm.model.parameters())
    size = sum(p.numel() * p.element_size() for p in lm.model.parameters()) / 1e9
    bench.record("built", of=name, parameters=count, gb=round(size, 2), seconds=round(seconds, 2))
    seconds, _ = bench.timed(lambda: lm.fingerprint)
    bench.record("fingerprint", of=name, seconds=round(seconds, 2), gb_per_s=size / seconds)
    models.prepared(lm)
    documents = 10 if bench.small else 200
    text = facts.text_file(bench.out, documents)
    settings = {**LOCATED, "moments_text": str(text), "stop_loss": 0.0}
    settings |= {"steps": 3} if bench.small else {}
    editor = errata.get_editor("rome", settings, model=lm.name)
    bench.forget_peak()
    seconds, _ = bench.timed(lambda: editor.prepare(lm))
    bench.record(
        "moments and factor", of=name, documents=documents, seconds=round(seconds, 2),
        peak_gb=bench.peak(),
    )  # fmt: skip
    cases = facts.cases(4 if bench.small else 32)
    groups = [list(case.edits) for case in cases]
    editor.edit(lm, groups[:1])
    for some in (groups[:1], groups[: len(groups) // 4]):
        bench.forget_peak()
        seconds, _ = bench.timed(lambda some=some: editor.edit(lm, some))
        bench.record(
            "rome", of=name, edits=len(some), seconds=round(seconds, 3),
            per_edit_s=round(seconds / len(some), 4), peak_gb=bench.peak(),
        )  # fmt: skip
    quick = errata.get_editor("rome", {**settings, "steps": 2}, model=lm.name)
    quick.prepare(lm)
    for stack, some in ((32, cases), (1, cases[:6])):
        bench.forget_peak()
        seconds, result = bench.timed(
            lambda stack=stack, some=some: errata.evaluate(
                lm, quick, some, stack_size=stack, bootstrap=0
            )
        )
        parts = {key: round(value, 3) for key, value in result.summary["seconds"].items()}
        bench.record(
            "evaluation", of=name, records=len(some), stack_size=stack, parts=parts,
            seconds=round(seconds, 3), peak_gb=bench.peak(),
        )  # fmt: skip
    _passes(bench, lm, name, torch)
    text.unlink()


def _passes(bench: Bench, lm: Any, name: str, torch: Any) -> None:
    """Forward passes alone, as a yardstick: what the model does without the library."""
    rows, length = (2, 16) if bench.small else (32, 128)
    ids = torch.randint(10, 1000, (rows, length), device=bench.device)

    def forward() -> Any:
        with torch.no_grad():
            return lm.model.model(input_ids=ids, use_cache=False)

    forward()
    seconds, _ = bench.timed(forward, repeats=3)
    bench.record("forward pass", of=name, tokens_per_second=round(rows * length / seconds))
