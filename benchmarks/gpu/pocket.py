"""The pocket model on two devices, its editors, and how patches and scores are compared."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.run import Bench

UNTRAINED = ("ke", "malmen")
"""Editors whose networks do not come with the package: trained here for a few steps."""


@functools.cache
def load(device: str, dtype: str = "float32") -> Any:
    """Return the pocket model; one per device and type."""
    import errata

    return errata.load("pocket", device=device, dtype=dtype)


@functools.cache
def records(count: int) -> list[Any]:
    """Return cases of the pocket world without hops."""
    import errata

    loaded = errata.load_cases("world", split="test", limit=count, seed=0)
    return [
        replace(case, probes=tuple(replace(probe, hops=()) for probe in case.probes))
        for case in loaded.cases
    ]


def editor_names() -> list[str]:
    """Return every editor, those joined with a strategy too."""
    from errata.editors import editors

    return list(editors.all)


QUICK: dict[str, Any] = {"steps": 5, "moments_samples": 400, "ridge": 0.1, "contexts": "bare"}
"""Settings of a rehearsal on a CPU, for the editors that have them: the same lines run, soon."""


def settings_of(bench: Bench, name: str) -> dict[str, Any]:
    """Return what an editor needs besides its defaults: networks, for those that bring none."""
    if name not in UNTRAINED:
        import errata

        known = type(errata.get_editor(name, model="pocket").config).model_fields
        return {key: value for key, value in QUICK.items() if bench.small and key in known}
    folder = bench.out / f"networks-{name}"
    if not (folder / "best").is_dir():
        import errata
        from errata.training import TrainConfig

        config = TrainConfig(steps=2, batch=4, warmup=1, calibration_edits=4, validation_groups=4)
        errata.train(load("cpu"), name, records(60), folder, config=config, force=True)
    return {"weights": str(folder / "best")}


def build(bench: Bench, name: str) -> Any:
    """Return an editor with its settings for the pocket model."""
    import errata

    return errata.get_editor(name, settings_of(bench, name), model="pocket")


def rows_of(lm: Any, cases: Sequence[Any]) -> list[Any]:
    """Return the rows of all edits and questions."""
    asked = [(e.prompt, e.target) for case in cases for e in case.edits]
    asked += [(p.prompt, p.target) for case in cases for p in case.probes]
    return [lm.row(prompt, target) for prompt, target in asked]


def logprobs(lm: Any, cases: Sequence[Any], patch: Any = None) -> Any:
    """Return log-probabilities of all label tokens, under a patch if one is given."""
    import torch

    rows = rows_of(lm, cases)
    if patch is None:
        scores = lm.score(rows)
    else:
        with patch.applied(lm):
            scores = lm.score(rows)
    return torch.tensor([value for score in scores for value in score.logprobs]).double()


def weights(lm: Any) -> dict[str, Any]:
    """Return a copy of all weights."""
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


def unchanged(lm: Any, before: dict[str, Any]) -> bool:
    """Whether every weight is bit for bit what it was."""
    import torch

    now = lm.model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in before)


NEGLIGIBLE = 1e-3
"""A part of a patch that is smaller than this share of its largest part is compared with that share
of it: BLUE's second block, when the first has done everything, is rounding and nothing else."""


def difference(patch: Any, other: Any) -> float:
    """Return the largest relative difference of two patches' changes; infinite if of other shape.

    Low-rank changes are compared multiplied out, others tensor by tensor.
    """
    parts, others = ([v for change in p.changes for v in _values(change)] for p in (patch, other))
    if [part.shape for part in parts] != [part.shape for part in others]:
        return float("inf")
    sizes = [float(part.norm()) for part in others]
    least = NEGLIGIBLE * max(sizes, default=0.0)
    gaps = [float((a - b).norm()) for a, b in zip(parts, others, strict=True)]
    ratios = [gap / max(size, least) for gap, size in zip(gaps, sizes, strict=True) if gap]
    return max(ratios, default=0.0)


def _values(change: Any) -> list[Any]:
    found = {name: tensor.detach().cpu().double() for name, tensor in change.tensors().items()}
    if found.keys() == {"A", "B"}:
        return [found["B"] @ found["A"]]
    return [found[name] for name in sorted(found)]


def saved(patch: Any, folder: Path) -> Any:
    """Return the patch as it comes back from disk."""
    import errata

    return errata.Patch.load(patch.save(folder, force=True))
