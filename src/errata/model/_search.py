"""Decide, on what the probe measured, which modules are the sites of a model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from errata.config import did_you_mean
from errata.errors import SpecError
from errata.model import _probe
from errata.model._probe import Scouting
from errata.model._wiring import IN, OUT, Wiring, wire
from errata.model.experts import OUT as OUT_STACK
from errata.model.experts import ExpertMatrix, Mixture, experts_in, mixtures_of
from errata.model.stored import matrix_shape

_TRIALS = 3  # texts tried before giving up: a dead activation can hide an edge from one text


@dataclass(frozen=True)
class Found:
    """Module paths of all sites; one entry per block in the tuples."""

    blocks: tuple[str, ...]
    ffn_out: tuple[str, ...]
    attn_out: tuple[str, ...]
    ffn_in: tuple[tuple[str, ...], ...]
    final_norm: str
    head: str
    embedding: str
    block_returns_tuple: bool
    mixtures: tuple[Mixture | None, ...]


def templates(blocks: Sequence[str], paths: Iterable[str]) -> list[str]:
    """Return the distinct paths in order, the number of their block written `{}`."""
    found: dict[str, None] = {}
    for path in paths:
        for block in blocks:
            if path == block or path.startswith(f"{block}."):
                found[f"{block.rpartition('.')[0]}.{{}}{path.removeprefix(block)}"] = None
                break
        else:
            found[path] = None
    return list(found)


class Search:
    """One search in one model.

    Args:
        model: A model of transformers, inside `errata.model._probe.at_rest`.
        overrides: Site → path or template, as given to `--site`.
    """

    def __init__(self, model: Any, overrides: Mapping[str, str]) -> None:
        self.model = model
        self.overrides = overrides
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.name = type(model).__name__

    def run(self) -> Found:
        """Find everything.

        Raises:
            SpecError: If anything is not found with certainty.
        """
        head, embedding = self._ends()
        seen = _probe.scout(self.model, self.modules[head])
        blocks = self._blocks(seen, head)
        self.experts = experts_in(self.modules, blocks)
        if "ffn_out" not in self.overrides:
            self._refuse_stacks(blocks)
        ffn, attn, inner = self._sites(blocks, seen)
        if "attn_out" not in self.overrides:
            self._require_attention(dict(zip(blocks, attn, strict=True)))
        norm = self._final_norm(seen, blocks)
        in_tuple = seen.calls[blocks[0]][0].in_tuple
        mixtures = mixtures_of(self.modules, self.experts, blocks, ffn)
        return Found(blocks, ffn, attn, inner, norm, head, embedding, in_tuple, mixtures)

    def refusal(self, why: str, candidates: Iterable[str] = (), site: str = "") -> SpecError:
        """Build the error of a search that did not end with one answer."""
        listed = "".join(f"\n  {line}" for line in candidates)
        path = "PATH" if site in {"head", "final_norm"} else "PATH_WITH_{}"
        where = "" if path == "PATH" else " ({} = number of the block)"
        return SpecError(
            f"{self.name}: {why}{listed}",
            f"If you know better: --site {site}={path}{where}" if site else None,
        )

    def given(self, site: str, path: str) -> nn.Module:
        """Return the module that an override names.

        Raises:
            SpecError: If there is none.
        """
        module = self.modules.get(path)
        if module is None or not path:
            raise SpecError(
                f"--site {site}: {self.name} has no module {path!r}",
                did_you_mean(path, [name for name in self.modules if name]),
            )
        return module

    def _ends(self) -> tuple[str, str]:
        """Return the paths of head and embedding, which transformers can tell."""
        if getattr(self.model.config, "is_encoder_decoder", False):
            raise self.refusal("an encoder-decoder; errata edits decoder-only language models")
        embedding: Any = self.model.get_input_embeddings()
        if "head" in self.overrides:
            head: Any = self.given("head", self.overrides["head"])
        else:
            head = self.model.get_output_embeddings()
        if head is None:
            raise self.refusal("no language-model head; load it with AutoModelForCausalLM")
        paths = {module: path for path, module in self.modules.items()}
        if embedding not in paths or head not in paths:
            raise self.refusal("its embedding or head is not one of its modules", site="head")
        return paths[head], paths[embedding]

    def _blocks(self, seen: Scouting, head: str) -> tuple[str, ...]:
        """Return the members of the one container that work as blocks."""
        wanted = self.overrides.get("blocks", "").removesuffix(".{}")
        if "blocks" in self.overrides:
            self.given("blocks", wanted)
        found: dict[str, tuple[str, ...]] = {}
        repeated: list[str] = []
        containers = [
            path
            for path, module in self.modules.items()
            if isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict)
        ]
        for path in [wanted] if wanted else containers:
            members = [f"{path}.{name}" for name, _ in self.modules[path].named_children()]
            ordered = self._in_turn(members, seen, head, repeated)
            if ordered:
                found[path] = ordered
        within = tuple(f"{member}." for members in found.values() for member in members)
        outer = [path for path in found if not path.startswith(within)]
        if len(outer) == 1:
            return found[outer[0]]
        if outer:
            raise self.refusal("several stacks of blocks run in turn:", outer, "blocks")
        if repeated:
            raise self.refusal("blocks run more than once in a forward pass:", repeated)
        raise self.refusal(
            "no blocks found: no container whose members each run once, in turn, from hidden "
            "states [batch, tokens, width] to the same shape. Containers:",
            [path for path in containers if isinstance(self.modules[path], nn.ModuleList)],
            "blocks",
        )

    def _in_turn(
        self, members: Sequence[str], seen: Scouting, head: str, repeated: list[str]
    ) -> tuple[str, ...]:
        """Return the members in order of execution if they work as blocks, else nothing."""
        calls = {member: seen.calls.get(member, []) for member in members}
        if not members or not all(calls.values()):
            return ()
        if any(len(matrices(self.modules[member], member)) < 2 for member in members):
            return ()
        ordered = sorted(members, key=lambda member: calls[member][0].start)
        runs = [calls[member][0] for member in ordered]
        widths = {run.width_in for run in runs} | {run.width_out for run in runs}
        if len(widths) != 1 or None in widths:
            return ()
        if any(len(of) > 1 for of in calls.values()):
            repeated.extend(members)
            return ()
        if head in seen.calls and runs[-1].end > seen.calls[head][0].start:
            return ()
        return tuple(ordered) if all(a.end < b.start for a, b in itertools.pairwise(runs)) else ()

    def _refuse_stacks(self, blocks: tuple[str, ...]) -> None:
        """Raise if a parameter of a block stacks matrices: one per expert."""
        stacks = [
            f"{name}.{own} {tuple(parameter.shape)}"
            for block in blocks
            for name, module in self.modules[block].named_modules(prefix=block)
            if not isinstance(module, nn.Conv1d | nn.Conv2d) and name != self.experts.get(block)
            for own, parameter in module.named_parameters(recurse=False)
            if len(_probe.squeezed(parameter)) >= 3
        ]
        if stacks:
            raise self.refusal(
                "its blocks hold stacks of matrices, as a mixture of experts does (one matrix per "
                "expert), but what they compute is not the weighted sum over gated experts that "
                "errata knows how to edit. Found:",
                stacks[:4],
            )

    def _final_norm(self, seen: Scouting, blocks: tuple[str, ...]) -> str:
        """Return the last norm between the blocks and the head; empty if there is none."""
        if "final_norm" in self.overrides:
            self.given("final_norm", self.overrides["final_norm"])
            return self.overrides["final_norm"]
        end = seen.calls[blocks[-1]][0].end
        for path, given in reversed(seen.leaves):
            after = seen.calls[path][-1].start > end
            if after and _probe.forgets_scale(self.modules[path], given):
                return path
        return ""

    def _sites(
        self, blocks: tuple[str, ...], seen: Scouting
    ) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, ...], ...]]:
        """Return FFN output, attention output and the other FFN matrices of every block."""
        width = seen.calls[blocks[0]][0].width_out or 0
        wirings = [Wiring() for _ in blocks]
        refused: SpecError | None = None
        for trial in range(_TRIALS):
            measured = wire(self.model, blocks, seen.calls, trial)
            for wiring, more in zip(wirings, measured, strict=True):
                wiring.merge(more)
            try:
                ffn, attn, inner = zip(
                    *(
                        _Block(self, block, wiring, width).choose()
                        for block, wiring in zip(blocks, wirings, strict=True)
                    ),
                    strict=True,
                )
            except SpecError as error:
                refused = error
            else:
                return ffn, attn, inner
        assert refused is not None
        raise refused

    def _require_attention(self, writers: Mapping[str, str]) -> None:
        averages = _probe.averages(self.model, writers)
        other = [writer for block, writer in writers.items() if not averages.get(block)]
        if other:
            raise self.refusal(
                "positions are mixed, but not by attention: the input of these matrices is no "
                "average over positions (state-space, recurrent and convolutional layers do this):",
                templates(tuple(writers), other),
                "attn_out",
            )


class _Block:
    """The decision on one block."""

    def __init__(self, search: Search, path: str, wiring: Wiring, width: int) -> None:
        self.search = search
        self.path = path
        self.wiring = wiring
        self.width = width
        self.experts = search.experts.get(path, "")

    def choose(self) -> tuple[str, str, tuple[str, ...]]:
        """Return FFN output, attention output, and the other FFN matrices."""
        attn = self._override("attn_out") or self._attention()
        ffn = self._override("ffn_out") or self._feed_forward(attn)
        if ffn == attn:
            raise self.search.refusal(f"ffn_out and attn_out are both {ffn}")
        if ffn.startswith(f"{self.experts}."):
            return ffn, attn, ()
        before = self.wiring.upstream(ffn, without=attn)
        inner = tuple(node for node in self.wiring.times if node in before - {IN, ffn})
        if not inner:
            raise self.search.refusal(
                f"{ffn} writes to the residual stream, but no matrix feeds it, so it is not the "
                f"output of a feed-forward network. Matrices of {self.path}:",
                self._table(),
                "ffn_out",
            )
        for path in (ffn, attn, *inner):
            if self.wiring.linear.get(path) is False:
                raise self.search.refusal(
                    f"{path} does not multiply by its own weight; merge adapters before editing"
                )
        return ffn, attn, inner

    def _override(self, site: str) -> str | None:
        template = self.search.overrides.get(site)
        if template is None:
            return None
        if "{}" not in template:
            raise SpecError(
                f"--site {site}={template}: expected {{}} where the number of the block stands",
                f"Example: --site {site}={self.path.rpartition('.')[0]}.{{}}.NAME",
            )
        path = template.replace("{}", self.path.rpartition(".")[2])
        if not self._fits(self.search.given(site, path), path):
            raise SpecError(
                f"--site {site}: {path} is not a projection inside {self.path} that is called "
                f"once and ends in the residual stream (width {self.width})",
                "Candidates:" + "".join(f"\n  {line}" for line in self._table()),
            )
        return path

    def _fits(self, module: nn.Module | None, path: str) -> bool:
        shape = matrix_shape(module)
        right = shape is not None and shape[1] == self.width and path.startswith(f"{self.path}.")
        return right and self.wiring.times.get(path) == 1

    def _attention(self) -> str:
        """Return the only matrix whose input mixes positions."""
        sources = self.wiring.edges.values()
        if any(edge.future for edges in sources for edge in edges.values()):
            raise self.search.refusal(
                f"in {self.path} a token sees later ones: an encoder, not a decoder"
            )
        mixed = self.wiring.mixed()
        if not mixed:
            raise self.search.refusal(
                f"no matrix of {self.path} sees earlier positions, so none is the attention's "
                "output:",
                self._table(),
                "attn_out",
            )
        if len(mixed) > 1 or mixed == [OUT]:
            raise self.search.refusal(
                f"{self.path} mixes positions in front of several matrices or of none "
                "(state-space, recurrent and expert layers do this), so which one is the "
                "attention's output is not certain:",
                self._table(),
                "attn_out",
            )
        return self._require(mixed[0], "attn_out", "mixes positions")

    def _feed_forward(self, attn: str) -> str:
        """Return the only other matrix that reaches the end of the block unaided."""
        writers = [node for node in self.wiring.edges.get(OUT, {}) if node not in (IN, attn)]
        if self.experts:  # a shared expert, if one writes there too; else one that is routed to
            around = f"{self.experts.rpartition('.')[0]}."
            fitting = [
                node
                for node in writers
                if node.startswith(around) and self._fits(self.search.modules.get(node), node)
            ]
            if not fitting:
                return f"{self.experts}.0.{OUT_STACK}"
            writers = fitting
        if not writers:
            raise self.search.refusal(
                f"{self.path} has no feed-forward network; nothing but {attn} writes to the "
                "residual stream:",
                self._table(),
            )
        if len(writers) > 1:
            raise self.search.refusal(
                f"several matrices of {self.path} write to the residual stream (a mixture of "
                f"experts, a gate, an unmerged adapter?): {', '.join(writers)}. All matrices:",
                self._table(),
                "ffn_out",
            )
        return self._require(writers[0], "ffn_out", "writes to the residual stream")

    def _require(self, path: str, site: str, what: str) -> str:
        if not self._fits(self.search.modules.get(path), path):
            raise self.search.refusal(
                f"{path} {what}, but is not a projection of width {self.width} that is called "
                f"once. Matrices of {self.path}:",
                self._table(),
                site,
            )
        return path

    def _table(self) -> list[str]:
        """List the matrices of the block with what was observed of them."""
        lines = []
        for path, (d_in, d_out, _) in matrices(self.search.modules[self.path], self.path).items():
            notes = [
                "" if path in self.wiring.times else "not called",
                "input mixes positions" if path in self.wiring.mixed() else "",
                "writes to the residual" if path in self.wiring.edges.get(OUT, {}) else "",
            ]
            note = "; ".join(filter(None, notes))
            lines.append(f"{path} {d_in} → {d_out}" + (f" ({note})" if note else ""))
        return lines


def matrices(module: nn.Module, path: str) -> dict[str, tuple[int, int, bool]]:
    """Return path → shape of the projections inside a module."""
    shapes = {
        name: matrix_shape(inner)
        for name, inner in module.named_modules(prefix=path)
        if not isinstance(inner, ExpertMatrix)
    }
    return {name: shape for name, shape in shapes.items() if shape is not None}
