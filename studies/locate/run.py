"""Carries out the runs of the study; finished ones are skipped, interrupted sequences resumed."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

import errata
from errata import evaluate
from errata.case import Case
from errata.editors import get_editor
from errata.evaluation.robustness import robustness_suite
from errata.model.lm import LM
from studies.common import results
from studies.common.statistics import mean
from studies.locate.data import NAME_GENERAL, SEEDS, describe, facts, loaded, with_general
from studies.locate.plan import Run
from studies.locate.values import shared_values

RESULTS = Path(__file__).parent / "results"
EVERY = 5
"""Steps of a sequence between two measurements."""

Record = Mapping[str, Any]


class Study:
    """The model, the facts and what is shared between runs.

    Args:
        folder: Where the state of sequences goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lm: LM = errata.load("pocket")

    @cache  # noqa: B019 -- one study per process
    def facts(self, seed: int) -> list[Case]:
        """Return the facts of a seed."""
        return facts(seed)

    @cache  # noqa: B019
    def suite(self, seed: int, count: int) -> list[Case]:
        """Return the first facts of a seed with the questions of the robustness suite."""
        data = loaded(self.facts(seed)[:count])
        return list(robustness_suite(self.lm, data, options={"variants": len(SEEDS)}).cases)

    def do(self, run: Run) -> dict[str, Any]:
        """Evaluate one editor."""
        sequence = run.part == "sequence"
        robust = run.part == "robustness"
        cases = self.suite(run.seed, run.edits) if robust else self.facts(run.seed)[: run.edits]
        editor = get_editor(run.editor, run.settings, model="pocket")
        began = time.process_time()
        sequential = run.regime.startswith("sequential")
        out = self.folder / run.name if sequence else None
        found = evaluate(
            self.lm, editor, with_general(cases) if sequence else cases,
            regime=run.regime, batch=run.batch, retention=sequential, bootstrap=0,
            every=EVERY if sequence else 0, keep_collisions=True, stack_size=64,
            out=out, resume=out is not None and out.exists(),
        )  # fmt: skip
        by_id = {record["id"]: record for record in found.records}
        records = [by_id[case.id] for case in cases]
        result = {
            "run": asdict(run),
            "config": editor.config.model_dump(mode="json"),
            "cases": by_test(records) if robust else columns(records),
            "failed": sum(record["error"] is not None for record in records),
            "edit_seconds": round(found.summary["seconds"]["per_edit"] or 0.0, 5),
            "cpu_seconds": round(time.process_time() - began, 1),
            "errata": errata.__version__,
        }
        if sequential:
            result["ages"] = [record.get("age") for record in records]
            result["trajectory"] = records[-1].get("trajectory")
        if sequence:
            asked = [q for q in records[-1]["questions"] if q["name"] == NAME_GENERAL]
            result["general"] = [round(100 * q["gold"]) for q in asked]
        if out is not None:
            shutil.rmtree(out)
        return result


def columns(records: Sequence[Record]) -> dict[str, list[int | None]]:
    """Return top-1 scores of every case in percent: reliability, generality and locality.

    In sequences also `rel0`, reliability right after the edit.
    """
    found: dict[str, list[int | None]] = {"rel": [], "gen": [], "loc": []}
    kinds = {"rel": "reliability", "gen": "generality", "loc": "locality"}
    for record in records:
        for column, kind in kinds.items():
            own = [
                q["top1"]
                for q in record["questions"]
                if q["kind"] == kind and q["name"] != NAME_GENERAL
            ]
            found[column].append(_percent(own))
    if any(record.get("immediate") for record in records):
        found["rel0"] = [_percent(record.get("immediate") or []) for record in records]
    return found


def by_test(records: Sequence[Record]) -> dict[str, list[int | None]]:
    """Return the scores of every case in percent, by test of the robustness suite."""
    names = ["edit"]
    for record in records:
        names += [q["name"] for q in record["questions"] if q["kind"] != "reliability"]
    found: dict[str, list[int | None]] = {name: [] for name in dict.fromkeys(names)}
    for record in records:
        for name, column in found.items():
            own = [
                q["score"]
                for q in record["questions"]
                if (q["kind"] == "reliability" if name == "edit" else q["name"] == name)
            ]
            column.append(_percent(own))
    return found


def _percent(scores: Sequence[float]) -> int | None:
    return round(100 * mean(scores)) if scores else None


def write(name: str, result: dict[str, Any]) -> None:
    """Write a result."""
    results.write(RESULTS, name, result)


def read(name: str) -> dict[str, Any] | None:
    """Return a result; None if the run is not finished."""
    return results.read(RESULTS, name)


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Keep other processes off a run while it is carried out; yields whether it is ours."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.claim"
    if path.is_file() and not _alive(path.read_text()):
        path.unlink(missing_ok=True)
    try:
        with path.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    return True


def carry_out(runs: list[Run], folder: Path) -> None:
    """Do all runs that have no result yet; several processes may share the work."""
    torch.set_flush_denormal(True)
    study = Study(folder)
    if read("cases") is None:
        write("cases", {str(seed): describe(study.facts(seed)) for seed in SEEDS})
    with shared_values():
        for run in runs:
            with claimed(folder, run.name) as ours:
                if not ours or read(run.name) is not None:
                    continue
                result = study.do(run)
                write(run.name, result)
                rates = {k: round(mean(v), 1) for k, v in result["cases"].items()}
                print(run.name, result["cpu_seconds"], rates, file=sys.stderr, flush=True)
