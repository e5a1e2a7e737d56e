"""What an edit prints fits 80 columns, whatever the editor."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from errata.cli import _output
from errata.errors import ConfigError
from tests.cli.conftest import FACT, Errata

EDITORS = {
    "rome": ("mom2_adjustment=false", "steps=2", "contexts=bare"),
    "r_rome": ("mom2_adjustment=false", "steps=2", "contexts=bare"),
    "ft": ("steps=2", "layers=1"),
    "grace": ("steps=2",),
    "lora": ("steps=2",),
}


@pytest.mark.parametrize("editor", EDITORS)
def test_an_edit_fits(
    errata: Errata, model: str, here: Path, monkeypatch: pytest.MonkeyPatch, editor: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    settings = [word for one in EDITORS[editor] for word in ("--set", one)]
    done = errata("edit", "-m", model, "-e", editor, *FACT, *settings)
    assert done.code == 0, done.stderr
    for line in done.stdout.splitlines():
        # a folder's name, as long as it is, is not torn apart
        assert len(line) <= 80 or model in line, line


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    encoding = "utf-8"  # pyright: ignore[reportAssignmentType]

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_sentences_are_wrapped_on_a_terminal_and_whole_in_a_log(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    for name, value in (("COLUMNS", "80"), ("TERM", "xterm"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    told, said = stream(), stream()
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(sys, "stdout", said)
    sentence, command = "what is said of it " * 8, "errata edit " + "--set steps=2 " * 9
    _output.note(sentence)
    _output.print_error(ConfigError(sentence, command))
    files = ["patch.json", "patch.safetensors"]
    _output.saved("tokyo", files, 12_000, " Undo: nothing was written to the model.")
    monkeypatch.undo()
    *notes, hint = re.sub(r"\x1b\[\d*m", "", told.getvalue()).splitlines()
    assert command.strip() in hint  # one line to copy
    lines = [*notes, *said.getvalue().splitlines()]
    if stream is Terminal:
        assert len(lines) == 2 + 2 + 2
        assert all(len(line) <= 80 for line in lines)
    else:
        assert len(lines) == 3
