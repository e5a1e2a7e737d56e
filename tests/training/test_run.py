"""What a run does with its data, its settings and its losses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import build
from tests.nets.samples import LEARNING, small
from tests.training.samples import (
    CASES,
    QUICK,
    assert_same,
    case,
    groups,
    model,
    run,
    saved_step,
    without,
)

import errata
from errata.api import train
from errata.case import Case, Edit, Probe
from errata.data import LoadedData
from errata.editors import get_editor
from errata.editors.base_networks import trainable
from errata.errors import ConfigError, DataError, EditError, MissingExtra, RunError
from errata.nets import weights
from errata.store.locks import HELD
from errata.training import TrainConfig, checkpoint
from errata.training.config import settings_for
from errata.training.log import read_log
from errata.training.loop import Trainer


def losses(folder: Path, kind: str = "validation") -> list[float]:
    return [entry["total"] for entry in read_log(folder) if entry["kind"] == kind]


@pytest.mark.parametrize("name", LEARNING)
def test_training_lowers_the_loss_and_the_result_can_be_loaded(tmp_path: Path, name: str) -> None:
    lm = model()
    options: dict[str, Any] = {"steps": 12, "lr": 3e-3, "decay_from": 1.0, "batch": 16}
    editor = small(name)
    done = run(tmp_path / "run", editor, validation=CASES[:4], **options)
    found = losses(done.folder)
    assert min(found[1:]) < found[0]
    assert done.summary["best"] == min(found)
    config = weights.read_config(done.best)
    assert config["validation"]["total"] == min(found)
    assert config["step"] == done.summary["best_step"]
    edits = [list(c.edits) for c in CASES[:2]]
    loaded = get_editor(str(done.folder))
    assert loaded.name == name
    for mine, again in zip(editor.edit(lm, edits), loaded.edit(lm, edits), strict=True):
        for left, right in zip(mine.changes, again.changes, strict=True):
            assert left.describe() == right.describe()
            assert_same(left.tensors(), right.tensors())


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    done = run(tmp_path / "run", about={"data": [{"spec": "s", "split": "t", "version": "v"}]})
    there = {str(path.relative_to(done.folder)) for path in done.folder.rglob("*")}
    there -= {HELD}  # some releases of filelock remove it
    assert there == {
        *("config.json", "env.json", "command.txt", "log.jsonl", "summary.json", "lock"),
        *(checkpoint.FILE, "best", *(f"best/{name}" for name in weights.FILES)),
    }
    assert json.loads((done.folder / "summary.json").read_text())["step"] == QUICK["steps"]
    entries = read_log(done.folder)
    assert [e["step"] for e in entries if e["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in entries if e["kind"] == "validation"] == [2, 4, 6]
    first = next(e for e in entries if e["kind"] == "train")
    assert {"total", "sg", "il", "penalty", "grad_norm", "lr", "eta_seconds"} <= first.keys()


def test_two_validations_are_equal(tmp_path: Path) -> None:
    lm = model()
    of = groups(lm)
    config = TrainConfig(**QUICK)
    trainer = Trainer(lm, small("ibke"), [of[:8]], of[8:12], config, tmp_path / "run", {})
    trainer.run()
    state = torch.get_rng_state()
    first, second = trainer.losses(of[8:12]), trainer.losses(of[8:12])
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_does_not_change_what_is_learnt(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    runs = [run(tmp_path / str(n), validate_every=n, validation=CASES[:2]) for n in (1, 6)]
    left, right = (load_file(r.folder / checkpoint.FILE) for r in runs)
    assert all(torch.equal(tensor, right[key]) for key, tensor in left.items())


@pytest.mark.parametrize("missing", ["locality", "generality"])
def test_data_without_a_kind_of_question(tmp_path: Path, missing: str) -> None:
    done = run(tmp_path / "run", cases=without(missing))
    assert all(map(math.isfinite, losses(done.folder, "train")))
    if missing == "locality":
        assert all(e["il"] == 0 for e in read_log(done.folder))


def multi(number: int) -> Case:
    """A record as MQuAKE's: two edits, one question over both, no locality."""
    first, second = case(number), case(number + 1)
    probe = Probe("The mayor of the home is", "Anna", "generality", "multi_hop", ("MH",))
    return Case(f"m{number}", (*first.edits, *second.edits), (probe,))


