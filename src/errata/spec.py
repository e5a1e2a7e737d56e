"""Where the sites of a model are, found by structure and behaviour rather than by name.

[`find_spec`][errata.spec.find_spec] answers, for any decoder-only model of transformers: which modules are the blocks;
in each block, which projection writes the feed-forward network (FFN) into the residual stream and which writes the
attention; which other matrices belong to the FFN; where the final norm and the head are. There is no table of
architectures. The rule, applied to the graph of matrices that `errata._probe` measures:

* the **attention output projection** is the only matrix whose input mixes positions;
* the **FFN output projection** is the only other matrix whose output reaches the end of the block without passing
  through a further matrix;
* the **other FFN matrices** are those that reach it without passing the attention output projection.

When a block does not answer with exactly one of each, `SpecError` lists what was found. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor, nn

from errata import _probe
from errata._probe import IN, OUT, Scouting, Wiring, matrix_shape
from errata.config import did_you_mean
from errata.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SITES = ("blocks", "ffn_out", "attn_out", "final_norm", "head")
"""Names that `--site NAME=PATH` accepts."""
_TRIALS = 3  # texts tried before the probe gives up


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
        final_norm: The norm before the head; empty for a model that has none (post-norm blocks).
        head: The module that makes logits.
        embedding: The token embedding.
    """

    blocks: tuple[str, ...]
    ffn_out: tuple[Site, ...]
    attn_out: tuple[Site, ...]
    ffn_in: tuple[tuple[Site, ...], ...]
    final_norm: str
    head: str
    embedding: str

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
        """Inner width of the FFN (of the first block, should they differ)."""
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
    """Find the sites of a decoder-only model; two tiny forward passes, then cached for the model's life.

    Weights, training flags, `requires_grad` and random states are as before, also after an error.

    Args:
        model: A causal language model of transformers, any dtype and device.
        overrides: Paths that replace what the probe would find: `blocks`, `ffn_out`, `attn_out` (with `{}` for the
            number of the block), `final_norm`, `head`.

    Raises:
        SpecError: If the model is not a decoder-only transformer, is a mixture of experts, or if a site is not
            unique; the message lists the candidates. Also if an override names nothing, or the wrong shape.
    """
    overrides = dict(overrides or {})
    for name in overrides:
        if name not in SITES:
            raise SpecError(f"unknown site {name!r}", did_you_mean(name, SITES))
    key = frozenset(overrides.items())
    known = _cache.setdefault(model, {})
    if key not in known:
        with _probe.at_rest(model):
            known[key] = _Search(model, overrides).run()
    return known[key]


def weight_of(model: nn.Module, site: Site) -> Float[Tensor, "d_out d_in"]:
    """Return the weight of a site in mathematical form; a view, so writing to it edits the model.

    Raises:
        SpecError: If the stored weight is not a plain matrix (quantised models).
    """
    weight = model.get_parameter(site.weight)
    stored = (site.d_in, site.d_out) if site.transposed else (site.d_out, site.d_in)
    if tuple(weight.shape) != stored or not weight.is_floating_point():
        raise SpecError(
            f"{site.weight} is stored as {tuple(weight.shape)} of {weight.dtype}; "
            f"expected a plain {stored[0]} × {stored[1]} matrix",
            "Load the model without quantisation to edit its weights.",
        )
    return weight.T if site.transposed else weight


def describe(spec: ModelSpec, model: nn.Module | None = None) -> dict[str, Any]:
    """Summarise a spec for people: paths as templates with `{}` for the number of the block.

    Args:
        spec: What was found.
        model: Adds whether the head is tied to the embedding and the number of parameters.
    """
    ffn, attn = spec.ffn_out[0], spec.attn_out[0]
    found: dict[str, Any] = {
        "n_blocks": spec.n_blocks,
        "d_model": spec.d_model,
        "d_ffn": spec.d_ffn,
        "blocks": " ".join(_templates(spec.blocks, spec.blocks)),
        "ffn_out": " ".join(_templates(spec.blocks, [site.path for site in spec.ffn_out])),
        "ffn_out_stored": _stored(ffn),
        "ffn_out_bias": ffn.bias,
        "attn_out": " ".join(_templates(spec.blocks, [site.path for site in spec.attn_out])),
        "attn_out_stored": _stored(attn),
        "attn_out_bias": attn.bias,
        "ffn_in": _templates(spec.blocks, [site.path for sites in spec.ffn_in for site in sites]),
        "final_norm": spec.final_norm,
        "head": spec.head,
        "embedding": spec.embedding,
    }
    if model is not None:
        head, embedding = model.get_submodule(spec.head), model.get_submodule(spec.embedding)
        weight = getattr(head, "weight", None)
        found["tied_head"] = weight is not None and weight is getattr(embedding, "weight", None)
        found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return found


