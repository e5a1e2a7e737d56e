"""Patches at work: in place with exact restore, or stacked so that every row has its own patch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.errors import PatchError
from errata.forward import first, hooks, with_first
from errata.patch import Change, Dense, LowRank, Module, Patch

if TYPE_CHECKING:
    from errata.lm import LM


def _parameter(lm: LM, name: str) -> nn.Parameter:
    try:
        return lm.model.get_parameter(name)
    except AttributeError:
        raise PatchError(
            f"{lm.name} has no parameter {name}; the patch is for another model"
        ) from None


def _module(lm: LM, path: str) -> nn.Module:
    try:
        return lm.model.get_submodule(path)
    except AttributeError:
        raise PatchError(
            f"{lm.name} has no module {path}; the patch is for another model"
        ) from None


def is_transposed(module: nn.Module) -> bool:
    """Whether a projection stores its weight as `d_in x d_out`."""
    return isinstance(module, Conv1D)


def check_changes(lm: LM, changes: Sequence[Change]) -> None:
    """Check that every change finds its place and fits.

    Raises:
        PatchError: Says which module or parameter is missing or has another shape.
    """
    for change in changes:
        if isinstance(change, Dense):
            have, want = tuple(_parameter(lm, change.path).shape), tuple(change.delta.shape)
        elif isinstance(change, LowRank):
            module = _module(lm, change.path)
            stored = tuple(_parameter(lm, f"{change.path}.weight").shape)
            have = stored[::-1] if is_transposed(module) else stored
            want = (change.B.shape[0], change.A.shape[1])
        else:
            _module(lm, change.path)
            continue
        if have != want:
            raise PatchError(
                f"the change of {change.path} has shape {want}, the model's is {have}",
                "The patch is for another model.",
            )


def low_rank_delta(change: LowRank, device: torch.device) -> Float[Tensor, "d_out d_in"]:
    """Return `B A`, multiplied in float32 at least."""
    wide = torch.promote_types(change.B.dtype, torch.float32)
    return change.B.to(device, wide) @ change.A.to(device, wide)


def weight_deltas(lm: LM, changes: Sequence[Change]) -> dict[str, Tensor]:
    """Return the summed delta of each changed parameter: stored shape, float32 at least."""
    total: dict[str, Tensor] = {}
    for change in changes:
        if isinstance(change, LowRank):
            name = f"{change.path}.weight"
            delta = low_rank_delta(change, _parameter(lm, name).device)
            if is_transposed(_module(lm, change.path)):
                delta = delta.T
        elif isinstance(change, Dense):
            name = change.path
            delta = change.delta.to(_parameter(lm, name).device)
        else:
            continue
        total[name] = total[name] + delta if name in total else delta
    return total


def bounded(lm: LM, patch: Patch) -> Patch:
    """Keep a patch within twice the size of what it changes, however many edits it carries out.

    Changes of one weight that together hold more than twice its numbers are added up into one dense
    change; all others stay as they are.
    """
    held: dict[str, list[Change]] = {}
    for change in patch.changes:
        if isinstance(change, LowRank):
            held.setdefault(f"{change.path}.weight", []).append(change)
        elif isinstance(change, Dense):
            held.setdefault(change.path, []).append(change)
    merged: dict[int, Change] = {}  # position of the first -> what stands for all of them
    gone: set[int] = set()
    for name, changes in held.items():
        numbers = sum(tensor.numel() for change in changes for tensor in change.tensors().values())
        dense = len(changes) == 1 and isinstance(changes[0], Dense)
        if dense or numbers <= 2 * _parameter(lm, name).numel():
            continue
        own = [i for i, change in enumerate(patch.changes) if any(change is c for c in changes)]
        # summed in float64, so that a long sequence does not gather rounding errors
        wide = [_widened(change) for change in changes]
        total = weight_deltas(lm, wide)[name]
        dtype = torch.float32
        for change in changes:
            for tensor in change.tensors().values():
                dtype = torch.promote_types(dtype, tensor.dtype)
        merged[own[0]] = Dense(name, total.to(dtype).contiguous())
        gone |= set(own)
    if not merged:
        return patch
    kept = [
        merged.get(i, change)
        for i, change in enumerate(patch.changes)
        if i in merged or i not in gone
    ]
    return replace(patch, changes=tuple(kept))


def _widened(change: Change) -> Change:
    if isinstance(change, LowRank):
        return replace(change, B=change.B.double(), A=change.A.double())
    return replace(change, delta=change.delta.double()) if isinstance(change, Dense) else change


def _hook(module: nn.Module, change: Module, network: nn.Module) -> Any:
    if change.where == "input":
        return module.register_forward_pre_hook(lambda _, args: (network(args[0]), *args[1:]))
    if change.where == "both":
        return module.register_forward_hook(
            lambda _, args, out: with_first(out, network(args[0], first(out)))
        )
    return module.register_forward_hook(lambda _, args, out: with_first(out, network(first(out))))


@contextmanager
def applied(lm: LM, patch: Patch) -> Iterator[None]:
    """Apply a patch in place inside a `with` block.

    Deltas are added in float32 (or wider) and rounded once. Leaving the block puts the saved
    tensors back, so the model is bit-identical to before, also in bfloat16 and after an exception.

    Raises:
        PatchError: If the patch is for another model or holds NaN or infinite values.
    """
    patch.check(lm)
    patch.check_finite()
    saved: list[tuple[nn.Parameter, Tensor]] = []
    with ExitStack() as stack:
        stack.callback(_restore, saved)
        with torch.no_grad():
            for name, delta in weight_deltas(lm, patch.changes).items():
                parameter = _parameter(lm, name)
                saved.append((parameter, parameter.detach().clone()))
                wide = torch.promote_types(parameter.dtype, delta.dtype)
                parameter.copy_(parameter.to(wide) + delta.to(wide))
        for change in patch.changes:
            if isinstance(change, Module):
                network = change.build().to(lm.device)
                stack.enter_context(hooks(_hook(_module(lm, change.path), change, network)))
        yield


@torch.no_grad()
def _restore(saved: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, value in saved:
        parameter.copy_(value)


@dataclass
class _Site:
    """Everything that stacked patches change at one module."""

    module: nn.Module
    transposed: bool
    A: Float[Tensor, "G r d_in"] | None = None
    B: Float[Tensor, "G d_out r"] | None = None
    dense: dict[int, Tensor] = field(default_factory=dict)  # group -> d_out x d_in
    bias: dict[int, Tensor] = field(default_factory=dict)  # group -> d_out
    before: list[tuple[int, nn.Module]] = field(default_factory=list)
    after: list[tuple[int, nn.Module, bool]] = field(default_factory=list)  # sees the input too?
    groups: Int[Tensor, " G"] | None = (
        None  # groups with a low-rank change here: group -> row of A, or -1
    )


class Stack:
    """Several patches installed side by side; each row of a forward pass runs under one of them.

    Low-rank changes cost two thin products per row and are never multiplied out. Rows routed to -1
    are bit-equal to the base model. Gradients flow to the factors, so a hypernetwork can be trained
    through it.

    Args:
        lm: The model.
        patches: One per group; None or an empty patch changes nothing.

    Raises:
        PatchError: If a patch is for another model, or changes a parameter that cannot differ by
            row (an embedding or a norm): apply such a patch in place.
    """

    def __init__(self, lm: LM, patches: Sequence[Patch | None]) -> None:
        self.lm = lm
        self.patches = tuple(patches)
        self._rows: Tensor | None = None
        self._sites: dict[str, _Site] = {}
        self._exit = ExitStack()
        low: dict[str, dict[int, list[LowRank]]] = {}
        for group, patch in enumerate(self.patches):
            if patch is None:
                continue
            patch.check(lm)
            for change in patch.changes:
                if isinstance(change, LowRank):
                    low.setdefault(change.path, {}).setdefault(group, []).append(change)
                elif isinstance(change, Dense):
                    self._add_dense(group, change)
                else:
                    site = self._site(change.path)
                    network = change.build().to(lm.device)
                    if change.where == "input":
                        site.before.append((group, network))
                    else:
                        site.after.append((group, network, change.where == "both"))
        for path, by_group in low.items():
            self._add_low_rank(path, by_group)

    @classmethod
    def of_factors(cls, lm: LM, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Stack:
        """Stack low-rank changes that are not patches yet: what a hypernetwork is trained through.

        Args:
            lm: The model.
            factors: Per module `A` of shape `[G, r, d_in]` and `B` of shape `[G, d_out, r]`.
        """
        groups = next(iter(factors.values()))[0].shape[0]
        stack = cls(lm, [None] * groups)
        where = torch.cat([torch.arange(groups), torch.tensor([-1])]).to(lm.device)
        for path, (A, B) in factors.items():
            site = stack._site(path)
            site.A, site.B, site.groups = A, B, where
        return stack

    def _site(self, path: str) -> _Site:
        if path not in self._sites:
            module = _module(self.lm, path)
            self._sites[path] = _Site(module, is_transposed(module))
        return self._sites[path]

    def _add_dense(self, group: int, change: Dense) -> None:
        path, _, leaf = change.path.rpartition(".")
        module = _module(self.lm, path)
        projection = isinstance(module, nn.Linear) or is_transposed(module)
        if not projection or leaf not in {"weight", "bias"}:
            raise PatchError(
                f"{change.path} cannot differ from row to row",
                "Apply this patch in place: one patch at a time.",
            )
        site = self._site(path)
        delta = change.delta.to(self.lm.device)
        if leaf == "weight" and site.transposed:
            delta = delta.T
        store = site.dense if leaf == "weight" else site.bias
        store[group] = store[group] + delta if group in store else delta

    def _add_low_rank(self, path: str, by_group: dict[int, list[LowRank]]) -> None:
        """Pad the factors of all groups to one rank and stack them."""
        site = self._site(path)
        device = self.lm.device
        factors = {
            group: (
                torch.cat([c.A.to(device) for c in changes], 0),
                torch.cat([c.B.to(device) for c in changes], 1),
            )
            for group, changes in by_group.items()
        }
        rank = max(a.shape[0] for a, _ in factors.values())
        site.A = torch.stack(
            [nn.functional.pad(a, (0, 0, 0, rank - a.shape[0])) for a, _ in factors.values()]
        )
        site.B = torch.stack(
            [nn.functional.pad(b, (0, rank - b.shape[1])) for _, b in factors.values()]
        )
        where = torch.full((len(self.patches) + 1,), -1, dtype=torch.long)
        for row, group in enumerate(factors):
            where[group] = row
        site.groups = where.to(device)  # the last entry serves rows routed to -1

    # ------------------------------------------------------------------ use

    def route(self, groups: Sequence[int] | Int[Tensor, " B"]) -> None:
        """Say under which patch each row of the next forward passes runs; -1: the base model."""
        rows = torch.as_tensor(groups, dtype=torch.long)
        if rows.numel() and (rows.max() >= len(self.patches) or rows.min() < -1):
            raise PatchError(f"rows are routed to patches 0..{len(self.patches) - 1} or -1")
        self._rows = rows.to(self.lm.device)

    def __enter__(self) -> Stack:
        for site in self._sites.values():
            if site.before:
                handle = site.module.register_forward_pre_hook(self._before(site))
                self._exit.enter_context(hooks(handle))
            if site.A is not None or site.dense or site.bias or site.after:
                handle = site.module.register_forward_hook(self._after(site))
                self._exit.enter_context(hooks(handle))
        return self

    def __exit__(self, *details: object) -> None:
        self._exit.close()

    def _rows_of(self, x: Tensor) -> Int[Tensor, " B"]:
        """Return the routing of this pass; some models flatten `[B, T, d]` before projections."""
        rows = self._rows
        if rows is None:
            fits = False
        elif x.ndim > 2:
            fits = x.shape[0] == len(rows)
        else:
            fits = len(x) % len(rows) == 0
        if rows is None or not fits:
            routed = "none" if rows is None else len(rows)
            raise RuntimeError(f"a pass of {x.shape[0]} rows needs route() first; routed: {routed}")
        return rows

    def _before(self, site: _Site) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x = args[0]
            rows = self._rows_of(x)
            hidden = self._through(site.before, rows, x.reshape(len(rows), -1, x.shape[-1]))
            return (hidden.reshape(x.shape), *args[1:])

        return hook

    def _through(
        self, networks: list[tuple[int, nn.Module]], rows: Int[Tensor, " B"], hidden: Tensor
    ) -> Tensor:
        for group, network in networks:
            mine = (rows == group).nonzero()[:, 0]
            if len(mine):
                hidden = hidden.index_copy(0, mine, network(hidden[mine]))
        return hidden

    def _after(self, site: _Site) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            rows = self._rows_of(args[0])
            x, y = (t.reshape(len(rows), -1, t.shape[-1]) for t in (args[0], first(output)))
            y = self._add_low_rank_terms(site, rows, x, y)
            for group, delta in site.dense.items():
                y = _add_to(y, rows == group, lambda mine, d=delta: _product(x[mine], d))
            for group, delta in site.bias.items():
                y = _add_to(y, rows == group, lambda mine, d=delta: d)
            for group, network, both in site.after:
                mine = (rows == group).nonzero()[:, 0]
                if len(mine):
                    new = network(x[mine], y[mine]) if both else network(y[mine])
                    y = y.index_copy(0, mine, new)
            return with_first(output, y.reshape(first(output).shape))

        return hook

    def _add_low_rank_terms(
        self,
        site: _Site,
        rows: Int[Tensor, " B"],
        x: Float[Tensor, "B T d_in"],
        y: Float[Tensor, "B T d_out"],
    ) -> Float[Tensor, "B T d_out"]:
        if site.A is None or site.B is None or site.groups is None:
            return y
        where = site.groups[rows]
        A, B = site.A, site.B

        def term(mine: Int[Tensor, " m"]) -> Tensor:
            wide = torch.promote_types(x.dtype, A.dtype)
            factor = where[mine]
            inner = x[mine].to(wide) @ A[factor].to(wide).transpose(1, 2)
            return inner @ B[factor].to(wide).transpose(1, 2)

        return _add_to(y, where >= 0, term)


def _product(x: Float[Tensor, "m T d_in"], delta: Float[Tensor, "d_out d_in"]) -> Tensor:
    wide = torch.promote_types(x.dtype, delta.dtype)
    return x.to(wide) @ delta.to(wide).T


def _add_to(
    y: Float[Tensor, "B T d_out"],
    chosen: Bool[Tensor, " B"],
    term: Callable[[Int[Tensor, " m"]], Tensor],
) -> Float[Tensor, "B T d_out"]:
    """Add `term(rows)` to the chosen rows in the wider type; the others keep their bits."""
    mine = chosen.nonzero()[:, 0]
    if not len(mine):
        return y
    extra = term(mine)
    wide = torch.promote_types(y.dtype, extra.dtype)
    return y.index_copy(0, mine, (y[mine].to(wide) + extra.to(wide)).to(y.dtype))
