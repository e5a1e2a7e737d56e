"""Results as HTML: every text of a user, a file or a model is escaped here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from errata.errors import ErrataError
from errata.patch.compare import View
from errata.patch.compare import one_line as in_one_line
from errata.patch.describe import where
from errata.patch.report import EditReport, Neighbour
from errata.printable import printable
from errata.progress import told
from errata.web.jobs import Progress

if TYPE_CHECKING:
    from errata.web.bench import Answer, Bench, Step
    from errata.web.work import Made

NAMES = {
    "edit": "The edit",
    "others": "In other words",
    "questions": "Your questions",
}
"""Headings of groups."""

HELP = {
    "edit": "Should give the new answer; the number is its probability.",
    "others": "Should give the new answer as well.",
    "questions": "Open a line to see the most probable next words.",
    "neighbours": "Other names in the same question. Should not move.",
}


def text(value: object) -> str:
    """Return a text as HTML shows it: in one line, escaped, without control characters."""
    return escape(in_one_line(printable(str(value))))


def lines(value: str) -> str:
    """Return a text of several lines as HTML shows it."""
    return escape(printable(value))


def said(value: str) -> str:
    """Return what a model says, in quotation marks."""
    return f"“{text(value)}”" if value.strip() else "<i>nothing</i>"


def share(value: float | None) -> str:
    """Return a probability in a few digits."""
    return "" if value is None else f"<span class='p'>{value:.4f}</span>"


def mark(good: bool | None, yes: str = "taken", no: str = "not taken") -> str:
    """Return a mark that is not told apart by its colour alone."""
    if good is None:
        return ""
    kind, sign, word = ("good", "✓", yes) if good else ("bad", "✗", no)
    return f"<span class='{kind}' title='{word}' aria-label='{word}'>{sign}</span> "


# ---------------------------------------------------------------------- boxes


def error(found: ErrataError) -> str:
    """Return a user's mistake: what happened, and what to do."""
    hint = f"<p>{text(found.hint)}</p>" if found.hint else ""
    return f"<div class='box wrong' role='alert'><p><b>{text(found.message)}</b></p>{hint}</div>"


def note(words: str) -> str:
    """Return a box with something to know."""
    return f"<div class='box'><p>{text(words)}</p></div>" if words else ""


def progress(found: Progress) -> str:
    """Return how far work is: a bar where the number of steps is known, and the time left."""
    if found.waits:
        what = "waiting: another tab works on a model"
    else:
        what = f"{found.what}{' (ends soon)' if found.ends else ''}"
    bar, steps = "<progress></progress>", ""
    if found.total:
        bar = f"<progress value='{found.done:g}' max='{found.total:g}'></progress>"
        steps = f" · {found.done:,.0f} of {found.total:,.0f}"
    left = "" if found.left is None else f" · about {told(found.left)} left"
    line = f"{text(what)}{steps} · {told(found.seconds)}{left}"
    return f"<div class='box working' role='status'>{bar}<p>{line}</p></div>"