def _stored(site: Site) -> str:
    return "d_in × d_out" if site.transposed else "d_out × d_in"


def _templates(blocks: Sequence[str], paths: Iterable[str]) -> list[str]:
    """Return the distinct paths with the number of their block written `{}`, in order."""
    found: dict[str, None] = {}
    for path in paths:
        for block in blocks:
            if path == block or path.startswith(f"{block}."):
                found[f"{block.rpartition('.')[0]}.{{}}{path.removeprefix(block)}"] = None
                break
        else:
            found[path] = None
    return list(found)


class _Search:
    """One search: what was seen, and the decisions taken on it."""

    def __init__(self, model: PreTrainedModel, overrides: Mapping[str, str]) -> None:
        self.model = model
        self.overrides = overrides
        self.modules = dict(model.named_modules())
        self.paths = {module: path for path, module in self.modules.items()}
        self.name = type(model).__name__

    def run(self) -> ModelSpec:
        head, embedding = self.ends()
        seen = _probe.scout(self.model, self.modules[head])
        blocks = self.blocks(seen, head)
        if "ffn_out" not in self.overrides:
            self.refuse_experts(blocks)
        ffn, attn, inner = self.sites(blocks, seen)
        return ModelSpec(blocks, ffn, attn, inner, self.final_norm(seen, blocks), head, embedding)

    def refuse(
        self, why: str, candidates: Iterable[str] = (), site: str | None = None
    ) -> SpecError:
        """Build the error of a search that did not end with one answer."""
        listed = "".join(f"\n  {line}" for line in candidates)
        hint = None
        if site is not None:
            example = "PATH" if site in {"head", "final_norm"} else "PATH_WITH_{}"
            hint = f"If you know better: --site {site}={example} ({{}} = number of the block)"
            hint = hint if "{}" in example else f"If you know better: --site {site}={example}"
        return SpecError(f"{self.name}: {why}{listed}", hint)

    def given(self, site: str, path: str) -> nn.Module:
        """Return the module of an override."""
        module = self.modules.get(path)
        if module is None or not path:
            raise SpecError(
                f"--site {site}: {self.name} has no module {path!r}",
                did_you_mean(path, [name for name in self.modules if name]),
            )
        return module

    def ends(self) -> tuple[str, str]:
        """Return the paths of head and embedding, which transformers can tell."""
        if getattr(self.model.config, "is_encoder_decoder", False):
            raise self.refuse("an encoder-decoder; errata edits decoder-only language models")
        embedding = self.model.get_input_embeddings()
        if "head" in self.overrides:
            head: Any = self.given("head", self.overrides["head"])
        else:
            head = self.model.get_output_embeddings()
        if head is None:
            raise self.refuse(
                "no language-model head (load it with AutoModelForCausalLM)", site="head"
            )
        if embedding not in self.paths or head not in self.paths:
            raise self.refuse("embedding or head is not a module of the model", site="head")
        return self.paths[head], self.paths[embedding]

    def blocks(self, seen: Scouting, head: str) -> tuple[str, ...]:
        """Return the blocks: members of one container that run once each, in turn, hidden in and out."""
        wanted = self.overrides.get("blocks", "").removesuffix(".{}")
        if wanted:
            self.given("blocks", wanted)
        found: dict[str, tuple[str, ...]] = {}
        repeated: list[str] = []
        for path, module in self.modules.items():
            if isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict) and (
                not wanted or path == wanted
            ):
                members = tuple(f"{path}.{name}" for name, _ in module.named_children())
                ordered = self.in_turn(members, seen, head, repeated)
                if ordered:
                    found[path] = ordered
        outer = [
            path
            for path in found
            if not any(path.startswith(f"{member}.") for q in found for member in found[q])
        ]
        if len(outer) == 1:
            return found[outer[0]]
        if outer:
            raise self.refuse("several stacks of blocks run one after the other:", outer, "blocks")
        if repeated:
            raise self.refuse("blocks are called more than once in a forward pass:", repeated)
        raise self.refuse(
            "no stack of blocks found: no container whose members each run once, in turn, from "
            "hidden states [batch, tokens, width] to the same shape",
            [f"{p} (container)" for p, m in self.modules.items() if isinstance(m, nn.ModuleList)],
            "blocks",
        )

    def in_turn(
        self, members: tuple[str, ...], seen: Scouting, head: str, repeated: list[str]
    ) -> tuple[str, ...]:
        """Return the members in order of execution if they work as blocks, else nothing."""
        calls = {member: seen.calls.get(member, []) for member in members}
        if not members or any(not of for of in calls.values()):
            return ()
        if any(len(_matrices(self.modules[member], member)) < 2 for member in members):
            return ()
        if any(len(of) > 1 for of in calls.values()):
            repeated.extend(members)
            return ()
        ordered = sorted(members, key=lambda member: calls[member][0].start)
        runs = [calls[member][0] for member in ordered]
        end = seen.calls[head][0].start if head in seen.calls else None
        widths = {run.width_in for run in runs} | {run.width_out for run in runs}
        if len(widths) != 1 or None in widths or (end is not None and runs[-1].end > end):
            return ()
        follows = all(a.end < b.start for a, b in zip(runs, runs[1:], strict=False))
        return tuple(ordered) if follows else ()

    def refuse_experts(self, blocks: tuple[str, ...]) -> None:
        """Raise if a parameter stacks matrices: one per expert."""
        stacks = [
            f"{name}.{own} {tuple(parameter.shape)}"
            for block in blocks
            for name, module in self.modules[block].named_modules(prefix=block)
            if not isinstance(module, nn.Conv1d | nn.Conv2d)
            for own, parameter in module.named_parameters(recurse=False)
            if len(_probe.squeezed(parameter)) >= 3
        ]
        if stacks:
            raise self.refuse(
                "a mixture of experts; its FFN has one matrix per expert, and errata edits dense "
                "ones. Found:",
                stacks[:4],
            )

    def final_norm(self, seen: Scouting, blocks: tuple[str, ...]) -> str:
        """Return the last norm between the blocks and the head; empty if there is none."""
        if "final_norm" in self.overrides:
            self.given("final_norm", self.overrides["final_norm"])
            return self.overrides["final_norm"]
        end = seen.calls[blocks[-1]][0].end
        for path, given in reversed(seen.leaves):
            if seen.calls[path][-1].start < end:
                continue
            if _probe.forgets_scale(self.modules[path], given):
                return path
        return ""

    def sites(
        self, blocks: tuple[str, ...], seen: Scouting
    ) -> tuple[tuple[Site, ...], tuple[Site, ...], tuple[tuple[Site, ...], ...]]:
        """Return FFN output, attention output and the other FFN matrices of every block."""
        wirings = [Wiring() for _ in blocks]
        width = seen.calls[blocks[0]][0].width_out or 0
        for trial in range(_TRIALS):
            for mine, new in zip(
                wirings, _probe.wire(self.model, blocks, seen.calls, trial), strict=True
            ):
                mine.merge(new)
            try:
                chosen = [
                    _Block(self, block, wiring, width).choose()
                    for block, wiring in zip(blocks, wirings, strict=True)
                ]
                break
            except SpecError:
                # a dead activation or a saturated softmax can hide an edge from one text
                if trial == _TRIALS - 1:
                    raise
        ffn, attn, inner = zip(*chosen, strict=True)
        for site, found in (("ffn_out", ffn), ("attn_out", attn)):
            kinds = _templates(blocks, [one.path for one in found])
            if len(kinds) > 1:
                raise self.refuse("blocks of several kinds (a hybrid?):", kinds, site)
        return ffn, attn, inner


