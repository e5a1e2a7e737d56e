"""Carries out the runs of the study; finished ones are skipped, an interrupted one is resumed."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

import errata
from errata.data import LoadedData, load_cases
from errata.editors import get_editor
from errata.editors.base_trained import TrainedEditor
from errata.model.lm import LM
from errata.training.config import TrainConfig
from errata.training.groups import Group, complete, make_groups
from errata.training.loop import Trainer
from errata.training.prepared import Prepared
from studies.common import results
from studies.pocket.measure import describe, measure
from studies.pocket.plan import SCALES, STEPS, Run

HERE = Path(__file__).parent
RESULTS = HERE / "results"
VARIANTS = {"train": 3, "val": 4, "test": 2, "test_domains": 2}
"""Records per fact: more of them make rates more exact; intervals count facts, not records."""

SPLITS = ("test", "test_domains")
VALIDATION = 256


class Study:
    """The model, the data and what is shared between runs.

    Args:
        folder: Where checkpoints of trainings go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lm: LM = errata.load("pocket")
        self._prepared: dict[tuple[str, ...], Prepared] = {}

    @cache  # noqa: B019 -- one study per process
    def data(self, split: str) -> LoadedData:
        """Return a split of the world."""
        return load_cases("world", split=split, options={"variants": VARIANTS[split]})

    @cache  # noqa: B019
    def groups(self, split: str, generality: str) -> list[Group]:
        """Return the training groups of a split."""
        cases = self.data(split).cases[: VALIDATION if split == "val" else None]
        return make_groups(self.lm, cases, hops="unknown", generality=generality)

    def prepared(self, editor: TrainedEditor) -> Prepared:
        """Return what training reuses, computed once for editors of the same matrices."""
        sites = editor.sites(self.lm)
        mirror = str(getattr(editor.settings, "mirror", False))
        key = (*(site.path for _, site in sites), mirror)
        if key not in self._prepared:
            self._prepared.clear()  # one set fits in memory
            everything = [*self.groups("train", "all"), *self.groups("val", "all")]
            made = complete(self.lm, editor, everything)
            self._prepared[key] = Prepared(self.lm, sites, made, memory_gb=8.0)
        return self._prepared[key]

    def do(self, run: Run, splits: tuple[str, ...] = SPLITS) -> dict[str, Any]:
        """Train and measure one editor."""
        # settings found for pocket are for editors without training: the plan names all others
        model = "pocket" if run.training is None else None
        editor = get_editor(run.editor, run.settings, model=model)
        found: dict[str, Any] = {"run": asdict(run), "training": None}
        if run.training is not None:
            assert isinstance(editor, TrainedEditor)
            found["training"] = self._train(run, editor)
        found["splits"] = {s: measure(self.lm, editor, self.data(s), run.half) for s in splits}
        found["errata"] = errata.__version__
        return found

    def _train(self, run: Run, editor: TrainedEditor) -> dict[str, Any]:
        values = {
            "steps": STEPS, "hops": "unknown", "validate_every": 125, "save_every": 125,
            **(run.training or {}),
        }  # fmt: skip
        config = TrainConfig.model_validate(values)
        groups = self.groups("train", config.generality)
        if run.domains:
            chosen = {c.id for c in self.data("train").cases if c.meta["domain"] in run.domains}
            groups = [group for group in groups if group.id in chosen]
        trainer = Trainer(
            self.lm, editor, [complete(self.lm, editor, groups)],
            complete(self.lm, editor, self.groups("val", config.generality)), config,
            self.folder / run.name, {}, _report(run.name), self.prepared(editor),
        )  # fmt: skip
        began = time.process_time()
        trained = trainer.run(resume=True)
        keep = ("step", "best", "best_step", "seconds", "parameters", "train_groups")
        cpu = time.process_time() - began
        return {**{k: trained.summary[k] for k in keep}, "cpu_seconds": round(cpu, 1)}

    def frontier(self, run: Run) -> dict[str, Any]:
        """Measure finished networks at other strengths, on the first record of each fact."""
        found: dict[str, Any] = {split: {} for split in SPLITS}
        for scale in (1.0, *SCALES):
            networks = str(self.folder / run.name)
            editor = get_editor(run.editor, {"weights": networks, "scale": scale})
            for split in SPLITS:
                cases = measure(self.lm, editor, self.data(split), half=True)["cases"]
                found[split][f"{scale:g}"] = {key: cases[key] for key in ("gen1", "loc1")}
        return found

    def cases(self) -> dict[str, Any]:
        """Return what the page needs to know of the cases."""
        return {split: describe(self.data(split)) for split in SPLITS}


def _report(name: str) -> Any:
    last = [0.0]

    def report(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 20 or done == total:
            last[0] = time.monotonic()
            print(f"{name}: {what} {done}/{total}", file=sys.stderr, flush=True)

    return report


def write(name: str, result: dict[str, Any]) -> None:
    """Write a result."""
    results.write(RESULTS, name, result)


def read(name: str) -> dict[str, Any] | None:
    """Return a result; None if the run is not finished."""
    return results.read(RESULTS, name)


def carry_out(runs: list[Run], folder: Path) -> None:
    """Do all runs that have no result yet."""
    torch.set_flush_denormal(True)
    study = Study(folder)
    if read("cases") is None:
        write("cases", study.cases())
    for run in runs:
        if read(run.name) is None:
            write(run.name, study.do(run))


def carry_out_frontiers(runs: list[Run], folder: Path) -> None:
    """Measure the frontiers of finished runs that have none yet."""
    study = Study(folder)
    for run in runs:
        result = read(run.name)
        if run.frontier and result is not None and "frontier" not in result:
            write(run.name, {**result, "frontier": study.frontier(run)})
