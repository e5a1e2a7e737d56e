"""UnKE: a long text is written by training one whole block, not by one key and one value.

Two steps, both at the output of block `l`:

1. a vector is added at the last token of the question, and optimised until the model says the whole
   answer behind it (25 steps of Adam on one vector);
2. all matrices of block `l` are trained so that the block itself answers that there, and what it
   answered before at every other token, and to other texts (50 steps of AdamW).

Under `+are` an answer is cut into stretches, each with a vector of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.editors.base import (
    TOGETHER,
    Conflicts,
    Cost,
    Editor,
    EditorConfig,
    Layer,
    resolve_layer,
    under,
)
from errata.locate.contexts import Contexts
from errata.locate.own_text import text_for
from errata.locate.pieces import Piece, answer_of, pieces_of, question_of
from errata.locate.rows import Savings
from errata.locate.values import Values, ValueSettings, optimise_values
from errata.model.lm import LM
from errata.model.passes import Place
from errata.model.spec import Site
from errata.model.tokens import Row, patched
from errata.patch import Dense, Patch
from errata.tuning.outputs import OutputRows, Wanted, fit_outputs
from errata.tuning.places import matrices_of
from errata.tuning.rows import Tuned

COPIES = 7
"""Copies of the block's weights one group needs: delta, gradient, two moments and temporaries."""

DEPTH = 7 / 32
"""Where the block stands that was published, as a share of the depth."""


class UnkeConfig(EditorConfig, Conflicts):
    """Settings of UnKE; the defaults are those published."""

    layer: Layer = Field(
        default="auto",
        description="Block to train; auto: as published for this model, else at 7/32 of the depth",
    )
    steps: int = Field(
        default=25, ge=1, description="Evaluations of the loss; at most steps - 1 updates"
    )
    lr: float = Field(default=0.5, gt=0, description="Learning rate of Adam on the added vector")
    weight_decay: float = Field(
        default=1e-3, ge=0, description="Weight of ||delta|| / ||h0||^2 in the loss"
    )
    clamp: float = Field(default=4.0, gt=0, description="Largest ||delta|| relative to ||h0||")
    stop_loss: float = Field(
        default=5e-3, ge=0, description="A vector whose loss is below this is done"
    )
    stop: Literal["none", "eos"] = Field(
        default="eos",
        description="eos: the answer ends with the token that ends a text, so that the model stops",
    )
    block_steps: int = Field(default=50, ge=1, description="Updates of the block")
    block_lr: float = Field(default=2e-4, gt=0, description="Learning rate of the block")
    block_decay: float = Field(default=0.01, ge=0, description="Weight decay of the block (AdamW)")
    bias: bool = Field(default=True, description="Train the biases of the block's matrices, too")
    keep_texts: int = Field(
        default=20, ge=0, description="Other texts to which the block shall answer as before"
    )
    keep_text: str = Field(
        default="auto",
        description="What they are: auto (wikitext-103, or self where the Hub cannot be reached; "
        "for the pocket model its own world), self (text that the model writes), world, a .txt, "
        ".json or .jsonl file, or a data set of the Hub (published: Alpaca)",
    )
    keep_tokens: int = Field(default=128, ge=1, description="Tokens of such a text at most")
    memory_gb: float = Field(
        default=4.0, gt=0, description="Memory for groups trained at once; more groups run in turn"
    )


