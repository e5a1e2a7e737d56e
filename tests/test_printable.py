"""Texts of strangers stay texts: on a terminal, in Markdown, LaTeX, a spreadsheet, JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from errata.cli import _output
from errata.printable import cell, code, markdown, one_line, printable
from errata.reporting.formats import escape

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31mred\u2028\r\nline\x00\t|[a](http://x)`b`=1+1"
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@given(st.text())
@example(EVIL)
def test_nothing_is_left_that_is_obeyed(text: str) -> None:
    assert not OBEYED.search(printable(text))
    for made in (one_line(text), markdown(text), code(text), escape(text)):
        assert not OBEYED.search(made)
        assert len(made.splitlines()) <= 1


@given(st.text(alphabet="abc déß 京1234.,:;()!?–→'\"/&%{}", max_size=30))
def test_plain_texts_stay_as_they_are(text: str) -> None:
    assert printable(text) == one_line(text) == markdown(text) == text


@given(st.text())
@example("```")
def test_inline_code_ends_where_it_should(text: str) -> None:
    made = code(text)
    fence = re.match("`+", made)
    assert fence is not None
    inner = made[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inner)
    assert not re.search(r"(?<!\\)\|", inner)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "=cmd|' /C calc'!A0"])
def test_a_cell_is_no_formula(start: str) -> None:
    made = cell(f"{start}1")
    assert isinstance(made, str)
    assert made.startswith("'")


def test_cells_that_are_texts_or_numbers_stay() -> None:
    assert [cell(value) for value in ("rome", -1.5, None, 3, "")] == ["rome", -1.5, None, 3, ""]
    text = io.StringIO()
    csv.writer(text).writerow([cell('=HYPERLINK("x")'), cell("a,b")])
    assert next(csv.reader(io.StringIO(text.getvalue()))) == ['\'=HYPERLINK("x")', "a,b"]


class Terminal(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


@pytest.mark.parametrize("tty", [True, False])
@pytest.mark.parametrize("kind", ["text", "styled", "table"])
def test_the_console_prints_texts_only(
    tty: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    stream: Any = Terminal(tty)
    console = _output._console(stream)
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    console.print({"text": EVIL, "styled": Text(EVIL, style="bold"), "table": table}[kind])
    made = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())  # what rich says itself
    assert "owned" in made.replace("\n", "").replace(" ", "")
    assert not OBEYED.search(made), ascii(made)


def test_a_message_holds_no_commands(capsys: pytest.CaptureFixture[str]) -> None:
    from errata.errors import DataError

    _output.print_error(DataError(f"bad {EVIL}", EVIL))
    _output.note(EVIL)
    assert not OBEYED.search(capsys.readouterr().err)


def test_json_holds_no_commands_and_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _output.print_json({"text": EVIL})
    made = capsys.readouterr().out
    assert not OBEYED.search(made)
    assert json.loads(made) == {"text": EVIL}
