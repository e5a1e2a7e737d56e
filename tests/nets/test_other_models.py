"""Networks say why they do not fit a model: another quantisation is other weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import build
from tests.nets.samples import small, untrained

from errata.errors import ModelError
from errata.model.lm import LM
from errata.nets import weights


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks for the tiny llama."""
    lm, editor = build("llama", "float32"), small("mend")
    network = untrained(editor, lm)
    settings = editor.settings.model_dump(mode="json")
    return weights.save(
        tmp_path_factory.mktemp("nets") / "best", network, editor="mend", settings=settings,
        lm=lm, card="",
    )  # fmt: skip


def quantised(lm: LM, steps: int) -> LM:
    """Return the model with the weights of its projections rounded to a grid, as GGUF files are."""
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                size = parameter.abs().amax(1, keepdim=True) / steps
                parameter.copy_((parameter / size).round() * size)
    return LM(model, lm.tokenizer, name="tiny-llama-q8")


def test_another_quantisation_is_refused_with_the_reason(saved: Path) -> None:
    lm = quantised(build("llama", "float32"), 127)
    with pytest.raises(ModelError) as refused:
        weights.read_card(saved, "mend", lm)
    assert "another quantisation" in refused.value.message
    assert "tiny-llama-q8" in refused.value.message
    assert "--model tiny-llama" in (refused.value.hint or "")


def test_the_same_checkpoint_in_another_type_is_the_same_model(saved: Path) -> None:
    lm = build("llama", "float32")
    model: Any = copy.deepcopy(lm.model)
    half = LM(model.to(torch.bfloat16), lm.tokenizer, name="tiny-llama")
    assert weights.read_card(saved, "mend", half)["editor"] == "mend"


def test_another_size_is_named(saved: Path) -> None:
    lm = build("gpt2", "float32")
    with pytest.raises(ModelError, match=r": llama, \d+ blocks of .* not gpt2"):
        weights.read_card(saved, "mend", lm)


@pytest.mark.parametrize("shape", [None, 3, {"blocks": 2}, {"blocks": "x", "width": [], "z": 1}])
def test_a_card_without_sizes_is_refused_all_the_same(
    tmp_path: Path, saved: Path, shape: object
) -> None:
    folder = tmp_path / "nets"
    folder.mkdir()
    for name in weights.FILES:
        (folder / name).write_bytes((saved / name).read_bytes())
    card = json.loads((folder / "config.json").read_text())
    card["shape"] = shape
    (folder / "config.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="were trained on"):
        weights.read_card(folder, "mend", build("gpt2", "float32"))
