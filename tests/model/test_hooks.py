"""Trial passes never meet what is installed on a model, whatever a program asks for first."""

from __future__ import annotations

import ast
import gc
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import DECLINED, TINY, tiny_tokenizer
from torch import Tensor, nn

import errata
from errata.api import FixedPatch
from errata.case import Case, Edit, Probe
from errata.errors import PatchError, SpecError
from errata.locate.stream import ffn_adds_to_block
from errata.model.hooks import after, bare, hooked, installed_on, nested
from errata.model.lm import LM
from errata.model.passes import Pass, capture, reuse_below
from errata.model.spec import find_spec
from errata.nets.ffn import ffn_form
from errata.patch import Context, Dense, LowRank, Module, Patch, Route, module_kind, route_kind
from errata.patch.changes.kinds import NETWORKS, ROUTERS
from errata.patch.stack import Stack

PROJECTION = "model.layers.1.mlp.down_proj"
PROMPTS = ["The capital of France is", "Anna lives in"]
KINDS = ("low rank", "dense", "module", "input module", "watching module", "route", "context")


class Whispers(nn.Module):
    """Adds how many tokens the row's prompt has: it has to see the forward pass."""

    sees_pass = True

    def __init__(self, config: Any, tensors: Any) -> None:
        super().__init__()

    def forward(self, hidden: Tensor, seen: Pass) -> Tensor:
        return hidden + seen.prompts[:, None, None]


class Parrot:
    """Answers every row by the token it was given."""

    def __init__(self, lm: LM, config: Any, tensors: Any) -> None:
        self.size = lm.embedding.shape[0]

    def scope(self, seen: Pass) -> Tensor:
        return torch.ones(len(seen.ids), dtype=torch.bool)

    def logits(self, seen: Pass, at: Tensor, base: Tensor) -> Tensor:
        return 9 * nn.functional.one_hot(seen.ids[at[:, 0], at[:, 1]], self.size).to(base)


@pytest.fixture(autouse=True)
def kinds() -> Iterator[None]:
    route_kind("parrot")(Parrot)
    module_kind("whispers")(Whispers)
    yield
    ROUTERS.forget("parrot")
    NETWORKS.forget("whispers")


def fresh(name: str = "qwen3") -> LM:
    """A model that nobody has looked at; every call gives the same weights."""
    return LM(TINY[name]().double(), tiny_tokenizer(), name=f"tiny-{name}")


def change(kind: str) -> Any:
    """A change of that kind, made without asking the model for anything."""
    g = torch.Generator().manual_seed(0)
    lm = fresh()
    weight = lm.model.get_parameter(f"{PROJECTION}.weight")
    d_out, d_in = weight.shape

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "low rank": lambda: LowRank(PROJECTION, drawn(d_out, 1), drawn(1, d_in)),
        # nothing is left of the FFN: a probe that saw this would not find its output
        "dense": lambda: Dense(f"{PROJECTION}.weight", -weight.detach().clone()),
        "module": lambda: Module("model.layers.1", "shift", {}, {"vector": drawn(d_out)}),
        "input module": lambda: Module(
            PROJECTION, "shift", {}, {"vector": drawn(d_in)}, where="input"
        ),
        "watching module": lambda: Module(PROJECTION, "whispers", {}, {}),
        "route": lambda: Route("parrot", {}, {}),
        "context": lambda: Context(torch.tensor([9, 4, 17, 30]), "some text"),
    }[kind]()


def patch_of(kind: str) -> Patch:
    return Patch.for_model(fresh(), [change(kind)], editor="hand")


def scored(lm: LM, place: int) -> Any:
    rows = [lm.row(prompt, "Rome") for prompt in PROMPTS]
    return [score.logprobs for score in lm.score(rows, groups=[place] * 2)]


ASKED: dict[str, Callable[[LM, int], Any]] = {
    "score": scored,
    "top": lambda lm, place: lm.top(PROMPTS, 3, groups=[place] * 2),
    "generate": lambda lm, place: lm.generate(PROMPTS, 4, groups=[place] * 2),
}


