"""What a patch and a model show of themselves, and how an edit leaves from Python."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from tests.patch.test_patch import patch_of
from tests.tiny_models import TINY, tiny_tokenizer
from transformers import AutoModelForCausalLM

import errata
from errata.case import Edit
from errata.errors import ConfigError, EditError, PatchError
from errata.patch import Dense, LowRank, Patch

FT = {"editor": "ft", "lr": 0.05, "steps": 2}


def test_one_line_each(tiny):
    lm = tiny("gpt2")
    patch = patch_of(lm, bias=True, module=True)
    for shown in (repr(patch), repr(lm), *map(repr, patch.changes)):
        assert "\n" not in shown
        assert len(shown) < 160
    assert "rank 2" in repr(patch)
    assert "1 whole matrix" in repr(patch)
    assert "1 whole vector" in repr(patch)
    assert "1 shift module" in repr(patch)
    for word in ("tiny-gpt2", "3 blocks", "M parameters", "float32", "cpu"):
        assert word in repr(lm)
    assert repr(Patch()) == "<Patch: 0 edits · nothing changed>"


def test_patches_are_compared_as_objects(tiny):
    lm = tiny("gpt2")
    one, two = patch_of(lm), patch_of(lm)
    assert one != two
    assert one == one
    assert len({one, two, one}) == 2
    assert len({*one.changes, *two.changes}) == len(one.changes) + len(two.changes)
    assert one.changes[0] != two.changes[0]


def test_html_escapes_what_people_write(tiny):
    patch = Patch((), (Edit("<b>& is", "<script>alert(1)</script>"),), {}, {"editor": "<i>"})
    shown = patch._repr_html_()
    assert "<script>" not in shown
    assert "<i>" not in shown
    assert "&lt;b&gt;&amp; is" in shown


def test_meta_is_read_only_all_the_way(tiny):
    patch = patch_of(tiny("gpt2"))
    with pytest.raises(TypeError):
        patch.meta["editor"] = "me"  # pyright: ignore[reportIndexIssue]
    with pytest.raises(TypeError):
        patch.meta["config"]["layer"] = 2
    assert patch.meta["config"]["layer"] == 1


def test_patches_can_be_copied_and_sent(tiny):
    patch = patch_of(tiny("gpt2"))
    for again in (copy.deepcopy(patch), pickle.loads(pickle.dumps(patch))):
        assert again.edits == patch.edits
        assert dict(again.meta) == dict(patch.meta)
        assert torch.equal(again.changes[0].B, patch.changes[0].B)
        with pytest.raises(TypeError):
            again.meta["editor"] = "me"


def test_results_belong_to_their_edits(tiny, tmp_path):
    patch = patch_of(tiny("gpt2"))
    noted = Patch(patch.changes, patch.edits, {}, patch.meta, ({"taken": True, "p_after": 0.5},))
    noted.save(tmp_path / "p")
    assert Patch.load(tmp_path / "p").results == noted.results
    assert (noted + noted).results == ()
    assert noted.scaled(0.5).results == ()
    with pytest.raises(PatchError, match="2 results for 1 edits"):
        Patch(patch.changes, patch.edits, {}, patch.meta, ({}, {}))


def test_many_edits_in_one_call(tiny):
    lm = tiny("gpt2")
    edits = [Edit("The capital of France is", "Rome"), Edit("The capital of Italy is", "Paris")]
    patch = errata.edit(lm, edits, **FT)
    assert patch.edits == tuple(edits)
    assert errata.edit(lm, edits[0], **FT).edits == (edits[0],)
    in_turn = errata.edit(lm, edits, regime="sequential", **FT)
    assert in_turn.edits == tuple(edits)
    assert len(in_turn.changes) == 2
    with pytest.raises(ConfigError, match="target is missing"):
        errata.edit(lm, "The capital of France is")
    with pytest.raises(ConfigError, match="bring their own"):
        errata.edit(lm, edits, "Rome")
    with pytest.raises(ConfigError, match="unknown regime"):
        errata.edit(lm, edits, regime="both", **FT)
    with pytest.raises(EditError, match="no edit"):
        errata.edit(lm, [], **FT)


def test_compare_is_what_the_model_says(tiny):
    lm = tiny("gpt2")
    patch = patch_of(lm)
    prompts = ["The capital of France is", "The river flows through the"]
    plain = lm.generate(prompts, 4)
    with patch.applied(lm):
        under = lm.generate(prompts, 4)
    views = patch.compare(lm, prompts, ["Rome", None], new_tokens=4)
    assert [view.says_before for view in views] == plain
    assert [view.says_after for view in views] == under
    assert views[0].p_after is not None
    assert views[1].p_after is None
    assert all(prompt in views.table() for prompt in prompts)
    assert repr(views) == views.table()
    assert "<table>" in views._repr_html_()


def test_to_production_and_back(tmp_path):
    TINY["llama"]().save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    lm = errata.load(str(tmp_path / "m"))
    patch = patch_of(lm)
    report = patch.to_lora(lm, tmp_path / "lora")
    back = Patch.from_lora(lm, tmp_path / "lora")
    assert back.edits == patch.edits
    assert back.fingerprint == patch.fingerprint
    name = report.modules[0]
    (change,) = (c for c in back.changes if c.path == name)
    dense = sum(c.delta if isinstance(c, Dense) else c.B @ c.A for c in patch.changes)
    torch.testing.assert_close(change.B @ change.A, dense, rtol=1e-4, atol=1e-4)
    patch.to_merged(lm, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with patch.applied(lm):
        expected = lm.model.get_parameter(f"{name}.weight").clone()
    assert torch.equal(merged.get_parameter(f"{name}.weight"), expected)
    record = json.loads((tmp_path / "merged" / "errata.json").read_text())
    assert record["fingerprint"] == lm.fingerprint
    assert record["edits"][0]["target"] == "Rome"


def test_an_exported_adapter_is_refused_on_another_model_of_its_shape(tmp_path):
    TINY["llama"]().save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    lm = errata.load(str(tmp_path / "m"))
    patch_of(lm).to_lora(lm, tmp_path / "lora")
    other = TINY["llama"]()
    with torch.no_grad():
        next(iter(other.parameters()))[0] += 1
    other.save_pretrained(tmp_path / "o")
    tiny_tokenizer().save_pretrained(tmp_path / "o")
    with pytest.raises(PatchError, match="this patch was made for"):
        Patch.from_lora(errata.load(str(tmp_path / "o")), tmp_path / "lora")


@pytest.mark.parametrize(
    "options",
    [
        {"alpha_pattern": {".*\\.layers\\.1\\..*down_proj": 64}},
        {"alpha_pattern": {"layers.1.mlp.down_proj": 64}},
        {"alpha_pattern": {"1.mlp.down_proj": 64, "down_proj": 3}},
        {"alpha_pattern": {"down_proj": 3, "1.mlp.down_proj": 64}},
        {"alpha_pattern": {"mlp.down_proj": 64}},
        {"alpha_pattern": {"layers.*": 64}, "use_rslora": True},
        {"rank_pattern": {"layers.1.mlp.down_proj": 2}, "alpha_pattern": {"^.*1.*$": 7}},
    ],
    ids=str,
)
def test_patterns_mean_what_they_mean_in_peft(tmp_path, options):
    """PEFT reads the patterns as regular expressions, and the first one that matches counts."""
    from peft import LoraConfig, PeftModel, get_peft_model

    TINY["llama"]().save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    lm = errata.load(str(tmp_path / "m"))
    wanted = LoraConfig(r=3, lora_alpha=5, target_modules=["down_proj"], **options)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "m"), wanted)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.save_pretrained(str(tmp_path / "theirs"))
    deltas = {c.path: c.B @ c.A for c in Patch.from_lora(lm, tmp_path / "theirs").changes}
    # as PEFT reads it from disk, where the patterns are sorted
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    modules = dict(PeftModel.from_pretrained(fresh, str(tmp_path / "theirs")).named_modules())
    assert deltas
    for path, delta in deltas.items():
        theirs = modules[f"base_model.model.{path}"].get_delta_weight("default")
        torch.testing.assert_close(delta, theirs, rtol=1e-5, atol=1e-6)


def test_every_public_name_has_its_place_in_the_documentation():
    page = Path(errata.__file__).parents[2] / "docs" / "api.md"
    if not page.is_file():
        pytest.skip("the documentation is not in this installation")
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(?:errata\.)?(\w+)", text, re.MULTILINE))
    assert set(errata.__all__) - {"__version__"} <= named
    assert "TrainConfig" in errata.__all__
    for name, value in vars(Patch).items():
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            assert f"`{name}" in text or f".{name}" in text, f"Patch.{name} is missing in api.md"


def test_a_low_rank_change_shows_its_shapes():
    assert repr(LowRank("a.b", torch.ones(2, 1), torch.ones(1, 3))) == (
        "<LowRank: change of a.b; B 2×1, A 1×3>"
    )
