"""What the commands print: the result on stdout, everything else on stderr.

Colour appears on terminals only and never with `NO_COLOR`. Progress is a bar on a terminal and a
few lines in a log.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from errata.store.words import counted as counted
from errata.store.words import size as size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from errata.errors import ErrataError

Progress = Callable[..., None]
"""Called with (done, total) and, if there is something to say, a short text."""

LOG_SECONDS = 10.0  # time between two lines of progress in a log
LOG_WIDTH = 100  # columns when the output is not a terminal
NARROW = 80  # columns below which tables leave out what matters least
NARROWEST = 40  # columns that are assumed at least


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    width = None if stream.isatty() else _log_width()
    file: Any = stream if stream.isatty() else _Trimmed(stream)
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def _log_width() -> int:
    """Return the columns of output that is no terminal: `COLUMNS` if it is set, else 100."""
    given = os.environ.get("COLUMNS", "")
    return max(int(given), NARROWEST) if given.isdecimal() and int(given) else LOG_WIDTH


class _Trimmed:
    """A stream that drops the blanks with which tables fill their lines.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text without blanks at the ends of lines."""
        return self._stream.write("\n".join(line.rstrip(" ") for line in text.split("\n")))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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
    """Print one line on stderr."""
    from rich.text import Text

    err().print(Text(text, style="dim"), soft_wrap=True)


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
    sys.stdout.write(text + "\n")


def print_error(error: ErrataError) -> None:
    """Print a user's mistake on stderr: what happened, then what to type next."""
    from rich.text import Text

    text = Text.assemble(("error: ", "bold red"), error.message)
    if error.hint:
        text.append(f"\n{error.hint}", style="cyan")
    err().print(text, soft_wrap=True)


@contextmanager
def status(label: str) -> Iterator[None]:
    """Show a spinner on a terminal while something without a length goes on."""
    if not sys.stderr.isatty():
        yield
        return
    with err().status(label):
        yield


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """Show how far work has come: yields a function to call with (done, total) and maybe a text.

    A bar on a terminal, drawn from the first call on, as preparations draw their own before it;
    otherwise a line when it takes long, and then every few seconds.
    """
    if not sys.stderr.isatty():
        yield _LogProgress(label)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bar(*columns, TextColumn("{task.fields[text]}"), console=err(), transient=True)
    task = bar.add_task(label, total=None, text="")
    begun = False

    def step(done: int, total: int, text: str = "") -> None:
        nonlocal begun
        if not begun:  # what was done before, by an earlier run, says nothing about speed
            bar.start()
            bar.reset(task, completed=max(done - 1, 0), total=total)
            begun = True
        bar.update(task, completed=done, total=total, text=text)

    try:
        yield step
    finally:
        bar.stop()


class _LogProgress:
    """Progress for logs: at most one line every few seconds.

    Args:
        label: What is being done.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.started = self.last = time.monotonic()
        self.first: int | None = None

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Report `done` of `total`."""
        now = time.monotonic()
        if self.first is None:  # what an earlier run did says nothing about speed
            self.first = max(done - 1, 0)
        if done >= total or now - self.last < LOG_SECONDS:
            return
        self.last = now
        left = (now - self.started) / max(done - self.first, 1) * (total - done)
        more = f"; {text}" if text else ""
        note(f"{self.label}: {done}/{total}, about {left:.0f} s left{more}")


def table(*columns: str, title: str | None = None, right: Sequence[int] = ()) -> Table:
    """Return an empty table without lines around it.

    Args:
        columns: Headings.
        title: Printed above, if any.
        right: Numbers of the columns aligned to the right.
    """
    from rich.box import SIMPLE
    from rich.table import Table

    made = Table(box=SIMPLE, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for number, name in enumerate(columns):
        made.add_column(name, justify="right" if number in right else "left", overflow="fold")
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


def fresh(folder: Path) -> Path:
    """Return the folder, or the first of `folder-2`, `folder-3` … that does not exist."""
    chosen, number = folder, 2
    while chosen.exists():
        chosen, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return chosen


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
