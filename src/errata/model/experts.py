"""Mixtures of experts: every expert's output matrix as a projection that can be hooked and edited.

transformers keeps the experts of a block as stacks of matrices (`[experts, d, f]`) in one module,
which is called with the routed tokens of a whole batch. What an expert does to a token is

    v_e = g_e W_e k_e        g_e: its weight for the token, 0 where the router sends it elsewhere

so with the key `g_e k_e` each `W_e` is a projection like any other. `expose` puts an
[`ExpertMatrix`][] at `experts.{e}.down_proj` that is exactly that:

```
 mixture(x [B, T, d])
    ├─ router            weights, numbers of the experts  [B T, top k]
    ├─ experts.forward   the model's own: total [B T, d]
    │     └─ for each e whose matrix has hooks:  k = g_e k_e [B, T, f], 0 for tokens elsewhere
    │            v = W_e k  ──▶ hooks of experts.{e}.down_proj ──▶ v'      total += v' - v
    └─ shared expert     an ordinary projection, where there is one
```

Without hooks nothing but the model's own code runs, and rows that no hook changes keep its bits.
Weights are views into the stacks: an edit in place edits the model, nothing is stored twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from errata.model.hooks import before, hooked

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.tokens import Row

OUT, IN = "down_proj", "gate_up_proj"
"""What transformers calls the two stacks; that they are what they seem is measured."""
# A sum over experts in bfloat16 agrees with the model's own to 1e-2 of its largest entry; another
# activation, a bias or a transposed stack does not agree at all.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class Mixture:
    """The experts of one block.

    Attributes:
        path: Module that holds the stacks.
        count: Number of experts.
        shared: Whether a shared expert, which sees every token, is edited instead of the routed
            ones.
    """

    path: str
    count: int
    shared: bool = False

    def matrix(self, expert: int | str) -> str:
        """Return the path of an expert's output matrix; `*` stands for all."""
        return f"{self.path}.{expert}.{OUT}"


class ExpertMatrix(nn.Module):
    """The output matrix of one expert, a view into the stack of all: `v = W_e (g_e k_e)`."""

    def __init__(self, experts: nn.Module, number: int) -> None:
        super().__init__()
        self._experts = (experts,)  # no child: it is the other way round
        self.number = number
        self.out_features, self.in_features = (int(n) for n in getattr(experts, OUT).shape[1:])
        self.bias = None

    @property
    def weight(self) -> Float[Tensor, "d f"]:
        """A view: writing to it edits the model."""
        return getattr(self._experts[0], OUT).data[self.number]

    def forward(self, keys: Float[Tensor, "... f"]) -> Float[Tensor, "... d"]:
        """Multiply; tokens that are not routed here have the key zero."""
        return nn.functional.linear(keys, self.weight)


class _Exposed:
    """The forward passes of one mixture, its experts and its shared expert."""

    def __init__(self, mixture: nn.Module, experts: nn.Module, shared: nn.Module | None) -> None:
        self.experts = experts
        self.shape: tuple[int, ...] | None = None
        self.outer, self.inner = mixture.forward, experts.forward
        mixture.forward, experts.forward = self.mixture, self.forward
        if shared is not None:
            self.beside = shared.forward
            shared.forward = self.shared

    def shared(self, hidden: Tensor) -> Tensor:
        """Run the shared expert on `[B, T, d]`, also where the model hands it `[B T, d]`."""
        if hidden.ndim > 2 or self.shape is None:
            return self.beside(hidden)
        return self.beside(hidden.view(*self.shape, -1)).view(len(hidden), -1)

    def mixture(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.shape = tuple(hidden.shape[:-1])
        return self.outer(hidden, *args, **kwargs)

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        total = self.inner(hidden, top_k_index, top_k_weights)
        for name, holder in self.experts.named_children():
            matrix: Any = getattr(holder, OUT, None)
            if not isinstance(matrix, ExpertMatrix) or not (
                matrix._forward_hooks or matrix._forward_pre_hooks
            ):
                continue
            keys = expert_keys(self.experts, int(name), hidden, top_k_index, top_k_weights)
            before = matrix.forward(keys)
            shaped = keys if self.shape is None else keys.view(*self.shape, -1)
            after = matrix(shaped).view(before.shape)
            total = total + (after - before).to(total.dtype)
        return total


def expert_keys(
    experts: Any, number: int, hidden: Float[Tensor, "n d"], index: Int[Tensor, "n k"],
    weights: Float[Tensor, "n k"],
) -> Float[Tensor, "n f"]:  # fmt: skip
    """Return what an expert's output matrix multiplies, times its weight; 0 where it is not used.

    Args:
        experts: The module with the stacks.
        number: The expert.
        hidden: Hidden states of all tokens.
        index: Experts that each token is routed to.
        weights: Their weights.
    """
    hits = index == number
    rows = hits.any(-1).nonzero()[:, 0]
    width = getattr(experts, OUT).shape[-1]
    keys = hidden.new_zeros(len(hidden), width)
    if not len(rows):
        return keys
    first = nn.functional.linear(hidden[rows], getattr(experts, IN)[number])
    gate, up = first.chunk(2, dim=-1)
    share = (weights * hits).sum(-1)[rows, None].to(hidden.dtype)
    return keys.index_copy(0, rows, (experts.act_fn(gate) * up * share).to(keys.dtype))


# ---------------------------------------------------------------------- finding


def stacks(module: nn.Module) -> bool:
    """Whether a module holds stacks of matrices, one per expert, as transformers lays them out."""
    out, into = (getattr(module, name, None) for name in (OUT, IN))
    return (
        isinstance(out, Tensor)
        and isinstance(into, Tensor)
        and out.ndim == into.ndim == 3
        and len(out) == len(into)
        and into.shape[1] == 2 * out.shape[2]
        and into.shape[2] == out.shape[1]
        and out.is_floating_point()
        and callable(getattr(module, "act_fn", None))
    )


@torch.no_grad()
def sums_up(experts: Any) -> bool:
    """Tell whether what the module computes is the sum over its experts as described above."""
    out = getattr(experts, OUT)
    if out.is_meta:
        return False
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, out.shape[1], generator=draw).to(out)
    index = torch.stack([torch.randperm(len(out), generator=draw)[:2] for _ in hidden])
    index = index.to(out.device)
    weights = torch.rand(index.shape, generator=draw).to(out)
    try:
        found = experts.forward(hidden, index, weights)
        total = torch.zeros_like(hidden)
        for number in range(len(out)):
            total += expert_keys(experts, number, hidden, index, weights) @ out[number].T
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    off = (found - total).float().abs().max()
    return bool(off <= _TOLERANCE * total.float().abs().max())


