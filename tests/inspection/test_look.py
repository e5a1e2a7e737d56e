"""Edits are asked after they are made, and so is what lies around them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import errata
from errata.case import Edit
from errata.errors import PatchError
from errata.inspection import sentences
from errata.inspection.look import Answer, followed, look, runs_on
from errata.model.logprobs import RowScore
from errata.model.weights import weight_fingerprint
from errata.patch import Patch
from errata.testing import EDITS
from errata.testing.measured import equal, snapshot

FT = {"editor": "ft", "lr": 0.05, "steps": 12}
HARD = {"editor": "ft", "lr": 0.5, "steps": 12}
FLOAT32 = 1e-5
"""Log probabilities come in float32: their sums over a vocabulary are off by a few millionths."""
WEAK = {"editor": "ft", "lr": 1e-6, "steps": 1}


@pytest.mark.parametrize("settings", [FT, WEAK], ids=["taken", "not taken"])
def test_taken_is_what_greedy_decoding_says(tiny, settings) -> None:
    lm = tiny("gpt2")
    patch = errata.edit(lm, EDITS[:2], **settings)
    with patch.applied(lm):
        for entry in patch.report.edits:
            row = lm.row(entry.edit.prompt, entry.edit.target)
            said, ids = [], list(row.ids[: row.prompt_length])
            for _ in row.labels:  # token after token, with the model itself
                best = int(lm.model(torch.tensor([ids])).logits[0, -1].argmax())
                said.append(best)
                ids.append(best)
            assert entry.taken is (tuple(said) == row.labels)
            score = lm.score([row])[0]
            assert entry.p_after == pytest.approx(float(torch.tensor(score.logprobs).sum().exp()))
    taken = [entry.taken for entry in patch.report.edits]
    assert patch.report.taken == sum(taken)
    assert all(taken) is (settings is FT)


@pytest.mark.parametrize(
    ("said", "behind", "on"),
    [("Ulm", "ab", True), ("Ulm", ",", False), ("Ulm", " ab", False), ("Ulm", "", False),
     ("19", "84", True), ("in 19", "th", True), ("Ульм", "ск", True), ("東京", "都", False),
     ("C++", "x", False), ("", "x", False)],
)  # fmt: skip
def test_a_word_that_goes_on_is_another_word(said: str, behind: str, on: bool) -> None:
    assert runs_on(said, behind) is on


def test_an_answer_that_becomes_another_word_is_told(tiny) -> None:
    """A score whose argmax behind the answer is each token of the vocabulary in turn."""
    lm = tiny("gpt2")
    row = lm.row("The capital of France is", "Ulm")
    asked = followed(lm, row)
    assert asked.ids[: len(row.ids)] == row.ids
    assert lm.text(asked.ids).endswith("Ulm")
    n, seen = len(row.labels), set()
    for token in range(lm.model.config.vocab_size):
        score = RowScore((-0.1,) * (n + 1), (*row.labels, token), (0,) * (n + 1))
        answer = Answer.of(lm, row, score)
        assert (answer.right, answer.tokens) == (n, n)
        assert answer.probability == pytest.approx(math.exp(-0.1 * n))
        whole = lm.text([*row.labels, token])
        word = re.match(r"[A-Za-z0-9]+", whole.strip())
        if word and whole.isascii():
            assert answer.taken
            assert answer.whole is (word[0] == "Ulm"), whole
            seen.add(answer.whole)
    assert seen == {True, False}
    assert Answer.of(lm, row, lm.score([row])[0]).runs_on is False  # nothing was asked behind it


def test_the_model_is_what_it_was(tiny) -> None:
    lm = tiny("qwen3")
    before = snapshot(lm)
    patch = errata.edit(lm, EDITS[:1], ask=False, **HARD)
    look(lm, patch, EDITS[:1])
    assert equal(snapshot(lm), before)


def test_what_was_not_taken_says_what_to_try(tiny) -> None:
    (entry,) = errata.edit(tiny("gpt2"), EDITS[:1], **WEAK).report.edits
    assert entry.taken is False
    assert entry.says is not None
    assert entry.tried == "ft, block 2, 1 step"
    assert "more steps: --set steps=2" in entry.advice
    assert "another block: --set layers=[1]" in entry.advice
    assert "another editor: --editor rome" in entry.advice


def test_the_advice_can_be_typed(tiny) -> None:
    """Whatever is advised for the settings of any editor is a setting that it has."""
    from errata.config import parse_overrides
    from errata.editors import editors, get_editor
    from errata.inspection.advice import advice

    lm = tiny("gpt2")
    for name, entry in editors.entries.items():
        if not entry.is_own:
            continue
        editor = get_editor(name)
        for line in advice(lm, editor, EDITS[0], {"says_after": "x", "tokens": 1}, 3):
            command = line.rpartition(": ")[2]
            flag, _, value = command.partition(" ")
            if flag == "--set":
                values = command.split()[1::2]
                assert command == " ".join(f"--set {one}" for one in values)
                get_editor(name, overrides=values)
                assert parse_overrides(values)
            elif flag == "--editor":
                assert value in editors
                assert value != name
            else:
                assert command == "--regime sequential"


@pytest.mark.parametrize(
    ("prompt", "target", "word"),
    [
        ("The capital of France is", "Rome\n", "--target Rome"),
        ("The capital of France is ", "Rome", "--prompt 'The capital of France is'"),
        ("The capital of France is", "Rome " * 60, "one fact per edit"),
    ],
)
def test_odd_texts_are_told(tiny, prompt: str, target: str, word: str) -> None:
    (entry,) = errata.edit(tiny("gpt2"), prompt, target, **WEAK).report.edits
    assert entry.taken is False
    assert any(word in line for line in entry.advice), entry.advice
    assert entry.right is not None
    assert entry.tokens is not None
    assert entry.right < entry.tokens


# ---------------------------------------------------------------------- what else moved


def test_moved_is_another_greedy_answer_than_the_unedited_models(tiny) -> None:
    lm = tiny("gpt2")
    patch = errata.edit(lm, EDITS[:1], **HARD)
    report = patch.report
    assert report.moved
    assert len(report.bare) == 1
    for entry in (*report.neighbours, *report.bare):
        (old,) = lm.top([entry.prompt], 1)
        with patch.applied(lm):
            (new,) = lm.top([entry.prompt], 1)
        if old[0][0].strip().isalpha() and entry.before == old[0][0].strip():
            assert entry.moved is (old[0][0] != new[0][0])
    share = len(report.moved) / len(report.neighbours)
    assert report.metrics()["neighbours"] == share
    assert f"{len(report.moved)} of 12 neighbours moved: " in report.line()


def test_nothing_moves_under_a_patch_that_changes_nothing(tiny) -> None:
    lm = tiny("gpt2")
    report = errata.edit(lm, EDITS[:1], editor="none").report
    assert report.metrics() == {
        "neighbours": 0.0, "bare": 0.0, "sentences": 0.0, "sentences_max": 0.0,
    }  # fmt: skip
    assert report.line() == "0 of 12 neighbours moved · general sentences KL 0"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_divergences_are_those_of_the_whole_distribution(tiny, kind: str) -> None:
    lm = tiny(kind)
    patch = errata.edit(lm, EDITS[:1], ask=False, **HARD)
    rows = sentences.rows_of(lm)
    assert len(rows) == 50
    before = sentences.next_tokens(lm, rows).double()
    with patch.applied(lm):
        after = sentences.next_tokens(lm, rows).double()
    whole = torch.nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(-1)
    for kept in (8, before.shape[-1]):
        logp, ids = before.topk(kept, dim=-1)
        found = sentences.divergence((ids, logp), after)
        assert bool((found <= whole + FLOAT32).all())  # of a coarser distribution: never more
        if kept == before.shape[-1]:
            torch.testing.assert_close(found, whole, rtol=0, atol=FLOAT32)
    told = look(lm, patch, EDITS[:1]).report.sentences
    logp, ids = before.topk(min(sentences.TOP, before.shape[-1]), dim=-1)
    expected = sentences.divergence((ids, logp), after)
    assert told is not None
    assert told.mean == pytest.approx(float(expected.mean()), abs=FLOAT32)
    assert told.most == pytest.approx(float(expected.max()), abs=FLOAT32)


def test_a_ruined_model_has_moved_infinitely(tiny) -> None:
    lm = tiny("gpt2")
    kept = sentences.unedited(lm)
    now = torch.full_like(sentences.next_tokens(lm, sentences.rows_of(lm)), float("nan"))
    assert torch.isinf(sentences.divergence(kept, now)).all()


def test_what_is_said_under_an_applied_patch_is_not_taken_for_the_models_own(tiny) -> None:
    lm = tiny("llama")
    loud = errata.edit(lm, EDITS[:1], ask=False, **HARD)
    own = sentences.unedited(lm)
    assert lm.installed.nothing
    with loud.applied(lm):
        assert not lm.installed.nothing
        other = sentences.unedited(lm)
    assert lm.installed.nothing
    assert not torch.equal(other[1], own[1])
    assert sentences.unedited(lm) is own


def test_questions_that_do_not_fit_are_left_out(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("gpt2")
    length = len(lm.row(EDITS[0].prompt).ids)
    patch = errata.edit(lm, EDITS[:1], ask=False, **FT)
    monkeypatch.setitem(vars(lm), "max_length", length + 2)
    report = look(lm, patch, EDITS[:1]).report
    assert report.asked
    assert len(report.neighbours) < 12


def test_it_can_be_left_out(tiny) -> None:
    lm = tiny("gpt2")
    report = errata.edit(lm, EDITS[:1], neighbourhood=False, **FT).report
    assert report.asked
    assert report.line() == ""
    assert report.metrics()["neighbours"] is None
    assert not errata.edit(lm, EDITS[:1], ask=False, **FT).report.asked


# ---------------------------------------------------------------------- earlier edits


def test_earlier_edits_that_no_longer_hold_are_named(tiny) -> None:
    lm = tiny("gpt2")
    first = errata.edit(lm, EDITS[:1], **FT)
    assert first.report.taken == 1
    # a second patch that has lost what the first one changed
    second = errata.edit(lm, EDITS[1:2], ask=False, **FT)
    second = replace(second, edits=(*first.edits, *second.edits))
    report = look(lm, second, EDITS[1:2], first).report
    (lost,) = report.lost
    assert lost.edit.prompt == EDITS[0].prompt
    assert lost.taken_before is True
    assert lost.taken is False
    assert lost.says
    # what the new request answers otherwise is replaced, not lost
    other = replace(EDITS[0], target="Paris")
    assert look(lm, errata.edit(lm, [other], after=first, **FT), [other], first).report.lost == ()


def test_before_is_under_the_earlier_patch(tiny) -> None:
    lm = tiny("gpt2")
    first = errata.edit(lm, EDITS[:1], **FT)
    again = errata.edit(lm, EDITS[:1], after=first, **WEAK)
    (entry,) = again.report.on(EDITS[:1])
    assert entry.taken_before is True
    assert entry.p_before == pytest.approx(first.report.edits[0].p_after)


# ---------------------------------------------------------------------- on disk


def test_the_report_is_kept_with_the_patch(tiny, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    patch = errata.edit(lm, EDITS[:2], **WEAK)
    loaded = Patch.load(patch.save(tmp_path / "patch"))
    assert loaded.report == patch.report
    assert str(loaded.report) == str(patch.report)
    assert "✗ The capital of France is → Rome" in str(patch.report)
    with pytest.raises(TypeError):
        patch.aftermath["neighbours"] = ()  # pyright: ignore[reportIndexIssue]
    assert (patch + patch).report.line() == ""
    assert weight_fingerprint(lm.model) == lm.fingerprint


def test_patches_without_one_still_load(tiny, tmp_path: Path) -> None:
    patch = errata.edit(tiny("gpt2"), EDITS[:1], **FT)
    folder = patch.save(tmp_path / "patch")
    document = json.loads((folder / "patch.json").read_text())
    del document["aftermath"], document["results"]
    (folder / "patch.json").write_text(json.dumps(document))
    report = Patch.load(folder).report
    assert not report.asked
    assert report.edits[0].edit == EDITS[0]
    document["aftermath"] = {"neighbours": ["no object"]}
    (folder / "patch.json").write_text(json.dumps(document))
    with pytest.raises(PatchError, match="aftermath"):
        Patch.load(folder)


@pytest.mark.parametrize(
    ("editor", "settings"),
    [
        ("grace", {"steps": 2}),
        ("ike", {"demo_count": 0}),
        ("r_rome", {"contexts": "bare", "steps": 2, "mom2_adjustment": False}),
    ],
)
def test_patches_of_every_kind_are_asked(tiny, editor: str, settings: dict) -> None:
    edit = Edit("The capital of France is", "Rome", "France")
    report = errata.edit(tiny("gpt2"), edit, editor=editor, **settings).report
    assert report.asked
    assert len(report.neighbours) == 12
    assert report.sentences is not None
