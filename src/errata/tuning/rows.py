"""Gradients with respect to what groups add to a model, for many groups in one forward pass.

Every group has its own values: here differences to the weights of projections,
`y = W x + b + D_g x + e_g`; in `errata.tuning.branch` a small network beside an FFN. The model
itself stays as it is. Blocks below the lowest one that changes do not depend on any value: their
output is computed once, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.model.hooks import after, hooked
from errata.model.passes import capture, first, module_at, reuse_below, wide, with_first
from errata.model.spec import Site
from errata.model.stored import read
from errata.model.tokens import Batch, Row, bucket
from errata.patch import Patch
from errata.patch.deltas import weight_deltas

if TYPE_CHECKING:
    from errata.model.lm import LM


@runtime_checkable
class Trainable(Protocol):
    """What [`TuningRows`][errata.tuning.rows.TuningRows] can train, side by side for all groups.

    Attributes:
        lm: The model.
        lowest: Lowest block whose output the values can change.
        values: What is trained, `[G, ...]` each, float32 at least; written to by the optimiser.
    """

    lm: LM
    lowest: int
    values: list[Float[Tensor, "G ..."]]

    def installed(
        self,
        owner: Sequence[int],
        leaves: Sequence[Tensor],
        batch: Batch,
        prompts: Int[Tensor, " B"],
    ) -> AbstractContextManager[None]:
        """Let every row of a pass run under its group's values.

        Args:
            owner: Group of each row; the rows of one group stand together.
            leaves: Stand for `values`, in the same order; gradients are taken with respect to them.
            batch: The rows, padded on the right.
            prompts: Number of tokens of each row's prompt.
        """
        ...


class Tuned:
    """The differences to the weights of some projections, one per group, float32 at least.

    Attributes:
        lm: The model.
        lowest: Lowest block of the projections.
        values: Per projection `[G, d_out, d_in]`, each followed by the bias' `[G, d_out]` if it is
            tuned.
        names: Parameter of each.
    """

    def __init__(self, lm: LM, sites: Sequence[tuple[int, Site]], groups: int, bias: bool) -> None:
        self.lm, self.sites = lm, list(sites)
        self.lowest = min(layer for layer, _ in sites)
        dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
        self.values: list[Float[Tensor, "G ..."]] = []
        self.names: list[str] = []
        for _, site in sites:
            shape = (groups, site.d_out, site.d_in)
            self.values.append(torch.zeros(shape, dtype=dtype, device=lm.device))
            self.names.append(site.weight)
            if bias and site.bias:
                self.values.append(torch.zeros(shape[:2], dtype=dtype, device=lm.device))
                self.names.append(f"{site.path}.bias")
        self._transposed = {site.weight for _, site in sites if site.transposed}

    def start(self, before: Sequence[Patch]) -> list[Float[Tensor, "G ..."]]:
        """Return the complete weights each group starts from, its earlier patch included."""
        deltas = [weight_deltas(self.lm, patch.changes) for patch in before]
        full = []
        for name, value in zip(self.names, self.values, strict=True):
            base = read(self.lm.model, name).to(value)
            rows = [base + delta[name].to(base) if name in delta else base for delta in deltas]
            full.append(torch.stack([self._turned(name, row) for row in rows]))
        return full

    def stored(self, group: int) -> dict[str, Tensor]:
        """Return one group's differences by parameter name, in the shape the model stores."""
        return {
            name: self._turned(name, value[group]).clone(memory_format=torch.contiguous_format)
            for name, value in zip(self.names, self.values, strict=True)
        }

    @contextmanager
    def installed(
        self,
        owner: Sequence[int],
        leaves: Sequence[Tensor],
        batch: Batch,
        prompts: Int[Tensor, " B"],
    ) -> Iterator[None]:
        """Add every row's differences to the outputs of the projections."""
        by_name = dict(zip(self.names, leaves, strict=True))
        with ExitStack() as context:
            for _, site in self.sites:
                hook = _adder(owner, by_name[site.weight], by_name.get(f"{site.path}.bias"))
                context.enter_context(hooked(self.lm, after(self.lm.module(site.path), hook)))
            yield

    def _turned(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.T if name in self._transposed else tensor


@dataclass(frozen=True)
class _Part:
    """Rows of one forward pass; those of one group stand together."""

    batch: Batch
    owner: tuple[int, ...]
    prompts: Int[Tensor, " B"]
    at: Int[Tensor, "N 2"]
    labels: Int[Tensor, " N"]
    weights: Float[Tensor, " N"]
    label_owner: Int[Tensor, " N"]
    hidden: Tensor | None


class TuningRows:
    """The rows of one update: for every group its edits, scored under its own values.

    Args:
        tuned: The values.
        rows: Rows of every group, each under the group's earlier patch, if there is one; a group
            may have no rows.
        extra: A further loss of every group as a function of the values, which the gradient
            contains and the loss that is returned does not.

    Attributes:
        sizes: Number of edits of each group.
    """

    def __init__(
        self,
        tuned: Trainable,
        rows: Sequence[Sequence[Row]],
        extra: Callable[[Sequence[Tensor]], Float[Tensor, " G"]] | None = None,
    ) -> None:
        self.tuned, self.extra = tuned, extra
        self._rows = [(g, row) for g, group in enumerate(rows) for row in group]
        self._counts = [len(group) for group in rows]
        device = tuned.lm.device
        self.sizes = torch.tensor(self._counts, device=device, dtype=torch.float64)
        self._parts: list[_Part] = []
        self._made_for: tuple[bool, ...] = ()

    @torch.no_grad()
    def _arrange(self, running: tuple[bool, ...]) -> None:
        """Lay out the rows of the running groups, and compute what lies below all values."""
        self._made_for = running
        lm = self.tuned.lm
        live = [(g, row) for g, row in self._rows if running[g]]
        below = self.tuned.lowest - 1
        self._parts = []
        for index in bucket([row for _, row in live], lm.max_tokens, range(len(live))):
            owner = tuple(live[i][0] for i in index)
            rows = [live[i][1] for i in index]
            batch = lm.batch(rows, range(len(rows)))
            hidden = None
            if below >= 0:
                _, (hidden,) = capture(lm, batch, outputs=[module_at(lm, below, "block")])
            self._parts.append(self._part(rows, owner, batch, hidden))

    def _part(
        self, rows: Sequence[Row], owner: tuple[int, ...], batch: Batch, hidden: Tensor | None
    ) -> _Part:
        labels = [
            ((r, p), label, 1 / (self._counts[g] * len(row.labels)), g)
            for r, (g, row) in enumerate(zip(owner, rows, strict=True))
            for p, label in zip(row.positions, row.labels, strict=True)
        ]
        device = self.tuned.lm.device
        pairs, ids, weights, groups = zip(*labels, strict=True)
        return _Part(
            batch, owner,
            torch.tensor([row.prompt_length for row in rows], device=device),
            torch.tensor(pairs, device=device),
            torch.tensor(ids, device=device),
            torch.tensor(weights, device=device, dtype=self.tuned.values[0].dtype),
            torch.tensor(groups, device=device),
            hidden,
        )  # fmt: skip

    def losses(
        self, running: Bool[Tensor, " G"], stop: float
    ) -> tuple[Float[Tensor, " G"], list[Float[Tensor, "G ..."]]]:
        """Return each group's mean loss over its edits, and the gradients of the values.

        The loss is the cross-entropy of the targets' tokens: mean over the tokens of an edit, then
        over the edits of the group. No group's gradient depends on the others. `extra` is called
        once, after all rows.

        Args:
            running: Groups that are still trained; the others get loss 0 and gradient 0.
            stop: The backward pass is left out if every loss is below this.
        """
        now = tuple(running.tolist())
        if now != self._made_for:
            self._arrange(now)
        values = self.tuned.values
        total = values[0].new_zeros(len(now))
        grads = [torch.zeros_like(value) for value in values] if len(self._parts) > 1 else []
        done = False
        for part in self._parts:
            leaves = [value.detach().requires_grad_() for value in values]
            with torch.enable_grad():  # callers may have switched gradients off
                loss = self._loss(part, leaves)
                total += loss.detach()
                if len(self._parts) == 1 and bool((loss.detach() < stop).all()):
                    done = True
                    break
                found = _gradients(loss, leaves)
            if len(self._parts) == 1:
                grads = found
            else:
                for grad, more in zip(grads, found, strict=True):
                    grad += more
        grads = grads or [torch.zeros_like(value) for value in values]
        if self.extra is not None and not done:
            leaves = [value.detach().requires_grad_() for value in values]
            with torch.enable_grad():
                found = _gradients(self.extra(leaves)[running], leaves)
            grads = [grad + more for grad, more in zip(grads, found, strict=True)]
        return total, grads

    def _loss(self, part: _Part, leaves: Sequence[Tensor]) -> Float[Tensor, " G"]:
        lm = self.tuned.lm
        with ExitStack() as context:
            if part.hidden is not None:
                context.enter_context(reuse_below(lm, self.tuned.lowest - 1, part.hidden))
            context.enter_context(
                self.tuned.installed(part.owner, leaves, part.batch, part.prompts)
            )
            logits = wide(lm.logits(part.batch, part.at))
        label_logits = logits.gather(1, part.labels[:, None])[:, 0]
        nll = (logits.logsumexp(-1) - label_logits) * part.weights
        return nll.new_zeros(leaves[0].shape[0]).index_add(0, part.label_owner, nll)


def _gradients(loss: Float[Tensor, " G"], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of every leaf, zero for one that the loss does not depend on."""
    return list(torch.autograd.grad(loss.sum(), leaves, allow_unused=True, materialize_grads=True))


def _adder(owner: Sequence[int], weight: Tensor, bias: Tensor | None) -> Any:
    """Hook that adds `D_g x + e_g` to a projection's output, `g` the group of the row."""
    groups = sorted(set(owner))
    counts = [owner.count(g) for g in groups]
    everyone = groups == list(range(weight.shape[0]))
    number = torch.tensor(owner, device=weight.device)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        y = first(output)
        rows = len(owner)
        x = args[0].reshape(rows, -1, args[0].shape[-1]).to(weight.dtype)
        if len(set(counts)) == 1:  # one batched product: group by group, its rows side by side
            mine = weight if everyone else weight[torch.tensor(groups, device=weight.device)]
            term = torch.bmm(x.reshape(len(groups), -1, x.shape[-1]), mine.transpose(1, 2))
            term = term.view(rows, -1, weight.shape[1])
        else:
            pieces = x.split(counts)
            term = torch.cat([p @ weight[g].T for p, g in zip(pieces, groups, strict=True)])
        if bias is not None:
            term = term + bias[number][:, None]
        return with_first(output, (y.to(term.dtype) + term.view(y.shape)).to(y.dtype))

    return hook
