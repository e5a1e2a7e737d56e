"""Watch a decoder at work on a few tokens: which modules run, and which matrix feeds which.

Nothing here knows the name of a module. Two tiny forward passes are enough:

1. `scout` records the order of all calls. Blocks are the members of a container that run once each, one after the
   other, hidden states in and hidden states out; the final norm is the last scale-invariant module before the head.
2. `wire` runs the model again with the graph **cut at every matrix**: the output of each matrix, and the input of each
   block, becomes a fresh leaf of autograd. What remains between two cuts holds no matrix, only norms, activations,
   attention and sums, so a gradient between them is either exactly zero or of ordinary size: the test works at any
   initialisation and in bfloat16, and costs no product with a weight. The gradient is taken at one position in the
   middle, which tells the past, the same position and the future apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.errors import SpecError

TOKENS = 5
"""Length of the probe text."""
WATCHED = 3
"""Position whose dependence is measured: it has a past (0-2) and a future (4)."""
OUT = "<out>"
"""Node of the output of a block."""
IN = "<in>"
"""Node of the input of a block."""
_KEPT_LEAVES = 64  # calls before the head among which the final norm is looked for
# LayerNorm and RMSNorm differ between inputs 8x and 16x only by their eps (< 1e-5 relative), an activation or a
# dropout by a factor of two; bfloat16 rounds at 4e-3.
_SCALE_TOLERANCE = 0.02


@dataclass(frozen=True)
class Call:
    """One call of a module: clock at start and end, width of the hidden states in and out (None: none)."""

    start: int
    end: int
    width_in: int | None
    width_out: int | None


@dataclass
class Scouting:
    """What the first forward pass showed."""

    calls: dict[str, list[Call]]
    leaves: list[
        tuple[str, Tensor]
    ]  # the last leaf modules called before the head, with their input


@dataclass(frozen=True)
class Edge:
    """What of a source reaches a target without passing another matrix: by position, seen from the target."""

    past: bool
    here: bool
    future: bool

    def __or__(self, other: Edge) -> Edge:
        return Edge(self.past or other.past, self.here or other.here, self.future or other.future)

    def __bool__(self) -> bool:
        return self.past or self.here or self.future


@dataclass
class Wiring:
    """The matrices of one block as a graph.

    Attributes:
        edges: target → source → edge. Nodes are module paths, names of parameters that no matrix module owns,
            `IN` and `OUT`.
        times: Module path → number of calls.
        linear: Module path → whether the calls agreed with `x Wᵀ + b` read in the orientation of the module's type
            (None: the stored weight is not a plain matrix, for example quantised).
    """

    edges: dict[str, dict[str, Edge]] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    linear: dict[str, bool | None] = field(default_factory=dict)

    def merge(self, other: Wiring) -> None:
        """Add the edges that another text showed."""
        for target, sources in other.edges.items():
            mine = self.edges.setdefault(target, {})
            for source, edge in sources.items():
                mine[source] = mine[source] | edge if source in mine else edge
        self.times.update(other.times)
        for path, agrees in other.linear.items():
            self.linear[path] = agrees and self.linear.get(path, True)

    def upstream(self, target: str, without: frozenset[str] = frozenset()) -> set[str]:
        """Return the nodes from which `target` can be reached without passing the nodes `without`."""
        seen: set[str] = set()
        todo = [target]
        while todo:
            for source in self.edges.get(todo.pop(), {}):
                if source not in seen and source not in without:
                    seen.add(source)
                    todo.append(source)
        return seen


def matrix_shape(module: nn.Module) -> tuple[int, int, bool] | None:
    """Return `(d_in, d_out, transposed)` of a projection, or None for any other module.

    The orientation comes from the type: `Conv1D` stores `d_in × d_out`, `nn.Linear` and its subclasses
    (quantised ones too) `d_out × d_in`.
    """
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1]), True
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features, False
    return None


def squeezed(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape without axes of length one."""
    return tuple(size for size in parameter.shape if size != 1)


