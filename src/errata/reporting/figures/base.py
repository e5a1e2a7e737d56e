"""What figures share: numbers, colours that everybody can tell apart, and files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.errors import MissingExtra, RunError
from errata.reporting.collect import Cell
from errata.store.files import write_together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A",
)  # fmt: skip
"""Okabe and Ito's palette: told apart with every colour vision, and by their grey in print."""

MARKERS = "os^Dv*P<>X"
HATCHES = ("", "//", "..", "xx", "\\\\", "++")
"""Beside the colour, for print."""

METRICS = ("reliability", "generality", "locality")


@dataclass(frozen=True)
class Numbers:
    """Further numbers of a figure, in a file of their own.

    Attributes:
        name: Behind the figure's in the name of the file.
        head: Columns.
        rows: Lines.
    """

    name: str
    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        name: Of its files.
        head: Columns of its numbers.
        rows: Its numbers: rates from 0 to 1.
        paint: Draws them on an empty figure.
        size: In inches.
        more: Further numbers.
    """

    name: str
    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    paint: Callable[[Figure], None]
    size: tuple[float, float] = (6.4, 4.2)
    more: tuple[Numbers, ...] = ()

    def csv(self) -> str:
        """Return its numbers."""
        return _csv(self.head, self.rows)

    def tables(self) -> dict[str, str]:
        """Return all its numbers as CSV, by the name of the file."""
        own = {f"{self.name}.csv": self.csv()}
        return own | {f"{self.name}-{n.name}.csv": _csv(n.head, n.rows) for n in self.more}

    def pictures(self) -> dict[str, bytes]:
        """Return PNG and SVG; the same runs give the same files.

        Raises:
            MissingExtra: If matplotlib is not installed.
        """
        try:
            import matplotlib as mpl
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingExtra("figures", "matplotlib", "report") from None
        with mpl.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none"}):
            made = Figure(figsize=self.size, layout="constrained")
            FigureCanvasAgg(made)
            self.paint(made)
            found = {}
            for ending, metadata in (("png", {}), ("svg", {"Date": None})):
                data = io.BytesIO()
                made.savefig(data, format=ending, dpi=200, metadata=metadata)
                found[ending] = data.getvalue()
        return found


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([f"{x:.4f}" if isinstance(x, float) else x for x in row])
    return text.getvalue()


def save(drawing: Drawing, out: Path, *, force: bool = False) -> list[Path]:
    """Write a figure as NAME.png, NAME.svg, NAME.csv, and further numbers as NAME-….csv.

    Raises:
        RunError: If they are there already and may not be replaced.
        MissingExtra: If matplotlib is not installed.
    """
    files = {out / name: text.encode() for name, text in drawing.tables().items()}
    pictures = [out / f"{drawing.name}.{ending}" for ending in ("png", "svg")]
    there = [path for path in (*files, *pictures) if path.exists()]
    if there and not force:
        raise RunError(f"{there[0]} is there already", "Replace it with --force.")
    files |= {out / f"{drawing.name}.{e}": data for e, data in drawing.pictures().items()}
    out.mkdir(parents=True, exist_ok=True)
    write_together(files)
    return sorted(files)


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    return sum(values) / len(values)


def needed(cell: Cell, field: str, value: Any, command: str) -> Any:
    """Return a value that a figure cannot do without.

    Raises:
        RunError: If it is None; names the run, the field and what makes it.
    """
    if value is None:
        raise RunError(f"{cell.run.path} lacks {field}", command)
    return value


def settings_of(cell: Cell) -> Mapping[str, Any]:
    """Return the editor's settings of a run."""
    found = cell.run.config["editor"].get("config")
    return found if isinstance(found, dict) else {}


def heat(axes: Any, values: Sequence[Sequence[float | None]]) -> None:
    """Draw a heat map with its numbers in percent, black on light and white on dark."""
    import numpy as np

    grid = np.array([[np.nan if v is None else 100 * v for v in row] for row in values])
    axes.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (y, x), value in np.ndenumerate(grid):
        if not np.isnan(value):
            axes.text(
                x, y, f"{value:.0f}", ha="center", va="center", fontsize=8,
                color="white" if value < 55 else "black",
            )  # fmt: skip
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=8)
