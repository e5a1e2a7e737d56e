"""What `errata sheet` prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from errata.cli import _output, _views

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch import Patch
    from errata.sheets.building import Built
    from errata.sheets.checking import Checked
    from errata.sheets.difference import Difference
    from errata.sheets.sheet import Sheet

SHOWN = 20
"""Facts that are listed; all of them with --json."""
SAID = {"taken": "not taken", "holds": "does not follow", "keeps": "moved"}


def built(sheet: Sheet, made: Built, lm: LM) -> None:
    """Print what a build did and what came of it."""
    from rich.text import Text

    console = _output.out()
    console.print(_views.headline(lm))
    facts = made.patch.meta["sheet"]["facts"]
    told = f"{len(made.made)} edited, {len(made.kept)} as before"
    console.print(f"{sheet.name}: {_output.counted(len(facts), 'fact')} ({told})")
    console.print(f"{made.patch.meta.get('editor')} · {_views.what_changed(made.patch)}")
    report = made.patch.report
    for entry in report.missed:
        console.print(
            Text.assemble(("✗ ", "bold red"), f"{entry.edit.id}: {entry.edit.prompt} → ",
                          (entry.edit.target.strip(), "bold"), " not taken")
        )  # fmt: skip
    console.print(f"{report.taken} of {_output.counted(len(report.edits), 'edit')} taken")
    if report.line():
        console.print(Text(report.line()))


def checked(head: str, found: Sequence[Checked], patch: Patch) -> None:
    """Print what was asked of a build, and every question that failed."""
    from rich.text import Text

    from errata.sheets.checking import rates

    console = _output.out()
    console.print(head, soft_wrap=True)
    names = {"taken": "facts taken", "holds": "answers follow", "keeps": "answers kept"}
    told = [f"{a} of {b} {names[kind]}" for kind, (a, b) in rates(found).items() if b]
    console.print(" · ".join(told))
    for one in found:
        if one.ok:
            continue
        text = Text.assemble(("✗ ", "bold red"), f"{one.fact}: {one.prompt} → ",
                             (one.expected, "bold"), f"  {SAID[one.kind]}")  # fmt: skip
        if one.says:
            text.append(f", says “{one.says}”")
        console.print(text)
    if patch.report.line():
        console.print(Text(patch.report.line()))


def status_of(
    sheet: Sheet, found: Sequence[Checked], at: date | None, under: str = "patched"
) -> list[dict[str, Any]]:
    """Return for every fact of a sheet whether it is valid, and whether it holds.

    Args:
        sheet: The sheet.
        found: What was asked.
        at: The day on which facts are valid or not; None: today.
        under: What holds it beside the base model: `patched` or `served`.
    """
    day = at or date.today()
    rows = []
    for fact in sheet.facts:
        own = [one for one in found if one.fact == fact.id]
        taken = [one for one in own if one.kind == "taken"]
        beside = [one for one in own if one.kind != "taken"]
        rows.append(
            {
                "id": fact.id,
                "target": fact.target.strip(),
                "state": fact.state(day),
                "valid_until": fact.valid_until and fact.valid_until.isoformat(),
                "owner": fact.owner,
                "base": _all([one.before for one in taken]),
                under: _all([one.after for one in taken]),
                "right_beside": sum(one.ok for one in beside),
                "asked_beside": len(beside),
            }
        )
    return rows


def _all(values: Sequence[bool | None]) -> bool | None:
    return None if not values or None in values else all(values)


def status(head: str, rows: Sequence[Mapping[str, Any]], under: str | None) -> None:
    """Print which facts hold.

    Args:
        head: What was asked.
        rows: Of every fact.
        under: What holds it beside the base model: `patched` or `served`; None: nothing.
    """
    console = _output.out()
    console.print(head, soft_wrap=True)
    heads = ["fact", "target", "base", *([under, "beside"] if under else []), "valid"]
    table = _output.table(*heads)
    for row in rows:
        until = f"until {row['valid_until']}" if row["valid_until"] else "valid"
        state = until if row["state"] == "valid" else row["state"]
        cells = [row["id"], row["target"], _holds(row["base"])]
        if under:
            beside = f"{row['right_beside']} of {row['asked_beside']}"
            cells += [_holds(row[under]), beside if row["asked_beside"] else "–"]
        table.add_row(*cells, state)
    console.print(table)


def _holds(value: bool | None) -> str:
    return "–" if value is None else "holds" if value else "no"


def difference(found: Difference) -> None:
    """Print a difference: a line in words, then fact by fact."""
    from rich.text import Text

    console = _output.out()
    console.print(Text(str(found)))
    lines = [f"+ {name}: {_said(fact)}" for name, fact in found.added.items()]
    for name, fields in found.changed.items():
        told = ", ".join(f"{key} {_value(a)} → {_value(b)}" for key, (a, b) in fields.items())
        lines.append(f"~ {name}: {told}")
    lines += [f"- {name}: {_said(fact)}" for name, fact in found.removed.items()]
    for line in lines[:SHOWN]:
        console.print(Text(line), soft_wrap=True)
    if len(lines) > SHOWN:
        console.print(f"… and {len(lines) - SHOWN} more (--json)")


def _said(fact: Mapping[str, Any]) -> str:
    prompt = fact.get("prompt")
    first = prompt if isinstance(prompt, str) else next(iter(prompt or [""]))
    return f"{first} → {str(fact.get('target')).strip()}"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return _output.counted(len(value), "entry", "entries")
    return repr(value)


def sheet_facts(sheet: Mapping[str, Any]) -> list[str]:
    """Return the facts of a build as `errata show` lists them."""
    lines = []
    for fact in list(sheet["facts"])[:SHOWN]:
        told = [fact["id"], f"by {fact['editor']}" if fact.get("editor") else None]
        told += [fact.get("owner"), fact.get("reason")]
        told += [f"from {fact['valid_from']}" if fact.get("valid_from") else None]
        told += [f"until {fact['valid_until']}" if fact.get("valid_until") else None]
        lines.append("  " + " · ".join(str(part) for part in told if part))
    left = len(sheet["facts"]) - SHOWN
    return [*lines, f"  … and {left} more (--json)"] if left > 0 else lines
