"""Erasing: what takes a fact's place, what becomes of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from tests.tiny_models import MIXTURES, tiny_tokenizer

import errata
from errata.case import Case, Edit
from errata.editors import get_editor
from errata.editors.base import Editor
from errata.editors.erase import ENDS, NAMES, Erase, EraseConfig, erased
from errata.editors.fitting import fitted
from errata.errors import ConfigError, EditError
from errata.evaluation import evaluate
from errata.model.lm import LM
from errata.testing.measured import likelihood, tensors

Make = Callable[..., Editor]
Tiny = Callable[..., LM]


def erase(make: Make, **settings: Any) -> Erase:
    editor = make("erase", **settings)
    assert isinstance(editor, Erase)
    return editor


def test_what_is_said_of_nobody_is_written(tiny: Tiny, make: Make) -> None:
    """The patch is the host's for that text; the state says what went and what came."""
    lm = tiny("gpt2")
    editor = erase(make, names=1)
    patch = editor.edit_one(lm, EDITS[:1])
    ((prompt, old, new),) = patch.state["erased"]
    assert (prompt, old) == (EDITS[0].prompt, EDITS[0].target)
    (name,) = editor._names(EDITS[0])
    assert name in NAMES
    (said,) = lm.generate([f"The capital of {name} is"], editor.config.tokens, stops=ENDS)
    assert new == said.strip()
    host = make("ft", layers=(1,), steps=6, lr=0.05)
    expected = host.edit_one(lm, [replace(EDITS[0], target=new)])
    for found, wanted in zip(tensors(patch), tensors(expected), strict=True):
        assert torch.equal(found, wanted)
    told = [replace(EDITS[0], target=new)]
    before = likelihood(lm, told)
    with patch.applied(lm):
        assert likelihood(lm, told) > before


@pytest.mark.parametrize("host", ["ft", "memit", "rome"])
def test_in_a_mixture_the_expert_of_its_subject_is_written(host: str) -> None:
    """As the host does by itself: each subject's fact is in the expert that it is routed to."""
    lm = LM(MIXTURES["mixtral"](), tiny_tokenizer(), name="tiny-mixtral")
    own = ["steps=5"] if host == "ft" else ["steps=5", "moments_text=world", "moments_samples=200"]
    config = EraseConfig(host=host, host_settings=tuple(own), instead="refusal", refusal="Oslo")
    for edit in EDITS[:2]:
        patch = Erase(config).edit_one(lm, [edit])
        plain = get_editor(host, overrides=own, model=lm.name)
        expected = fitted(plain, lm).edit_one(lm, [replace(edit, target="Oslo")])
        assert [c.path for c in patch.changes] == [c.path for c in expected.changes]
        for found, wanted in zip(tensors(patch), tensors(expected), strict=True):
            assert torch.equal(found, wanted)


def test_the_host_has_the_settings_that_suit_the_model(tiny: Tiny, make: Make) -> None:
    """As it has when it is asked for by name; else an edit breaks models that norm FFN outputs."""
    lm = tiny("gemma2")
    own = ["steps=5", "moments_text=world", "moments_samples=200"]
    suited = fitted(get_editor("memit", overrides=own, model=lm.name), lm)
    assert suited.settings_from.startswith("rule for models that norm")
    editor = Erase(EraseConfig(host="memit", host_settings=tuple(own), instead="refusal"))
    assert editor.edited_layers(lm) == suited.edited_layers(lm)
    patch = editor.edit_one(lm, EDITS[:1])
    assert patch.meta["settings_from"] == suited.settings_from
    expected = suited.edit_one(lm, patch.edits)
    for found, wanted in zip(tensors(patch), tensors(expected), strict=True):
        assert torch.equal(found, wanted)


def test_a_refusal_is_written(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    patch = erase(make, instead="refusal", refusal="a secret").edit_one(lm, EDITS[:1])
    assert patch.state["erased"] == [[EDITS[0].prompt, EDITS[0].target, "a secret"]]
    assert patch.edits == (replace(EDITS[0], target="a secret", target_true=EDITS[0].target),)
    told = [replace(EDITS[0], target="a secret")]
    before = likelihood(lm, told)
    with patch.applied(lm):
        assert likelihood(lm, told) > before


def test_the_true_answer_goes_where_an_edit_names_one() -> None:
    edit = Edit("The capital of France is", "Rome", "France", target_true="Paris")
    assert erased(edit) == "Paris"
    assert erased(replace(edit, target_true=None)) == "Rome"


def test_the_commonest_other_answer_counts(make: Make) -> None:
    edit = replace(EDITS[0], target="Paris")
    editor = erase(make)
    said = ["Paris", " paris and more", "a town", "Rome", "a town", ""]
    assert editor._unknown(edit, said) == "a town"
    with pytest.raises(EditError, match="says the same") as caught:
        editor._unknown(edit, ["Paris", " Paris"])
    assert caught.value.edits == (edit,)
    assert "instead=refusal" in str(caught.value.hint)
    with pytest.raises(EditError, match="says nothing"):
        editor._unknown(edit, ["", " "])


def test_an_erased_fact_is_told_as_done() -> None:
    """What counts is the text that came; the one that went is no edit that failed."""
    lm = errata.load("pocket")
    fact = Edit("The capital of France is the city named", "Paris", "France")
    patch = errata.edit(lm, fact, editor="erase")
    (entry,) = patch.report.edits
    assert entry.taken
    assert entry.edit.target_true == "Paris"
    assert entry.edit.target == patch.state["erased"][0][2] != "Paris"
    assert not patch.report.left_out
    (note,) = errata.get_editor("erase", model="pocket").notes(lm, [fact])
    assert f"{entry.edit.target!r} for 'Paris'" in note


def test_it_asks_once_and_what_is_written_stays_what_it_is(
    tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, calls = tiny("gpt2"), []
    said = lm.generate
    monkeypatch.setattr(
        type(lm), "generate", lambda self, *a, **k: calls.append(1) or said(*a, **k)
    )
    editor = erase(make)
    written = editor.meant(lm, EDITS)
    assert editor.meant(lm, EDITS) == editor.meant(lm, written) == written
    assert len(calls) == 1


def test_an_evaluation_says_that_its_rates_count_other_answers(
    tiny: Tiny, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case("1", (EDITS[0],))
    evaluate(tiny("gpt2"), erase(make, instead="refusal"), [case])
    assert "erase does not write the data's answers" in caplog.text


def test_a_setting_of_the_host_has_a_value(tiny: Tiny, make: Make) -> None:
    with pytest.raises(ConfigError, match="name=value"):
        erase(make, host_settings=("layers",)).edit_one(tiny("gpt2"), EDITS[:1])
