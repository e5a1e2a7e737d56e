"""Files of second moments: read back as they were, and refused where they do not belong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.locate.test_moments import CORPUS, LAYERS, retokenised

from errata.errors import DataError, EditError
from errata.locate.moment_files import Moment, save_moments, tokenizer_digest
from errata.locate.moments import MomentSettings, count_moments, get_moments
from errata.model.lm import LM


def test_moments_may_be_given(tiny: Callable[..., LM], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    lm = tiny("gpt2")
    f = lm.site(1).d_in
    save_file({"mom2.1": torch.eye(f)}, tmp_path / "m.safetensors")
    settings = MomentSettings(moments_file=str(tmp_path / "m.safetensors"))
    assert torch.equal(get_moments(lm, [1], settings)[1].matrix, torch.eye(f))
    with pytest.raises(DataError, match=r"mom2\.0"):
        get_moments(lm, [0], settings)
    save_file({"mom2.1": torch.eye(3)}, tmp_path / "m.safetensors")
    with pytest.raises(EditError, match="shape"):
        get_moments(lm, [1], settings)
    (tmp_path / "m.safetensors").write_text("nonsense")
    with pytest.raises(DataError, match="cannot read"):
        get_moments(lm, [1], settings)


def moments_of(lm: LM, layers: list[int]) -> dict[int, Moment]:
    return count_moments(lm, CORPUS, layers, 256, dtype=torch.float64)


def test_saved_moments_are_read_back(tiny: Callable[..., LM], tmp_path: Path) -> None:
    lm = tiny("gpt2")
    moments = moments_of(lm, LAYERS)
    save_moments(tmp_path / "m.safetensors", lm, moments)
    settings = MomentSettings(moments_file=str(tmp_path / "m.safetensors"))
    again = get_moments(lm, [2], settings)
    assert list(again) == [2]
    assert torch.equal(again[2].matrix, moments[2].matrix)
    assert again[2].tokens == moments[2].tokens > 0
    with pytest.raises(DataError, match=r"no tensor mom2\.1; it holds mom2\.0, mom2\.2"):
        get_moments(lm, [1], settings)


def test_moments_of_another_model_layer_or_tokenizer_are_refused(
    tiny: Callable[..., LM], tmp_path: Path
) -> None:
    lm, path = tiny("gpt2"), tmp_path / "m.safetensors"
    settings = MomentSettings(moments_file=str(path))
    save_moments(path, lm, moments_of(lm, [0]))
    single = get_moments(tiny("gpt2", "float32"), [0], settings)[0]  # the same checkpoint
    assert torch.equal(single.matrix, moments_of(lm, [0])[0].matrix)
    with pytest.raises(EditError, match="another tokenizer"):
        get_moments(retokenised(lm), [0], settings)
    edited = copy.deepcopy(lm.model)
    next(edited.parameters()).data[0, 0] += 1
    with pytest.raises(EditError, match="counted on tiny-gpt2; tiny-gpt2 has other weights"):
        get_moments(LM(edited, lm.tokenizer, name=lm.name), [0], settings)

    save_moments(path, lm, moments_of(lm, [0]))
    alter(path, lambda facts: facts["layers"]["0"].update(site=lm.site(1).path))
    with pytest.raises(EditError, match=f"counted at {lm.site(1).path}, not at"):
        get_moments(lm, [0], settings)


def alter(
    path: Path, change: Callable[[dict], object] = lambda facts: None, add: float = 0
) -> None:
    """Write the file again with other facts, or with another matrix."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as handle:
        facts = json.loads(handle.metadata()["errata_moments"])
        tensors = {name: handle.get_tensor(name) + add for name in handle.keys()}
    change(facts)
    save_file(tensors, path, metadata={"errata_moments": json.dumps(facts)})


def test_damaged_moments_are_refused(tiny: Callable[..., LM], tmp_path: Path) -> None:
    lm, path = tiny("gpt2"), tmp_path / "m.safetensors"
    save_moments(path, lm, moments_of(lm, [0]))
    alter(path, add=1e-6)
    with pytest.raises(DataError, match="damaged"):
        get_moments(lm, [0], MomentSettings(moments_file=str(path)))


def test_the_tokenizer_digest_leaves_out_what_calls_change(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    before = tokenizer_digest(lm)
    lm.text_rows(["The capital of France"], 2)  # sets the truncation of the tokenizer
    assert tokenizer_digest(lm) == before
    assert tokenizer_digest(retokenised(lm)) != before
