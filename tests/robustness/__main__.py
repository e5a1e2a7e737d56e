"""Run the campaign and print its counts: `python -m tests.robustness --inputs 10000`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path


def main() -> int:
    """Run what was asked for; return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="broken inputs")
    parser.add_argument("--kills", type=int, default=100, help="kill -9 at random moments")
    parser.add_argument("--first", type=int, default=0, help="number of the first input: go on")
    parser.add_argument("--kill", nargs="+", default=[], metavar="NAME", help="only these commands")
    parser.add_argument("--fault", nargs="+", default=[], metavar="NAME", help="only these faults")
    parser.add_argument("--no-faults", action="store_true", help="no full disk, no second process")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--only", metavar="SEED/NUMBER", help="one input again, with its traceback")
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    from tests.robustness import faults, fuzz, kills
    from tests.robustness.materials import Materials

    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="errata-campaign-") as folder:
        os.environ["ERRATA_CACHE"] = str(Path(folder) / "cache")
        root = Path(folder) / "made"
        with fuzz.loading_once():
            made = Materials.make(root)
            if asked.only:
                return fuzz.again(made, asked.only)
            counts = fuzz.fuzz(made, asked.inputs, asked.seed, say, first=asked.first)
        killed = kills.campaign(made, asked.kills, asked.seed, say, tuple(asked.kill))
        tried = {} if asked.no_faults else faults.campaign(made, say, tuple(asked.fault))
    print(f"{counts.total:,} broken inputs: {dict(sorted(counts.inputs.items()))}")
    print(f"{sum(killed.counts.values())} kills: {dict(sorted(killed.counts.items()))}")
    print(f"{len(tried)} faults of the system: {tried}")
    lost = len(counts.faults) + len(killed.faults) + sum(1 for ok in tried.values() if not ok)
    print(f"{lost} lost, hung or not said; {time.monotonic() - begun:.0f} s")
    return 1 if lost else 0


def say(text: str) -> None:
    """Print a fault at once."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
