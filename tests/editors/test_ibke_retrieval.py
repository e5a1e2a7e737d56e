"""IBKE-retrieval: by which states prompts are compared, and how strong what is kept has to be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS, build

from errata.editors import Editor
from errata.editors.ibke_retrieval import FLOOR, NEAR, IbkeRetrieval, whitened
from errata.errors import ConfigError, ErrataError
from errata.model.lm import LM
from errata.patch import Patch
from errata.patch.changes.retrieved import KeySpace, Retrieved, states_of

Make = Callable[..., Editor]


@pytest.fixture(scope="module")
def lm() -> LM:
    return build("gpt2")


def memory_of(patch: Patch) -> Retrieved:
    (change,) = patch.changes
    assert isinstance(change, Retrieved)
    return change


def hidden_of(lm: LM, prompt: str, block: int) -> torch.Tensor:
    """Output of a block by the model's own forward pass, of a copy: it leaves hooks behind."""
    ids = torch.tensor([lm.row(prompt).ids])
    model: Any = copy.deepcopy(lm.model)
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True).hidden_states[block + 1][0]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_states_are_the_mean_over_a_prompt_without_its_first_token(kind: str) -> None:
    lm = build(kind)
    prompts = ["Ada lives in the old town of", "Oslo is", "Paris"]
    ids = [lm.row(prompt).ids for prompt in prompts]
    found = states_of(lm, 0, ids, "mean")
    for prompt, state in zip(prompts, found, strict=True):
        hidden = hidden_of(lm, prompt, 0)
        torch.testing.assert_close(state, hidden[1:].mean(0) if len(hidden) > 1 else hidden[0])
    last = states_of(lm, 1, ids)
    for prompt, state in zip(prompts, last, strict=True):
        torch.testing.assert_close(state, hidden_of(lm, prompt, 1)[-1])


def test_whitened_states_of_the_text_vary_alike_in_every_direction(
    lm: LM, texts_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        "errata.editors.ibke_retrieval.states_of",
        lambda *args: seen.append(states_of(*args)) or seen[-1],
    )
    space = whitened(lm, 0, texts_file)
    (states,) = seen
    assert space.centre is not None
    assert space.white is not None
    torch.testing.assert_close(space.centre, states.mean(0))
    values, vectors = torch.linalg.eigh(torch.cov(states.T))
    turned = torch.cov(((states - space.centre) @ space.white).T)
    variances = (vectors.T @ turned @ vectors).diagonal()
    # a direction of variance v keeps v / (v + floor): all alike where the floor does not matter
    expected = values / (values + FLOOR * values.mean())
    torch.testing.assert_close(
        variances / variances.max(), expected / expected.max(), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(space.keys(states).norm(dim=-1), torch.ones(len(states)).to(states))


def test_a_text_without_two_pieces_is_refused(lm: LM, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Oslo is old.\n")
    with pytest.raises(ErrataError, match="too short to whiten"):
        whitened(lm, 0, str(short))


def test_what_goes_on_compares_as_it_did(lm: LM, make: Make, tmp_path: Path) -> None:
    """Of another machine the model may have written other text; a memory keeps its own."""
    first = make("ibke-retrieval").edit_one(lm, EDITS[:1])
    loaded = Patch.load(first.save(tmp_path / "first"))
    other = tmp_path / "other.txt"
    other.write_text(
        "\n".join(f"The number {n} is {n * n} squared and {n + 1} next." for n in range(60))
    )
    grown = memory_of(
        make("ibke-retrieval", key_text=str(other)).edit_one(lm, EDITS[1:2], after=loaded)
    )
    space = memory_of(first).space
    assert grown.space.same(space)
    assert len(grown) == 2
    text = lm.row_of(EDITS[1])
    torch.testing.assert_close(
        grown.keys[-1:].double(), space.of(lm, [text.ids[: text.prompt_length]]).double()
    )


def test_a_memory_that_compares_otherwise_is_not_gone_on_with(lm: LM, make: Make) -> None:
    first = make("ibke-retrieval", key="last").edit_one(lm, EDITS[:1])
    with pytest.raises(ErrataError, match="compares prompts otherwise"):
        make("ibke-retrieval").edit_one(lm, EDITS[1:2], after=first)


@pytest.mark.parametrize("rounds", [1, 3])
def test_what_is_stored_is_what_ibke_alone_writes_in_as_many_rounds(
    lm: LM, make: Make, rounds: int
) -> None:
    stored = make("ibke-retrieval", rounds=rounds, enough=1.0, keep_rank=None)
    alone = make("ibke", rounds=rounds, enough=1.0, joint="sum")
    stored.prepare(lm)
    alone.prepare = lambda lm: None
    alone.adopt(lm, stored.network(lm))
    for edit in EDITS[:3]:
        memory = memory_of(stored.edit_one(lm, [edit]))
        want = {change.path: change for change in alone.edit_one(lm, [edit]).changes}
        assert memory.stores.keys() == want.keys()
        for path, store in memory.stores.items():
            torch.testing.assert_close(store.B @ store.A, want[path].B @ want[path].A)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rounds": 0}, "rounds"),
        ({"enough": 0.0}, "enough"),
        ({"threshold": 1.5}, "cosine"),
        ({"key": "first"}, "key"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    make: Make, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make("ibke-retrieval", **settings)


def test_what_is_automatic_depends_on_the_key(lm: LM, make: Make) -> None:
    for key, block in (("mean", 0), ("last", lm.n_layers - 1)):
        change = memory_of(make("ibke-retrieval", key=key).edit_one(lm, EDITS[:1]))
        assert (change.space.block, change.space.pool) == (block, key)
        assert change.threshold == NEAR[key]  # pyright: ignore[reportArgumentType]
        assert (change.space.white is None) == (key == "last")
    assert issubclass(IbkeRetrieval, Editor)
    assert KeySpace(0).same(KeySpace(0))
