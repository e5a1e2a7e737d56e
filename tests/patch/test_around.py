"""Routes, networks that see whole rows, and branches that read another module's input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import pytest
import torch
from tests.tiny_models import TINY, tiny_tokenizer
from torch import Tensor, nn

from errata.errors import PatchError
from errata.model.lm import LM
from errata.model.passes import Pass
from errata.model.tokens import Row
from errata.patch import Context, LowRank, Module, Patch, Route, module_kind, route_kind
from errata.patch.changes.kinds import NETWORKS, ROUTERS
from errata.patch.stack import Stack

FAMILIES = sorted(name for name in TINY if "-" not in name)
PLAIN = "qwen3" if "qwen3" in FAMILIES else FAMILIES[0]

ROWS = [
    Row((5, 6, 7, 8), (2, 3), (8, 9), 3),
    Row((5, 9), (1,), (4,), 2),
    Row((11, 6, 7), (1, 2), (3, 4), 2),
]


class Constant:
    """Answers rows whose prompt begins with a token: always with the same logits."""

    def __init__(self, lm: LM, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.token, self.vector = config["token"], tensors["logits"].to(lm.device)
        self.prompts: list[tuple[int, ...]] = []

    def scope(self, seen: Pass) -> Tensor:
        prompts = seen.tokens(prompt_only=True)
        self.prompts += prompts
        return torch.tensor([row[0] == self.token for row in prompts])

    def logits(self, seen: Pass, at: Tensor, base: Tensor) -> Tensor:
        assert base.shape == (len(at), len(self.vector))
        assert int(at[:, 0].max()) < len(seen.ids)
        own = seen.ids[at[:, 0], at[:, 1]]
        return self.vector[None] + own[:, None]


class MeanOfPrompt(nn.Module):
    """Adds the mean of what stands at the prompt's tokens."""

    sees_pass = True

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()

    def forward(self, x: Tensor, y: Tensor, seen: Pass) -> Tensor:
        weight = seen.prompt_mask.to(x)[..., None]
        return y + (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)


@pytest.fixture(autouse=True)
def kinds() -> Iterator[None]:
    """Register the kinds of this file, and forget them."""
    route_kind("constant")(Constant)
    module_kind("mean_of_prompt")(MeanOfPrompt)
    yield
    ROUTERS.forget("constant")
    NETWORKS.forget("mean_of_prompt")


def constant(lm: LM, token: int, seed: int = 0) -> Patch:
    logits = torch.randn(lm.embedding.shape[0], generator=torch.Generator().manual_seed(seed))
    return Patch.for_model(
        lm, [Route("constant", {"token": token}, {"logits": logits})], editor="t"
    )


def mean_of_prompt(lm: LM, layer: int = 1) -> Patch:
    source = lm.spec.ffn_in[layer][0].path
    path = lm.site(layer).path
    change = Module(path, "mean_of_prompt", {}, {}, where="both", source=source)
    return Patch.for_model(lm, [change], editor="t")


