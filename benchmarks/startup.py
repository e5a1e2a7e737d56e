"""Start-up: `import errata` and `errata --help`, against importing torch and transformers."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

from benchmarks import _common as common

LIMITS = {"import errata": 0.3, "errata --help": 0.5}


def run(code: str, *words: str) -> tuple[float, float]:
    """Run Python code in a fresh process; return wall and CPU seconds."""
    wall, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    return time.perf_counter() - wall, used


def main() -> None:
    args = common.options(__doc__, repeats=5)
    ways = {
        "python": ("pass",),
        "eager": ("import torch, transformers",),
        "import errata": ("import errata",),
        "errata --help": ("from errata.cli.app import main; main()", "--help"),
    }
    timings = {name: common.Timing() for name in ways}
    for _ in range(args.repeats + 1):  # the first run fills the file cache
        for name, command in ways.items():
            wall, cpu = run(*command)
            timings[name].wall.append(wall)
            timings[name].cpu.append(cpu)
    for timing in timings.values():
        del timing.wall[0], timing.cpu[0]
    lines = [
        common.line(
            what, "–", "import torch, transformers", timings["eager"], timings[what], "cpu",
            note=f"aim: below {limit} s; bare interpreter {min(timings['python'].cpu):.3f} s",
        )
        for what, limit in LIMITS.items()
    ]  # fmt: skip
    common.finish("startup", args, lines)


if __name__ == "__main__":
    main()
