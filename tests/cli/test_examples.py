"""Every example of every command's help runs, on the pocket model.

Fast ones run as they stand. The others are cut down by `REDUCED`, and by nothing else: fewer cases
and steps, files in place of downloads, the pocket model in place of a large one, and a dry run in
place of a sweep of hours. What a line reads is laid out for it; what it writes is not there.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from errata.cli.app import app
from errata.errors import DataError

REDUCED = (
    # fewer of everything
    (r"--limit \d+", "--limit 2"),
    (r"--steps \d+", "--steps 2"),
    (r"sequential:\d+", "sequential:2 --limit 2"),
    (r"--batch \d+", "--batch 2"),
    (r"(errata demo.*)", r"\1 --cases 1"),
    (r"(errata trace (?!.*--limit).*)", r"\1 --limit 2"),
    (r"(errata trace .*)", r"\1 --samples 1 --window 2"),
    (r"(errata eval .*(?:world-bench/test|counterfact:sample))$", r"\1 --limit 2"),
    (r"(errata train .*)", r"\1 --limit 16 --train batch=2 --train validation_groups=4"
     " --train calibration_edits=2 --set rank=4"),
    (r"(errata train mend .*) --set rank=4", r"\1 --steps 2"),
    (r"(errata world (?:bench|build) .*)", r"\1 --scale test"),
    (r"(errata world build (?!.*--steps).*)", r"\1 --steps 2"),
    (r"(errata world measure)$", r"\1 --limit 2"),
    # a search takes minutes, and what it prints is tested in test_tune.py; so are the figures of
    # networks, which would have to be trained, in tests/reporting
    (r"errata tune .*", "errata tune --help"),
    (r"errata figure (?:latents|variants|relations|pruning) \S+",
     "errata figure scatter runs/table2-pocket"),
    # a page that does not end by itself, and needs Gradio: tests/web
    (r"errata web.*", "errata web --help"),
    (r"errata sheet init corrections", "errata sheet init new-corrections"),
    # no server is running
    (r" --endpoint \S+(?: --served-model \S+)?", ""),
    # nothing is downloaded
    (r"--model smollm2", "--model pocket"),
    (r"--data zsre ", "--data zsre:zsre.json "),
    (r"--data uniedit,counterfact:counterfact-train.json:512,zsre:zsre-train.json:512",
     "--data world,counterfact:counterfact.json:1,zsre:zsre.json:1"),
    (r"--model gpt2-xl --as-published gpt2-xl", "--model pocket"),
    (r"errata trace gpt2-xl(.*)gpt2-xl\.png", r"errata trace pocket\1map.png"),
    (r"(errata sweep (?!.*--dry-run).*)", r"\1 --dry-run"),
)  # fmt: skip

LIKE_OTHERS = {
    "errata demo --model smollm2",
    "errata world build --out my-pocket --steps 200",
    "errata train ibke --model pocket --data world --out runs/ibke --steps 200",
    "errata eval --editor rome --data world --limit 50",
}
"""Cut down, they are what another line is, or begins with: in the slow tests."""

FACTS = (("France", "Rome"), ("Italy", "Oslo"))
QUESTION = "The capital of {} is the city named"
PERU = {"prompt": "The capital of Peru is the city named", "target": "Oslo", "subject": "Peru"}


def examples() -> list[str]:
    """Every line of the help texts' examples, in order; each once."""

    def walk(command: Any) -> Iterator[str]:
        for line in (command.epilog or "").splitlines():
            if line.startswith("errata "):
                yield line.replace("\\[", "[")
        for inner in getattr(command, "commands", {}).values():
            yield from walk(inner)

    return list(dict.fromkeys(walk(typer.main.get_command(app))))


def reduced(line: str) -> str:
    for pattern, shorter in REDUCED:
        line = re.sub(pattern, shorter, line)
    return line


def call(line: str) -> tuple[int, str]:
    """Run a line in this process."""
    result = CliRunner().invoke(app, shlex.split(line)[1:], prog_name="errata")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def made(line: str) -> None:
    code, said = call(line)
    assert code == 0, f"{line}: {said}"


def edit(number: int, out: str) -> None:
    subject, target = FACTS[number]
    prompt = QUESTION.format(subject)
    made(f'errata edit -p "{prompt}" -t {target} --subject {subject} --out {out}')


def many(out: str) -> None:
    """Make a patch that edits can be taken out of."""
    france = {**requests()[0], "prompt": "The capital of France is"}
    own = [{**r, "id": str(17 - n)} for n, r in enumerate([france, requests()[1], PERU])]
    write("many.jsonl", own, lines=True)
    made(f"errata edit --edits many.jsonl --editor ultraedit --set order=free --out {out}")


def write(name: str, value: Any, lines: bool = False) -> None:
    text = "\n".join(map(json.dumps, value)) if lines else json.dumps(value)
    Path(name).write_text(text + "\n", encoding="utf-8")


def requests() -> list[dict[str, Any]]:
    return [{"prompt": QUESTION.format(s), "target": t, "subject": s} for s, t in FACTS]


def checks() -> list[dict[str, Any]]:
    probe = {"prompt": QUESTION.format("Germany"), "target": "Berlin", "kind": "locality"}
    return [{"id": "france", "edits": [requests()[0]], "probes": [probe]}]