def test_records_of_several_edits_without_locality(tmp_path: Path) -> None:
    cases = [*(multi(n) for n in range(8)), *CASES[:4]]
    done = run(tmp_path / "run", cases=cases, validation=[multi(9)])
    assert all(map(math.isfinite, losses(done.folder)))
    assert all(e["il"] == 0 for e in read_log(done.folder) if e["kind"] == "validation")


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training group"):
        run(tmp_path / "run", cases=[])
    with pytest.raises(DataError, match="include_edit"):
        run(tmp_path / "run", cases=without("generality"), include_edit=False)
    assert not (tmp_path / "run").exists()


def test_a_record_that_is_too_long_is_named(tmp_path: Path) -> None:
    long = Case("giant", (Edit("x " * 600, "Rome"),))
    with pytest.raises(EditError, match="giant"):
        run(tmp_path / "run", cases=[*CASES, long])


def poisoned(monkeypatch: pytest.MonkeyPatch, group: str | None, from_step: int) -> None:
    """Turn the unedited answers of one group, or of all of them, into NaN at some step."""
    from errata.training.objective import Objective

    original, calls = Objective.run, []

    def run_(self: Objective, network: Any, some: Any, **given: Any) -> Any:
        if given.get("backward") is not None:
            calls.append(1)
        late = len(calls) >= from_step
        if late and any(group in (None, g.id) for g in some):
            found = original(self, network, some, **{**given, "backward": None})
            return found | {"total": math.nan}
        return original(self, network, some, **given)

    monkeypatch.setattr(Objective, "run", run_)


def test_nan_loss_stops_and_names_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # all training groups in every step, so that the poisoned one is met
    poisoned(monkeypatch, "3", from_step=4)
    with pytest.raises(RunError, match="loss of step 4 is NaN") as error:
        run(tmp_path / "run", batch=12, cases=CASES[:12], validation=CASES[12:])
    assert "groups: 3; these bring it by themselves" in error.value.message
    assert "kept" in error.value.message
    monkeypatch.undo()
    assert saved_step(tmp_path / "run") == 2
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    run(tmp_path / "run", batch=12, cases=CASES[:12], validation=CASES[12:], resume=True)


def test_nan_everywhere_names_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, None, from_step=3)
    with pytest.raises(RunError, match=r"loss of step 3 is NaN or infinite \(groups: .*\)"):
        run(tmp_path / "run", validate_every=100)


def test_nan_gradient_never_reaches_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from errata.training.objective import Objective

    original, calls = Objective.run, []

    def run_(self: Objective, network: Any, *args: Any, **given: Any) -> Any:
        found = original(self, network, *args, **given)
        if given.get("backward") is not None:
            calls.append(1)
            if len(calls) == 4:
                next(network.parameters()).grad.fill_(math.inf)
        return found

    monkeypatch.setattr(Objective, "run", run_)
    with pytest.raises(RunError, match="gradient of step 4"):
        run(tmp_path / "run", save_every=1)
    assert saved_step(tmp_path / "run") == 3
    saved = load_file(tmp_path / "run" / checkpoint.FILE)
    assert all(bool(t.isfinite().all()) for t in saved.values() if t.is_floating_point())