def hidden_in(values: Any) -> Tensor | None:
    """Return the first tensor of shape `1 × TOKENS × width` in arguments or an output, or None."""
    if isinstance(values, Tensor):
        fits = values.is_floating_point() and values.ndim == 3 and values.shape[:2] == (1, TOKENS)
        return values if fits else None
    if isinstance(values, Mapping):
        values = tuple(values.values())
    if isinstance(values, tuple | list):
        for value in values:
            found = hidden_in(value) if not isinstance(value, tuple | list) else None
            if found is not None:
                return found
    return None


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Probe in evaluation mode with gradients on; afterwards flags and random states are as before."""
    flags = {module: module.training for module in model.modules()}
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=sorted(devices, key=str)))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        try:
            for module in flags:
                module.training = False
            yield
        finally:
            for module, flag in flags.items():
                module.training = flag


def probe_text(model: Any, seed: int) -> Int[Tensor, "1 t"]:
    """Return token ids drawn with a generator of their own."""
    embedding = model.get_input_embeddings()
    size = int(getattr(embedding, "num_embeddings", 0) or embedding.weight.shape[0])
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, size, (1, TOKENS), generator=generator)
    device = embedding.weight.device
    return ids.to(model.device if device.type == "meta" else device)


def _run(model: Any, ids: Int[Tensor, "1 t"]) -> None:
    try:
        model(input_ids=ids, use_cache=False)
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(
            f"{type(model).__name__} does not run on {TOKENS} token ids: "
            f"{type(error).__name__}: {error}",
            "errata edits decoder-only language models that need nothing but input_ids.",
        ) from error


def scout(model: Any, head: nn.Module) -> Scouting:
    """Run the model once and note the order of all calls.

    Raises:
        SpecError: If the model does not run on token ids alone.
    """
    calls: dict[str, list[Call]] = {}
    leaves: deque[tuple[str, Tensor]] = deque(maxlen=_KEPT_LEAVES)
    open_calls: list[tuple[int, int | None]] = []
    clock = 0
    headed = False

    def tick() -> int:
        nonlocal clock
        clock += 1
        return clock

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = hidden_in(args)
        hidden = hidden_in(kwargs) if hidden is None else hidden
        open_calls.append((tick(), None if hidden is None else hidden.shape[-1]))

    def after(path: str, leaf: bool):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any):
            nonlocal headed
            start, width = open_calls.pop()
            hidden = hidden_in(output)
            calls.setdefault(path, []).append(
                Call(start, tick(), width, None if hidden is None else hidden.shape[-1])
            )
            headed = headed or module is head
            given = hidden_in(args)
            if leaf and given is not None and not headed:
                leaves.append((path, given))

        return hook

    with ExitStack() as stack, torch.no_grad():
        for path, module in model.named_modules():
            leaf = next(module.children(), None) is None
            for handle in (
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after(path, leaf), with_kwargs=True),
            ):
                stack.callback(handle.remove)
        _run(model, probe_text(model, 0))
    return Scouting(calls, list(leaves))


def forgets_scale(module: nn.Module, given: Tensor) -> bool:
    """Tell whether a module is a norm: its output does not grow with its input, yet depends on it."""
    with torch.no_grad():
        unit = given / given.float().pow(2).mean().sqrt().clamp_min(1e-20).to(given.dtype)
        once, twice, flipped = (hidden_in(module(unit * c)) for c in (8, 16, -8))
    if once is None or twice is None or flipped is None:
        return False
    size = once.float().abs().max()
    same = (once - twice).float().abs().max() <= _SCALE_TOLERANCE * size
    return bool(same) and bool((once - flipped).float().abs().max() > _SCALE_TOLERANCE * size)


def _rows(tensor: Tensor) -> Float[Tensor, "t width"] | None:
    """Return the tensor with one row per position, or None if it is not laid out so."""
    fits = tensor.ndim >= 2 and tensor.shape[-2] == TOKENS
    if not fits or tensor.numel() != TOKENS * tensor.shape[-1]:
        return None
    return tensor.reshape(TOKENS, -1)


def _edge(gradients: list[Tensor | None], by_position: bool) -> Edge:
    total = Edge(False, False, False)
    for gradient in gradients:
        if gradient is None:
            continue
        rows = _rows(gradient)
        if rows is None or not by_position:
            # not one row per position (tokens were regrouped): any dependence may cross positions
            touched = bool(gradient.ne(0).any())
            total |= Edge(touched, touched, False)
            continue
        touched = rows.ne(0).any(-1)
        total |= Edge(
            bool(touched[:WATCHED].any()),
            bool(touched[WATCHED]),
            bool(touched[WATCHED + 1 :].any()),
        )
    return total


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


def _replace_hidden(args: tuple[Any, ...], kwargs: dict[str, Any], put: Any) -> tuple[Any, Any]:
    for index, value in enumerate(args):
        if isinstance(value, Tensor) and hidden_in(value) is not None:
            return (*args[:index], put(value), *args[index + 1 :]), kwargs
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and hidden_in(value) is not None:
            return args, {**kwargs, name: put(value)}
    return args, kwargs


def _agrees(module: nn.Module, given: Tensor, output: Tensor) -> bool | None:
    """Tell whether the output is `x W^T + b` with the weight in the orientation of the type."""
    shape = matrix_shape(module)
    weight = module.weight
    if shape is None or not isinstance(weight, Tensor) or not weight.is_floating_point():
        return None
    d_in, d_out, transposed = shape
    if weight.is_meta or tuple(weight.shape) != ((d_in, d_out) if transposed else (d_out, d_in)):
        return None
    given = given.detach().to(weight.device, weight.dtype)
    expected = given @ (weight if transposed else weight.T).detach()
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        expected = expected + bias.detach()
    off = (expected - output.detach().to(expected)).float().abs().max()
    return bool(off <= 0.05 * expected.float().abs().max() + 1e-6)


def _block_hooks(stack: ExitStack, path: str, block: nn.Module, cuts: _Cuts) -> None:
    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _replace_hidden(args, kwargs, lambda hidden: cuts.leaf(IN, hidden))

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = hidden_in(output)
        if hidden is not None:
            cuts.target(OUT, hidden)

    def cut(node: str):
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not args or not isinstance(output, Tensor):
                return None
            cuts.target(node, args[0])
            agrees = _agrees(module, args[0], output)
            cuts.linear[node] = agrees and cuts.linear.get(node, True)
            return cuts.leaf(node, output)

        return hook

    stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
    stack.callback(block.register_forward_hook(leave).remove)
    for name, module in block.named_modules(prefix=path):
        if matrix_shape(module) is not None:
            stack.callback(module.register_forward_hook(cut(name)).remove)


def _loose_parameters(
    path: str, block: nn.Module, calls: Mapping[str, list[Call]]
) -> dict[str, nn.Parameter]:
    """Return the matrices of a block that no called projection owns (routers, expert stacks)."""
    loose: dict[str, nn.Parameter] = {}
    for name, module in block.named_modules(prefix=path):
        if matrix_shape(module) is not None and name in calls:
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if len(squeezed(parameter)) >= 2 and parameter.is_floating_point():
                loose[f"{name}.{own}"] = parameter
    return loose


def _analyse(cuts: _Cuts, loose: Mapping[str, nn.Parameter], seed: int) -> Wiring:
    wiring = Wiring(times={node: len(calls) for node, calls in cuts.leaves.items()})
    wiring.linear = dict(cuts.linear)
    sources: list[tuple[str, Tensor]] = [
        (node, leaf) for node, leaves in cuts.leaves.items() for leaf in leaves
    ]
    sources += list(loose.items())
    tensors = [tensor for _, tensor in sources]
    generator = torch.Generator().manual_seed(seed)
    for target, values in cuts.targets.items():
        found = wiring.edges.setdefault(target, {})
        for value in values:
            if not bool(torch.isfinite(value.detach()).all()):
                raise SpecError(f"the input of {target} is not finite on a probe text")
            if not value.requires_grad:
                continue
            rows = _rows(value)
            watch = torch.randn(value.shape, generator=generator).to(value)
            if rows is not None:
                mask = torch.zeros(TOKENS, 1, device=value.device, dtype=value.dtype)
                mask[WATCHED] = 1
                watch = (watch.reshape(TOKENS, -1) * mask).reshape(value.shape)
            gradients = torch.autograd.grad(
                value, tensors, watch, retain_graph=True, allow_unused=True
            )
            for (source, _), gradient in zip(sources, gradients, strict=True):
                edge = _edge([gradient], rows is not None and source not in loose)
                if edge:
                    found[source] = found[source] | edge if source in found else edge
    return wiring


def wire(
    model: Any, blocks: tuple[str, ...], calls: Mapping[str, list[Call]], seed: int
) -> list[Wiring]:
    """Return the graph of matrices of every block, from one forward pass cut at every matrix.

    Args:
        model: In evaluation mode, gradients enabled (see `at_rest`).
        blocks: Module paths of the blocks.
        calls: What `scout` saw.
        seed: Chooses the text.

    Raises:
        SpecError: If the model does not run, or computes values that are not finite.
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
            _block_hooks(stack, path, block, cuts[path])
        _run(model, probe_text(model, seed))
        return [_analyse(cuts[path], loose[path], seed) for path in blocks]