def experts_in(modules: Mapping[str, nn.Module], blocks: Sequence[str]) -> dict[str, str]:
    """Return for each block with a mixture of experts the module that holds the experts."""
    found: dict[str, str] = {}
    for block in blocks:
        inside = modules[block].named_modules(prefix=block)
        paths = [name for name, module in inside if stacks(module)]
        if len(paths) == 1 and sums_up(modules[paths[0]]):
            found[block] = paths[0]
    return found


def mixtures_of(
    modules: Mapping[str, nn.Module],
    experts: Mapping[str, str],
    blocks: Sequence[str],
    sites: Sequence[str],
) -> tuple[Mixture | None, ...]:
    """Return what is known of each block's mixture, given the block's site."""
    found: list[Mixture | None] = []
    for block, site in zip(blocks, sites, strict=True):
        path = experts.get(block)
        if path is None:
            found.append(None)
            continue
        count = len(modules[path].get_parameter(OUT))
        found.append(Mixture(path, count, shared=not site.startswith(f"{path}.")))
    return tuple(found)


def expose(model: nn.Module, path: str, site: str) -> None:
    """Put the matrices of a module's experts where they can be hooked, once.

    Args:
        model: The model.
        path: The module that holds the experts.
        site: What was found to be the block's site.
    """
    experts = model.get_submodule(path)
    if any(isinstance(child, ExpertMatrix) for child in experts.modules()):
        return
    shared = None
    if not site.startswith(f"{path}."):
        shared = model.get_submodule(site.rpartition(".")[0])
    for number in range(len(getattr(experts, OUT))):
        holder = nn.Module()
        holder.add_module(OUT, ExpertMatrix(experts, number))
        experts.add_module(str(number), holder.train(experts.training))
    _Exposed(model.get_submodule(path.rpartition(".")[0]), experts, shared)


# ---------------------------------------------------------------------- routing


@dataclass(frozen=True)
class Routed:
    """Where the router of one block sends one token.

    Attributes:
        experts: Numbers of the experts, the one with the largest weight first.
        weights: Their weights.
    """

    experts: tuple[int, ...]
    weights: tuple[float, ...]


@torch.no_grad()
def routes(lm: LM, rows: Sequence[Row], at: Sequence[int]) -> list[dict[int, Routed]]:
    """Return for each row where the routers of all blocks send the token at one position.

    Args:
        lm: The model.
        rows: Tokenised texts.
        at: For each row, the position of the token.
    """
    mixtures = {n: m for n, m in enumerate(lm.spec.mixtures) if m is not None}
    found: list[dict[int, Routed]] = [{} for _ in rows]
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def note(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            given = [*args, *kwargs.values()]
            seen[layer] = given[1], given[2]

        return hook

    hooks = [
        before(lm.module(mixture.path), note(layer), with_kwargs=True)
        for layer, mixture in mixtures.items()
    ]
    for batch in lm.batches(rows):
        width = batch.input_ids.shape[1]
        with hooked(lm, *hooks):
            lm.run(batch)
        for line, i in enumerate(batch.index):
            for layer, (index, weights) in seen.items():
                token = line * width + at[i]
                order = weights[token].argsort(descending=True, stable=True)
                found[i][layer] = Routed(
                    tuple(index[token][order].tolist()), tuple(weights[token][order].tolist())
                )
    return found


@contextmanager
def focused(lm: LM, chosen: Mapping[int, int]) -> Iterator[None]:
    """Let `lm.site` of these blocks be the output matrix of these experts.

    Args:
        lm: The model.
        chosen: Block → expert.
    """
    earlier, lm.focus = lm.focus, {**lm.focus, **chosen}
    try:
        yield
    finally:
        lm.focus = earlier


def label(lm: LM, layer: int) -> str:
    """Return what tells the site of a block from others, for the names of files."""
    mixture = lm.spec.mixtures[layer] if lm.focus else None
    if mixture is None or mixture.shared:
        return str(layer)
    return f"{layer}.expert{lm.focus.get(layer, 0)}"
