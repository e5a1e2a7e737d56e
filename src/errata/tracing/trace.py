"""Causal tracing: which blocks recall what a model knows of a subject, at which tokens.

A fact's subject is corrupted by noise until the model no longer says the answer; then single clean
states are put back, and how much of the answer's probability returns is their indirect effect
(Meng et al. 2022, section 2 and appendix B). Averaged over facts that the model knows, the effect
of the FFN at the subject's last token shows where subjects are recalled. That peak is what
`layer=auto` means for a model that was traced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from errata.case import Edit
from errata.config import did_you_mean
from errata.errors import ConfigError, DataError, EditError
from errata.model.tokens import Row
from errata.progress import Step
from errata.store.cache import digest, folder_name, load_json, load_tensors, save_json, save_tensors
from errata.store.files import cache_root
from errata.tracing.effects import (
    KINDS,
    ROLES,
    Choice,
    Trace,
    TraceSettings,
    roles_of,
    window_of,
    window_size,
)
from errata.tracing.restore import Item, Runs, embedding_std, noise_of, together

if TYPE_CHECKING:
    from errata.model.lm import LM

log = logging.getLogger(__name__)
FORMAT = 1

SAVE_SECONDS = 30.0


def known_facts(
    lm: LM,
    facts: Sequence[Edit],
    limit: int | None = None,
    progress: Step | None = None,
) -> tuple[list[Edit], list[Row], int]:
    """Keep the facts that the model answers correctly: every token of the answer is the likeliest.

    Args:
        lm: The model.
        facts: Prompts with subjects; the target is the true answer.
        limit: Stop at this many known facts.
        progress: Called with (known, wanted).

    Returns:
        The known facts; for each the row of its prompt, whose label is the answer's first token;
        and how many facts were asked.

    Raises:
        EditError: If a fact has no subject, or it is not in the prompt.
    """
    known: list[Edit] = []
    rows: list[Row] = []
    asked = 0
    wanted = min(limit or len(facts), len(facts))
    while asked < len(facts) and len(known) < wanted:
        part = facts[asked : asked + max(wanted, 64)]
        for fact in part:
            if fact.subject is None:
                raise EditError(f"the fact {fact.prompt!r} has no subject; tracing corrupts it")
        # the released code corrupts the first occurrence
        full = [lm.row_of(replace(fact, subject_at="first"), subject=True) for fact in part]
        for fact, row, score in zip(part, full, lm.score(full), strict=True):
            if len(known) == wanted:
                break
            asked += 1
            if not any(score.ranks):
                n = row.prompt_length
                known.append(fact)
                rows.append(Row(row.ids[:n], (n - 1,), row.labels[:1], n, row.subject))
        if progress is not None:
            progress(len(known), wanted)
    return known, rows, asked


def trace(
    lm: LM,
    facts: Sequence[Edit],
    settings: TraceSettings | None = None,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    limit: int | None = None,
    data: str = "given facts",
    progress: Step | None = None,
) -> Trace:
    """Trace facts that the model knows; finished facts are kept in the cache as they come.

    An interrupted trace goes on where it stopped, with the same numbers, and a finished one is only
    read. Weights, facts and settings name the file.

    Args:
        lm: The model; it is not changed.
        facts: Prompts with subjects; the target is the true answer. Unknown ones are left out.
        settings: Noise, draws and window.
        kinds: Which states are restored: `hidden`, `ffn`, `attn`.
        limit: Number of known facts to trace.
        data: Where the facts come from, for the records.
        progress: Called with (facts done, facts).

    Raises:
        ConfigError: If a kind is unknown.
        DataError: If the model answers none of the facts.
        EditError: If a fact has no subject, or it is not in the prompt.
        ModelError: If the model holds NaN weights.
    """
    settings = settings or TraceSettings()
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"unknown kind of state {kind!r}", did_you_mean(kind, KINDS))
    if not kinds:
        raise ConfigError("no kind of state to restore", f"Known: {', '.join(KINDS)}")
    lm.check_finite()
    known, rows, asked = known_facts(lm, facts, limit)
    if not known:
        raise DataError(
            f"{lm.name} answers none of {asked} facts of {data} correctly",
            "Tracing needs facts that the model knows; give others with --data.",
        )
    token_ids = [[*row.ids, *row.labels, *(row.subject or ())] for row in rows]
    name = digest(FORMAT, lm.fingerprint, str(lm.dtype), settings.model_dump(), token_ids)
    table = _Table(_folder(lm) / f"{name}.safetensors", len(rows), lm.n_layers, kinds)
    std = embedding_std(lm, rows)
    window = window_size(settings, lm.n_layers)
    try:
        for group in together(lm, rows, settings.samples):
            missing = [kind for kind in kinds if not bool(table.done[kind][group].all())]
            if not missing:
                continue
            width = lm.embedding.shape[1]
            noise = [
                settings.noise * std * noise_of(rows[i], settings.samples, width, settings.seed)
                for i in group
            ]
            table.add(group, _effects(lm, [rows[i] for i in group], noise, missing, window))
            if progress is not None:
                progress(int(table.finished(kinds).sum()), len(rows))
    finally:
        table.save()  # also when interrupted: what is done is done
    effects = {kind: table.effects[kind] for kind in KINDS if kind in kinds}
    found = Trace(
        lm.name, lm.fingerprint, data, asked, settings.noise * std, window, settings,
        table.clean, table.corrupted, effects, name,
    )  # fmt: skip
    if "ffn" in found.effects:
        save_json(_folder(lm) / f"{name}.json", {"format": FORMAT, **found.as_dict()})
    return found


def _effects(
    lm: LM,
    rows: Sequence[Row],
    noise: Sequence[Tensor],
    kinds: Sequence[str],
    window: int,
) -> dict[str, Tensor]:
    """Trace some facts: clean and corrupted probabilities, and per kind the effects `[f, 6, L]`."""
    runs = Runs(lm, rows, noise, [KINDS[kind] for kind in kinds])
    clean = runs.answers().double().cpu()
    nothing = [Item(number, ()) for number in range(len(rows))]
    last = lm.n_layers - 1
    corrupted = runs.restored(nothing, "block", range(last, last + 1)).mean(1).cpu()
    found = {"clean": clean, "corrupted": corrupted}
    items = [
        Item(number, (token,))
        for number, row in enumerate(rows)
        for tokens in roles_of(row).values()
        for token in tokens
    ]
    places = [role for row in rows for role, tokens in roles_of(row).items() for _ in tokens]
    line = torch.tensor([i.fact * len(ROLES) + r for i, r in zip(items, places, strict=True)])
    count = torch.bincount(line, minlength=len(rows) * len(ROLES)).double()
    for kind in kinds:
        effects = torch.full((len(rows) * len(ROLES), lm.n_layers), torch.nan, dtype=torch.float64)
        for layer in range(lm.n_layers):
            layers = window_of(layer, 1 if kind == "hidden" else window, lm.n_layers)
            p = runs.restored(items, KINDS[kind], layers).mean(1).cpu()
            gained = p - corrupted[torch.tensor([item.fact for item in items])]
            total = torch.zeros_like(count).index_add(0, line, gained)
            effects[:, layer] = torch.where(count > 0, total / count, torch.nan)
        found[kind] = effects.view(len(rows), len(ROLES), lm.n_layers)
    return found


class _Table:
    """Effects of facts on disk: what an earlier run finished is there at once.

    Args:
        path: Its file.
        facts: Number of facts.
        layers: Number of blocks.
        kinds: Kinds that are wanted; others that the file holds are kept.
    """

    def __init__(self, path: Path, facts: int, layers: int, kinds: Sequence[str]) -> None:
        self.path = path
        stored = load_tensors(path)
        tensors = stored[0] if stored is not None else {}
        empty = torch.full((facts,), torch.nan, dtype=torch.float64)
        self.clean = tensors.get("clean", empty)
        self.corrupted = tensors.get("corrupted", empty.clone())
        self.effects: dict[str, Tensor] = {}
        self.done: dict[str, Tensor] = {}
        for kind in KINDS:
            if f"effects.{kind}" in tensors:
                self.effects[kind] = tensors[f"effects.{kind}"]
                self.done[kind] = tensors[f"done.{kind}"].bool()
            elif kind in kinds:
                shape = (facts, len(ROLES), layers)
                self.effects[kind] = torch.full(shape, torch.nan, dtype=torch.float64)
                self.done[kind] = torch.zeros(facts, dtype=torch.bool)
        self._saved, self._new = time.monotonic(), False

    def add(self, group: Sequence[int], found: Mapping[str, Tensor]) -> None:
        """Keep what was found for some facts; written to disk now and then."""
        where = list(group)
        self.clean[where], self.corrupted[where] = found["clean"], found["corrupted"]
        for kind in found.keys() & KINDS.keys():
            self.effects[kind][where] = found[kind]
            self.done[kind][where] = True
        self._new = True
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def finished(self, kinds: Sequence[str]) -> Tensor:
        """Say for each fact whether all these kinds are done."""
        return torch.stack([self.done[kind] for kind in kinds]).all(0)

    def save(self) -> None:
        """Write what has been added since the last time."""
        if not self._new:
            return
        tensors = {"clean": self.clean, "corrupted": self.corrupted}
        for kind, effects in self.effects.items():
            tensors |= {f"effects.{kind}": effects, f"done.{kind}": self.done[kind].byte()}
        save_tensors(self.path, tensors, {"format": FORMAT})
        self._saved, self._new = time.monotonic(), False


def _folder(lm: LM) -> Path:
    return cache_root() / "traces" / f"{folder_name(lm.name)}-{lm.fingerprint[:16]}"


def cached_choice(lm: LM) -> Choice | None:
    """Return the blocks that a trace of this very model chose, if it was traced before.

    Of several traces the one over most facts counts; of equal ones the newest. Nothing is computed.
    """
    if not (cache_root() / "traces").is_dir():
        return None  # spares the fingerprint of a large model
    folder = _folder(lm)
    best: tuple[int, float] | None = None
    chosen: Choice | None = None
    for path in folder.glob("*.json") if folder.is_dir() else ():
        found = load_json(path)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            continue
        choice = found["choice"]
        rank = (found["facts"], path.stat().st_mtime)
        if best is None or rank > best:
            best = rank
            chosen = Choice(**{**choice, "layers": tuple(choice["layers"])})
    return chosen
