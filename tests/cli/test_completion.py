"""What a shell and a narrow terminal see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import FACT, FAST, Errata

WIDTH = 60


def complete(words: str, folder: Path | None = None) -> tuple[list[str], list[str]]:
    """Ask for completions as bash does; returns them, and the heavy modules that were imported."""
    code = (
        "import sys, atexit\n"
        "heavy = ('torch', 'transformers', 'peft', 'numpy')\n"
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules], file=sys.stderr))\n"
        "sys.argv = ['errata']\n"
        "from errata.cli.app import main\n"
        "main()\n"
    )
    line = f"errata {words}"
    environment = {
        **os.environ,
        "_ERRATA_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
        "HF_HOME": "/nowhere",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env=environment, cwd=folder,
    )  # fmt: skip
    return done.stdout.split(), done.stderr.strip().splitlines()[-1:]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("edit --editor ro", {"rome"}),
        ("edit --editor memit+", {"memit+blue", "memit+rep"}),
        ("eval --data wo", {"world"}),
        ("verify patch --cases co", {"counterfact"}),
        ("ask po", {"pocket"}),
        ("ls ed", {"editors"}),
        ("ls editors gra", {"grace"}),
        ("comp", {"compose"}),
        ("train ib", {"ibke"}),
        ("doctor po", {"pocket"}),
    ],
)
def test_names_are_completed_without_anything_heavy(words: str, expected: set[str]) -> None:
    found, heavy = complete(words)
    assert expected <= set(found)
    assert all(name.startswith(words.split(" ")[-1]) for name in found)
    assert heavy == ["[]"]


def test_saved_models_near_by_are_completed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}", encoding="utf-8")
    assert complete("edit --model mi", tmp_path)[0] == ["mine"]


def test_sixty_columns_are_enough(
    errata: Errata, model: str, patch: Path, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setattr("errata.cli.demo._editor", _quick)
    commands: list[tuple[str | Path, ...]] = [
        ("edit", "-m", model, *FACT, *FAST),
        ("edit", "-m", model, *FACT, *FAST, "--brief"),
        ("edit", "-m", model, *FACT, *FAST, "--dry-run"),
        ("verify", patch, "--cases", cases),
        ("show", patch),
        ("ask", patch, "--prompt", "The capital of France is"),
        ("ls", "editors"),
        ("ls", "editors", "rome"),
        ("ls", "datasets"),
        ("doctor", model),
        ("demo", "-m", model, "--cases", "1"),
    ]
    own = {"local", "general", "probable", "prob"}  # words of their own
    whole = {
        *own,
        "reliability",
        "generality",
        "locality",
        "average",
        "probability",
        "before",
        "after",
    }
    for words in commands:
        done = errata(*words)
        assert done.code == 0, done.stderr
        tables = [line for line in done.stdout.splitlines() if "─" in line]
        assert all(len(line) <= WIDTH for line in tables), words
        assert not any(line.endswith(" ") for line in done.stdout.splitlines())
        # headings are whole words: nothing that begins like one is cut
        for word in done.stdout.replace(",", " ").replace(".", " ").split():
            cut = [name for name in whole if len(word) > 4 and name.startswith(word)]
            assert not cut or word in whole, (words, word)


def _quick(name: str, *_: object) -> object:
    from errata.editors import get_editor

    rome = {"mom2_adjustment": False, "steps": 2, "contexts": "bare"}
    return get_editor(name, {"none": {}, "ft": {"steps": 2}, "rome": rome}[name])


def test_words_that_come_close_are_named(errata: Errata, model: str) -> None:
    assert "Did you mean 'editors'" in errata("ls", "editrs").stderr
    assert "Value error" not in errata("ls", "editrs").stderr
    assert "Did you mean --prompt?" in errata("edit", "--promt", "x").stderr
    assert "compose" in errata("compse").stderr
    own = ("edit", "-m", model, "--prompt", "The capital of France is", "--target", "Rome", *FAST)
    for subject, said in (
        ("france", "Did you mean 'France'?"),
        ("Frnace", "Did you mean 'France'?"),
        ("Paraguay", "exactly as it stands"),
    ):
        done = errata(*own, "--subject", subject)
        assert (done.code, done.stdout) == (1, "")
        assert said in done.stderr


def test_unicode_forms_are_named(errata: Errata, model: str) -> None:
    composed, decomposed = "C\u00f4te", "Co\u0302te"
    for prompt, subject, said in (
        (decomposed, composed, "the subject is composed (NFC), the prompt decomposed (NFD)"),
        (composed, decomposed, "the subject is decomposed (NFD), the prompt composed (NFC)"),
    ):
        words = ("--prompt", f"The capital of {prompt} is", "--target", "Rome")
        done = errata("edit", "-m", model, *words, "--subject", subject, *FAST)
        assert said in done.stderr


@pytest.mark.parametrize("command", ["edit", "demo"])
def test_ctrl_c_while_starting_says_how_to_go_on(
    errata: Errata, model: str, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("errata.model.loading.load", stop)
    words = {"edit": ("edit", "-m", model, *FACT), "demo": ("demo", "-m", model)}[command]
    done = errata(*words)
    assert (done.code, done.stdout) == (130, "")
    assert "the same command starts again" in done.stderr
