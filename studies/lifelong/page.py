"""The page: what was found, and two tables per sequence from the kept results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from errata.evaluation.general import ITEMS
from studies.common import results
from studies.common.statistics import Estimate, estimate, mean
from studies.common.tables import table
from studies.lifelong.ability import KEPT as ABILITIES
from studies.lifelong.plan import EDITORS, SEQUENCES
from studies.lifelong.removal import FORMS, KEPT, MODELS
from studies.lifelong.run import RESULTS

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = Path(__file__).parent / "findings.md"
PAGE = ROOT / "docs" / "results-lifelong.md"

SCORE, TOP1, WILD, NAMED = 1, 2, 3, 4
"""Places in a kept question."""

BANDS = 5
"""Age groups of a sequence."""

HEAD = ("editor", "reliability", "WILD", "named", "generality", "WILD", "named",
        "locality, top 1", "WILD", "perplexity", "kB an edit", "s an edit")  # fmt: skip

Result = dict[str, Any]


def page_text() -> str:
    """Return the page."""
    parts = [FINDINGS.read_text(encoding="utf-8").strip(), _progress()]
    for name, about in SEQUENCES.items():
        found = {
            editor: own
            for editor in about.editors
            if (own := results.read(RESULTS, f"{name}-{editor}")) is not None
        }
        if not found:
            continue
        named = any(_has_named(own) for own in found.values())
        rows = [_row(EDITORS[editor].label, own, named) for editor, own in found.items()]
        parts.append(f"## {about.title}\n\n{about.about}\n\n{table(_head(named), rows)}")
        aged = {editor: own for editor, own in found.items() if editor != "none"}
        if aged:
            bands = bands_of(next(iter(aged.values())))
            head = ("editor", *(f"{low}–{high} later" for low, high in bands))
            rows = [_by_age(EDITORS[editor].label, own, bands) for editor, own in aged.items()]
            parts.append(
                "Reliability by the number of edits made after it, teacher-forced / WILD:\n\n"
                + table(head, rows)
            )
        if along := _along(found):
            parts.append(along)
    return "\n\n".join([*parts, *_abilities(), *_taken_back()]) + "\n"


def _head(named: bool) -> list[str]:
    return [name for name in HEAD if named or name != "named"]


def _has_named(result: Result) -> bool:
    """Whether of a run's free texts it is known which ones name the answer."""
    return any(len(q) > NAMED for record in result["records"] for q in record.get("asked", ()))


def _taken_back() -> list[str]:
    """Return what came of taking one edit of thousands back; nothing if it was not tried."""
    rows = [
        [MODELS[model], *_back(FORMS[name].label, own)]
        for model in MODELS
        for name in FORMS
        if (own := results.read(KEPT, f"{model}-{name}")) is not None
    ]
    if not rows:
        return []
    return [
        "## One edit of thousands taken back",
        "UltraEdit. The first fact that the patch makes right and the unedited model does not"
        " (where there is none: the one whose score rises most) is taken back, and the others are"
        " asked again (share of answer tokens at top 1)."
        " `python -m studies.lifelong remove --only smollm2-turns`.",
        table(
            ("model, facts", "built", "taken back by", "CPU-s", "against a build without it",
             "that fact: unedited, with, without", "the others: with, without",
             "of them as before"),
            rows,
        ),
    ]  # fmt: skip


def _back(label: str, own: Result) -> list[str]:
    fact, others = own["fact"], own["reliability"]
    if own["way"] == "taken out":
        way = f"`errata remove --edit #{own['number']}`"
        apart = "equal to the bit" if not own["apart"] else f"apart by {own['apart']:.0e}"
        against = f"{apart} ({own['built']:,.0f} CPU-s)"
    else:
        way = f"`errata remove --edit #{own['number']} --rebuild --batch 100`; without: refused"
        against = "is one"
    asked = ("with", "without")
    return [
        label, way, f"{own['seconds']:,.1f}", against,
        ", ".join(_share(fact[name]) for name in ("unedited", *asked)),
        ", ".join(f"{100 * others[name]:.1f}" for name in asked),
        f"{own['same']:,} of {own['asked']:,} asked",
    ]  # fmt: skip


def _progress() -> str:
    rows, minutes = [], 0.0
    for name, about in SEQUENCES.items():
        found = {e: results.read(RESULTS, f"{name}-{e}") for e in about.editors}
        done = [own for own in found.values() if own is not None]
        spent = [
            own["cpu"] if own["cpu"] is not None else sum(own["wall"].values())
            for own in done
            if not own.get("device")
        ]
        missing = [EDITORS[e].label for e, own in found.items() if own is None]
        rows.append((about.title, f"{len(done)} of {len(about.editors)}", f"{sum(spent) / 60:,.0f}",
                     ", ".join(missing) or "–"))  # fmt: skip
        minutes += sum(spent) / 60
    head = ("sequence", "editors measured", "minutes", "not measured")
    told = (
        f"Two cores, shared with other work, went so far: {minutes:,.0f} minutes of one thread in"
        " all (CPU time; of a run that was taken over, by the clock)."
    )
    return f"## How far it is\n\n{told}\n\n{table(head, rows)}"


