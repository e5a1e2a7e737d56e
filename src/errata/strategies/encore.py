"""ENCORE: values are found no further than the model says them, and updates are kept small.

Two guards of long sequences. A value whose target is already the most probable answer in every
context is not pushed further: what goes beyond overfits the edit. And the size of the update is
weighed against the edits, beside what ordinary keys weigh: `D = R K^T (lambda C + S + K K^T +
lambda_n I)^-1`, so that the edited matrix grows more slowly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from errata.config import Settings
from errata.editors.base_joint import JointEditor
from errata.locate.values import Adaptive
from errata.strategies.base import Strategy

if TYPE_CHECKING:
    from errata.editors.memit import MemitConfig
    from errata.locate.moment_files import Moment

NEUTRAL = Adaptive(factor=1.0, easy=1.0, stop_kl=0.0)
"""Weights of the likelihood that change nothing."""


class EncoreSettings(Settings):
    """Settings of ENCORE; the defaults are those released for GPT-2 XL."""

    encore_norm: float = Field(
        default=10.0, ge=0,
        description="Weight of the size of the update, against one edit's squared key (lambda_n); "
        "0: off",
    )  # fmt: skip
    encore_stop: int | None = Field(
        default=4, ge=1,
        description="A value is found once its target was the most probable answer in all contexts "
        "at so many evaluations; none: that stops nothing",
    )  # fmt: skip


class Encore(Strategy, JointEditor):
    """Early stopping once an answer is the most probable one, and a weight on the update's size."""

    name = "encore"
    title = "ENCORE"
    paper = (
        "Gupta et al., Lifelong Sequential Knowledge Editing without Model Degradation, Findings "
        "of ACL 2025, arXiv:2502.01636"
    )
    hosts = ("memit", "memit_seq")
    Settings = EncoreSettings
    overrides: ClassVar[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
        host: {
            "gpt2-xl": {"encore_norm": 10.0, "encore_stop": 4, "lr": 0.5},
            "llama-3-8b": {"encore_norm": 20.0, "encore_stop": 2, "lr": 0.5},
        }
        for host in hosts
    }

    @property
    def adaptive(self) -> Adaptive | None:
        """How the optimisation of values ends."""
        found = super().adaptive
        enough = cast("EncoreSettings", self.config).encore_stop
        return found if enough is None else replace(found or NEUTRAL, enough=enough)

    def ridge_of(self, moment: Moment) -> float:
        """Return the host's ridge and the weight of the size, in the same unit.

        `lambda C + lambda_n I = lambda (C + lambda_n / lambda I)`: whatever solves with the moment
        solves with both.
        """
        weight = cast("MemitConfig", self.config).mom2_weight
        scale = float(moment.matrix.double().diagonal().mean())
        own = cast("EncoreSettings", self.config).encore_norm / weight
        return super().ridge_of(moment) + (own / scale if own else 0.0)
