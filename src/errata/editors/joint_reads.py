"""What joint editors read of all groups' edits side by side, block after block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from errata.case import Edit
from errata.editors.base import under
from errata.locate.contexts import Contexts, Mean
from errata.locate.keys import Known, edit_keys
from errata.model.lm import LM
from errata.model.passes import Place
from errata.model.spec import Site
from errata.patch import Change, Patch
from errata.patch.reach import first_changed

if TYPE_CHECKING:
    from errata.editors.base_joint import JointEditor


class JointReads:
    """The edits of all groups side by side; each row is read under its own group's patch.

    A pass begins at the block that was changed last, unless a patch is there that does not only
    add to weights: such a one may look at what stands below.
    """

    def __init__(
        self,
        lm: LM,
        groups: Sequence[Sequence[Edit]],
        contexts: Contexts,
        mean: Mean,
        places: tuple[Place, ...],
        before: Sequence[Patch],
    ) -> None:
        self.known = Known() if first_changed(lm, before) is not None else None
        self.keys: dict[int, Tensor] = {}
        self.lm, self.contexts, self.places = lm, contexts, places
        self.mean: Mean = mean
        self.edits = [edit for group in groups for edit in group]
        ends = torch.tensor([len(group) for group in groups]).cumsum(0).tolist()
        self.rows = [slice(end - len(group), end) for end, group in zip(ends, groups, strict=True)]

    def check(self, change: Change, site: Site) -> None:
        """Share nothing between passes any more if a block's change is not of its projection."""
        if not str(change.parameter).startswith(f"{site.path}."):
            self.known = None

    def _gather(
        self,
        patches: Sequence[Patch],
        read: Callable[[list[Edit], list[int]], Sequence[Tensor]],
    ) -> list[Tensor]:
        """Read tensors with one row per edit, in the order of all edits.

        `read` is given edits, and the patch in the active stack that each is read under.
        """
        parts: list[Sequence[Tensor]] = []
        order: list[int] = []
        for numbers, places in under(self.lm, patches):
            pairs = [
                (row, patch)
                for g, patch in zip(numbers, places, strict=True)
                for row in range(self.rows[g].start, self.rows[g].stop)
            ]
            rows = [row for row, _ in pairs]
            if self.known is not None:
                self.known.of(rows)
            parts.append(read([self.edits[row] for row in rows], [p for _, p in pairs]))
            order += rows
        back = torch.tensor(order, device=self.lm.device).argsort()
        return [torch.cat(column)[back] for column in zip(*parts, strict=True)]

    def targets(
        self,
        patches: Sequence[Patch],
        layer: int,
        editor: JointEditor,
    ) -> Float[Tensor, "n d"]:
        """Optimise the value of every edit at one block, on the weights as they are."""
        place = self.places[0]

        def values(edits: list[Edit], places: list[int]) -> Sequence[Tensor]:
            found = editor.values(self.lm, edits, self.contexts, layer, places)
            return [editor.aimed(self.lm, edits, layer, found.target(place), place, places)]

        (found,) = self._gather(patches, values)
        return found

    def read(
        self, patches: Sequence[Patch], layer: int, aim: int
    ) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n d"]]:
        """Return mean keys at `layer`, and the present value of the bare prompts at `aim`."""
        block = self.places[0] == "block"
        if self.known is not None:
            self.known.next_block(layer)

        def both(edits: list[Edit], places: list[int]) -> Sequence[Tensor]:
            keys = edit_keys(
                self.lm, edits, self.contexts, [layer], mean=self.mean,
                hidden=block and aim == layer, patches=places, known=self.known,
            )[layer]  # fmt: skip
            aimed = keys
            if aim != layer:  # only the bare prompts have to go further
                aimed = edit_keys(
                    self.lm,
                    edits,
                    self.contexts.bare,
                    [aim],
                    hidden=block,
                    patches=places,
                    known=self.known,
                )[aim]
            value = aimed.hidden if block else aimed.value
            assert value is not None
            return keys.mean_key, value

        self.keys[layer], current = self._gather(patches, both)
        return self.keys[layer], current

    def keys_afterwards(
        self, patches: Sequence[Patch], layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "n f"]]:
        """Return mean keys at all edited blocks as the edited model has them.

        A key is what the edited projection is given, and so depends on changes of lower blocks
        alone, which were made when it was read.
        """
        if self.known is not None:
            return self.keys
        found = self._gather(
            patches,
            lambda edits, places: [
                reading.mean_key
                for reading in edit_keys(
                    self.lm, edits, self.contexts, layers, mean=self.mean, patches=places
                ).values()
            ],
        )  # fmt: skip
        return dict(zip(layers, found, strict=True))
