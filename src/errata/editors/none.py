"""No edit at all: the row every table needs."""

from __future__ import annotations

from collections.abc import Sequence

from errata.case import Edit
from errata.editors.base import Conflicts, Cost, Editor, EditorConfig
from errata.model.lm import LM
from errata.patch import Patch


class NoConfig(EditorConfig, Conflicts):
    """Settings of no edit: what editors beside it refuse, it refuses."""


class NoEdit(Editor):
    """Leave the model as it is; what benchmarks call W/O or pre-edit."""

    name = "none"
    title = "No edit"
    paper = ""
    needs = ()
    weights = False
    batch = "joint"
    sequence = "adds"
    exports = ("merged",)
    Config = NoConfig

    def cost(self, lm: LM) -> Cost:
        """Nothing is edited."""
        return Cost(passes=0.0)

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Return patches that change nothing."""
        return [self.make_patch(lm, (), group) for group in groups]
