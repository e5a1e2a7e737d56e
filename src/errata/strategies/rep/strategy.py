"""REP: an adapter in front of the edited projection that leads other forms of a fact to its key.

An edit is looked up by the key of its subject, and that key moves when the fact is asked in another
form: behind a long text, or with the subject named otherwise. REP leaves the host's update as it is
and learns, for each edit, a small gated map on what the projection sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from errata.case import Edit
from errata.editors.base import under
from errata.editors.base_located import LocateConfig, LocateEditor
from errata.locate.contexts import Contexts, ContextSettings, get_contexts
from errata.locate.keys import edit_keys
from errata.locate.own_text import text_for
from errata.locate.sinks import behind_sinks
from errata.locate.solve import unit, whiten
from errata.model.lm import LM
from errata.patch import Module, Patch
from errata.strategies.base import Strategy
from errata.strategies.rep.adapter import merge, split
from errata.strategies.rep.data import (
    ORDINARY_TEXTS,
    Forms,
    Keys,
    Ordinary,
    RepSettings,
    enough_words,
    forms_of,
    read_forms,
)
from errata.strategies.rep.training import train

POCKET: dict[str, object] = {
    "rep_target": "key",
    "rep_cls": 1.0,
    "rep_steps": 100,
    "rep_lr": 2e-3,
    "rep_words": 20,
}
"""Found on the built-in world's validation facts; see docs/methods.md. By the released recipe no
gate opens on the pocket model."""

RAW_TARGETS = ("memit", "emmet")
"""Hosts for which the released code takes the raw key for the target."""


class RepConfig(RepSettings, LocateConfig):
    """What the settings of every pair hold."""


@dataclass(frozen=True)
class _Material:
    """What is made once per model: contexts and ordinary texts."""

    contexts: Contexts
    texts: tuple[str, ...]
    words: int


class Rep(Strategy, LocateEditor):
    """Robust edit pathway: gated adapters that move perturbed keys onto the key of the edit."""

    name = "rep"
    title = "REP"
    paper = (
        "Yan et al., Keys to Robust Edits: from Theoretical Insights to Practical Advances, "
        "ACL 2025, arXiv:2410.09338"
    )
    hosts = ("emmet", "memit", "r_rome", "rome")
    weights = False
    exports = ()
    Settings = RepSettings
    overrides: ClassVar[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
        host: {"pocket": POCKET} for host in hosts
    }
    config: RepConfig

    def prepare(self, lm: LM) -> None:
        """Prepare the host, sample contexts and read texts."""
        super().prepare(lm)
        self._material(lm)

    # ------------------------------------------------------------------ what adapters learn from

    def _material(self, lm: LM) -> _Material:
        return lm.once("REP's material", lambda: self._made_material(lm), owner=self)

    def _made_material(self, lm: LM) -> _Material:
        settings = self.config
        contexts = get_contexts(
            lm, ContextSettings(contexts=settings.rep_contexts, seed=settings.seed)
        )
        contexts = behind_sinks(lm, contexts, self.edited_layers(lm), settings)
        texts: tuple[str, ...] = ()
        words = settings.rep_words
        if (settings.rep_long and settings.rep_compat == "none") or settings.rep_cls:
            source = settings.rep_text or settings.moments_text
            texts = text_for(lm, source, settings.rep_documents).texts
            words = enough_words(texts, words)
        return _Material(contexts, texts, words)

    @property
    def edits_experts(self) -> bool:
        """Its adapters stand at one matrix per block."""
        return False

    def _ordinary_at(self, lm: LM, layer: int) -> Ordinary | None:
        if not self.config.rep_cls:
            return None
        texts = self._material(lm).texts[:ORDINARY_TEXTS]
        return lm.once(
            ("REP's ordinary text", layer), lambda: Ordinary.read(lm, texts, layer), owner=self
        )

    def _targets(
        self, lm: LM, edits: Sequence[Edit], layer: int, mean_key: Float[Tensor, "n f"]
    ) -> Float[Tensor, "n f"]:
        """Return what perturbed keys should resemble: the direction that the update answers to."""
        host = self.name.partition("+")[0]
        if self.config.rep_compat == "released" and host in RAW_TARGETS:
            return mean_key
        if self.config.rep_target == "key":
            return unit(mean_key)
        return unit(whiten(mean_key, self.prepared(lm).moments[layer]))

    # ------------------------------------------------------------------ editing

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Edit as the host does, then train the adapters in front of each edit's key."""
        # the host works with native keys, so what it writes does not depend on any adapter
        parted = [split(patch) for patch in before]
        bare = [patch for patch, _ in parted]
        written = super().edit_groups(lm, groups, bare)
        edited = [old + new for old, new in zip(bare, written, strict=True)]
        added = self._adapters(lm, groups, edited, [modules for _, modules in parted])
        return [
            replace(patch, changes=(*patch.changes, *own))
            for patch, own in zip(written, added, strict=True)
        ]

    def _adapters(
        self,
        lm: LM,
        groups: Sequence[Sequence[Edit]],
        edited: Sequence[Patch],
        earlier: Sequence[Sequence[Module]],
    ) -> list[list[Module]]:
        """Train the adapters of all edits, block after block, ascending.

        The keys of a block are read with the adapters of lower blocks at work, as they will be.
        """
        settings = self.config
        layers = self.prepared(lm).layers
        material = self._material(lm)
        fitted = settings.model_copy(update={"rep_words": material.words})
        edits = [edit for group in groups for edit in group]
        forms = [forms_of(lm, e, material.contexts, material.texts, fitted) for e in edits]
        sizes = [len(group) for group in groups]
        number = {lm.site(layer).path: layer for layer in range(lm.n_layers)}
        found: list[list[Module]] = [[] for _ in groups]
        for layer in layers:
            # what is written at this block and above cannot reach its keys
            native = [self._below(lm, patch, layer) for patch in edited]
            lower = [
                merge([m for m in (*old, *new) if number.get(m.path, -1) < layer])
                for old, new in zip(earlier, found, strict=True)
            ]
            under_adapters = [
                replace(patch, changes=(*patch.changes, *modules))
                for patch, modules in zip(native, lower, strict=True)
            ]
            mean_key = self._host_keys(lm, edits, sizes, native, layer)
            keys = self._form_keys(lm, edits, forms, sizes, under_adapters, layer)
            adapters = train(
                edits, keys, self._targets(lm, edits, layer, mean_key), layer,
                self.prepared(lm).moments[layer], self._ordinary_at(lm, layer), settings,
            )  # fmt: skip
            scale = settings.rep_alpha / settings.rep_rank
            whole = adapters.module(lm.site(layer).path, scale, settings.rep_threshold)
            start = 0
            for own, size in zip(found, sizes, strict=True):
                part = {n: t[start : start + size].clone() for n, t in whole.weights.items()}
                own.append(replace(whole, weights=part))
                start += size
        return found

    def _host_keys(
        self,
        lm: LM,
        edits: Sequence[Edit],
        sizes: Sequence[int],
        patches: Sequence[Patch],
        layer: int,
    ) -> Float[Tensor, "n f"]:
        """Return the mean key of each edit as the host saw it when it wrote this block."""
        parts: list[Tensor] = []
        order: list[int] = []
        for numbers, places in _spread(lm, sizes, patches):
            contexts = self.prepared(lm).contexts
            found = edit_keys(
                lm, [edits[i] for i in numbers], contexts, [layer], mean=self.mean, patches=places
            )
            parts.append(found[layer].mean_key)
            order += numbers
        return torch.cat(parts)[torch.tensor(order).argsort().to(lm.device)]

    def _form_keys(
        self,
        lm: LM,
        edits: Sequence[Edit],
        forms: Sequence[Forms],
        sizes: Sequence[int],
        patches: Sequence[Patch],
        layer: int,
    ) -> list[Keys]:
        """Return the keys that each edit's adapter is trained on."""
        found: dict[int, Keys] = {}
        for numbers, places in _spread(lm, sizes, patches):
            some = [edits[i] for i in numbers]
            keys = read_forms(lm, some, [forms[i] for i in numbers], layer, self.config, places)
            found |= dict(zip(numbers, keys, strict=True))
        return [found[i] for i in range(len(edits))]

    @staticmethod
    def _below(lm: LM, patch: Patch, layer: int) -> Patch:
        """Return a patch without what it writes into FFN outputs of this block and above."""
        above = {lm.site(block).path for block in range(layer, lm.n_layers)}
        above |= {f"{path}.{leaf}" for path in above for leaf in ("weight", "bias")}
        return replace(patch, changes=tuple(c for c in patch.changes if c.path not in above))

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Join both; adapters of one projection become one module, whose gates are compared."""
        whole, modules = split(super()._compose(lm, before, added))
        return replace(whole, changes=(*whole.changes, *merge(modules)))


def _spread(
    lm: LM, sizes: Sequence[int], patches: Sequence[Patch]
) -> Iterator[tuple[list[int], list[int]]]:
    """Put the model under one patch per group, as `under` does.

    Yields:
        Numbers of edits, counted over all groups, and each edit's patch in the active stack.
    """
    ends = torch.tensor(sizes).cumsum(0).tolist()
    edits_of = [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    for groups, places in under(lm, patches):
        pairs = [(edit, p) for g, p in zip(groups, places, strict=True) for edit in edits_of[g]]
        yield [edit for edit, _ in pairs], [patch for _, patch in pairs]
