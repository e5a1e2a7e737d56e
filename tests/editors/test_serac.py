"""SERAC: who answers, with what, and how the memory grows, against plain references."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from tests.nets.samples import group_of, small, untrained
from torch import Tensor

from errata.case import Edit
from errata.editors.serac.editor import Serac
from errata.editors.serac.network import Asked, SeracNetwork, full_text, read_out
from errata.editors.serac.route import ScopeMemory, mixed
from errata.errors import EditError, PatchError
from errata.model.lm import LM
from errata.model.passes import Pass
from errata.model.tokens import Row, positions_of
from errata.nets import weights
from errata.nets.scope import HubEncoder, embed, nearest, scope_loss
from errata.nets.small import copy_of_blocks, hidden_states
from errata.patch import LowRank, Patch
from errata.patch.changes import Route
from errata.patch.export import to_lora
from errata.patch.stack import Stack
from errata.training.config import TrainConfig
from errata.training.prepared import Prepared

NEVER, ALWAYS = 1e9, -1e9

PROBES = [
    ("The capital of France is", "Rome"),
    ("Anna lives in", "Paris"),
    ("The river flows through the", "town"),
    ("It works for", "the city"),
]


@pytest.fixture
def lm(tiny: Callable[..., LM]) -> LM:
    return tiny("qwen3")


def editor(lm: LM, **settings: Any) -> Serac:
    """Return an editor with random networks: what is decided does not depend on training."""
    made: Any = small("serac", **settings)
    made.adopt(lm, untrained(small("serac"), lm).requires_grad_(False))
    return made


def rows_of(lm: LM) -> list[Row]:
    return [lm.row(prompt, target) for prompt, target in PROBES]


def logits(lm: LM, patch: Patch | None = None) -> Tensor:
    rows = rows_of(lm)
    batch, at = lm.batch(rows, range(len(rows))), positions_of(rows, range(len(rows)))
    with torch.no_grad():
        if patch is None:
            return lm.logits(batch, at)
        with patch.applied(lm):
            return lm.logits(batch, at)


def memory_of(patch: Patch) -> ScopeMemory:
    (route,) = [change for change in patch.changes if isinstance(change, Route)]
    return ScopeMemory.from_change(route, torch.device("cpu"))


def answer(lm: LM, network: SeracNetwork, edit: Edit, row: Row) -> Tensor:
    """Return the counterfactual model's logits for one question, written out step by step."""
    model: Any = network.counterfactual
    stored = lm.row(edit.prompt, edit.target)
    ids = torch.tensor([[*stored.ids, stored.labels[-1], *row.ids]])
    start = len(stored.ids) + 1

    def block(b: Any, x: Tensor) -> Tensor:
        y = torch.nn.functional.layer_norm(x, x.shape[-1:], b.norm.weight, b.norm.bias)
        y = y @ b.inner.weight.T + b.inner.bias
        inner = (y @ b.mid.weight.T + b.mid.bias).relu()
        return inner @ b.outer.weight.T + b.outer.bias + y

    vectors = block(model.before, lm.embedding[ids])
    hidden = model.small(inputs_embeds=vectors).last_hidden_state
    out = block(model.after, hidden[:, start:])[0, list(row.positions)]
    final: Any = lm.module(lm.spec.final_norm)
    return final(out) @ lm.module(lm.spec.head).weight.T  # type: ignore[operator]


# ---------------------------------------------------------------------- who answers


def test_with_an_empty_memory_all_is_bit_equal(lm: LM) -> None:
    (patch,) = editor(lm).edit(lm, [EDITS[:1]])
    (route,) = patch.changes
    assert isinstance(route, Route)
    nothing = {name: tensor[:0] for name, tensor in route.weights.items()}
    empty = Patch.for_model(lm, [Route(route.name, route.config, nothing)], editor="serac")
    assert torch.equal(logits(lm, empty), logits(lm))


def test_below_the_threshold_all_is_bit_equal(lm: LM) -> None:
    (patch,) = editor(lm, threshold=NEVER).edit(lm, [EDITS])
    assert torch.equal(logits(lm, patch), logits(lm))