def _abilities() -> list[str]:
    """Return general ability along the sequence of 3,000 edits; nothing if it was not measured."""
    parts = []
    for name in results.names(ABILITIES):
        own = results.read(ABILITIES, name)
        assert own is not None
        metrics = [key for key in own["points"][0] if key.endswith("/acc")]
        rows = [
            (f"{point['edits']:,}", *(f"{100 * point[key]:.0f}" for key in metrics))
            for point in own["points"]
        ]
        parts.append(
            f"General ability along the way, {EDITORS[name].label}, the same 3,000 edits: accuracy"
            f" on {ITEMS} items of each task (`python -m studies.lifelong ability`; by chance 50,"
            " of `mmlu` 25):\n\n"
            + table(("edits made", *(key.partition("/")[0] for key in metrics)), rows)
        )
    return parts


# ---------------------------------------------------------------------- numbers


def values_of(result: Result, kind: str, place: int) -> tuple[list[float | None], list[str]]:
    """Return the mean of each case's questions of a kind, and the ids of the cases.

    Args:
        result: A kept result.
        kind: First letter of the kind.
        place: Which score.

    Returns:
        A case that failed or has no such question has None.
    """
    found: list[float | None] = []
    for record in result["records"]:
        asked = [q for q in record.get("asked", ()) if q[0] == kind and len(q) > place]
        own = [q[place] for q in asked if q[place] is not None]
        found.append(statistics.fmean(own) if own else None)
    return found, [record["id"] for record in result["records"]]


def rate(
    result: Result, kind: str, place: int, chosen: Callable[[Any], bool] | None = None
) -> Estimate:
    """Return a rate with its interval: cases are drawn, of a single sequence."""
    values, ids = values_of(result, kind, place)
    scores = [None if value is None else 100 * value for value in values]
    keep = None if chosen is None else [chosen(record) for record in result["records"]]
    return estimate([scores], ids, keep)


def bands_of(result: Result) -> list[tuple[int, int]]:
    """Return groups of ages, the youngest first."""
    ages = [record["age"] for record in result["records"] if record.get("age") is not None]
    oldest = max(ages, default=0)
    width = -(-(oldest + 1) // BANDS)
    return [(low, min(low + width - 1, oldest)) for low in range(0, oldest + 1, width)]


def _row(label: str, result: Result, named: bool) -> list[str]:
    summary = result["summary"]
    rates = [
        _shown(rate(result, kind, place))
        for kind, place in (
            ("r", SCORE), ("r", WILD), ("r", NAMED), ("g", SCORE), ("g", WILD), ("g", NAMED),
            ("l", TOP1), ("l", WILD),
        )
        if named or place != NAMED
    ]  # fmt: skip
    text, size = summary.get("perplexity"), (summary.get("bytes") or {}).get("per_edit")
    return [
        label + (f" ({summary['failed']} failed)" if summary["failed"] else ""),
        *rates,
        _times(text),
        "–" if not size else f"{size / 1000:,.1f}",
        _seconds(result),
    ]


def _shown(found: Estimate) -> str:
    if found.mean != found.mean:
        return "–"
    return f"{found.mean:.0f} [{found.low:.0f}, {found.high:.0f}]"


def _times(text: dict[str, Any] | None) -> str:
    if not text or not text.get("before"):
        return "–"
    if text.get("after") is None:
        return "destroyed"
    times = text["after"] / text["before"]
    return f"{times:.2f} ×" if times < 100 else f"{times:,.0f} ×"


def _seconds(result: Result) -> str:
    """Return CPU seconds with the questions; of a run that was taken over, wall seconds without."""
    edits = result["summary"]["edits"]
    if result.get("device"):
        return "–"
    if result["cpu"] is not None:
        return f"{result['cpu'] / edits:.2f}"
    wall = result["wall"].get("edit")
    return "–" if wall is None else f"{wall / edits:.2f}*"


def _by_age(label: str, result: Result, bands: Sequence[tuple[int, int]]) -> list[str]:
    cells = []
    for low, high in bands:

        def inside(record: Any, low: int = low, high: int = high) -> bool:
            age = record.get("age")
            return age is not None and low <= age <= high

        forced, free = (rate(result, "r", place, inside) for place in (SCORE, WILD))
        cells.append(f"{forced.mean:.0f} / {free.mean:.0f} [{free.low:.0f}, {free.high:.0f}]"
                     if forced.mean == forced.mean else "–")  # fmt: skip
    return [label, *cells]


def _along(found: dict[str, Result]) -> str:
    """Return what was measured along the way, where more than both ends were."""
    parts = []
    for editor, result in found.items():
        points = result["summary"].get("trajectory") or []
        if len(points) <= 2:
            continue
        start = points[0].get("perplexity")
        rows = [
            (
                f"{point['edits']:,.0f}",
                _share((point.get("recall") or {}).get("score")),
                _times({"before": start, "after": point.get("perplexity")}) if start else "–",
            )
            for point in points
        ]
        head = ("edits made", "recall of earlier edits, teacher-forced", "perplexity")
        parts.append(f"Along the way, {EDITORS[editor].label}:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}"


def overall(result: Result, kind: str, place: int) -> float:
    """Return a plain mean over all questions of a kind, as a check."""
    return mean(
        question[place]
        for record in result["records"]
        for question in record.get("asked", ())
        if question[0] == kind
    )


def write_page() -> None:
    """Write the page."""
    PAGE.write_text(page_text(), encoding="utf-8")
