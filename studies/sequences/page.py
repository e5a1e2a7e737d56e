"""The page: what was found, and one table per regime from the kept results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studies.common import results
from studies.common.device import told
from studies.common.tables import table
from studies.sequences.plan import REGIMES, Editor
from studies.sequences.run import RESULTS

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = Path(__file__).parent / "findings.md"
PAGE = ROOT / "docs" / "results-sequences.md"

HEAD = ("editor", "reliability", "generality", "paraphrases", "two hops", "locality",
        "perplexity", "kB an edit", "CPU-s an edit")  # fmt: skip


def page_text() -> str:
    """Return the page."""
    parts = [FINDINGS.read_text(encoding="utf-8").strip()]
    for name, about in REGIMES.items():
        rows = [
            _row(editor, found)
            for key, editor in about.editors.items()
            if (found := results.read(RESULTS, f"{name}-{key}")) is not None
        ]
        if rows:
            cards = told((own.label, results.read(RESULTS, f"{name}-{key}"))
                         for key, own in about.editors.items())  # fmt: skip
            parts.append("\n\n".join(filter(None, (f"## {about.title}", cards, table(HEAD, rows)))))
    return "\n\n".join(parts) + "\n"


def _row(editor: Editor, found: dict[str, Any]) -> list[str]:
    summary, edits = found["summary"], found["edits"]
    by = summary["by"].get("criteria", {}).get("generality", {})
    collapse = summary["collapse"] or {}
    text = summary["perplexity"]
    if collapse.get("collapsed"):
        perplexity = f"collapsed after {collapse['collapsed_after']}"
    else:
        perplexity = "–" if text is None else f"{text['after'] / text['before']:.2f} ×"
    return [
        editor.label,
        *(_rate(summary[name]) for name in ("reliability", "generality")),
        *(_rate(by.get(name, {}).get("mean")) for name in ("Rep", "MH")),
        _rate(summary["locality"]),
        perplexity,
        f"{summary['bytes']['per_edit'] / 1000:,.0f}",
        "–" if found["seconds"] is None else f"{found['seconds'] / edits:.2f}",
    ]


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def write_page() -> None:
    """Write the page."""
    PAGE.write_text(page_text(), encoding="utf-8")
