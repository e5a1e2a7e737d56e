"""Carries out the cells; finished ones are skipped, interrupted ones go on where they stood."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import errata
from errata.data import load_cases
from errata.data._facts import KNOWN, load_facts
from errata.editors import Editor, get_editor
from errata.editors.fitting import fitted
from errata.errors import ErrataError
from errata.evaluation.general import ITEMS, General
from errata.model.lm import LM
from errata.patch import Patch
from errata.store.runs import Run, load_run
from errata.tracing.effects import TraceSettings
from errata.tracing.trace import trace
from studies.common import results
from studies.common.device import card_of, spent_since
from studies.real.compact import compact, rounded, without_quotes
from studies.real.plan import DATA, TASKS, Cell

RESULTS = Path(__file__).parent / "results"
PLACE = "{data}"
WHOLE = ("ability", "trace")
"""Parts whose cells have no records to keep before they are finished."""


@dataclass(frozen=True)
class Places:
    """Where things lie.

    Attributes:
        runs: Run folders of cells.
        data: Folder of the data.
        models: Folder of the models.
    """

    runs: Path
    data: Path
    models: Path

    def filled(self, value: Any) -> Any:
        """Return a setting with the folder of the data in its place."""
        if isinstance(value, str):
            return value.replace(PLACE, str(self.data))
        if isinstance(value, Mapping):
            return {key: self.filled(own) for key, own in value.items()}
        return value

    def emptied(self, value: Any) -> Any:
        """Return a setting as it is kept: without where the data lie."""
        if isinstance(value, str):
            return value.replace(str(self.data), PLACE)
        if isinstance(value, Mapping):
            return {key: self.emptied(own) for key, own in value.items()}
        if isinstance(value, Sequence):
            return [self.emptied(own) for own in value]
        return value


class Study:
    """The models, and what is kept.

    Args:
        places: Where things lie.
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self._lm: tuple[tuple[str, str, str], LM] | None = None

    def lm(self, cell: Cell) -> LM:
        """Return the model of a cell; one is held at a time."""
        key = (cell.model, cell.dtype, cell.compute)
        if self._lm is None or self._lm[0] != key:
            self._lm = None
            path = str(self.places.models / cell.model)
            self._lm = key, errata.load(path, dtype=cell.dtype, compute=cell.compute)
        return self._lm[1]

    def do(self, cell: Cell) -> None:
        """Carry out a cell, or the rest of it, and keep its records."""
        if cell.part == "ability":
            write(cell.name, self._ability(cell))
            return
        if cell.part == "trace":
            write(cell.name, self._trace(cell))
            return
        lm, out = self.lm(cell), self.places.runs / cell.name
        protocol = {"bootstrap": 0, **self.places.filled(cell.protocol)}
        before, began = _recorded(out), time.process_time()
        data = load_cases(self.places.filled(DATA[cell.data]), limit=cell.first + cell.limit)
        data = replace(data, cases=data.cases[cell.first :])
        errata.evaluate(
            lm, self._editor(cell, lm), data,
            protocol=protocol, out=out, resume=out.exists(), progress=_keeper(out),
        )  # fmt: skip
        self.keep(cell)
        made = _recorded(out) - before
        result = read(cell.name)
        spent = spent_since(began, card_of(lm))
        if made and result is not None and spent is not None:
            write(cell.name, {**result, "cpu_each": round(spent / made, 2)})

    def _editor(self, cell: Cell, lm: LM) -> Editor:
        editor = get_editor(cell.editor, self.places.filled(cell.settings), model=cell.model)
        return fitted(editor, lm) if cell.suited else editor

    def keep(self, cell: Cell) -> int:
        """Keep what there is of a cell so far; returns the number of its records."""
        folder = self.places.runs / cell.name
        if not (folder / "config.json").is_file():
            return 0
        run = load_run(folder)
        before = read(cell.name)
        if not run.records or (before and len(before["records"]) >= len(run.records)):
            return len(run.records)
        write(cell.name, self._result(cell, run))
        return len(run.records)

    def _trace(self, cell: Cell) -> dict[str, Any]:
        """Return a causal trace, made with a cache of its own: `layer=auto` must not follow it."""
        lm, how = self.lm(cell), self.places.filled(cell.protocol)
        facts = load_facts(how["data"])
        with cache_in(self.places.runs / "traces"):
            found = trace(
                lm, facts.facts, TraceSettings(**cell.settings), kinds=how["kinds"],
                limit=cell.limit, data=KNOWN,
            ).as_dict()  # fmt: skip
        found["model"] = cell.model
        own = {"cell": asdict(cell), "errata": errata.__version__, "finished": True}
        return {**own, "trace": rounded(found), "records": list(range(found["facts"]))}

    def _ability(self, cell: Cell) -> dict[str, Any]:
        """Return the general ability of the model as it is, or after a sequence of edits."""
        lm, after = self.lm(cell), cell.protocol["after"]
        patch = None if after is None else Patch.load(self.places.runs / f"{after}.patch")
        general = General(lm, cell.protocol["general"], self.places.data / "ability")
        return {
            "cell": asdict(cell),
            "fingerprint": lm.fingerprint[:16],
            "content": general.id,
            "items": ITEMS,
            "errata": errata.__version__,
            "finished": True,
            "rates": rounded(general.measure(patch)),
            "records": list(TASKS),
        }

    def _result(self, cell: Cell, run: Run) -> dict[str, Any]:
        lm, config = self.lm(cell), run.config
        return {
            "cell": asdict(cell),
            "config": self.places.emptied(config["editor"]["config"]),
            "blocks": list(self._editor(cell, lm).edited_layers(lm) or ()),
            "fingerprint": config["model"]["fingerprint"][:16],
            "data_version": config["data"]["version"],
            "errata": config["run"]["errata"],
            "device": card_of(lm),
            "finished": run.summary is not None,
            "once": _once(run),
            "records": [compact(record, lm.tokenizer) for record in run.records],
        }


