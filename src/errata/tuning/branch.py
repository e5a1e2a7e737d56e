"""A small network beside one block's FFN, with values of its own for every group of rows.

The FFN's output `y` becomes `y + f(x)`, where `x` is the FFN's input. `f` cannot change `x`, so
whatever is computed from `x` alone (a unit's activation at the tokens of an edit) may be computed
from an `x` that was read once: that is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from errata.model.hooks import after, before, hooked
from errata.model.passes import first, with_first
from errata.model.tokens import Batch

if TYPE_CHECKING:
    from errata.model.lm import LM

Network = Callable[
    [Sequence[Tensor], Sequence[int], Tensor, Batch, Int[Tensor, " B"]], Float[Tensor, "B T d"]
]
"""`f(leaves, owner, x, batch, prompts)`: the values of all groups, the group of each row, the FFN's
input `[B, T, d]` in the type of the values, the rows, and the tokens of each row's prompt. Returns
what is added to the FFN's output, `[B, T, d]`. Padding is on the right, and `f` may answer anything
there."""


class Branch:
    """A side branch of one block's FFN, to be trained by `TuningRows`.

    Args:
        lm: The model.
        layer: Block of the FFN.
        values: What is trained, `[G, ...]` each, float32 at least; written to in place.
        network: What the branch computes.

    Attributes:
        lm: The model.
        lowest: The block.
        values: What is trained.
    """

    def __init__(
        self, lm: LM, layer: int, values: list[Float[Tensor, "G ..."]], network: Network
    ) -> None:
        self.lm, self.lowest, self.values, self.network = lm, layer, values, network

    @contextmanager
    def installed(
        self,
        owner: Sequence[int],
        leaves: Sequence[Tensor],
        batch: Batch,
        prompts: Int[Tensor, " B"],
    ) -> Iterator[None]:
        """Add `f(x)` to the FFN's output, in the type of the values, rounded once."""
        inputs: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs[:] = [args[0]]

        def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            y, x = first(output), inputs[0]  # some models join rows in front of an FFN
            x = x.reshape(len(owner), -1, x.shape[-1]).to(leaves[0].dtype)
            term = self.network(leaves, owner, x, batch, prompts)
            return with_first(output, (y.to(term.dtype) + term.reshape(y.shape)).to(y.dtype))

        source = self.lm.module(self.lm.spec.ffn_in[self.lowest][0].path)
        target = self.lm.module(self.lm.site(self.lowest).path)
        with hooked(self.lm, before(source, keep), after(target, add)):
            yield
