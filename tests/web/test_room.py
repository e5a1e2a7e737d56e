"""One bench per tab: found again by its key, and left in peace by the others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from errata.errors import RunError
from errata.web import room as rooms
from errata.web.room import Room
from tests.web.conftest import done, wish

ONE, TWO = "1" * 32, "2" * 32


@pytest.fixture
def room(models) -> Iterator[Room]:
    made = Room(models)
    yield made
    made.close()
    assert not made.folder.exists()


def test_a_tab_that_comes_back_finds_its_work(room: Room, lm):
    bench = room.come("session-1", ONE)
    done(bench.load(lm.name))
    done(bench.edit(wish()))
    room.leave("session-1")
    assert room.come("session-2", ONE) is bench
    assert bench.patch is not None
    assert room.come("session-3", TWO) is not bench
    assert room.bench(TWO).patch is None


@pytest.mark.parametrize("key", ["", "1" * 31, "1" * 33, "../" + "1" * 29, "G" * 32])
def test_what_is_no_key_is_refused(room: Room, key: str):
    with pytest.raises(RunError, match="belongs to no tab"):
        room.bench(key)


def test_a_bench_is_left_when_the_last_tab_that_shows_it_is_gone(room: Room):
    bench = room.come("a", ONE)
    room.come("b", ONE)
    room.leave("a")
    assert bench._gone_since is None
    room.leave("b")
    assert bench._gone_since is not None
    room.come("c", ONE)
    assert bench._gone_since is None
    room.leave("nobody")


def test_the_oldest_that_nobody_looks_at_makes_room(room: Room, monkeypatch):
    monkeypatch.setattr(rooms, "MOST", 2)
    first = room.come("a", ONE)
    room.come("b", TWO)
    with pytest.raises(RunError, match="2 tabs are open"):
        room.come("c", "3" * 32)
    room.leave("a")
    room.come("c", "3" * 32)
    assert not first.folder.exists()
    assert room.come("d", "3" * 32) is room.bench("3" * 32)


def test_what_a_killed_server_left_is_removed_and_what_another_has_is_not(
    models, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(rooms.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(rooms.tempfile, "mkdtemp", lambda prefix: str(new(f"{prefix}new")))

    def new(name: str, age: float = 0.0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / rooms.HELD).touch()
        os.utime(folder / rooms.HELD, (time.time() - age,) * 2)
        return folder

    left, young = new("errata-web-left", 3600), new("errata-web-young")
    (left / "edit.zip").touch()
    other, strange = new("errata-web-other", 3600), new("something-else", 3600)
    linked = tmp_path / "errata-web-linked"
    linked.symlink_to(strange)
    lock = rooms.take_lock(other)
    os.utime(other / rooms.HELD, (time.time() - 3600,) * 2)
    try:
        room = Room(models)
    finally:
        lock.release()
    assert not left.exists()
    assert all(folder.exists() for folder in (young, other, strange, linked, room.folder))
    room.close()
