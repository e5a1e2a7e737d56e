"""A report as one HTML page that needs no network: tables, figures, and every record to look at.

```
 comparisons ──▶ tables.html-rows (escaped here)      figure.svg     ┐
 cells ──▶ records.of: per data set and case, the                    ├─▶ page.html(...) one file
           questions, and the answer of every row ──▶ JSON ──▶ page.js┘
```

Names, questions and answers are a stranger's. Here they go through `html.escape`; in the script
they are only ever set as text. The page's own policy forbids it to load or send anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources

from errata import __version__
from errata.printable import one_line
from errata.reporting import formats
from errata.reporting.collect import Cell
from errata.reporting.columns import column_of
from errata.reporting.page import figure, records
from errata.reporting.scores import Score
from errata.reporting.tables import DIGITS, Comparison, Mark, Row

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def html(
    tables: Sequence[Comparison], cells: Sequence[Cell], remarks: Sequence[str], within: float
) -> str:
    """Return the page of a report.

    Args:
        tables: The comparisons.
        cells: What they were made of: their records can be browsed.
        remarks: What stands under all tables.
        within: Percent of the best value that is underlined.
    """
    parts = [_comparison(n, table, within) for n, table in enumerate(tables)]
    browsed = [records.browsed(table, cells) for table in tables]
    models = ", ".join(dict.fromkeys(table.model for table in tables))
    notes = "".join(f"<p class=note>{text(remark)}.</p>" for remark in remarks)
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{text(models)} · errata</title><style>{_own('page.css')}</style></head><body>"
        f"<header><h1>Knowledge edits compared</h1><p>{text(models)}</p></header>"
        f"<main>{''.join(parts)}{notes}</main>"
        f"<footer>errata {text(__version__)} · errata report --html</footer>"
        f'<script type="application/json" id="records">{_json(browsed)}</script>'
        f"<script>{_own('page.js')}</script></body></html>\n"
    )


def text(value: object) -> str:
    """Return anything as text of a page: in one line, and nothing of it is markup."""
    return escape(one_line(str(value)), quote=True)


def _own(name: str) -> str:
    return resources.files("errata.reporting.page").joinpath(name).read_text("utf-8")


def _json(value: object) -> str:
    """Return JSON that may stand in a page: no sign in it can end the script, or begin a tag."""
    made = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        made = made.replace(sign, f"\\u{ord(sign):04x}")
    return made


# ---------------------------------------------------------------------- tables


def _comparison(number: int, table: Comparison, within: float) -> str:
    told = " ".join([*formats.caption(table, within, "none"), *_intervals(table)])
    notes = "".join(f"<p class=note>Note: {text(note)}.</p>" for note in table.notes)
    return (
        f'<section id="table-{number}"><h2>{text(table.title)}</h2>'
        f'<div class=wide><table class="sortable">{_head(table)}'
        f"<tbody>{''.join(_rows(table, within))}</tbody></table></div>"
        f"<p class=caption>{text(told)}</p>{notes}{figure.svg(table)}"
        f'<div class=browser data-table="{number}"></div></section>'
    )


def _intervals(table: Comparison) -> list[str]:
    shown = [s for row in table.rows for own in row.scores.values() for s in own.values()]
    there = any(score.interval is not None for score in shown)
    return ["Small: the 95 % interval of a bootstrap over the cases."] if there else []


def _head(table: Comparison) -> str:
    groups, titles = ['<th rowspan=2 class=label tabindex=0 scope="col">editor</th>'], []
    for data in table.data:
        metrics = table.metrics(data)
        if not metrics:
            continue
        groups.append(f'<th colspan={1 + len(metrics)} class=group scope="col">{text(data)}</th>')
        titles.append("<th tabindex=0>n</th>")
        titles += [f"<th tabindex=0>{text(column_of(m).title)}</th>" for m in metrics]
    groups.append('<th colspan=2 class=group scope="col">per edit</th>')
    titles += ["<th tabindex=0>s</th>", "<th tabindex=0>bytes</th>"]
    return f"<thead><tr>{''.join(groups)}</tr><tr>{''.join(titles)}</tr></thead>"


def _rows(table: Comparison, within: float) -> list[str]:
    columns: list[list[str]] = []
    for data in table.data:
        metrics = table.metrics(data)
        if metrics:
            columns.append([_count(row.cases(data)) for row in table.rows])
        for metric in metrics:
            scores = table.column(data, metric)
            marks = table.marks(scores, within, metric)
            columns.append([_rate(s, m, metric) for s, m in zip(scores, marks, strict=True)])
    return [
        f'<tr><th class=label scope="row">{text(row.label)}</th>'
        f"{''.join(column[n] for column in columns)}{_cost(row)}</tr>"
        for n, row in enumerate(table.rows)
    ]


def _count(cases: int | None) -> str:
    return _cell(cases, formats.NONE if cases is None else str(cases), "n")


def _rate(score: Score | None, mark: Mark, metric: str) -> str:
    if score is None:
        return _cell(None, formats.NONE)
    factor = column_of(metric).factor
    shown = f"{factor * score.value:.{DIGITS}f}"
    interval = score.interval
    if interval is not None:
        low, high = (f"{factor * bound:.{DIGITS}f}" for bound in interval)
        shown += f" <small>{low}–{high}</small>"
    return _cell(factor * score.value, shown, mark)


def _cost(row: Row) -> str:
    seconds, size = row.cost.seconds_per_edit, row.cost.bytes_per_edit
    return _cell(seconds, formats.duration(seconds)) + _cell(size, formats.size(size))


def _cell(value: float | None, shown: str, kind: str = "") -> str:
    """Return a cell; `shown` is markup made here."""
    sort = "" if value is None else f' data-sort="{value:.10g}"'
    return f"<td{f' class={kind}' if kind else ''}{sort}>{shown}</td>"
