"""`kill -9` at random moments: what was there is there, and `--resume` ends where nothing had been.

Every command runs in a process of its own, is killed, and is then run again until it has ended;
now and then the second run is killed as well. What is left has to equal what a new process left
that nobody disturbed; nothing may be locked, doubled or lying about.

Kills come at a drawn share of the time that the command takes, and, in turn with these, right
before a drawn one of its operations on files: moments that a clock hardly ever hits. Processes are
forks of a warm one (tests/robustness/warm.py). A kill that came too late counts as none and is
drawn again, earlier.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.robustness.materials import FACT, FAST, RECIPE, TRAINED, Materials
from tests.robustness.warm import Command, Ended

TIMES = ("second", "made", "exported", "started", "resumed", "dated")
"""What is in the names of fields that hold times: no two runs agree in them."""
AGAIN = 0.25
"""Share of the second runs that are killed as well."""


@dataclass
class Killed:
    """What came of the kills.

    Attributes:
        counts: By command.
        at: How many came at a moment, and at an operation on files.
        faults: What was lost, doubled, locked or left behind.
    """

    counts: Counter[str] = field(default_factory=Counter)
    at: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Work:
    """A command that is killed.

    Attributes:
        words: Its words.
        out: What it writes, below the folder that it runs in.
        again: Words that are added when it goes on and `out` is there.
        earlier: Words of a command that runs first, and whose result is replaced.
    """

    words: tuple[str, ...]
    out: str
    again: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole:
    """What a command leaves that nobody disturbs.

    Attributes:
        wanted: What it leaves.
        seconds: How long it takes in a warm process.
        operations: How many operations on files it makes.
        before: A folder that holds what the earlier command left.
    """

    wanted: dict[str, Any]
    seconds: float
    operations: int
    before: Path


def works(made: Materials) -> dict[str, Work]:
    """Return what is killed."""
    model, cases, patch = str(made.model), str(made.cases), str(made.patches["rome"])
    edit = ("edit", "-m", model, *FACT, *FAST, "--no-neighbours", "--out", "out")
    evaluate = ("eval", "-m", model, "--data", cases, *FAST, "--out", "out", "--bootstrap", "0")
    lora = ("export", patch, "--to", "lora", "--out", "out")
    merged = ("export", patch, "--to", "merged", "--out", "out")
    regimes = ("single", "batch:2", "sequential:3", "sequential:3 --batch 2 --every 1")
    train = ("train", "ibke", "-m", model, "--data", cases, *TRAINED, "--out", "out")
    build = ("sheet", "build", "sheet")
    tables = ("report", str(made.run), "--out", "out")
    return {
        "edit": Work(edit, "out", ("--force",)),
        "edit --force": Work((*edit, "--force"), "out", (), edit),
        **{
            f"eval {regime}": Work(
                (*evaluate, "--regime", *regime.split()), "out", ("--resume",)
            )
            for regime in regimes
        },
        "eval --editor ft single": Work(
            ("eval", "-m", model, "--data", cases, "--editor", "ft", "--set", "steps=2",
             "--out", "out", "--bootstrap", "0"), "out", ("--resume",),
        ),
        "export lora": Work(lora, "out", ("--force",)),
        "export lora --force": Work((*lora, "--force"), "out", (), (*lora, "--max-rank", "1")),
        "export merged --force": Work((*merged, "--force"), "out", (), merged),
        "train": Work(train, "out", ("--resume",)),
        "sweep": Work(("sweep", "recipe.toml", "--out", "out"), "out"),
        "sheet build": Work(build, "sheet/patch"),
        "sheet build again": Work((*build, "--fresh"), "sheet/patch", (), build),
        "report --force": Work((*tables, "--force"), "out", (), tables),
    }  # fmt: skip


def _new(words: Iterable[str], here: Path) -> None:
    """Run a command to its end in a new process.

    Raises:
        AssertionError: If it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "errata", *words], cwd=here, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode(errors="replace")


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
        if path.suffix in (".log", ".md", ".html") or path.name in ("sweep.json", "log.jsonl"):
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
    made: Materials,
    numbers: Iterable[int],
    seed: int,
    told: Callable[[int, str, Counter[str], list[str]], None],
    only: tuple[str, ...] = (),
) -> Killed:
    """Kill commands, in turn.

    Args:
        made: What they work on.
        numbers: Numbers of the kills; the moment of each is drawn from the seed and its number.
        seed: Of the moments.
        told: Called with number, command, how often it was killed how, and the faults.
        only: Names of the commands; empty: all.
    """
    result = Killed()
    todo = {name: work for name, work in works(made).items() if not only or name in only}
    whole: dict[str, Whole] = {}
    names = list(todo)
    with tempfile.TemporaryDirectory(prefix="errata-kills-") as folder:
        for number in numbers:
            name = names[number % len(names)]
            if name not in whole:
                whole[name] = _undisturbed(made, todo[name], Path(folder) / f"whole-{len(whole)}")
            home = Path(folder) / f"kill-{number}"
            at: Counter[str] = Counter()
            try:
                faults = _one(todo[name], home, whole[name], Random(f"{seed}/{number}"), at)
            finally:
                shutil.rmtree(home, ignore_errors=True)
            result.counts[name] += at.total()
            result.at += at
            result.faults += [f"kill {seed}/{number} of {name}: {fault}" for fault in faults]
            told(number, name, at, faults)
    return result


