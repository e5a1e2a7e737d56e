"""UltraEdit: one normalised ridge step per turn, without training, subject or memory of keys.

At every answer token the output of a projection is to move against the loss' gradient, by an amount
that its key decides; both are measured in deviations over all edits so far (`nets.lifelong`), and
one ridge regression joins all tokens of a turn. It is solved with one row per token (`N x N`), not
per input (`f x f`): the same numbers, a hundredth of the time, and exactly low-rank.

`order=free` is errata's own: all signals are taken on the unedited model and every edit keeps its
rows, so that the result is that of one turn of all edits, in any order, and any edit can be taken
back (`errata remove`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from errata.case import Edit
from errata.data import load_edits
from errata.editors.base import (
    TOGETHER,
    Cost,
    Editor,
    resolve_layer,
    under,
)
from errata.editors.contradictions import refuse_earlier
from errata.editors.ultraedit.settings import LEAST_ROWS, Blocks, UltraEditConfig
from errata.editors.ultraedit.signals import (
    Signal,
    Standardised,
    inner_site,
    own_changes,
    shape_of,
    signals_of,
)
from errata.errors import ConfigError, EditError
from errata.model.lm import LM
from errata.model.spec import Site
from errata.model.tokens import Row, patched
from errata.nets.lifelong import RowStats, wanted
from errata.patch import Change, LowRank, Patch
from errata.patch.changes.ridge import Rows, ridge_factors
from errata.patch.deltas import bounded
from errata.patch.removal import edit_key
from errata.progress import tracked

AT_ONCE = 64
"""Edits whose signals are held at every token, before those of the answers are picked out."""

TURN = 100
"""Edits of one turn of the warm-up, as published."""


def _blocks(value: object) -> Blocks:
    return value if isinstance(value, tuple) else ()


def _published(
    layers: range | None, gate: range | None = None, up: range | None = None
) -> dict[str, object]:
    named = {"layers": layers, "gate_layers": gate, "up_layers": up}
    return {name: tuple(blocks or ()) for name, blocks in named.items()}


class UltraEdit(Editor):
    """UltraEdit: a ridge step against gradients, normalised over all edits so far."""

    name = "ultraedit"
    in_turns = True
    title = "UltraEdit"
    paper = (
        "Gu et al., UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language "
        "Models, TMLR 2026, arXiv:2505.14679; whitening and warm-up: "
        "StableEdit (More Edits, More Stable), ICML 2026"
    )
    needs = ()
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = UltraEditConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "gpt-j-6b": _published(range(18, 27)),
        "llama-3-8b": _published(None, range(11, 16), range(18, 25)),
        "mistral-7b": _published(range(29, 31)),
        "qwen2.5-7b": _published(None, range(18, 27), range(18, 27)),
    }
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # what 200 facts of the world's validation part in turns of 20 leave whole: docs/methods.md
        "pocket": {"layers": (5,), "lr": 1.2e-3, "whiten": True},
        # what 3,000 facts of WikiBigEdit in turns of 100 leave whole: docs/methods.md
        "smollm2": {"lr": 3e-4},
    }
    config: UltraEditConfig

    # ------------------------------------------------------------------ where

    def edited_layers(self, lm: LM) -> Blocks:
        """Return the blocks that are edited, ascending."""
        return tuple(sorted({layer for layer, _ in self.sites(lm)}))

    def made_of(self, lm: LM) -> dict[str, str]:
        """Return the blocks, which `auto` chooses."""
        return {"layers": " ".join(map(str, self.edited_layers(lm)))}

    def sites(self, lm: LM) -> list[tuple[int, Site]]:
        """Return block number and projection of every edited matrix, lowest block first.

        Raises:
            ConfigError: If no matrix is chosen, or a block has none of the kind.
        """
        config = self.config
        out, gate, up = config.layers, config.gate_layers, config.up_layers
        if out == "auto":
            known = self.known_settings(lm)
            out = ()
            if not (gate or up):
                out, gate, up = (_blocks(known.get(name, ()))
                                 for name in ("layers", "gate_layers", "up_layers"))  # fmt: skip
            if not (out or gate or up):
                first = min(lm.n_layers - 1, round(0.85 * lm.n_layers))
                out = tuple(range(first, max(first + 1, round(0.97 * lm.n_layers))))
        chosen = {
            (resolve_layer(lm, number, 0), place, kind)
            for place, (kind, numbers) in enumerate((("gate", gate), ("up", up), ("out", out)))
            for number in numbers
        }
        if not chosen:
            raise ConfigError("no matrix is edited", "Example: --set layers=3")
        return [
            (n, lm.site(n) if kind == "out" else inner_site(lm, n, kind))
            for n, _, kind in sorted(chosen)
        ]

    def rule_of(self, lm: LM) -> str:
        """Say which blocks these are."""
        return "rule: the blocks at 85 to 97 percent of the depth"

    def cost(self, lm: LM) -> Cost:
        """A pass forward and one back; the signals of a turn at every edited matrix."""
        wide = sum(site.d_in + site.d_out for _, site in self.sites(lm))
        return Cost(passes=2.0, held=8.0 * wide * TOGETHER)

    # ------------------------------------------------------------------ editing

    @torch.no_grad()
    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Take the signals of all groups side by side, then solve for each."""
        sites = self.sites(lm)
        if self.config.order == "free":
            signals = self._signals(lm, sites, groups, [Patch()] * len(groups))
            return [
                self._joined(lm, sites, group, own, patch)
                for group, own, patch in zip(groups, signals, before, strict=True)
            ]
        starts = [self._start(lm, sites, group, old)
                  for group, old in zip(groups, before, strict=True)]  # fmt: skip
        signals = self._signals(
            lm, sites, groups,
            [old + Patch(tuple(start.changes)) for old, start in zip(before, starts, strict=True)],
        )  # fmt: skip
        return [
            self._turn(lm, sites, group, own, start)
            for group, own, start in zip(groups, signals, starts, strict=True)
        ]

    def _signals(
        self,
        lm: LM,
        sites: Sequence[tuple[int, Site]],
        groups: Sequence[Sequence[Edit]],
        before: Sequence[Patch],
    ) -> list[list[list[Signal]]]:
        """Return for each group and edit its signal at every site."""
        found: list[list[list[Signal]]] = [[[] for _ in group] for group in groups]
        for numbers, places in under(lm, before):
            rows: list[tuple[int, int, Row]] = []
            for g, place in zip(numbers, places, strict=True):
                own = patched([lm.row_of(edit) for edit in groups[g]], [place] * len(groups[g]))
                rows += [(g, i, row) for i, row in enumerate(own)]
            # alone, so that an edit's rows are the same to the bit whatever it is made with
            step = 1 if self.config.order == "free" else AT_ONCE
            for first in tracked(range(0, len(rows), step), "signals of edits, chunk"):
                some = rows[first : first + step]
                for (g, i, _), signal in zip(
                    some, signals_of(lm, sites, [row for *_, row in some]), strict=True
                ):
                    found[g][i] = signal
        return found

    # ------------------------------------------------------------------ turns, as published

    def _turn(
        self,
        lm: LM,
        sites: Sequence[tuple[int, Site]],
        group: Sequence[Edit],
        signals: Sequence[Sequence[Signal]],
        start: _Start,
    ) -> Patch:
        """Take one turn into the statistics, then solve for every matrix."""
        stats, changes = self._solved(sites, signals, start.stats)
        state = {
            name: tensor
            for shape, own in stats.items()
            for name, tensor in own.tensors(f"ultraedit.{shape}").items()
        }
        return self.make_patch(lm, [*start.changes, *changes], group, **state)

    def _solved(
        self,
        sites: Sequence[tuple[int, Site]],
        signals: Sequence[Sequence[Signal]],
        stats: Mapping[str, RowStats],
        *,
        whiten: bool | None = None,
    ) -> tuple[dict[str, RowStats], list[Change]]:
        """Return the statistics after a turn, and its changes."""
        config = self.config
        whiten = config.whiten if whiten is None else whiten
        stats = dict(stats)
        scaled = [list(own) for own in signals]
        step = config.batch_size if config.compat else len(signals)
        for first in range(0, len(signals), step):
            batch = range(first, min(first + step, len(signals)))
            tokens = sum(len(signals[i][0][0]) for i in batch)
            for number, (_, site) in enumerate(sites):
                for i in batch:
                    h, g = signals[i][number]
                    scaled[i][number] = (h, g / tokens) if config.compat else (h, g)
                rows = torch.cat([torch.cat(scaled[i][number], 1) for i in batch])
                stats[shape_of(site)] = stats[shape_of(site)].add(rows, released=config.compat)
        changes: list[Change] = []
        for number, (_, site) in enumerate(sites):
            H = torch.cat([own[number][0] for own in scaled])
            G = torch.cat([own[number][1] for own in scaled])
            standard = stats[shape_of(site)].standard(H, G, whiten=whiten, released=config.compat)
            V = wanted(*standard, config.lr).to(H.dtype)
            changes.append(LowRank(site.path, *ridge_factors(H, V, config.ridge)))
        return stats, changes

    def _start(
        self, lm: LM, sites: Sequence[tuple[int, Site]], group: Sequence[Edit], old: Patch
    ) -> _Start:
        """Return the statistics that a turn goes on from, and what a warm-up has written."""
        empty = self._empty(lm, sites)
        stats = {
            shape: RowStats.from_tensors(old.state, f"ultraedit.{shape}", none)
            for shape, none in empty.items()
        }
        way = self.config.warmup
        if way == "off" or any(own.count for own in stats.values()):
            return _Start(stats, ())
        if way == "auto":
            tokens = sum(len(lm.row_of(edit).labels) for edit in group)
            if tokens >= LEAST_ROWS:
                return _Start(stats, ())
        return lm.once("ultraedit warm-up", lambda: self._warmed(lm, sites, way), owner=self)

    def _empty(self, lm: LM, sites: Sequence[tuple[int, Site]]) -> dict[str, RowStats]:
        return {
            shape_of(site): RowStats.empty(site.d_in, site.d_out, self.config.whiten, lm.device)
            for _, site in sites
        }

    def _warmed(self, lm: LM, sites: Sequence[tuple[int, Site]], way: str) -> _Start:
        """Take the statistics of other texts, in turns; write them too if that is wanted."""
        rows = self._other_rows(lm)
        stats, changes = self._empty(lm, sites), []
        for first in range(0, len(rows), TURN):
            with Patch(tuple(changes)).applied(lm):
                signals = signals_of(lm, sites, rows[first : first + TURN])
            stats, made = self._solved(sites, signals, stats, whiten=False)
            if way == "edits":
                changes = list(Patch((*changes, *made)).compact().changes)
        return _Start(stats, tuple(changes))

    def _other_rows(self, lm: LM) -> list[Row]:
        """Return the rows of a warm-up.

        Raises:
            DataError: If there is no such data set.
        """
        given = self.config.warmup_data
        edits = load_edits("jsonl:sample" if given is None else given)
        rows = [lm.row_of(edit) for edit in edits[: self.config.warmup_edits]]
        if given is not None:
            return rows
        every = []
        for row in rows:  # every token of a sentence is predicted, not its last alone
            ids = (*row.ids, row.labels[-1])
            every.append(replace(row, positions=tuple(range(len(row.ids))), labels=ids[1:]))
        return every

    # ------------------------------------------------------------------ free of order

    def _joined(
        self,
        lm: LM,
        sites: Sequence[tuple[int, Site]],
        group: Sequence[Edit],
        signals: Sequence[Sequence[Signal]],
        old: Patch,
    ) -> Patch:
        """Solve for the edits of an earlier patch and these together."""
        config = self.config
        if config.warmup in ("stats", "edits") or config.compat:
            raise ConfigError(
                "order=free takes its statistics from its own edits: it has no warm-up, and "
                "nothing of it was released",
                "Leave out warmup and compat.",
            )
        mine = {change.path: change for change in own_changes(old, self.name)}
        held = {name for change in mine.values() for name in change.holds}
        refuse_earlier(old.edits, group, held, config.conflicts)
        names = [edit_key(edit) for edit in group]
        changes: list[Change] = []
        for number, (_, site) in enumerate(sites):
            rows: list[Rows] = [
                (name, *own[number]) for name, own in zip(names, signals, strict=True)
            ]
            earlier = mine.get(site.path)
            if earlier is not None:
                changes.append(earlier.with_rows(rows))
                continue
            if sum(len(h) for _, h, _ in rows) < 2:
                raise EditError(
                    f"{group[0].prompt!r} has one answer token, and with order=free statistics are "
                    "those of the edits alone: one token has no deviation",
                    "Give several edits at once, or leave order at turns.",
                    edits=tuple(group),
                )
            changes.append(
                Standardised.of(
                    site.path, rows, config.ridge, self.name, lr=config.lr, whiten=config.whiten
                )
            )
        return self.make_patch(lm, changes, group)

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Put what was solved anew in the place of what it contains."""
        if self.config.order == "turns":  # a long sequence is no larger than what it changes
            return bounded(lm, before + added)
        gone = own_changes(before, self.name)
        kept = tuple(c for c in before.changes if not any(c is old for old in gone))
        return replace(before, changes=kept) + added


@dataclass(frozen=True)
class _Start:
    """What a turn goes on from: statistics by shape, and what a warm-up wrote."""

    stats: Mapping[str, RowStats]
    changes: tuple[Change, ...]
