"""`errata train`, and trained networks as the editor of the other commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from errata.nets import weights
from errata.training.log import read_log
from tests.cli.conftest import Errata, tree
from tests.tiny_models import TINY, tiny_tokenizer
from tests.training.samples import saved_step

NETS = ("--set", "layers=1", "--set", "d_m=16", "--set", "l_m=2")
SHORT = ("--steps", "4", "-t", "batch=2", "-t", "validate_every=2", "-t", "save_every=2")


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve records in errata's own format."""
    lines = []
    for number in range(12):
        edit = {"prompt": f"The capital of France {number} is", "target": "Rome"}
        probes = [
            {"prompt": f"France {number}: its capital is", "target": "Rome", "kind": "generality"},
            {"prompt": f"The river {number} flows to", "target": "town", "kind": "locality"},
        ]
        lines.append(json.dumps({"id": str(number), "edits": [edit], "probes": probes}))
    path = tmp_path_factory.mktemp("many") / "many.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(model: str, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    from typer.testing import CliRunner

    from errata.cli.app import app

    out = tmp_path_factory.mktemp("trained") / "run"
    words = ["train", "ibke", "-m", model, "-d", str(many), "-o", str(out), *NETS, *SHORT]
    done = CliRunner().invoke(app, words, prog_name="errata")
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def networks(here: Path, trained: Path) -> Path:
    """A copy of them, to read or to damage."""
    return Path(shutil.copytree(trained, here / "nets"))


def test_train_says_what_it_did_and_how_to_use_it(errata: Errata, model: str, many: Path) -> None:
    done = errata("train", "ibke", "-m", model, "-d", many, "-o", "run", *NETS, *SHORT)
    assert done.code == 0
    assert f"errata eval --editor run --model {model}" in done.stdout
    assert "best step" in done.stdout
    assert "step 4: validation total" in done.stderr
    config = json.loads(Path("run/config.json").read_text())
    assert config["data"][0]["groups"] == 12
    assert config["validation"] == "held out"
    assert config["training"]["batch"] == 2
    used = errata("eval", "-e", "run", "-m", model, "-d", many, "--limit", "2", "--json", "-o", "e")
    assert used.json["editor"] == "ibke"


def test_json_is_one_document(errata: Errata, model: str, many: Path) -> None:
    words = ("train", "mend", "-m", model, "-d", f"{many}:10,{many}:4", "-o", "run", "--json")
    options = ("--set", "width=8", "-t", "augment_share=0.5")
    found = errata(*words, *options, *SHORT).json
    assert found["step"] == 4
    assert found["train_groups"] == 9 + 4  # one of ten is held out
    assert found["validation"]["total"] == found["best"]
    assert found["run"] == "run"


