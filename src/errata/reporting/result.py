"""A report: comparisons, what is missing, and the files they are written to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errata.config import did_you_mean
from errata.errors import ConfigError, RunError
from errata.reporting import formats
from errata.reporting.collect import Cell, Collection, Missing, told
from errata.reporting.columns import chosen
from errata.reporting.tables import Comparison, compare
from errata.store.files import write_atomically
from errata.store.folders import write_folder
from errata.store.records import counting

FORMATS = ("markdown", "latex", "csv")
FILES = {"markdown": "table.md", "latex": "table.tex", "csv": "table.csv"}
PAGE = "report.html"
FIGURE = "generality-locality"


@dataclass(frozen=True)
class Options:
    """How tables are made; see `errata.report`."""

    within: float = 3.0
    f1: tuple[str, ...] | None = None
    intervals: str = "average"
    bootstrap: int = 1000
    seed: int = 0
    metrics: tuple[str, ...] | None = None

    @classmethod
    def checked(
        cls, within: float, f1: Sequence[str] | None, intervals: str, bootstrap: int, seed: int,
        metrics: Sequence[str] | None = None,
    ) -> Options:  # fmt: skip
        """Check the options and put them together.

        Raises:
            ConfigError: If one is out of range.
        """
        if not 0 <= within < 100:
            raise ConfigError(f"within is {within:g}; expected a percentage from 0 to below 100")
        if intervals not in formats.INTERVALS:
            raise ConfigError(
                f"unknown intervals {intervals!r}", did_you_mean(intervals, formats.INTERVALS)
            )
        if bootstrap < 0:
            raise ConfigError(f"bootstrap is {bootstrap}; expected 0 or more")
        counted = None if f1 is None else tuple(f1)
        wanted = None if metrics is None else tuple(metrics)
        return cls(within, counted, intervals, bootstrap, seed, wanted)


@dataclass(frozen=True, repr=False)
class Report:
    """Tables of comparison.

    Attributes:
        comparisons: One per model and protocol.
        missing: Cells that are planned and not finished.
        options: How the tables are made.
        cells: What the tables were made of.
    """

    comparisons: tuple[Comparison, ...]
    missing: tuple[Missing, ...]
    options: Options
    cells: tuple[Cell, ...] = ()

    @property
    def remarks(self) -> list[str]:
        """What stands under all tables."""
        return [f"Missing: {told(self.missing)}"] if self.missing else []

    def text(self, form: str, width: int | None = None) -> str:
        """Return all tables in one format.

        Args:
            form: `markdown`, `latex` or `csv`.
            width: Fold Markdown tables that are wider; None leaves them whole.

        Raises:
            ConfigError: If the format is unknown.
        """
        own = self.options
        if form == "markdown":
            return formats.markdown(
                self.comparisons, self.remarks, own.within, own.intervals, width
            )
        if form == "latex":
            return formats.latex(self.comparisons, self.remarks, own.within, own.intervals)
        if form == "csv":
            return formats.as_csv(self.comparisons)
        raise ConfigError(f"unknown format {form!r}", did_you_mean(form, FORMATS))

    def page(self) -> str:
        """Return one HTML page that needs no network: tables, figures and every record."""
        from errata.reporting.page import html

        with counting([cell.run.path for cell in self.cells]):
            return html(self.comparisons, self.cells, self.remarks, self.options.within)

    def document(self) -> dict[str, Any]:
        """Return everything as JSON values; rates in percent."""
        return {
            "tables": [
                {
                    "model": table.model,
                    "regime": table.regime,
                    "batch": table.batch,
                    "top_k": table.top_k,
                    "suite": table.suite or None,
                    "data": list(table.data),
                    "f1_over": list(table.counted),
                    "rows": [{"row": row.label, "editor": row.editor} for row in table.rows],
                    "notes": list(table.notes),
                    "numbers": [
                        {k: v for k, v in entry.items() if k not in _SHARED}
                        for entry in formats.entries([table])
                    ],
                }
                for table in self.comparisons
            ],
            "missing": [{"name": entry.name, "why": entry.why} for entry in self.missing],
            "within": self.options.within,
        }

    def save(self, out: str | Path, *, force: bool = False) -> list[Path]:
        """Write all formats, and the figure where matplotlib is installed.

        Args:
            out: The folder; created if missing.
            force: Replace the files of an earlier report.

        Returns:
            What was written.

        Raises:
            RunError: If there is a report already and `force` is not given.
            ErrataError: If the folder cannot be written.
        """
        from errata.reporting import figure

        out = Path(out)
        if out.exists() and not out.is_dir():
            raise RunError(f"{out} is a file; expected a folder", "Choose another --out.")
        there = [name for name in FILES.values() if (out / name).exists()]
        if there and not force:
            raise RunError(
                f"{out} already holds {there[0]}", "Choose another --out, or add --force."
            )
        files = {FILES[form]: self.text(form).encode() for form in FORMATS}
        files[PAGE] = self.page().encode()
        for table, name in zip(self.comparisons, self._figures(), strict=True):
            for ending, data in figure.drawn(table).items():
                files[f"{name}.{ending}"] = data
        write_folder(out, files, force=force, what="a report")
        return [out / name for name in files]

    def save_page(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the page of `page` into a file.

        Raises:
            RunError: If there is something already and `force` is not given.
            ErrataError: If it cannot be written.
        """
        path = Path(path)
        if path.is_dir() or (path.exists() and not force):
            what = "is a folder" if path.is_dir() else "is already there"
            raise RunError(f"{path} {what}", "Choose another file, or add --force to replace one.")
        write_atomically(path, self.page().encode())
        return path

    def _figures(self) -> list[str]:
        many = len(self.comparisons) > 1
        return [f"{FIGURE}-{n}" if many else FIGURE for n, _ in enumerate(self.comparisons, 1)]

    def __repr__(self) -> str:
        return self.text("markdown")

    def _repr_markdown_(self) -> str:
        return self.text("markdown")


_SHARED = ("model", "regime", "batch", "top_k")


def make(found: Collection, options: Options) -> Report:
    """Make the tables of what was found.

    Raises:
        ConfigError: If F1 is to count a data set that is not there.
    """
    known = {name for cell in found.cells for name in (cell.data, cell.data_name)}
    for name in options.f1 or ():
        if name not in known:
            raise ConfigError(f"F1: no data set {name!r} here", did_you_mean(name, known))
    tables = compare(found, options.f1, options.bootstrap, options.seed)
    there = {m for t in tables for row in t.rows for own in row.scores.values() for m in own}
    shown = chosen(options.metrics, there)
    tables = [replace(table, chosen=shown) for table in tables]
    return Report(tuple(tables), found.missing, options, found.cells)