def test_bfloat16_model_and_mixed_precision_train(tmp_path: Path) -> None:
    done = run(tmp_path / "half", lm=build("qwen3", "bfloat16"))
    assert all(map(math.isfinite, losses(done.folder, "train")))
    mixed = run(tmp_path / "mixed", mixed_precision="bf16")
    plain = run(tmp_path / "plain")
    for left, right in zip(losses(mixed.folder), losses(plain.folder), strict=True):
        assert left == pytest.approx(right, rel=0.02)  # bfloat16 has eight bits: 0.4 % a product
    with pytest.raises(ConfigError, match="GPU"):
        run(tmp_path / "fp16", mixed_precision="fp16")


def test_merged_records_and_mixed_data_train(tmp_path: Path) -> None:
    pools = [CASES[:8], CASES[8:12], CASES[12:]]
    done = run(tmp_path / "run", cases=pools, merge=2, augment_share=0.25)
    assert done.summary["train_groups"] == 16  # a tenth of eight, held out, is none
    assert all(map(math.isfinite, losses(done.folder, "train")))


def test_loaded_data_names_and_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert errata.train is train
    data = LoadedData("mine", tuple(CASES), "abc", "here", "train")
    cls = type(small("ibke"))
    pocket = {"tiny-qwen3": {"steps": 1}}
    monkeypatch.setattr(cls, "defaults", {"batch": 3, "steps": 2, **pocket})
    lm = model()
    assert settings_for(small("ibke"), "other", {"lr": 1.0}, ["lr=2"]) == TrainConfig(
        batch=3, steps=2, lr=2.0
    )
    done = train(lm, small("ibke"), data, tmp_path / "run", validation=data)
    assert done.summary["step"] == 1
    config = json.loads((done.folder / "config.json").read_text())
    assert config["data"][0]["version"] == "abc"
    assert config["data"][0]["groups"] == 16
    assert config["training"]["batch"] == 3
    card = (done.best / "README.md").read_text()
    assert "mine, split train: 16 groups, version `abc`" in card
    assert isinstance(trainable("ibke", "other"), cls)


@pytest.mark.parametrize("name", ["rome", "none"])
def test_editors_without_networks_cannot_be_trained(name: str) -> None:
    with pytest.raises(ConfigError, match="nothing to train") as error:
        trainable(name, "other")
    assert "ibke" in str(error.value)
    with pytest.raises(ConfigError, match="new networks"):
        trainable("ibke", "other", overrides=["weights=somewhere"])


def test_wrong_settings_of_the_loop() -> None:
    with pytest.raises(ConfigError, match="'stepz'"):
        settings_for(small("ibke"), "other", {"stepz": 1})
    with pytest.raises(ConfigError, match="lr"):
        settings_for(small("ibke"), "other", {}, ["lr=-1"])


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = run(tmp_path / "run", tracker="tensorboard")
    found = EventAccumulator(str(done.folder / "errata"))
    found.Reload()
    logged = [event.value for event in found.Scalars("validation/total")]
    assert logged == pytest.approx(losses(done.folder), rel=1e-6)
    run(done.folder, tracker="none", resume=True)


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="trackio"):
        run(tmp_path / "run", tracker="trackio")


@pytest.mark.parametrize(
    ("name", "file", "split"),
    [
        ("counterfact", "counterfact/counterfact-train.json", "train"),
        ("zsre", "zsre/zsre_mend_train-1k.json", "train"),
        ("mquake", "mquake/MQuAKE-CF-3k.json", None),
    ],
)
def test_real_records(
    tmp_path: Path, shared: Path, name: str, file: str, split: str | None
) -> None:
    if not (shared / "data" / file).is_file():
        pytest.skip(f"{file} is not there")
    data = errata.load_cases(f"{name}:{shared / 'data' / file}", split, 24, seed=0)
    done = run(tmp_path / "run", cases=data, steps=3, batch=6)
    assert done.summary["step"] == 3
    assert all(map(math.isfinite, losses(done.folder, "train")))


def test_settings_in_the_documentation() -> None:
    from tests.training.settings_table import renewed

    document = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text("utf-8")
    assert renewed(document) == document, "run `make docs`"
