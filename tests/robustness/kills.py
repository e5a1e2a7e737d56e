"""`kill -9` at random moments: what was there is there, and `--resume` ends where nothing had been.

Every command runs in a process of its own, is killed after a drawn share of the time that it takes
undisturbed, and is then run again until it has ended. What it leaves has to equal what the
undisturbed one left; nothing may be locked, doubled or lying about.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.robustness.materials import FACT, FAST, RECIPE, Materials

TIMES = ("second", "made", "exported", "started", "resumed")
"""What is in the names of fields that hold times: no two runs agree in them."""


@dataclass
class Killed:
    """What came of the kills.

    Attributes:
        counts: By command.
        faults: What was lost, doubled, locked or left behind.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Work:
    """A command that is killed.

    Attributes:
        words: Its words.
        out: What it writes, below the folder that it runs in.
        again: Words that are added when it goes on.
        earlier: Words of a command that runs first, and whose result is replaced.
    """

    words: tuple[str, ...]
    out: str
    again: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()


def works(made: Materials) -> dict[str, Work]:
    """Return what is killed."""
    model, cases, patch = str(made.model), str(made.cases), str(made.patches["rome"])
    edit = ("edit", "-m", model, *FACT, *FAST, "--no-neighbours", "--out", "out")
    evaluate = ("eval", "-m", model, "--data", cases, *FAST, "--out", "out", "--bootstrap", "0")
    lora = ("export", patch, "--to", "lora", "--out", "out")
    merged = ("export", patch, "--to", "merged", "--out", "out")
    regimes = ("single", "batch:2", "sequential:3")
    train = (
        "train", "ibke", "-m", model, "--data", cases, "--steps", "4",
        "--train", "batch=2", "--train", "save_every=1", "--out", "out",
    )  # fmt: skip
    return {
        "edit": Work(edit, "out", ("--force",)),
        "edit --force": Work((*edit, "--force"), "out", (), edit),
        **{
            f"eval {regime}": Work((*evaluate, "--regime", regime), "out", ("--resume",))
            for regime in regimes
        },
        "export lora": Work(lora, "out", ("--force",)),
        "export lora --force": Work((*lora, "--force"), "out", (), (*lora, "--max-rank", "1")),
        "export merged --force": Work((*merged, "--force"), "out", (), merged),
        "train": Work(train, "out", ("--resume",)),
        "sweep": Work(("sweep", "recipe.toml", "--out", "out"), "out"),
    }


def started(words: tuple[str, ...], here: Path) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "errata", *words],
        cwd=here,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def ended(words: tuple[str, ...], here: Path) -> tuple[int, str]:
    """Run a command to its end."""
    process = started(words, here)
    told, _ = process.communicate(timeout=600)
    return process.returncode, told.decode(errors="replace")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _timeless(item)
            for name, item in value.items()
            if not any(word in name for word in TIMES)
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def left(folder: Path) -> dict[str, Any]:
    """Return what a command left, without times: records, patches, weights, configurations."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or path.name in ("env.json", "command.txt", "lock", ".lock"):
            continue
        if path.suffix in (".log", ".md") or path.name in ("sweep.json", "log.jsonl"):
            continue
        if path.name == "records.jsonl":
            lines = [json.loads(line) for line in path.read_bytes().splitlines()]
            found[name] = sorted((_timeless(line) for line in lines), key=lambda r: str(r["id"]))
        elif path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_bytes()))
        elif path.name == "checkpoint.safetensors":
            found[name] = "a checkpoint"  # holds seconds in its header
        else:
            found[name] = path.read_bytes()
    return found


def campaign(
    made: Materials, kills: int, seed: int, told: Callable[[str], None], only: tuple[str, ...] = ()
) -> Killed:
    """Kill commands that many times, in turn.

    Args:
        made: What they work on.
        kills: How often in all.
        seed: Of the moments.
        told: Called with every fault.
        only: Names of the commands; empty: all.
    """
    result = Killed()
    todo = {name: work for name, work in works(made).items() if not only or name in only}
    whole: dict[str, tuple[float, dict[str, Any]]] = {}
    names = list(todo)
    for number in range(kills):
        name = names[number % len(names)]
        work = todo[name]
        home = Path(tempfile.mkdtemp(prefix="errata-kill-"))
        try:
            _recipe(made, home)
            if name not in whole:
                whole[name] = _undisturbed(work, home)
                shutil.rmtree(home)
                home.mkdir()
                _recipe(made, home)
            faults = _one(work, home, whole[name], Random(f"{seed}/{number}"))
        finally:
            shutil.rmtree(home, ignore_errors=True)
        result.counts[name] += 1
        for fault in faults:
            result.faults.append(f"kill {seed}/{number} of {name}: {fault}")
            told(result.faults[-1])
    return result


def _recipe(made: Materials, home: Path) -> None:
    text = RECIPE.format(model=made.model, cases=made.cases)
    (home / "recipe.toml").write_text(text, encoding="utf-8")


def _undisturbed(work: Work, home: Path) -> tuple[float, dict[str, Any]]:
    if work.earlier:
        code, told = ended(work.earlier, home)
        assert code == 0, told
    begun = time.monotonic()
    code, told = ended(work.words, home)
    assert code == 0, told
    return time.monotonic() - begun, left(home / work.out)


def _one(work: Work, home: Path, whole: tuple[float, dict[str, Any]], rng: Random) -> list[str]:
    """Kill a command once, run it again, and say what is wrong."""
    faults: list[str] = []
    before: dict[str, Any] = {}
    if work.earlier:
        code, told = ended(work.earlier, home)
        assert code == 0, told
        before = left(home / work.out)
    seconds, wanted = whole
    process = started(work.words, home)
    time.sleep(rng.uniform(0.3, 1.0) * seconds)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.communicate()
    if work.earlier:
        now = left(home / work.out)
        if now not in (before, wanted):
            faults.append(f"neither the old nor the new is there: {sorted(now)}")
    code, told = ended((*work.words, *work.again), home)
    if code != 0:
        faults.append(f"does not go on: exit {code}: {told[-300:]}")
        return faults
    found = left(home / work.out)
    if found != wanted:
        names = sorted(
            name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)
        )
        faults.append(f"another result in {', '.join(names)}")
    lying = [p.name for p in home.rglob(".*") if p.suffix in (".part", ".old")]
    if lying:
        faults.append(f"left behind: {lying}")
    return faults
