"""How long `import errata` and `errata --help` take, against an empty Python of the same machine.

python -m benchmarks.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 9
ERRATA = str(Path(sys.executable).with_name("errata"))
COMMANDS = {
    "python (empty)": [sys.executable, "-c", "pass"],
    "import errata": [sys.executable, "-c", "import errata"],
    "errata --help": [ERRATA, "--help"],
    "import transformers": [sys.executable, "-c", "import torch, transformers"],
}


def seconds(command: list[str]) -> float:
    """Return the median wall time of a command."""
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    empty = None
    for name, command in COMMANDS.items():
        took = seconds(command)
        empty = empty or took
        print(f"{name:22} {took:6.3f} s   {took / empty:5.1f} x an empty python")
