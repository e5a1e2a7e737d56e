"""Erasing: what takes a fact's place, what becomes of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS

from errata.case import Edit
from errata.editors.base import Editor
from errata.editors.erase import ENDS, NAMES, Erase, erased
from errata.errors import ConfigError, EditError
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


def test_a_refusal_is_written(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    patch = erase(make, instead="refusal", refusal="a secret").edit_one(lm, EDITS[:1])
    assert patch.state["erased"] == [[EDITS[0].prompt, EDITS[0].target, "a secret"]]
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
    assert editor._unknown(edit, said).target == "a town"
    with pytest.raises(EditError, match="says the same") as caught:
        editor._unknown(edit, ["Paris", " Paris"])
    assert caught.value.edits == (edit,)
    assert "instead=refusal" in str(caught.value.hint)
    with pytest.raises(EditError, match="says nothing"):
        editor._unknown(edit, ["", " "])


def test_a_setting_of_the_host_has_a_value(tiny: Tiny, make: Make) -> None:
    with pytest.raises(ConfigError, match="name=value"):
        erase(make, host_settings=("layers",)).edit_one(tiny("gpt2"), EDITS[:1])
