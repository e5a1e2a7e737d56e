"""Making edits: together, one after another under watch, or by several editors in turn."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from errata.case import Edit
from errata.config import did_you_mean, parse_overrides
from errata.editors import editors, get_editor
from errata.errors import ConfigError, EditError, ErrataError
from errata.inspection.collapse import Watch, stops, unfit
from errata.inspection.limits import due, first_over, parse_limit, times, worst
from errata.inspection.look import look
from errata.patch.report import Report
from errata.store.words import counted

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.patch import Patch
    from errata.progress import Step

log = logging.getLogger(__name__)

REGIMES = ("joint", "sequential")
"""How the edits of one call meet: solved together, or one after another."""


def check_regime(regime: str, stop_when: str | None) -> None:
    """Refuse a regime that there is not, and a limit where nothing is measured.

    Raises:
        ConfigError: Says which there are.
    """
    if regime not in REGIMES:
        raise ConfigError(f"unknown regime {regime!r}", f"Known: {', '.join(REGIMES)}")
    if parse_limit(stop_when) is not None and regime != "sequential":
        raise ConfigError(
            "stop_when belongs to edits one after another; the regime is joint",
            "Add --regime sequential, or leave it out.",
        )


def make(
    lm: LM,
    editor: Editor,
    requests: Sequence[Edit],
    after: Patch | None,
    *,
    regime: str = "joint",
    stop_when: str | None = None,
    progress: Step | None = None,
) -> tuple[Patch, dict[str, Any] | None]:
    """Make the edits.

    Args:
        lm: The model.
        editor: The editor.
        requests: The edits, at least one.
        after: The patch that they build on.
        regime: `joint` or `sequential`.
        stop_when: A sequence stops where the perplexity of general sentences has risen that far,
            and what was made up to the last good measurement is kept. Default: at ten times, for
            editors that are not made for sequences; `never`: not at all.
        progress: Called with (done, total) between edits that are made one after another.

    Returns:
        The patch, and of a sequence what was measured along the way.

    Raises:
        EditError: If an edit cannot be made, or already the first one is beyond the limit.
    """
    if regime == "joint" or len(requests) == 1:
        return editor.edit_one(lm, requests, after), None
    stop_when = stops(editor, stop_when)
    limit = parse_limit(stop_when)
    watch = Watch(lm, limit, log.warning)
    told = unfit(editor)
    if told is not None:
        log.warning("%s", told)
    points: list[dict[str, Any]] = []
    good, made = after, 0
    stopped = False
    patch = after
    for number, request in enumerate(requests, start=1):
        if progress is not None:
            progress(number - 1, len(requests))
        patch = editor.edit_one(lm, [request], patch)
        if due(number, len(requests), limit is not None):
            stopped = watch.look(patch, number, points)
            if stopped:
                break
            good, made = patch, number
    found: dict[str, Any] = {"points": points, "collapsed_after": first_over(points)}
    if not stopped:
        assert patch is not None
        return patch, found
    if good is None or not made:
        raise EditError(
            f"already the first edit raises the perplexity of general sentences to "
            f"{times(worst(points))} that of the unedited model, beyond {stop_when}",
            "Nothing was made. Another editor, or fewer steps, may do less harm.",
        )
    left = len(requests) - made
    log.warning("stopped by %s: %s kept, %s left out", stop_when, counted(made, "edit"), left)
    return good, {**found, "stopped": {"when": stop_when, "kept": made, "left_out": left}}


# ---------------------------------------------------------------------- several editors


def built(
    names: Sequence[str | Editor],
    settings: Mapping[str, Any],
    overrides: Sequence[str] = (),
    as_published: str | None = None,
    model: str | None = None,
) -> list[Editor]:
    """Return several editors, each with those of the settings that it has.

    Args:
        names: Names, or editors as they are.
        settings: Settings by name.
        overrides: `key=value` strings; they win.
        as_published: A backbone, for editors with settings published for it.
        model: Name of the model.

    Raises:
        ConfigError: If an editor is unknown, or a setting is none of any of them.
    """
    given = {**settings, **parse_overrides(overrides)}
    fields = {
        name: set(editors.load(name).Config.model_fields)
        for name in names
        if isinstance(name, str) and name in editors
    }
    known = set().union(*fields.values())
    for key in given if len(fields) == len(names) else ():
        if key not in known:
            raise ConfigError(
                f"none of {', '.join(fields)} has a setting {key!r}", did_you_mean(key, known)
            )
    made = []
    for name in names:
        if not isinstance(name, str):
            made.append(name)
            continue
        own = fields.get(name)
        mine = {k: v for k, v in settings.items() if own is None or k in own}
        texts = [pair for pair in overrides if own is None or pair.partition("=")[0].strip() in own]
        made.append(get_editor(name, mine, texts, as_published, model))
    return made


def best(
    lm: LM,
    chosen: Sequence[Editor],
    requests: Sequence[Edit],
    after: Patch | None,
    *,
    regime: str = "joint",
    stop_when: str | None = None,
    progress: Step | None = None,
) -> tuple[Editor, Patch]:
    """Make the edits with several editors in turn, and return the best patch and who made it.

    Most edits taken, then fewest neighbours moved, then the order given. Where everything is taken
    and nothing moved, the editors behind are not tried.

    Raises:
        ErrataError: That of the first editor, if none could make the edits.
    """
    rows: list[dict[str, Any]] = []
    found: tuple[tuple[int, float], Editor, Patch] | None = None
    first: ErrataError | None = None
    for editor in chosen:
        if found is not None and found[0] == (-len(requests), 0.0):
            rows.append({"editor": editor.name, "tried": False})
            continue
        try:
            patch, told = make(
                lm, editor, requests, after, regime=regime, stop_when=stop_when, progress=progress
            )
        except ErrataError as error:
            first = first or error
            rows.append({"editor": editor.name, "tried": True, "error": error.message})
            continue
        patch = look(lm, patch, requests, after, editor=editor, sequence=told)
        row = figures(editor, patch.report, editor.meant(lm, requests))
        rows.append(row)
        rank = (-row["taken"], row["moved"] / row["asked"] if row["asked"] else 0.0)
        if found is None or rank < found[0]:
            found = (rank, editor, patch)
    if found is None:
        assert first is not None
        raise first
    _, editor, patch = found
    for row in rows:
        row["chosen"] = row["editor"] == editor.name
    return editor, replace(patch, aftermath={**patch.aftermath, "candidates": rows})


def figures(editor: Editor, report: Report, requests: Sequence[Edit]) -> dict[str, Any]:
    """Return what editors are compared by."""
    entries = report.on(requests)
    kl = report.sentences
    return {
        "editor": editor.name,
        "tried": True,
        "taken": sum(entry.taken is True for entry in entries),
        "edits": len(entries),
        "p_after": sum(entry.p_after or 0.0 for entry in entries) / len(entries),
        "moved": len(report.moved),
        "asked": len(report.neighbours),
        "kl_mean": None if kl is None else kl.as_dict()["kl_mean"],
    }
