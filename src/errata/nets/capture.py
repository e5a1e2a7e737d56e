"""Gradient factors of edit requests: the input of a matrix and the gradient of its output.

For a projection `y = W h` and a loss `l` the gradient of the weight is the sum over tokens of
`u hᵀ` with `u = dl/dy`. Trained editors work on the factors and never form the product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.case import Edit
from errata.model.hooks import after, hooked
from errata.model.passes import first, reuse_below, wide_type, with_first
from errata.model.spec import Site
from errata.model.tokens import Batch, Row, bucket, positions_of

if TYPE_CHECKING:
    from errata.model.lm import LM

HALF_SCALE = 2.0**12
"""In float16 the loss is multiplied by this before the backward pass: `u` would underflow."""


@dataclass(frozen=True)
class Factors:
    """Gradient factors of E edits at one matrix, float32 at least, padded on the right with zeros.

    Attributes:
        h: Input of the matrix at every token, `[E, T, d_in]`.
        u: Gradient of the edit's loss with respect to the matrix' output, `[E, T, d_out]`.
        mask: Real tokens at which `u` is not zero, `[E, T]`.
        real: Real tokens, those of the answer included, `[E, T]`; None: no more than `mask`.
    """

    h: Float[Tensor, "E T d_in"]
    u: Float[Tensor, "E T d_out"]
    mask: Bool[Tensor, "E T"]
    real: Bool[Tensor, "E T"] | None = None

    @property
    def tokens(self) -> Bool[Tensor, "E T"]:
        """Real tokens, those without a gradient included."""
        return self.mask if self.real is None else self.real

    def gradient(self) -> Float[Tensor, "E d_out d_in"]:
        """Return the dense gradient of each edit; for tests and small models."""
        return self.u.transpose(1, 2) @ self.h


@dataclass(frozen=True)
class Signals:
    """Everything a hypernetwork may look at: the factors of E edits at every edited matrix.

    Attributes:
        factors: Per edited matrix.
        owner: Group of each edit, `[E]`; edits of one group are applied together.
        edits: The requests, for networks that read their text.
        rows: The same, tokenised.
    """

    factors: tuple[Factors, ...]
    owner: Int[Tensor, " E"]
    edits: tuple[Edit, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def groups(self) -> int:
        """Number of groups; every group has an edit."""
        return int(self.owner.max()) + 1 if len(self.owner) else 0


def edit_rows(lm: LM, edits: Sequence[Edit]) -> list[Row]:
    """Tokenise edit requests, the last token of the target included.

    Nothing is predicted from that token, so its gradient is zero; but a reversed question asks
    about it. Subjects are not needed here.
    """
    rows = [lm.row_of(edit) for edit in edits]
    return [replace(row, ids=(*row.ids, row.labels[-1])) for row in rows]


Below = Callable[[Batch], Tensor]


def capture(
    lm: LM,
    sites: Sequence[tuple[int, Site]],
    rows: Sequence[Row],
    *,
    below: Below | None = None,
    watch: Callable[[int, Sequence[int], Tensor], None] | None = None,
) -> tuple[Factors, ...]:
    """Return the gradient factors of every row at every site.

    The loss of a row is the mean negative log-likelihood of its labels. Losses of rows are summed,
    so a row's factors do not depend on its neighbours. One forward pass and a backward pass down
    to the lowest site; no gradient is computed for any weight.

    Args:
        lm: The model.
        sites: Block number and projection of every edited matrix.
        rows: Edits with labels, each under the patch that it names.
        below: Gives the output of the block below the lowest site for a batch, if it is known
            already; that block and those below are then skipped.
        watch: Called with the number of the site, the numbers of the rows and the site's output
            `[B, T, d_out]`, for every batch.
    """
    dtype = wide_type(lm.dtype)
    length = max(len(row.ids) for row in rows)
    made = [
        (
            torch.zeros(len(rows), length, site.d_in, dtype=dtype, device=lm.device),
            torch.zeros(len(rows), length, site.d_out, dtype=dtype, device=lm.device),
        )
        for _, site in sites
    ]
    lowest = min(layer for layer, _ in sites)
    scale = HALF_SCALE if lm.dtype == torch.float16 else 1.0
    for index in bucket(rows, lm.max_tokens, max_padding=lm.pass_cost):
        batch = lm.batch(rows, index)
        hidden = below(batch) if below is not None and lowest else None
        with torch.enable_grad():
            xs, ys = _forward(lm, sites, rows, batch, hidden, lowest, scale)
        at = torch.tensor(index, device=lm.device)
        for number, ((h, u), x, (y, grad)) in enumerate(zip(made, xs, ys, strict=True)):
            real = batch.attention_mask[:, : x.shape[1], None].to(dtype)
            h[at, : x.shape[1]] = x.to(dtype) * real
            u[at, : x.shape[1]] = grad.to(dtype) / scale
            if watch is not None:
                watch(number, index, y)
    lengths = torch.tensor([len(row.ids) for row in rows], device=lm.device)
    real = torch.arange(length, device=lm.device)[None] < lengths[:, None]
    return tuple(Factors(h, u, (u != 0).any(-1), real) for h, u in made)


def _forward(
    lm: LM,
    sites: Sequence[tuple[int, Site]],
    rows: Sequence[Row],
    batch: Batch,
    hidden: Tensor | None,
    lowest: int,
    scale: float,
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Run one batch; return every site's input, and its output with its gradient."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            y = first(output)
            if not y.requires_grad:
                y = y.detach().requires_grad_()
            seen[path] = (args[0].detach(), y)
            return with_first(output, y.clone())  # some blocks go on to write into it

        return hook

    with ExitStack() as context:
        for _, site in sites:
            context.enter_context(hooked(lm, after(lm.module(site.path), keep(site.path))))
        if hidden is not None:
            context.enter_context(reuse_below(lm, lowest - 1, hidden))
        logits = lm.logits(batch, positions_of(rows, batch.index, lm.device))
    labels = torch.tensor([n for i in batch.index for n in rows[i].labels], device=lm.device)
    share = torch.tensor(
        [1 / len(rows[i].labels) for i in batch.index for _ in rows[i].labels],
        device=lm.device, dtype=wide_type(logits.dtype),
    )  # fmt: skip
    nll = nn.functional.cross_entropy(logits.to(share.dtype), labels, reduction="none")
    outputs = [seen[site.path][1] for _, site in sites]
    grads = torch.autograd.grad((nll * share).sum() * scale, outputs)
    count, length = batch.input_ids.shape

    def turned(tensor: Tensor) -> Tensor:
        return tensor.reshape(count, length, tensor.shape[-1])

    xs = [turned(seen[site.path][0]) for _, site in sites]
    return xs, [(turned(y.detach()), turned(g)) for y, g in zip(outputs, grads, strict=True)]
