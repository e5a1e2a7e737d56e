"""Settings of UltraEdit."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from errata.editors.base import Conflicts, EditorConfig

LEAST_ROWS = 50
"""Answer tokens below which statistics are taken of other texts first, with `warmup=auto`."""

Blocks = tuple[int, ...]


class UltraEditConfig(EditorConfig, Conflicts):
    """Settings of UltraEdit; the defaults are those published, StableEdit's parts switched off."""

    layers: Blocks | Literal["auto"] = Field(
        default="auto",
        description="Blocks whose FFN output matrix is edited; auto: as published for this model, "
        "else those at 85 to 97 percent of the depth",
    )
    gate_layers: Blocks = Field(
        default=(), description="Blocks whose gate matrix is edited (the FFN's first, if gated)"
    )
    up_layers: Blocks = Field(
        default=(), description="Blocks whose other inner FFN matrix is edited"
    )
    lr: float = Field(
        default=1e-6, gt=0,
        description="Size of the step; lr times the width of a key is about the size by which an "
        "edit's output moves, in the model's own units: search it on a grid of tens",
    )  # fmt: skip
    ridge: float = Field(
        default=1.0, gt=0,
        description="Weight of the size of the update, against squared keys (StableEdit: 10)",
    )  # fmt: skip
    batch_size: int = Field(
        default=10, ge=1,
        description="Edits over which the released code takes the mean loss; it matters with "
        "compat alone",
    )  # fmt: skip
    whiten: bool = Field(
        default=False,
        description="Decorrelate gradients by their covariance over all edits so far (StableEdit), "
        "once there are more answer tokens than outputs",
    )
    warmup: Literal["auto", "off", "stats", "edits"] = Field(
        default="auto",
        description="Statistics before the first edit: of other texts (stats); of other facts that "
        "are written, and stay written (edits, as StableEdit was published); auto: stats where a "
        f"sequence begins with fewer than {LEAST_ROWS} answer tokens",
    )
    warmup_data: str | None = Field(
        default=None,
        description="Data set of facts for the warm-up, NAME:PATH or a file; none: sentences that "
        "ship with errata, every token of which counts",
    )
    warmup_edits: int = Field(default=2000, ge=1, description="Facts of it that are used at most")
    order: Literal["turns", "free"] = Field(
        default="turns",
        description="turns: each turn on the model that the earlier ones left, as published; free: "
        "all edits from the unedited model, so that order does not matter and edits can be removed",
    )
    compat: bool = Field(
        default=False,
        description="As released: unbiased variance of each mini-batch, mean loss over its tokens, "
        "absolute constants against division by zero",
    )

    @field_validator("layers", "gate_layers", "up_layers", mode="before")
    @classmethod
    def _one_layer(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value
