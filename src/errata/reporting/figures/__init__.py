"""Figures of the papers from finished runs: a picture, and its numbers beside it.

```
cells (errata.reporting.collect) ──▶ numbers of a figure: rows of a CSV file
                                 ──▶ drawn on one matplotlib figure: PNG and SVG
```

Some figures need no more than what runs wrote down. Others look into their editors: the model, the
networks and the data of the runs are loaded again (`errata.reporting.reopened`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from errata.config import did_you_mean
from errata.errors import ConfigError
from errata.reporting.collect import collect
from errata.reporting.figures import (
    answers,
    criteria,
    domains,
    gates,
    keys,
    latents,
    pruning,
    relations,
    residuals,
    scatter,
    trajectory,
    variants,
)
from errata.reporting.figures.base import Drawing, save

__all__ = ["FIGURES", "LOOKING", "Drawing", "draw", "figure"]

FIGURES = {
    "scatter": scatter.drawing,
    "latents": latents.drawing,
    "variants": variants.drawing,
    "domains": domains.drawing,
    "criteria": criteria.drawing,
    "trajectory": trajectory.drawing,
}
"""By name, what makes a drawing of cells: Fig. 2 to 5b of the IBKE paper, and sequences."""

LOOKING = {
    "answers": answers.drawing,
    "relations": relations.drawing,
    "gates": gates.drawing,
    "pruning": pruning.drawing,
    "keys": keys.drawing,
    "residuals": residuals.drawing,
}
"""Likewise of runs that are looked into: Fig. 1, 6, 7a and 7b, and figures of REP and of BLUE."""

SEEDED = ("relations",)
"""Those of them that draw, and take numbers over several draws."""


def draw(
    name: str,
    folders: str | Path | Iterable[str | Path],
    *,
    limit: int | None = None,
    seeds: int | None = None,
) -> Drawing:
    """Return a figure of everything that is finished in run folders and sweep folders.

    Args:
        name: One of `FIGURES`, or, of runs that are looked into, of `LOOKING`.
        folders: Run folders, sweep folders, or folders above them.
        limit: Cases that are looked into, of each run; None: as many as suit the figure.
        seeds: Draws that the numbers of `relations` are taken over; None: 3.

    Raises:
        ConfigError: If there is no such figure, or it takes no such setting.
        RunError: If there is no finished evaluation, none has what the figure shows, or a run that
            is looked into is not what it was.
        MissingExtra: If a package is missing.
    """
    if name not in FIGURES and name not in LOOKING:
        raise ConfigError(f"unknown figure {name!r}", did_you_mean(name, [*FIGURES, *LOOKING]))
    for setting, value, able in (("limit", limit, tuple(LOOKING)), ("seeds", seeds, SEEDED)):
        if value is not None and name not in able:
            raise ConfigError(
                f"figure {name} takes no {setting}", f"Figures that do: {', '.join(able)}"
            )
        if value is not None and value < 1:
            raise ConfigError(f"{setting} is {value}; expected at least 1")
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    cells = collect([Path(folder) for folder in given]).cells
    if name in FIGURES:
        return FIGURES[name](cells)
    given_settings = {"limit": limit, "seeds": seeds}
    return LOOKING[name](cells, **{k: v for k, v in given_settings.items() if v is not None})


def figure(
    name: str,
    folders: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    limit: int | None = None,
    seeds: int | None = None,
    force: bool = False,
) -> list[Path]:
    """Draw a figure and write it to a folder as PNG, SVG and CSV; see `draw`.

    Raises:
        MissingExtra: If matplotlib is not installed.
    """
    return save(draw(name, folders, limit=limit, seeds=seeds), Path(out), force=force)