def test_the_nearest_entry_answers_and_the_model_is_not_asked(lm: LM) -> None:
    made = editor(lm, threshold=ALWAYS)
    (patch,) = made.edit(lm, [EDITS])
    found = logits(lm, patch)
    memory, network = memory_of(patch), made.network(lm)
    expected = []
    for row in rows_of(lm):
        query = network.encoder(lm, [row.ids[: row.prompt_length]])[0]
        sims = [float(sum(a * b for a, b in zip(query, key, strict=True))) for key in memory.keys]
        edit = EDITS[max(range(len(sims)), key=lambda i: sims[i])]
        expected.append(answer(lm, network, edit, row))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-9, atol=1e-9)
    # whatever the base model's own logits are
    site = lm.site(lm.n_layers - 1)
    noise = LowRank(site.path, torch.randn(site.d_out, 1), torch.randn(1, site.d_in))
    other = Patch.for_model(lm, [noise], editor="hand") + patch
    assert torch.equal(logits(lm, other), found)


def test_the_threshold_is_where_it_changes_hands(lm: LM) -> None:
    made = editor(lm)
    (patch,) = made.edit(lm, [EDITS[:1]])
    key = memory_of(patch).keys[0]
    text = rows_of(lm)[1]
    query = embed(lm, made.network(lm).encoder, [text.ids[: text.prompt_length]])[0]
    sim = float(nearest(query[None], key[None])[0])
    for threshold, same in ((sim, False), (sim + 1e-6 * abs(sim), True)):
        (one,) = editor(lm, threshold=threshold).edit(lm, [EDITS[:1]])
        with one.applied(lm), torch.no_grad():
            now = lm.logits(lm.batch([text], [0]), positions_of([text], [0]))
        base = lm.logits(lm.batch([text], [0]), positions_of([text], [0]))
        assert torch.equal(now, base) is same


def test_a_soft_switch_without_weight_is_the_logarithm_of_the_model(lm: LM) -> None:
    base = logits(lm)
    (patch,) = editor(lm, threshold=NEVER, switch="soft").edit(lm, [EDITS])
    expected = (base.softmax(-1) + 1e-30).log()
    torch.testing.assert_close(logits(lm, patch), expected, rtol=1e-12, atol=1e-12)
    p, q = torch.rand(2, 3, 7).double().log_softmax(-1)
    half = mixed(p, q, torch.full((3,), 0.5).double())
    torch.testing.assert_close(half.exp(), (p.exp() + q.exp()) / 2)


def test_only_the_prompt_decides_unless_the_leak_is_asked_for(lm: LM) -> None:
    for route_on, same in (("prompt", True), ("target_leak", False)):
        made = editor(lm, route_on=route_on)
        (patch,) = made.edit(lm, [EDITS])
        (route,) = patch.changes
        assert isinstance(route, Route)
        router: Any = route.build(lm)
        found = []
        for target in ("Rome", "the river and the town"):
            row = lm.row("The capital of France is", target)
            ids = torch.tensor([row.ids])
            seen = Pass(ids, torch.ones_like(ids).bool(), torch.tensor([row.prompt_length]))
            router.scope(seen)
            found.append(router.found[router.texts(seen)[0]])
        assert (found[0] == found[1]) is same


# ---------------------------------------------------------------------- generation, stacks


def test_generation_is_that_of_the_counterfactual_model(lm: LM) -> None:
    made = editor(lm, threshold=ALWAYS)
    (patch,) = made.edit(lm, [EDITS[1:2]])
    prompt = "Anna lives in"
    ids = list(lm.row(prompt).ids)
    for _ in range(4):
        row = Row(tuple(ids), (len(ids) - 1,), (), len(ids))
        ids.append(int(answer(lm, made.network(lm), EDITS[1], row).argmax()))
    with patch.applied(lm):
        (text,) = lm.generate([prompt], 4)
    assert text == lm.text(ids[-4:])


def test_rows_of_a_stack_have_their_own_memory(lm: LM) -> None:
    patches = editor(lm, threshold=ALWAYS).edit(lm, [[edit] for edit in EDITS[:2]])
    row = rows_of(lm)[0]
    batch, at = lm.batch([row], [0] * 3), positions_of([row], [0] * 3)
    with torch.no_grad():
        base = lm.logits(batch, at)
        with Stack(lm, [*patches, None]):
            found = lm.logits(replace(batch, patches=(0, 1, 2)), at).chunk(3)
        for patch, mine in zip(patches, found, strict=False):
            with patch.applied(lm):
                torch.testing.assert_close(mine, lm.logits(batch, at).chunk(3)[0])
    assert torch.equal(found[2], base.chunk(3)[2])


