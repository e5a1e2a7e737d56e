"""Run the campaign and print its counts: `python -m tests.robustness --inputs 10000`.

Everything that was tried is written to a folder line by line, and a second run with the same seed
goes on: it tries what is missing, and what was at fault.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any


def main() -> int:
    """Run what was asked for; return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="broken inputs")
    parser.add_argument("--kills", type=int, default=100, help="commands that are killed")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--kill", nargs="+", default=[], metavar="NAME", help="only these commands")
    parser.add_argument("--fault", nargs="+", default=[], metavar="NAME", help="only these faults")
    parser.add_argument("--no-faults", action="store_true", help="no full disk, no second process")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--record", type=Path, default=Path("runs/campaign"), metavar="FOLDER")
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever was recorded")
    parser.add_argument("--keep", action="store_true", help="write the counts that the docs cite")
    parser.add_argument("--only", metavar="SEED/NUMBER", help="one input again, with its traceback")
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    from tests.robustness import fuzz, record
    from tests.robustness.materials import Materials

    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="errata-campaign-") as folder:
        os.environ["ERRATA_CACHE"] = str(Path(folder) / "cache")
        root = Path(folder) / "made"
        with fuzz.loading_once():
            made = Materials.make(root)
            if asked.only:
                return fuzz.again(made, asked.only)
            inputs = _inputs(made, asked)
        killed = _kills(made, asked)
        tried = _faults(made, asked)
    lost = [
        *inputs.pop("lost"),
        *killed.pop("lost"),
        *(name for name, what in tried.items() if what == "not survived"),
    ]
    print(f"{sum(inputs['ended'].values()):,} broken inputs: {inputs}")
    print(f"{sum(killed['commands'].values()):,} kills: {killed}")
    print(f"{len(tried)} faults of the system: {tried}")
    print(f"{len(lost)} lost, hung or not said; {time.monotonic() - begun:.0f} s")
    if asked.keep:
        result = {"seed": asked.seed, "inputs": inputs, "kills": killed, "faults": tried}
        record.keep({**result, "lost": lost}, record.KEPT)
    return 1 if lost else 0


def _lines(asked: Any, name: str) -> Any:
    """Open the record of a part, or a new one."""
    from tests.robustness.record import Record

    path = asked.record / f"{name}-{asked.seed}.jsonl"
    if asked.fresh:
        path.unlink(missing_ok=True)
    return Record(path)


def _inputs(made: Any, asked: Any) -> dict[str, Any]:
    """Try the inputs that are missing; return the counts of all."""
    from tests.robustness import batches

    record = _lines(asked, "inputs")
    numbers = range(asked.first, asked.first + asked.inputs)
    todo = record.missing(numbers)
    begun, done = time.monotonic(), 0

    def told(tried: Any, again: tuple[str, ...]) -> None:
        nonlocal done
        done += 1
        record.add(tried.number, kind=tried.kind, outcome=tried.outcome, fault=tried.fault,
                   words=tried.words, again=" ".join(again))  # fmt: skip
        if tried.fault:
            say(f"{asked.seed}/{tried.number} {tried.kind}: {tried.fault} <- {tried.words}")
        if done % 500 == 0:
            each = (time.monotonic() - begun) / done
            say(f"{len(numbers) - len(todo) + done:,} inputs, {each:.3f} s each")

    batches.campaign(made, todo, asked.seed, told)
    ended, kinds = record.counted(numbers, "outcome"), record.counted(numbers, "kind")
    again = [record.lines[n].get("again", "") for n in numbers if n in record.lines]
    twice = {how: sum(how in words for words in again) for how in ("alone", "cold")}
    return {"ended": ended, "kinds": kinds, "again": twice, "lost": record.faults(numbers)}


def _kills(made: Any, asked: Any) -> dict[str, Any]:
    """Make the kills that are missing; return the counts of all."""
    from tests.robustness import kills

    record = _lines(asked, "kills")

    def told(number: int, name: str, at: dict[str, int], faults: list[str]) -> None:
        record.add(number, name=name, fault="; ".join(faults), **at)
        say(f"kill {number} of {name}: {dict(at)} {'; '.join(faults)}")

    numbers = range(asked.kills)
    kills.campaign(made, record.missing(numbers), asked.seed, told, tuple(asked.kill))
    there = [record.lines[n] for n in numbers if n in record.lines]
    commands: dict[str, int] = {}
    for line in there:
        hits = line.get("moment", 0) + line.get("operation", 0)
        commands[line["name"]] = commands.get(line["name"], 0) + hits
    at = {how: sum(line.get(how, 0) for line in there) for how in ("moment", "operation")}
    return {"commands": commands, "at": at, "lost": record.faults(numbers)}


def _faults(made: Any, asked: Any) -> dict[str, str]:
    """Make the faults of the system that were asked for; return what came of all so far."""
    from tests.robustness import faults

    record = _lines(asked, "faults")

    def told(number: int, name: str, outcome: str) -> None:
        record.add(number, name=name, outcome=outcome)
        say(f"{name}: {outcome}")

    if not asked.no_faults:
        faults.campaign(made, told, tuple(asked.fault))
    return {line["name"]: line["outcome"] for _, line in sorted(record.lines.items())}


def say(text: str) -> None:
    """Print a fault, or how far it has come, at once."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
