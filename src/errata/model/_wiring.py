"""Measure which matrix of a block feeds which, and whether positions mix on the way.

The model runs once with its graph **cut at every matrix**: the output of each matrix, and the input
of each block, becomes a fresh leaf of autograd. Between two cuts there are only norms, activations,
attention and sums, so a gradient between them is either exactly zero or of ordinary size. That
holds at any initialisation and in bfloat16, where a difference of outputs would drown in the
residual stream, and it costs no product with a weight. The gradient is taken at one position in the
middle, which tells the past, the same position and the future apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from errata.errors import SpecError
from errata.model._probe import (
    TOKENS,
    WATCHED,
    Call,
    hidden_in,
    read,
    replace_hidden,
    squeezed,
)
from errata.model.experts import ExpertMatrix
from errata.model.stored import is_quantised, matrix_shape

OUT = "<out>"
"""Node of the output of a block."""
IN = "<in>"
"""Node of the input of a block."""
# A product in bfloat16 agrees to 1e-2 of its largest entry; a weight read transposed, or an adapter
# on top, does not agree at all.
_PRODUCT_TOLERANCE = 0.05


@dataclass(frozen=True)
class Edge:
    """What reaches a target from a source without passing another matrix.

    Attributes:
        past: The source at earlier positions reaches the target.
        here: The source at the same position does.
        future: The source at later positions does.
    """

    past: bool = False
    here: bool = False
    future: bool = False

    def __or__(self, other: Edge) -> Edge:
        return Edge(self.past or other.past, self.here or other.here, self.future or other.future)

    def __bool__(self) -> bool:
        return self.past or self.here or self.future


@dataclass
class Wiring:
    """The matrices of one block as a graph.

    Attributes:
        edges: Target → source → edge. Nodes are paths of projections, names of other parameters
            with two axes or more (as sources), `IN` and `OUT`.
        times: Node → number of calls.
        linear: Path → whether its output was `x Wᵀ + b`, the weight read in the orientation of the
            module's type; None if the stored weight is not a plain matrix (quantised).
    """

    edges: dict[str, dict[str, Edge]] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    linear: dict[str, bool | None] = field(default_factory=dict)

    def add(self, target: str, source: str, edge: Edge) -> None:
        """Add what one measurement showed of an edge."""
        if edge:
            sources = self.edges.setdefault(target, {})
            sources[source] = sources.get(source, Edge()) | edge

    def merge(self, other: Wiring) -> None:
        """Add the edges that another text showed."""
        for target, sources in other.edges.items():
            for source, edge in sources.items():
                self.add(target, source, edge)
        self.times.update(other.times)
        for path, agrees in other.linear.items():
            self.linear[path] = agrees and self.linear.get(path, True)

    def mixed(self) -> list[str]:
        """Return the nodes whose input depends on earlier positions."""
        return [
            target
            for target, sources in self.edges.items()
            if any(edge.past for edge in sources.values())
        ]

    def upstream(self, target: str, without: str) -> set[str]:
        """Return the nodes from which `target` can be reached without passing `without`."""
        seen: set[str] = set()
        todo = [target]
        while todo:
            for source in self.edges.get(todo.pop(), {}):
                if source not in seen and source != without:
                    seen.add(source)
                    todo.append(source)
        return seen


@dataclass
class _Cuts:
    """Leaves and targets of one block, filled while the model runs."""

    leaves: dict[str, list[Tensor]] = field(default_factory=dict)
    targets: dict[str, list[Tensor]] = field(default_factory=dict)
    linear: dict[str, bool | None] = field(default_factory=dict)

    def leaf(self, node: str, tensor: Tensor) -> Tensor:
        leaf = tensor.detach().requires_grad_()
        self.leaves.setdefault(node, []).append(leaf)
        return leaf.clone()  # the model may write in place, which autograd forbids on a leaf

    def target(self, node: str, tensor: Tensor) -> None:
        self.targets.setdefault(node, []).append(tensor.clone())


def wire(
    model: Any, blocks: tuple[str, ...], calls: Mapping[str, list[Call]], seed: int
) -> list[Wiring]:
    """Return the graph of matrices of every block, from one forward pass cut at every matrix.

    Args:
        model: In evaluation mode, gradients enabled (`errata.model._probe.at_rest`).
        blocks: Module paths of the blocks.
        calls: What `errata.model._probe.scout` saw.
        seed: Chooses the text.

    Raises:
        SpecError: If the model computes values that are not finite.
    """
    cuts = {path: _Cuts() for path in blocks}
    loose: dict[str, dict[str, nn.Parameter]] = {}
    with ExitStack() as stack:
        for path in blocks:
            block = model.get_submodule(path)
            loose[path] = _loose_parameters(path, block, calls)
            for parameter in loose[path].values():
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(True)
            _hook(stack, path, block, cuts[path])
        read(model, seed)
        return [_measure(cuts[path], loose[path], seed) for path in blocks]


def _loose_parameters(
    path: str, block: nn.Module, calls: Mapping[str, list[Call]]
) -> dict[str, nn.Parameter]:
    """Return the matrices of a block that belong to no projection that was called (routers …)."""
    loose: dict[str, nn.Parameter] = {}
    for name, module in block.named_modules(prefix=path):
        if matrix_shape(module) is not None and name in calls:
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if len(squeezed(parameter)) >= 2 and parameter.is_floating_point():
                loose[f"{name}.{own}"] = parameter
    return loose


def _hook(stack: ExitStack, path: str, block: nn.Module, cuts: _Cuts) -> None:
    """Cut one block at its input and at every matrix."""

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return replace_hidden(args, kwargs, lambda hidden: cuts.leaf(IN, hidden))

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = hidden_in(output)
        if hidden is not None:
            cuts.target(OUT, hidden)

    def cut(node: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not args or not isinstance(output, Tensor):
                return None
            cuts.target(node, args[0])
            cuts.linear[node] = _multiplies(module, args[0], output) and cuts.linear.get(node, True)
            return cuts.leaf(node, output)

        return hook

    stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
    stack.callback(block.register_forward_hook(leave).remove)
    for name, module in block.named_modules(prefix=path):
        if matrix_shape(module) is not None and not isinstance(module, ExpertMatrix):
            stack.callback(module.register_forward_hook(cut(name)).remove)


def _multiplies(module: nn.Module, given: Tensor, output: Tensor) -> bool | None:
    """Tell whether `output` is `given` times the weight in the orientation of the module's type."""
    shape, weight = matrix_shape(module), getattr(module, "weight", None)
    if shape is None or not isinstance(weight, Tensor) or is_quantised(module):
        return None
    d_in, d_out, transposed = shape
    if weight.is_meta or tuple(weight.shape) != ((d_in, d_out) if transposed else (d_out, d_in)):
        return None
    with torch.no_grad():
        expected = given.to(weight.device, weight.dtype) @ (weight if transposed else weight.T)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            expected = expected + bias
        off = (expected - output.to(expected)).float().abs().max()
        return bool(off <= _PRODUCT_TOLERANCE * expected.float().abs().max())


