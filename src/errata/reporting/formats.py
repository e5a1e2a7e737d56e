"""Comparisons as Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence

from errata.printable import cell, one_line
from errata.printable import markdown as markdown_text
from errata.reporting.columns import column_of, legend
from errata.reporting.scores import Score
from errata.reporting.tables import DIGITS, Comparison, Mark, Row

NONE = "–"
INTERVALS = ("average", "all", "none")
FIELDS = (
    "model", "regime", "batch", "top_k", "row", "editor", "data", "metric", "unit", "value", "low",
    "high", "cases", "seeds",
)  # fmt: skip
"""Columns of the CSV."""

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "[": "{[}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "–": "--", "±": r"$\pm$", "×": r"$\times$", "β": r"$\beta$",
}  # fmt: skip


def duration(seconds: float | None) -> str:
    """Format the seconds of an edit to two significant digits."""
    if seconds is None:
        return NONE
    return f"{seconds:.2g}" if 0 < seconds < 10 else f"{seconds:.0f}"


def size(count: float | None) -> str:
    """Format bytes; 1 KB is 1024 bytes."""
    if count is None:
        return NONE
    for unit in ("B", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"


def caption(table: Comparison, within: float, intervals: str) -> list[str]:
    """Return the sentences under a table."""
    seeds = sorted({seed for row in table.rows for own in row.seeds.values() for seed in own})
    resampled = any(
        len(own.samples) for row in table.rows for s in row.scores.values() for own in s.values()
    )
    told = ["Rates in percent."]
    if len(seeds) > 1:
        told[0] = f"Rates in percent, means over seeds {', '.join(map(str, seeds))}."
    if resampled and intervals != "none":
        over = "seeds, then over the cases of each" if len(seeds) > 1 else "the cases"
        told.append(f"±: half of the 95 % interval of a bootstrap over {over}.")
    told.append(f"n: cases{', over all seeds' if len(seeds) > 1 else ''}.")
    told += legend(metric for _, metric in table.columns())
    told.append(
        f"Bold: best of a column; underlined: at least {100 - within:g} % of the best. "
        "The unedited model is not compared."
    )
    told.append("s, bytes: wall time of an edit (edits run side by side), and its patch.")
    return told


def _shown(
    own: Score | None, mark: Mark, error: bool, style: Callable[[str, Mark], str], sign: str,
    factor: float = 100.0,
) -> str:  # fmt: skip
    if own is None:
        return NONE
    text = style(f"{factor * own.value:.{DIGITS}f}", mark)
    half = own.half_width if error else None
    return text if half is None else f"{text} {sign} {factor * half:.{DIGITS}f}"


def _body(
    table: Comparison, within: float, intervals: str, style: Callable[[str, Mark], str], sign: str
) -> Iterator[list[str]]:
    """Yield the cells of every row: label, for each data set n and rates, seconds, bytes."""
    columns: list[list[str]] = []
    for data in table.data:
        metrics = table.metrics(data)
        if metrics:
            counts = [row.cases(data) for row in table.rows]
            columns.append([NONE if n is None else f"{n}" for n in counts])
        for metric in metrics:
            scores, factor = table.column(data, metric), column_of(metric).factor
            error = intervals == "all" or (intervals == "average" and metric == "average")
            marks = table.marks(scores, within, metric)
            columns.append(
                [
                    _shown(own, m, error, style, sign, factor)
                    for own, m in zip(scores, marks, strict=True)
                ]
            )
    for number, row in enumerate(table.rows):
        own = row.cost
        costs = (duration(own.seconds_per_edit), size(own.bytes_per_edit))
        yield [row.label, *(column[number] for column in columns), *costs]


def _balanced(
    table: Comparison, within: float, intervals: str, style: Callable[[str, Mark], str], sign: str
) -> Iterator[list[str]]:
    """Yield the cells of the table of F1: label, G, L, F1."""
    columns = []
    for name in ("generality", "locality", "f1"):
        scores = [getattr(row.balance, name) if row.balance else None for row in table.rows]
        error = intervals == "all" or (intervals == "average" and name == "f1")
        marks = table.marks(scores, within)
        columns.append(
            [_shown(own, m, error, style, sign) for own, m in zip(scores, marks, strict=True)]
        )
    for number, row in enumerate(table.rows):
        yield [row.label, *(column[number] for column in columns)]


def f1_caption(table: Comparison) -> str:
    """Say what G, L and F1 are means of."""
    with_locality = [d for d in table.counted if "locality" in table.metrics(d)]
    return (
        f"G: mean generality over {', '.join(table.counted)}. "
        f"L: mean locality over {', '.join(with_locality)}. F1 = 2 G L / (G + L)."
    )


def has_f1(table: Comparison) -> bool:
    """Whether any row has both generality and locality."""
    return any(row.balance is not None for row in table.rows)


# ---------------------------------------------------------------------- Markdown


def markdown(
    tables: Sequence[Comparison], remarks: Sequence[str], within: float, intervals: str,
    width: int | None = None,
) -> str:  # fmt: skip
    """Return all tables as Markdown, folded where they are wider than `width`."""
    parts: list[str] = []
    for table in tables:
        head = ["editor"]
        for data in table.data:
            metrics = table.metrics(data)
            head += [f"{_plain(data)} n"] if metrics else []
            head += [_plain(column_of(metric).title) for metric in metrics]
        lines = [f"### {_plain(table.title)}", ""]
        body = _body(table, within, intervals, _markdown_style, "±")
        lines += _folded([*head, "s / edit", "bytes / edit"], list(body), width)
        lines += ["", *caption(table, within, intervals)]
        lines += [f"Note: {_plain(note)}." for note in table.notes]
        if has_f1(table):
            balanced = _balanced(table, within, intervals, _markdown_style, "±")
            lines += ["", *_grid(["editor", "G", "L", "F1"], balanced)]
            lines += ["", _plain(f1_caption(table))]
        parts.append("\n".join(lines))
    if remarks:
        parts.append("\n".join(f"{_plain(remark)}." for remark in remarks))
    return "\n\n".join(parts) + "\n"


def _folded(head: Sequence[str], rows: Sequence[list[str]], width: int | None) -> list[str]:
    """Return one grid, or several with the same rows where one would be too wide."""
    if width is None:
        return _grid(head, iter(rows))
    table = [[head[0], *head[1:]], *([_plain(row[0]), *row[1:]] for row in rows)]
    sizes = [3 + max(len(line[column]) for line in table) for column in range(len(head))]
    parts: list[list[int]] = [[]]
    room = width - sizes[0] - 1
    for column in range(1, len(head)):
        if parts[-1] and sum(sizes[c] for c in parts[-1]) + sizes[column] > room:
            parts.append([])
        parts[-1].append(column)
    lines: list[str] = []
    for part in parts:
        own = ([row[0], *(row[c] for c in part)] for row in rows)
        lines += [*([""] if lines else []), *_grid([head[0], *(head[c] for c in part)], own)]
    return lines


def _grid(head: Sequence[str], rows: Iterator[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    body = [[_plain(label), *cells] for label, *cells in rows]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]


def _markdown_style(text: str, mark: Mark) -> str:
    return {"best": f"**{text}**", "near": f"<u>{text}</u>"}.get(mark, text)


def _plain(text: str) -> str:
    """Escape what Markdown would read as more than text."""
    return markdown_text(text)


# ---------------------------------------------------------------------- LaTeX


def latex(
    tables: Sequence[Comparison], remarks: Sequence[str], within: float, intervals: str
) -> str:
    r"""Return all tables as LaTeX to `\input`: each a floating `table*`."""
    parts = ["% \\usepackage{booktabs,graphicx}"]
    parts += [f"% {one_line(remark)}" for remark in remarks]
    for number, table in enumerate(tables, 1):
        parts += _float(table, number, within, intervals)
        if has_f1(table):
            rows = _balanced(table, within, intervals, _latex_style, r"$\pm$")
            head = [r" & G & L & F1 \\"]
            told = [f"{table.title}.", f1_caption(table)]
            parts += _table("lrrr", head, rows, told, f"tab:f1-{number}", wide=False)
    return "\n".join(parts) + "\n"


def _float(table: Comparison, number: int, within: float, intervals: str) -> list[str]:
    spans = [(data, 1 + len(table.metrics(data))) for data in table.data if table.metrics(data)]
    groups = [rf" & \multicolumn{{{width}}}{{c}}{{{escape(data)}}}" for data, width in spans]
    rules, at = [], 2
    for _, width in spans:
        rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    titles = []
    for data, _ in spans:
        titles += ["n", *(escape(column_of(metric).title) for metric in table.metrics(data))]
    metrics = " & ".join(titles)
    head = [
        f"{''.join(groups)} & & \\\\",
        " ".join(rules),
        f" & {metrics} & s / edit & bytes / edit \\\\",
    ]
    rows = _body(table, within, intervals, _latex_style, r"$\pm$")
    told = [f"{table.title}.", *caption(table, within, intervals)]
    told += [f"{note}." for note in table.notes]
    columns = "l" + "r" * (at - 2 + 2)
    return _table(columns, head, rows, told, f"tab:editors-{number}", wide=True)


def _table(
    columns: str, head: Sequence[str], rows: Iterator[list[str]], told: Sequence[str], name: str,
    *, wide: bool,
) -> list[str]:  # fmt: skip
    kind = "table*" if wide else "table"
    body = [
        " & ".join([escape(label), *("--" if c == NONE else c for c in cells)]) + r" \\"
        for label, *cells in rows
    ]
    return [
        "",
        rf"\begin{{{kind}}}[t]",
        r"\centering",
        rf"\caption{{{escape(' '.join(told))}}}",
        rf"\label{{{name}}}",
        *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}" + ("}" if wide else ""),
        rf"\end{{{kind}}}",
    ]


def _latex_style(text: str, mark: Mark) -> str:
    return {"best": rf"\textbf{{{text}}}", "near": rf"\underline{{{text}}}"}.get(mark, text)


def escape(text: str) -> str:
    """Return text as LaTeX prints it."""
    return "".join(_LATEX.get(sign, sign) for sign in one_line(text))


# ---------------------------------------------------------------------- CSV


def entries(tables: Sequence[Comparison]) -> Iterator[dict[str, object]]:
    """Yield one mapping per model, row, data set and metric; rates in percent."""
    for table in tables:
        for row in table.rows:
            start = {
                "model": table.model, "regime": table.regime, "batch": table.batch,
                "top_k": table.top_k, "row": row.label, "editor": row.editor,
            }  # fmt: skip
            yield from ({**start, **entry} for entry in _measured(row, table))


def _measured(row: Row, table: Comparison) -> Iterator[dict[str, object]]:
    for data, scores in row.scores.items():
        for metric, own in scores.items():
            if table.shows(metric):
                yield {"data": data, "metric": metric, **_rate(own, metric)}
        cost = row.costs[data]
        for metric, unit, value in (
            ("seconds_per_edit", "s", cost.seconds_per_edit),
            ("bytes_per_edit", "bytes", cost.bytes_per_edit),
        ):
            yield {
                "data": data, "metric": metric, "unit": unit, "value": value, "low": None,
                "high": None, "cases": None, "seeds": len(row.seeds[data]),
            }  # fmt: skip
    if row.balance is not None:
        over = "+".join(data for data in table.counted if data in row.scores)
        for metric in ("generality", "locality", "f1"):
            yield {"data": over, "metric": metric, **_rate(getattr(row.balance, metric))}


def _rate(own: Score, metric: str = "average") -> dict[str, object]:
    low, high = own.interval or (None, None)
    unit = column_of(metric).unit
    factor = 100 if unit == "percent" else 1
    return {
        "unit": unit,
        "value": factor * own.value,
        "low": None if low is None else factor * low,
        "high": None if high is None else factor * high,
        "cases": own.cases,
        "seeds": own.seeds,
    }


def as_csv(tables: Sequence[Comparison]) -> str:
    """Return all numbers in long form, with all their digits; an empty field is no number.

    A name that a spreadsheet would take for a formula begins with an apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows([cell(entry[name]) for name in FIELDS] for entry in entries(tables))
    return text.getvalue()
