"""What `errata edit` shows: its plan, and what became of the edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.case import Edit
from errata.cli import _output, _views

if TYPE_CHECKING:
    from rich.console import Console

    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.patch import Patch
    from errata.patch.report import EditReport, Report

LISTED = 20
"""Edits that were taken and are listed; those that were not are listed all."""


def origins(
    console: Console, lm: LM, editor: Editor, patch: Patch, requests: Sequence[Edit]
) -> None:
    """Print where blocks and settings come from, and what should be known of the edits."""
    if editor.blocks_from(lm) not in (None, "as asked"):
        console.print(f"Block: {editor.blocks_from(lm)}", style="dim")
    if editor.settings_from:
        console.print(f"Settings: {editor.settings_from}", style="dim", soft_wrap=True)
    if patch.meta.get("compute"):
        console.print(
            "Searched with products in bfloat16; patch, scores: float32 (--compute float32: all)",
            style="dim",
            soft_wrap=True,
        )
    for text in editor.notes(lm, requests):
        console.print(text, style="dim", soft_wrap=True)


def plan(
    lm: LM,
    editor: Editor,
    requests: Sequence[Edit],
    out: Path | None,
    clashes: Sequence[str],
    json: bool,
) -> None:
    """Say what would be done."""
    document = {
        "dry_run": True,
        "model": lm.name,
        "editor": editor.name,
        "edits": len(requests),
        "sites": _views.sites(lm),
        "settings": _views.settings(editor),
        **_views.estimate(lm, editor, requests),
        "layers_from": editor.blocks_from(lm),
        "settings_from": editor.settings_from or None,
        "moments": _views.moments_state(lm, editor),
        "contradictions": list(clashes),
        "out": None if out is None else str(out),
    }
    for request in requests:
        lm.row_of(request, subject=request.subject is not None)
    if json:
        _output.print_json(document)
        return
    console = _output.out()
    console.print(_views.headline(lm))
    table = _output.table("what", "value")
    table.add_row("editor", f"{editor.name}: {editor.title}")
    table.add_row("edits", str(len(requests)))
    layers = document["layers"]
    shown = ", ".join(map(str, layers)) if isinstance(layers, list) else str(layers)
    origin = document["layers_from"]
    table.add_row("blocks", f"{shown} ({origin})" if shown and origin else shown or "none")
    if editor.settings_from:
        table.add_row("settings", editor.settings_from)
    if document["moments"] is not None:
        table.add_row("second moments", document["moments"])
    size = document["patch_bytes"]
    if size is None:
        table.add_row("patch", "changes no weight")
    else:
        least, most = _output.size(size["least"]), _output.size(size["most"])
        table.add_row("patch", f"{least} (low rank) to {most} (whole matrices)")
    for key, value in document["settings"].items():
        table.add_row(f"  {key}", str(value))
    console.print(table)
    where = "The patch would not be saved: no --out." if out is None else f"It would go to {out}/"
    console.print(f"Dry run: nothing was edited or written. {where}", soft_wrap=True)


def edits(console: Console, entries: Sequence[EditReport]) -> None:
    """Print one line per edit: all that were not taken, and the first of those that were."""
    from rich.text import Text

    listed = 0
    for entry in entries:
        if entry.taken:
            listed += 1
            if listed > LISTED:
                continue
        text = Text.assemble(
            _views.mark(entry.taken),
            _views.asked(entry.edit.prompt, entry.edit.chat),
            " → ",
            (shown(entry.edit.target), "bold"),
        )
        text.append(f"  {_share(entry.p_before)} → {_share(entry.p_after)}")
        if entry.says is not None:
            text.append(f"  says {_views.said(entry.says)}")
        console.print(text)
    if listed > LISTED:
        console.print(f"… and {listed - LISTED} more that were taken")


def outcome(console: Console, report: Report, entries: Sequence[EditReport]) -> None:
    """Print what became of the edits, what to try, and what else moved; one line each."""
    taken = sum(entry.taken is True for entry in entries)
    console.print(f"{taken} of {_output.counted(len(entries), 'edit')} taken")
    _missed(console, [entry for entry in entries if entry.taken is False])
    for lost, what in ((report.lost, "no longer hold"), (report.weaker, "hold less firmly")):
        _earlier(console, lost, what)
    line = report.line()
    if line:
        console.print(line)
    _sequence(console, report)


def _missed(console: Console, missed: Sequence[EditReport]) -> None:
    """Print what was tried and what to try; once for all edits that share it."""
    from rich.padding import Padding
    from rich.text import Text

    groups: dict[tuple[str, tuple[str, ...]], list[EditReport]] = {}
    for entry in missed:
        groups.setdefault((entry.tried, entry.advice), []).append(entry)
    for (tried, advice), entries in groups.items():
        names = ", ".join(shown(entry.edit.target) for entry in entries[:3])
        names += " …" if len(entries) > 3 else ""
        text = Text.assemble(("not taken", "bold red"), f": {names}")
        far = [entry for entry in entries if entry.tokens and entry.tokens > 1 and entry.right]
        if len(entries) == 1 and far:
            text.append(f" ({far[0].right} of {far[0].tokens} tokens come right)")
        if tried:
            text.append(f"; tried {tried}")
        console.print(text)
        for line in advice:
            console.print(Padding(Text(f"may help: {line}"), (0, 0, 0, 2)))


def _earlier(console: Console, lost: Sequence[EditReport], what: str) -> None:
    from rich.text import Text

    if not lost:
        return
    verb = what if len(lost) > 1 else what.replace("hold", "holds")
    parts = [
        f"{entry.edit.prompt} → {shown(entry.edit.target)} "
        f"({_share(entry.p_before)} → {_share(entry.p_after)})"
        for entry in lost[:3]
    ]
    more = " …" if len(lost) > 3 else ""
    count = _output.counted(len(lost), "earlier edit")
    console.print(Text.assemble((f"{count} {verb}", "bold red"), f": {'; '.join(parts)}{more}"))


def _sequence(console: Console, report: Report) -> None:
    from errata.inspection.limits import COLLAPSED, DAMAGED, times, worst

    found = report.sequence
    if not found:
        return
    ratio = worst(found["points"])
    if ratio > DAMAGED:
        state = "collapsed" if ratio > COLLAPSED else "is damaged"
        console.print(
            f"the model {state}: the perplexity of general sentences is up to {times(ratio)} that "
            "of the unedited model"
        )
    if found.get("stopped"):
        stopped = found["stopped"]
        console.print(
            f"stopped by {stopped['when']}: {_output.counted(stopped['kept'], 'edit')} kept, "
            f"{stopped['left_out']} left out"
        )


def candidates(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what several editors made of the same edits."""
    table = _output.table("editor", "taken", "probability", "neighbours moved", "sentences KL",
                          right=(1, 2, 3, 4))  # fmt: skip
    for row in rows:
        name = f"{row['editor']}{' ← best' if row.get('chosen') else ''}"
        if not row["tried"]:
            table.add_row(name, "not tried")
        elif "error" in row:
            table.add_row(name, "failed")
        else:
            from errata.patch.report import nats

            kl = row["kl_mean"]
            table.add_row(
                name, f"{row['taken']} of {row['edits']}", f"{row['p_after']:.4f}",
                f"{row['moved']} of {row['asked']}", "–" if kl is None else nats(kl),
            )  # fmt: skip
    console.print(table)
    for row in rows:
        if "error" in row:
            console.print(f"{row['editor']}: {row['error']}")


def shown(target: str) -> str:
    """Return a target as it is listed; with its white space if it has any at the end or within."""
    bare = target.strip()
    odd = target.rstrip() != target or not bare.isprintable()
    text = repr(target.lstrip()) if odd else bare
    return text if len(text) <= 60 else f"{text[:57]}…"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
