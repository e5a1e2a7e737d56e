"""IBKE with its edits kept apart: each question is answered under the one edit it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field

from errata.case import Edit
from errata.editors.base import Cost
from errata.editors.ibke import BottleneckConfig, BottleneckEditor
from errata.errors import ConfigError
from errata.model.lm import LM
from errata.patch import LowRank, Patch
from errata.patch.changes.retrieved import Retrieved, Store, states_of


class IbkeRetrievalConfig(BottleneckConfig):
    """Settings of IBKE's networks, and of the memory that keeps their updates apart."""

    threshold: float = Field(
        default=0.9, ge=-1, le=1,
        description="Cosine of the states of two prompts from which a question is about an edit; "
        "models differ, so choose it on a split that is not the test's: errata sweep",
    )  # fmt: skip
    block: int = Field(
        default=-1, description="Block whose output at the prompt's last token is compared"
    )
    keep_rank: int | None = Field(
        default=8, ge=1,
        description="Largest rank that is kept of each update, by its singular values; none: all "
        "of it, as many as the request has tokens",
    )  # fmt: skip


class IbkeRetrieval(BottleneckEditor):
    """IBKE whose updates are stored beside the model and retrieved by question, one at a time.

    The paper leaves retrieval for lifelong editing to future work. Edits do not meet: nothing adds
    up, and a question about none of them is answered by the model, bit for bit.
    """

    name: ClassVar[str] = "ibke-retrieval"
    title: ClassVar[str] = "IBKE-retrieval"
    paper: ClassVar[str] = "Information Bottleneck Knowledge Editor (its future work)"
    needs: ClassVar[tuple[str, ...]] = ("training",)
    weights: ClassVar[bool] = False
    batch: ClassVar[str] = "memory"
    sequence: ClassVar[str] = "grows"
    sequential: ClassVar[bool] = True
    exports: ClassVar[tuple[str, ...]] = ()
    trained_as: ClassVar[str] = "ibke"
    Config: ClassVar[type[IbkeRetrievalConfig]] = IbkeRetrievalConfig
    at_edit_time: ClassVar[tuple[str, ...]] = (
        *BottleneckEditor.at_edit_time, "threshold", "block", "keep_rank",
    )  # fmt: skip
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # chosen on facts of the world's val split; see docs
        "pocket": {**BottleneckEditor.presets["pocket"], "threshold": 0.5},
    }
    config: IbkeRetrievalConfig

    def cost(self, lm: LM) -> Cost:
        """An edit is read once more for its key; the prompt of a question is read twice."""
        return Cost(passes=3.0, questions=2.0)

    @torch.no_grad()
    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Store what each edit alone would change, on the unedited model, with its prompt's key."""
        self.network(lm)
        block = self._block(lm)
        edits = [edit for group in groups for edit in group]
        singles = super().edit_groups(lm, [[edit] for edit in edits], [Patch()] * len(edits))
        rows = [lm.row_of(edit) for edit in edits]
        keys = states_of(lm, block, [row.ids[: row.prompt_length] for row in rows])
        patches, start = [], 0
        for group, patch in zip(groups, before, strict=True):
            own = slice(start, start + len(group))
            start += len(group)
            memory = None
            for number in range(own.start, own.stop):  # in turn: a later answer wins
                entry = self._entry(lm, singles[number], keys[number : number + 1], block)
                memory = entry if memory is None else memory.grown(entry)
            assert memory is not None
            earlier = [change for change in patch.changes if isinstance(change, Retrieved)]
            for change in reversed(earlier):
                memory = change.grown(memory)
            patches.append(self.make_patch(lm, [memory], group))
        return patches

    def _block(self, lm: LM) -> int:
        block = self.config.block
        if not -lm.n_layers <= block < lm.n_layers:
            raise ConfigError(
                f"block {block} does not exist: {lm.name} has blocks 0 to {lm.n_layers - 1}",
                "Example: --set block=-1",
            )
        return block % lm.n_layers

    def _entry(self, lm: LM, patch: Patch, key: torch.Tensor, block: int) -> Retrieved:
        """Return the memory of one edit."""
        stores = {}
        for _, site in self.sites(lm):
            own = [c for c in patch.changes if isinstance(c, LowRank) and c.path == site.path]
            if not own:  # nothing is written there: one factor of zeros
                like = {"dtype": key.dtype, "device": key.device}
                own = [LowRank(site.path, torch.zeros(site.d_out, 1, **like),
                               torch.zeros(1, site.d_in, **like))]  # fmt: skip
            stores[site.path] = Store.joined([shortened(own[0], self.config.keep_rank)])
        return Retrieved(key, stores, self.config.threshold, block)

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Put the grown memory in the place of the earlier one."""
        rest = tuple(c for c in before.changes if not isinstance(c, Retrieved))
        return replace(before, changes=rest) + added


def shortened(change: LowRank, rank: int | None) -> LowRank:
    """Return the best approximation of a low-rank change by one of at most that rank.

    By its singular values, without forming the product.
    """
    if rank is None or change.rank <= rank:
        return change
    q_b, r_b = torch.linalg.qr(change.B.double())
    q_a, r_a = torch.linalg.qr(change.A.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    B = q_b @ u[:, :rank] * s[:rank]
    A = vh[:rank] @ q_a.T
    return LowRank(change.path, B.to(change.B).contiguous(), A.to(change.A).contiguous())