def counterfact() -> list[dict[str, Any]]:
    return [
        {
            "case_id": number, "subject": s, "prompt": QUESTION.format(s), "target_new": t,
            "ground_truth": "Paris", "rephrase_prompt": f"The capital of {s} is",
            "locality_prompt": QUESTION.format("Germany"), "locality_ground_truth": "Berlin",
        }
        for number, (s, t) in enumerate(FACTS)
    ]  # fmt: skip


def zsre() -> list[dict[str, Any]]:
    return [
        {
            "subject": s, "src": QUESTION.format(s), "pred": "Paris", "alt": t,
            "rephrase": f"The capital of {s} is", "answers": ["Paris"],
            "loc": QUESTION.format("Germany"), "loc_ans": "Berlin",
        }
        for s, t in FACTS * 2
    ]  # fmt: skip


def pocket(name: str) -> None:
    from errata.world import pocket_path

    Path(name).symlink_to(pocket_path(), target_is_directory=True)


def sheet() -> None:
    made("errata sheet init corrections")
    made("errata sheet build corrections")


def last_week() -> None:
    shutil.copytree("corrections/patch", "last-week")


def signed(patch: str) -> None:
    made("errata sign --new-key team.key")
    made(f"errata sign {patch} --key team.key")


ROOT = Path(__file__).resolve().parents[2]
PROVIDED: dict[str, Callable[[], None]] = {
    "rome-france": lambda: edit(0, "rome-france"),
    "rome-italy": lambda: edit(1, "rome-italy"),
    "patch": lambda: edit(0, "patch"),
    "adapter": lambda: [edit(0, "p"), made("errata export p --to lora --out adapter")] and None,
    "remove facts": lambda: many("facts"),
    "replace facts": lambda: many("facts"),
    "facts.jsonl": lambda: write("facts.jsonl", requests(), lines=True),
    "facts.json": lambda: write(
        "facts.json",
        [{"subject": "France", "prompt": QUESTION.format("France"), "attribute": "Paris"}],
    ),
    "checks.jsonl": lambda: write("checks.jsonl", checks(), lines=True),
    "counterfact.json": lambda: write("counterfact.json", counterfact()),
    "zsre.json": lambda: write("zsre.json", zsre()),
    "my-model": lambda: pocket("my-model"),
    "my-pocket": lambda: pocket("my-pocket"),
    "recipes": lambda: shutil.copytree(ROOT / "recipes", "recipes") and None,
    "world-bench": lambda: made("errata world bench --scale test --out world-bench"),
    "corrections": sheet,
    "last-week": last_week,
    "--key team.key": lambda: made("errata sign --new-key team.key"),
    "--signed-by team.key.pub": lambda: signed("rome-france"),
    "runs/table2-pocket": lambda: run("none", "table2-pocket"),
    "runs/rome": lambda: run("rome", "rome"),
    "runs/mend": lambda: run("mend", "mend"),
    "runs/grace": lambda: run("ft", "grace"),
}
"""What an example may read, and how it comes to be."""

OF_OTHERS = {"last-week", "--signed-by team.key.pub"}
"""Those that are made of what else was laid out."""


def run(editor: str, name: str) -> None:
    made(f"errata eval -e {editor} --data world --limit 2 --out runs/{name} --json")


@pytest.fixture(scope="module", autouse=True)
def pocket_is_there() -> None:
    from errata.world import pocket_path

    try:
        pocket_path()
    except DataError:
        pytest.skip("the pocket model is not in this checkout")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all lines: second moments are counted once."""
    return tmp_path_factory.mktemp("examples") / "cache"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lines read, made for the first that reads it and copied for the others."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def scratch(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lay_out(line: str, shelf: Path) -> None:
    """Put what a line reads into the current folder."""
    reads = re.sub(r"--out \S+", "", line)
    for name, make in PROVIDED.items():
        if not (
            re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w-])", reads.replace("./", ""))
            or f":{name}" in reads
        ):
            continue
        if name in OF_OTHERS:
            make()
            continue
        own = shelf / re.sub(r"\W", "_", name)
        if not own.exists():
            own.mkdir()
            with contextlib.chdir(own):
                make()
        shutil.copytree(own, ".", symlinks=True, dirs_exist_ok=True)


def lines() -> list[Any]:
    assert set(examples()) >= LIKE_OTHERS
    return [
        pytest.param(line, marks=pytest.mark.slow if line in LIKE_OTHERS else ())
        for line in examples()
    ]


@pytest.mark.parametrize("line", lines())
def test_the_examples_of_the_help_run(scratch: Path, shelf: Path, line: str) -> None:
    short = reduced(line)
    if "team.key" in short:
        pytest.importorskip("cryptography")
    lay_out(short, shelf)
    if "--resume" in short:
        first = short.replace(" --resume", "")
        first += "" if "--steps" in first or "world build" not in first else " --steps 2"
        made(first)
        if "world build" in short:
            (Path("my-pocket") / "config.json").unlink()
    elif "--force" in short:
        made(short.replace(" --force", "").replace(" --json", ""))
    code, said = call(short)
    gated = "--fail-under" in line or "--require" in line
    assert code == 0 or (gated and code == 3), f"{short}: {said}"