def _home(made: Materials, home: Path) -> None:
    """Make the folder that a command runs in."""
    home.mkdir()
    text = RECIPE.format(model=made.model, cases=made.cases)
    (home / "recipe.toml").write_text(text, encoding="utf-8")
    made.copy(made.sheet, home)


def _undisturbed(made: Materials, work: Work, place: Path) -> Whole:
    """Run a command without disturbing it: new, and warm, which has to leave the same."""
    place.mkdir()
    before, fresh, warm = place / "before", place / "new", place / "warm"
    _home(made, before)
    with cache_folder(place / "cache"):
        if work.earlier:
            ended = Command(work.earlier, before).wait()
            assert ended.code == 0, ended.told
        shutil.copytree(before, fresh)
        _new(work.words, fresh)
    shutil.copytree(before, warm)
    with cache_folder(place / "cache-2"):
        ended = Command(work.words, warm).wait()
    assert ended.code == 0, ended.told
    wanted = left(fresh / work.out)
    assert left(warm / work.out) == wanted, f"a warm process leaves other files: {work.words}"
    return Whole(wanted, ended.seconds, ended.operations, before)


@contextlib.contextmanager
def cache_folder(folder: Path) -> Iterator[None]:
    """Use a cache folder of one's own, so that nothing was kept by an earlier run."""
    was = os.environ["ERRATA_CACHE"]
    os.environ["ERRATA_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ["ERRATA_CACHE"] = was


def _one(work: Work, home: Path, whole: Whole, rng: Random, at: Counter[str]) -> list[str]:
    """Kill a command, run it again, and say what is wrong; `at` counts the kills."""
    with cache_folder(home.parent / f"{home.name}-cache"):
        try:
            return _disturbed(work, home, whole, rng, at)
        finally:
            shutil.rmtree(home.parent / f"{home.name}-cache", ignore_errors=True)


def _disturbed(work: Work, home: Path, whole: Whole, rng: Random, at: Counter[str]) -> list[str]:
    faults: list[str] = []
    before = left(whole.before / work.out) if work.earlier else {}
    share = 1.0
    while True:
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(whole.before, home)
        if _killed(work.words, home, whole, rng, share, at).code < 0:
            break
        share /= 2  # it had ended already: earlier
    if work.earlier and left(home / work.out) not in (before, whole.wanted):
        faults.append(f"neither the old nor the new is there: {sorted(left(home / work.out))}")
    goes_on = (home / work.out).exists()
    words = (*work.words, *(work.again if goes_on else ()))
    if rng.random() < AGAIN:
        _killed(words, home, whole, rng, 1.0, at)
        goes_on = (home / work.out).exists()
        words = (*work.words, *(work.again if goes_on else ()))
    ended = Command(words, home).wait()
    if ended.code != 0:
        return [*faults, f"does not go on: exit {ended.code}: {ended.told[-300:]}"]
    found = left(home / work.out)
    if found != whole.wanted:
        names = sorted(
            name
            for name in found.keys() | whole.wanted.keys()
            if found.get(name) != whole.wanted.get(name)
        )
        faults.append(f"another result in {', '.join(names)}")
    lying = [p.name for p in home.rglob(".*") if p.suffix in (".part", ".old")]
    if lying:
        faults.append(f"left behind: {lying}")
    return faults


def _killed(
    words: tuple[str, ...], home: Path, whole: Whole, rng: Random, share: float, at: Counter[str]
) -> Ended:
    """Start a command and kill it at a moment, or at an operation; count it if it was hit."""
    if rng.random() < 0.5 and whole.operations:
        how = "operation"
        number = rng.randint(1, max(1, int(share * whole.operations)))
        ended = Command(words, home, number).wait()
    else:
        how = "moment"
        command = Command(words, home)
        time.sleep(share * rng.random() * whole.seconds)
        command.kill()
        ended = command.wait()
    if ended.code < 0:
        at[how] += 1
    return ended
