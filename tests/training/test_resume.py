"""A run that was stopped, however, ends as one that was not."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.nets.samples import LEARNING, small
from tests.training.samples import (
    CASES,
    assert_same,
    assert_same_run,
    model,
    run,
    saved_step,
    tensors,
)

from errata.errors import ErrataError, RunError
from errata.store.files import write_atomically
from errata.store.locks import HELD
from errata.training import checkpoint
from errata.training.log import read_log


class Stop(Exception):
    """Something that ends a run from outside."""


def stopping(at: int, error: type[BaseException]) -> Any:
    def report(what: str, done: int, total: int) -> None:
        if what == "training" and done == at:
            raise error

    return report


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    return run(tmp_path_factory.mktemp("whole") / "run").folder


@pytest.mark.parametrize("step", random.Random(0).sample(range(1, 6), 2))
def test_resume_after_an_exception(tmp_path: Path, whole: Path, step: int) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(out, report=stopping(step, Stop))
    done = run(out, resume=True)
    assert_same_run(out, whole)
    assert done.summary["step"] == 6
    steps = [(entry["kind"], entry["step"]) for entry in read_log(out)]
    assert steps == [(entry["kind"], entry["step"]) for entry in read_log(whole)]
    assert len(steps) == len(set(steps)) == 9  # six of training, three of validation


@pytest.mark.parametrize("name", LEARNING)
def test_ctrl_c_saves_the_last_whole_step(tmp_path: Path, name: str) -> None:
    out, straight = tmp_path / "run", tmp_path / "straight"
    editor = small(name, **({"norm": "running"} if name not in {"ke", "serac"} else {}))
    run(straight, editor, steps=5, save_every=100, validate_every=3)
    options: dict[str, Any] = {"steps": 5, "save_every": 100, "validate_every": 3}
    with pytest.raises(KeyboardInterrupt):
        run(out, editor, report=stopping(3, KeyboardInterrupt), **options)
    assert json.loads((out / "config.json").read_text())["editor"] == name
    assert checkpoint.read_facts(out) is not None
    run(out, editor, resume=True, steps=5, save_every=100, validate_every=3)
    assert_same_run(out, straight)


def test_signal_waits_for_the_end_of_the_step(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from errata.training.objective import Objective

    original, calls = Objective.run, []

    def hit(self: Objective, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("backward") is not None:
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGINT)  # in the middle of the third step
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Objective, "run", hit)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", save_every=100)
    assert len(calls) == 3
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


SCRIPT = """
import sys, time
from pathlib import Path
from tests.training.samples import run
run(Path(sys.argv[1]), report=lambda *_: time.sleep(0.3))
"""


def test_resume_after_a_kill(tmp_path: Path, whole: Path) -> None:
    out, root = tmp_path / "run", Path(__file__).resolve().parents[2]
    # as many threads as here: sums over more of them differ in the last bit
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": threads}
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], env=environment, cwd=root)
    try:
        while not (out / checkpoint.FILE).exists():
            assert child.poll() is None
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    assert not (out / "summary.json").exists()
    run(out, resume=True)
    assert_same_run(out, whole)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, whole: Path) -> None:
    before = tensors(whole)
    done = run(whole, resume=True)
    assert_same(tensors(whole), before)
    assert done.summary["step"] == 6


def test_early_stopping_stays_when_resumed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = {"steps": 40, "lr": 0.5, "patience": 4}
    done = run(out, **options)
    assert done.summary["stopped_early"]
    assert done.summary["step"] == done.summary["best_step"] + 4
    again = run(out, resume=True, **options)
    assert again.summary["step"] == done.summary["step"]


def test_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, saves = tmp_path / "run", []

    def full(path: Path, data: bytes) -> None:
        if path.name == checkpoint.FILE:
            saves.append(path)
            if len(saves) == 2:
                error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                raise ErrataError(f"cannot write {path}: {error.strerror}") from error
        write_atomically(path, data)

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(ErrataError, match="No space left"):
        run(out)
    monkeypatch.undo()
    assert saved_step(out) == 2
    run(out, resume=True)
    assert_same_run(out, whole)


def test_disk_that_is_full_under_the_file(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sync, calls = tmp_path / "run", os.fsync, []

    def fsync(number: int) -> None:
        calls.append(number)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ErrataError, match="No space left"):
        run(out)
    monkeypatch.undo()
    # no half-written file stays
    assert not [path for path in out.rglob(".*") if path.is_file() and path.name != HELD]
    assert saved_step(out) in {2, 4}
    run(out, resume=True)
    assert_same_run(out, whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 1e-2}, "training.lr was 0.0005, is 0.01"),
        ({"editor": small("ibke", layers=(2,))}, "settings.layers"),
        ({"editor": small("mend")}, "editor was 'ibke', is 'mend'"),
        ({"cases": CASES[:12], "about": {"data": [{"version": "b"}]}}, "data"),
    ],
)
def test_other_settings_are_refused(whole: Path, change: dict[str, Any], said: str) -> None:
    before = (whole / checkpoint.FILE).read_bytes()
    with pytest.raises(RunError, match="another configuration") as error:
        run(whole, resume=True, **change)
    assert said in error.value.message
    assert (whole / checkpoint.FILE).read_bytes() == before


def test_checkpoint_of_another_model_or_other_layers(tmp_path: Path, whole: Path) -> None:
    from tests.locate.samples import build

    lm = build("llama", "float32")
    with pytest.raises(RunError, match="fingerprint was"):
        run(whole, resume=True, lm=lm)
    # the folder's configuration put right by hand, the checkpoint is still that of the other run
    out = tmp_path / "run"
    run(out, small("ibke", layers=(2,)), steps=1)
    (out / checkpoint.FILE).write_bytes((whole / checkpoint.FILE).read_bytes())
    with pytest.raises(RunError, match="was made with another matrices"):
        run(out, small("ibke", layers=(2,)), steps=1, resume=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", "1e9999"),
        ("seconds", "true"),
        ("step", "-1"),
        ("best_step", "1.5"),
        ("best", "[]"),
    ],
)
def test_a_checkpoint_whose_progress_is_no_number_of_its_kind(
    tmp_path: Path, whole: Path, name: str, value: str
) -> None:
    """One changed byte makes infinity of seconds, which no summary can hold."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(whole / checkpoint.FILE, "pt") as handle:
        about = json.loads(handle.metadata()["about"])
    about["progress"][name] = "@"
    text = json.dumps(about).replace('"@"', value)
    tensors = load_file(whole / checkpoint.FILE)
    save_file(tensors, tmp_path / checkpoint.FILE, metadata={"about": text})
    with pytest.raises(RunError, match="is damaged"):
        checkpoint.read_facts(tmp_path)