def _recorded(folder: Path) -> int:
    """Return the number of records in a run folder."""
    return len(load_run(folder).records) if (folder / "config.json").is_file() else 0


def _keeper(folder: Path) -> Callable[[int, int], None]:
    """Return a callback that keeps the patch of a sequence, for what is measured of it later."""

    def keep(done: int, total: int) -> None:
        newest = max(folder.glob("checkpoint.*/0"), default=None, key=os.path.getmtime)
        if newest is not None:
            kept = folder.with_suffix(".patch")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(newest, kept)

    return keep


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Keep what is cached in a folder of its own for a while."""
    before = os.environ.get("ERRATA_CACHE")
    os.environ["ERRATA_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("ERRATA_CACHE")
        if before is not None:
            os.environ["ERRATA_CACHE"] = before


def _once(run: Run) -> dict[str, float]:
    seconds = (run.summary or {}).get("seconds", {})
    return {key: round(seconds[key], 1) for key in ("prepare", "pre_edit") if key in seconds}


def write(name: str, result: dict[str, Any]) -> None:
    """Write a result."""
    results.write(RESULTS, name, result)


def read(name: str) -> dict[str, Any] | None:
    """Return a result, finished or not; None if nothing of the cell is kept."""
    return results.read(RESULTS, name)


def finished(cell: Cell) -> bool:
    """Whether a cell is kept whole."""
    found = read(cell.name)
    return found is not None and found["finished"]


def carry_out(cells: Sequence[Cell], places: Places) -> None:
    """Do all cells that are not finished, in order; one that cannot be done is named and left."""
    torch.set_flush_denormal(True)
    study = Study(places)
    for cell in cells:
        if finished(cell):
            continue
        began, cpu = time.monotonic(), time.process_time()
        try:
            study.do(cell)
        except ErrataError as error:
            say(f"{cell.name}: {without_quotes(error.message)}")
            continue
        say(
            f"{cell.name}: {time.monotonic() - began:.0f} s, "
            f"{time.process_time() - cpu:.0f} CPU-s, kept"
        )


def keep_all(cells: Sequence[Cell], places: Places) -> None:
    """Keep the records of cells under way too."""
    study = Study(places)
    for cell in cells:
        if cell.part not in WHOLE and not finished(cell) and (count := study.keep(cell)):
            say(f"{cell.name}: {count} of {cell.limit}")


def states(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a line for every cell: its name and how far it is."""
    for cell in cells:
        found = read(cell.name)
        yield f"{cell.name}: {0 if found is None else len(found['records'])} of {cell.limit}"


def say(text: str) -> None:
    """Write a line to stderr."""
    print(f"{time.strftime('%H:%M')} {text}", file=sys.stderr, flush=True)


def default(name: str, otherwise: str) -> Path:
    """Return a folder named in the environment, or another."""
    return Path(os.environ.get(name) or otherwise).expanduser()
