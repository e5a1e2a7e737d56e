"""Settings of WISE, and what was published for which model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from errata.editors.base_beside import BesideConfig
from errata.editors.wise.sides import Margins, Merge, RouteOn

Margin = float | Literal["auto"]


class WiseConfig(BesideConfig):
    """Settings of WISE; the defaults are EasyEdit's for Llama-2 and Mistral where they fit all."""

    site: Literal["auto", "ffn_in", "ffn_out"] = Field(
        default="auto",
        description="Matrix in the block: first or second of the FFN; auto: as published for this "
        "model (ffn_in for GPT2-XL), else ffn_out",
    )
    irrelevant: tuple[str, ...] = Field(
        default=(),
        description="Texts that memories have to leave alone, one of them beside every edit, drawn "
        "by the edit; none: from memory_text",
    )
    alpha: Margin = Field(
        default="auto",
        description="Distance that an irrelevant text stays below; auto: a quarter of beta",
    )
    beta: Margin = Field(
        default="auto",
        description="Distance that an edit stays above; auto: how far the loss of the first edit "
        "alone moves it",
    )
    gamma: Margin = Field(
        default="auto", description="By which the second exceeds the first; auto: half of beta"
    )
    act_ratio: float = Field(
        default=0.88,
        gt=0,
        description="A memory answers from this share of the least distance of its edits",
    )
    mask_ratio: float = Field(
        default=0.2, gt=0, le=1, description="Share of the entries that a memory may move"
    )
    limit: float = Field(
        default=1.0, gt=0, description="Largest change of an entry (published: norm_constraint)"
    )
    weight_decay: float = Field(
        default=1e-5, ge=0, description="Pulls moved entries back to the matrix"
    )
    save_freq: int = Field(default=500, ge=1, description="Edits of a memory; then it is closed")
    merge_freq: int = Field(
        default=1000, ge=1, description="Edits after which the last closed memories become one"
    )
    merge: Merge = Field(
        default="ties", description="How they become one: ties, mean, or none: they never do"
    )
    density: float = Field(
        default=0.53, gt=0, le=1, description="Share of each memory that ties keeps"
    )
    activation: str = Field(
        default="auto",
        description="Function behind which outputs are compared; auto: the model's own; none: none",
    )
    route_on: RouteOn = Field(
        default="prompt",
        description="Tokens whose distances count; all: the answer's too (as released: under "
        "teacher forcing the route sees the answer)",
    )
    long: int = Field(
        default=100, ge=1, description="A text of more tokens is as far as its farthest one"
    )
    compat: bool = Field(
        default=False,
        description="As released: padding on the left, which distances count; one token too many "
        "in the loss; a decay of the whole copy, masked entries too; numpy's masks; routes by all "
        "tokens",
    )

    @model_validator(mode="after")
    def _whole_memories(self) -> WiseConfig:
        if self.merge != "none" and self.merge_freq % self.save_freq:
            raise ValueError(
                f"merge_freq {self.merge_freq} is no multiple of save_freq {self.save_freq}"
            )
        return self

    @property
    def routed_on(self) -> RouteOn:
        """Tokens whose distances count."""
        return "all" if self.compat else self.route_on

    def margins(self, measured: float) -> Margins:
        """Return the margins, those that are `auto` from a measured distance."""
        beta = measured if self.beta == "auto" else self.beta
        alpha = beta / 4 if self.alpha == "auto" else self.alpha
        return Margins(alpha, beta, beta / 2 if self.gamma == "auto" else self.gamma)

    @property
    def measures(self) -> bool:
        """Whether a distance has to be measured."""
        return "auto" in (self.alpha, self.beta, self.gamma)


def _settings(layer: int, steps: int = 70, **more: object) -> dict[str, object]:
    return {"layer": layer, "steps": steps, "alpha": 5.0, "beta": 20.0, "gamma": 10.0, **more}


PUBLISHED: dict[str, dict[str, object]] = {
    "gpt2-xl": _settings(8, 40, site="ffn_in", act_ratio=0.80),
    "gpt-j-6b": _settings(21, alpha=15.0, beta=40.0, gamma=20.0),
    "llama-2-7b": _settings(27),
    "mistral-7b": _settings(27),
    "llama-3-8b": _settings(29, 30, lr=0.9, alpha=2.0, act_ratio=0.50),
    "llama-3.2-3b": _settings(27),
    "qwen2.5-7b": _settings(23),
}
"""From EasyEdit."""
