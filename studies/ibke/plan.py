"""The networks of the study: what each is called, and which records it is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HELD = ("P37", "P103", "P364", "P407", "P1412", "P136", "P413", "P641", "P1303")
"""Relations of CounterFact that no network of the second part sees: what is spoken, and music and
sport (genre, position, sport, instrument). None of the others' wordings is one of theirs."""

STRENGTHS = (0.0, 0.5, 0.7, 1.0, 1.3)
"""Of the finished update (`scale`): generality is compared where locality is equal."""

CANDIDATES = (
    (1.0, 1), (0.5, 1), (0.3, 1), (1.0, 2), (0.7, 3), (0.5, 4), (0.3, 3), (0.3, 6), (0.2, 4),
    (0.2, 8), (0.1, 12),
)  # fmt: skip
"""Strength of a round and rounds at most (`scale`, `rounds`)."""

CHOSEN_ON: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "seen": ("counterfact:{data}/counterfact/counterfact-val.json[300:]", {}, None),
    "held": (
        "counterfact:{data}/counterfact/counterfact-train.json", {"relations": HELD}, 5,
    ),
}  # fmt: skip
"""By part the records on which candidates are compared: file, options and seed of the first sixty.
None is tested: validation records behind those, held-out relations in the training file."""

ROUNDS = ((0.5, 4), (0.3, 6), (0.2, 8))
"""Of the candidates, those that the page shows."""

REFERENCE = (0.3, 6)
"""Of these, the one whose locality says where networks are compared."""

LIMIT = 100
"""Test records of each part: the first of counterfact-val.json, in its order."""


@dataclass(frozen=True)
class Part:
    """Networks with the same training records, tested on the same records.

    Attributes:
        title: On the page.
        recipe: What trains them.
        without: Options of the training records.
        tested: Options of the test records.
    """

    title: str
    recipe: str
    without: dict[str, Any]
    tested: dict[str, Any]


PARTS = {
    "seen": Part("Relations that training has seen", "recipes/ibke-smollm2.toml", {}, {}),
    "held": Part(
        "Relations that training has not seen", "recipes/ibke-relations-smollm2.toml",
        {"without": HELD}, {"relations": HELD},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Networks:
    """Networks that the study tests.

    Attributes:
        title: On the page.
        part: Key of PARTS.
        against: MEND's networks with the same records, steps and seed; None: they are no IBKE's.
        rival_of: IBKE's networks with the same records, steps and seed, which they are held
            against where no form of IBKE names them.
    """

    title: str
    part: str = "seen"
    against: str | None = None
    rival_of: str | None = None


NETWORKS = {
    "ibke": Networks("IBKE, ours", against="mend"),
    "ibke_s1": Networks("IBKE, ours, second seed", against="mend_s1"),
    "ibke_no_ib": Networks("IBKE, ours, without bottleneck", against="mend"),
    "ibke_paper": Networks("IBKE, the paper's form", against="mend"),
    "ibke_paper_no_ib": Networks("IBKE, the paper's form, without bottleneck", against="mend"),
    "mend": Networks("MEND matched"),
    "mend_s1": Networks("MEND matched, second seed"),
    "mend_published": Networks("MEND as published", rival_of="ibke"),
    "malmen": Networks("MALMEN", rival_of="ibke"),
    "serac": Networks("SERAC", rival_of="ibke"),
    "held_ibke": Networks("IBKE, ours", "held", "held_mend"),
    "held_ibke_s1": Networks("IBKE, ours, second seed", "held", "held_mend_s1"),
    "held_ibke_no_ib": Networks("IBKE, ours, without bottleneck", "held", "held_mend"),
    "held_ibke_paper": Networks("IBKE, the paper's form", "held", "held_mend"),
    "held_ibke_paper_no_ib": Networks(
        "IBKE, the paper's form, without bottleneck", "held", "held_mend"
    ),
    "held_mend": Networks("MEND matched", "held"),
    "held_mend_s1": Networks("MEND matched, second seed", "held"),
}  # fmt: skip
"""By the name of their result, in the order of the page."""

BOTTLENECK = tuple((name, f"{name}_no_ib") for name in NETWORKS if f"{name}_no_ib" in NETWORKS)
"""Networks with the bottleneck, and the same without it."""
