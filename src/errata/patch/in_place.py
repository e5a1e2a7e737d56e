"""One patch at work in place, with exact restore."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from errata.errors import PatchError
from errata.model.given import expect_model
from errata.model.hooks import Hook, after, before, hooked
from errata.model.passes import first, wide, with_first
from errata.model.stored import matrix_shape
from errata.model.weights import settle
from errata.patch.around import AroundModel
from errata.patch.changes import Change, Module
from errata.patch.deltas import weight_deltas
from errata.patch.networks import Sources, called, entering
from errata.patch.parts import Parts
from errata.patch.patch import Patch
from errata.patch.places import beside, is_transposed, module_of, parameter_of

if TYPE_CHECKING:
    from errata.model.lm import LM


def _hook(
    module: nn.Module, change: Module, network: nn.Module, sources: Sources, around: AroundModel
) -> Hook:
    if change.where == "input":
        return before(
            module,
            lambda module, args: (
                called(network, [x := entering(module, args)], around.seen, x.shape), *args[1:]
            ),
        )  # fmt: skip

    def follow(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        hidden = [first(out)]
        if change.where == "both":
            source = change.source
            hidden.insert(0, entering(module, args) if source is None else sources.kept[source])
        return with_first(out, called(network, hidden, around.seen, first(out).shape))

    return after(module, follow)


@contextmanager
def applied(lm: LM, patch: Patch) -> Iterator[None]:
    """Apply a patch in place inside a `with` block.

    Changes of weights that are quantised or offloaded work beside them: `W x + B A x`. All others
    are added to the weights. Deltas are added in float32 (or wider) and rounded once. Leaving the
    block puts the saved tensors back, so the model is bit-identical to before, also in bfloat16 and
    after an exception.

    Raises:
        PatchError: If the patch is for another model, holds NaN or infinite values, or lacks
            something that it needs.
    """
    expect_model(lm)
    settle(lm)
    patch.check(lm)
    patch.check_finite()
    lm.probe()  # trial passes see the weights as they were
    parts = Parts.of(lm, [patch])
    around = AroundModel(
        lm, parts.contexts, parts.routers,
        [network for _, _, network in parts.networks],
        lambda count: (0,) * count,
    )  # fmt: skip
    sources = Sources(lm)
    saved: list[tuple[nn.Parameter, Tensor]] = []
    with ExitStack() as stack:
        stack.callback(_restore, lm, saved)
        stack.enter_context(lm.installed.running(applied=lm.installed.applied + 1))
        with torch.no_grad():
            standing = [c for c in patch.changes if c.parameter and beside(lm, c.parameter)]
            written = [c for c in patch.changes if not any(c is other for other in standing)]
            for name, delta in weight_deltas(lm, written).items():
                parameter = parameter_of(lm, name)
                saved.append((parameter, parameter.detach().clone()))
                dtype = torch.promote_types(parameter.dtype, delta.dtype)
                parameter.copy_(parameter.to(dtype) + delta.to(dtype))
                lm.installed.wrote(parameter)
        own = {id(parameter): (parameter, value) for parameter, value in saved}
        stack.enter_context(lm.installed.running(written=own | lm.installed.written))
        if standing:
            stack.enter_context(hooked(lm, *beside_hooks(lm, standing), lasting=True))
        for _, change, network in parts.networks:
            hook = _hook(module_of(lm, change.path), change, network, sources, around)
            stack.enter_context(hooked(lm, hook, lasting=True))
        read = [change.source for _, change, _ in parts.networks if change.source is not None]
        stack.enter_context(sources.watching(read))
        stack.enter_context(around.installed())
        yield


def beside_hooks(lm: LM, changes: Sequence[Change]) -> list[Hook]:
    """Return hooks that add to the outputs of projections what changes of their weights would.

    Raises:
        PatchError: If a change is of something else than a projection.
    """
    by_path: dict[str, list[Change]] = {}
    for change in changes:
        assert change.parameter is not None
        path, _, leaf = change.parameter.rpartition(".")
        if matrix_shape(module_of(lm, path)) is None or leaf not in {"weight", "bias"}:
            raise PatchError(
                f"{change.parameter} is {beside(lm, change.parameter)} and no matrix that an "
                "input is multiplied with: a change cannot stand beside it",
                "Load the model unquantised and on one device.",
            )
        by_path.setdefault(path, []).append(change)
    return [after(module_of(lm, path), _adder(lm, own)) for path, own in by_path.items()]


def _adder(lm: LM, changes: Sequence[Change]) -> Callable[..., Any]:
    """Return a hook that adds the changes of one projection to its output, low rank as it is."""
    terms: list[Callable[[Tensor], Tensor]] = []
    for change in changes:
        path, _, leaf = str(change.parameter).rpartition(".")
        if change.factors is not None:
            B, A = (factor.to(lm.device) for factor in change.factors)
            terms.append(lambda x, A=A, B=B: _times(_times(x, A), B))
        else:
            delta = change.difference(lm).to(lm.device)
            if leaf == "bias":
                terms.append(lambda x, delta=delta: delta)
                continue
            delta = delta.T if is_transposed(module_of(lm, path)) else delta
            terms.append(lambda x, delta=delta: _times(x, delta))

    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        own, x = first(out), wide(entering(module, args))
        total = wide(own)
        for term in terms:
            total = total + term(x)
        return with_first(out, total.to(own.dtype))

    return hook


def _times(x: Float[Tensor, "... d_in"], matrix: Float[Tensor, "d_out d_in"]) -> Tensor:
    dtype = torch.promote_types(x.dtype, matrix.dtype)
    return x.to(dtype) @ matrix.to(dtype).T


@torch.no_grad()
def _restore(lm: LM, saved: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, value in saved:
        parameter.copy_(value)
        lm.installed.wrote(parameter)
