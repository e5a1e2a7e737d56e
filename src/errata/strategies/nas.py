"""NAS, norm-anchor scaling: every value gets the length that values have on the unedited model.

Sequences of locate-then-edit updates collapse by a feedback: edited weights answer with longer
values, and longer values make larger updates. After a value is found its direction is kept and its
length is set to the anchor, the mean length of such values before any edit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.config import Settings
from errata.data import load_edits
from errata.editors.base_located import LocateEditor
from errata.errors import ConfigError
from errata.locate.keys import edit_keys
from errata.locate.values import optimise_values
from errata.model.lm import LM
from errata.model.passes import Place
from errata.model.weights import identity
from errata.store.cache import digest, load_json, save_json
from errata.store.files import cache_root
from errata.strategies.base import Strategy

if TYPE_CHECKING:
    from errata.locate.contexts import Contexts

log = logging.getLogger(__name__)

DROPPED = 0.05
"""Share of the longest values that the anchor leaves out, as published."""

LONGEST = 2.0
"""Values longer than so many anchors are not aimed at, as published."""

LEAST = 4
"""Facts that an anchor needs at least."""

NAMED = 5  # skipped edits that a warning names


class NasSettings(Settings):
    """Settings of NAS."""

    nas_anchor: float | None = Field(
        default=None, gt=0, description="Length of values; none: measured on the unedited model"
    )
    nas_data: str = Field(
        default="jsonl:sample",
        description="Facts with subjects that the anchor is measured on: a data set, NAME:PATH or "
        "a file (published: CounterFact)",
    )
    nas_facts: int = Field(
        default=64, ge=LEAST, description="Facts of it at most (published: 1000)"
    )


def anchored(
    value: Float[Tensor, "n d"], start: Float[Tensor, "n d"], anchor: float
) -> tuple[Float[Tensor, "n d"], list[int]]:
    """Return values of the anchor's length, and the rows that are left where they are.

    Args:
        value: Values found, `v* = v0 + delta`.
        start: `v0`, what the FFN answers now.
        anchor: The length.
    """
    length = value.norm(dim=-1, keepdim=True)
    skipped = ~(length[:, 0] <= LONGEST * anchor)
    scaled = torch.where(length > 0, value * (anchor / length), value)
    return torch.where(skipped[:, None], start, scaled), skipped.nonzero()[:, 0].tolist()


class Nas(Strategy, LocateEditor):
    """Norm-anchor scaling: values get the length that they have on the unedited model."""

    name = "nas"
    title = "NAS"
    paper = "Liu et al., Toward Ultra-Long-Horizon Sequential Model Editing, arXiv:2602.02543"
    hosts = (
        "alphaedit", "emmet", "memit", "memit_seq", "p_rome", "pmet", "prune", "r_rome", "rect",
        "rome",
    )  # fmt: skip
    Settings = NasSettings

    @property
    def edits_experts(self) -> bool:
        """Its anchor is measured per block, not per expert."""
        return False

    def prepare(self, lm: LM) -> None:
        """Measure the anchor of the block that values are found at, before anything is edited."""
        super().prepare(lm)
        self.anchor(lm, self.edited_layers(lm)[-1])

    def ready(self, model: str) -> None:
        """Look for the facts of the anchor, too."""
        super().ready(model)
        settings = cast("NasSettings", self.config)
        if settings.nas_anchor is None:
            load_edits(settings.nas_data)

    def aimed(
        self,
        lm: LM,
        edits: Sequence[Edit],
        layer: int,
        target: Float[Tensor, "n d"],
        place: Place,
        patches: Sequence[int],
    ) -> Float[Tensor, "n d"]:
        """Set the FFN's part of every target to the anchor's length."""
        target = super().aimed(lm, edits, layer, target, place, patches)
        anchor = self.anchor(lm, layer)
        bare = self.prepared(lm).contexts.bare
        now = edit_keys(lm, edits, bare, [layer], hidden=place == "block", patches=patches)[layer]
        start = now.value.to(target)
        rest = torch.zeros_like(start)
        if place == "block":
            assert now.hidden is not None
            rest = now.hidden.to(target) - start
        value, skipped = anchored(target - rest, start, anchor)
        if skipped:
            named = ", ".join(repr(edits[i].prompt) for i in skipped[:NAMED])
            log.warning(
                "%s of %s edits are skipped at block %s: their values are longer than %g anchors "
                "(%.3g): %s%s",
                len(skipped), len(edits), layer, LONGEST, anchor, named,
                " …" if len(skipped) > NAMED else "",
            )  # fmt: skip
        return rest + value

    def anchor(self, lm: LM, layer: int) -> float:
        """Return the mean length of values at a block of the unedited model; kept on disk."""
        settings = cast("NasSettings", self.config)
        if settings.nas_anchor is not None:
            return settings.nas_anchor
        return lm.once(("nas anchor", layer), lambda: self._measured(lm, layer), owner=self)

    def _measured(self, lm: LM, layer: int) -> float:
        settings = cast("NasSettings", self.config)
        edits = [e for e in load_edits(settings.nas_data) if e.subject is not None]
        edits = edits[: settings.nas_facts]
        if len(edits) < LEAST:
            raise ConfigError(
                f"{settings.nas_data} holds {len(edits)} facts with a subject; the anchor of NAS "
                f"needs {LEAST} at least",
                "Name other facts: --set nas_data=FILE, or give the length: --set nas_anchor=…",
            )
        place = self.value_place
        recipe = {
            name: getattr(self.config, name)
            for name in ("steps", "lr", "weight_decay", "clamp", "kl_factor", "stop_loss")
        }
        key = digest(
            str(identity(lm).record()), layer, place, recipe, [str(edit) for edit in edits]
        )
        path = cache_root() / "anchors" / f"{key}.json"
        kept = load_json(path)
        if isinstance(kept, float) and kept > 0:
            return kept
        found = float(self._lengths(lm, layer, edits, self.prepared(lm).contexts.bare, place))
        save_json(path, found)
        return found

    def _lengths(
        self, lm: LM, layer: int, edits: Sequence[Edit], bare: Contexts, place: Place
    ) -> float:
        """Return the mean length of the FFN's values of some facts, the longest left out."""
        values = optimise_values(
            lm, edits, bare, layer, self.config, places=(place,), savings=self.config
        )
        if place == "block":  # the FFN's own output and what was added to it
            now = edit_keys(lm, edits, bare, [layer])[layer].value
            found = now + values.delta[place]
        else:
            found = values.target(place)
        lengths = found.double().norm(dim=-1).sort().values
        kept = lengths[: max(1, math.ceil(len(lengths) * (1 - DROPPED)))]
        return float(kept.mean())
