"""Watch a decoder at work on a few tokens: which modules run, in which order, on what.

Nothing here knows the name of a module. `errata.model._search` decides on what is seen here and in
`errata.model._wiring`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from errata.errors import SpecError
from errata.model.hooks import bare
from errata.model.stored import home_of

TOKENS = 5
"""Length of the probe text."""
WATCHED = 3
"""Position whose dependence is measured: it has a past (0 to 2) and a future (4)."""
_KEPT_LEAVES = 64  # calls before the head among which the final norm is looked for
# Between inputs 8x and 16x a norm differs by its eps (< 1e-5 relative), an activation or a dropout
# by a factor of two; bfloat16 rounds at 4e-3.
_SCALE_TOLERANCE = 0.02
# Attention weights in bfloat16 sum to one within 1e-2; a state that accumulates five equal tokens
# moves by far more.
_AVERAGE_TOLERANCE = 0.03


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        start: Clock at the start of the call (ticks of starts and ends of all calls).
        end: Clock at its end.
        width_in: Width of the hidden states that went in; None if there were none.
        width_out: Width of those that came out.
        in_tuple: Whether they came out in a tuple.
    """

    start: int
    end: int
    width_in: int | None
    width_out: int | None
    in_tuple: bool


@dataclass
class Scouting:
    """What the first forward pass showed.

    Attributes:
        calls: Module path → its calls.
        leaves: The last modules without children that ran before the head, with their inputs.
    """

    calls: dict[str, list[Call]]
    leaves: list[tuple[str, Tensor]]


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
            # what is nested deeper are tables of positions or caches, never the hidden states
            found = hidden_in(value) if isinstance(value, Tensor) else None
            if found is not None:
                return found
    return None


def replace_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], put: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a block with `put` applied to its hidden states."""
    for index, value in enumerate(args):
        if isinstance(value, Tensor) and hidden_in(value) is not None:
            return (*args[:index], put(value), *args[index + 1 :]), kwargs
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and hidden_in(value) is not None:
            return args, {**kwargs, name: put(value)}
    return args, kwargs


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Evaluate with gradients on, and with nothing of errata's installed.

    Afterwards training flags and random states are as before.
    """
    flags = {module: module.training for module in model.modules()}
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(bare(model))
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


def read(model: Any, seed: int) -> None:
    """Run the model on a text of `TOKENS` random tokens, drawn with a generator of their own."""
    embedding = model.get_input_embeddings()
    size = int(getattr(embedding, "num_embeddings", 0) or embedding.weight.shape[0])
    generator = torch.Generator().manual_seed(seed)
    ids: Int[Tensor, "1 t"] = torch.randint(0, size, (1, TOKENS), generator=generator)
    device = home_of(model)
    model(input_ids=ids.to(model.device if device.type == "meta" else device), use_cache=False)


def scout(model: Any, head: nn.Module) -> Scouting:
    """Run the model once and note the order of all calls.

    Raises:
        SpecError: If the model does not run on token ids alone.
    """
    calls: dict[str, list[Call]] = {}
    leaves: deque[tuple[str, Tensor]] = deque(maxlen=_KEPT_LEAVES)
    running: list[tuple[int, int | None]] = []
    clock = 0
    headed = False

    def tick() -> int:
        nonlocal clock
        clock += 1
        return clock

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = hidden_in(args)
        hidden = hidden_in(kwargs) if hidden is None else hidden
        running.append((tick(), None if hidden is None else hidden.shape[-1]))

    def after(path: str, leaf: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            nonlocal headed
            start, width = running.pop()
            hidden = hidden_in(output)
            out = None if hidden is None else hidden.shape[-1]
            calls.setdefault(path, []).append(
                Call(start, tick(), width, out, isinstance(output, tuple))
            )
            headed = headed or module is head
            given = hidden_in(args)
            if leaf and given is not None and not headed:
                leaves.append((path, given))

        return hook

    with ExitStack() as stack, torch.no_grad():
        for path, module in model.named_modules():
            leaf = next(module.children(), None) is None
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after(path, leaf)).remove)
        try:
            read(model, 0)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise SpecError(
                f"{type(model).__name__} does not run on {TOKENS} token ids: "
                f"{type(error).__name__}: {error}",
                "errata edits decoder-only language models that need nothing but token ids.",
            ) from error
    return Scouting(calls, list(leaves))


def forgets_scale(module: nn.Module, given: Tensor) -> bool:
    """Tell whether a module is a norm: its output follows its input, but not the input's size."""
    with torch.no_grad():
        size = given.float().pow(2).mean().sqrt().clamp_min(1e-20)
        unit = given / size.to(given.dtype)
        once, twice, flipped = (hidden_in(module(unit * factor)) for factor in (8, 16, -8))
    if once is None or twice is None or flipped is None:
        return False
    limit = _SCALE_TOLERANCE * once.float().abs().max()
    same = (once - twice).float().abs().max() <= limit
    return bool(same) and bool((once - flipped).float().abs().max() > limit)


def averages(model: Any, writers: Mapping[str, str]) -> dict[str, bool]:
    """Tell which blocks mix positions by averaging, as attention does.

    Every block is given the same hidden state at all positions. An average of equal values is that
    value, however many there are, so the input of the attention's output projection is the same at
    all positions. A state that accumulates, decays or is padded with zeros (state-space, recurrent
    and convolutional mixers) is not.

    Args:
        model: In evaluation mode.
        writers: Block → the matrix whose input mixes positions.

    Returns:
        Block → whether it averages.
    """
    found: dict[str, bool] = {}

    def level(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return replace_hidden(
            args, kwargs, lambda hidden: hidden[:, WATCHED : WATCHED + 1].expand_as(hidden).clone()
        )

    def watch(block: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            rows = args[0].float().reshape(TOKENS, -1)
            off = (rows - rows[-1]).abs().max()
            found[block] = bool(off <= _AVERAGE_TOLERANCE * rows.abs().max())

        return hook

    with ExitStack() as stack, torch.no_grad():
        for block, writer in writers.items():
            module = model.get_submodule(block)
            stack.callback(module.register_forward_pre_hook(level, with_kwargs=True).remove)
            hooked = model.get_submodule(writer).register_forward_pre_hook(watch(block))
            stack.callback(hooked.remove)
        read(model, 0)
    return found
