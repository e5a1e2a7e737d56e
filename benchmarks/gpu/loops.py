"""The project's own comparisons with loops written out in plain transformers, on this device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.run import Bench

ROOT = Path(__file__).resolve().parents[2]

SCRIPTS = {
    "training": ("--batch", "64", "--steps", "2", "--repeats", "2"),
    "evaluation": ("--records", "32", "--repeats", "2"),
    "rome_edit": ("--records", "6", "--repeats", "1"),
}
"""Benchmark -> its sizes on a GPU."""

KEYS = ("ratio", "before", "after", "unit", "baseline", "equal", "note")

SECONDS = 60
"""Most that one of them may take."""


def run(bench: Bench) -> None:
    """Run each comparison on the pocket model and record its ratios."""
    for name, sizes in SCRIPTS.items():
        target = bench.out / f"{name}.json"
        command = [
            sys.executable, "-m", f"benchmarks.{name}", "--device", bench.device, "--models",
            "pocket", "--json", str(target), *(("--quick",) if bench.small else sizes),
        ]  # fmt: skip
        with bench.guarded(name):
            limit = 600 if bench.small else max(1.0, min(SECONDS, bench.left))
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
            )
            if not bench.check(name, done.returncode == 0, code=done.returncode):
                print(done.stdout[-2000:], done.stderr[-4000:], flush=True)
                bench.record("its error", text=done.stderr.strip()[-800:])
                continue
            for line in json.loads(target.read_text("utf-8"))["lines"]:
                bench.record(name, of=line["what"], **{key: line.get(key) for key in KEYS})
            target.unlink()
