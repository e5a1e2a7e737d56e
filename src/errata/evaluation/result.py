"""What an evaluation returns: numbers, records, and a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from errata.evaluation.long import METRICS as LONG
from errata.evaluation.long import TITLES
from errata.evaluation.summary import METRICS

FREE = {
    "reliability": "exact match", "generality": "exact match", "locality": "tokens as unedited",
}  # fmt: skip
"""What is counted where the model answers freely."""
BEYOND_TOLD = {
    "choice": "picks the new answer", "negation": "another one behind a negation",
    "leakage": "the old answer is still likelier",
}  # fmt: skip
"""What is counted where answers are compared."""


@dataclass(frozen=True, repr=False)
class Result:
    """An evaluation.

    Attributes:
        summary: Rates in [0, 1], break-downs, intervals, seconds; JSON values.
        records: One per case, in the order of the data set; JSON values.
        folder: The run folder, if one was written.
        notes: What is worth knowing about the data (records and questions left out, fields that
            are not read) and about the questions of a suite.
    """

    summary: Mapping[str, Any]
    records: list[dict[str, Any]]
    folder: Path | None = None
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return the table as (metric, percent, 95 % interval, items or remark)."""
        return [("metric", "%", "95 % interval", "over"), *self._body()]

    def _body(self) -> Iterator[tuple[str, str, str, str]]:
        summary = self.summary
        bounds = summary.get("ci95", {})
        for metric in METRICS:
            names = summary["by"]["name"].get(metric, {})
            over = ", ".join(f"{name} ({own['items']})" for name, own in names.items())
            if metric == "reliability":
                over = f"edits ({summary['edits']})"
            yield metric, _percent(summary[metric]), _interval(bounds.get(metric)), over
        compared: dict[str, Any] = summary.get("counterfact") or {}
        for metric in ("ES", "PS", "NS", "S") if compared else ():
            bound = _interval(compared["ci95"].get(metric))
            before = f"before the edit: {_percent(compared['before'][metric])}"
            yield metric, _percent(compared[metric]), bound, before
        beyond: dict[str, Any] = summary.get("beyond") or {}
        for metric, told in BEYOND_TOLD.items():
            if metric in beyond:
                before = f"{told}; before the edit: {_percent(beyond['before'][metric])}"
                bound = _interval(beyond["ci95"].get(metric))
                yield metric, _percent(beyond[metric]), bound, before
        wild: dict[str, Any] = summary.get("wild") or {}
        for metric in FREE if wild else ():
            bound = _interval(wild["ci95"].get(metric))
            yield f"{metric}, WILD", _percent(wild[metric]), bound, FREE[metric]
        long: dict[str, Any] = summary.get("long") or {}
        for kind in ("reliability", "generality"):
            own = long.get(kind) or {}
            for metric in (name for name in LONG if name in own):
                bound = _interval(own["ci95"].get(metric))
                yield f"{TITLES[metric]}, {kind}", _percent(own[metric]), bound, "long answers"
        judged: dict[str, Any] = wild.get("judge") or {}
        for metric in ("reliability", "generality") if judged else ():
            bound = _interval(judged["ci95"].get(metric))
            yield f"{metric}, WILD", _percent(judged[metric]), bound, "a judge's verdict"

    def table(self) -> str:
        """Return the table as plain text, with a line above it that says what was measured."""
        rows = self.rows()
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [self._headline()]
        for name, value, bound, over in rows:
            cells = f"{name:<{widths[0]}}  {value:>{widths[1]}}  {bound:<{widths[2]}}  {over}"
            lines.append(cells.rstrip())
        return "\n".join(lines)

    def _headline(self) -> str:
        summary = self.summary
        parts = [str(summary[key]) for key in ("editor", "model", "data", "regime")]
        parts += [f"top {summary['top_k']}"] if "top_k" in summary else []
        parts.append(f"{summary['cases']} case{'s'[: summary['cases'] != 1]}")
        if summary["failed"]:
            parts.append(f"{summary['failed']} of them failed and are not in the rates")
        return " · ".join(part for part in parts if part)

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        head, *body = self.rows()
        top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body
        )
        return (
            f"<table><caption>{escape(self._headline())}</caption>"
            f"<thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
        )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _interval(bounds: list[float] | None) -> str:
    return f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}" if bounds else "–"