# ---------------------------------------------------------------------- tables


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already; on a phone each row becomes a card."""
    top = "".join(f"<th scope='col'>{text(head)}</th>" for head in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td data-head='{text(head)}'>{cell}</td>"
            for head, cell in zip(heads, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _heads(made: Sequence[Made]) -> list[str]:
    return [f"after {one.title}" for one in made] if len(made) > 1 else ["after"]


def _group(made: Sequence[Made], kind: str) -> str:
    """Return one group of questions: before, and after each of the editors."""
    columns = [next((g.views for g in one.groups if g.kind == kind), ()) for one in made]
    if not columns[0]:
        return ""
    judged = kind != "questions"
    rows = []
    for views in zip(*columns, strict=True):
        first: View = views[0]
        asked = text(first.prompt) + (
            "" if first.chat == "off" else " <small>(in the chat)</small>"
        )
        if not judged:
            asked = f"<details><summary>{asked}</summary>{_likely(made, views)}</details>"
        cells = [asked, said(first.says_before) + share(first.p_before)]
        for view in views:
            sign = mark(right(view)) if judged else ""
            cells.append(sign + said(view.says_after) + share(view.p_after))
        rows.append(cells)
    heads = ["question", "before", *_heads(made)]
    title = "Its edits" if kind == "edit" and len(rows) > 1 else NAMES[kind]
    return f"<h3>{title}</h3><p class='help'>{HELP[kind]}</p>{table(heads, rows)}"


def right(view: View) -> bool | None:
    """Return whether the new answer is given; in a chat it may stand within a sentence."""
    if view.hit_after or view.chat == "off" or view.target is None:
        return view.hit_after
    return view.target.strip().casefold() in view.says_after.casefold()


def _likely(made: Sequence[Made], views: Sequence[View]) -> str:
    """Return the most probable next tokens, before and after."""
    columns = [("before", views[0].before)]
    columns += [(head, view.after) for head, view in zip(_heads(made), views, strict=True)]
    parts = []
    for head, words in columns:
        lines = "".join(f"<li>{p:.3f} <code>{text(repr(word))}</code></li>" for word, p in words)
        parts.append(f"<div><small>{text(head)}</small><ul>{lines}</ul></div>")
    return f"<div class='likely'>{''.join(parts)}</div>"


def _neighbours(made: Sequence[Made]) -> str:
    """Return what became of other subjects in the same question; those that moved come first."""
    reports = [one.patch.report for one in made]
    if not any(report.neighbours for report in reports):
        return ""
    named: dict[str, list[Neighbour | None]] = {}
    for number, report in enumerate(reports):
        for entry in (*report.neighbours, *report.bare):
            named.setdefault(entry.prompt, [None] * len(made))[number] = entry
    rows, moved = [], []
    for prompt, entries in named.items():
        known = [entry for entry in entries if entry is not None]
        cells = [text(prompt), said(known[0].before)]
        for entry in entries:
            if entry is None:
                cells.append("–")
            else:
                cells.append(mark(not entry.moved, "as before", "moved") + said(entry.after))
        (moved if any(entry.moved for entry in known) else rows).append(cells)
    heads = ["question", "before", *_heads(made)]
    lines = "".join(
        f"<p class='help'>{text(f'{one.title}: {report.line()}')}</p>"
        for one, report in zip(made, reports, strict=True)
    )
    shown = table(heads, moved) if moved else ""
    if rows:
        count = f"{len(rows)} stayed as they were"
        shown += f"<details><summary>{count}</summary>{table(heads, rows)}</details>"
    return f"<h3>Neighbours</h3><p class='help'>{HELP['neighbours']}</p>{lines}{shown}"


def _advice(entries: Sequence[EditReport], title: str) -> str:
    """Return what may help where an edit was not taken, and earlier edits that suffered."""
    parts = []
    for entry in entries:
        advice = "".join(f"<li>{text(line)}</li>" for line in entry.advice)
        tried = f"; tried {entry.tried}" if entry.tried else ""
        parts.append(
            f"<p><b>{text(title)}: not taken</b>{text(tried)}</p>"
            + (f"<p>May help:</p><ul>{advice}</ul>" if advice else "")
        )
    return f"<div class='box wrong'>{''.join(parts)}</div>" if parts else ""


def _lost(made: Made) -> str:
    report, parts = made.patch.report, []
    for entries, what in ((report.lost, "no longer holds"), (report.weaker, "holds less firmly")):
        for entry in entries:
            fact = f"{entry.edit.prompt} → {entry.edit.target.strip()}"
            parts.append(f"<p>{text(made.title)}: an earlier edit {what}: {text(fact)}</p>")
    return f"<div class='box wrong'>{''.join(parts)}</div>" if parts else ""


def step(found: Step) -> str:
    """Return a step of the history: what was asked, before and after."""
    made = found.made
    parts = [f"<h2>{text(found.label)}</h2>"]
    for one in made:
        took = f" · {one.seconds:.1f} s" if one.seconds else ""
        parts.append(f"<p><b>{text(one.title)}</b> · {text(where(one.patch))}{took}</p>")
        parts += [f"<p class='help'>{text(line)}</p>" for line in one.notes]
    latest = [[entry for entry in one.patch.report.edits[-1:] if entry.advice] for one in made]
    parts += [_advice(entries, one.title) for one, entries in zip(made, latest, strict=True)]
    parts += [_lost(one) for one in made]
    parts += [_group(made, kind) for kind in ("edit", "others")]
    parts.append(_neighbours(made))
    parts.append(_group(made, "questions"))
    return "".join(parts)


def answers(found: Answer) -> str:
    """Return what the model says to questions, without and with the edits."""
    edited = any(after is not None for *_, after in found.rows)
    heads = ["question", "unedited", "with the edits"] if edited else ["question", "the model says"]
    rows = []
    for asked, before, after in found.rows:
        rows.append([text(asked), said(before), *([said(after or "")] if edited else [])])
    return f"<h2>Answers</h2>{table(heads, rows)}"


def history(bench: Bench) -> str:
    """Return the steps on this model, and which of them is now."""
    if bench.model is None:
        return ""
    steps = bench.history
    lines = ["the unedited model", *(one.label for one in steps.steps)]
    items = []
    for number, label in enumerate(lines):
        state = "now" if number == steps.at else "undone" if number > steps.at else "past"
        by = f" <small>{text(_by(steps.steps[number - 1]))}</small>" if number else ""
        sign = " ← now" if state == "now" else " (undone)" if state == "undone" else ""
        items.append(f"<li class='{state}'>{text(label)}{by}{sign}</li>")
    return f"<ol start='0' class='history'>{''.join(items)}</ol>"


def _by(found: Step) -> str:
    return f"by {found.made[found.chosen].title}" if len(found.made[0].groups) else ""


def screen(bench: Bench) -> str:
    """Return all that is to be seen of a bench when nothing runs."""
    parts = []
    if bench.error is not None:
        parts.append(error(bench.error))
    elif bench.stopped:
        parts.append(note("Cancelled. Nothing was changed."))
    parts.append(note(bench.notice))
    if bench.answer is not None:
        parts.append(answers(bench.answer))
    now = bench.history.now
    if now is not None:
        parts.append(step(now))
    elif bench.model is not None and not "".join(parts):
        parts.append(note("The model is unedited. Type a fact and press Edit."))
    return f"<div class='errata'>{''.join(parts)}</div>"


def model_line(bench: Bench) -> str:
    """Return one line about the model."""
    if bench.model is None:
        return ""
    return f"<p class='model'><b>{text(bench.model)}</b> · {text(bench.about)}</p>"
