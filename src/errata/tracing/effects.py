"""What a causal trace says: effects by role of token and block, and which blocks to edit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.config import Settings
from errata.model.passes import Place
from errata.model.tokens import Row
from errata.tracing.restore import subject_of

KINDS: dict[str, Place] = {"hidden": "block", "ffn": "ffn", "attn": "attn"}
"""What can be put back: the output of a block, or of its FFN or attention in a window of blocks."""

ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after",
    "middle tokens after",
    "last token",
)
"""What tokens are to a prompt. A subject of one token counts as its last one; so does a subject
that ends the prompt. A single token behind the subject is the last token."""
SUBJECT_LAST = ROLES.index("last subject token")

WINDOW_LAYERS = 10
"""Blocks in which the output of FFN or attention is put back together, in a deep model."""
EDITED_LAYERS = 5
"""Blocks that the published tables let multi-layer editors share an update over."""
RESAMPLES = 1000


class TraceSettings(Settings):
    """How facts are corrupted and restored; the defaults are the published ones."""

    samples: int = Field(default=10, ge=1, description="Draws of noise per fact")
    noise: float = Field(
        default=3.0,
        gt=0,
        description="Standard deviation of the noise, relative to that of the embeddings of the"
        " subjects",
    )
    window: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="Neighbouring blocks in which FFN or attention is restored together; auto: 10"
        " from 30 blocks on, a third of the depth (rounded down, odd) below",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the noise")


def window_size(settings: TraceSettings, n_layers: int) -> int:
    """Return how many blocks are restored together.

    The published 10 stand for models of 28 to 48 blocks. In a shallower one they would cover most
    of the depth, so a third of it is taken, odd so that the window has a middle.
    """
    if settings.window != "auto":
        return min(settings.window, n_layers)
    third = n_layers // 3
    return WINDOW_LAYERS if third >= WINDOW_LAYERS else max(1, third - (third + 1) % 2)


def window_of(layer: int, size: int, n_layers: int) -> range:
    """Return the blocks of the window around `layer`, cut off at both ends of the model."""
    return range(max(0, layer - size // 2), min(n_layers, layer + (size + 1) // 2))


def roles_of(row: Row) -> dict[int, list[int]]:
    """Return the tokens of a prompt by the number of their role, from the subject on.

    Tokens before the subject are left out: in a causal model nothing there is corrupted.
    """
    subject, end = subject_of(row), len(row.ids) - 1
    found: dict[int, list[int]] = {}
    for token in range(subject.start, end + 1):
        if token == subject.stop - 1:
            role = 2
        elif token < subject.stop:
            role = 0 if token == subject.start else 1
        elif token == end:
            role = 5
        else:
            role = 3 if token == subject.stop else 4
        found.setdefault(role, []).append(token)
    return found


@dataclass(frozen=True)
class Choice:
    """Blocks to edit, as a trace found them.

    Attributes:
        layer: For editors of one block: the peak of the FFN's effect at the subject's last token.
        layers: For editors of several: the blocks up to the peak.
        facts: Facts the trace averaged over.
        data: Where they came from.
        effect: Height of the peak, as a probability.
        agreement: Share of bootstrap resamples of the facts with the same peak.
        id: Names the trace: weights, facts and settings.
    """

    layer: int
    layers: tuple[int, ...]
    facts: int
    data: str
    effect: float
    agreement: float
    id: str

    def __str__(self) -> str:
        return f"block {self.layer}, traced on {self.facts} facts of {self.data} ({self.id})"


@dataclass(frozen=True)
class Trace:
    """Indirect effects of one model on facts it knows.

    Attributes:
        model: Name of the model.
        fingerprint: SHA-256 of its weights.
        data: Where the facts came from.
        asked: Facts the model was asked before enough were known.
        std: Standard deviation of the noise.
        window: Blocks in which FFN or attention are restored together.
        settings: How it was traced.
        clean: Probability of each answer in the clean run.
        corrupted: The same with the subject corrupted, mean over draws.
        effects: Per kind, what restoring adds to `corrupted`; NaN where a prompt has no token of
            that role, mean over tokens where it has several.
        id: Names weights, facts and settings.
    """

    model: str
    fingerprint: str
    data: str
    asked: int
    std: float
    window: int
    settings: TraceSettings
    clean: Float[Tensor, " f"]
    corrupted: Float[Tensor, " f"]
    effects: Mapping[str, Float[Tensor, "f 6 L"]]
    id: str = field(default="")

    def __len__(self) -> int:
        return len(self.clean)

    def mean(self, kind: str) -> Float[Tensor, "6 L"]:
        """Return the average indirect effect by role and block; NaN for a role never met."""
        return self.effects[kind].nanmean(0)

    def error(self, kind: str) -> Float[Tensor, "6 L"]:
        """Return the standard error of that average."""
        values = self.effects[kind]
        count = (~values.isnan()).sum(0)
        spread = (values - values.nanmean(0)).square().nansum(0) / (count - 1).clamp(min=1)
        return torch.where(count > 1, (spread / count).sqrt(), torch.nan)

    def choice(self) -> Choice | None:
        """Return the blocks to edit; None if the FFN was not traced."""
        return choose(self) if "ffn" in self.effects else None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values: the whole table, and what it was made from."""
        some = next(iter(self.effects.values()))
        chosen = self.choice()
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "data": self.data,
            "facts": len(self),
            "asked": self.asked,
            "noise_std": self.std,
            "window": self.window,
            "settings": self.settings.model_dump(mode="json"),
            "clean": float(self.clean.mean()),
            "corrupted": float(self.corrupted.mean()),
            "roles": list(ROLES),
            "facts_by_role": (~some[:, :, 0].isnan()).sum(0).tolist(),
            "blocks": some.shape[-1],
            "effects": {kind: _numbers(self.mean(kind)) for kind in self.effects},
            "standard_errors": {kind: _numbers(self.error(kind)) for kind in self.effects},
            "choice": None if chosen is None else asdict(chosen),
            "id": self.id,
        }


def _numbers(table: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(x) else x for x in line] for line in table.tolist()]


def choose(trace: Trace) -> Choice:
    """Choose blocks by the effect of the FFN at the last token of the subject.

    One-layer editors get its peak. Editors that share an update over several blocks get those up to
    the peak, as published for GPT-2 XL (ROME 17, MEMIT 13 to 17): five, or a third of a model of
    fewer than 15 blocks.
    """
    values = trace.effects["ffn"][:, SUBJECT_LAST].double()
    facts, n = values.shape
    mean = values.mean(0)
    layer = int(mean.argmax())
    draw = torch.Generator().manual_seed(0)
    agreed = sum(
        int(values[torch.randint(facts, (facts,), generator=draw)].mean(0).argmax()) == layer
        for _ in range(RESAMPLES)
    )
    count = min(EDITED_LAYERS, math.ceil(n / 3))
    return Choice(
        layer, tuple(range(max(0, layer - count + 1), layer + 1)), facts, trace.data,
        float(mean[layer]), agreed / RESAMPLES, trace.id,
    )  # fmt: skip