# ---------------------------------------------------------------------- the memory


def test_it_grows_and_a_later_answer_wins(lm: LM) -> None:
    made = editor(lm)
    patch: Patch | None = None
    for edit in EDITS:
        patch = made.edit_one(lm, [edit], after=patch)
    assert patch is not None
    joint = made.edit_one(lm, EDITS)
    for name, tensor in memory_of(joint).weights().items():
        torch.testing.assert_close(memory_of(patch).weights()[name], tensor)
    again = made.edit_one(lm, [Edit(EDITS[0].prompt, "Lima")], after=patch)
    memory = memory_of(again)
    assert len(memory) == len(EDITS)
    assert memory.text(len(memory) - 1) == full_text(lm.row(EDITS[0].prompt, "Lima"))
    assert memory.of_prompt(lm.row(EDITS[0].prompt).ids) == len(memory) - 1


def test_two_answers_to_one_prompt_are_refused(lm: LM) -> None:
    group = [EDITS[0], EDITS[1], Edit(EDITS[0].prompt, "Lima")]
    with pytest.raises(EditError, match="two edits conflict") as error:
        editor(lm).edit(lm, [group])
    assert error.value.edits == (group[2],)
    assert len(memory_of(editor(lm, conflicts="replace").edit_one(lm, group))) == 2
    assert len(memory_of(editor(lm).edit_one(lm, [EDITS[0], EDITS[0]]))) == 1


def test_a_full_memory_is_refused(lm: LM) -> None:
    with pytest.raises(EditError, match="limit is 1e-08 GB"):
        editor(lm, memory_gb=1e-8).edit(lm, [EDITS[:1]])


def test_saved_in_the_middle_of_a_sequence_it_goes_on(lm: LM, tmp_path: Path) -> None:
    made = editor(lm)
    first = made.edit_one(lm, EDITS[:2])
    loaded = Patch.load(first.save(tmp_path / "patch"))
    on, straight = (made.edit_one(lm, EDITS[2:], after=patch) for patch in (loaded, first))
    for name, tensor in memory_of(straight).weights().items():
        assert torch.equal(memory_of(on).weights()[name], tensor)


# ---------------------------------------------------------------------- what is refused


def saved(lm: LM, made: Serac, folder: Path) -> Path:
    settings = made.settings.model_dump(mode="json", exclude={"weights"})
    return weights.save(folder, made.network(lm), editor="serac", settings=settings, lm=lm, card="")


def test_networks_are_found_again_or_missed_by_name(lm: LM, tmp_path: Path) -> None:
    folder = saved(lm, editor(lm), tmp_path / "networks")
    patch = Serac(Serac.Config(weights=str(folder))).edit_one(lm, EDITS[:1])
    (route,) = patch.changes
    assert isinstance(route, Route)
    assert route.config["networks"] == str(folder.resolve())
    before = logits(lm, patch)
    stranger = LM(lm.model, lm.tokenizer, name="another")  # another process
    _forget(lm)
    assert torch.equal(logits(stranger, patch), before)
    _forget(lm)
    made = editor(lm)
    with torch.no_grad():
        for parameter in made.network(lm).parameters():
            parameter.mul_(1.5)
    saved(lm, made, folder)
    _forget(lm)
    with pytest.raises(PatchError, match="are not those in"):
        logits(lm, patch)
    (folder / weights.WEIGHTS).unlink()
    _forget(lm)
    with pytest.raises(PatchError, match=r"cannot be loaded.*model\.safetensors"):
        logits(lm, patch)


def _forget(lm: LM) -> None:
    from errata.editors.serac import route as serac_route

    serac_route._shared(lm).clear()


def test_networks_that_were_never_saved_are_missed(lm: LM) -> None:
    patch = editor(lm).edit_one(lm, EDITS[:1])
    _forget(lm)
    with pytest.raises(PatchError, match="never saved"):
        logits(lm, patch)


