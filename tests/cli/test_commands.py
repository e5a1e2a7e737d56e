"""What the commands do and print when all is well."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from errata.editors import get_editor
from tests.cli.conftest import FACT, FAST, Errata, tree
from tests.cli.help_blocks import as_locked


def test_edit_shows_before_and_after(errata: Errata, here: Path, model: str) -> None:
    done = errata("edit", "-m", model, *FACT, *FAST, "--also", "The capital of Italy is", "-o", "p")
    assert done.code == 0
    assert "before" in done.stdout
    assert "The capital of Italy is" in done.stdout
    assert "Saved p/ (patch.json, patch.safetensors" in done.stdout
    assert "nothing was written to the model" in done.stdout
    assert sorted(tree(here)) == ["p/patch.json", "p/patch.safetensors"]
    assert "\x1b[" not in done.stdout + done.stderr


def test_edit_json(errata: Errata, here: Path, model: str) -> None:
    found = errata("edit", "-m", model, *FACT, *FAST, "--json").json
    assert found["editor"] == "rome"
    assert found["settings"]["steps"] == 2
    assert found["patch"]["saved"] is None
    (view,) = found["prompts"]
    assert view["target"] == "Rome"
    assert len(view["before"]) == len(view["after"]) == 5
    assert 0 <= view["p_before"] <= 1
    assert tree(here) == {}


def test_what_stands_beside_the_weights_is_named(errata: Errata, here: Path, model: str) -> None:
    bare = ("--editor", "ike", "--set", "form=bare", "--set", "demo_count=0")
    done = errata("edit", "-m", model, *FACT, *bare, "--out", "told")
    assert re.search(r"IKE · context of \d+ tokens · patch", done.stdout)
    dry = errata("edit", "-m", model, *FACT, *bare, "--dry-run", "--json").json
    assert dry["layers"] == []
    assert dry["patch_bytes"] is None
    assert "changes no weight" in errata("edit", "-m", model, *FACT, *bare, "--dry-run").stdout
    for form in ("lora", "merged"):
        refused = errata("export", "told", "--to", form, "--out", form)
        assert refused.code == 1
        assert "context" in refused.stderr
        assert not Path(form).exists()


def test_edits_from_a_file_joint_and_sequential(errata: Errata, here: Path, model: str) -> None:
    lines = [
        {"prompt": "The capital of France is", "target": "Rome", "subject": "France"},
        {"prompt": "The capital of Italy is", "target": "Paris", "subject": "Italy"},
    ]
    Path("e.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for regime in ("joint", "sequential"):
        options = ("--edits", "e.jsonl", "--regime", regime, "--json")
        found = errata("edit", "-m", model, *FAST, *options).json
        assert found["patch"]["edits"] == 2
        assert set(found["patch"]["ranks"].values()) == {2}


def test_edit_after_an_earlier_patch_contains_it(errata: Errata, model: str, patch: Path) -> None:
    second = ("--prompt", "The capital of Italy is", "--target", "Paris", "--subject", "Italy")
    found = errata("edit", "-m", model, *second, *FAST, "--after", patch, "--json").json
    assert found["patch"]["edits"] == 2
    assert set(found["patch"]["ranks"].values()) == {2}


def test_dry_runs_touch_nothing(errata: Errata, here: Path, model: str, patch: Path) -> None:
    before = tree(here.parent)
    done = errata("edit", "-m", model, *FACT, *FAST, "--out", "new", "--dry-run")
    assert done.code == 0
    assert "Dry run: nothing was edited or written" in done.stdout
    found = errata("edit", "-m", model, *FACT, *FAST, "--out", "new", "--dry-run", "--json").json
    assert found["sites"]["ffn_out"] == "model.layers.{}.mlp.down_proj"
    assert 0 < found["patch_bytes"]["least"] <= found["patch_bytes"]["most"]
    found = errata("export", patch, "--to", "lora", "--out", "a", "--dry-run", "--json").json
    assert found["dry_run"]
    assert tree(here.parent) == before


def test_export_import_round_trip(errata: Errata, here: Path, model: str, patch: Path) -> None:
    done = errata("export", patch, "--to", "lora", "--out", "adapter")
    assert f"vllm serve {model} --enable-lora --max-lora-rank 8" in done.stdout
    found = errata("import", "adapter", "-m", model, "--out", "again", "--json").json
    assert set(found["ranks"].values()) == {1}
    import torch

    from errata import Patch

    def product(folder: Path | str) -> torch.Tensor:
        (change,) = Patch.load(folder).changes
        return change.B @ change.A  # pyright: ignore[reportAttributeAccessIssue]

    torch.testing.assert_close(product("again"), product(patch), rtol=1e-5, atol=1e-7)


def test_export_says_what_a_lower_rank_loses(errata: Errata, model: str, patch: Path) -> None:
    second = ("--prompt", "The capital of Italy is", "--target", "Paris", "--subject", "Italy")
    errata("edit", "-m", model, *second, *FAST, "--after", patch, "--out", "two")
    found = errata("export", "two", "--to", "lora", "--max-rank", "1", "-o", "a", "--json").json
    assert found["rank"] == 1
    assert 0 < max(found["lost_energy"].values()) < 1


def test_merged_checkpoint_can_be_loaded(errata: Errata, here: Path, patch: Path) -> None:
    found = errata("export", patch, "--to", "merged", "--out", "merged", "--json").json
    assert found["serve"] == "vllm serve merged"
    assert errata("doctor", "merged", "--json").json["ok"]


def test_verify_scores_the_patch_as_it_is(
    errata: Errata, model: str, patch: Path, cases: Path
) -> None:
    found = errata("verify", patch, "--cases", cases, "--json").json
    assert found["cases"] == 3
    assert found["failed"] == 0
    assert {"reliability", "generality", "locality", "average", "by"} <= found.keys()
    assert errata("verify", patch, "--cases", cases).code == 0


def test_gate_missed_prints_the_result_and_exits_with_3(
    errata: Errata, patch: Path, cases: Path
) -> None:
    gate = ("--fail-under", "reliability=1", "--fail-under", "locality=0")
    done = errata("verify", patch, "--cases", cases, *gate, "--json")
    assert done.code == 3
    assert done.json["reliability"] < 1
    assert "reliability (top 1) is" in done.stderr
    assert "locality" not in done.stderr
    assert errata("verify", patch, "--cases", cases, "--fail-under", "locality=0").code == 0


def test_eval_json_has_the_contract(errata: Errata, here: Path, model: str, cases: Path) -> None:
    done = errata("eval", "-m", model, "--editor", "none", "--data", cases, "--json", "--no-save")
    keys = {"editor", "model", "data", "regime", "cases", "reliability", "generality", "locality"}
    assert keys | {"average", "by", "seconds"} <= done.json.keys()
    assert tree(here).keys() == {"cases.jsonl"}


def test_eval_saves_below_runs_and_says_so(errata: Errata, model: str, cases: Path) -> None:
    first = errata("eval", "-m", model, "-e", "none", "--data", cases, "--json")
    second = errata("eval", "-m", model, "-e", "none", "--data", cases, "--json")
    folder = Path(first.json["run"])
    assert folder.parent == Path("runs")
    assert "none_jsonl" in folder.name
    assert f"run folder: {folder}" in first.stderr
    assert second.json["run"] == f"{folder}-2"
    assert (folder / "records.jsonl").read_text(encoding="utf-8").count("\n") == 3


def test_eval_resumes(errata: Errata, model: str, cases: Path) -> None:
    command = ("eval", "-m", model, *FAST, "--data", cases, "--out", "run", "--json")
    whole = errata(*command).json
    records = Path("run/records.jsonl")
    lines = records.read_text(encoding="utf-8").splitlines(keepends=True)
    records.write_text("".join(lines[:1]), encoding="utf-8")
    assert errata(*command).code == 1
    again = errata(*command, "--resume").json
    for key in ("reliability", "generality", "locality", "cases", "config_hash"):
        assert again[key] == whole[key]
    assert errata(*command, "--force").code == 0


@pytest.mark.parametrize("regime", ["batch:2", "sequential:3"])
def test_eval_regimes(errata: Errata, model: str, cases: Path, regime: str) -> None:
    options = (
        "--data",
        cases,
        "--regime",
        regime,
        "--retention",
        "--protocol",
        "wild",
        "--no-save",
    )
    found = errata("eval", "-m", model, *FAST, *options, "--json").json
    assert found["regime"] == regime
    assert found["wild"]["locality"] is not None
    assert errata("eval", "-m", model, *FAST, *options).code == 0


def test_eval_world_is_drawn_from_all_domains(errata: Errata, model: str) -> None:
    options = ("--data", "world", "--data-set", "scale=test", "--limit", "12", "--no-save")
    found = errata("eval", "-m", model, "-e", "none", *options, "--json").json
    assert len(found["by"]["domain"]) > 1
    found = errata("eval", "-m", model, "-e", "none", *options, "--no-shuffle", "--json").json
    assert len(found["by"]["domain"]) == 1


@pytest.mark.parametrize("what", ["editors", "strategies", "datasets", "metrics", "models"])
def test_ls(errata: Errata, what: str) -> None:
    found = errata("ls", what, "--json").json
    names = {entry["name"] for entry in found["entries"]}
    expected = {
        "editors": {"none", "ft", "rome", "memit", "alphaedit"},
        "strategies": {"blue"},
        "datasets": {"zsre", "counterfact", "mquake", "uniedit", "jsonl", "world"},
        "metrics": {"reliability", "generality", "locality", "average"},
        "models": {"pocket"},
    }
    assert expected[what] <= names
    table = errata("ls", what).stdout
    assert all(name in table for name in names)


def test_ls_sizes(errata: Errata) -> None:
    shown = errata("ls", "datasets", "--sizes").stdout
    assert "103,723" in shown
    assert "163,196" in shown
    entries = {e["name"]: e for e in errata("ls", "datasets", "--json").json["entries"]}
    for entry in entries.values():
        assert set(entry.get("sizes", {})) <= set(entry["splits"])
    # EasyEdit's three files share out the 21,919 records of the published one
    sizes = entries["counterfact"]["sizes"]
    assert sizes["train"] + sizes["val"] + sizes["edit"] == sizes["all"]
    wrong = errata("ls", "editors", "--sizes")
    assert wrong.code == 2
    assert "have no sizes" in wrong.stderr


def test_ls_editors_tells_how_they_behave(errata: Errata) -> None:
    found = {entry["name"]: entry for entry in errata("ls", "editors", "--json").json["entries"]}
    told = ("needs", "weights", "batch", "sequence", "exports")
    assert [found["grace"][key] for key in told] == [[], False, "memory", "grows", []]
    assert [found["rome"][key] for key in told] == [
        ["subject", "moments"], True, "in turn", "adds", ["lora", "merged"],
    ]  # fmt: skip
    assert found["mend"]["needs"] == ["training"]
    table = errata("ls", "editors").stdout
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 100
    assert all(word in table for word in (*told, "in turn", "memory", "grows", "kept", "changed"))
    shown = errata("ls", "editors", "grace").stdout
    assert "weights: left as they are" in shown
    assert "the memory of the earlier patch grows" in shown
    assert "exports as: nothing but its own format" in shown
    assert errata("ls", "editors", "rome+rep", "--json").json["exports"] == []
    assert errata("ls", "editors", "memit+blue", "--json").json["exports"] == ["lora", "merged"]


def test_ls_one_editor(errata: Errata) -> None:
    found = errata("ls", "editors", "memit+blue", "--json").json
    settings = {setting["name"]: setting["default"] for setting in found["settings"]}
    assert settings["mom2_weight"] == 20_000
    assert "blue_layers" in settings
    assert found["published"]["gpt2-xl"]["layers"] == [13, 14, 15, 16, 17]
    shown = errata("ls", "editors", "memit+blue").stdout
    assert all(name in shown for name in ("mom2_weight", "blue_layers", "gpt-j-6b"))
    assert errata("ls", "models", "pocket").code == 2
    assert "Did you mean 'blue'" in errata("ls", "editors", "memit+bleu").stderr


def test_doctor(errata: Errata, model: str) -> None:
    found = errata("doctor", model, "--json").json
    assert found["ok"]
    assert {"sites", "a patch shows and is undone"} <= {check["what"] for check in found["checks"]}
    assert found["sites"]["n_blocks"] == 3
    done = errata("doctor", "no/such/model/at/all", "--json")
    assert done.code == 1
    assert not json.loads(done.stdout)["ok"]


def test_world_commands(errata: Errata, here: Path, model: str) -> None:
    small = ("--scale", "test")
    found = errata("world", "facts", *small, "--json").json
    assert found["facts"] == found["found"] > len(found["list"]) == 20
    assert errata("world", "facts", *small, "--limit", "3").code == 0
    text = errata("world", "text", *small, "--limit", "5").stdout
    assert text.count("\n") == 5
    assert len(errata("world", "text", *small, "--limit", "5", "--json").json["sentences"]) == 5
    found = errata("world", "bench", *small, "--out", "bench", "--json").json
    assert set(found["records"]) == {"train", "val", "test", "test_domains"}
    assert errata("world", "bench", *small, "--out", "bench").code == 1
    options = ("--data", "uniedit:bench/test", "--limit", "2", "--no-save", "--json")
    assert errata("eval", "-m", model, "-e", "none", *options).json["cases"] == 2
    found = errata("world", "measure", *small, "-m", model, "--limit", "2", "--json").json
    assert 0 <= found["direct_heldout"] <= 1


def test_demo(errata: Errata, here: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(name: str, *_: object) -> object:
        rome = {"mom2_adjustment": False, "steps": 2, "contexts": "bare"}
        return get_editor(name, {"none": {}, "ft": {"steps": 2}, "rome": rome}[name])

    monkeypatch.setattr("errata.cli.demo._editor", quick)
    found = errata("demo", "-m", model, "--cases", "1", "--out", "d", "--json").json
    assert errata("demo", "-m", model, "--cases", "1").code == 0
    assert [row["editor"] for row in found["comparison"]] == ["none", "ft", "rome"]
    assert found["edit"]["undo_bit_exact"] is True
    roles = {question["role"] for question in found["edit"]["questions"]}
    assert roles == {"edit", "paraphrase", "neighbour"}  # two hops are asked of pocket only
    assert {"d/summary.json", "d/summary.md", "d/patch/patch.json"} <= tree(here).keys()


@pytest.mark.skipif(not as_locked(), reason="other releases of typer and rich print it otherwise")
def test_help_blocks_of_the_documentation() -> None:
    from tests.cli.help_blocks import commands_in, help_of

    root = Path(__file__).resolve().parents[2]
    document = (root / "docs" / "cli.md").read_text(encoding="utf-8")
    from errata.cli.app import app

    def plain(text: str) -> str:
        return " ".join(word for word in text.split() if any(map(str.isalnum, word)))

    for words in commands_in(document):
        shown = plain(help_of(list(words)))
        assert shown in plain(document), f"run `make docs`: help of {' '.join(words) or 'errata'}"
    named = {(command.name,) for command in app.registered_commands}
    assert named <= commands_in(document)


DOCUMENTS = ("README.md", "docs/cli.md", "docs/patches.md")


def advertised() -> list[str]:
    """Every line that starts with `errata` in the documents; test_examples.py runs those of --help.

    The blocks of docs/cli.md show the examples of the help, broken where the page is too narrow.
    """
    from tests.cli.help_blocks import BLOCK

    root = Path(__file__).resolve().parents[2]
    lines = []
    for name in DOCUMENTS:
        text = (root / name).read_text(encoding="utf-8").replace("\\\n> ", "")
        lines += re.findall(r"^(?:\$ )?(errata [^\n|]+)", BLOCK.sub("", text), re.MULTILINE)
    return sorted(set(lines))


@pytest.mark.parametrize("line", advertised())
def test_advertised_commands_exist(errata: Errata, line: str) -> None:
    words = shlex.split(line)[1:]
    assert errata(*words, "--help").code == 0


@pytest.mark.parametrize("locality", [True, False])
def test_verify_says_the_same_however_often_it_runs(
    errata: Errata, patch: Path, cases: Path, loaded: dict[str, Any], locality: bool
) -> None:
    """With a cold cache and a warm one, each time with a model that nobody has looked at."""
    if not locality:
        lines = [json.loads(line) for line in cases.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            line["probes"] = [p for p in line["probes"] if p["kind"] != "locality"]
        cases.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    runs = []
    for _ in range(3):
        loaded.clear()
        found = errata("verify", patch, "--cases", cases, "--json").json
        runs.append({k: v for k, v in found.items() if not k.startswith("seconds")})
    assert runs[0] == runs[1] == runs[2]
    loaded.clear()
    gate = ("--fail-under", "generality=0")
    assert errata("verify", patch, "--cases", cases, *gate).code == 0
