"""Folders are whole or absent, whenever the process that writes them is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from errata.errors import ErrataError, PatchError
from errata.store import folders
from errata.store.folders import replacing, write_folder

OLD = {"tensors": b"old tensors", "config": b"old config"}
NEW = {"tensors": b"new tensors", "config": b"new config", "card": b"new card"}

KILLED = """
import ctypes, os, pathlib, shutil, sys
from errata.store import folders
target, number, exchange = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "yes"
if not exchange:
    folders._exchange = lambda: None
done = 0

def counted(call):
    def wrapped(*args, **options):
        global done
        if done == number:
            os._exit(9)  # no handler, no `finally`: as kill -9
        done += 1
        return call(*args, **options)
    return wrapped

for home, name in ((pathlib.Path, "mkdir"), (os, "fsync"), (pathlib.Path, "rename"),
                   (shutil, "rmtree"), (pathlib.Path, "open"), (pathlib.Path, "unlink")):
    setattr(home, name, counted(getattr(home, name)))
folders._changed_places = counted(folders._changed_places)
files = {"tensors": b"new tensors", "config": b"new config", "card": b"new card"}
folders.write_folder(target, files, force=True)
print("whole", done)
"""


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_at(folder: Path, number: int, exchange: bool) -> bool:
    """Replace a folder in a process that is killed at a step; whether it got to its end."""
    words = [sys.executable, "-c", KILLED, str(folder), str(number), "yes" if exchange else "no"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 9), done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_and_nothing_for_long(
    exchange: bool, tmp_path: Path
) -> None:
    number, ended = 0, False
    while not ended:
        home = tmp_path / str(number)
        target = home / "made"
        target.mkdir(parents=True)
        for name, data in {**OLD, "mine.txt": b"notes"}.items():
            (target / name).write_bytes(data)
        ended = killed_at(target, number, exchange)
        if not target.is_dir():  # without the system's exchange there is one such moment
            assert not exchange
            folders.clear(target, tuple(NEW))
        found = content(target)
        own = {name: data for name, data in found.items() if name != "mine.txt"}
        assert own in (OLD, NEW), (number, found)
        write_folder(target, NEW, force=True)  # the next run
        assert content(target) == {**NEW, "mine.txt": b"notes"}, number
        assert [path.name for path in home.iterdir()] == ["made"], number
        number += 1
    assert number > 8


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", OLD, force=False)
    with pytest.raises(PatchError, match="already holds a thing"):
        write_folder(tmp_path / "a", NEW, force=False, what="a thing")
    assert content(tmp_path / "a") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_with_other_things_is_filled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes").write_text("mine")
    write_folder(tmp_path / "a", OLD, force=False)
    assert content(tmp_path / "a") == {**OLD, "notes": b"mine"}


def test_behind_a_link_the_folder_itself_is_replaced(tmp_path: Path) -> None:
    write_folder(tmp_path / "real", OLD, force=False)
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    write_folder(tmp_path / "link", NEW, force=True)
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == NEW


def test_the_current_folder_is_written_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "a", OLD, force=False)
    monkeypatch.chdir(tmp_path / "a")
    write_folder(Path("."), NEW, force=True)
    assert content(Path(".")) == NEW
    with (
        pytest.raises(ErrataError, match="current folder"),
        replacing(Path("."), force=True, owned=None),
    ):
        pass


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    yield folder
    folder.chmod(0o700)


def test_a_folder_that_may_not_be_written_is_said(read_only: Path) -> None:
    with pytest.raises(ErrataError, match="cannot write"):
        write_folder(read_only / "a", NEW, force=False)


def test_an_error_while_writing_costs_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", OLD, force=False)

    def half() -> None:
        with replacing(tmp_path / "a", force=True, owned=tuple(NEW)) as new:
            (new / "tensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(ErrataError, match="No space left"):
        half()
    assert content(tmp_path / "a") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_leftovers_of_the_living_are_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with replacing(target, force=True, owned=()) as mine:
        write_folder(target, NEW, force=True)
        assert mine.is_dir()
