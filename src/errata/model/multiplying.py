"""Products on a CPU: by its fastest library, and in long optimisations of real tokens only.

Every pass of a large model runs inside `quick_products`: float32 products of more than a few rows
by the faster library. A training run passes the same frozen weights a hundred thousand times.
Inside `fast_products` their projections, and inside `fast_layers` those of the networks that
learn, work like this:

```
 x [B, T, d_in] ──real──▶ [N, d_in] ─┐                       N ≤ B T: no padding is multiplied
                                      ├─ product ─(+ bias)─▶ [N, d_out] ──▶ [B, T, d_out], else 0
 W [d_out, d_in] ────────────────────┘
 backward       g [N, d_out] ─ product ─ W                   and gᵀ x where W learns
```

The product is torch's own (`plain`), oneDNN's (`onednn`: float32 as well, and twice as fast where
the library behind torch's does not know the processor's widest instructions), or one in bfloat16
added up in float32 (`bfloat16`, see `errata.model.products`). The first two differ in the order in
which they add up, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from errata.model.products import FAST, LARGE, is_plain
from errata.store.machine import remembered, times_as_fast

if TYPE_CHECKING:
    from errata.model.lm import LM

Kind = Literal["plain", "onednn", "bfloat16"]

FEW = 8
"""Rows from which on oneDNN's product pays for going around torch's."""

WASTE = 0.04
"""Share of padding from which on leaving it out is worth the two copies it costs."""


def onednn(x: Float[Tensor, "N d_in"], weight: Float[Tensor, "d_out d_in"]) -> Tensor:
    """Return `x Wᵀ` in float32 by oneDNN, whichever library torch's own products use."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def speed_of_onednn(device: torch.device) -> float:
    """Return how many times as fast as torch's own float32 product oneDNN's is, kept on disk.

    0 where there is none.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return 0.0
    return remembered("onednn.json", device, _measured)


def _measured(device: torch.device) -> float:
    x, weight = torch.ones(128, 768, device=device), torch.ones(3072, 768, device=device)
    try:
        return times_as_fast(
            lambda: nn.functional.linear(x, weight), lambda: onednn(x, weight), device
        )
    except (RuntimeError, AttributeError):  # a build, or a release, without it
        return 0.0


def kind_for(lm: LM) -> Kind:
    """Return what the products of a long optimisation on this model are computed by.

    bfloat16 where the model's `compute` says so; else float32 by the faster library. Small models
    are left alone: products are not what they cost.
    """
    if lm.roughly:
        return "bfloat16"
    return "onednn" if _pays(lm) else "plain"


def _pays(lm: LM) -> bool:
    large = lm.dtype == torch.float32 and lm.model.num_parameters() >= LARGE
    return large and _has_onednn(lm.device)


# ---------------------------------------------------------------------- around modules


def quick_products(lm: LM) -> AbstractContextManager[None]:
    """Multiply in float32 by the faster library inside a `with` block, where that pays.

    For any pass: hooks, gradients and padding are as without it, and results differ by the order
    in which products add up. Projections that multiply in a way of their own keep it.
    """
    made = lm.once("quick products", lambda: _quick(lm))
    return _swapped([(m, forward) for m, forward in made if is_plain(m)]) if made else nullcontext()


def _quick(lm: LM) -> list[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    if not _pays(lm):
        return []
    return [(m, _quick_projection(m)) for m in lm.model.modules() if _is_projection(m, "onednn")]


def _quick_projection(module: Any) -> Callable[[Tensor], Tensor]:
    own = type(module).forward
    turned = isinstance(module, Conv1D)

    def forward(x: Tensor) -> Tensor:
        weight, bias = module.weight, module.bias
        rows = x.numel() // x.shape[-1]
        if rows < FEW or x.dtype != torch.float32 or weight.dtype != torch.float32:
            return own(module, x)  # type: ignore[no-any-return]
        weight = weight.t() if turned else weight
        return _Product.apply(x, weight, bias, None, "onednn")  # type: ignore[no-any-return]

    return forward


@contextmanager
def fast_products(lm: LM, kind: Kind | None = None, packed: bool | None = None) -> Iterator[Kind]:
    """Multiply fast with the frozen weights of a model inside a `with` block.

    Only plain projections of the blocks and the head take part, as in `rounded_products`; the head
    is never rounded. What it gives is not for hooks that read padding: there it is zero.

    Args:
        lm: The model.
        kind: By what; None: see `kind_for`.
        packed: Whether padding is left out; None: on a CPU, where the model is large.
    """
    kind = kind or kind_for(lm)
    if packed is None:
        packed = lm.device.type == "cpu" and lm.model.num_parameters() >= LARGE
    real = _RealTokens(lm) if packed else None
    blocks = [module for path in lm.spec.blocks for module in lm.module(path).modules()]
    made: list[tuple[nn.Module, Any]] = []
    if kind != "plain" or real is not None:
        made = [(m, _projection(m, kind, real)) for m in blocks if _is_projection(m, kind)]
        head = lm.module(lm.spec.head)
        if kind != "plain" and _is_projection(head, "onednn") and _has_onednn(lm.device):
            made.append((head, _projection(head, "onednn", None)))
    with _swapped(made):
        yield kind


@contextmanager
def fast_layers(network: nn.Module, kind: Kind, *, packed: bool = True) -> Iterator[None]:
    """Multiply fast in the linear layers of a network that learns, inside a `with` block.

    Its first argument are signals; rows behind the end of an edit are left out. The layers'
    weights keep their precision: bfloat16 means oneDNN's float32 here.

    Args:
        network: The network.
        kind: By what the model's products are computed.
        packed: Whether padding is left out.
    """
    first = next(network.parameters(), None)
    if kind == "plain" or first is None or not _has_onednn(first.device):
        yield
        return
    real = _RealEdits() if packed else None
    layers = [m for m in network.modules() if _is_projection(m, "onednn")]
    made = [(layer, _projection(layer, "onednn", real)) for layer in layers]
    handles = [] if real is None else [network.register_forward_pre_hook(real.note)]
    try:
        with _swapped(made):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _has_onednn(device: torch.device) -> bool:
    return speed_of_onednn(device) >= FAST


@contextmanager
def _swapped(made: Sequence[tuple[nn.Module, Any]]) -> Iterator[None]:
    try:
        for module, forward in made:
            module.forward = forward
        yield
    finally:
        for module, _ in made:
            vars(module).pop("forward", None)


def _is_projection(module: nn.Module, kind: Kind) -> bool:
    if type(module) not in (nn.Linear, Conv1D) or not is_plain(module):
        return False
    weight: Any = module.weight
    return weight.dtype == torch.float32 or kind == "plain"


def _projection(module: Any, kind: Kind, real: Any) -> Callable[[Tensor], Tensor]:
    """Return what a projection computes, by another product."""
    turned = isinstance(module, Conv1D)
    kept: list[Tensor] = []

    def weight() -> Tensor:
        if kind != "bfloat16":
            return module.weight.t() if turned else module.weight
        if not kept:  # rounded once, when it is first used
            own = module.weight.detach()
            kept.append((own.T if turned else own).to(torch.bfloat16).contiguous())
        return kept[0]

    def forward(x: Tensor) -> Tensor:
        rows = None if real is None else real.of(x)
        return _Product.apply(x, weight(), module.bias, rows, kind)  # type: ignore[no-any-return]

    return forward


class _Real:
    """Which rows of a padded tensor are real, worked out once per mask."""

    def __init__(self) -> None:
        self._mask: Tensor | None = None
        self._rows: Int[Tensor, " N"] | None = None

    def rows(self, mask: Bool[Tensor, "B T"]) -> Int[Tensor, " N"] | None:
        """Return the numbers of the real rows of `[B T]`; None if nearly all of them are."""
        if mask is not self._mask:
            found = mask.flatten().nonzero()[:, 0]
            full = len(found) >= (1 - WASTE) * mask.numel()
            self._mask, self._rows = mask, None if full else found
        return self._rows


class _RealTokens(_Real):
    """Real tokens of the batch that a model runs."""

    def __init__(self, lm: LM) -> None:
        super().__init__()
        self._installed = lm.installed

    def of(self, x: Tensor) -> Int[Tensor, " N"] | None:
        """Return the real rows of a projection's input; None: all, or nobody knows."""
        batch = self._installed.batch
        if batch is None or x.shape[:-1] != batch.attention_mask.shape:
            return None
        return self.rows(batch.attention_mask)


