"""Run folders: locks, torn lines, refusals."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from errata.errors import RunError
from errata.store.provenance import environment
from errata.store.runs import RunFolder, load_run

CONFIG = {"editor": {"name": "rome", "config": {"layer": 3}}, "run": {"device": "cpu"}}


def make(path: Path, *records: dict) -> Path:
    with RunFolder.create(path, CONFIG) as run:
        for record in records:
            run.append([record])
    return path


def test_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["errata", "eval", "--data", "my set"])
    with RunFolder.create(tmp_path / "a" / "b", CONFIG) as run:
        assert run.records == []
        run.append([{"id": "1", "x": 0.1}, {"id": "2", "x": "é"}])
        run.append([{"id": "3"}])
        assert load_run(run.path).summary is None
        run.finish({"cases": 3})
    read = load_run(tmp_path / "a" / "b")
    assert read.config == CONFIG
    assert [record["id"] for record in read.records] == ["1", "2", "3"]
    assert read.summary == {"cases": 3}
    assert (read.path / "command.txt").read_text() == "errata eval --data 'my set'\n"
    env = json.loads((read.path / "env.json").read_text())
    assert env["versions"]["numpy"]
    assert env["python"].startswith("3.")


def test_an_existing_run_is_neither_overwritten_nor_mixed(tmp_path):
    path = make(tmp_path / "r", {"id": "1"})
    with pytest.raises(RunError, match="already holds a run") as caught:
        RunFolder.create(path, CONFIG)
    assert "--resume" in (caught.value.hint or "")
    assert len(load_run(path).records) == 1
    with RunFolder.create(path, CONFIG, resume=True) as run:
        assert run.records == [{"id": "1"}]
    with RunFolder.create(path, CONFIG, force=True) as run:
        assert run.records == []
    assert load_run(path).records == []


def test_force_removes_only_what_a_run_wrote(tmp_path):
    path = make(tmp_path / "r", {"id": "1"})
    (path / "notes.txt").write_text("mine")
    with RunFolder.create(path, CONFIG, force=True):
        pass
    assert (path / "notes.txt").read_text() == "mine"


def test_resuming_nothing_starts_a_run(tmp_path):
    with RunFolder.create(tmp_path / "r", CONFIG, resume=True) as run:
        assert run.records == []


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_text("")
    for force in (False, True):
        with pytest.raises(RunError, match="not a run folder"):
            RunFolder.create(tmp_path, CONFIG, force=force)
    assert [file.name for file in tmp_path.iterdir()] == ["photo.jpg"]
    with pytest.raises(RunError, match="cannot use"):
        RunFolder.create(tmp_path / "photo.jpg", CONFIG)
    with pytest.raises(RunError, match="not a run folder"):
        load_run(tmp_path)


@pytest.mark.parametrize("torn", [b'{"id": "3", "x"', b'{"id": "3"}', b"\x00\x00\x00\n", b"\n"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = make(tmp_path / "r", {"id": "1"}, {"id": "2"})
    whole = (path / "records.jsonl").read_bytes()
    (path / "records.jsonl").write_bytes(whole + torn)
    assert [r["id"] for r in load_run(path).records] == ["1", "2"]
    with RunFolder.create(path, CONFIG, resume=True) as run:
        assert [r["id"] for r in run.records] == ["1", "2"]
        run.append([{"id": "3"}])
    assert (path / "records.jsonl").read_bytes() == whole + b'{"id": "3"}\n'


def test_damage_in_the_middle_is_an_error(tmp_path):
    path = make(tmp_path / "r", {"id": "1"}, {"id": "2"})
    (path / "records.jsonl").write_text('{"id": "1"}\nhello\n{"id": "2"}\n')
    with pytest.raises(RunError, match="line 2"):
        RunFolder.create(path, CONFIG, resume=True)


def test_another_configuration_is_refused_by_name(tmp_path):
    path = make(tmp_path / "r")
    other = {"editor": {"name": "rome", "config": {"layer": 4}}, "run": {"device": "cuda"}}
    with pytest.raises(RunError, match=r"editor\.config\.layer was 3, is 4") as caught:
        RunFolder.create(path, other, resume=True)
    assert "device" not in caught.value.message
    with pytest.raises(RunError, match=r"extra was None, is 1"):
        RunFolder.create(path, {**CONFIG, "extra": 1}, resume=True)


def test_two_runs_in_one_process(tmp_path):
    with RunFolder.create(tmp_path / "r", CONFIG):
        for more in ({}, {"resume": True}, {"force": True}):
            with pytest.raises(RunError, match=f"pid {os.getpid()}"):
                RunFolder.create(tmp_path / "r", CONFIG, **more)
    with RunFolder.create(tmp_path / "r", CONFIG, resume=True):
        pass


def test_two_processes_and_a_kill(tmp_path):
    code = (
        "import sys, time\n"
        "from errata.store.runs import RunFolder\n"
        "run = RunFolder.create(sys.argv[1], {'a': 1})\n"
        "run.append([{'id': 'x'}])\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    path = tmp_path / "r"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(RunError, match=f"pid {child.pid}"):
            RunFolder.create(path, {"a": 1}, resume=True)
        child.kill()
    with RunFolder.create(path, {"a": 1}, resume=True) as run:
        assert run.records == [{"id": "x"}]


def test_a_refused_folder_is_unlocked(tmp_path):
    path = make(tmp_path / "r")
    with pytest.raises(RunError, match="already"):
        RunFolder.create(path, CONFIG)
    with RunFolder.create(path, CONFIG, resume=True):
        pass


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    with RunFolder.create(tmp_path / "r", CONFIG) as run:
        run.append([{"id": "1"}])
        kept = (run.path / "records.jsonl").read_bytes()

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(RunError, match="No space left") as caught:
                run.append([{"id": "2"}])
            assert "--resume" in (caught.value.hint or "")
            with pytest.raises(RunError, match="No space left"):
                run.finish({"cases": 1})
        assert (run.path / "records.jsonl").read_bytes() == kept
        assert not (run.path / "summary.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_records_on_a_device_that_is_full(tmp_path):
    with RunFolder.create(tmp_path / "r", CONFIG) as run:
        (run.path / "records.jsonl").symlink_to("/dev/full")
        with pytest.raises(RunError, match="cannot write"):
            run.append([{"id": "1"}])


def test_values_json_cannot_hold_are_refused(tmp_path):
    with RunFolder.create(tmp_path / "r", CONFIG) as run:
        with pytest.raises(ValueError, match="JSON"):
            run.append([{"id": "1", "x": float("nan")}])
        assert not (run.path / "records.jsonl").exists()


def test_environment_is_json(tmp_path):
    text = json.dumps(environment())
    assert "errata" in text


@pytest.mark.parametrize("name", ["config.json", "env.json", "summary.json"])
@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_a_number_that_no_run_writes_is_damage(tmp_path, name, number):
    """It would be read, and then be in the way of writing the file again."""
    with RunFolder.create(tmp_path / "run", CONFIG) as run:
        run.append([{"id": "a"}])
    (tmp_path / "run" / name).write_text(f'{{"seconds": {number}}}')

    def read() -> object:
        if name == "summary.json":
            return load_run(tmp_path / "run")
        return RunFolder.create(tmp_path / "run", CONFIG, resume=True)

    with pytest.raises(RunError, match=f"{name}.*finite") as error:
        read()
    assert "--force" in str(error.value.hint)
