"""Settings of the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from errata.config import Settings, settings_from
from errata.model.backbones import identify, keys_for

if TYPE_CHECKING:
    from errata.training.trainable import Trainable


class TrainConfig(Settings):
    """What is trained on, for how long, and how; the same for every trained editor."""

    steps: int = Field(default=3000, ge=1, description="Steps of the optimiser at most")
    batch: int = Field(default=16, ge=1, description="Edit groups per step, over all processes")
    merge: int = Field(
        default=1, ge=1, description="Records joined into one edit group (multi-edit training)"
    )
    seed: int = Field(default=0, ge=0, description="Of initial weights, order, noise and hops")
    lr: float = Field(default=5e-4, gt=0, description="Learning rate of the networks")
    rate_lr: float | None = Field(
        default=None, gt=0, description="Of the edit learning rates; none: ten times `lr`"
    )
    clip: float = Field(default=1.0, gt=0, description="Largest global norm of the gradient")
    warmup: int = Field(default=50, ge=0, description="Steps of linear warm-up")
    decay_from: float = Field(
        default=0.6, ge=0, le=1, description="Part of the steps after which the rate falls linearly"
    )
    calibrate: float | None = Field(
        default=0.1,
        gt=0,
        description="Start: ‖Δy‖/‖y‖ at the edit's tokens, per matrix; none: the editor's own",
    )
    calibration_edits: int = Field(default=64, ge=1, description="Edits it is measured on")
    sg_weight: float = Field(default=1.0, ge=0, description="Weight of the generality loss")
    il_weight: float = Field(default=1.0, ge=0, description="Weight of the locality loss")
    include_edit: bool = Field(
        default=True, description="Whether the edits themselves count among generality questions"
    )
    generality: Literal["all", "rephrase"] = Field(
        default="all", description="All generality questions, or rephrasings only"
    )
    hops: Literal["all", "unknown", "mixed", "none"] = Field(
        default="mixed",
        description="Hops edited with the main edit: all, those unknown to the model, half and "
        "half, none",
    )
    kl: Literal["edited_first", "original_first"] = Field(
        default="edited_first", description="Direction of the locality loss (eq. 35: edited first)"
    )
    il_mean: Literal["token", "question"] = Field(
        default="token",
        description="Locality loss: mean over all tokens of a step, or over questions (eq. 35), "
        "each the mean over its answer",
    )
    il_text: str | None = Field(
        default=None,
        description="Sentences as further locality questions, one per record, as the authors' "
        "other trained editors take them: wikitext, world, a file or a data set of the Hub",
    )
    reduction: Literal["token_mean", "seq_sum"] = Field(
        default="token_mean",
        description="Generality loss per token, or summed over each answer's tokens (eq. 34)",
    )
    augment_share: float | None = Field(
        default=None, gt=0, lt=1,
        description="Share of groups drawn from the data sets after the first; none: pooled",
    )  # fmt: skip
    validate_every: int = Field(default=250, ge=1, description="Steps between validations")
    validation_groups: int = Field(default=256, ge=0, description="Groups held out or taken")
    patience: int | None = Field(
        default=None, ge=1, description="Stop after so many steps without a better validation loss"
    )
    save_every: int = Field(default=250, ge=1, description="Steps between checkpoints")
    log_every: int = Field(default=25, ge=1, description="Steps between lines of the log")
    memory_gb: float = Field(
        default=4.0, ge=0, description="For keeping what does not change; beyond it: recomputed"
    )
    disk_gb: float = Field(
        default=0.0, ge=0,
        description="For keeping it in files of the run folder, if `memory_gb` is too little; they "
        "are removed at the end",
    )  # fmt: skip
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        default="no", description="Of the networks; the model's type is --dtype"
    )
    tracker: Literal["none", "tensorboard", "trackio"] = Field(
        default="none", description="Where to log besides log.jsonl"
    )


def settings_for(
    editor: Trainable,
    model: str,
    values: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
) -> TrainConfig:
    """Return the settings of the loop: the editor's own, then `values`, then `overrides`.

    An editor's `defaults` may hold, beside settings, a mapping of settings for one backbone.

    Raises:
        ConfigError: If a name is unknown or a value out of range.
    """
    own = {k: v for k, v in editor.defaults.items() if not isinstance(v, Mapping)}
    keys = [key for key in keys_for(model, identify(model)) if key in editor.defaults]
    special = editor.defaults[keys[0]] if keys else {}
    return settings_from(
        TrainConfig, {**own, **special, **(values or {})}, where="training", overrides=overrides
    )