def answers(lm: LM, rows: list[Row], **how: Any) -> list[list[Tensor]]:
    return [[torch.tensor(s.logprobs) for s in lm.score([row], **how)] for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_route_answers_its_rows_and_leaves_the_others_bit_equal(tiny, family: str) -> None:
    lm = tiny(family, "float64")
    batch = lm.batch(ROWS, range(3))
    with torch.no_grad():
        base = lm.run(batch).logits
        with constant(lm, 5).applied(lm):
            routed = lm.run(batch).logits
        patch = constant(lm, 5).changes[0]
    assert isinstance(patch, Route)
    expected = patch.weights["logits"] + batch.input_ids[..., None]
    assert torch.equal(routed[2], base[2])
    torch.testing.assert_close(routed[:2], expected[:2].to(base.dtype))


def test_logits_at_some_positions_are_those_of_a_full_pass(tiny) -> None:
    lm = tiny(PLAIN, "float64")
    batch = lm.batch(ROWS, range(3))
    at = torch.tensor([(0, 3), (2, 1), (1, 0), (0, 1)])
    with torch.no_grad(), constant(lm, 5).applied(lm):
        full = lm.run(batch).logits[at[:, 0], at[:, 1]]
        some = lm.logits(batch, at)
        raw = lm.model(batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(some, full)
    torch.testing.assert_close(raw[at[:, 0], at[:, 1]], full)


def test_rows_of_a_stack_have_routers_of_their_own(tiny) -> None:
    lm = tiny(PLAIN, "float64")
    patches = [constant(lm, 5, 1), None, constant(lm, 11, 2), constant(lm, 5, 3)]
    with Stack(lm, patches) as stack:
        together = lm.score([*ROWS, *ROWS], stack=stack, groups=[0, 1, 2, 3, 3, 0])
    for row, group, score in zip([*ROWS, *ROWS], [0, 1, 2, 3, 3, 0], together, strict=True):
        if patches[group] is None:
            assert score.logprobs == pytest.approx(lm.score([row])[0].logprobs, abs=1e-12)
            continue
        with patches[group].applied(lm):
            assert score.logprobs == pytest.approx(lm.score([row])[0].logprobs, abs=1e-12)


def test_a_router_sees_the_prompt_alone_also_while_an_answer_grows(tiny) -> None:
    lm = tiny(PLAIN, "float64")
    with constant(lm, 5).applied(lm):
        lm.score(ROWS)
    with Stack(lm, [constant(lm, 5)]) as stack:
        (router,) = stack._around._routes[0].members
        assert isinstance(router, Constant)
        lm.score(ROWS, stack=stack, groups=[0] * 3)
        assert sorted(set(router.prompts)) == [(5, 6, 7), (5, 9), (11, 6)]
        router.prompts.clear()
        router.token = lm.row("Who is").ids[0]
        lm.generate(["Who is"], 4, stack=stack, groups=[0])
        assert len(router.prompts) > 1
        assert len(set(router.prompts)) == 1


class Together:
    """Many `Constant` routers asked at once."""

    calls = 0

    def __init__(self, routers: Sequence[Constant]) -> None:
        self.tokens = torch.tensor([router.token for router in routers])
        self.vectors = torch.stack([router.vector for router in routers])

    def scope(self, seen: Pass, owner: Tensor) -> Tensor:
        Together.calls += 1
        return seen.ids[:, 0] == self.tokens[owner]

    def logits(self, seen: Pass, owner: Tensor, at: Tensor, base: Tensor) -> Tensor:
        return self.vectors[owner[at[:, 0]]] + seen.ids[at[:, 0], at[:, 1]][:, None]


def test_routers_that_can_are_asked_together_and_say_the_same(tiny, monkeypatch) -> None:
    lm = tiny(PLAIN, "float64")
    patches = [constant(lm, 5, 1), constant(lm, 11, 2), None, constant(lm, 5, 3)]
    rows, groups = [*ROWS, *ROWS], [0, 1, 1, 3, 2, 3]
    with Stack(lm, patches) as stack:
        alone = [s.logprobs for s in lm.score(rows, stack=stack, groups=groups)]
    monkeypatch.setattr(Constant, "together", staticmethod(Together), raising=False)
    with Stack(lm, patches) as stack:
        together = [s.logprobs for s in lm.score(rows, stack=stack, groups=groups)]
    assert Together.calls == 1
    assert together == alone


def test_of_several_routes_the_last_that_takes_a_row_answers(tiny) -> None:
    lm = tiny(PLAIN, "float64")
    both = constant(lm, 5, 1) + constant(lm, 11, 2) + constant(lm, 5, 3)
    with constant(lm, 5, 3).applied(lm):
        five = [s.logprobs for s in lm.score(ROWS[:2])]
    with constant(lm, 11, 2).applied(lm):
        eleven = lm.score(ROWS[2:])[0].logprobs
    with both.applied(lm):
        assert [s.logprobs for s in lm.score(ROWS)] == [*five, eleven]


def test_a_model_may_be_looked_at_for_the_first_time_under_a_route() -> None:
    lm = LM(TINY[PLAIN]().double(), tiny_tokenizer(), name="fresh")
    with Stack(lm, [None, constant(lm, 5)]) as stack:
        found = lm.score(ROWS, stack=stack, groups=[1, 1, 1])
    with constant(lm, 5).applied(lm):
        assert found == lm.score(ROWS)


def test_same_tokens_with_another_prompt_may_be_answered_otherwise(tiny) -> None:
    lm = tiny(PLAIN, "float64")
    rows = [Row((5, 6, 7), (2,), (8,), 3), Row((5, 6, 7), (1, 2), (7, 8), 2)]
    with mean_of_prompt(lm).applied(lm):
        together = lm.score(rows)
        alone = [lm.score([row])[0] for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-12)
    assert together[0].logprobs[-1] != pytest.approx(together[1].logprobs[-1], abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_branch_reads_the_input_of_the_ffn(tiny, family: str) -> None:
    """Against hooks that add the same by hand, one row at a time."""
    lm = tiny(family, "float64")
    patch = mean_of_prompt(lm)
    (change,) = patch.changes
    assert isinstance(change, Module)
    assert change.source is not None
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen["x"] = args[0]

    with patch.applied(lm):
        together = lm.score(ROWS)
    with Stack(lm, [None, patch]) as stack:
        stacked = lm.score(ROWS, stack=stack, groups=[1, 1, 1])
    for row, one, other in zip(ROWS, together, stacked, strict=True):

        def add(module: nn.Module, args: Any, out: Tensor, row: Row = row) -> Tensor:
            x = seen["x"].reshape(len(row.ids), -1)
            return out + x[: row.prompt_length].mean(0)

        first = lm.module(change.source).register_forward_pre_hook(keep)
        last = lm.module(change.path).register_forward_hook(add)
        expected = lm.score([row])[0]
        first.remove(), last.remove()
        assert one.logprobs == pytest.approx(expected.logprobs, abs=1e-9)
        assert other.logprobs == pytest.approx(expected.logprobs, abs=1e-9)


def test_what_has_to_see_whole_rows_refuses_a_cached_pass(tiny) -> None:
    lm = tiny(PLAIN, "float64")
    assert lm.prefix_cache_works
    ids = torch.tensor([[5, 6, 7]])
    with constant(lm, 5).applied(lm):
        assert not lm.prefix_cache_works
        whole = lm.model.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False)
        assert whole.shape[1] == 6
        with pytest.raises(PatchError, match="use_cache=False"):
            lm.model.generate(ids, max_new_tokens=3, do_sample=False)
    assert lm.prefix_cache_works
    assert not lm.model._forward_hooks
    assert not lm.model._forward_pre_hooks


def test_routes_contexts_and_sources_are_saved_and_loaded(tiny, tmp_path) -> None:
    lm = tiny(PLAIN, "float64")
    low = LowRank(
        lm.site(0).path, torch.randn(lm.site(0).d_out, 1), torch.randn(1, lm.site(0).d_in)
    )
    patch = constant(lm, 5) + mean_of_prompt(lm)
    patch = patch + Patch.for_model(lm, [Context(torch.tensor([4, 5]), "x y"), low], editor="t")
    loaded = Patch.load(patch.save(tmp_path / "p"))
    assert [c.describe() for c in loaded.changes] == [c.describe() for c in patch.changes]
    with patch.applied(lm):
        before = [s.logprobs for s in lm.score(ROWS)]
    with loaded.applied(lm):
        assert [s.logprobs for s in lm.score(ROWS)] == before


def test_kinds_of_an_installed_plug_in_are_found(tiny, tmp_path, monkeypatch) -> None:
    """In a process that has not named the plug-in's editor."""
    lm = tiny(PLAIN, "float64")
    patch = constant(lm, 5)
    ROUTERS.forget("constant")
    with pytest.raises(PatchError, match="unknown kind of route 'constant'"), patch.applied(lm):
        pass
    (tmp_path / "constant_plug_in.py").write_text(
        "from errata.patch import route_kind\n"
        "from tests.patch.test_around import Constant\n"
        "route_kind('constant')(Constant)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    point = metadata.EntryPoint("constant", "constant_plug_in:Editor", "errata.editors")
    monkeypatch.setattr(
        metadata, "entry_points", lambda group: (point,) if group == point.group else ()
    )
    with patch.applied(lm):
        lm.score(ROWS)


def test_exports_refuse_what_is_no_weight_and_say_what_it_is(tiny, tmp_path) -> None:
    from errata.patch.export import to_lora, to_merged

    lm = tiny(PLAIN, "float64")
    for patch, name in [
        (constant(lm, 5), "the constant route"),
        (Patch.for_model(lm, [Context(torch.tensor([4, 5]), "x y")], editor="t"), "the context"),
    ]:
        for export in (to_lora, to_merged):
            with pytest.raises(PatchError, match=name):
                export(lm, patch, tmp_path / "out")
        with pytest.raises(PatchError, match="no strength"):
            patch.scaled(2.0)


def test_bad_contexts_are_refused(tiny) -> None:
    lm = tiny(PLAIN, "float64")
    for ids, what in [
        (torch.zeros(0, dtype=torch.long), "row of token ids"),
        (torch.zeros(2, 2, dtype=torch.long), "row of token ids"),
        (torch.tensor([0.5]), "row of token ids"),
    ]:
        with pytest.raises(PatchError, match=what):
            Context(ids, "")
    for ids, what in [
        (torch.tensor([10**6]), "does not have"),
        (torch.zeros(10**5, dtype=torch.long), "leaves no room"),
    ]:
        patch = Patch.for_model(lm, [Context(ids, "")], editor="t")
        with pytest.raises(PatchError, match=what), patch.applied(lm):
            pass
    with pytest.raises(PatchError, match="source"):
        Module(lm.site(0).path, "shift", {}, {}, where="output", source=lm.site(1).path)
