"""Patches side by side: every row of a forward pass has its own.

```
 Batch.patches   (1, -1, 0, 1)          from Row.patch; LM.run hands them to `routed`
        ▼
 _Routing        of(0) = [2], of(1) = [0, 3]       row numbers, sent to the device once per batch
        ▼
 _Site, one per changed module          x [B, T, d_in] ──▶ module ──▶ y [B, T, d_out]
   before   x[of(g)]  = network_g(x[of(g)])
   A, B     y[rows]  += x[rows] A[k]ᵀ B[k]ᵀ         A [G, r, d_in], B [G, d_out, r], k: line of A
   dense    y[of(g)] += x[of(g)] Δ_gᵀ
   bias     y[of(g)] += b_g
   after    y[of(g)]  = network_g(x, y)[of(g)]
        ▼
 AroundModel     contexts in front of the rows, routes around the model (errata.patch.around)
```

Rows that no change touches are never written to, so they keep the base model's bits. Some models
flatten `[B, T, d]` to `[B T, d]` in front of their projections; hooks shape it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from errata.arguments import expect, several
from errata.errors import PatchError
from errata.model.given import expect_model
from errata.model.hooks import after, before, hooked
from errata.model.passes import Pass, first, with_first
from errata.model.stored import matrix_shape
from errata.model.weights import settle
from errata.patch.around import AroundModel
from errata.patch.changes import Dense, LowRank, Module
from errata.patch.networks import Sources, called, entering
from errata.patch.parts import Parts
from errata.patch.patch import LOAD_PATCH, Patch
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
    low_rank: dict[int, int] = field(default_factory=dict)  # group -> its row of A and B


class _Routing:
    """Which patch each row of a pass runs under: known on the host, so that no hook has to wait.

    Args:
        patches: For each row the number of its patch; -1: none.
        device: Where row numbers are wanted.
    """

    def __init__(self, patches: Sequence[int], device: torch.device) -> None:
        self.patches, self._device = tuple(patches), device
        self._members: dict[int, Tensor | None] = {}
        self._lines: dict[int, tuple[Tensor, Tensor] | None] = {}

    def __len__(self) -> int:
        return len(self.patches)

    def of(self, group: int) -> Int[Tensor, " m"] | None:
        """Return the rows under one patch, None if there is none."""
        if group not in self._members:
            rows = [row for row, patch in enumerate(self.patches) if patch == group]
            self._members[group] = self._numbers(rows) if rows else None
        return self._members[group]

    def lines(
        self, low_rank: Mapping[int, int]
    ) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]] | None:
        """Return the rows that have a low-rank change at a site, and where it stands in `A`."""
        key = id(low_rank)  # lives as long as the stack, and so does what is kept here
        if key not in self._lines:
            rows = [row for row, patch in enumerate(self.patches) if patch in low_rank]
            lines = [low_rank[self.patches[row]] for row in rows]
            self._lines[key] = (self._numbers(rows), self._numbers(lines)) if rows else None
        return self._lines[key]

    def _numbers(self, values: Sequence[int]) -> Int[Tensor, " m"]:
        with torch.inference_mode(False):  # they may serve a later pass that takes gradients
            return torch.tensor(values, device=self._device)


class Stack:
    """Several patches installed side by side; each row of a forward pass runs under one of them.

    Rows say which (`Row.patch`): inside `with stack:` the model's [`LM`][errata.model.lm.LM] routes
    every batch that it runs. Rows that name none run under the base model.

    Low-rank changes cost two thin products per row and are never multiplied out. Rows routed to -1
    are bit-equal to the base model, unless they share a pass with rows that have a context: then
    they are equal within rounding (`apart` says which rows to keep apart, and
    [`LM.batches`][errata.model.lm.LM.batches] does). Gradients flow to the factors, so a
    hypernetwork can be trained through it.

    Args:
        lm: The model.
        patches: One per group; None or an empty patch changes nothing.

    Raises:
        PatchError: If a patch is for another model, or changes a parameter that cannot differ by
            row (an embedding or a norm): apply such a patch in place.
    """

    def __init__(self, lm: LM, patches: Sequence[Patch | None]) -> None:
        expect_model(lm)
        self.lm = lm
        self.patches = several(patches, "the stack", "a list of patches")
        self._routing: _Routing | None = None
        self._last: _Routing | None = None  # what the batch before this one was routed by
        self._sites: dict[str, _Site] = {}
        self._numberings: dict[tuple[int, ...], dict[int, int]] = {}
        self._exit = ExitStack()
        self._sources = Sources(lm)
        self._read: list[str] = []
        settle(lm)
        for patch in self.patches:
            if patch is not None:
                expect(patch, Patch, "one of the stack", "a patch, or None", LOAD_PATCH)
                patch.check(lm)
        parts = Parts.of(lm, self.patches)
        for group, change in parts.differences:
            self._add_dense(group, change)
        for group, change, network in parts.networks:
            self._add_network(group, change, network)
        for path, by_group in parts.factors.items():
            self._add_low_rank(path, by_group)
        networks = [network for _, _, network in parts.networks]
        self._around = AroundModel(
            lm, parts.contexts, parts.routers, networks, self._routed, parts.only_contexts
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
        for path, (A, B) in factors.items():
            site = stack._site(path)
            site.A, site.B, site.low_rank = A, B, stack._numbered(range(groups))
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
        if matrix_shape(module) is None or leaf not in {"weight", "bias"}:
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
        site.low_rank = self._numbered(factors)

    def _numbered(self, groups: Iterable[int]) -> dict[int, int]:
        """Number groups; sites that change for the same ones share what a pass works out of it."""
        key = tuple(groups)
        return self._numberings.setdefault(key, {group: line for line, group in enumerate(key)})

    # ------------------------------------------------------------------ use

    def route(self, groups: Sequence[int] | Int[Tensor, " B"]) -> None:
        """Say under which patch each row of your own calls of `lm.model(...)` runs; -1: the base.

        Passes that the LM runs (`lm.score(rows)`, editors) follow their rows, not this.
        """
        self._routing = self._routed_by(torch.as_tensor(groups, dtype=torch.long).tolist())

    @contextmanager
    def routed(self, patches: Sequence[int]) -> Iterator[None]:
        """Run a pass in which each row runs under the patch of that number; -1: the base model."""
        earlier, self._routing = self._routing, self._routed_by(patches)
        try:
            yield
        finally:
            self._routing = earlier

    def _routed_by(self, patches: Sequence[int]) -> _Routing:
        """Return a routing; the last one serves again: a training loop runs one batch for long."""
        last = self._last
        if last is None or last.patches != tuple(patches):
            if not all(-1 <= patch < len(self.patches) for patch in patches):
                raise PatchError(
                    f"rows are routed to patches {sorted(set(patches))}; this stack holds "
                    f"0..{len(self.patches) - 1}, and -1 is the base model"
                )
            last = self._last = _Routing(patches, self.lm.device)
        return last

    def apart(self, groups: Sequence[int]) -> list[int] | None:
        """Return a number per row, such that rows of one number may share a forward pass.

        Rows behind a context and rows without one could share it, but not to the last bit.
        None: all rows may.
        """
        ids = self._around.ids
        return [int(group in ids) for group in groups] if ids else None

    def __enter__(self) -> Stack:
        installed = self.lm.installed
        if installed.stack is not None:
            raise PatchError(
                "a stack of patches is active on this model already",
                "Leave it first, or stack all patches at once: Stack(lm, [first, second]).",
            )
        with ExitStack() as context:  # undone at once if anything is refused on the way
            context.callback(self._left)
            for site in self._sites.values():
                hooks = [before(site.module, self._before(site))] if site.before else []
                if site.low_rank or site.dense or site.bias or site.after:
                    hooks.append(after(site.module, self._after(site)))
                context.enter_context(hooked(self.lm, *hooks, lasting=True))
            context.enter_context(self._sources.watching(self._read))
            installed.stack = self
            context.enter_context(self._around.installed(stacked=True))
            self._exit = context.pop_all()
        return self

    def __exit__(self, *details: object) -> None:
        self._exit.close()

    def _left(self) -> None:
        if self.lm.installed.stack is self:
            self.lm.installed.stack = None
        self._routing = self._last = None
        self._sources.kept.clear()

    def _routed(self, count: int) -> tuple[int, ...]:
        """Return the patch of each row of a pass of so many rows."""
        if self._routing is None or len(self._routing) != count:
            raise self._unrouted(count)
        return self._routing.patches

    def _unrouted(self, count: int) -> PatchError:
        routed = "none" if self._routing is None else len(self._routing)
        return PatchError(
            f"a pass of {count} rows runs under a stack, and {routed} are routed",
            "Ask with lm.score, lm.top or lm.generate; before lm.model(...) call stack.route(...).",
        )

    def _rows_of(self, x: Tensor) -> _Routing:
        """Return the routing of this pass; some models flatten `[B, T, d]` before projections."""
        routing = self._routing
        if routing is None:
            raise self._unrouted(x.shape[0])
        fits = x.shape[0] == len(routing) if x.ndim > 2 else len(x) % len(routing) == 0
        if not fits:
            raise self._unrouted(x.shape[0])
        return routing

    def _before(self, site: _Site) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x = entering(module, args)
            routing = self._rows_of(x)
            hidden = x.reshape(len(routing), -1, x.shape[-1])
            for group, network in site.before:
                rows = routing.of(group)
                if rows is not None:
                    part = hidden[rows]
                    new = called(network, [part], self._seen(rows), part.shape)
                    hidden = hidden.index_copy(0, rows, new)
            return (hidden.reshape(x.shape), *args[1:])

        return hook

    def _seen(self, rows: Int[Tensor, " m"]) -> Pass | None:
        return None if self._around.seen is None else self._around.seen.rows(rows)

    def _after(self, site: _Site) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            given = entering(module, args)
            routing = self._rows_of(given)
            x, y = (t.reshape(len(routing), -1, t.shape[-1]) for t in (given, first(output)))
            y = self._add_low_rank_terms(site, routing, x, y)
            for group, delta in site.dense.items():
                y = _add_to(y, routing.of(group), lambda rows, d=delta: _product(x[rows], d))
            for group, delta in site.bias.items():
                y = _add_to(y, routing.of(group), lambda rows, d=delta: d)
            for group, network, change in site.after:
                rows = routing.of(group)
                if rows is None:
                    continue
                hidden = [y[rows]]
                if change.where == "both":
                    source = x
                    if change.source is not None:
                        kept = self._sources.kept[change.source]
                        source = kept.reshape(len(routing), -1, kept.shape[-1])
                    hidden.insert(0, source[rows])
                new = called(network, hidden, self._seen(rows), hidden[-1].shape)
                y = y.index_copy(0, rows, new)
            return with_first(output, y.reshape(first(output).shape))

        return hook

    def _add_low_rank_terms(
        self,
        site: _Site,
        routing: _Routing,
        x: Float[Tensor, "B T d_in"],
        y: Float[Tensor, "B T d_out"],
    ) -> Float[Tensor, "B T d_out"]:
        found = routing.lines(site.low_rank) if site.low_rank else None
        if found is None or site.A is None or site.B is None:
            return y
        A, B, (rows, lines) = site.A, site.B, found

        def term(rows: Int[Tensor, " m"]) -> Tensor:
            wide = torch.promote_types(x.dtype, A.dtype)
            inner = x[rows].to(wide) @ A[lines].to(wide).transpose(1, 2)
            return inner @ B[lines].to(wide).transpose(1, 2)

        return _add_to(y, rows, term)


def _product(x: Float[Tensor, "m T d_in"], delta: Float[Tensor, "d_out d_in"]) -> Tensor:
    wide = torch.promote_types(x.dtype, delta.dtype)
    return x.to(wide) @ delta.to(wide).T


def _add_to(
    y: Float[Tensor, "B T d_out"],
    rows: Int[Tensor, " m"] | None,
    term: Callable[[Int[Tensor, " m"]], Tensor],
) -> Float[Tensor, "B T d_out"]:
    """Add `term(rows)` to some rows in the wider type; the others keep their bits."""
    if rows is None:
        return y
    extra = term(rows)
    wide = torch.promote_types(y.dtype, extra.dtype)
    return y.index_copy(0, rows, (y[rows].to(wide) + extra.to(wide)).to(y.dtype))
