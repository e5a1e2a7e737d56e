"""Patches side by side: every row of a forward pass has its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.errors import PatchError
from errata.model.passes import Pass, first, hooks, with_first
from errata.patch.around import Whole, sees_pass
from errata.patch.changes import Dense, LowRank, Module
from errata.patch.networks import Sources, called
from errata.patch.parts import Parts
from errata.patch.patch import Patch
from errata.patch.places import is_transposed, module_of

if TYPE_CHECKING:
    from errata.model.lm import LM


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
    after: list[tuple[int, nn.Module, Module]] = field(default_factory=list)
    groups: Int[Tensor, " G"] | None = (
        None  # groups with a low-rank change here: group -> row of A, or -1
    )


class Stack:
    """Several patches installed side by side; each row of a forward pass runs under one of them.

    Low-rank changes cost two thin products per row and are never multiplied out. Rows routed to -1
    are bit-equal to the base model, unless they share a pass with rows that have a context: then
    they are equal within rounding (`apart` says which rows to keep apart). Gradients flow to the
    factors, so a hypernetwork can be trained through it.

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
        self._sources = Sources(lm)
        self._read: list[str] = []
        for patch in self.patches:
            if patch is not None:
                patch.check(lm)
        parts = Parts.of(lm, self.patches)
        for group, change in parts.differences:
            self._add_dense(group, change)
        for group, change, network in parts.networks:
            self._add_network(group, change, network)
        for path, by_group in parts.factors.items():
            self._add_low_rank(path, by_group)
        watched = any(sees_pass(network) for _, _, network in parts.networks)
        self._whole = Whole(
            lm, parts.contexts, parts.routers, watched, self._routed, parts.only_contexts
        )

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
            module = module_of(self.lm, path)
            self._sites[path] = _Site(module, is_transposed(module))
        return self._sites[path]

    def _add_network(self, group: int, change: Module, network: nn.Module) -> None:
        """Install a network for one group."""
        site = self._site(change.path)
        if change.where == "input":
            site.before.append((group, network))
        else:
            site.after.append((group, network, change))
            if change.source is not None:
                self._read.append(change.source)

    def _add_dense(self, group: int, change: Dense) -> None:
        path, _, leaf = change.path.rpartition(".")
        module = module_of(self.lm, path)
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

    def apart(self, groups: Sequence[int]) -> list[int] | None:
        """Return a number per row, such that rows of one number may share a forward pass.

        Rows behind a context and rows without one could share it, but not to the last bit.
        None: all rows may.
        """
        ids = self._whole.ids
        return [int(group in ids) for group in groups] if ids else None

    def __enter__(self) -> Stack:
        for site in self._sites.values():
            if site.before:
                handle = site.module.register_forward_pre_hook(self._before(site))
                self._exit.enter_context(hooks(handle))
            if site.A is not None or site.dense or site.bias or site.after:
                handle = site.module.register_forward_hook(self._after(site))
                self._exit.enter_context(hooks(handle))
        self._exit.enter_context(hooks(*self._sources.watch(self._read)))
        self._exit.enter_context(self._whole.installed(self.route))
        return self

    def __exit__(self, *details: object) -> None:
        self._exit.close()
        self._sources.kept.clear()

    def _routed(self, count: int) -> Int[Tensor, " B"]:
        rows = self._rows
        if rows is None or len(rows) != count:
            routed = "none" if rows is None else len(rows)
            raise RuntimeError(f"a pass of {count} rows needs route() first; routed: {routed}")
        return rows

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
                own = hidden[mine]
                new = called(network, [own], self._seen(mine), own.shape)
                hidden = hidden.index_copy(0, mine, new)
        return hidden

    def _seen(self, mine: Int[Tensor, " m"]) -> Pass | None:
        return None if self._whole.seen is None else self._whole.seen.rows(mine)

    def _after(self, site: _Site) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            rows = self._rows_of(args[0])
            x, y = (t.reshape(len(rows), -1, t.shape[-1]) for t in (args[0], first(output)))
            y = self._add_low_rank_terms(site, rows, x, y)
            for group, delta in site.dense.items():
                y = _add_to(y, rows == group, lambda mine, d=delta: _product(x[mine], d))
            for group, delta in site.bias.items():
                y = _add_to(y, rows == group, lambda mine, d=delta: d)
            for group, network, change in site.after:
                mine = (rows == group).nonzero()[:, 0]
                if not len(mine):
                    continue
                hidden = [y[mine]]
                if change.where == "both":
                    given = x
                    if change.source is not None:
                        kept = self._sources.kept[change.source]
                        given = kept.reshape(len(rows), -1, kept.shape[-1])
                    hidden.insert(0, given[mine])
                new = called(network, hidden, self._seen(mine), hidden[-1].shape)
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
