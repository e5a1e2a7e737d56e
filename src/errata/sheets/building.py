"""One patch out of a sheet: every fact edited on its own, the single patches added up in its order.

Since no fact is edited on top of another, a fact that is taken out or put in changes nothing about
the others, and what was edited once is kept: by what the model is, what the fact says and who edits
it. The patch is bit for bit that of a build from nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from errata import __version__
from errata.case import described
from errata.data._records import thaw
from errata.editors import editors
from errata.editors.fitting import fitted
from errata.errors import ConfigError, DataError, EditError, ErrataError, PatchError
from errata.inspection.look import look
from errata.inspection.turns import best, built, make
from errata.patch import Patch
from errata.patch.changes import Change, Dense, LowRank
from errata.sheets.fact import Fact
from errata.sheets.sheet import Sheet, digest_of_facts
from errata.store.cache import digest
from errata.store.files import cache_root

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.progress import Step

log = logging.getLogger(__name__)

FORMAT = 2
ADDED = "rome, memit, pmet, ft, lora and their relatives write weights, which add up."


@dataclass(frozen=True)
class Built:
    """A build.

    Attributes:
        patch: The patch; its `meta["sheet"]` names the sheet and its facts.
        made: Ids of the facts that were edited now.
        kept: Ids of those that an earlier build had edited.
        left_out: What is said of facts that are not valid.
    """

    patch: Patch
    made: tuple[str, ...]
    kept: tuple[str, ...]
    left_out: tuple[str, ...]


def editors_of(sheet: Sheet, model: str | None = None) -> list[Editor]:
    """Return the editors of a sheet, before a model is loaded.

    Args:
        sheet: The sheet.
        model: Name of the model; default: that of the sheet.

    Raises:
        ConfigError: If one is unknown, has no such setting, or makes patches that do not add up.
    """
    names = sheet.config.editor
    made = built(names, sheet.settings, (), None, model or sheet.config.model)
    for editor in made:
        if not editor.weights:
            raise ConfigError(
                f"a sheet cannot be built with {editor.name}: what it adds stands beside the "
                "weights, and the patches of single facts do not add up",
                ADDED if editor.name in editors else None,
            )
    return made


def check_facts(facts: Sequence[Fact], chosen: Sequence[Editor]) -> None:
    """Refuse a fact that none of the editors can carry out, before a model is loaded.

    Raises:
        EditError: Names the fact, and says what it lacks.
    """
    for fact in facts:
        wrong: ErrataError | None = None
        for editor in chosen:
            try:
                for edit in fact.edits:
                    editor.check(edit)
            except ErrataError as error:
                wrong = wrong or error
            else:
                break
        else:
            assert wrong is not None
            raise EditError(f"{fact.place}: {wrong.message}", wrong.hint)


def build(
    lm: LM,
    sheet: Sheet,
    *,
    at: date | None = None,
    fresh: bool = False,
    look_at: bool = True,
    progress: Step | None = None,
) -> Built:
    """Make the patch of all facts that are valid.

    Every fact is kept as soon as it is edited: a build that is killed goes on where it was.

    Args:
        lm: The base model; bit for bit the same afterwards.
        sheet: The sheet.
        at: The day on which facts have to be valid; default: today.
        fresh: Edit all facts again, whatever is kept.
        look_at: Whether the patch is asked for all edits, and what else moved.
        progress: Called with (facts done, facts, id).

    Raises:
        ConfigError: If an editor or a setting is unknown, or makes patches that do not add up.
        DataError: If no fact is valid.
        EditError: If a fact cannot be edited.
    """
    facts = sheet.valid(at)
    if not facts:
        raise DataError(f"no fact of {sheet.folder} is valid on {at or date.today()}")
    chosen = [fitted(editor, lm) for editor in editors_of(sheet, lm.name)]
    check_facts(facts, chosen)
    step: Callable[..., None] = progress or (lambda *_: None)
    there = [None if fresh else _kept(lm, chosen, fact) for fact in facts]
    if None in there:
        for editor in chosen:
            editor.prepare(lm)  # shows by itself how far it has come
    parts: list[Patch] = []
    made: list[str] = []
    for number, (fact, part) in enumerate(zip(facts, there, strict=True)):
        if part is None:
            step(number, len(facts), fact.id)  # what was kept says nothing of how long it takes
            part = _edited(lm, chosen, fact)
            made.append(fact.id)
        parts.append(part)
    step(len(facts), len(facts), "")
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    meta = {**thaw(total.meta), **_meta(parts), "sheet": _named(sheet, facts, parts)}
    # what an editor keeps for the edit after this one belongs to the last fact alone
    changes = _joined(total.changes)
    total = replace(total, changes=changes, meta=meta, state={}, results=(), aftermath={})
    total.check_finite()
    if look_at:
        total = look(lm, total, list(total.edits))
    kept = tuple(fact.id for fact in facts if fact.id not in made)
    return Built(total.dated(), tuple(made), kept, tuple(sheet.left_out(at)))


# ---------------------------------------------------------------------- single facts


def folder_of(lm: LM, chosen: Sequence[Editor], fact: Fact) -> Path:
    """Return where the patch of one fact is kept: by all that it depends on, and no more."""
    edits = [{k: v for k, v in described(edit).items() if k != "id"} for edit in fact.edits]
    # as the tokenizer and its chat template put them, which no fingerprint of weights covers
    texts = [[row.ids, row.labels] for row in map(lm.row_of, fact.edits)]
    makers = [
        [editor.name, editor.config.model_dump(mode="json"), editor.made_of(lm), editor.sources(lm)]
        for editor in chosen
    ]
    model = [lm.name, lm.revision, lm.fingerprint, str(lm.dtype), lm.device.type, lm.roughly]
    sites = [site.path for site in lm.spec.ffn_out]
    key = digest(FORMAT, __version__, torch.__version__, model, sites, makers, edits, texts)
    return cache_root() / "sheets" / key


def _kept(lm: LM, chosen: Sequence[Editor], fact: Fact) -> Patch | None:
    folder = folder_of(lm, chosen, fact)
    if not folder.is_dir():
        return None
    try:
        patch = Patch.load(folder)
        patch.check(lm)
        patch.check_finite()
        _check_sum(patch)
    except PatchError as error:
        log.warning("%s cannot be used (%s); %s is edited again", folder, error.message, fact.id)
        return None
    return replace(patch, edits=fact.edits)


def _edited(lm: LM, chosen: Sequence[Editor], fact: Fact) -> Patch:
    """Edit one fact on the base model, and keep it."""
    edits = list(fact.edits)
    try:
        if len(chosen) > 1:
            _, patch = best(lm, chosen, edits, None)
        else:
            patch, _ = make(lm, chosen[0], edits, None)
    except ErrataError as error:
        raise EditError(f"{fact.place}: {error.message}", error.hint) from error
    _check_sum(patch)
    rows = thaw(patch.aftermath).get("candidates")
    # what was asked was asked of this fact alone, and is asked again of all of them
    patch = replace(patch, state={}, results=(), aftermath={"candidates": rows} if rows else {})
    folder = folder_of(lm, chosen, fact)
    try:
        patch.save(folder, force=True)
    except ErrataError as error:
        log.warning("%s is not kept: %s", fact.id, error.message)
        return patch
    # read back, so that a patch that was kept and one that was not are made of the same
    return replace(Patch.load(folder), edits=fact.edits)


def _check_sum(patch: Patch) -> None:
    """Refuse changes that stand beside the weights: two of them would act on each other.

    Raises:
        PatchError: Names the editor.
    """
    for change in patch.changes:
        if not isinstance(change, LowRank | Dense):
            raise PatchError(
                f"patches of {patch.meta.get('editor')} do not add up: {change.label} stands "
                "beside the weights",
                ADDED,
            )


def _joined(changes: Sequence[Change]) -> tuple[Change, ...]:
    """Return changes with one difference per parameter: each is as large as the parameter is."""
    found: list[Change] = []
    at: dict[str, int] = {}
    for change in changes:
        if type(change) is Dense:
            number = at.setdefault(change.path, len(found))
            if number < len(found):
                earlier = found[number]
                assert isinstance(earlier, Dense)
                found[number] = replace(earlier, delta=earlier.delta + change.delta)
                continue
        found.append(change)
    return tuple(found)


# ---------------------------------------------------------------------- what a build says of itself


def _meta(parts: Sequence[Patch]) -> dict[str, Any]:
    """Return who made a build; settings only where all facts have the same."""
    names = list(dict.fromkeys(str(part.meta.get("editor")) for part in parts))
    configs = [thaw(part.meta.get("config") or {}) for part in parts]
    same = all(config == configs[0] for config in configs)
    return {"editor": ", ".join(names), "config": configs[0] if same else {}}


def _named(sheet: Sheet, facts: Sequence[Fact], parts: Sequence[Patch]) -> dict[str, Any]:
    entries: list[Mapping[str, Any]] = []
    for fact, part in zip(facts, parts, strict=True):
        entry = {**fact.described(), "editor": part.meta.get("editor")}
        rows = thaw(part.aftermath).get("candidates")
        entries.append({**entry, "tried": rows} if rows else entry)
    return {"name": sheet.name, "digest": digest_of_facts(facts), "facts": entries}