class _Block:
    """The decision on one block."""

    def __init__(self, search: _Search, path: str, wiring: Wiring, width: int) -> None:
        self.search = search
        self.path = path
        self.wiring = wiring
        self.width = width

    def choose(self) -> tuple[Site, Site, tuple[Site, ...]]:
        attn = self.override("attn_out") or self.attention()
        ffn = self.override("ffn_out") or self.feed_forward(attn)
        if ffn == attn:
            raise self.search.refuse(f"ffn_out and attn_out are both {ffn}")
        before = self.wiring.upstream(ffn, without=frozenset({attn}))
        inner = [path for path in self.wiring.times if path in before and path not in (IN, ffn)]
        if not inner and "ffn_out" not in self.search.overrides:
            raise self.search.refuse(
                f"{ffn} writes to the residual stream, but no other matrix feeds it: not an FFN",
                self.table(),
                "ffn_out",
            )
        sites = [self.site(path) for path in (ffn, attn, *inner)]
        return sites[0], sites[1], tuple(sites[2:])

    def override(self, site: str) -> str | None:
        template = self.search.overrides.get(site)
        if template is None:
            return None
        if "{}" not in template:
            raise SpecError(
                f"--site {site}={template}: expected {{}} where the number of the block stands",
                f"Example: --site {site}={self.path.rpartition('.')[0]}.{{}}.NAME",
            )
        path = template.replace("{}", self.path.rpartition(".")[2])
        shape = matrix_shape(self.search.given(site, path))
        if shape is None or shape[1] != self.width or not path.startswith(f"{self.path}."):
            raise SpecError(
                f"--site {site}: {path} is not a projection onto the residual stream "
                f"(width {self.width}) inside {self.path}",
                "Candidates:" + "".join(f"\n  {line}" for line in self.table()),
            )
        return path

    def attention(self) -> str:
        """Return the only matrix whose input mixes positions."""
        edges = self.wiring.edges
        if any(edge.future for sources in edges.values() for edge in sources.values()):
            raise self.search.refuse(
                f"in {self.path} a token sees later ones: an encoder, not a decoder"
            )
        mixed = [
            target
            for target, sources in edges.items()
            if any(edge.past for edge in sources.values())
        ]
        if len(mixed) != 1 or mixed[0] == OUT:
            why = (
                f"no matrix in {self.path} sees earlier positions, so none is the attention output:"
                if not mixed
                else f"positions are mixed before several matrices of {self.path} (state-space, "
                "recurrent and expert layers do this), so none is the attention output:"
            )
            raise self.search.refuse(why, self.table(), "attn_out")
        self.require_writer(mixed[0], "attn_out", "mixes positions")
        return mixed[0]

    def feed_forward(self, attn: str) -> str:
        """Return the only other matrix that reaches the end of the block unaided."""
        writers = [node for node in self.wiring.edges.get(OUT, {}) if node not in (IN, attn)]
        if len(writers) != 1:
            why = (
                f"{self.path} has no feed-forward network: nothing but {attn} writes to the "
                "residual stream. Matrices:"
                if not writers
                else f"several matrices of {self.path} write to the residual stream (a mixture of "
                f"experts or a gate?): {', '.join(writers)}. Matrices:"
            )
            raise self.search.refuse(why, self.table(), "ffn_out")
        self.require_writer(writers[0], "ffn_out", "is the other one that writes")
        return writers[0]

    def require_writer(self, path: str, site: str, what: str) -> None:
        module = self.search.modules.get(path)
        shape = None if module is None else matrix_shape(module)
        if shape is None or shape[1] != self.width or self.wiring.times.get(path) != 1:
            raise self.search.refuse(
                f"{path} {what}, but is no projection onto the residual stream (width "
                f"{self.width}) that is called once:",
                self.table(),
                site,
            )

    def site(self, path: str) -> Site:
        module = self.search.modules[path]
        shape = matrix_shape(module)
        assert shape is not None  # nodes with leaves are projections
        if self.wiring.linear.get(path) is False:
            raise self.search.refuse(
                f"{path} ({type(module).__name__}) does not compute x Wᵀ + b from its weight; "
                "merge adapters before editing"
            )
        return Site(path, shape[0], shape[1], shape[2], getattr(module, "bias", None) is not None)

    def table(self) -> list[str]:
        """List the matrices of the block with what was observed."""
        lines = []
        for path, (d_in, d_out, _) in _matrices(self.search.modules[self.path], self.path).items():
            sources = self.wiring.edges.get(path, {}).values()
            seen = [
                "not called" if not self.wiring.times.get(path) else "",
                "input mixes positions" if any(edge.past for edge in sources) else "",
                "writes to the residual" if path in self.wiring.edges.get(OUT, {}) else "",
            ]
            note = "; ".join(word for word in seen if word)
            lines.append(f"{path} {d_in} → {d_out}" + (f" ({note})" if note else ""))
        return lines


def _matrices(module: nn.Module, path: str) -> dict[str, tuple[int, int, bool]]:
    shapes = {name: matrix_shape(inner) for name, inner in module.named_modules(prefix=path)}
    return {name: shape for name, shape in shapes.items() if shape is not None}