class TestMistakes:
    """Each is found before a model is loaded or a folder made."""

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["rome", "--data", "world"], "nothing to train"),
            (["ibk", "--data", "world"], "'ibke'"),
            (["ibke", "--data", "wrld"], "'world'"),
            (["ibke", "--data", "world,"], "empty data set"),
            (["ibke", "--data", "world::0"], "no record"),
            (["ibke", "--data", "world::5", "--limit", "4"], "twice"),
            (["ibke", "--data", "world", "--split", "trian"], "'train'"),
            (["ibke", "--data", "world", "--validation", "train"], "trained on"),
            (["ibke", "--data", "world", "--train", "stepps=3"], "'steps'"),
            (["ibke", "--data", "world", "--train", "steps"], "--train 'steps'"),
            (["ibke", "--data", "world", "--train", "lr=-1"], "lr"),
            (["ibke", "--data", "world", "--set", "d_n=3"], "'d_m'"),
            (["ibke", "--data", "world", "--set", "weights=x"], "new networks"),
            (["ibke", "--data", "world", "--tracker", "wandb"], "tensorboard"),
            (["ibke", "--data", "world", "--resume", "--force"], "--force"),
            (["ibke", "--data", "world", "--as-published", "gpt2-xxl"], "gpt2-xl"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_wrong_usage(self, errata: Errata, here: Path, words: list[str], said: str) -> None:
        done = errata("train", *words, "--out", "run")
        assert (done.code, done.stdout) == (2, "")
        assert said in done.stderr
        assert tree(here) == {}

    def test_a_run_is_not_overwritten(self, errata: Errata, many: Path, networks: Path) -> None:
        before = tree(networks)
        done = errata("train", "ibke", "-d", many, "-o", networks)
        assert done.code == 1
        assert "--resume" in done.stderr
        assert tree(networks) == before

    def test_validation_of_a_single_file(self, errata: Errata, many: Path) -> None:
        done = errata("train", "ibke", "-d", many, "-o", "run", "--validation", "val")
        assert done.code == 2
        assert "one file" in done.stderr


def test_ctrl_c_says_how_to_go_on(
    errata: Errata, model: str, many: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from errata.cli.train import _Show

    report = _Show.report

    def interrupt(self: _Show, what: str, done: int, total: int) -> None:
        report(self, what, done, total)
        if what == "training" and done == 3:
            raise KeyboardInterrupt

    words = ("train", "ibke", "-m", model, "-d", many, "-o", "run", *NETS, *SHORT)
    with monkeypatch.context() as patched:
        patched.setattr(_Show, "report", interrupt)
        done = errata(*words)
    assert done.code == 130
    assert "same command with --resume" in done.stderr
    assert done.stdout == ""
    assert saved_step(Path("run")) == 3
    assert errata(*words, "--resume").code == 0
    steps = [entry["step"] for entry in read_log(Path("run")) if entry["kind"] == "validation"]
    assert steps == [2, 4]
    left, right = (load_file(f / "checkpoint.safetensors") for f in (Path("run"), trained))
    assert all((tensor == right[key]).all() for key, tensor in left.items())


def test_resume_with_other_settings_or_other_data(
    errata: Errata, model: str, many: Path, networks: Path, cases: Path
) -> None:
    words = ("train", "ibke", "-m", model, "-o", networks, *NETS, "--resume")
    done = errata(*words, "-d", many, *SHORT, "-t", "lr=1e-2")
    assert done.code == 1
    assert "training.lr was 0.0005, is 0.01" in done.stderr
    done = errata(*words, "-d", cases, *SHORT)
    assert done.code == 1
    assert "data was" in done.stderr


@pytest.mark.parametrize("folder", ["nets", "nets/best"])
def test_a_folder_is_an_editor(
    errata: Errata, model: str, many: Path, networks: Path, folder: str
) -> None:
    options = ("-m", model, "-d", many, "--limit", "2", "--no-save", "--json")
    by_folder = errata("eval", "--editor", folder, *options).json
    by_name = errata("eval", "--editor", "ibke", "--set", f"weights={folder}", *options).json
    for key in ("editor", "reliability", "generality", "locality"):
        assert by_folder[key] == by_name[key]
    fact = ("--prompt", "The capital of France is", "--target", "Rome")
    made = errata("edit", "-m", model, "-e", folder, *fact, "--json").json
    assert made["editor"] == "ibke"


def test_a_hub_id_is_an_editor(
    errata: Errata, model: str, many: Path, networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(name: str, **options: Any) -> str:
        asked.append(name)
        assert set(options["allow_patterns"]) == set(weights.FILES)
        return str(networks / "best")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    options = ("-m", model, "-d", many, "--limit", "1", "--no-save", "--json")
    assert errata("eval", "-e", "someone/ibke-tiny", *options).json["editor"] == "ibke"
    assert set(asked) == {"someone/ibke-tiny"}


def test_networks_are_pushed_with_their_card_and_fetched_again(
    errata: Errata, model: str, many: Path, networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    error: list[Exception] = []

    class Hub:
        def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> str:
            calls.append((repo, private, exist_ok))
            return f"https://hub.example/{repo}"

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
            if error:
                raise error[0]
            shutil.copytree(folder_path, "hub")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    words = ("train", "ibke", "-m", model, "-d", many, "-o", networks, *NETS, *SHORT, "--resume")
    for name in ("me", "me/a/b"):
        refused = errata(*words, "--push", name)
        assert refused.code == 2
        assert "expected OWNER/NAME" in refused.stderr
    assert "--private is for --push" in errata(*words, "--private").stderr
    assert not calls
    pushed = errata(*words, "--push", "me/ibke-tiny", "--private", "--json").json
    assert (pushed["repo"], pushed["url"]) == ("me/ibke-tiny", "https://hub.example/me/ibke-tiny")
    assert calls == [("me/ibke-tiny", True, True)]
    assert {path.name for path in Path("hub").iterdir()} == set(weights.FILES)

    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: "hub")
    options = ("-m", model, "-d", many, "--limit", "1", "--no-save", "--json")
    assert errata("eval", "-e", "me/ibke-tiny", *options).json["editor"] == "ibke"

    error.append(OSError("no route to host"))
    failed = errata(*words, "--push", "me/ibke-tiny")
    assert failed.code == 1
    assert "me/ibke-tiny could not be pushed: no route to host" in failed.stderr
    assert "give the same command with --resume" in " ".join(failed.stderr.split())
    assert (networks / "best" / weights.WEIGHTS).is_file()


class TestNetworksThatDoNotFit:
    """A clear error for each."""

    @pytest.fixture
    def refused(self, errata: Errata, model: str, many: Path):
        def call(editor: str | Path, *words: str, code: int = 1, base: str = model) -> str:
            options = ("-m", base, "-d", many, "--limit", "1", "--no-save")
            done = errata("eval", "--editor", editor, *options, *words)
            assert (done.code, done.stdout) == (code, "")
            return done.stderr

        return call

    def test_no_such_folder(self, refused: Any, here: Path) -> None:
        assert "no folder of trained networks" in refused("./nothing", code=2)
        (here / "empty").mkdir()
        assert "holds no config.json" in refused("empty")

    def test_damaged_files(self, refused: Any, networks: Path) -> None:
        best = networks / "best"
        config = (best / "config.json").read_text()
        tensors = (best / "model.safetensors").read_bytes()
        for text, said in (("{", "damaged"), ("[]", "expected an object"), ("{}", "describe")):
            (best / "config.json").write_text(text)
            assert said in refused("nets")
        changed = json.loads(config)
        for key, value, said in (
            ("editor", "ibkf", "unknown editor 'ibkf'"),
            ("editor", 3, "does not describe"),
            ("settings", [], "does not describe"),
        ):
            (best / "config.json").write_text(json.dumps({**changed, key: value}))
            assert said in refused("nets")
        newer = {**changed, "settings": {**changed["settings"], "tomorrow": 1}}
        (best / "config.json").write_text(json.dumps(newer))
        assert "unknown setting 'tomorrow'" in refused("nets", code=2)
        wider = {**changed, "settings": {**changed["settings"], "d_m": 32}}
        (best / "config.json").write_text(json.dumps(wider))
        assert "does not fit the settings" in refused("nets")
        (best / "config.json").write_text(config)
        (best / "model.safetensors").write_bytes(tensors[:-9])
        assert "damaged" in refused("nets")
        (best / "model.safetensors").unlink()
        assert "holds no model.safetensors" in refused("nets")

    def test_a_run_without_networks_yet(self, refused: Any, networks: Path) -> None:
        shutil.rmtree(networks / "best")
        assert "no networks yet" in refused("nets", code=2)

    def test_another_base_model(self, refused: Any, here: Path, networks: Path) -> None:
        TINY["llama"]().save_pretrained(here / "other")
        tiny_tokenizer().save_pretrained(here / "other")
        assert "were trained on" in refused("nets", base="other")

    def test_another_editor_or_other_settings(self, refused: Any, networks: Path) -> None:
        assert "not of mend" in refused("mend", "--set", "weights=nets")
        assert "trained with d_m=16" in refused("nets", "--set", "d_m=8", code=2)
        assert "both name networks" in refused("nets", "--set", "weights=nets", code=2)


def test_suggested_settings_give_way_to_those_of_the_networks(
    model: str, networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from errata import get_editor, load
    from errata.editors.ibke import Ibke

    monkeypatch.setattr(Ibke, "presets", {"pocket": {"d_m": 8, "layers": (0, 1)}})
    assert get_editor("ibke", model="pocket").config.model_dump()["d_m"] == 8
    editor = get_editor(str(networks), model="pocket")
    editor.prepare(load(model))
    assert editor.config.model_dump()["d_m"] == 16


def test_only_the_first_process_prints(
    errata: Errata, model: str, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from errata.cli import train

    monkeypatch.setattr(train, "_is_main", lambda: False)
    done = errata("train", "ibke", "-m", model, "-d", many, "-o", "run", *NETS, *SHORT)
    assert (done.code, done.stdout, done.stderr) == (0, "", "")


def test_demo_compares_the_networks_that_ship(
    networks: Path, many: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from errata.cli import demo
    from errata.model.lm import LM

    monkeypatch.setattr(demo, "EDITORS", ("none",))
    monkeypatch.setattr(weights, "SHIPPED", here / "shipped")
    lm = LM(TINY["qwen3"](), tiny_tokenizer(), name="pocket")
    assert demo._compared(lm) == ["none"]
    shutil.copytree(networks / "best", here / "shipped" / "ibke")
    assert demo._compared(lm) == ["none", "ibke"]
    assert demo._compared(LM(TINY["qwen3"](), tiny_tokenizer(), name="other")) == ["none"]
    found = demo._compare(lm, 1, here / "demo")
    assert [summary["editor"] for summary in found] == ["none", "ibke"]


def test_world_has_splits_of_its_own(errata: Errata) -> None:
    from errata.training.sources import read_sources

    sources = read_sources("world::20", options={"scale": "test"})
    train, validation = sources.pools[0], sources.validation
    assert (train.split, len(train)) == ("train", 20)
    assert validation is not None
    assert validation.split == "val"
    assert len(validation) > 20
    assert sources.about["data"][0]["version"] == train.version
    again = read_sources("world::20", options={"scale": "test"}, seed=1)
    assert again.about["data"][0]["cases"] != sources.about["data"][0]["cases"]


def test_python_dash_m(here: Path) -> None:
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "errata", "--version"],
        capture_output=True,
        check=True,
        env=environment,
    )
    assert done.stdout.startswith(b"errata ")
