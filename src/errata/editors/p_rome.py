"""p-ROME: ROME with the key of the bare prompt everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from errata.editors.rome import Rome
from errata.locate import solve
from errata.locate.keys import EditKeys
from errata.locate.solve import Factor


class PRome(Rome):
    """Prompt-key ROME: one key everywhere as in R-ROME, that of the prompt without contexts."""

    name = "p_rome"
    title = "p-ROME"
    paper = (
        "Gupta et al., Rebuilding ROME: Resolving Model Collapse during Sequential Model Editing, "
        "EMNLP 2024, arXiv:2403.07175"
    )
    needs = ("subject", "moments")
    weights = True
    batch = "in turn"
    sequence = "adds"
    exports = ("lora", "merged")
    published: ClassVar[Mapping[str, Mapping[str, object]]] = Rome.published

    def solve(
        self, target: Float[Tensor, "e d"], keys: EditKeys, moment: Factor | None
    ) -> tuple[Float[Tensor, "e d"], Float[Tensor, "e f"]]:
        """Return factors of each edit's update; the equality holds at the bare prompt's key."""
        return solve.r_rome(target, keys.value, keys.key, moment)