def test_damaged_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, steps=1)
    path = out / checkpoint.FILE
    for data in (b"", b"nonsense", path.read_bytes()[:-100]):
        path.write_bytes(data)
        with pytest.raises(RunError, match="damaged"):
            run(out, steps=1, resume=True)
    run(out, steps=1, force=True)


def test_a_run_is_not_overwritten_unasked(tmp_path: Path, whole: Path) -> None:
    before = (whole / checkpoint.FILE).read_bytes()
    with pytest.raises(RunError, match="already holds a run"):
        run(whole)
    assert (whole / checkpoint.FILE).read_bytes() == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("…")
    with pytest.raises(RunError, match="not a run folder"):
        run(tmp_path / "thesis", force=True)


def test_force_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, steps=2)
    with pytest.raises(Stop):
        run(out, force=True, seed=1, validate_every=100, report=stopping(1, Stop))
    assert not (out / "best" / "model.safetensors").exists()
    assert not (out / checkpoint.FILE).exists()


def test_model_and_random_state_are_as_before(tmp_path: Path) -> None:
    from errata.model.weights import weight_fingerprint

    lm = model()
    weights, state = weight_fingerprint(lm.model), torch.get_rng_state()
    run(tmp_path / "run", steps=2, lm=lm)
    assert weight_fingerprint(lm.model) == weights
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.requires_grad and p.grad is not None for p in lm.model.parameters())
