"""What is run: every editor through the same sequences of edits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WORLD = {"collide": "relation"}
"""Questions about a fact that another edit of the sequence makes false are no locality questions.
The published rule misses them where answers are invented; see docs/data.md."""


@dataclass(frozen=True)
class Editor:
    """One row of the tables.

    Attributes:
        label: In tables.
        name: Of the editor.
        settings: Beside its defaults; {data} stands for the folder of public files.
        networks: Name of the training run with its networks; empty: none, or the model's own.
    """

    label: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    networks: str = ""


EDITORS = {
    "ridge": Editor("IBKE, ridge", "ibke"),
    "sum": Editor("IBKE, sum", "ibke", {"joint": "sum"}),
    "retrieval": Editor("IBKE-retrieval", "ibke-retrieval"),
    "mend": Editor("MEND, ridge", "mend"),
    "mend_sum": Editor("MEND, sum", "mend", {"joint": "sum"}),
    "memit": Editor("MEMIT", "memit"),
    "alphaedit": Editor("AlphaEdit", "alphaedit"),
    "ft": Editor("FT", "ft"),
}
"""On pocket: its own networks."""

_MOMENTS = {"moments_text": "{data}/text/wikitext2_raw_test.txt"}

REAL = {
    "retrieval": Editor("IBKE-retrieval", "ibke-retrieval", {}, "ibke"),
    "retrieval_55": Editor(
        "IBKE-retrieval, `threshold=0.55`", "ibke-retrieval", {"threshold": 0.55}, "ibke"
    ),
    **{
        f"last_{threshold}": Editor(
            f"IBKE-retrieval, `key=last threshold={threshold / 100:g} rounds=1`",
            "ibke-retrieval",
            {"key": "last", "threshold": threshold / 100, "rounds": 1}, "ibke",
        )
        for threshold in (90, 80, 95)
    },
    "ridge": Editor("IBKE, ridge", "ibke", {"joint": "ridge"}, "ibke"),
    "ridge_rounds": Editor(
        "IBKE, ridge, `rounds=8 scale=0.2 ordinary=moments`", "ibke",
        {"joint": "ridge", "rounds": 8, "scale": 0.2, "ordinary": "moments"}, "ibke",
    ),
    "sum": Editor("IBKE, sum", "ibke", {"joint": "sum"}, "ibke"),
    "mend": Editor("MEND, ridge", "mend", {"joint": "ridge"}, "mend"),
    "memit": Editor(
        "MEMIT (clamp 4, weight 1,000)", "memit", {**_MOMENTS, "clamp": 4.0, "mom2_weight": 1000.0}
    ),
    "alphaedit": Editor("AlphaEdit", "alphaedit", _MOMENTS),
    "ft": Editor("FT", "ft"),
}  # fmt: skip
"""On SmolLM2: networks of recipes/ibke-smollm2.toml."""


@dataclass(frozen=True)
class Regime:
    """One table.

    Attributes:
        title: Its heading.
        regime: For `errata eval`.
        batch: Edits per step.
        limit: Cases.
        split: Of the world.
        only: Editors; empty: all of the model.
        model: The model.
        data: Of `errata.data.load_cases`; {data} stands for the folder of public files.
        perplexity: Of that text, likewise.
    """

    title: str
    regime: str
    batch: int = 1
    limit: int | None = 100
    split: str | None = "test"
    only: tuple[str, ...] = ()
    model: str = "pocket"
    data: str = "world"
    perplexity: str = "auto"

    @property
    def editors(self) -> Mapping[str, Editor]:
        """Its rows."""
        every = EDITORS if self.model == "pocket" else REAL
        return {key: every[key] for key in self.only or every}


_COUNTERFACT: Mapping[str, Any] = {
    "batch": 20, "split": None, "model": "smollm2",
    "data": "counterfact:{data}/counterfact/counterfact-val.json",
    "perplexity": "{data}/text/wikipedia-paragraphs.json",
}  # fmt: skip


REGIMES = {
    "single": Regime("Each edit alone", "single"),
    "s10": Regime("Ten edits, one after another (ten sequences)", "sequential:10"),
    "s30": Regime("Thirty edits, one after another (three sequences)", "sequential:30", limit=90),
    "s100": Regime("A hundred edits, one after another", "sequential:100"),
    "s100b20": Regime("A hundred edits, twenty at a time", "sequential:100", batch=20),
    "s419b20": Regime(
        "All 419 edits of the split, twenty at a time", "sequential:419", batch=20, limit=None
    ),
    "s1000": Regime(
        "A thousand edits of the train split, one after another", "sequential:1000", limit=1000,
        split="train", only=("retrieval",),
    ),
    "smollm2_100b20": Regime(
        "SmolLM2-135M: a hundred edits of CounterFact, twenty at a time", "sequential:100",
        **_COUNTERFACT,
    ),
    "smollm2_1000b20": Regime(
        "SmolLM2-135M: a thousand edits of CounterFact, twenty at a time", "sequential:1000",
        limit=1000, **_COUNTERFACT,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One evaluation."""

    editor: str
    regime: str

    @property
    def name(self) -> str:
        """Name of its result."""
        return f"{self.regime}-{self.editor}"


def runs() -> list[Run]:
    """Return all runs, table by table."""
    return [Run(editor, regime) for regime, about in REGIMES.items() for editor in about.editors]
