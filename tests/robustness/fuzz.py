"""Thousands of broken inputs: each a clear error with the right exit code, or a right result.

    warm process: imports, materials, a model that was loaded
        ├─ fork: inputs 0 … 99    each in a folder of its own, outcome by outcome through a pipe
        ├─ fork: inputs 100 … 199 …
        ├─ fork: every 25th input once more, alone            same outcome
        └─ new process: every 500th once more, cold           same exit code

What keeps inputs apart: every one has an empty folder that is removed afterwards; after every one
the materials (size, time) and the bits of the model in memory are what they were; batches begin
from the same state, so that what an input leaves in memory reaches at most the rest of its batch;
an input alone, and now and then in a new process, has to end as it did among others.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from errata.errors import ErrataError
from tests.robustness.kinds import KINDS, kind_of
from tests.robustness.materials import Materials, called
from tests.robustness.mutations import NUMBERS, TEXTS
from tests.robustness.warm import peak

CODES = (0, 1, 2, 3, 130)
SECONDS = 120
"""After which an input counts as hanging."""
MEMORY = 1 << 30
"""Bytes that a broken file of some kilobytes may not make a process grow by."""
BATCH, ALONE, COLD = 100, 25, 500
"""Inputs per process; every how many one is tried again alone, and in a new process."""


class Hangs(BaseException):
    """An input took too long."""


@dataclass(frozen=True)
class Tried:
    """What came of an input.

    Attributes:
        number: Its number; with the seed, all that it is drawn from.
        kind: What was broken.
        outcome: Exit code, or what stands for it.
        fault: What must not be: a traceback, a hang, a wrong exit, an output that is none.
        words: The command line.
    """

    number: int
    kind: str
    outcome: str
    fault: str | None = None
    words: str = ""


@dataclass
class Counts:
    """What came of the inputs.

    Attributes:
        inputs: By kind and outcome.
        faults: What must not be.
    """

    inputs: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.inputs.values())

    def add(self, tried: Tried, seed: int) -> str | None:
        """Count an input; return what is said of it, if it is a fault."""
        self.inputs[f"{tried.kind} {tried.outcome}"] += 1
        if tried.fault is None:
            return None
        text = f"{seed}/{tried.number} {tried.kind}: {tried.fault} <- errata {tried.words}"
        self.faults.append(text)
        return text


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _shown(words: list[str]) -> str:
    return " ".join(ascii(word)[:120] for word in words)


def _fault(words: list[str], kind: str) -> tuple[str, str | None]:
    """Run a command line; return its outcome, and what must not be."""
    before = peak()
    try:
        with at_most(SECONDS):
            done = called(words)
    except Hangs:
        return "hang", "hangs"
    error = done.exception
    if error is not None and not isinstance(error, SystemExit):
        if isinstance(error, Hangs):
            return "hang", "hangs"
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = [f for f in traceback.extract_tb(error.__traceback__) if "/errata/" in f.filename]
        at = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else last.name
        return "traceback", f"{type(error).__name__} at {at}: {str(error)[:200]!r}"
    outcome = str(done.exit_code)
    if done.exit_code not in CODES:
        return outcome, f"exit code {done.exit_code}"
    helped = "Usage:" in done.stdout  # a group of commands without one prints its help
    if done.exit_code in (1, 2) and not done.stderr.strip() and not helped:
        return outcome, "says nothing"
    if kind != "command":  # where a user may well ask for more than there is
        if "memory ran out" in done.stderr:
            return outcome, "asked for more memory than there is"
        if peak() - before > MEMORY:
            return outcome, f"took {(peak() - before) >> 20} MiB"
    asked = any(w == "--json" and words[i - 1] not in ("-o", "--out") for i, w in enumerate(words))
    if done.exit_code == 0 and asked:
        try:
            json.loads(done.stdout, parse_constant=_no_number)
        except ValueError as wrong:
            return "0", f"prints no JSON: {wrong}"
    if "\x1b" in done.stdout + done.stderr:
        return outcome, "prints commands to the terminal"
    return outcome, None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def api(made: Materials, rng: Random) -> tuple[str, str | None]:
    """Call the library with texts that nobody expects; errors are ErrataErrors."""
    import errata
    from errata.model.loading import load

    lm = load(str(made.model))
    text, other = rng.choice(TEXTS), rng.choice(TEXTS)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: errata.Edit(text, other, rng.choice((None, text, other, "France"))),
        lambda: lm.score([lm.row(text, other)]),
        lambda: lm.generate([text], max_new_tokens=1),
        lambda: errata.Patch.load(text),
        lambda: errata.load_cases(text or "x.jsonl"),
        lambda: errata.edit(
            lm, errata.Edit(f"France {text}", other, "France"), editor="rome",
            settings={"mom2_adjustment": False, "steps": 1, "contexts": "bare"},
        ),
        lambda: errata.get_editor("rome", {"layer": rng.choice(NUMBERS)}),
        lambda: errata.load(str(made.model), device=text or "x"),
    )  # fmt: skip
    number = rng.randrange(len(calls))
    try:
        with at_most(SECONDS):
            calls[number]()
    except ErrataError:
        return "error", None
    except Hangs:
        return "hang", f"call {number} of {text[:40]!a} hangs"
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        told = (
            f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {str(error)[:120]!a}"
        )
        return "traceback", f"call {number} of {text[:40]!a}, {other[:40]!a}: {told}"
    return "done", None


def one(made: Materials, seed: int, number: int) -> Tried:
    """Try one input, in a folder of its own, and look that nothing else was touched."""
    rng = Random(f"{seed}/{number}")
    kind = kind_of(rng)
    here = Path(tempfile.mkdtemp(prefix="errata-fuzz-"))
    words: list[str] = []
    before, bits = stamps(made.root), loaded_bits()
    try:
        with inside(here):
            if kind == "api":
                outcome, fault = api(made, rng)
            else:
                words = KINDS[kind][1](made, here, rng)
                outcome, fault = _fault(words, kind)
            if fault is None and Path("ran").exists():
                fault = "ran a command"
        if fault is None and (now := stamps(made.root)) != before:
            other = [n for n in now.keys() | before.keys() if now.get(n) != before.get(n)]
            fault = f"changed what it had only to read: {sorted(other)}"
        if fault is None and any(crc != bits.get(name, crc) for name, crc in loaded_bits().items()):
            fault = "left other weights in a model"
    finally:
        shutil.rmtree(here, ignore_errors=True)
    return Tried(number, kind, outcome, fault, _shown(words) if fault else "")


def cold(made: Materials, seed: int, number: int) -> str | None:
    """Return the exit code of an input in a new process; None for a call of the library."""
    rng = Random(f"{seed}/{number}")
    kind = kind_of(rng)
    if kind == "api":
        return None
    here = Path(tempfile.mkdtemp(prefix="errata-fuzz-"))
    try:
        with inside(here):
            words = KINDS[kind][1](made, here, rng)
            done = subprocess.run(
                [sys.executable, "-m", "errata", *words], stdin=subprocess.DEVNULL,
                capture_output=True, timeout=5 * SECONDS, check=False,
            )  # fmt: skip
        return "traceback" if b"Traceback" in done.stderr else str(done.returncode)
    finally:
        shutil.rmtree(here, ignore_errors=True)


def fuzz(
    made: Materials, inputs: int, seed: int, told: Callable[[str], None], first: int = 0
) -> Counts:
    """Try that many inputs in this process.

    Args:
        made: What is broken.
        inputs: How many.
        seed: Each input has a seed of its own made of it, so that it can be tried again alone.
        told: Called with every fault.
        first: Number of the first.
    """
    counts = Counts()
    for number in range(first, first + inputs):
        fault = counts.add(one(made, seed, number), seed)
        if fault is not None:
            told(fault)
    return counts


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        if not path.is_dir():
            found[str(path.relative_to(folder))] = (status.st_size, status.st_mtime_ns)
    return found


_KEPT: dict[str, Any] = {}


def loaded_bits() -> dict[str, int]:
    """Return a checksum of the weights of every model that is kept loaded."""
    sums = {}
    for name, lm in _KEPT.items():
        crc = 0
        for weights in lm.model.parameters():
            crc = zlib.crc32(weights.detach().numpy().tobytes(), crc)
        sums[name] = crc
    return sums


@contextlib.contextmanager
def loading_once() -> Iterator[None]:
    """Keep models that were loaded: commands leave them bit for bit as they were."""
    import errata.model.loading

    load = errata.model.loading.load

    def once(name: str, ready: Callable[[], None] | None = None, **options: Any) -> Any:
        folder = Path(name)
        if options.get("compute") == "float32":  # the default
            del options["compute"]
        if any(options.values()) or not folder.is_dir() or "errata-fuzz-" in str(folder):
            return load(name, ready=ready, **options)
        if name not in _KEPT:
            _KEPT[name] = load(name, ready=ready, **options)
        elif ready is not None:
            ready()
        return _KEPT[name]

    errata.model.loading.load = once
    try:
        yield
    finally:
        errata.model.loading.load = load
        _KEPT.clear()


def again(made: Materials, name: str) -> int:
    """Try one input once more and let its traceback through."""
    rng = Random(name)
    kind = kind_of(rng)
    here = Path(tempfile.mkdtemp(prefix="errata-fuzz-"))
    with inside(here):
        if kind == "api":
            print(api(made, rng))
            return 0
        words = KINDS[kind][1](made, here, rng)
        print(here, _shown(words))
        done = called(words)
    print(done.exit_code, done.stdout[-2000:], done.stderr[-2000:])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        traceback.print_exception(done.exception)
    return 0
