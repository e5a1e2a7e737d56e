"""Target values on the unedited model, found once for all editors that ask for the same.

MEMIT, EMMET, AlphaEdit, RECT and PRUNE start from the same values: with the same settings, block
and edit they would be computed again for every editor and batch size. Each edit's values do not
depend on the edits beside it (beyond rounding in float32).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from errata.case import Edit
from errata.editors import base_joint
from errata.locate.contexts import Contexts
from errata.locate.values import Values, ValueSettings

Key = tuple[Any, ...]


@contextmanager
def shared_values() -> Iterator[None]:
    """Keep values found on the unedited model while the block lasts; under patches nothing is."""
    real = base_joint.optimise_values
    known: dict[Key, Values] = {}

    def find(
        lm: Any, edits: Sequence[Edit], contexts: Contexts, layer: int, settings: ValueSettings,
        **more: Any,
    ) -> Values:  # fmt: skip
        if max(more["patches"] or [-1]) >= 0:
            return real(lm, edits, contexts, layer, settings, **more)
        recipe = tuple(getattr(settings, name) for name in ValueSettings.model_fields)
        own = (lm.fingerprint, contexts.prefixes, layer, recipe, more["places"], more["adaptive"])
        keys = [(*own, edit) for edit in edits]
        fresh = list(dict.fromkeys(k for k in keys if k not in known))
        if fresh:
            found = real(lm, [key[-1] for key in fresh], contexts, layer, settings,
                         **{**more, "patches": None})  # fmt: skip
            known.update(zip(fresh, _rows(found), strict=True))
        return _joined([known[key] for key in keys])

    base_joint.optimise_values = find
    try:
        yield
    finally:
        base_joint.optimise_values = real


def _rows(values: Values) -> list[Values]:
    return [
        Values(
            {place: tensor[i : i + 1] for place, tensor in values.start.items()},
            {place: tensor[i : i + 1] for place, tensor in values.delta.items()},
            values.updates[i : i + 1],
            values.losses[i : i + 1],
        )
        for i in range(len(values.updates))
    ]


def _joined(rows: Sequence[Values]) -> Values:
    return Values(
        {place: torch.cat([row.start[place] for row in rows]) for place in rows[0].start},
        {place: torch.cat([row.delta[place] for row in rows]) for place in rows[0].delta},
        [row.updates[0] for row in rows],
        [row.losses[0] for row in rows],
    )
