"""One patch at work in place, with exact restore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from errata.model.hooks import Hook, after, before, hooked
from errata.model.passes import first, with_first
from errata.patch.around import AroundModel, sees_pass
from errata.patch.changes import Module
from errata.patch.deltas import weight_deltas
from errata.patch.networks import Sources, called
from errata.patch.parts import Parts
from errata.patch.patch import Patch
from errata.patch.places import module_of, parameter_of

if TYPE_CHECKING:
    from errata.model.lm import LM


def _hook(
    module: nn.Module, change: Module, network: nn.Module, sources: Sources, around: AroundModel
) -> Hook:
    if change.where == "input":
        return before(
            module,
            lambda _, args: (called(network, [args[0]], around.seen, args[0].shape), *args[1:]),
        )

    def follow(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        hidden = [first(out)]
        if change.where == "both":
            hidden.insert(0, args[0] if change.source is None else sources.kept[change.source])
        return with_first(out, called(network, hidden, around.seen, first(out).shape))

    return after(module, follow)


@contextmanager
def applied(lm: LM, patch: Patch) -> Iterator[None]:
    """Apply a patch in place inside a `with` block.

    Deltas are added in float32 (or wider) and rounded once. Leaving the block puts the saved
    tensors back, so the model is bit-identical to before, also in bfloat16 and after an exception.

    Raises:
        PatchError: If the patch is for another model, holds NaN or infinite values, or lacks
            something that it needs.
    """
    patch.check(lm)
    patch.check_finite()
    lm.probe()  # trial passes see the weights as they were
    parts = Parts.of(lm, [patch])
    around = AroundModel(
        lm, parts.contexts, parts.routers,
        any(sees_pass(network) for _, _, network in parts.networks),
        lambda count: (0,) * count,
    )  # fmt: skip
    sources = Sources(lm)
    saved: list[tuple[nn.Parameter, Tensor]] = []
    with ExitStack() as stack:
        stack.callback(_restore, saved)
        stack.enter_context(lm.installed.running(applied=lm.installed.applied + 1))
        with torch.no_grad():
            for name, delta in weight_deltas(lm, patch.changes).items():
                parameter = parameter_of(lm, name)
                saved.append((parameter, parameter.detach().clone()))
                wide = torch.promote_types(parameter.dtype, delta.dtype)
                parameter.copy_(parameter.to(wide) + delta.to(wide))
        for _, change, network in parts.networks:
            hook = _hook(module_of(lm, change.path), change, network, sources, around)
            stack.enter_context(hooked(lm, hook))
        read = [change.source for _, change, _ in parts.networks if change.source is not None]
        stack.enter_context(sources.watching(read))
        stack.enter_context(around.installed())
        yield


@torch.no_grad()
def _restore(saved: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, value in saved:
        parameter.copy_(value)
