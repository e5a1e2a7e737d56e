"""Which figures there are, what each is drawn from, and how it is called in its paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "figures"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        figure: As `errata figure` calls it.
        paper: Where it stands in its paper.
        title: What it shows.
        runs: Recipe whose sweep it is drawn from; empty: kept scores of another study.
        limit: Cases of each run that are looked into.
        metrics: Of the table that stands with it, as `errata report --metrics`; none: no table.
    """

    figure: str
    paper: str
    title: str
    runs: str = ""
    limit: int | None = None
    metrics: tuple[str, ...] = ()

    @property
    def tabled(self) -> str:
        """What makes its table."""
        return f"errata report runs/{self.runs} --metrics {','.join(self.metrics)}"

    @property
    def table(self) -> Path:
        """Where that is kept."""
        return RESULTS / f"{self.runs}.md"

    @property
    def command(self) -> str:
        """What draws it."""
        if not self.runs:
            return f"python -m studies.figures draw {self.figure}"
        limit = "" if self.limit is None else f" --limit {self.limit}"
        return f"errata figure {self.figure} runs/{self.runs}{limit}"

    @property
    def file(self) -> Path:
        """Where the picture lies."""
        return PICTURES / f"{self.figure}-pocket.png"


PICTURES_OF_THE_PAGE = (
    Picture("answers", "IBKE, Fig. 1", "The three most probable answers", "ibke-inside-pocket"),
    Picture("scatter", "IBKE, Fig. 2", "Generality against locality"),
    Picture("latents", "IBKE, Fig. 3", "Number of latents × weight of the bottleneck"),
    Picture("variants", "IBKE, Fig. 4", "Without the bottleneck, without the gates"),
    Picture("domains", "IBKE, Fig. 5a", "Trained on one domain, tested on all"),
    Picture("criteria", "IBKE, Fig. 5b", "Generality by criteria and hops"),
    Picture("relations", "IBKE, Fig. 6", "Latents by relation", "ibke-inside-pocket"),
    Picture("gates", "IBKE, Fig. 7a", "Gates by token", "ibke-inside-pocket"),
    Picture("pruning", "IBKE, Fig. 7b", "Gates set to zero", "ibke-inside-pocket", 350),
    Picture(
        "keys", "REP", "Whitened similarity of keys, and gates by threshold", "rep-pocket",
        metrics=("suite", "core"),
    ),
    Picture("residuals", "BLUE", "Residuals by distance", "blue-pocket"),
    Picture(
        "trajectory", "BLUE", "Ability along sequences", "blue-pocket",
        metrics=("core", "general"),
    ),
)  # fmt: skip


def named(figure: str) -> Picture:
    """Return a figure of the page by its name."""
    return next(one for one in PICTURES_OF_THE_PAGE if one.figure == figure)
