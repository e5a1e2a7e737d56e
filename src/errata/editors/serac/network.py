"""SERAC's networks: the router's encoder, and the counterfactual model between two blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from errata.nets.scope import Text, keys_of, make_encoder
from errata.nets.small import (
    alike,
    by_name,
    copy_of_blocks,
    hidden_states,
    own_blocks,
    padded,
    width_of,
    words_of,
)
from errata.nets.update import EditNetwork

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.tokens import Row


@dataclass(frozen=True)
class Asked:
    """One question put to the counterfactual model.

    Attributes:
        edit: Tokens of the edit, target included.
        query: Tokens of the question.
        positions: Positions of the question whose logits are wanted.
    """

    edit: Text
    query: Text
    positions: tuple[int, ...]


class ResBlock(nn.Module):
    """`outer(relu(mid(y))) + y` with `y = inner(norm(x))`, from one width to another."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_in)
        self.inner = nn.Linear(d_in, d_out)
        self.mid = nn.Linear(d_out, d_out)
        self.outer = nn.Linear(d_out, d_out)

    @torch.no_grad()
    def pass_through(self, size: float) -> None:
        """Start as the identity, but for the norm: of vectors whose entries have this size."""
        nn.init.eye_(self.inner.weight).mul_(size)
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Map vectors."""
        y = self.inner(self.norm(x))
        return self.outer(nn.functional.relu(self.mid(y))) + y


class Counterfactual(nn.Module):
    """A small causal model that reads the edit and then the question.

    The base model's word embeddings go in, and vectors for its final norm and head come out.

    Args:
        lm: The base model.
        name: The small model: `own:BLOCKS`, or one by name.
    """

    def __init__(self, lm: LM, name: str) -> None:
        super().__init__()
        blocks = own_blocks(name, lm)
        self.small = by_name(name) if blocks is None else copy_of_blocks(lm, blocks)
        d, m = lm.embedding.shape[1], width_of(self.small)
        self.before, self.after = ResBlock(d, m), ResBlock(m, d)
        if blocks is not None:  # what the copied blocks know should be there from the start
            self.before.pass_through(float(lm.embedding.float().std()))
            self.after.pass_through(1.0)

    def forward(self, lm: LM, asked: Sequence[Asked]) -> Float[Tensor, "N d"]:
        """Return a vector for every wanted position, question by question."""
        texts = [(*one.edit, *one.query) for one in asked]
        found: dict[int, Tensor] = {}
        for group in alike(lm, texts):
            ids, mask = padded([texts[i] for i in group], lm.device)
            vectors = self.before(words_of(lm, ids).to(self.before.inner.weight.dtype))
            hidden = hidden_states(self.small, vectors, mask)
            for row, i in enumerate(group):
                start = len(asked[i].edit)
                found[i] = hidden[row, [start + p for p in asked[i].positions]]
        return self.after(torch.cat([found[i] for i in range(len(asked))]))


def read_out(lm: LM, vectors: Float[Tensor, "N d"]) -> Float[Tensor, "N V"]:
    """Return what the base model's final norm and head make of vectors, past any hook."""
    vectors = vectors.to(lm.dtype)
    if lm.spec.final_norm:
        norm: Any = lm.module(lm.spec.final_norm)
        vectors = norm.forward(vectors)
    head: Any = lm.module(lm.spec.head)
    return head.forward(vectors)


@dataclass(frozen=True)
class Work:
    """What the networks are asked in one step of training.

    Attributes:
        keys: Texts of the edits, as the router stores them.
        queries: Texts that the router is shown.
        asked: Questions to the counterfactual model.
    """

    keys: Sequence[Text]
    queries: Sequence[Text]
    asked: Sequence[Asked]


class SeracNetwork(EditNetwork):
    """Encoder and counterfactual model; an encoder that is not trained is kept apart and not saved.

    Args:
        lm: The base model.
        router: The encoder: `own:BLOCKS`, or one by name.
        small: The counterfactual model, likewise.
        key_width: Width of the keys of an encoder of the base model's blocks.
        train_router: Whether the encoder is trained.
        size: What the product of an own encoder's key with itself is to begin with, about.
    """

    def __init__(
        self, lm: LM, *, router: str, small: str, key_width: int, train_router: bool, size: float
    ) -> None:
        super().__init__()
        self.counterfactual = Counterfactual(lm, small)
        encoder = make_encoder(lm, router, key_width, size)
        self.trained = encoder if train_router else None
        self._frozen: tuple[nn.Module, ...] = () if train_router else (encoder,)
        self.train()

    @property
    def encoder(self) -> nn.Module:
        """The router's encoder."""
        return self._frozen[0] if self.trained is None else self.trained

    def train(self, mode: bool = True) -> SeracNetwork:
        """Stay in evaluation mode: without dropout, a step depends on its groups alone."""
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> SeracNetwork:
        for encoder in self._frozen:  # moves and changes its type with the rest
            encoder._apply(fn)
        return super()._apply(fn, recurse)

    def forward(
        self, lm: LM, work: Work
    ) -> tuple[Float[Tensor, "n k"] | None, Float[Tensor, "m k"] | None, Float[Tensor, "N d"]]:
        """Return keys, queries (None for an encoder that is not trained) and vectors."""
        vectors = self.counterfactual(lm, work.asked)
        if self.trained is None:
            return None, None, vectors
        made = keys_of(lm, self.trained, [*work.keys, *work.queries])
        return made[: len(work.keys)], made[len(work.keys) :], vectors


def full_text(row: Row) -> Text:
    """Return the tokens of an edit, the last of its target included."""
    return (*row.ids[: row.prompt_length], *row.labels)


def stored_text(row: Row, route_on: str) -> Text:
    """Return what the router stores of an edit."""
    return full_text(row) if route_on == "target_leak" else row.ids[: row.prompt_length]


def shown_text(row: Row, route_on: str) -> Text:
    """Return what the router is shown of a question."""
    if route_on == "prompt":
        return row.ids[: row.prompt_length]
    return row.ids[: row.prompt_length + len(row.labels[:-1])]
