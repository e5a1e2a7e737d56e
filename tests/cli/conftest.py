"""A tiny random model on disk, and a way to call the command line in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.cli.app import app
from tests.tiny_models import TINY, tiny_tokenizer

# Settings with which ROME takes milliseconds on a random model and needs no text.
FAST = ("--set", "mom2_adjustment=false", "--set", "steps=2", "--set", "contexts=bare")
FACT = ("--prompt", "The capital of France is", "--target", "Rome", "--subject", "France")


class Outcome:
    """What one command printed and how it ended."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        assert self.code in (0, 3), self.stderr
        return json.loads(self.stdout)


Errata = Callable[..., Outcome]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    TINY["qwen3"]().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with caches elsewhere."""
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COLUMNS", raising=False)  # tables have the width of a log
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture(scope="session")
def loaded() -> dict[str, Any]:
    """Models that tests have loaded; a command leaves them bit for bit as they were."""
    return {}


@pytest.fixture
def errata(
    here: Path, model: str, loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Errata:
    import errata.model.loading

    load = errata.model.loading.load

    def load_once(name: str, ready: Callable[[], None] | None = None, **options: Any) -> Any:
        if name != model or any(options.values()):
            return load(name, ready=ready, **options)
        if name not in loaded:
            loaded[name] = load(name, ready=ready, **options)
        elif ready is not None:
            ready()
        return loaded[name]

    monkeypatch.setattr("errata.model.loading.load", load_once)

    def call(*words: str | Path) -> Outcome:
        result = CliRunner().invoke(app, [str(word) for word in words], prog_name="errata")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture(scope="session")
def made(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One edit of the tiny model."""
    folder = tmp_path_factory.mktemp("made") / "patch"
    words = ["edit", "-m", model, *FACT, *FAST, "--out", str(folder)]
    result = CliRunner().invoke(app, words, prog_name="errata")
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def patch(here: Path, made: Path) -> Path:
    """A copy of that edit's folder, to read or to damage."""
    return Path(shutil.copytree(made, here / "patch"))


@pytest.fixture
def cases(here: Path) -> Path:
    """Three cases in errata's own format, in a file."""
    path = here / "cases.jsonl"
    lines = []
    for number, (country, city) in enumerate(
        (("France", "Rome"), ("Italy", "Paris"), ("Berlin", "Rome"))
    ):
        prompt = f"The capital of {country} is"
        edit = {"prompt": prompt, "target": city, "subject": country}
        probes = [
            {"prompt": f"{country}: its capital is", "target": city, "kind": "generality"},
            {"prompt": "The river flows through the", "target": "town", "kind": "locality"},
        ]
        lines.append(json.dumps({"id": str(number), "edits": [edit], "probes": probes}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
