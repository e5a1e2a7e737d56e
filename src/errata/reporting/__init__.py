"""Tables of comparison from run folders: rows are editors, columns are data sets.

```
collect   run and sweep folders -> cells (one editor, model, data set and seed), and what is missing
columns   metrics as columns: names, groups, units
scores    cells -> rates with intervals, F1, costs
tables    scores -> tables with marks
formats   tables -> Markdown, LaTeX, CSV
figure    generality against locality (matplotlib)
```
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from errata.arguments import path_of, several

if TYPE_CHECKING:
    from errata.reporting.result import Report

__all__ = ["report"]


def report(
    folders: str | Path | Iterable[str | Path],
    out: str | Path | None = None,
    *,
    within: float = 3.0,
    f1: Sequence[str] | None = None,
    intervals: str = "average",
    metrics: Sequence[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    force: bool = False,
) -> Report:
    """Make the tables of everything that is finished in run folders and sweep folders.

    Args:
        folders: Run folders, sweep folders, or folders above them.
        out: Write `table.md`, `table.tex`, `table.csv` and, where matplotlib is installed, the
            figure into this folder.
        within: Underline what is within so many percent of the best value of its column.
        f1: Data sets that count for F1, by their names in the table or in `--data`; None: all
            but zsRE.
        intervals: Where the Markdown and LaTeX tables print `±`: `average`, `all` or `none`.
        metrics: What is shown, by names (`ES`, `test.prefix`) or groups (`core`, `counterfact`,
            `texts`, `wild`, `long`, `beyond`, `suite`, `retention`, `general`); None: all that a
            data set has.
        bootstrap: Resamples for the intervals; 0 for none.
        seed: Seed of the resampling.
        force: Replace the files of an earlier report.

    Returns:
        The tables; its text is Markdown.

    Raises:
        ConfigError: If a name or value is wrong.
        RunError: If there is no finished evaluation, two runs are of the same cell, records are
            damaged, or `out` holds a report already.
    """
    from errata.reporting.collect import collect
    from errata.reporting.result import Options, make

    one = isinstance(folders, str | Path)
    given = [folders] if one else several(folders, "what is to be reported", "run folders")
    options = Options.checked(within, f1, intervals, bootstrap, seed, metrics)
    made = make(collect([path_of(folder, "a run folder") for folder in given]), options)
    if out is not None:
        made.save(out, force=force)
    return made