def test_a_memory_of_another_version_or_router_is_refused(lm: LM) -> None:
    made = editor(lm)
    patch = made.edit_one(lm, EDITS[:1])
    (route,) = patch.changes
    assert isinstance(route, Route)
    newer = Route(route.name, {**route.config, "version": 2}, route.weights)
    other = Patch.for_model(lm, [newer], editor="serac")
    with pytest.raises(PatchError, match="version 2"):
        logits(lm, other)
    with pytest.raises(PatchError, match="version 2"):
        made.edit_one(lm, EDITS[1:2], after=other)
    with pytest.raises(PatchError, match="route_on=prompt"):
        editor(lm, route_on="target_leak").edit_one(lm, EDITS[1:2], after=patch)
    with pytest.raises(PatchError, match="2 memories"):
        made.edit_one(lm, EDITS[2:3], after=patch + made.edit_one(lm, EDITS[1:2]))


def test_it_is_no_weight(lm: LM, tmp_path: Path) -> None:
    patch = editor(lm).edit_one(lm, EDITS[:1])
    with pytest.raises(PatchError, match="serac"):
        to_lora(lm, patch, tmp_path / "lora")
    with pytest.raises(PatchError, match="strength"):
        patch.scaled(0.5)


def test_a_router_that_never_or_always_fires_is_said(
    lm: LM, caplog: pytest.LogCaptureFixture
) -> None:
    groups = [[edit] for edit in EDITS]
    with caplog.at_level(logging.WARNING):
        editor(lm, threshold=NEVER).edit(lm, groups)
    assert "finds 0 of 4 edits" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        editor(lm, threshold=ALWAYS).edit(lm, groups)
    assert "takes 12 of 12 prompts" in caplog.text


# ---------------------------------------------------------------------- the router's parts


