"""The form of a feed-forward network (FFN): which of its matrices is the gate, and what bends.

Read off by running it, not by name: what the first matrices return at a few tokens has to give the
input of the second one, through one of the activation functions that transformers knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import SpecError
from errata.model.hooks import bare
from errata.model.passes import capture
from errata.model.tokens import Row

if TYPE_CHECKING:
    from errata.model.lm import LM

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "quick_gelu")
"""Names in transformers that are tried after the one that the model's configuration gives."""

NAMED = ("hidden_act", "hidden_activation", "activation_function", "activation")
"""Where configurations name the activation function; only decides between equals."""


@dataclass(frozen=True)
class FfnForm:
    """How a block's FFN gets from its input `x` to the input of its second matrix.

    Plain: `act(W x + b)`. Gated: `act(W_gate x + b_gate) * (W_up x + b_up)`.

    Attributes:
        inputs: Paths of the first matrices: one, or gate and up.
        gated: Whether there is a gate.
        fused: Whether gate and up are halves of one matrix, the gate first.
        activation: Name of the activation function in transformers.
        bias: Whether each first matrix has a bias.
    """

    inputs: tuple[str, ...]
    gated: bool
    fused: bool
    activation: str
    bias: bool

    @property
    def parts(self) -> int:
        """Numbers that are computed from `x` per inner unit: 1, or gate and up."""
        return 2 if self.gated else 1

    def inner(self, parts: Float[Tensor, "*batch p n"]) -> Float[Tensor, "*batch n"]:
        """Return what the second matrix is given of inner units.

        Args:
            parts: What the first matrices answer: for each part (gate, up) all units.
        """
        act = activation(self.activation)(parts[..., 0, :])
        return act * parts[..., 1, :] if self.gated else act


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation function of that name in transformers.

    Raises:
        SpecError: If there is none.
    """
    from transformers.activations import ACT2FN

    try:
        return ACT2FN[name]
    except KeyError:
        raise SpecError(f"transformers knows no activation function {name!r}") from None


def ffn_form(lm: LM, layer: int) -> FfnForm:
    """Find the form of a block's FFN by a forward pass over seven tokens; kept with the model.

    Args:
        lm: The model; patches that are at work are not looked at.
        layer: The block.

    Raises:
        SpecError: If the FFN is neither plain nor gated with one of the known activation functions.
    """
    return lm.once(("form of the FFN", layer), lambda: _found(lm, layer))


@torch.no_grad()
def _found(lm: LM, layer: int) -> FfnForm:
    sites = lm.spec.ffn_in[layer]
    vocabulary = lm.embedding.shape[0]
    ids = tuple((11 * i + 5) % vocabulary for i in range(7))
    batch = lm.batch([Row(ids, (len(ids) - 1,), (), len(ids))], [0])
    inner = [lm.module(site.path) for site in sites]
    with bare(lm.model):
        (key,), answers = capture(lm, batch, [lm.module(lm.site(layer).path)], inner)
    fits = []
    for form, parts in _candidates(lm, layer, [first.reshape(7, -1) for first in answers]):
        miss = _distance(form.inner(parts), key.reshape(7, -1))
        if miss is not None:
            fits.append((miss, form))
    if not fits:
        raise SpecError(
            f"the FFN of block {layer} of {lm.name} is neither act(W x) nor act(W x) * (V x) with "
            f"one of the known activation functions ({', '.join(ACTIVATIONS)})",
            "Units cannot be added to it; choose another editor.",
        )
    return min(fits, key=lambda fit: fit[0])[1]


def _candidates(
    lm: LM, layer: int, answers: list[Float[Tensor, "T n"]]
) -> Iterator[tuple[FfnForm, Float[Tensor, "T p n"]]]:
    sites, width = lm.spec.ffn_in[layer], lm.site(layer).d_in
    config = lm.model.config.get_text_config()
    given = [getattr(config, name, None) for name in NAMED]
    names = [name for name in given if isinstance(name, str)]
    paths = [site.path for site in sites]
    bias = all(site.bias for site in sites)
    if len(sites) == 1 and sites[0].d_out == width:
        arranged = [(paths, False, answers)]
    elif len(sites) == 1 and sites[0].d_out == 2 * width:
        arranged = [(paths, True, list(answers[0].chunk(2, -1)))]
    elif len(sites) == 2 and all(site.d_out == width for site in sites):
        arranged = [(paths, False, answers), (paths[::-1], False, answers[::-1])]
    else:
        return
    for name in dict.fromkeys((*names, *ACTIVATIONS)):
        for order, fused, parts in arranged:
            try:
                activation(name)
            except SpecError:
                continue  # a name of the model's own
            gated = len(parts) == 2
            yield FfnForm(tuple(order), gated, fused, name, bias), torch.stack(parts, -2)


def _distance(found: Float[Tensor, "T n"], wanted: Float[Tensor, "T n"]) -> float | None:
    """Return the largest relative error, None if it is more than rounding; exact is 0."""
    if not bool(wanted.abs().max() > 0):
        return None
    # some models (Bloom) write the constants of the same function with fewer digits
    allowed = 4 * torch.finfo(wanted.dtype).eps + 1e-6
    error = (found.double() - wanted.double()).abs()
    scale = wanted.double().abs().mean()
    miss = float((error / (wanted.double().abs() + scale)).max())
    return miss if miss <= allowed else None
