"""Small recipes, and a stand-in for `errata` that does what a test wants of a unit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from errata.sweeping.recipe import EditorRow
from errata.sweeping.units import Unit

# Called as `stand_in.py PARENT KIND BEHAVIOUR --out FOLDER [--resume]`.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
from errata.sweeping.child import end_with
parent, kind, behaviour, _, folder, *rest = sys.argv[1:]
end_with(int(parent))
folder = Path(folder)
folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts").open("a") as file:
    file.write(f"{time.monotonic()} {os.getpid()} {' '.join(rest)}\\n")
(folder / "device").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
if behaviour == "wrong":
    print("error: unknown setting 'colour'", flush=True)
    sys.exit(2)
if behaviour == "fails":
    sys.exit("error: out of luck")
if behaviour == "silent":
    sys.exit(0)
if behaviour == "hangs" and "--resume" not in rest:
    (folder / "partial").write_text("half")
    time.sleep(60)
summary = {"cases": 2, "reliability": 1.0, "generality": 0.5, "locality": None, "average": 0.75}
(folder / "summary.json").write_text(json.dumps(summary))
print("done")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let units run the stand-in instead of `errata`."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setattr("errata.sweeping.child.COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr("errata.sweeping.schedule.RETRY_SECONDS", 0.05)


def unit(
    out: Path, name: str, behaviour: str = "works", needs: tuple[str, ...] = (), **more: Any
) -> Unit:
    """Return a unit that runs the stand-in."""
    kind = "train" if name.startswith("train/") else "eval"
    folder = out / name
    facts: dict[str, Any] = {
        "name": name, "kind": kind, "words": (kind, behaviour, "--out", str(folder)),
        "folder": folder, "needs": needs, "row": name, "label": name,
        "entry": EditorRow(editor="none"), "model": "pocket", "data": "world", "seed": 0,
    }  # fmt: skip
    return Unit(**{**facts, **more})


SMALL: dict[str, Any] = {
    "name": "small",
    "models": {"pocket": {"id": "pocket"}},
    "data": {"world": {"spec": "world"}},
    "editors": {"none": {"editor": "none"}},
}


def small(**sections: Any) -> dict[str, Any]:
    """Return a recipe of one cell, with some sections replaced."""
    return {**SMALL, **sections}
