"""A run of a trained editor does not go on with other networks than it was started with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.case import Case, Edit
from errata.data import LoadedData
from errata.editors.base import Editor
from errata.editors.base_trained import TrainedEditor
from errata.errors import RunError
from errata.evaluation import evaluate
from errata.model.lm import LM


def test_other_networks_are_another_configuration(
    tiny: Callable[..., LM], make: Callable[..., Editor], tmp_path: Path
) -> None:
    lm: Any = tiny("gpt2")
    cases = tuple(
        Case(str(i), (Edit("The mayor of Paris lives in", town),))
        for i, town in enumerate(["Rome", "Oslo"])
    )
    data = LoadedData("some", cases, "1", "here", None)
    editor = make("mend")
    assert isinstance(editor, TrainedEditor)
    editor.prepare(lm)
    vars(editor).pop("prepare")  # the fixture's, which would make them again
    evaluate(lm, editor, data, out=tmp_path)
    with torch.no_grad():
        for parameter in editor.network(lm).parameters():
            parameter.mul_(1.5)
    with pytest.raises(RunError, match=r"editor\.networks was"):
        evaluate(lm, editor, data, out=tmp_path, resume=True)
