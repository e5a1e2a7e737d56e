"""Where the sites of a model are, found by structure and behaviour rather than by name.

[`find_spec`][errata.model.spec.find_spec] answers, for any decoder-only model of transformers:
which modules are the blocks; in each block, which projection writes the feed-forward network (FFN)
into the residual stream and which writes the attention; which other matrices belong to the FFN;
where the final norm and the head are. There is no table of architectures. The rule, on the graph of
matrices that the probe measures:

* **blocks** are the members of a container that run once each, in turn, from hidden states to
  hidden states;
* the **attention output projection** is the only matrix whose input mixes positions, and mixes them
  by averaging;
* the **FFN output projection** is the only other matrix whose output reaches the end of the block
  without passing through a further matrix;
* the **other FFN matrices** are those that reach it without passing the attention's;
* in a **mixture of experts** (`errata.model.experts`) that is the shared expert's, if there is one;
  else the experts' own are the sites, one per expert, and which one counts depends on the token;
* the **final norm** is the last module before the head whose output ignores the size of its input.

When a model does not answer with exactly one of each, `SpecError` lists what was found. Nothing is
guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor, nn

from errata.config import did_you_mean
from errata.errors import ConfigError, SpecError
from errata.model import _probe
from errata.model._search import Search, templates
from errata.model.experts import Mixture, expose
from errata.model.stored import matrix_shape, read

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SITES = ("blocks", "ffn_out", "attn_out", "final_norm", "head")
"""Names that `--site NAME=PATH` accepts."""


@dataclass(frozen=True)
class Site:
    """One projection `v = W k + b` inside a block.

    Attributes:
        path: Dotted module path.
        d_in: Width of `k`.
        d_out: Width of `v`.
        transposed: Whether the weight is stored `d_in × d_out` (Conv1D).
        bias: Whether there is a bias.
    """

    path: str
    d_in: int
    d_out: int
    transposed: bool
    bias: bool

    @property
    def weight(self) -> str:
        """Name of the weight parameter."""
        return f"{self.path}.weight"


@dataclass(frozen=True)
class ModelSpec:
    """The sites of one model; all paths are dotted module paths.

    Attributes:
        blocks: Decoder blocks in order of execution.
        ffn_out: Per block, the output projection of the FFN.
        attn_out: Per block, the output projection of the attention.
        ffn_in: Per block, the other matrices of the FFN (up and gate, or both in one).
        final_norm: The last norm before the head; empty for a model that has none (post-norm).
        head: The module that makes logits.
        embedding: The token embedding.
        block_returns_tuple: Whether blocks return a tuple (older transformers code) or bare hidden
            states.
        mixtures: Per block, its mixture of experts; None where the FFN is dense. Unless a shared
            expert is the site, `ffn_out` names the first expert, and stands for all of them.
    """

    blocks: tuple[str, ...]
    ffn_out: tuple[Site, ...]
    attn_out: tuple[Site, ...]
    ffn_in: tuple[tuple[Site, ...], ...]
    final_norm: str
    head: str
    embedding: str
    block_returns_tuple: bool
    mixtures: tuple[Mixture | None, ...] = ()

    def routed(self, layer: int) -> Mixture | None:
        """Return the mixture of a block whose site depends on the token; None if it does not."""
        mixture = self.mixtures[layer] if self.mixtures else None
        return None if mixture is None or mixture.shared else mixture

    def site(self, layer: int, kind: str, focus: Mapping[int, int], name: str = "") -> Site:
        """Return the projection of one block; see [`LM.site`][errata.model.lm.LM.site].

        Args:
            layer: Block number from 0; negative counts from the end.
            kind: `ffn_out` or `attn_out`.
            focus: Block → the expert that is looked at.
            name: What messages call the model.
        """
        sites = {"ffn_out": self.ffn_out, "attn_out": self.attn_out}.get(kind)
        if sites is None:
            raise ConfigError(f"unknown kind of site {kind!r}", "Known: ffn_out, attn_out")
        if not -len(sites) <= layer < len(sites):
            raise ConfigError(
                f"layer {layer} does not exist: {name} has blocks 0 to {len(sites) - 1}"
            )
        number = layer % len(sites)
        mixture = self.routed(number) if kind == "ffn_out" else None
        if mixture is None:
            return sites[number]
        return replace(sites[number], path=mixture.matrix(focus.get(number, 0)))

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.ffn_out[0].d_out

    @property
    def d_ffn(self) -> int:
        """Inner width of the FFN; of the first block, should they differ."""
        return self.ffn_out[0].d_in

    def layer_of(self, path: str) -> int:
        """Return the number of the block that holds a module or parameter.

        Raises:
            SpecError: If it lies in no block.
        """
        for layer, block in enumerate(self.blocks):
            if path == block or path.startswith(f"{block}."):
                return layer
        raise SpecError(
            f"{path!r} lies in no block of the model",
            f"Blocks: {self.blocks[0]} to {self.blocks[-1]}",
        )


_cache: WeakKeyDictionary[Any, dict[frozenset[tuple[str, str]], ModelSpec]] = WeakKeyDictionary()


def find_spec(model: PreTrainedModel, overrides: Mapping[str, str] | None = None) -> ModelSpec:
    """Find the sites of a decoder-only model by three forward passes over five tokens.

    The answer is kept for the model's life. The passes run without anything that errata has
    installed on the model, so it does not matter when this is called. Weights, training flags,
    `requires_grad` and random states are as before, also after an error.

    Args:
        model: A causal language model of transformers, of any dtype and on any device.
        overrides: What replaces an answer of the probe: a path for `final_norm` and `head`, a path
            with `{}` for the number of the block for `blocks`, `ffn_out` and `attn_out`.

    Raises:
        SpecError: If the model is not a decoder-only transformer, or a mixture of experts of a kind
            that is not understood; if a site is not unique (the message lists the candidates); if
            an override names nothing, or something of the wrong shape.
    """
    overrides = dict(overrides or {})
    for name in overrides:
        if name not in SITES:
            raise SpecError(f"unknown site {name!r}", did_you_mean(name, SITES))
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise SpecError(
            "the weights were made inside torch.inference_mode(), so no gradient can be taken",
            "Load the model outside of it; using it inside is fine.",
        )
    known = _cache.setdefault(model, {})
    key = frozenset(overrides.items())
    if key not in known:
        with _probe.at_rest(model):
            found = Search(model, overrides).run()
        for mixture, site in zip(found.mixtures, found.ffn_out, strict=True):
            if mixture is not None:
                expose(model, mixture.path, site)
        known[key] = ModelSpec(
            blocks=found.blocks,
            ffn_out=tuple(_site(model, path) for path in found.ffn_out),
            attn_out=tuple(_site(model, path) for path in found.attn_out),
            ffn_in=tuple(tuple(_site(model, path) for path in paths) for paths in found.ffn_in),
            final_norm=found.final_norm,
            head=found.head,
            embedding=found.embedding,
            block_returns_tuple=found.block_returns_tuple,
            mixtures=found.mixtures if any(found.mixtures) else (None,) * len(found.blocks),
        )
    return known[key]


def _site(model: nn.Module, path: str) -> Site:
    module = model.get_submodule(path)
    shape = matrix_shape(module)
    assert shape is not None  # the search returns projections only
    return Site(path, *shape, bias=getattr(module, "bias", None) is not None)


def weight_of(model: nn.Module, site: Site) -> Float[Tensor, "d_out d_in"]:
    """Return the weight of a site in mathematical form, to be read.

    A quantised weight is dequantised, an offloaded one is read from where it lies.

    Raises:
        SpecError: If what is stored is another matrix than the site says.
    """
    weight = read(model, site.weight)
    stored = (site.d_in, site.d_out) if site.transposed else (site.d_out, site.d_in)
    if tuple(weight.shape) != stored or not weight.is_floating_point():
        raise SpecError(
            f"{site.weight} is stored as {tuple(weight.shape)} of {weight.dtype}; "
            f"expected a plain {stored[0]} × {stored[1]} matrix",
            "The model was changed since its sites were found; wrap it anew.",
        )
    return weight.T if site.transposed else weight


def describe(spec: ModelSpec, model: nn.Module | None = None) -> dict[str, Any]:
    """Summarise a spec for people; paths are templates with `{}` for the number of the block.

    Args:
        spec: What was found.
        model: Adds whether the head is tied to the embedding, and the number of parameters.
    """
    ffn, attn = spec.ffn_out[0], spec.attn_out[0]
    inner = [site.path for sites in spec.ffn_in for site in sites]
    outer = [
        site.path if (mixture := spec.routed(layer)) is None else mixture.matrix("*")
        for layer, site in enumerate(spec.ffn_out)
    ]
    found: dict[str, Any] = {
        "n_blocks": spec.n_blocks,
        "d_model": spec.d_model,
        "d_ffn": spec.d_ffn,
        "blocks": ", ".join(templates(spec.blocks, spec.blocks)),
        "ffn_out": ", ".join(templates(spec.blocks, outer)),
        "ffn_out_stored": "d_in × d_out" if ffn.transposed else "d_out × d_in",
        "ffn_out_bias": ffn.bias,
        "attn_out": ", ".join(templates(spec.blocks, [site.path for site in spec.attn_out])),
        "attn_out_stored": "d_in × d_out" if attn.transposed else "d_out × d_in",
        "attn_out_bias": attn.bias,
        "ffn_in": templates(spec.blocks, inner),
        "final_norm": spec.final_norm,
        "head": spec.head,
        "embedding": spec.embedding,
    }
    mixture = next((m for m in spec.mixtures if m is not None), None)
    if mixture is not None:
        among = sum(m is not None for m in spec.mixtures)
        which = "the shared one is edited" if mixture.shared else "a subject's is edited"
        found["experts"] = f"{mixture.count} in {among} of {spec.n_blocks} blocks; {which}"
    if model is not None:
        head, embedding = model.get_submodule(spec.head), model.get_submodule(spec.embedding)
        weight = getattr(head, "weight", None)
        found["tied_head"] = weight is not None and weight is getattr(embedding, "weight", None)
        found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return found
