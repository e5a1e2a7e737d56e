"""Training IBKE on the pocket model: the same losses as on the CPU, and steps per second."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.gpu import pocket
from benchmarks.gpu.run import Bench

FIRST = 1e-3
"""Relative difference of the first step's loss: one pass in float32, in another order."""

LATER = 2e-2
"""The same after twenty steps of Adam, which amplify rounding."""


def curve(bench: Bench) -> None:
    """Train on both devices from the same seed and compare the losses, step by step."""
    steps = 4 if bench.small else 20
    losses = {}
    for where in ("cpu", bench.device):
        seconds, found = bench.timed(lambda where=where: _train(bench, where, steps, batch=8))
        losses[where + " here" if where in losses else where] = found
        bench.record("trained", on=where, steps=steps, seconds=round(seconds, 2))
    mine, *_, other = losses.values()
    gaps = [abs(a - b) / max(abs(a), 1e-6) for a, b in zip(mine, other, strict=True)]
    bench.check(
        "losses", gaps[0] <= FIRST and max(gaps) <= LATER, first_gap=gaps[0], largest_gap=max(gaps),
        cpu=[round(loss, 4) for loss in mine], here=[round(loss, 4) for loss in other],
    )  # fmt: skip


def speed(bench: Bench) -> None:
    """Count steps per second at batch 64, float32 and bfloat16, signals kept and not."""
    batch = 4 if bench.small else 64
    for dtype in ("float32", "bfloat16"):
        for kept in (4.0, 0.0):
            with bench.guarded(dtype):
                bench.forget_peak()
                log = _log(bench, bench.device, 4 if bench.small else 40, batch, dtype, kept)
                half = len(log) // 2
                took = log[-1]["seconds"] - log[half - 1]["seconds"]
                bench.record(
                    "steps", dtype=dtype, kept_gb=kept, batch=batch, loss=log[-1]["total"],
                    steps_per_second=round((len(log) - half) / max(took, 1e-9), 2),
                    peak_gb=bench.peak(),
                )  # fmt: skip


def _train(bench: Bench, device: str, steps: int, batch: int) -> list[float]:
    return [line["total"] for line in _log(bench, device, steps, batch)]


def _log(
    bench: Bench, device: str, steps: int, batch: int, dtype: str = "float32", kept: float = 4.0
) -> list[dict[str, Any]]:
    """Train afresh and return the log's lines, one per step."""
    import errata
    from errata.training import TrainConfig

    config = TrainConfig(
        steps=steps, batch=batch, log_every=1, validation_groups=0, memory_gb=kept, warmup=5,
        calibration_edits=8,
    )  # fmt: skip
    loaded = errata.load_cases("world", split="train", limit=2 * batch, seed=0)
    lm = pocket.load(device, dtype)
    editor = errata.get_editor("ibke", {"weights": None}, model="pocket")
    out = bench.out / "train"
    errata.train(lm, editor, list(loaded.cases), out, config=config, force=True)
    lines = (out / "log.jsonl").read_text("utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "train"]
