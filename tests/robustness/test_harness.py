"""The campaign's own machinery: forks that die do not end it, kills hit, records go on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.record import Record
from tests.robustness.warm import Command, results

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of python 3.12


def _work(item: int) -> dict[str, Any]:
    if item == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    if item == 3:
        raise RuntimeError("of the harness")
    if item == 5:
        time.sleep(30)
    return {"twice": 2 * item}


@pytest.mark.parametrize(
    ("last", "told"), [(1, "with -15"), (3, "of the harness"), (5, "nothing came")]
)
def test_what_ends_a_fork_is_told_and_what_came_before_counts(last: int, told: str) -> None:
    *good, bad = results(_work, [0, 2, last, 4], seconds=1.0)
    assert good == [(0, {"twice": 0}, None), (2, {"twice": 4}, None)]
    assert bad[:2] == (last, None)
    assert told in bad[2]


def test_a_fork_may_not_take_all_memory() -> None:
    found = list(results(lambda n: len(bytearray(n)), [10, 1 << 30], 20, memory=1 << 28))
    assert found[0] == (10, 10, None)
    assert "MemoryError" in str(found[1][2])


def test_a_command_is_killed_before_each_of_its_operations_on_files(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    whole = Command(("sheet", "init", "whole"), here).wait()
    assert whole.code == 0
    assert "Wrote whole" in whole.told
    assert whole.operations >= 4  # two folders, two files
    for number in (1, whole.operations):
        ended = Command(("sheet", "init", f"cut{number}"), here, number).wait()
        assert ended.code == -signal.SIGKILL
        assert ended.told == ""
    assert not (here / "cut1").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]


def test_a_command_that_fails_does_so_as_in_a_new_process(tmp_path: Path) -> None:
    ended = Command(("show", "nowhere"), tmp_path).wait()
    assert (ended.code, "error: " in ended.told) == (1, True)


def test_a_record_goes_on_after_a_kill_and_tries_faults_again(tmp_path: Path) -> None:
    record = Record(tmp_path / "folder" / "inputs.jsonl")
    record.add(0, outcome="1", fault=None)
    record.add(1, outcome="traceback", fault="KeyError")
    record.add(3, outcome="0")
    with record.path.open("a") as file:
        file.write('{"number": 2, "outc')
    again = Record(record.path)
    assert again.missing(range(4)) == [1, 2]
    assert again.faults(range(4)) == ["1: KeyError"]
    again.add(1, outcome="1")
    assert again.faults(range(4)) == []
    assert again.counted(range(4), "outcome") == {"0": 1, "1": 2}
