"""Figures of the IBKE paper from finished runs: a picture, and its numbers beside it.

```
cells (errata.reporting.collect) ──▶ numbers of a figure: rows of a CSV file
                                 ──▶ drawn on one matplotlib figure: PNG and SVG
```
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from errata.config import did_you_mean
from errata.errors import ConfigError
from errata.reporting.collect import collect
from errata.reporting.figures import criteria, domains, latents, scatter, variants
from errata.reporting.figures.base import Drawing, save

__all__ = ["FIGURES", "Drawing", "draw", "figure"]

FIGURES = {
    "scatter": scatter.drawing,
    "latents": latents.drawing,
    "variants": variants.drawing,
    "domains": domains.drawing,
    "criteria": criteria.drawing,
}
"""By name, what makes a drawing of cells; in the paper Fig. 2, 3, 4, 5a and 5b."""


def draw(name: str, folders: str | Path | Iterable[str | Path]) -> Drawing:
    """Return a figure of everything that is finished in run folders and sweep folders.

    Args:
        name: `scatter`, `latents`, `variants`, `domains` or `criteria`.
        folders: Run folders, sweep folders, or folders above them.

    Raises:
        ConfigError: If there is no such figure.
        RunError: If there is no finished evaluation, or none has what the figure shows.
    """
    if name not in FIGURES:
        raise ConfigError(f"unknown figure {name!r}", did_you_mean(name, FIGURES))
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    return FIGURES[name](collect([Path(folder) for folder in given]).cells)


def figure(
    name: str,
    folders: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    force: bool = False,
) -> list[Path]:
    """Draw a figure and write it to a folder as PNG, SVG and CSV; see `draw`.

    Raises:
        MissingExtra: If matplotlib is not installed.
    """
    return save(draw(name, folders), Path(out), force=force)
