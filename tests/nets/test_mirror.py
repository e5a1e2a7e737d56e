"""The request turned round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from errata.case import Edit
from errata.editors import get_editor
from errata.editors.base_trained import TrainedEditor
from errata.nets.capture import Signals
from errata.nets.mirror import Mirror, mirrors, turned


def test_subject_and_target_change_places() -> None:
    (found,) = mirrors(Edit("The capital of France is", " Rome", "France"))
    assert isinstance(found, Mirror)
    assert (found.prompt, found.target) == ("The capital of Rome is", "France")


def test_the_subject_that_is_meant_is_replaced() -> None:
    edit = Edit("Ann met Anna; Ann is from", "Oslo", "Ann")
    (found,) = mirrors(edit)
    assert found.prompt == "Ann met Anna; Oslo is from"
    (found,) = mirrors(replace(edit, subject_at="first"))
    assert found.prompt == "Oslo met Anna; Ann is from"


@pytest.mark.parametrize("subject", [None, "Germany"])
def test_without_a_subject_there_is_nothing_to_turn(subject: str | None) -> None:
    assert mirrors(Edit("The capital of France is", "Rome", subject)) == []


def test_turned_requests_are_told_apart() -> None:
    edit = Edit("The capital of France is", "Rome", "France")
    owner = torch.tensor([0, 0])
    assert turned(Signals((), owner, (edit, *mirrors(edit)))).tolist() == [False, True]
    assert turned(Signals((), owner)).tolist() == [False, False]


@pytest.mark.parametrize("name", ["ibke", "mend"])
def test_it_is_asked_for_by_a_setting(name: str) -> None:
    edit = Edit("The capital of France is", "Rome", "France")
    for on in (False, True):
        editor = get_editor(name, {"mirror": on})
        assert isinstance(editor, TrainedEditor)
        assert len(editor.with_others([edit, edit])) == (4 if on else 2)