def test_nearest_is_exact_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = torch.randn(48, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys, queries = drawn[:37], drawn[37:]
    whole = nearest(queries, keys)
    monkeypatch.setattr("errata.nets.scope.PAIRS", 80)
    parts = nearest(queries, keys)
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(parts[1], whole[1])
    for i, query in enumerate(queries):
        products = [float(query @ key) for key in keys]
        assert int(whole[1][i]) == products.index(max(products))


def test_the_loss_of_the_router() -> None:
    sims = torch.tensor([[3.0, 1.0], [0.5, 2.0], [1.0, 4.0]]).double()
    label, none = torch.tensor([0, 1, -1]), torch.zeros(3, 2).bool()

    def nll(values: list[float], at: int) -> Tensor:
        return -torch.tensor(values).double().log_softmax(0)[at]

    found = scope_loss(sims, label, 2.5, none)
    expected = [nll([3.0, 1.0, 2.5], 0), nll([0.5, 2.0, 2.5], 1), nll([1.0, 4.0, 2.5], 2)]
    torch.testing.assert_close(found, torch.stack(expected))
    found = scope_loss(sims, label, 2.5, none, released=True)
    expected = [
        nll([3.0, 1.0], 0) + 0.1 * torch.tensor(-3.0).double().exp(),
        nll([0.5, 2.0], 1) + 0.1 * torch.tensor(-2.0).double().exp(),
        nll([1.0, 4.0, 2.5], 2),
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_named_encoder_reads_its_first_token(lm: LM, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            vocab_size=len(lm.tokenizer), hidden_size=8, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=8,
        )
    )  # fmt: skip
    bert.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    encoder = HubEncoder(str(tmp_path)).eval()
    texts = [lm.row("Anna lives in").ids, lm.row("The capital of France is").ids]
    found = embed(lm, encoder, texts)
    for text, key in zip(texts, found, strict=True):
        given = encoder.tokenizer(lm.text(text), return_tensors="pt")
        with torch.no_grad():
            alone = encoder.model(**given).last_hidden_state[0, 0]
        torch.testing.assert_close(key, alone)
    # frozen and named, it is neither trained nor saved
    settings = {"router": str(tmp_path), "train_router": False}
    network = untrained(small("serac", **settings), lm)
    assert network.trained is None
    assert all(name.startswith("counterfactual.") for name in network.state_dict())


def test_a_named_model_answers_between_the_blocks(lm: LM, tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTModel

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=50, hidden_size=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=12, max_position_embeddings=64, pad_token_id=1,
    )  # fmt: skip
    OPTModel(config).save_pretrained(tmp_path)
    network = untrained(small("serac", small=str(tmp_path)), lm)
    edit, row = EDITS[0], rows_of(lm)[0]
    asked = Asked(full_text(lm.row(edit.prompt, edit.target)), row.ids, row.positions)
    with torch.no_grad():
        found = read_out(lm, network.counterfactual(lm, [asked]))
        torch.testing.assert_close(found, answer(lm, network, edit, row))
    assert network.counterfactual.before.inner.weight.shape == (12, lm.embedding.shape[1])


# ---------------------------------------------------------------------- training


@torch.no_grad()
def test_the_losses_are_those_of_the_definition(lm: LM) -> None:
    made = small("serac", threshold=1.0)
    network = untrained(made, lm)
    groups = [
        group_of(lm, i, [edit], [lm.row(f"So {edit.prompt}", edit.target)])
        for i, edit in enumerate(EDITS)
    ]
    config = TrainConfig(sg_weight=0.7, il_weight=0.3, kl="original_first")
    objective = made.objective(lm, Prepared(lm, [], groups), config)
    found = objective.run(network, groups)

    def nll(edit: Edit, row: Row) -> Tensor:
        lp = answer(lm, network, edit, row).log_softmax(-1)
        return -lp[torch.arange(len(row.labels)), torch.tensor(row.labels)]

    pairs = list(zip(EDITS, groups, strict=True))
    own = torch.cat([nll(e, g.edit_rows[0]) for e, g in pairs]).mean()
    gen = torch.cat([nll(e, row) for e, g in pairs for row in g.gens]).mean()
    apart = []
    for edit, group in pairs:
        for row in group.locs:
            p = lm.logits(lm.batch([row], [0]), positions_of([row], [0])).log_softmax(-1)
            q = answer(lm, network, edit, row).log_softmax(-1)
            apart.append((p.exp() * (p - q)).sum(-1))
    assert found["sg"] == pytest.approx(0.7 * float(own + gen), rel=1e-9)
    assert found["il"] == pytest.approx(0.3 * float(torch.cat(apart).mean()), rel=1e-9)

    def key(row: Row) -> Tensor:
        return network.encoder(lm, [row.ids[: row.prompt_length]])[0]

    keys = torch.stack([key(g.edit_rows[0]) for g in groups])
    terms: list[list[Tensor]] = [[], [], []]
    for i, group in enumerate(groups):
        for kind, rows in enumerate(([group.edit_rows[0]], group.gens, group.locs)):
            for row in rows:
                logit = torch.cat([keys @ key(row), torch.ones(1).double()])
                terms[kind].append(-logit.log_softmax(0)[i if kind < 2 else -1])
    expected = sum(float(torch.stack(kind).mean()) for kind in terms)
    assert found["penalty"] == pytest.approx(expected, rel=1e-9)
    assert found["total"] == pytest.approx(found["sg"] + found["il"] + found["penalty"])


def test_copied_blocks_start_as_what_they_were(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    rows = rows_of(lm)
    batch = lm.batch(rows, range(len(rows)))
    whole = copy_of_blocks(lm, range(lm.n_layers))
    with torch.no_grad():
        mine = hidden_states(whole, lm.embedding[batch.input_ids], batch.attention_mask)
        at = positions_of(rows, range(len(rows)))
        found = read_out(lm, mine[at[:, 0], at[:, 1]])
    torch.testing.assert_close(found, logits(lm), rtol=1e-9, atol=1e-9)


def test_questions_of_any_order_get_their_own_answers(lm: LM) -> None:
    network = untrained(small("serac"), lm)
    asked = [
        Asked(full_text(lm.row(edit.prompt, edit.target)), row.ids, row.positions)
        for edit, row in zip(EDITS, rows_of(lm), strict=True)
    ]
    with torch.no_grad():
        found = read_out(lm, network.counterfactual(lm, asked))
        expected = [answer(lm, network, e, r) for e, r in zip(EDITS, rows_of(lm), strict=True)]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-9, atol=1e-9)