class _RealEdits(_Real):
    """Real tokens of the edits that a network looks at."""

    def __init__(self) -> None:
        super().__init__()
        self._tokens: Tensor | None = None

    def note(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        """Read them from the signals; called in front of the network."""
        factors = getattr(given[0], "factors", ()) if given else ()
        self._tokens = factors[0].tokens if factors else None

    def of(self, x: Tensor) -> Int[Tensor, " N"] | None:
        """Return the real rows of a layer's input; None: all, or it is not one row per token."""
        if self._tokens is None or x.shape[:-1] != self._tokens.shape:
            return None
        return self.rows(self._tokens)


# ---------------------------------------------------------------------- the product


def _multiply(x: Tensor, weight: Tensor, kind: Kind) -> Tensor:
    if kind == "onednn" and len(x):
        return onednn(x, weight)
    return nn.functional.linear(x.to(weight.dtype), weight).to(x.dtype)


class _Product(torch.autograd.Function):
    """`x Wᵀ + b` at some rows of `x`, zero at the others."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*batch d_in"],
        weight: Float[Tensor, "d_out d_in"],
        bias: Float[Tensor, " d_out"] | None,
        rows: Int[Tensor, " N"] | None,
        kind: Kind,
    ) -> Float[Tensor, "*batch d_out"]:
        flat = _picked(x, rows)
        ctx.save_for_backward(weight, rows, flat if weight.requires_grad else None)
        ctx.kind, ctx.shape = kind, x.shape
        y = _multiply(flat, weight, kind)
        return _spread(y if bias is None else y + bias, rows, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, rows, flat = ctx.saved_tensors
        g = _picked(grad, rows)
        found: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            found[0] = _spread(_multiply(g, weight.t(), ctx.kind), rows, ctx.shape)
        if ctx.needs_input_grad[1]:
            found[1] = _multiply(g.t(), flat.t(), ctx.kind)
        if ctx.needs_input_grad[2]:
            found[2] = g.sum(0)
        return *found, None, None


def _picked(x: Tensor, rows: Tensor | None) -> Float[Tensor, "N d"]:
    flat = x.reshape(-1, x.shape[-1])
    return flat if rows is None else flat.index_select(0, rows)


def _spread(y: Float[Tensor, "N d"], rows: Tensor | None, shape: Sequence[int]) -> Tensor:
    if rows is not None:
        count = 1
        for size in shape[:-1]:
            count *= size
        y = y.new_zeros(count, y.shape[-1]).index_copy_(0, rows, y)
    return y.view(*shape[:-1], y.shape[-1])