def _measure(cuts: _Cuts, loose: Mapping[str, nn.Parameter], seed: int) -> Wiring:
    """Take the gradient of every target at the watched position."""
    wiring = Wiring(
        times={node: len(leaves) for node, leaves in cuts.leaves.items()}, linear=dict(cuts.linear)
    )
    sources: list[tuple[str, Tensor]] = [
        (node, leaf) for node, leaves in cuts.leaves.items() for leaf in leaves
    ]
    sources += loose.items()
    tensors = [tensor for _, tensor in sources]
    generator = torch.Generator().manual_seed(seed)
    for target, values in cuts.targets.items():
        for value in values:
            if not bool(torch.isfinite(value.detach()).all()):
                raise SpecError(f"a probe text gives values that are not finite at {target}")
            if not value.requires_grad:
                continue
            positions = _by_position(value) is not None
            direction = torch.randn(value.shape, generator=generator).to(value)
            if positions:
                mask = torch.zeros(TOKENS, 1, device=value.device, dtype=value.dtype)
                mask[WATCHED] = 1
                direction = (direction.reshape(TOKENS, -1) * mask).reshape(value.shape)
            gradients = torch.autograd.grad(
                value, tensors, direction, retain_graph=True, allow_unused=True
            )
            for (source, _), gradient in zip(sources, gradients, strict=True):
                if gradient is not None:
                    wiring.add(target, source, _edge(gradient, positions, source in loose))
    return wiring


def _by_position(tensor: Tensor) -> Shaped[Tensor, "t width"] | None:
    """Return the tensor with one row per position, or None if it is not laid out so."""
    if tensor.ndim < 2 or tensor.shape[-2] != TOKENS:
        return None
    return tensor.reshape(TOKENS, -1) if tensor.numel() == TOKENS * tensor.shape[-1] else None


def _edge(gradient: Tensor, positions: bool, parameter: bool) -> Edge:
    touched = gradient.ne(0)
    if parameter:
        return Edge(here=bool(touched.any()))
    rows = _by_position(touched) if positions else None
    if rows is None:
        # tokens were regrouped, as experts do: any dependence may cross positions
        return Edge(past=bool(touched.any()), here=bool(touched.any()))
    rows = rows.any(-1)
    return Edge(
        past=bool(rows[:WATCHED].any()),
        here=bool(rows[WATCHED]),
        future=bool(rows[WATCHED + 1 :].any()),
    )
