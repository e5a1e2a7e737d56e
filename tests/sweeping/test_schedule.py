"""Order, retries, skipping and stopping, with real processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from errata.errors import RunError
from errata.sweeping import schedule
from errata.sweeping.local import LocalExecutor
from errata.sweeping.state import FILE, State
from errata.sweeping.units import Unit
from tests.sweeping.conftest import unit

pytestmark = pytest.mark.usefixtures("stand_in")
PATIENCE = 20.0  # seconds for a process to start on a busy machine


def sweep(units: Sequence[Unit], out: Path, retries: int = 1, jobs: int = 1) -> State:
    return sweep_with(LocalExecutor(jobs), units, out, retries)


def sweep_with(
    executor: schedule.Executor, units: Sequence[Unit], out: Path, retries: int = 1
) -> State:
    said: list[str] = []
    with State.open(out, "test", units) as state:
        schedule.run(units, state, executor, retries=retries, say=said.append)
    return state


def statuses(state: State) -> dict[str, str]:
    return {name: progress.status for name, progress in state.units.items()}


def starts(one: Unit) -> list[list[str]]:
    """Return time, process and further words of every start of a unit."""
    path = one.folder / "starts"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(path: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.02)


def test_trainings_run_before_their_cells_and_finished_units_are_skipped(tmp_path: Path) -> None:
    out = tmp_path / "out"
    units = [
        unit(out, "train/a"),
        unit(out, "x/1", needs=("train/a",)),
        unit(out, "x/2"),
    ]
    state = sweep(units, out, jobs=2)
    assert statuses(state) == {"train/a": "done", "x/1": "done", "x/2": "done"}
    assert float(starts(units[0])[0][0]) < float(starts(units[1])[0][0])
    again = sweep(units, out)
    assert statuses(again) == statuses(state)
    assert all(len(starts(one)) == 1 for one in units)
    assert again.units["x/1"].attempts == 1


def test_a_killed_unit_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    units = [unit(out, "x/1", "hangs"), unit(out, "x/2")]

    def kill() -> None:
        wait_for(units[0].folder / "partial")
        os.kill(int(starts(units[0])[0][1]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    state = sweep(units, out)
    killer.join()
    assert statuses(state) == {"x/1": "done", "x/2": "done"}
    assert [words[2:] for words in starts(units[0])] == [[], ["--resume"]]
    assert (units[0].folder / "partial").read_text() == "half"
    assert state.units["x/1"].attempts == 2
    assert state.units["x/2"].attempts == 1


def test_failures_are_bounded_and_the_others_still_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    units = [
        unit(out, "train/a", "fails"),
        unit(out, "x/1", needs=("train/a",)),
        unit(out, "x/2", "wrong"),
        unit(out, "x/3", "silent"),
        unit(out, "x/4"),
    ]
    state = sweep(units, out, retries=2)
    assert statuses(state) == {
        "train/a": "failed", "x/1": "blocked", "x/2": "failed", "x/3": "failed", "x/4": "done"
    }  # fmt: skip
    assert [state.units[one.name].attempts for one in units] == [3, 0, 1, 3, 1]
    assert state.units["train/a"].log[-1] == "error: out of luck"
    assert state.units["x/2"].log[-1] == "error: unknown setting 'colour'"
    assert state.units["x/2"].reason == "exit code 2"
    assert state.units["x/3"].reason == "it wrote no summary"
    assert state.units["x/1"].reason == "train/a failed"


def test_a_failed_unit_runs_again_in_the_next_sweep(tmp_path: Path) -> None:
    out = tmp_path / "out"
    units = [unit(out, "train/a", "fails"), unit(out, "x/1", needs=("train/a",))]
    sweep(units, out, retries=0)
    (units[0].folder / "summary.json").write_text("{}")  # mended by hand
    state = sweep(units, out, retries=0)
    assert statuses(state) == {"train/a": "done", "x/1": "done"}
    assert state.units["x/1"].log == []


def test_an_interrupt_leaves_everything_resumable(tmp_path: Path) -> None:
    out = tmp_path / "out"
    units = [unit(out, "x/1", "hangs"), unit(out, "x/2")]

    def say(text: str) -> None:
        raise AssertionError(text)

    class Interrupted(LocalExecutor):
        def wait(self, seconds: float) -> list[tuple[Unit, schedule.Outcome]]:
            wait_for(units[0].folder / "partial")
            raise KeyboardInterrupt

    with (
        State.open(out, "test", units) as state,
        pytest.raises(KeyboardInterrupt),
    ):
        schedule.run(units, state, Interrupted(1), retries=1, say=say)
    process = int(starts(units[0])[0][1])
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert statuses(state) == {"x/1": "waiting", "x/2": "waiting"}
    assert statuses(sweep(units, out)) == {"x/1": "done", "x/2": "done"}


def test_a_sweep_in_the_background_interrupts_its_units_too(tmp_path: Path) -> None:
    """What a shell starts in the background ignores interrupts, and so do its children."""
    one, executor = unit(tmp_path / "out", "x/1", "hangs"), LocalExecutor(1)
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        executor.start(one)
    finally:
        signal.signal(signal.SIGINT, heard)
    (running,) = executor._running
    wait_for(one.folder / "partial")
    executor.stop()
    assert running.process.returncode != -signal.SIGKILL  # it was asked, and ended by itself
    assert "KeyboardInterrupt" in one.log.read_text()


def test_a_unit_ends_with_its_sweep(tmp_path: Path) -> None:
    one = unit(tmp_path / "out", "x/1", "hangs")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom errata.sweeping import child\n"
        f"child.COMMAND = (sys.executable, {str(tmp_path / 'stand_in.py')!r})\n"
        f"child.start({list(one.words)!r}, folder=Path({str(one.folder)!r}),"
        f" log=Path({str(one.log)!r}), cwd=Path({str(tmp_path)!r}))\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(one.folder / "partial")
    finally:
        parent.kill()
        parent.wait()
    process = int(starts(one)[0][1])
    until = time.monotonic() + PATIENCE
    while Path(f"/proc/{process}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{process}").exists()


def test_other_settings_are_refused_or_done_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep([unit(out, "train/a"), unit(out, "x/1", needs=("train/a",)), unit(out, "x/2")], out)
    changed = [
        unit(out, "train/a", "works-differently"),
        unit(out, "x/1", needs=("train/a",)),
        unit(out, "x/2"),
    ]
    with pytest.raises(RunError, match="train/a was started with other settings"):
        State.open(out, "test", changed)
    with State.open(out, "test", changed, force=True) as state:
        assert not changed[0].finished
        assert not changed[1].finished  # it needs the changed one
        assert changed[2].finished
        assert state.units["train/a"].attempts == 0


def test_a_part_of_a_sweep_keeps_what_is_known_of_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    units = [unit(out, "x/1"), unit(out, "x/2")]
    sweep(units, out)
    sweep(units[:1], out)
    document = json.loads((out / FILE).read_text())
    assert {name: entry["status"] for name, entry in document["units"].items()} == {
        "x/1": "done", "x/2": "done"
    }  # fmt: skip


def test_folders_that_are_not_this_sweeps(tmp_path: Path) -> None:
    out = tmp_path / "out"
    units = [unit(out, "x/1")]
    with (
        State.open(out, "test", units),
        pytest.raises(RunError, match="another process"),
    ):
        State.open(out, "test", units)
    with pytest.raises(RunError, match="holds the sweep 'test', not 'other'"):
        State.open(out, "other", units)
    (out / FILE).write_text("{}")
    with pytest.raises(RunError, match="damaged"):
        State.open(out, "test", units)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="not a sweep's folder"):
        State.open(strange, "test", units)
    with pytest.raises(RunError, match="is a file"):
        State.open(strange / "letter.txt", "test", units)


def test_units_are_spread_over_devices(tmp_path: Path) -> None:
    out = tmp_path / "out"
    units = [unit(out, f"x/{number}") for number in range(3)]
    state = sweep_with(LocalExecutor(2, ["3", "5"]), units, out)
    assert set(statuses(state).values()) == {"done"}
    assert {(one.folder / "device").read_text() for one in units} <= {"3", "5"}
    assert {(one.folder / "device").read_text() for one in units[:2]} == {"3", "5"}
