"""Forward passes that compute only what is needed, through the model's own code.

Every function here works on any decoder-only model that `errata.model.spec` understands: nothing
of the model is re-implemented. Blocks are skipped by short-circuiting their `forward`, logits are
restricted by a hook in front of the head; prefixes are kept by `errata.model.prefixes`.

```
 batch    input_ids [B, T], attention_mask [B, P + T] where it goes on behind a prefix
                                     ▼
 blocks   0 … l      reuse_below(lm, l, hidden): not run, block l answers `hidden` [B, T, d]
          l + 1 …    capture(lm, batch, inputs, outputs): read [B, T, ·], stop at the last one read
                                     ▼
 head     gather_logits(lm, at): the (row, position) pairs [N, 2] → logits [1, N, V]
```

Rows and batches carry the patch that each row runs under, also under a stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.model.hooks import after, before, hooked
from errata.model.tokens import Batch

if TYPE_CHECKING:
    from errata.model.lm import LM

Place = Literal["ffn", "attn", "block"]
"""Where a value is read or moved: output of the FFN or attention projection, or of the block."""


class Stop(BaseException):
    """Ends a forward pass early; a BaseException so that no model code swallows it."""


def first(output: Any) -> Tensor:
    """Return the hidden states of a block's or module's output, which may be a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, value: Tensor) -> Any:
    """Return `output` with its hidden states replaced by `value`."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


@dataclass(frozen=True)
class Pass:
    """What is known of a forward pass by changes that look at whole rows.

    Attributes:
        ids: `[B, T]`.
        mask: `[B, T]`, true on real tokens.
        prompts: `[B]`, how many tokens of each row are its prompt; all of them if whoever runs the
            model did not say.
        at: `[N, 2]`, the (row, column) pairs whose logits are computed; None: all of them.
        patches: `[B]`, each row's patch in the active stack, -1: none; None: nobody said.
    """

    ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    prompts: Int[Tensor, " B"]
    at: Int[Tensor, "N 2"] | None = None
    patches: Int[Tensor, " B"] | None = None

    @property
    def prompt_mask(self) -> Bool[Tensor, "B T"]:
        """True on the tokens of the prompts."""
        return self.mask & (self.mask.cumsum(1) <= self.prompts[:, None])

    def rows(self, index: Int[Tensor, " m"]) -> Pass:
        """Return what is known of some of the rows, in that order; of different rows."""
        at = self.at
        if at is not None:
            number = torch.full((len(self.ids),), -1, device=at.device)
            number[index] = torch.arange(len(index), device=at.device)
            moved = number[at[:, 0]]
            at = torch.stack([moved, at[:, 1]], 1)[moved >= 0]
        own = None if self.patches is None else self.patches[index]
        return Pass(self.ids[index], self.mask[index], self.prompts[index], at, own)

    def tokens(self, *, prompt_only: bool = False) -> list[tuple[int, ...]]:
        """Return the real tokens of each row, or those of its prompt."""
        mask = self.prompt_mask if prompt_only else self.mask
        pairs = zip(self.ids.tolist(), mask.tolist(), strict=True)
        return [tuple(i for i, real in zip(ids, own, strict=True) if real) for ids, own in pairs]


@contextmanager
def gather_logits(lm: LM, at: Int[Tensor, "N 2"]) -> Iterator[None]:
    """Hand only the hidden states at (row, position) pairs to the head.

    Logits then come out as `[1, N, V]`, whatever the model does to them afterwards (soft caps,
    scales).
    """

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden[at[:, 0], at[:, 1]].unsqueeze(0), *args[1:])

    with hooked(lm, before(lm.module(lm.spec.head), pick)):
        yield


@contextmanager
def reuse_below(lm: LM, layer: int, hidden: Float[Tensor, "B T d"]) -> Iterator[None]:
    """Skip blocks 0…`layer`: block `layer` returns `hidden`, everything above runs as usual.

    Exact when `hidden` is what the block would have returned. Forward hooks on block `layer` still
    fire and may change its output.
    """
    blocks = [lm.module(path) for path in lm.spec.blocks[: layer + 1]]
    returns_tuple = lm.spec.block_returns_tuple
    theirs = [vars(block).get("forward") for block in blocks]  # accelerate's, on several devices

    def stand_in(number: int) -> Any:
        own, inside = theirs[number] or blocks[number].forward, lm.installed.inside

        def forward(states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if lm.installed.inside != inside:  # other rows
                return own(states, *args, **kwargs)
            given = hidden if number == layer else states
            return (given, None) if returns_tuple else given

        return forward

    try:
        for number, block in enumerate(blocks):
            block.forward = stand_in(number)
        yield
    finally:
        for block, forward in zip(blocks, theirs, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward


def module_at(lm: LM, layer: int, place: Place) -> nn.Module:
    """Return the module whose output is the value at `place` of block `layer`."""
    if place == "block":
        return lm.module(lm.spec.blocks[layer])
    mixture = lm.spec.routed(layer) if place == "ffn" else None
    if mixture is not None and layer not in lm.focus:  # of all its experts together
        return lm.module(mixture.path.rpartition(".")[0])
    return lm.module(lm.site(layer, f"{place}_out").path)


def capture(
    lm: LM,
    batch: Batch,
    inputs: Sequence[nn.Module] = (),
    outputs: Sequence[nn.Module] = (),
    **kwargs: Any,
) -> tuple[list[Tensor], list[Tensor]]:
    """Run the model until all modules were called and return their first inputs and outputs.

    Args:
        lm: The model.
        batch: Rows to run.
        inputs: Modules whose input is wanted.
        outputs: Modules whose output is wanted.
        kwargs: Further arguments of the forward pass.

    Returns:
        `[B, T, d]` tensors, in the order asked for.
    """
    seen: dict[tuple[str, int], Tensor] = {}
    wanted = {("in", id(m)) for m in inputs} | {("out", id(m)) for m in outputs}

    def keep(key: tuple[str, int], value: Tensor) -> None:
        seen[key] = value
        if len(seen) == len(wanted):
            raise Stop

    readers = [
        *(
            before(m, lambda m, args: keep(("in", id(m)), args[0]))
            for m in {id(m): m for m in inputs}.values()
        ),
        *(
            # a copy: some blocks (Falcon's) add to the output of their FFN in place
            after(m, lambda m, args, out: keep(("out", id(m)), first(out).clone()))
            for m in {id(m): m for m in outputs}.values()
        ),
    ]
    with hooked(lm, *readers), suppress(Stop):
        lm.run(batch, **kwargs)
    return [seen["in", id(m)] for m in inputs], [seen["out", id(m)] for m in outputs]


def wide(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 at least."""
    return tensor.to(wide_type(tensor.dtype))


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """Return `dtype`, or float32 where that is wider."""
    return torch.promote_types(dtype, torch.float32)
