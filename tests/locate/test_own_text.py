"""Text that a model writes itself: seeded, kept, the same however much is wanted."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import errata
from errata.case import Edit
from errata.editors import get_editor
from errata.errors import DataError
from errata.locate import own_text
from errata.locate.moment_files import Moment, given_moments, save_moments
from errata.locate.moments import MomentSettings, cached_layers, get_moments
from errata.locate.own_text import Unwritten, sampled, start_id, text_for
from errata.model.lm import LM
from errata.model.tokens import Row

SHORT = 12


@pytest.fixture(autouse=True)
def _short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_text, "LENGTH", SHORT)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_text, "hub_answers", lambda: False)


def one_by_one(lm: LM, seed: str, length: int, top_k: int) -> list[int]:
    """A text alone, whole rows at every step, probabilities over the whole vocabulary."""
    draw, ids = random.Random(seed), [start_id(lm)]
    while len(ids) < length:
        logits: Tensor = lm.model(torch.tensor([ids])).logits[0, -1].double()
        values, tokens = logits.float().sort(descending=True)
        kept = values[:top_k].double().softmax(0)
        point = draw.random()
        place = next(i for i, share in enumerate(kept.cumsum(0).tolist()) if point <= share)
        token = int(tokens[place])
        if token in lm.stop_ids:
            break
        ids.append(token)
    return ids[1:]


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_texts_are_those_of_a_loop_over_whole_rows(tiny: Callable[..., LM], name: str) -> None:
    lm = tiny(name)
    start = Row((start_id(lm),), (0,), (), 1)
    seeds = [f"0/{number}" for number in range(6)]
    found = sampled(lm, start, seeds, SHORT, top_k=20)
    assert found == [one_by_one(lm, seed, SHORT, 20) for seed in seeds]
    assert len({tuple(ids) for ids in found}) == len(found)


def test_more_text_continues_less_text(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    few, more = text_for(lm, "self", 1000, 30), text_for(lm, "self", 1000, 90)
    assert more.texts[: len(few.texts)] == few.texts
    assert len(more.texts) > len(few.texts)
    assert more.id != few.id
    assert text_for(lm, "self", 1000, 30) == few  # whatever else the cache holds by now


def test_text_is_kept_and_belongs_to_the_weights(
    tiny: Callable[..., LM], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = text_for(tiny("gpt2"), "self", 5), text_for(tiny("qwen3"), "self", 5)
    assert one.texts != other.texts
    assert len(list((cache_folder / "texts").iterdir())) == 2

    def nothing(*args: object, **kwargs: object) -> None:
        raise AssertionError("it is there")

    monkeypatch.setattr(own_text, "sampled", nothing)
    assert text_for(tiny("gpt2"), "self", 5) == one


def test_text_that_is_looked_for_is_not_written(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    with pytest.raises(Unwritten, match="is not there yet"):
        text_for(lm, "self", 4, 300, write=False)
    assert cached_layers(lm, [1], MomentSettings(moments_text="self", moments_samples=4)) == []
    written = text_for(lm, "self", 4, 300)
    assert text_for(lm, "self", 4, 300, write=False) == written
    with pytest.raises(Unwritten):
        text_for(lm, "self", 400, 30000, write=False)


def test_an_interrupted_run_goes_on(
    tiny: Callable[..., LM], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2")
    whole = text_for(lm, "self", 7)
    for path in (cache_folder / "texts").iterdir():
        path.unlink()
    parts, real = [], own_text.sampled

    def first(lm: LM, start: Row, seeds: list[str], length: int, **more: object) -> list[list[int]]:
        parts.append(len(seeds))
        if len(parts) == 3:
            raise KeyboardInterrupt
        return real(lm, start, seeds, length, **more)

    monkeypatch.setattr(own_text, "sampled", first)
    monkeypatch.setattr(own_text, "parts_of", lambda lm, rows, limits: [[0, 1][: len(rows)]])
    with pytest.raises(KeyboardInterrupt):
        text_for(lm, "self", 7)
    assert text_for(lm, "self", 7) == whole
    assert parts == [2, 2, 2, 2, 1]


def test_without_a_hub_auto_is_its_own_text(
    tiny: Callable[..., LM], no_hub: None, caplog: pytest.LogCaptureFixture
) -> None:
    lm = tiny("gptj")
    with caplog.at_level(logging.WARNING):
        assert text_for(lm, "auto", 3) == text_for(lm, "self", 3)
        text_for(lm, "auto", 3)
    assert caplog.text.count("the Hub cannot be reached") == 1
    with pytest.raises(DataError, match="no such file"):  # what was asked for by name is not
        text_for(lm, "nowhere.txt", 3)


def test_pocket_keeps_its_world(no_hub: None) -> None:
    assert text_for(errata.load("pocket"), "auto", 3).name == "the built-in world"


@pytest.mark.parametrize(
    ("environment", "answers"),
    [({"HF_HUB_OFFLINE": "1"}, False), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, False)],
)
def test_whether_the_hub_answers_is_known_at_once(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], answers: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    own_text.hub_answers.cache_clear()
    try:
        assert own_text.hub_answers() is answers
    finally:
        own_text.hub_answers.cache_clear()


@pytest.mark.parametrize("editor", ["rome", "memit", "alphaedit"])
def test_the_patch_says_what_moments_were_counted_on(
    tiny: Callable[..., LM], editor: str, no_hub: None
) -> None:
    lm = tiny("gpt2")
    quick = {"steps": 2, "contexts": "bare", "ridge": 1e-2}
    made = get_editor(editor, quick)
    edits = [Edit("The capital of France is", "Rome", subject="France")]
    patch = made.edit_one(lm, edits)
    assert "wrote itself (seed 0)" in patch.meta["moments_from"]
    assert patch.meta["moments_from"].split()[1:3] == ["tokens", "of"]
    assert any("wrote itself" in note for note in made.notes(lm, edits))


def test_a_file_of_moments_says_its_text(tiny: Callable[..., LM], tmp_path: Path) -> None:
    lm, path = tiny("gpt2"), tmp_path / "moments.safetensors"
    found = get_moments(lm, [0], MomentSettings(moments_text="self", moments_samples=4))
    assert "wrote itself" in found[0].source
    save_moments(path, lm, found)
    assert given_moments(lm, [0], path)[0].source == found[0].source
    save_moments(path, lm, {0: Moment(found[0].matrix, 3)})
    assert given_moments(lm, [0], path)[0].source == ""
