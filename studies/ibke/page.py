"""docs/results-ibke-real.md: IBKE beside direct editors on the same held-out records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.common import results
from studies.common.tables import table
from studies.ibke.run import RESULTS, read
from studies.real.found import Rate, Rates, Row, bounds, rows_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results-ibke-real.md"
INTRO = Path(__file__).parent / "intro.md"

BESIDE = ("none", "rome", "memit_clamped", "alphaedit", "ft")
"""Rows of `studies.real` (SmolLM2, CounterFact), by the key of their cells."""

SCORES = {
    "reliability": "Rel", "generality": "Gen, top 5", "generality_top1": "top 1",
    "locality": "Loc, top 5", "locality_top1": "top 1", "ES": "ES", "PS": "PS", "NS": "NS",
}  # fmt: skip


def direct() -> dict[str, Row]:
    """Return the rows that stand beside, by key."""
    found = {}
    for row in rows_of("single", "smollm2", "counterfact"):
        key = row.cell.name.removeprefix("smollm2_counterfact_").removesuffix(f"_{row.cell.first}")
        found[key] = row
    return {key: found[key] for key in BESIDE if key in found}


def good(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records that could be edited."""
    return [record for record in records if record["error"] is None]


def page_text() -> str:
    """Return the page."""
    parts = [INTRO.read_text(encoding="utf-8").strip()]
    for name in results.names(RESULTS):
        found = read(name)
        if found is not None:
            parts += [
                _holds(found), _made(found["training"]), _rates(found), _gaps(found),
                _losses(found),
            ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


COMPARED = {"reliability": "reliability", "generality_top1": "generality at top 1",
            "locality_top1": "locality at top 1", "NS": "NS"}  # fmt: skip
"""What the findings say of each direct editor."""


def _holds(found: Mapping[str, Any]) -> str:
    """Return what the tables show, in words that follow from the numbers."""
    lines = []
    for key, row in direct().items():
        one, two, count = _both(found, row)
        if key == "none" or count < 2:
            continue
        told: dict[str, list[str]] = {"lower": [], "not told apart": [], "higher": []}
        for metric, words in COMPARED.items():
            gap = _difference(one, two, metric)
            if gap is None or gap.low is None or gap.high is None:
                continue
            side = "lower" if gap.high < 0 else "higher" if gap.low > 0 else "not told apart"
            told[side].append(f"{words} ({gap.signed})")
        said = "; ".join(f"{side}: {', '.join(own)}" for side, own in told.items() if own)
        lines.append(f"* **Against {row.title}** ({count} records), points: {said}.")
    curve = [e for e in found["training"]["log"] if e["kind"] == "validation"]
    if len(curve) > 1:
        last, before = curve[-1]["total"], curve[-2]["total"]
        moved = "was still falling" if last < before else "had stopped falling"
        lines.append(
            f"* **The validation loss {moved}** when training ended: {before:.2f} at step "
            f"{curve[-2]['step']}, {last:.2f} at step {curve[-1]['step']}."
        )
    return "## What holds\n\n" + "\n".join(lines)


def _both(found: Mapping[str, Any], row: Row) -> tuple[Rates, Rates, int]:
    """Return the rates of both on the records that both have, and how many these are."""
    own = {r["id"]: r for r in good(found["records"])}
    theirs = [r for r in row.good if r["id"] in own]
    return Rates([own[r["id"]] for r in theirs]), Rates(theirs), len(theirs)


def _difference(one: Rates, two: Rates, key: str) -> Rate | None:
    if key not in one.rates or key not in two.rates:
        return None
    drawn = one.drawn[key] - two.drawn[key]  # equal seeds draw equal records
    return Rate(one.rates[key] - two.rates[key], *bounds(drawn))


NAMED = ("layers", "d_m", "token_path", "tokens", "together", "norm")
"""Settings of the networks that the page names."""


def _made(training: Mapping[str, Any]) -> str:
    data = ", ".join(f"{d['records']:,} of `{d['spec']}`" for d in training["data"])
    loop, shared = training["loop"], training["shared"]
    networks = ", ".join(f"{key}={training['settings'][key]}" for key in NAMED)
    steps = (
        f"{training['made']} of {loop['steps']} planned, batch {loop['batch']}, learning rate "
        f"{loop['lr']}, seed {loop['seed']}, products in {training['compute']}; the networks of "
        f"step {training['best_step']} had the lowest validation loss and are those evaluated. "
        f"{training['seconds']:,.0f} s by the clock, one thread of a machine that others used most "
        "of"
    )
    held = (
        f"the records below are from another file. {shared['prompts']} of their edits' prompts and "
        f"{shared['subjects']} of their subjects are those of an edit in the first file's training "
        "records; relations were not held out"
    )
    facts = {"Steps": steps, "Records": data, "Networks": networks, "Held out": held}
    lines = "\n".join(f"* **{name}**: {text}." for name, text in facts.items())
    return f"## How it was trained\n\n{lines}"


def _rates(found: Mapping[str, Any]) -> str:
    rows: list[list[str]] = []
    for row in direct().values():
        rows.append([row.title, str(len(row.good)), *_cells(row.good), row.seconds()])
    own = good(found["records"])
    rows.append(["**IBKE, trained here**", str(len(own)), *_cells(own), f"{found['cpu_each']:.1f}"])
    head = ["editor", "n", *SCORES.values(), "CPU-s / record"]
    return f"## Each edit alone\n\n{table(head, rows)}"


def _cells(records: Sequence[Mapping[str, Any]]) -> list[str]:
    rates = Rates(records)
    return [rates.text(key) for key in SCORES]


def _gaps(found: Mapping[str, Any]) -> str:
    rows = []
    for row in direct().values():
        one, two, count = _both(found, row)
        if count > 1:
            gaps = [_difference(one, two, key) for key in SCORES]
            rows.append(
                [row.title, str(count), *("–" if gap is None else gap.signed for gap in gaps)]
            )
    head = ["IBKE minus", "n", *SCORES.values()]
    return (
        "## Differences on the records that both have\n\nPoints, with 95 % intervals of the paired "
        f"difference.\n\n{table(head, rows)}"
    )


def _losses(found: Mapping[str, Any]) -> str:
    rows = [
        [str(e["step"]), *(f"{e[key]:.3f}" for key in ("total", "sg", "il", "penalty"))]
        for e in found["training"]["log"] if e["kind"] == "validation"
    ]  # fmt: skip
    head = ["step", "total", "generality", "locality", "bottleneck"]
    return f"## Validation loss\n\n{table(head, rows)}"


def write_page() -> None:
    """Write the page."""
    PAGE.write_text(page_text(), encoding="utf-8")
