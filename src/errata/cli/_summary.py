"""The summary of an evaluation as tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from errata.cli import _output
from errata.evaluation.long import METRICS as LONG
from errata.evaluation.long import TITLES

if TYPE_CHECKING:
    from rich.console import Console

    from errata.data import LoadedData

METRICS = ("reliability", "generality", "locality", "average")
SHORT = {"reliability": "Rel", "generality": "Gen", "locality": "Loc", "average": "Avg"}
"""Headings where there are few columns."""
SHOWN_NOTES = 5  # messages about left-out records that are printed
SHOWN_DOMAINS = 12  # domains of a break-down that are printed


def say_notes(data: LoadedData) -> None:
    """Print on stderr what was left out while a data set was read; warnings were given then."""
    notes = [text for text in data.notes if text not in data.warned]
    for text in (*notes, *data.skipped[:SHOWN_NOTES]):
        _output.note(f"{data.name}: {text}")
    if len(data.skipped) > SHOWN_NOTES:
        _output.note(f"{data.name}: … and {len(data.skipped) - SHOWN_NOTES} more records left out")


def label(metric: str, summary: Mapping[str, Any]) -> str:
    """Return the name of a rate with the rank that counts as a hit in it."""
    k = summary.get("top_k")
    if k is None or metric not in ("reliability", "generality", "locality"):
        return metric
    return f"{metric}, top {1 if metric == 'reliability' else k}"


def show(console: Console, summary: Mapping[str, Any], edited: bool = True) -> None:
    """Print the rates with their intervals, then the break-downs that say something.

    Args:
        console: Where to print.
        summary: Summary of an evaluation.
        edited: Whether edits were made, so that their time means something.
    """
    several = (summary.get("cases") or 0) > 1  # one case resampled has no interval
    intervals = (summary.get("ci95") or {}) if several else {}
    table = _output.table("metric", "rate", "95 % interval", right=(1, 2))
    for metric in METRICS:
        if not edited and summary.get(metric) is None:
            continue  # what the checks do not ask for
        name = label(metric, summary)
        table.add_row(name, _output.rate(summary.get(metric)), _interval(intervals.get(metric)))
        first = f"{metric}_top1"
        value = (summary.get("also") or {}).get(first)
        if value is not None and (summary.get("top_k") or 1) > 1:
            table.add_row(f"{metric}, top 1", _output.rate(value), _interval(intervals.get(first)))
    for title, found in (
        ("CounterFact", summary.get("counterfact")),
        ("WILD", summary.get("wild")),
        ("", summary.get("beyond")),
    ):
        if found:
            table.add_section()
            bounds = (found.get("ci95") or {}) if several else {}
            for name, value in found.items():
                if isinstance(value, float | int) and name != "refused":
                    row = f"{title} {name}" if title == "WILD" else name
                    if name == "leakage":
                        row += " (less is better)"
                    table.add_row(row, _output.rate(value), _interval(bounds.get(name)))
                    if not title:
                        before = _output.rate(found["before"][name])
                        table.add_row("  before the edit", before, "")
    judged = (summary.get("wild") or {}).get("judge") or {}
    for name in ("reliability", "generality") if judged else ():
        bounds = _interval(judged["ci95"].get(name) if several else None)
        table.add_row(f"WILD {name}, judged", _output.rate(judged[name]), bounds)
    long = summary.get("long") or {}
    for kind in ("reliability", "generality"):
        own: dict[str, Any] = long.get(kind) or {}
        if own:
            table.add_section()
        for name in (name for name in LONG if name in own):
            bounds = _interval(own["ci95"].get(name) if several else None)
            table.add_row(f"{TITLES[name]}, {kind}", _output.rate(own[name]), bounds)
    sampled = [name for name in ("fluency", "consistency") if summary.get(name) is not None]
    if sampled:
        table.add_section()
    for name in sampled:
        row, shown = (f"{name}, bits", _bits) if name == "fluency" else (name, _output.rate)
        table.add_row(row, shown(summary[name]), _interval(intervals.get(name), shown))
    console.print(table)
    by = dict(summary.get("by") or {})
    if "test" in by:
        del by["name"]  # the tests say the same, with intervals
        _suite(console, by["test"])
    _breakdowns(console, by)
    _retention(console, summary.get("retention"))
    _trajectory(console, summary.get("trajectory"))
    _collapse(console, summary.get("collapse"))
    if summary.get("left_out"):
        console.print(
            f"{_output.counted(summary['left_out'], 'question')} left out: the unedited model does "
            "not meet their conditions",
            soft_wrap=True,
        )
    for reason, number in (summary.get("failures") or {}).items():
        console.print(f"{number} failed: {reason}", soft_wrap=True)
    spent = summary.get("seconds") or {}
    per_edit = spent.get("per_edit")
    cases = summary.get("cases") or 0
    asked = f", {summary['asked']} asked" if "asked" in summary else ""
    parts = [f"{_output.counted(cases, 'case')}{asked}, {summary.get('failed', 0)} failed"]
    timed = ("edit", "evaluate") if edited else ("evaluate",)
    parts += [f"{name} {_output.seconds(spent[name])}" for name in timed if name in spent]
    if per_edit is not None and edited:
        parts.append(f"{per_edit * 1000:.0f} ms per edit")
    console.print(" · ".join(parts), soft_wrap=True)


def _bits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _interval(bounds: Any, show: Callable[[float | None], str] = _output.rate) -> str:
    return "–" if not bounds else f"{show(bounds[0])} – {show(bounds[1])}"


def _breakdowns(console: Console, by: Mapping[str, Any]) -> None:
    table = _output.table("", "", "rate", "questions", right=(2, 3))
    sections = 0
    for group in ("name", "criteria"):
        for kind, members in (by.get(group) or {}).items():
            if not members or (group == "name" and len(members) == 1):
                continue
            if sections:
                table.add_section()
            sections += 1
            for number, (name, entry) in enumerate(members.items()):
                label = f"{kind} by {group}" if not number else ""
                table.add_row(label, name, _output.rate(entry["mean"]), str(entry["items"]))
    if sections:
        console.print(table)
    domains = by.get("domain") or {}
    if len(domains) > 1:
        _domains(console, domains)


def _suite(console: Console, tests: Mapping[str, Any] | None) -> None:
    """Print the tests of a suite: micro-averages, intervals over resampled cases."""
    if not tests:
        return
    table = _output.table("test", "rate", "95 % interval", "questions", right=(1, 2, 3))
    for name, entry in tests.items():
        bounds = _interval(entry.get("ci95"))
        table.add_row(name, _output.rate(entry["mean"]), bounds, str(entry["items"]))
    console.print(table)


def headings(console: Console, metrics: Sequence[str] = METRICS) -> list[str]:
    """Return the names of metrics as headings that no terminal breaks inside a word."""
    return [SHORT.get(m, m) if _output.narrow(console) else m for m in metrics]


def _domains(console: Console, domains: Mapping[str, Any]) -> None:
    table = _output.table("domain", "cases", *headings(console), right=range(1, 6))
    for name, entry in list(domains.items())[:SHOWN_DOMAINS]:
        rates = (_output.rate(entry.get(metric)) for metric in METRICS)
        table.add_row(name, str(entry["cases"]), *rates)
    console.print(table)
    if len(domains) > SHOWN_DOMAINS:
        console.print(f"… and {len(domains) - SHOWN_DOMAINS} more domains in the summary")


def _retention(console: Console, found: Mapping[str, Any] | None) -> None:
    if not found:
        return
    table = _output.table("edits since", "cases", "right away", "at the end", right=(1, 2, 3))
    for entry in found["by_age"]:
        first, last = entry["age"]
        span = str(first) if first == last else f"{first}–{last}"
        rates = (_output.rate(entry["immediate"]), _output.rate(entry["final"]))
        table.add_row(span, str(entry["cases"]), *rates)
    console.print(table)


def _collapse(console: Console, found: Mapping[str, Any] | None) -> None:
    """Print that sequences destroyed the model, or were stopped before they did."""
    from errata.inspection.limits import times

    if not found or not found["damaged"]:
        return
    state, number = ("collapsed", found["collapsed"]) if found["collapsed"] else (
        "damaged", found["damaged"])  # fmt: skip
    text = "the model"
    if found["sequences"] > 1:
        text = f"{number} of {found['sequences']} sequences: the model"
    text += f" {state}" if state == "collapsed" else " is damaged"
    if found["collapsed_after"] is not None:
        text += f" (after {_output.counted(found['collapsed_after'], 'edit')})"
    ratio = math.inf if found["worst"] is None else found["worst"]
    text += f": perplexity of general sentences up to {times(ratio)} the unedited model's"
    if found["stopped"]:
        text += f"; {_output.counted(found['stopped'], 'sequence')} stopped"
    console.print(text, style="bold red")


def _trajectory(console: Console, points: Sequence[Mapping[str, Any]] | None) -> None:
    """Print what was measured along the sequences, one line per point; the largest drift only."""
    if not points:
        return
    tasks = list(dict.fromkeys(name for point in points for name in point.get("general", {})))
    text = any("perplexity" in point for point in points)
    columns = ["edits made", "recall", "drift", *(["perplexity"] if text else []), *tasks]
    table = _output.table(*columns, right=range(len(columns)))
    for point in points:
        moved = [own["relative"] for own in point.get("drift", {}).values()]
        row = [f"{point['edits']:g}", _output.rate((point.get("recall") or {}).get("score"))]
        row.append(f"{100 * max(moved):.2f} %" if moved else "–")
        row += [_bits(point.get("perplexity"))] if text else []
        row += [_output.rate(point.get("general", {}).get(task)) for task in tasks]
        table.add_row(*row)
    console.print(table)
