"""Small editors of the joint family, and what tests of them and of BLUE share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from errata.editors.base import Editor
from errata.editors.base_joint import JointEditor
from errata.model.lm import LM
from errata.patch import Patch
from errata.patch.deltas import weight_deltas

SAME = 1e-8
EXACT = 1e-12

Make = Callable[..., Editor]
Tiny = Callable[..., LM]

SPREAD = ["memit", "memit_seq", "rect", "prune", "pmet", "alphaedit"]
SETTINGS: dict[str, dict[str, Any]] = {
    "memit": {"mom2_weight": 2.0}, "memit_seq": {"mom2_weight": 2.0},
    "emmet": {"mom2_weight": 20.0}, "pmet": {"mom2_weight": 2.0, "clamp": 4.0},
    "rect": {"mom2_weight": 2.0}, "prune": {"mom2_weight": 2.0},
    "alphaedit": {"nullspace_threshold": 0.5, "nullspace_scale": "relative", "l2": 0.1},
}  # fmt: skip


def built(make: Make, name: str, **more: Any) -> JointEditor:
    own = SETTINGS.get(name.partition("+")[0], {})
    editor = make(
        name, **{"layers": (0, 1), "lr": 0.2, "steps": 8, "stop_loss": 0.0, **own, **more}
    )
    assert isinstance(editor, JointEditor)
    return editor


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def deltas(lm: LM, patch: Patch) -> dict[str, Tensor]:
    return weight_deltas(lm, patch.changes)
