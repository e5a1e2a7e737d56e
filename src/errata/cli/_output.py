"""What the commands print: the result on stdout, everything else on stderr.

Colour appears on terminals only and never with `NO_COLOR`. Progress is a bar on a terminal and a
few lines in a log.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from errata import progress as _progress
from errata.printable import printable
from errata.store.words import counted as counted
from errata.store.words import size as size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from errata.errors import ErrataError

Progress = _progress.Step
LOG_WIDTH = 100  # columns when the output is not a terminal
NARROW = 80  # columns below which tables are set more closely and leave out what matters least
NARROWEST = 40  # columns that are assumed at least


def _columns() -> int | None:
    told = os.environ.get("COLUMNS", "")
    return int(told) if told.isdecimal() and int(told) > 0 else None


def asked_width() -> int | None:
    """Return the width that output has to fit: the terminal's, or COLUMNS; None if it has none."""
    if (told := _columns()) is not None:
        return told
    return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else None


class _Trimmed:
    """A stream without blanks at the ends of lines, which tables pad their last column with.

    Args:
        stream: Where it writes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a whole number of lines, as the console does."""
        return self._stream.write(re.sub(r"[ \t]+(?=\n)", "", printable(text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    if stream.isatty():
        return _safe()(file=stream, highlight=False, markup=False, emoji=False)
    width = max(_columns() or LOG_WIDTH, NARROWEST)
    trimmed: Any = _Trimmed(stream)
    return Console(file=trimmed, width=width, highlight=False, markup=False, emoji=False)


@cache
def _safe() -> type[Console]:
    """Return a console that prints texts without what a terminal would obey.

    What rich itself tells the terminal comes apart from texts, as control segments and styles.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Safe(Console):
        """All that is printed goes through `render`, whatever it was made of."""

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            """Yield segments whose texts are only texts."""
            for segment in super().render(renderable, options):
                if segment.control or segment.text.isprintable():
                    yield segment
                else:
                    yield Segment(printable(segment.text), segment.style)

    return Safe


def narrow(console: Console) -> bool:
    """Return whether tables have to do with few columns."""
    return console.width < NARROW


def out() -> Console:
    """Return a console on stdout, for the result."""
    return _console(sys.stdout)


def err() -> Console:
    """Return a console on stderr, for progress and messages."""
    return _console(sys.stderr)


def examples(lines: Sequence[str]) -> str:
    """Return the end of a command's help: lines to copy."""
    shown = (line.replace("[", "\\[") for line in lines)
    return "[bold]Examples[/bold]\n" + "\n".join(shown)


def note(text: str) -> None:
    """Print a sentence on stderr: one line of a log, wrapped between words on a terminal."""
    from rich.text import Text

    console = err()
    console.print(Text(text, style="dim"), soft_wrap=not console.is_terminal)


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: NaN and infinity become null, paths become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command with `--json`."""
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    text = json.dumps(_plain(document), ensure_ascii=ascii_only, indent=2, allow_nan=False)
    # JSON escapes what is below a space; terminals obey these as well
    text = re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)
    sys.stdout.write(text + "\n")


def print_error(error: ErrataError) -> None:
    """Print a user's mistake on stderr: what happened, then what to type next.

    Sentences are wrapped between words on a terminal; what does not end as one may be a command to
    copy, and stays one line.
    """
    from rich.text import Text

    console = err()
    message = Text.assemble(("error: ", "bold red"), error.message)
    console.print(message, soft_wrap=not console.is_terminal)
    if error.hint:
        whole = not (console.is_terminal and error.hint.endswith("."))
        console.print(Text(error.hint, style="cyan"), soft_wrap=whole)


@contextmanager
def status(label: str) -> Iterator[None]:
    """Show that something without a length goes on: a spinner on a terminal, else lines."""
    with _progress.listening(note), _progress.waiting(label):
        yield


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """Show how far work has come: yields a function to call with (done, total) and maybe a text.

    A bar on a terminal; otherwise lines on stderr, also of what the library does inside. Until
    something can be counted, that the work goes on.
    """
    with (
        _progress.listening(note),
        _progress.waiting(label),
        _progress.watched(label) as step,
    ):
        yield step


def table(*columns: str, title: str | None = None, right: Sequence[int] = ()) -> Table:
    """Return an empty table without lines around it.

    Args:
        columns: Headings.
        title: Printed above, if any.
        right: Numbers of the columns aligned to the right.
    """
    from rich.box import SIMPLE
    from rich.table import Table

    made = Table(
        box=SIMPLE, title=title, title_justify="left", title_style="bold", pad_edge=False,
        collapse_padding=narrow(out()),
    )  # fmt: skip
    for number, name in enumerate(columns):
        if number in right:  # a number in two lines cannot be read
            made.add_column(name, justify="right", no_wrap=True)
        else:
            made.add_column(name, overflow="fold")
    return made


def rate(value: float | None) -> str:
    """Format a rate for a table; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}".replace("-0.000", "0.000")


def seconds(value: float) -> str:
    """Format a duration."""
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {value % 60:.0f} s"


def folder_size(folder: Path) -> tuple[list[str], int]:
    """Return the names of the files in a folder, and their bytes."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [path.name for path in files], sum(path.stat().st_size for path in files)


def saved(folder: Path | str, files: Sequence[str], count: int, more: str = "") -> None:
    """Say what was written: one line of a log, wrapped between words on a terminal.

    Args:
        folder: Where.
        files: Names of the files there.
        count: Bytes of them.
        more: What is said behind it.
    """
    console = out()
    told = f"Saved {folder}/ ({', '.join(files)}; {size(count)}).{more}"
    console.print(told, soft_wrap=not console.is_terminal)


def fresh(folder: Path) -> Path:
    """Return the folder, or the first of `folder-2`, `folder-3` … that does not exist."""
    chosen, number = folder, 2
    while chosen.exists():
        chosen, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return chosen


def write_json(path: Path, document: Any) -> None:
    """Write JSON values to a file, whole or not at all."""
    from errata.store.files import write_atomically

    write_atomically(path, (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode())


def check_free(folder: Path, marker: str, force: bool) -> None:
    """Refuse an output folder before the work rather than after it.

    Args:
        folder: Where the result is to be written.
        marker: The file that says that a result is already there.
        force: Whether it may be replaced.

    Raises:
        RunError: If it is taken, is a file, or cannot be written.
    """
    from errata.errors import RunError

    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; expected a folder", "Choose another --out.")
    if (folder / marker).exists() and not force:
        raise RunError(f"{folder} already holds {marker}", "Choose another --out, or add --force.")
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(f"cannot write to {folder}", "Choose a folder you may write to.")