class Unke(Editor):
    """Unstructured knowledge editing: one block is trained to say a long answer."""

    name = "unke"
    title = "UnKE"
    paper = (
        "Deng et al., Everything is Editable: Extend Knowledge Editing to Unstructured Data in "
        "Large Language Models, ICLR 2025, arXiv:2405.15349"
    )
    needs = ()
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = UnkeConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {
        name: {"layer": 7} for name in ("llama-2-7b", "llama-3-8b", "qwen2.5-7b", "qwen-7b")
    }
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # the published rate leaves half of what is wanted on a block this small: docs/methods.md
        "pocket": {"block_lr": 1e-3},
    }
    config: UnkeConfig

    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """Return the block that is trained."""
        rule = min(lm.n_layers - 1, round(DEPTH * lm.n_layers))
        chosen = self._automatic(lm, "layer", rule)
        return (resolve_layer(lm, self.config.layer, chosen),)

    def cost(self, lm: LM) -> Cost:
        """Forward and back in every step, of the vector above the block and of the block alone."""
        (layer,) = self.edited_layers(lm)
        out, inner = lm.site(layer), lm.spec.ffn_in[layer]
        # the attention has about 4 d^2 numbers: a skeleton without weights is asked, too
        numbers = sum(site.d_in * site.d_out for site in (out, *inner)) + 4 * out.d_out**2
        size = COPIES * 4.0 * numbers
        held = max(size, min(self.config.memory_gb * 1e9, TOGETHER * size))
        own = self.config
        texts = 1 + own.keep_texts * own.keep_tokens / 128
        passes = 2.0 * own.steps + 3.0 * own.block_steps * texts / lm.n_layers
        return Cost(passes=passes, held=held)

    def made_of(self, lm: LM) -> dict[str, str]:
        """Return the block, and the texts that are kept."""
        return {"layers": str(self.edited_layers(lm)[0]), "keep_text": self._kept(lm)[1]}

    def prepare(self, lm: LM) -> None:
        """Look for the texts that are kept."""
        self._kept(lm)

    def values(
        self,
        lm: LM,
        edits: Sequence[Edit],
        contexts: Contexts,
        layer: int,
        patches: Sequence[int],
        held: Sequence[Mapping[Place, Tensor]] = (),
    ) -> Values:
        """Find the outputs of a block behind which the model says the answers."""
        own = self.config
        settings = ValueSettings(
            steps=own.steps, lr=own.lr, weight_decay=own.weight_decay, clamp=own.clamp,
            stop_loss=own.stop_loss, kl_factor=0.0,
        )  # fmt: skip
        return optimise_values(
            lm, edits, contexts, layer, settings, places=("block",), savings=Savings(),
            patches=patches, held=held,
        )  # fmt: skip

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Find the vectors of all groups' edits, then train the block of every group."""
        sites = self._sites(lm)
        pieces = [[piece for edit in group for piece in self._as_pieces(edit)] for group in groups]
        size = sum(site.d_in * site.d_out for _, site in sites)
        width = 8 if lm.dtype == torch.float64 else 4
        at_once = max(1, int(self.config.memory_gb * 1e9 / (COPIES * size * width)))
        found: list[dict[str, Tensor]] = [{} for _ in groups]
        for first in range(0, len(groups), at_once):
            chunk = range(first, min(first + at_once, len(groups)))
            for numbers, places in under(lm, [before[g] for g in chunk]):
                members = [chunk[i] for i in numbers]
                trained = self._train(
                    lm, sites, [pieces[g] for g in members], places, [before[g] for g in members]
                )
                for group, deltas in zip(members, trained, strict=True):
                    found[group] = deltas
        return [
            self.make_patch(lm, [Dense(path, delta) for path, delta in deltas.items()], group)
            for group, deltas in zip(groups, found, strict=True)
        ]

    def _sites(self, lm: LM) -> list[tuple[int, Site]]:
        return matrices_of(lm, self.edited_layers(lm), "block")

    def _as_pieces(self, edit: Edit) -> list[Piece]:
        """Return the edit as the one piece that it is; it may be one of several already."""
        if isinstance(edit, Piece):
            return [edit]
        return pieces_of(edit, [(0, None)], ends=self.config.stop == "eos", at_subject=False)

    def _train(
        self,
        lm: LM,
        sites: Sequence[tuple[int, Site]],
        groups: Sequence[Sequence[Piece]],
        places: Sequence[int],
        before: Sequence[Patch],
    ) -> list[dict[str, Tensor]]:
        """Return the changes of the block's parameters, of each group."""
        (layer,) = self.edited_layers(lm)
        own = self.config
        everyone = [piece for group in groups for piece in group]
        patch_of = [at for group, at in zip(groups, places, strict=True) for _ in group]
        targets = self.values(lm, everyone, Contexts(("",)), layer, patch_of).target("block")
        kept = self._kept(lm)[0]
        wanted: list[list[Wanted]] = []
        for group, place in zip(groups, places, strict=True):
            rows = _wanted(lm, group, targets[: len(group)], place)
            targets = targets[len(group) :]
            texts = patched(kept, [place] * len(kept))
            wanted.append([*rows, *(Wanted(row, {}, "keep") for row in texts)])
        tuned = Tuned(lm, sites, len(groups), own.bias)
        fit_outputs(
            OutputRows(tuned, wanted), own.block_steps, own.block_lr, own.block_decay,
            tuned.start(before),
        )  # fmt: skip
        return [tuned.stored(g) for g in range(len(groups))]

    def _kept(self, lm: LM) -> tuple[list[Row], str]:
        """Return the texts that are kept, and which they are."""
        own = self.config
        if not own.keep_texts:
            return [], "none"

        def make() -> tuple[list[Row], str]:
            corpus = text_for(lm, own.keep_text, own.keep_texts, own.keep_texts * own.keep_tokens)
            return lm.text_rows(corpus.texts, own.keep_tokens), f"{corpus.name} ({corpus.id[:16]})"

        return lm.once("kept texts", make, owner=self)


def _wanted(lm: LM, pieces: Sequence[Piece], targets: Tensor, place: int) -> list[Wanted]:
    """Return the rows of a group's edits: one per answer, with the outputs wanted at its pieces.

    Of an answer of one piece the row is its question alone, as UnKE has it; of several the whole
    text, as in AnyEdit.
    """
    answers: list[list[tuple[Piece, Tensor]]] = []
    for piece, target in zip(pieces, targets, strict=True):
        if not piece.number:
            answers.append([])
        answers[-1].append((piece, target))
    found = []
    for own in answers:
        several = len(own) > 1
        row = answer_of(lm, own[-1][0]) if several else question_of(lm, own[0][0])
        moved = {question_of(lm, piece).subject_last: target for piece, target in own}
        (row,) = patched([row], [place])
        found.append(Wanted(row, moved, "edit"))
    return found
