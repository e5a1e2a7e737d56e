"""Kinds of broken inputs: what is broken, and the command lines that then meet it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.robustness.materials import FACT, FAST, TRAINED, Materials, group
from tests.robustness.mutations import (
    NUMBERS,
    TEXTS,
    broken_bytes,
    broken_folder,
    broken_lines,
    changed,
    special,
)

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


def _broken_toml(path: Path, rng: Random, more: tuple[str, ...]) -> None:
    """Change one line of a TOML file, or its bytes."""
    kind = rng.random()
    if kind < 0.3:
        path.write_bytes(broken_bytes(path.read_bytes(), rng))
    elif kind < 0.35:
        special(path, rng)
    else:
        lines = path.read_text("utf-8").splitlines()
        at = rng.randrange(len(lines))
        key = lines[at].partition("=")[0].strip()
        value = rng.choice(
            ("inf", "nan", "true", "1e999", "[]", "{}", '""', "[" * 300, "9" * 40, "1979-05-27",
             '"../../x"', "-1", "'''", "[[1], 2]", "{a = 1}", json.dumps("x" * 300))
        )  # fmt: skip
        extra = rng.choice(("", *more))
        lines[at] = f"{key} = {value}" if rng.random() < 0.7 else f"{lines[at]}\n{extra}{value}"
        path.write_text("\n".join(lines), "utf-8")


def recipe(made: Materials, here: Path, rng: Random) -> list[str]:
    """A broken recipe."""
    path = made.copy(made.recipe, here)
    more = ("[protocol]\n", "[hardware]\n", "retries = ", "top_k = ", "devices = ", "seed = ",
            "[models.x]\nid = ", "[editors.y]\neditor = ", "batch = ")  # fmt: skip
    _broken_toml(path, rng, more)
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


def sheet(made: Materials, here: Path, rng: Random) -> list[str]:
    """A broken fact sheet."""
    folder = made.copy(made.sheet, here)
    path = rng.choice((folder / "errata.toml", folder / "facts" / "one.jsonl"))
    if rng.random() < 0.06:
        special(path, rng)
    elif path.suffix == ".jsonl" and rng.random() < 0.8:
        broken_lines(path, rng)
    elif path.suffix == ".jsonl":  # the same as YAML, which JSON is
        facts = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        path.unlink()
        text = json.dumps(changed(facts, rng)).encode()
        text = broken_bytes(text, rng) if rng.random() < 0.5 else text
        path.with_suffix(".yaml").write_bytes(text)
    else:
        _broken_toml(path, rng, ("[gates]\ntaken = ", "[settings]\nlayer = ", "editor = "))
    name = str(folder)
    return rng.choice(
        (
            ["sheet", "build", name],
            ["sheet", "build", name, "--json"],
            ["sheet", "diff", name, str(made.sheet)],
            ["sheet", "diff", str(made.sheet), name, "--json"],
            ["sheet", "status", name, "--json"],
            ["sheet", "remove", name, "france"],
        )
    )


def trained(made: Materials, here: Path, rng: Random) -> list[str]:
    """Broken networks of a trained editor, or the broken run that is to go on."""
    model = ("-m", str(made.model))
    if rng.random() < 0.3:
        folder = made.copy(made.trained.parent, here)
        broken_folder(folder, rng)
        words = ["train", "ibke", *model, "--data", str(made.cases), *TRAINED]
        return [*words, "--out", str(folder), "--resume"]
    folder = made.copy(made.trained, here)
    broken_folder(folder, rng)
    name = str(folder)
    return rng.choice(
        (
            ["edit", *model, "--editor", name, *FACT, "--no-neighbours", "--out", "new"],
            ["eval", *model, "--editor", name, "--data", str(made.cases), "--no-save", "--json"],
        )
    )


_LEFT_OUT = ("demo", "world", "trace", "train", "web")
"""Commands that take minutes, or for ever, whatever they are told."""
_PLACES = ("--out", "--data-dir", "--cases", "--edits", "--after", "--general", "--references")


def command(made: Materials, here: Path, rng: Random) -> list[str]:
    """A command line of options and values that nobody meant."""
    known = group().commands
    name = rng.choice([name for name in sorted(known) if name not in _LEFT_OUT])
    own = [p for p in known[name].params if p.param_type_name == "option"]
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
        "remove": [patch, "--edit", FACT[1], "--out", "new"], "sign": [patch, "--key", "key"],
        "replace": [patch, "--edit", FACT[1], "--target", "Paris", "--out", "new"],
        "figure": ["scatter", str(made.run), "--out", "new"],
        "tune": ["-m", str(made.model), "--minutes", "0.01"],
    }.get(name, [])  # fmt: skip
    words = [name, *base]
    for option in rng.sample(own, min(len(own), rng.choice((1, 1, 2, 3)))):
        flag = rng.choice(option.opts)
        if flag in ("--help", "-h", "--install-completion", "--show-completion"):
            continue
        words.append(flag)
        if not option.is_flag:
            words.append(_value(flag, rng))
    if rng.random() < 0.1 and len(words) > 1:
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
    "patch": (24, patch), "adapter": (9, adapter), "data": (15, data), "run": (13, run),
    "recipe": (8, recipe), "model": (7, model), "command": (12, command), "sheet": (4, sheet),
    "trained": (4, trained),
}  # fmt: skip
"""Kinds of inputs and their share of a hundred; the rest is the Python API."""
API = 4


def kind_of(rng: Random) -> str:
    """Draw the kind of an input; `api` stands for a call of the library."""
    return rng.choices([*KINDS, "api"], [*(share for share, _ in KINDS.values()), API])[0]
