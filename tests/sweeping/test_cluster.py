"""Units on a Ray cluster of this machine, with a worker killed in the middle of a cell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from errata.errors import MissingExtra
from errata.sweeping.recipe import read_recipe
from errata.sweeping.units import expand

CASES = 200
PATIENCE = 180.0
RECIPE = f"""
name = "small"
models.pocket = {{ id = "pocket" }}
data.world = {{ spec = "world", limit = {CASES} }}
editors.ft = {{ editor = "ft" }}
editors.none = {{ editor = "none" }}
"""


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from errata.sweeping.cluster import RayExecutor

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'errata\[cluster\]'"):
        RayExecutor()


def _parent_of(process: int) -> int:
    shown = subprocess.run(
        ["ps", "-o", "ppid=", "-p", str(process)], capture_output=True, text=True, check=True
    )
    return int(shown.stdout)


@pytest.mark.slow
def test_a_killed_workers_cell_is_retried(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    document = tmp_path / "small.toml"
    document.write_text(RECIPE, encoding="utf-8")
    recipe = read_recipe(document)
    out = tmp_path / "out"
    units = expand(recipe, out)
    records = units[0].folder / "records.jsonl"
    kept: list[bytes] = []
    killed: list[int] = []

    def kill() -> None:
        until = time.monotonic() + PATIENCE
        while not records.exists() and time.monotonic() < until:
            time.sleep(0.02)
        worker = _parent_of(int((units[0].folder / "lock").read_text()))
        assert worker != os.getpid()
        os.kill(worker, signal.SIGKILL)
        killed.append(worker)
        kept.append(records.read_bytes().rpartition(b"\n")[0])

    killer = threading.Thread(target=kill)
    killer.start()
    words = ["sweep", str(document), "--ray", "local", "--jobs", "1", "--out", str(out), "--json"]
    command = [sys.executable, "-m", "errata", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    killer.join()
    assert done.returncode == 0, done.stderr
    # exactly one document, whatever Ray has to say about its workers
    cells = {entry["row"]: entry for entry in json.loads(done.stdout)["cells"]}
    assert len(killed) == 1
    assert 0 < len(kept[0].splitlines()) < CASES
    assert "its worker was lost; attempt 2" in done.stderr
    assert {name: entry["status"] for name, entry in cells.items()} == {
        "ft": "done",
        "none": "done",
    }
    assert {name: entry["attempts"] for name, entry in cells.items()} == {"ft": 2, "none": 1}
    lines = records.read_bytes()
    assert lines.startswith(kept[0])
    assert len({json.loads(line)["id"] for line in lines.splitlines()}) == CASES
    assert json.loads((units[0].folder / "summary.json").read_text())["cases"] == CASES
