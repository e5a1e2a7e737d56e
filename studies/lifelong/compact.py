"""What is kept of a run: ids and scores, never the texts of the data or of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errata.evaluation.judge import contains

KEPT = ("editor", "model", "fingerprint", "data", "data_version", "regime", "top_k", "cases",
        "asked", "edits", "failed", "reliability", "generality", "locality", "wild", "perplexity",
        "trajectory", "collapse", "bytes", "also", "errata")  # fmt: skip
"""Of the summary."""

DIGITS = 4


def compact(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of a record.

    A question is `[kind, score, top 1, WILD, named]`: the first letter of its kind; None where it
    was not asked freely; whether what was said freely names the answer, of edits and generality
    only. Of a case that failed only that is kept.
    """
    kept: dict[str, Any] = {"id": record["id"], "age": record.get("age")}
    if record.get("error") is not None:
        return {"id": record["id"], "failed": True}
    kept["asked"] = [
        [
            entry["kind"][0],
            round(float(entry["score"]), DIGITS),
            round(float(entry["top1"]), DIGITS),
            round(float(entry["wild"]["score"]), DIGITS) if "wild" in entry else None,
            *_named(entry),
        ]
        for entry in record["questions"]
    ]
    return kept


def _named(entry: Mapping[str, Any]) -> list[float]:
    """Return whether an accepted answer stands in a free text, if that tells anything."""
    if entry["kind"] not in ("reliability", "generality") or "wild" not in entry:
        return []
    answers = entry.get("answers") or (entry["target"],)
    return [float(contains(entry["prompt"], answers, entry["wild"]["text"]))]


def result_of(
    records: list[dict[str, Any]],
    summary: Mapping[str, Any],
    cpu: float | None,
    card: str | None = None,
) -> dict[str, Any]:
    """Return what is kept of a run.

    Args:
        records: Its records.
        summary: Its summary.
        cpu: CPU seconds of everything, questions included; None: not measured.
        card: The GPU that it ran on, if it was one.
    """
    spent = summary.get("seconds") or {}
    return {
        "summary": {key: summary[key] for key in KEPT if key in summary},
        "cpu": None if cpu is None else round(cpu, 1),
        "device": card,
        "wall": {key: round(float(spent[key]), 1) for key in ("edit", "evaluate") if key in spent},
        "records": [compact(record) for record in records if record.get("asked", True)],
    }
