"""Speed and memory on SmolLM2-135M: editing, evaluation, second moments, generation.

Without the model's file the same is measured on its shape with random weights, and says so; then
the rates mean nothing and editing runs to its last step.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import facts, models, pocket
from benchmarks.gpu.run import Bench

CONTEXTS = ("{}", "It is well known that {}", "In an old book we read: {}")

AGAIN = 30
"""Seconds that are wanted for bfloat16 after float32."""

FEW = 3
"""What is done one by one, for comparison, is done for so many and scaled up."""

LOCATED = {"contexts": CONTEXTS, "moments_samples": 10**6, "moments_max_length": 128, "ridge": 0.1}
"""Given to editors that count moments; the texts here are too few to fill the space of keys."""


def run(bench: Bench) -> None:
    """Measure in float32 and in bfloat16."""
    text = facts.text_file(bench.out, 20 if bench.small else 1000)
    for dtype in ("float32", "bfloat16"):
        if dtype == "bfloat16" and bench.left < AGAIN:
            bench.record("left out", of=dtype, left=round(bench.left, 1))
            break
        lm = load(bench, dtype)
        with bench.guarded(f"moments {dtype}"):
            _moments(bench, lm, text, dtype)
        _editing(bench, lm, text, dtype)
        with bench.guarded(f"evaluation {dtype}"):
            _evaluation(bench, lm, text, dtype)
        with bench.guarded(f"generation {dtype}"):
            _generation(bench, lm, dtype)
        del lm
    text.unlink()


def load(bench: Bench, dtype: str) -> Any:
    """Return SmolLM2, or its shape where no file is given."""
    path = bench.args.smollm2
    bench.forget_peak()
    start = time.perf_counter()
    if path is None:
        lm = models.random_model(bench, "smollm2", dtype, pocket.load("cpu").tokenizer)
    else:
        lm = models.smollm2(bench, path, dtype)
    models.prepared(lm)
    seconds = round(time.perf_counter() - start, 2)
    bench.record("model", name=lm.name, dtype=dtype, seconds=seconds, peak_gb=bench.peak())
    return lm


def _settings(bench: Bench, name: str, text: Path) -> dict[str, Any]:
    steps = {"steps": 3} if bench.small else {}
    if name in ("rome", "memit", "alphaedit"):
        return {**LOCATED, "moments_text": str(text), **steps}
    return {"steps": 25, "stop_loss": 0.0, **steps} if name == "grace" else steps


def _editor(bench: Bench, lm: Any, name: str, text: Path) -> Any:
    import errata

    return errata.get_editor(name, _settings(bench, name, text), model=lm.name)


def _moments(bench: Bench, lm: Any, text: Path, dtype: str) -> None:
    """Count moments of MEMIT's blocks: one pass over the texts serves all of them."""
    import json

    documents = json.loads(text.read_text())
    tokens = sum(min(len(lm.row(document).ids), 128) for document in documents)
    bench.forget_peak()
    for name in ("memit", "rome", "alphaedit"):
        editor = _editor(bench, lm, name, text)
        seconds, _ = bench.timed(lambda editor=editor: editor.prepare(lm))
        bench.record(
            "moments and factors", of=name, dtype=dtype, tokens=tokens, seconds=round(seconds, 3),
            tokens_per_second=round(tokens / seconds), peak_gb=bench.peak(),
        )  # fmt: skip


def _editing(bench: Bench, lm: Any, text: Path, dtype: str) -> None:
    """Edit: eight groups side by side, the same one by one, and batches of twenty."""
    side, batch = (2, 3) if bench.small else (8, 20)
    cases = facts.cases(max(side, batch))
    single = [list(case.edits) for case in cases[:side]]
    together = [[edit for case in cases[:batch] for edit in case.edits]]
    plans = [("rome", single), ("ft", single), ("grace", single), ("memit", together),
             ("alphaedit", together)]  # fmt: skip
    for name, groups in plans:
        with bench.guarded(f"{name} {dtype}"):
            editor = _editor(bench, lm, name, text)
            editor.edit(lm, groups[:1])  # warm: kernels are chosen in the first run
            before = pocket.weights(lm)
            bench.forget_peak()
            seconds, patches = bench.timed(lambda e=editor, g=groups: e.edit(lm, g))
            peak, edits = bench.peak(), sum(map(len, groups))
            figures: dict[str, Any] = {}
            if len(groups) > 1 and dtype == "float32":
                few = groups[:FEW]
                alone, _ = bench.timed(lambda e=editor, f=few: [e.edit(lm, [one]) for one in f])
                alone *= len(groups) / len(few)
                figures = {"one_by_one_s": round(alone, 3), "ratio": round(alone / seconds, 2)}
            was, now = _likelihood(lm, cases[: len(groups)], patches, groups)
            bench.check(
                name, pocket.unchanged(lm, before), dtype=dtype, edits=edits,
                seconds=round(seconds, 3), per_edit_s=round(seconds / edits, 4), peak_gb=peak,
                logprob_before=was, logprob_after=now, **figures,
            )  # fmt: skip


def _likelihood(lm: Any, cases: Any, patches: Any, groups: Any) -> tuple[float, float]:
    """Return the mean log-probability of the targets' tokens before and after."""
    was = now = 0.0
    for patch, group in zip(patches, groups, strict=True):
        edited = [type(cases[0])("edited", tuple(group))]
        was += float(pocket.logprobs(lm, edited).mean())
        now += float(pocket.logprobs(lm, edited, patch).mean())
    return was / len(groups), now / len(groups)


def _evaluation(bench: Bench, lm: Any, text: Path, dtype: str) -> None:
    """Evaluate ROME on fifty records, many patches in one pass and one by one."""
    import errata

    for size, count in ((32, 50), (1, 6)):
        cases = facts.cases(3 if bench.small else count)
        bench.forget_peak()
        editor = _editor(bench, lm, "rome", text)
        seconds, result = bench.timed(
            lambda size=size, editor=editor, cases=cases: errata.evaluate(
                lm, editor, cases, stack_size=size, bootstrap=0
            )
        )
        parts = {key: round(value, 3) for key, value in result.summary["seconds"].items()}
        rates = {key: result.summary[key] for key in ("reliability", "generality", "locality")}
        bench.record(
            "evaluation of rome", dtype=dtype, records=len(cases), stack_size=size, **rates,
            seconds=round(seconds, 3), parts=parts, peak_gb=bench.peak(),
        )  # fmt: skip


def _generation(bench: Bench, lm: Any, dtype: str) -> None:
    """Generate greedily from a batch of prompts."""
    count, tokens = (2, 4) if bench.small else (32, 32)
    prompts = [f"The history of {name} began when" for name in list(facts.CAPITALS)[:count]]
    seconds, texts = bench.timed(lambda: lm.generate(prompts, max_new_tokens=tokens))
    rows = len(texts)
    bench.record(
        "generation", dtype=dtype, prompts=rows, new_tokens=tokens, seconds=round(seconds, 3),
        tokens_per_second=round(rows * tokens / seconds), begins=texts[0][:60],
    )  # fmt: skip
