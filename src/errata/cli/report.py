"""`errata report`: tables of comparison from run folders."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import _output
from errata.cli._options import ForceFlag, JsonFlag, expand
from errata.config import did_you_mean
from errata.errors import ConfigError

EXAMPLES = (
    "errata report runs/table2-pocket",
    "errata report runs/rome runs/mend runs/grace --format csv",
    "errata report runs/table2-pocket --out tables",
    "errata report runs/table2-pocket --html report.html",
    "errata report runs/rome --metrics counterfact,texts",
)
_TABLE, _STATISTICS = "Tables", "Statistics"
FORMATS = ("markdown", "latex", "csv")


@dataclass(frozen=True)
class Statistics:
    """What rates are means of, and how their intervals are drawn."""

    f1: Annotated[
        str | None,
        typer.Option(
            "--f1",
            metavar="DATA,…",
            help="Data sets that count for F1; default: all but zsRE.",
            rich_help_panel=_STATISTICS,
        ),
    ] = None
    bootstrap: Annotated[
        int,
        typer.Option(min=0, help="Resamples for intervals.", rich_help_panel=_STATISTICS),
    ] = 1000
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the resampling.", rich_help_panel=_STATISTICS)
    ] = 0


@expand
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, sweep folders, or folders above them."),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="|".join(FORMATS), help="What to print.", rich_help_panel=_TABLE
        ),
    ] = "markdown",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Write all formats and a figure there, and print nothing.",
            rich_help_panel=_TABLE,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write one page with tables, figures and every record; it needs no network.",
            rich_help_panel=_TABLE,
        ),
    ] = None,
    within: Annotated[
        float,
        typer.Option(
            metavar="PERCENT",
            help="Underline what is within so many percent of a column's best value.",
            rich_help_panel=_TABLE,
        ),
    ] = 3.0,
    intervals: Annotated[
        str,
        typer.Option(
            metavar="average|all|none",
            help="Where tables print ±; the CSV and --json have all intervals.",
            rich_help_panel=_TABLE,
        ),
    ] = "average",
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|GROUP,…",
            help="Columns: names (ES, test.prefix) or groups: core, counterfact, texts, wild,"
            " long, beyond, suite, retention, general. Default: all that a data set has.",
            rich_help_panel=_TABLE,
        ),
    ] = None,
    statistics: Statistics = Statistics(),
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Compare finished runs: rows are editors, columns are data sets.

    Evaluations under another regime or top k, or of another model, stand in a table of their own.
    """
    if form not in FORMATS:
        raise ConfigError(f"unknown format {form!r}", did_you_mean(form, FORMATS))
    from errata import reporting
    from errata.reporting import figure
    from errata.reporting.collect import told

    with _output.status("reading runs"):
        made = reporting.report(
            runs, within=within, intervals=intervals, metrics=_words(metrics),
            f1=_words(statistics.f1), bootstrap=statistics.bootstrap, seed=statistics.seed,
        )  # fmt: skip
        written = [] if out is None else made.save(out, force=force)
    if html is not None:
        written.append(made.save_page(html, force=force))
    if json:
        _output.print_json({**made.document(), "files": written})
        return
    if made.missing:
        _output.note(f"missing: {told(made.missing)}")
    console = _output.out()
    if html is not None:
        console.print(f"{html}: open it in a browser", soft_wrap=True)
    elif out is None:
        sys.stdout.write(made.text(form, _output.asked_width()))
    if out is None:
        return
    if not figure.available():
        _output.note("no figure: it needs matplotlib, pip install 'errata[report]'")
    names = ", ".join(path.name for path in written if path.parent == out)
    console.print(f"{out}/: {names}", soft_wrap=True)


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]