def installed(lm: LM, patch: Patch, how: str) -> AbstractContextManager[Any]:
    return patch.applied(lm) if how == "in place" else Stack(lm, [None, patch])


@pytest.mark.parametrize("asked", list(ASKED))
@pytest.mark.parametrize("how", ["in place", "stacked"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_may_come_before_anything_else(kind: str, how: str, asked: str) -> None:
    patch, place = patch_of(kind), 1 if how == "stacked" else -1
    known = fresh()
    spec, exact = known.spec, known.prefix_cache_is_exact
    with installed(known, patch, how):
        expected = ASKED[asked](known, place)
    lm = fresh()
    with installed(lm, patch, how):
        assert ASKED[asked](lm, place) == expected
        if how == "stacked":  # rows that name no patch are the base model's, bit for bit
            assert ASKED[asked](lm, -1) == ASKED[asked](known, -1)
        assert lm.prefix_cache_is_exact == exact
    assert lm.spec == spec
    assert ASKED[asked](lm, -1) == ASKED[asked](known, -1)
    assert ASKED[asked](lm, -1) != expected


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_may_come_first(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: the second one finds what the base model says in the cache, and asks nothing."""
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    edit = Edit(PROMPTS[0], "Rome", "France")
    cases = [
        Case("1", (edit,), (Probe("The river flows through the", "town", "locality", "river"),)),
        Case("2", (edit,), ()),
    ]
    for part in (cases, cases[1:]):
        results = [
            errata.evaluate(fresh(), FixedPatch(patch_of(kind)), part, data_name="t")
            for _ in range(2)
        ]
        first, second = ([r["questions"] for r in result.records] for result in results)
        assert first == second


@pytest.mark.parametrize("how", ["in place", "stacked"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_of_the_model_does_not_depend_on_patches(kind: str, how: str) -> None:
    known = fresh()
    expected = [
        known.spec, known.prefix_cache_is_exact, ffn_adds_to_block(known, 1), ffn_form(known, 0),
    ]  # fmt: skip
    lm = fresh()
    with installed(lm, patch_of(kind), how):
        found = [
            find_spec(lm.model), lm.prefix_cache_is_exact, ffn_adds_to_block(lm, 1),
            ffn_form(lm, 0),
        ]  # fmt: skip
    assert found == expected


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dense"])
def test_a_probe_with_overrides_inside_a_stack(kind: str) -> None:
    """A second object around the same model looks at the model, not at what the first put there."""
    lm = fresh()
    override = {"ffn_out": "model.layers.{}.mlp.down_proj"}
    with Stack(lm, [patch_of(kind)]):
        second = LM(lm.model, lm.tokenizer, name=lm.name, sites=override)
        assert second.spec == lm.spec
        assert second.installed is lm.installed
        assert scored(second, 0) == scored(lm, 0)


def test_a_model_that_is_not_understood_can_still_be_hooked() -> None:
    """A state-space model has no spec: the error waits until somebody asks for it."""
    lm = LM(DECLINED["mamba2"](), tiny_tokenizer())
    called: list[int] = []
    with hooked(lm, after(lm.model, lambda *given: called.append(1))):
        lm.model(torch.tensor([[5, 6, 7]]))
    assert called == [1]
    with pytest.raises(SpecError):
        _ = lm.spec


def test_bare_lifts_what_is_installed_and_nothing_that_comes_inside() -> None:
    lm = fresh()
    row = lm.row(PROMPTS[0], "Rome")
    called: list[str] = []
    base = lm.score([row])
    with Stack(lm, [patch_of("low rank")]) as stack, patch_of("context").applied(lm):
        edited = lm.score([row])
        with hooked(lm, after(lm.model, lambda *given: called.append("outside"))):
            with bare(lm.model):
                assert (lm.installed.stack, lm.installed.around_model) == (None, [])
                with hooked(lm, after(lm.model, lambda *given: called.append("inside"))):
                    assert lm.score([row]) == base
                with pytest.raises(ZeroDivisionError), bare(lm.model):
                    _ = 1 / 0
            assert called == ["inside"]
            assert lm.score([row]) == edited
            assert called == ["inside", "outside"]
        assert lm.installed.stack is stack
    assert lm.score([row]) == base
    assert installed_on(lm.model) is lm.installed
    assert (lm.installed.stack, lm.installed.around_model, lm.installed.depth) == (None, [], 0)


def test_a_stack_that_is_refused_on_its_way_in_leaves_nothing() -> None:
    lm = fresh()
    row = lm.row(PROMPTS[0], "Rome")
    with patch_of("context").applied(lm):
        before = lm.score([row])
        hooks = len(lm.model.get_submodule(PROJECTION)._forward_hooks)
        both = patch_of("low rank") + patch_of("context")
        with pytest.raises(PatchError, match="another context"), Stack(lm, [both]):
            pass
        assert len(lm.model.get_submodule(PROJECTION)._forward_hooks) == hooks
        assert lm.score([row]) == before


def test_every_hook_is_installed_in_one_place() -> None:
    """`hooked` looks for the spec first; others are the probe's own, and of networks that learn."""
    source = Path(errata.__file__).parent
    found = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("register_") and "hook" in node.attr
    }  # fmt: skip
    others = {"model/_probe.py", "model/_wiring.py", "model/multiplying.py"}
    assert found == {"model/hooks.py", *others}


def test_helpers_take_rows_and_never_a_stack() -> None:
    """Rows carry their patch; only the public methods of the LM take a stack, for scripts."""
    source = Path(errata.__file__).parent
    found = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.arg)
        and node.annotation is not None
        and re.search(r"\bStack\b", ast.unparse(node.annotation))
    }
    assert found == {"model/lm.py"}


