"""The page of Table II on the pocket model: what was found, and the tables as they came."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLES = Path(__file__).parent / "results"
FINDINGS = Path(__file__).parent / "findings.md"
PAGE = ROOT / "docs" / "results-table2.md"


def page_text() -> str:
    """Return the page: findings, then the report's tables one heading lower."""
    tables = (TABLES / "table.md").read_text(encoding="utf-8").strip()
    found = FINDINGS.read_text(encoding="utf-8").strip()
    return f"{found}\n\n## The table\n\n{tables}\n"


def write_page() -> None:
    """Write the page."""
    PAGE.write_text(page_text(), encoding="utf-8")
