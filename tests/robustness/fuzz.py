"""Thousands of broken inputs: each a clear error with the right exit code, or a right result."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import typer

from errata.cli.app import app
from errata.errors import ErrataError
from tests.robustness.materials import FACT, FAST, Materials, called
from tests.robustness.mutations import (
    NUMBERS,
    TEXTS,
    broken_bytes,
    broken_folder,
    broken_lines,
    special,
)

CODES = (0, 1, 2, 3, 130)
SECONDS = 120
"""After which an input counts as hanging."""


class Hangs(BaseException):
    """An input took too long."""


@dataclass
class Counts:
    """What came of the inputs.

    Attributes:
        inputs: By kind and exit code.
        faults: What must not be: a traceback, a hang, a wrong exit, an output that is none.
    """

    inputs: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.inputs.values())


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


def _fault(words: list[str]) -> tuple[str, str | None]:
    """Run a command line; return its outcome, and what must not be."""
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
    if done.exit_code not in CODES:
        return str(done.exit_code), f"exit code {done.exit_code}"
    helped = "Usage:" in done.stdout  # a group of commands without one prints its help
    if done.exit_code in (1, 2) and not done.stderr.strip() and not helped:
        return str(done.exit_code), "says nothing"
    asked = any(w == "--json" and words[i - 1] not in ("-o", "--out") for i, w in enumerate(words))
    if done.exit_code == 0 and asked:
        try:
            json.loads(done.stdout, parse_constant=_no_number)
        except ValueError as wrong:
            return "0", f"prints no JSON: {wrong}"
    if "\x1b" in done.stdout + done.stderr:
        return str(done.exit_code), "prints commands to the terminal"
    return str(done.exit_code), None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


# ---------------------------------------------------------------------- kinds of inputs

Kind = Callable[[Materials, Path, Random], list[str]]


def patch(made: Materials, here: Path, rng: Random) -> list[str]:
    """A broken patch, in any command that takes one."""
    folder = made.copy(made.any_patch(rng), here)
    broken_folder(folder, rng)
    name, model = str(folder), str(made.model)
    return rng.choice(
        (
            ["verify", name, "--json"],
            ["verify", name],
            ["show", name],
            ["show", name, "--json"],
            ["ask", name, "--prompt", "The capital of France is"],
            ["scale", name, "0.5", "-o", "new"],
            ["compose", name, str(made.patches["rome"]), "-o", "new"],
            ["export", name, "--to", "lora", "--out", "new"],
            ["export", name, "--to", "merged", "--out", "new"],
            ["edit", "-m", model, *FACT, *FAST, "--after", name, "--out", "new", "--no-neighbours"],
        )
    )


def adapter(made: Materials, here: Path, rng: Random) -> list[str]:
    """A broken adapter."""
    folder = made.copy(made.adapter, here)
    broken_folder(folder, rng)
    return rng.choice(
        (
            ["import", str(folder), "--out", "new"],
            ["import", str(folder), "--out", "new", "-m", str(made.model)],
            ["verify", str(folder)],
            ["ask", str(folder), "--prompt", "France"],
        )
    )


def data(made: Materials, here: Path, rng: Random) -> list[str]:
    """A broken file of cases or edits."""
    path = made.copy(made.cases, here)
    if rng.random() < 0.1:
        path = path.rename(here / rng.choice(("cases.json", "cases.txt", "c")))
    broken_lines(path, rng) if rng.random() < 0.95 else special(path, rng)
    model, name = str(made.model), str(path)
    return rng.choice(
        (
            ["eval", "-m", model, "--editor", "none", "--data", name, "--json", "--no-save"],
            ["eval", "-m", model, "--editor", "none", "--data", name, "--skip-bad", "--no-save"],
            ["verify", str(made.copy(made.patches["rome"], here)), "--cases", name, "--json"],
            ["edit", "-m", model, "--edits", name, *FAST, "--no-neighbours", "--out", "new"],
        )
    )


def run(made: Materials, here: Path, rng: Random) -> list[str]:
    """A broken run folder."""
    folder = made.copy(made.run, here)
    broken_folder(folder, rng)
    again = ["eval", "-m", str(made.model), "--editor", "none", "--data", str(made.cases)]
    return rng.choice(
        (
            ["report", str(folder)],
            ["report", str(folder), "--format", "csv"],
            ["report", str(folder), "--format", "latex"],
            ["report", str(folder), "--json"],
            ["report", str(folder), "--out", "tables"],
            [*again, "--out", str(folder), "--resume"],
            [*again, "--out", str(folder), "--force"],
        )
    )


def recipe(made: Materials, here: Path, rng: Random) -> list[str]:
    """A broken recipe."""
    path = made.copy(made.recipe, here)
    kind = rng.random()
    text = path.read_text("utf-8")
    if kind < 0.3:
        path.write_bytes(broken_bytes(path.read_bytes(), rng))
    elif kind < 0.35:
        special(path, rng)
    else:
        lines = text.splitlines()
        at = rng.randrange(len(lines))
        key = lines[at].partition("=")[0].strip()
        value = rng.choice(
            ("inf", "nan", "true", "1e999", "[]", "{}", '""', "[" * 300, "9" * 40, "1979-05-27",
             '"../../x"', "-1", "'''", "[[1], 2]", '{a = 1}', json.dumps("x" * 300))
        )  # fmt: skip
        extra = rng.choice(
            ("", "[protocol]\n", "[hardware]\n", "retries = ", "top_k = ", "devices = ", "seed = ",
             "[models.x]\nid = ", "[editors.y]\neditor = ", 'batch = ')
        )  # fmt: skip
        lines[at] = f"{key} = {value}" if rng.random() < 0.7 else f"{lines[at]}\n{extra}{value}"
        path.write_text("\n".join(lines), "utf-8")
    return ["sweep", str(path), "--dry-run", *(["--json"] if rng.random() < 0.5 else [])]


def model(made: Materials, here: Path, rng: Random) -> list[str]:
    """A broken model folder."""
    folder = made.copy(made.model, here)
    broken_folder(folder, rng)
    return rng.choice(
        (
            ["ask", str(folder), "--prompt", "The capital of France is"],
            ["doctor", "-m", str(folder), "--json"],
            ["edit", "-m", str(folder), *FACT, *FAST, "--no-neighbours", "--out", "new"],
        )
    )


_LEFT_OUT = ("demo", "world", "trace", "train")
"""Commands that take minutes whatever they are told."""
_PLACES = ("--out", "--data-dir", "--cases", "--edits", "--after", "--general", "--references")


def command(made: Materials, here: Path, rng: Random) -> list[str]:
    """A command line of options and values that nobody meant."""
    group: Any = typer.main.get_command(app)
    names = [name for name in sorted(group.commands) if name not in _LEFT_OUT]
    name = rng.choice(names)
    own = [p for p in group.commands[name].params if p.param_type_name == "option"]
    patch = str(made.copy(made.patches["rome"], here))
    base = {
        "edit": ["-m", str(made.model), *FACT, *FAST, "--no-neighbours", "--out", "new"],
        "eval": ["-m", str(made.model), "--editor", "none", "--data", str(made.cases), "--no-save"],
        "verify": [patch], "show": [patch], "scale": [patch, "0.5", "-o", "new"],
        "ask": [patch, "--prompt", "France"], "compose": [patch, patch, "-o", "new"],
        "export": [patch, "--to", "lora", "--out", "new"],
        "import": [str(made.adapter), "--out", "new"],
        "report": [str(made.run)], "sweep": [str(made.recipe), "--dry-run"],
        "doctor": ["-m", str(made.model)], "ls": ["editors"],
    }.get(name, [])  # fmt: skip
    words = [name, *base]
    for option in rng.sample(own, min(len(own), rng.choice((1, 1, 2, 3)))):
        flag = rng.choice(option.opts)
        if flag in ("--help", "-h", "--install-completion", "--show-completion"):
            continue
        words.append(flag)
        if not option.is_flag:
            words.append(_value(flag, rng))
    if rng.random() < 0.1:
        del words[rng.randrange(1, len(words))]
    if rng.random() < 0.1:
        words.insert(rng.randrange(1, len(words) + 1), rng.choice(TEXTS).replace("\x00", ""))
    return [_typed(word) for word in words]


def _value(flag: str, rng: Random) -> str:
    if flag in ("-m", "--model", "--revision"):  # nothing that would ask the network
        return rng.choice(("./nowhere", "pocket", "x" * 300, "", "/dev/null", "a/b/c", "."))
    if flag in _PLACES:
        return rng.choice(("new", "x" * 300, "", "/dev/null", "/dev/null/x", "a/../b", "é\n", "-"))
    kind = rng.random()
    if kind < 0.3:
        return str(rng.choice(NUMBERS))
    if kind < 0.6:
        return rng.choice(TEXTS).replace("\x00", "")
    if kind < 0.8:
        key = rng.choice(("layer", "lr", "steps", "batch", "seed", "x", "", "device", "top_k"))
        return f"{key}={rng.choice((*NUMBERS, *TEXTS))}".replace("\x00", "")
    return rng.choice(("cpu", "meta", "mps", "cuda:9", "float16", "all", "world", "0", "10"))


def _typed(word: str) -> str:
    """Return a word as a shell hands it over: bytes that are no UTF-8 come as surrogates."""
    return word.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


KINDS: dict[str, tuple[int, Kind]] = {
    "patch": (26, patch), "adapter": (10, adapter), "data": (16, data), "run": (14, run),
    "recipe": (8, recipe), "model": (8, model), "command": (14, command),
}  # fmt: skip
"""Kinds of inputs and their share of a hundred; the rest is the Python API."""


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


def fuzz(
    made: Materials, inputs: int, seed: int, told: Callable[[str], None], first: int = 0
) -> Counts:
    """Try that many inputs.

    Args:
        made: What is broken.
        inputs: How many.
        seed: Each input has a seed of its own made of it, so that it can be tried again alone.
        told: Called with every fault.
        first: Number of the first: where an earlier part of the campaign ended.
    """
    counts = Counts()
    names, weights = list(KINDS), [share for share, _ in KINDS.values()]
    before = stamps(made.root)
    for number in range(first, first + inputs):
        rng = Random(f"{seed}/{number}")
        kind = rng.choices([*names, "api"], [*weights, 4])[0]
        here = Path(tempfile.mkdtemp(prefix="errata-fuzz-"))
        words: list[str] = []
        try:
            with inside(here):
                if kind == "api":
                    outcome, fault = api(made, rng)
                else:
                    words = KINDS[kind][1](made, here, rng)
                    outcome, fault = _fault(words)
                if fault is None and Path("ran").exists():
                    fault = "ran a command"
                if fault is None and (now := stamps(made.root)) != before:
                    other = [n for n in now.keys() | before.keys() if now.get(n) != before.get(n)]
                    fault, before = f"changed what it had only to read: {sorted(other)}", now
        finally:
            shutil.rmtree(here, ignore_errors=True)
        counts.inputs[f"{kind} {outcome}"] += 1
        if fault is not None:
            counts.faults.append(f"{seed}/{number} {kind}: {fault} <- errata {_shown(words)}")
            told(counts.faults[-1])
    return counts


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        if not path.is_dir():
            found[str(path.relative_to(folder))] = (status.st_size, status.st_mtime_ns)
    return found


@contextlib.contextmanager
def loading_once() -> Iterator[None]:
    """Keep models that were loaded: commands leave them bit for bit as they were."""
    import errata.model.loading

    load, kept = errata.model.loading.load, {}

    def once(name: str, ready: Callable[[], None] | None = None, **options: Any) -> Any:
        folder = Path(name)
        if any(options.values()) or not folder.is_dir() or "errata-fuzz-" in str(folder):
            return load(name, ready=ready, **options)
        if name not in kept:
            kept[name] = load(name, ready=ready, **options)
        elif ready is not None:
            ready()
        return kept[name]

    errata.model.loading.load = once
    try:
        yield
    finally:
        errata.model.loading.load = load


def again(made: Materials, name: str) -> int:
    """Try one input once more and let its traceback through."""
    rng = Random(name)
    names, weights = list(KINDS), [share for share, _ in KINDS.values()]
    kind = rng.choices([*names, "api"], [*weights, 4])[0]
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
