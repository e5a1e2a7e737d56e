"""What can be done with a finished patch: shown, asked, composed, scaled; and what edit says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import errata as package
from errata import Patch
from errata.patch.folder import same_tensors
from tests.cli.conftest import FACT, FAST, Errata, tree
from tests.tiny_models import TINY, tiny_tokenizer

ITALY = ("--prompt", "The capital of Italy is", "--target", "Paris", "--subject", "Italy")
STRONG = ("--editor", "ft", "--set", "lr=0.05", "--set", "steps=30")


@pytest.fixture
def second(errata: Errata, model: str, patch: Path) -> Path:
    assert errata("edit", "-m", model, *ITALY, *FAST, "--out", "second").code == 0
    return Path("second")


# ---------------------------------------------------------------------- show


def test_show_says_what_a_patch_is(errata: Errata, model: str, patch: Path) -> None:
    found = errata("show", patch, "--json").json
    own = Patch.load(patch)
    assert found["editor"] == "rome"
    assert found["model"] == model
    assert found["fingerprint"] == own.fingerprint
    assert found["bytes"] == own.nbytes
    assert found["errata"] == package.__version__
    assert found["made"].endswith("+00:00")
    assert found["settings"]["steps"] == 2
    (edit,) = found["edits"]
    assert (edit["prompt"], edit["target"]) == ("The capital of France is", "Rome")
    assert 0 <= edit["result"]["p_after"] <= 1
    text = errata("show", patch).stdout
    for word in ("rome", "block", "rank 1", "The capital of France is → Rome", own.meta["made"]):
        assert word in text


def test_show_reads_patches_of_older_versions(errata: Errata, patch: Path) -> None:
    path = patch / "patch.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["results"], document["meta"]["made"]
    path.write_text(json.dumps(document), encoding="utf-8")
    found = errata("show", patch, "--json").json
    assert found["made"] is None
    assert found["edits"][0]["result"] is None
    assert errata("verify", patch).code == 0


def test_show_reads_exports(errata: Errata, patch: Path) -> None:
    own = errata("show", patch, "--json").json
    forms = {"lora": "adapter", "gguf": "adapter for llama.cpp", "merged": "merged"}
    for form, kind in forms.items():
        assert errata("export", patch, "--to", form, "--out", form).code == 0
        found = errata("show", form, "--json").json
        assert found["kind"] == kind
        assert found["fingerprint"] == own["fingerprint"]
        assert found["edits"][0]["prompt"] == own["edits"][0]["prompt"]
        assert errata("show", form).code == 0
        card = (Path(form) / "README.md").read_text(encoding="utf-8")
        for word in ("The capital of France is", "Rome", own["fingerprint"], "rome"):
            assert word in card
    # the record of weights that were changed since says nothing
    weights = Path("merged/model.safetensors")
    weights.write_bytes(weights.read_bytes() + b" ")
    done = errata("show", "merged")
    assert (done.code, done.stdout) == (1, "")
    assert "no record says what was edited" in done.stderr


# ---------------------------------------------------------------------- ask


def test_ask_shows_the_base_beside_the_patch(errata: Errata, model: str, patch: Path) -> None:
    prompts = ("--prompt", "The capital of France is", "--prompt", "The capital of Italy is")
    found = errata("ask", patch, *prompts, "--tokens", "3", "--json").json
    lm = package.load(model)
    plain = lm.generate(["The capital of France is", "The capital of Italy is"], 3)
    with Patch.load(patch).applied(lm):
        under = lm.generate(["The capital of France is", "The capital of Italy is"], 3)
    assert [answer["base"]["says"] for answer in found["answers"]] == plain
    assert [answer["patch"]["says"] for answer in found["answers"]] == under
    assert len(found["answers"][0]["patch"]["top"]) == 5
    assert errata("ask", patch, *prompts).code == 0
    found = errata("ask", model, *prompts, "--tokens", "3", "--json").json
    assert [answer["base"]["says"] for answer in found["answers"]] == plain
    assert "patch" not in found["answers"][0]
    assert errata("ask", patch, "--prompt", " ").code == 2
    assert errata("ask", model, *prompts, "--model", "pocket").code == 2


# ---------------------------------------------------------------------- compose, scale


def test_compose_is_the_sum_in_order(errata: Errata, patch: Path, second: Path) -> None:
    found = errata("compose", patch, second, "--out", "both", "--json").json
    assert found["edits"] == 2
    total, one, two = Patch.load("both"), Patch.load(patch), Patch.load(second)
    assert total.edits == one.edits + two.edits
    parts = [*one.changes, *two.changes]
    for left, right in zip(total.changes, parts, strict=True):
        assert same_tensors(left.tensors(), right.tensors())
    shown = errata("show", "both", "--json").json
    assert [part["name"] for part in shown["composed_of"]] == ["patch", "second"]
    assert errata("verify", "both").code == 0
    assert errata("compose", patch, second, "--out", "both").code == 1
    assert errata("compose", patch, "--out", "one").code == 2


def test_contradictions_are_named_and_refused(errata: Errata, model: str, patch: Path) -> None:
    other = ["Paris" if word == "Rome" else word for word in FACT]
    assert errata("edit", "-m", model, *other, *FAST, "--out", "other").code == 0
    done = errata("compose", patch, "other", "--out", "both")
    assert (done.code, done.stdout) == (1, "")
    assert f"'Rome' in {patch} and 'Paris' in other" in done.stderr
    assert "twice" in errata("compose", patch, patch, "--out", "both").stderr
    assert not Path("both").exists()
    done = errata("compose", patch, "other", "--out", "both", "--allow-contradictions")
    assert done.code == 0
    assert f"'Rome' in {patch} and 'Paris' in other" in done.stderr


def test_only_patches_of_one_model_are_composed(
    errata: Errata, patch: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    TINY["llama"]().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    assert errata("edit", "-m", folder, *ITALY, *FAST, "--out", "other").code == 0
    done = errata("compose", patch, "other", "--out", "both")
    assert (done.code, done.stdout) == (1, "")
    assert str(folder) in done.stderr


def test_scale_multiplies_the_change(errata: Errata, patch: Path) -> None:
    found = errata("scale", patch, "0.5", "--out", "half", "--json").json
    assert found["factor"] == 0.5
    assert errata("scale", "half", "0.5", "--out", "quarter").code == 0
    (whole,), (part,) = Patch.load(patch).changes, Patch.load("quarter").changes
    torch.testing.assert_close(part.B @ part.A, 0.25 * whole.B @ whole.A)  # pyright: ignore
    assert errata("show", "quarter", "--json").json["scaled"] == 0.25
    for factor in ("0", "nan", "inf"):
        assert errata("scale", patch, factor, "--out", "none").code == 2
    assert not Path("none").exists()


def test_what_has_no_strength_is_not_scaled(errata: Errata, model: str, here: Path) -> None:
    bare = ("--editor", "ike", "--set", "form=bare", "--set", "demo_count=0")
    assert errata("edit", "-m", model, *FACT, *bare, "--out", "told").code == 0
    done = errata("scale", "told", "0.5", "--out", "half")
    assert (done.code, done.stdout) == (1, "")
    assert "the context of" in done.stderr
    assert not Path("half").exists()


# ---------------------------------------------------------------------- edit


def test_edit_says_what_was_taken(errata: Errata, model: str, here: Path) -> None:
    done = errata("edit", "-m", model, *FACT, *STRONG, "--out", "strong")
    assert "1 of 1 edit taken" in done.stdout
    assert "✓ The capital of France is" in done.stdout
    assert errata("edit", "-m", model, *FACT, *STRONG, "--require").code == 0
    weak = ("--editor", "ft", "--set", "lr=1e-9", "--set", "steps=1")
    done = errata("edit", "-m", model, *FACT, *weak, "--require", "--out", "weak")
    assert done.code == 3
    assert "0 of 1 edit taken" in done.stdout
    assert "✗ The capital of France is" in done.stdout
    assert "1 edit of 1 not taken" in done.stderr
    (result,) = Patch.load("weak").results
    assert result is not None
    assert result["taken"] is False
    assert result["says_after"]
    found = errata("edit", "-m", model, *FACT, *weak, "--json").json
    assert (found["edits"], found["taken"]) == (1, 0)


def test_taken_means_said(errata: Errata, model: str, here: Path) -> None:
    errata("edit", "-m", model, *FACT, *STRONG, "--out", "strong")
    lm, patch = package.load(model), Patch.load("strong")
    with patch.applied(lm):
        (said,) = lm.generate(["The capital of France is"], 1)
    (result,) = patch.results
    assert result is not None
    assert result["taken"] is (said.strip() == "Rome")


def test_many_edits_take_one_line_each(errata: Errata, model: str, here: Path) -> None:
    words = ["France", "Italy", "Berlin", "Rome", "Paris", "river", "town", "city", "house"]
    facts = [{"prompt": f"The capital of {word} is", "target": "Rome"} for word in words]
    Path("f.jsonl").write_text("\n".join(map(json.dumps, facts)), encoding="utf-8")
    weak = ("--editor", "ft", "--set", "lr=1e-9", "--set", "steps=1")
    done = errata("edit", "-m", model, "--edits", "f.jsonl", *weak)
    assert done.stdout.count("→ Rome") == len(words)
    assert "before" not in done.stdout
    assert "before" in errata("edit", "-m", model, "--edits", "f.jsonl", *weak, "--full").stdout
    brief = errata("edit", "-m", model, *FACT, *FAST, "--brief").stdout
    assert "→ Rome" in brief
    assert "before" not in brief


def test_before_is_the_earlier_patch(errata: Errata, model: str, here: Path) -> None:
    errata("edit", "-m", model, *FACT, *STRONG, "--out", "first")
    other = ["Paris" if word == "Rome" else word for word in FACT]
    done = errata("edit", *other, *FAST, "--after", "first", "--json")
    assert "'Rome' in first and is to be 'Paris' now" in done.stderr
    assert len(done.json["contradictions"]) == 1
    lm, earlier = package.load(model), Patch.load("first")
    with earlier.applied(lm):
        (says,) = lm.generate(["The capital of France is"], 8)
    assert done.json["prompts"][0]["says_before"] == says
    text = errata("edit", *other, *FAST, "--after", "first").stdout
    assert "under first" in text


def test_the_head_line_tells_whole_matrices_from_ranks(errata: Errata, model: str) -> None:
    done = errata("edit", "-m", model, *FACT, *STRONG)
    assert "1 whole matrix" in done.stdout
    assert "rank" not in done.stdout


def test_a_dry_run_says_which_blocks_auto_means(errata: Errata, model: str) -> None:
    found = errata("edit", "-m", model, *FACT, "--editor", "ft", "--dry-run", "--json").json
    assert found["layers"] == [2]
    assert found["moments"] is None
    text = ("--set", "moments_text=t.txt", "--set", "contexts=bare", "--set", "steps=1")
    Path("t.txt").write_text("The river flows through the town.\n" * 9, encoding="utf-8")
    own = ("edit", "-m", model, *FACT, *text)
    found = errata(*own, "--dry-run", "--json").json
    assert isinstance(found["layers"][0], int)
    assert found["moments"].startswith("to be counted for block")
    assert errata(*own).code == 0
    assert errata(*own, "--dry-run", "--json").json["moments"] == "in the cache"


def test_a_dry_run_writes_no_text(errata: Errata, model: str, monkeypatch) -> None:
    """On SmolLM2 it took ten minutes to say that second moments were to be counted."""
    from errata.locate import own_text

    def sampled(*args: object, **more: object) -> None:
        raise AssertionError("the model writes")

    monkeypatch.setattr(own_text, "sampled", sampled)
    own = ("edit", "-m", model, *FACT, "--set", "moments_text=self", "--dry-run", "--json")
    assert errata(*own).json["moments"].startswith("to be counted for block")


def test_tokens_that_look_equal_are_told_apart() -> None:
    from errata.cli._views import top

    shown = top([(" Rome", 0.9), ("Rome", 0.05), (" Paris", 0.01)])
    assert "' Rome'" in shown
    assert "'Rome'" in shown
    assert "0.010  Paris" in shown


def test_a_patch_of_a_model_elsewhere_says_how_to_name_it(errata: Errata, patch: Path) -> None:
    path = patch / "patch.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    own = document["meta"]["model"]
    document["meta"]["model"] = "/home/somebody/models/mine"
    path.write_text(json.dumps(document), encoding="utf-8")
    done = errata("verify", patch)
    assert done.code == 1
    assert "--model FOLDER" in done.stderr
    assert errata("verify", patch, "--model", own).code == 0


@pytest.mark.parametrize("rank", [1, 9, 65, 300, 512, 513, 576])
def test_the_rank_of_the_serving_line_is_one_that_vllm_takes(rank: int) -> None:
    from errata.patch.export import LoraReport

    line = LoraReport(Path("a"), "m", rank, (), {}).serve
    if rank > 512:
        assert line is None
        return
    assert line is not None
    named = int(line.split("--max-lora-rank ")[1].split()[0])
    assert named in (1, 8, 16, 32, 64, 128, 256, 320, 512)
    assert named >= rank


def test_a_rank_that_is_not_served_says_what_to_do(
    errata: Errata, patch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.patch.export.RANKS", (0,))
    done = errata("export", patch, "--to", "lora", "--out", "b")
    assert done.code == 0
    assert "--max-rank 0" in done.stdout
    assert "vllm serve" not in done.stdout
    assert tree(Path("b"))


def test_adapters_of_llama_cpp_go_out_and_come_back(
    errata: Errata, model: str, patch: Path
) -> None:
    done = errata("export", patch, "--to", "gguf", "--out", "g", "--base", "my-model")
    assert done.code == 0
    assert "llama-server --model BASE.gguf --lora g/adapter.gguf" in done.stdout
    assert "ollama create g -f g/Modelfile" in done.stdout
    assert Path("g/Modelfile").read_text() == "FROM my-model\nADAPTER ./adapter.gguf\n"
    own = errata("show", patch, "--json").json
    for number, source in enumerate(("g", "g/adapter.gguf")):
        out = f"back{number}"
        assert errata("import", source, "--out", out).code == 0
        back = errata("show", out, "--json").json
        assert back["edits"][0]["prompt"] == own["edits"][0]["prompt"]
        assert back["fingerprint"] == own["fingerprint"]
        assert errata("verify", source).code == 0
    assert errata("show", "g/adapter.gguf", "--json").json["edits"]
    for name in ("errata.json", "README.md"):  # without its record it names no model
        Path("g", name).unlink()
    done = errata("import", "g", "--out", "c")
    assert (done.code, done.stdout) == (2, "")
    assert "--model" in done.stderr
    assert errata("import", "g", "--out", "c", "--model", model).code == 0
    again = errata("export", patch, "--to", "gguf", "--out", "g")
    assert again.code == 1
    assert "already holds adapter.gguf" in again.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--to", "merged", "--max-rank", "2"),
        ("--to", "lora", "--base", "x"),
        ("--to", "gguf", "--max-shard-size", "1GB"),
        ("--to", "lora", "--as-stored"),
        ("--to", "lora", "--repo", "a/b"),
        ("--to", "hub"),
        ("--to", "hub", "--repo", "no slash"),
        ("--to", "merged", "--max-shard-size", "large"),
    ],
)
def test_options_of_another_form_are_refused(
    errata: Errata, patch: Path, words: tuple[str, ...]
) -> None:
    done = errata("export", patch, *words, "--out", "no")
    assert done.code == 2, done.stderr
    assert not Path("no/config.json").exists()
