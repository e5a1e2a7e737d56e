"""The suites of editors, patches and stacks on tiny models, on this device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.run import Bench

ROOT = Path(__file__).resolve().parents[2]

SUITES = (
    "tests/editors/test_contract.py",
    "tests/patch/test_patch.py",
    "tests/patch/test_stack.py",
)
"""Their models go where ERRATA_TEST_DEVICE says; other tests compare against tensors of the CPU."""

FEW = "rome or grace or serac or test_stack"
"""What is run of them in a rehearsal on a CPU, where `make test` runs all of them."""

SECONDS = 200
"""Most that the suites may take."""


def start(bench: Bench) -> None:
    """Start the suites in the background; equality is measured meanwhile, speed is not."""
    workers = 2 if bench.small else 8
    command = [
        sys.executable, "-m", "pytest", *SUITES, "-q", "-n", str(workers), "--maxfail=40",
        "--timeout=120", "-p", "no:cacheprovider", "-p", "no:benchmark", "--tb=short", "-rfE",
        *(("-k", FEW) if bench.small else ()),
    ]  # fmt: skip
    environment = {
        **os.environ, "ERRATA_TEST_DEVICE": bench.device, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    log = (bench.out / "contract.txt").open("w", encoding="utf-8")
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    bench.kept["contract"] = (process, time.perf_counter())
    bench.record("started", suites=len(SUITES), workers=workers)


def finish(bench: Bench) -> None:
    """Wait for the suites and record what failed."""
    if "contract" not in bench.kept:
        bench.record("not started")
        return
    process, began = bench.kept.pop("contract")
    wait = 1800 if bench.small else max(1.0, min(bench.left - 10, SECONDS - _since(began)))
    try:
        code: int | None = process.wait(wait)
    except BaseException as error:
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        code = None
    text = (bench.out / "contract.txt").read_text("utf-8", errors="replace")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    last = text.strip().rpartition("\n")[2]
    bench.check(
        "suites", code == 0, code=code, seconds=round(_since(began), 1), summary=last[-120:],
        failed=failed,
    )  # fmt: skip


def _since(began: float) -> float:
    return time.perf_counter() - began
