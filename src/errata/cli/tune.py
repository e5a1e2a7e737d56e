"""`errata tune`: find the settings with which an editor works on a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output, _views
from errata.cli._options import (
    EditorOptions,
    ForceFlag,
    JsonFlag,
    LoadOptions,
    editor_names,
    expand,
    model_names,
)
from errata.errors import ConfigError

if TYPE_CHECKING:
    from errata.searching.result import Tuned
    from errata.searching.trials import Stats

EXAMPLES = (
    "errata tune smollm2 --editor memit --minutes 15 --dtype bfloat16",
    "errata tune ./my-model --editor rome --facts facts.json",
    "errata edit --model smollm2 --edits facts.jsonl --editor memit",
)
SHOWN = 10  # settings in the table


@expand
def tune(
    load: LoadOptions,
    model: Annotated[
        str | None,
        typer.Argument(
            help="pocket, smollm2, a folder, a GGUF file, or a Hub id.", autocompletion=model_names
        ),
    ] = None,
    named: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The same as the argument.", autocompletion=model_names),
    ] = None,
    editor: Annotated[
        str,
        typer.Option(
            "--editor",
            "-e",
            metavar="NAME",
            help="An editor that writes into weights and needs no training.",
            autocompletion=editor_names,
        ),
    ] = EditorOptions.editor,
    facts: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|NAME:PATH|FILE",
            help="True facts instead of those that ship with errata: known_1000, counterfact:PATH"
            " …, or a .json or .jsonl file with the fields subject, prompt and attribute.",
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Time for all of it; what an earlier run spent counts.")
    ] = 15.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of facts and candidates.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="A setting that is given and not searched. Repeatable.",
        ),
    ] = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Find settings of an editor with which it writes, spreads and spares on a model.

    Candidates are tried on facts that the model knows: is the edit written, do paraphrases follow,
    do other subjects keep their answers? The best is measured on facts that were held out, beside
    the rule of thumb, and kept: the editor takes it when this model is edited. A search that is
    interrupted goes on where it stopped.
    """
    if model is not None and named is not None and model != named:
        raise ConfigError(f"two models are named: {model} and {named}", "Give one of them.")
    which = model or named
    if which is None:
        raise ConfigError("no model is named", f"Example: {EXAMPLES[0]}")
    from errata.searching.search import check, search

    check(editor, which, facts, minutes, settings or ())
    lm = load.load_named(which)
    try:
        with _output.progress(f"tuning {editor} for {lm.name}, seconds") as step:
            found = search(
                lm, editor, facts,
                minutes=minutes, seed=seed, force=force, progress=step, overrides=settings or (),
            )  # fmt: skip
    except KeyboardInterrupt:
        _output.note("stopped; the same command goes on with what is left")
        raise
    if json:
        _output.print_json(found.as_dict())
        return
    console = _output.out()
    console.print(_views.headline(lm))
    _print(console, found)


def _print(console: Any, found: Tuned) -> None:
    from errata.searching.budget import RUNGS
    from errata.searching.result import shown

    deal = found.deal
    counts = list(deal.known.values())
    console.print(
        f"{sum(known for known, _ in counts)} of {sum(all for _, all in counts)} facts known"
        f" ({deal.name}) · {len(deal.search)} for the search, {found.held.facts} held out ·"
        f" {_output.counted(found.candidates, 'setting')} tried · {_output.seconds(found.seconds)}",
        soft_wrap=True,
    )
    if deal.left_out:
        names = ", ".join(deal.left_out[:SHOWN])
        more = len(deal.left_out) - SHOWN
        console.print(
            f"Left out, too few known: {names}{f' and {more} more' if more > 0 else ''}.",
            soft_wrap=True,
        )
    least = min(RUNGS[-1], len(deal.search))
    table = _output.table("", "written", "spread", "neighbours lost", "kept", "settings")
    for one in _rows(found):
        mark = "●" if one.front else ""
        table.add_row(mark, *_cells(one.stats), shown(one.settings))
    console.print(table)
    few = found.tried[0].stats.facts if found.tried else 0
    short = f" Measured on {few} facts; there was no time for more." if 0 < few < least else ""
    console.print(f"● nothing else is better in all four.{short} On facts that were held out:")
    held = _output.table("", "written", "word for word", "spread", "neighbours lost", "kept")
    for label, stats in (("rule of thumb", found.held_rule), ("chosen", found.held)):
        written, *others = _cells(stats)
        held.add_row(label, written, _percent(stats.wild), *others)
    console.print(held)
    console.print(f"Chosen: {shown(found.settings)}", soft_wrap=True)
    told = (
        "" if found.works else " It is the best that was found, and not good: try another editor."
    )
    console.print(
        f"Kept: --editor {found.editor} takes it for this model, unless --set or --as-published"
        f" say otherwise.{told}",
        soft_wrap=True,
    )


def _rows(found: Tuned) -> list[Any]:
    """Return the rows of the table: the front and the best, the rule of thumb in any case."""
    first = [one for one in found.tried if one.front]
    rows = (first + [one for one in found.tried if not one.front])[:SHOWN]
    rule = [one for one in found.tried if not one.settings and one not in rows]
    return sorted(rows + rule, key=lambda one: -one.stats.value)


def _cells(stats: Stats) -> tuple[str, str, str, str]:
    lost = 100 * stats.ns_lost
    return (
        _percent(stats.written), _percent(stats.spread), f"{lost:.1f} points",
        _percent(stats.kept),
    )  # fmt: skip


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