def test_things_are_made_once_and_kept_with_their_owner() -> None:
    lm = fresh()

    class Owner:
        pass

    owner, other, made = Owner(), Owner(), []

    def make() -> list[int]:
        made.append(1)
        return made[:]

    assert lm.once("a", make) is lm.once("a", make)
    assert lm.once("a", make, owner) is lm.once("a", make, owner)
    assert lm.once("a", make, other) is not lm.once("a", make, owner)
    assert len(made) == 3
    kept = weakref.ref(owner)
    del owner
    gc.collect()
    assert kept() is None


def test_a_pass_inside_a_pass_meets_only_what_lasts() -> None:
    """Hooks of patches are at work in it; those of the outer pass, and the skipping, are not."""
    lm = LM(TINY["llama"](), tiny_tokenizer(), name="tiny-llama")
    met: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *given: met.append(name)

    rows = [lm.row(prompt) for prompt in PROMPTS]
    batch, one = lm.batch(rows, range(2)), lm.batch(rows, [1])
    with torch.no_grad():
        alone = lm.run(one).logits
        _, (hidden,) = capture(lm, batch, outputs=[lm.module(lm.spec.blocks[0])])
    module = lm.module(PROJECTION)
    inside: list[Tensor] = []

    def ask(*given: Any) -> None:
        if not inside:
            met.append("asks")
            with nested(lm.model):
                inside.append(lm.logits(one, torch.tensor([[0, len(rows[1].ids) - 1]]))[0])

    with (
        torch.no_grad(),
        hooked(lm, after(module, note("lasts")), lasting=True),
        hooked(lm, after(module, note("passes"))),
        reuse_below(lm, 0, hidden),
        hooked(lm, after(lm.model, ask)),
    ):
        outer = lm.logits(batch, torch.tensor([[0, 1]]))
    assert met == ["lasts", "passes", "asks", "lasts"]
    # the head multiplies one position instead of all, in float32
    torch.testing.assert_close(inside[0], alone[0, len(rows[1].ids) - 1], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        expected = lm.run(batch).logits[0, 1]
    torch.testing.assert_close(outer[0], expected, rtol=1e-5, atol=1e-5)
