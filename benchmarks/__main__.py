"""Run all benchmarks: `python -m benchmarks [--full] [options]`.

At small sizes by default, of which nothing is kept; `--full` runs them at their own sizes, keeps
the results and writes docs/benchmarks.md.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks import _common as common

SCRIPTS = (
    "startup", "evaluation", "rome_edit", "memit_edit", "training", "training_large",
    "trained_edit", "moments",
    "solves", "sequences", "memory_editors", "serac_lookup",
    "retrieval_lookup", "long_runs", "memory", "trained_memory", "bf16",
)  # fmt: skip


def main() -> None:
    words = sys.argv[1:]
    full = "--full" in words
    words = [word for word in words if word != "--full"] + ["--keep" if full else "--quick"]
    for script in SCRIPTS:
        command = [sys.executable, "-m", f"benchmarks.{script}", *words]
        code = subprocess.run(command, cwd=common.ROOT, check=False).returncode
        if code:
            raise SystemExit(code)
    if full:
        subprocess.run([sys.executable, "-m", "benchmarks.report"], cwd=common.ROOT, check=True)


if __name__ == "__main__":
    main()
