"""The words around the tables of docs/results-real.md."""

from __future__ import annotations

import re
from pathlib import Path

from studies.real import page
from studies.real.found import Rates, by_test, difference, row_named
from studies.real.tuned import tuned_table

FINDINGS = Path(__file__).parent / "findings.md"
"""What the tables show, in words; `[[row metric]]` is a rate, `[[row - row metric]]` a difference,
a metric of the robustness suite is `test.NAME`. A paragraph with a place that has no result yet is
left out."""

INTRO = Path(__file__).parent / "intro.md"
TRACES = Path(__file__).parent / "traces.md"
PICTURE = page.PAGE.with_name("results-real-traces.png")
LEAKS = Path(__file__).parent / "leaks.md"


def write_page() -> None:
    """Write docs/results-real.md."""
    page.PAGE.write_text(page_text(), encoding="utf-8")
    if page.traced():
        from studies.real.figure import draw

        draw(page.traced(), PICTURE)


def page_text() -> str:
    """Return the whole page, made of the results that are there."""
    parts = [
        INTRO.read_text(encoding="utf-8"),
        "## How far it is\n\n" + page.progress_table(),
        "## What holds\n\n" + filled(FINDINGS.read_text(encoding="utf-8")),
        "## One edit at a time\n\n" + page.single_tables(),
        _section(
            "## Four leaks, one by one",
            LEAKS.read_text(encoding="utf-8").strip(),
            page.leak_table(),
        ),
        _section(
            "## Sequences and BLUE",
            "200 CounterFact edits in batches of 20, asked after the last.",
            page.sequence_table(),
            page.blue_table(),
        ),
        _section(
            "### General ability",
            "errata's own task files (`--general NAME`), 100 items each.",
            page.ability_table(),
        ),
        _section(
            "## Neighbours taken along: the method or the settings?",
            "CounterFact records from the 1,001st on, which no other table asks.",
            page.search_table(),
        ),
        _section(
            "## Settings that were searched",
            "`errata tune`, 15 minutes on one thread of a shared machine unless the column says "
            "otherwise, text that the model wrote itself as moments. Rule of thumb → chosen, on "
            "facts that were held out ([how](choosing.md#errata-tune)); it *works* where 95 % are "
            "written and at most 5 points of neighbours are lost.",
            tuned_table(),
        ),
        _section(
            "## Rounded products",
            "`--compute float32` → `bfloat16` in a float32 model: what edits search with; keys, "
            "solves, patches and scores are float32 both times. CounterFact records that no other "
            "table asks, one edit at a time, paired differences behind.",
            page.compute_table(),
        ),
        _section("## Causal traces", TRACES.read_text(encoding="utf-8").strip(), _traces()),
        _section(
            "## Robustness and REP",
            "Whole answers at top 1; long contexts of 100 words instead of 300, in REP's training "
            "too.",
            page.robust_table(),
            page.rep_table(),
        ),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _traces() -> str:
    found = [page.trace_table(), f"![heat maps of causal traces]({PICTURE.name})"]
    there = "\n\n".join(found) if page.traced() else ""
    blocks = page.block_table()
    return "\n\n".join(x for x in (there, blocks) if x)


def _section(title: str, about: str, *tables: str) -> str:
    there = [one for one in tables if one]
    return "\n\n".join([title, about, *there]) if there else ""


def filled(text: str) -> str:
    """Return text with its places filled; paragraphs about what has no result yet are left out."""
    kept = []
    for paragraph in text.strip().split("\n\n"):
        places = dict.fromkeys(re.findall(r"\[\[([^\]]+)\]\]", paragraph))
        values = {place: _place(place) for place in places}
        if None not in values.values():
            for place, value in values.items():
                paragraph = paragraph.replace(f"[[{place}]]", str(value))
            kept.append(paragraph)
    return "\n".join(kept)


def _place(words: str) -> str | None:
    """Return the number of a place; None if it has no result."""
    names, _, metric = words.rpartition(" ")
    scores = {}
    if metric.startswith("test."):
        metric, scores = metric.removeprefix("test."), {"scores": by_test}
    rows = [row_named(name) for name in names.split(" - ")]
    if None not in rows:
        found = [row for row in rows if row is not None]
        if len(found) == 2 and (gap := difference(*found, metric, **scores)) is not None:
            return gap.signed
        if len(found) == 1 and (rate := Rates(found[0].good, **scores).get(metric)) is not None:
            return str(rate)
    return None
