"""What `errata tune` found on the models of the study: kept of its cache, shown as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from errata.editors import editors
from errata.searching.result import shown
from errata.store.cache import load_json
from studies.common import results
from studies.common.tables import table
from studies.real.compact import rounded
from studies.real.plan import MODELS

KEPT = Path(__file__).parent / "tuned"
HELD = ("written", "wild", "spread", "ns_lost", "kept", "facts", "seconds")


def keep(cache: Path) -> list[str]:
    """Keep the searches of a cache: settings, what held-out facts say, and no texts.

    Args:
        cache: Folder of the cache (`$ERRATA_CACHE`) that the searches ran with.

    Returns:
        The names of what is kept.
    """
    found = []
    for path in sorted((cache / "tuned").glob("*/*.json")):
        stored = load_json(path)
        report = stored["report"] if isinstance(stored, dict) else None
        model = None if report is None else Path(report["model"]).name
        if report is None or model not in MODELS:
            continue
        name = f"{model}_{report['editor']}"
        results.write(KEPT, name, rounded(compact(report, model)))
        found.append(name)
    return found


def compact(report: dict[str, Any], model: str) -> dict[str, Any]:
    """Return what is kept of a search's report."""
    known = report["facts"]["known"].values()
    held = report["held_out"]
    return {
        "model": model,
        **{key: report[key] for key in ("editor", "settings", "rule_of_thumb", "works", "id")},
        **{key: report[key] for key in ("candidates", "seconds")},
        "held_out": {way: {key: own[key] for key in HELD} for way, own in held.items()},
        "tried": report["tried"],
        "known": sum(own for own, _ in known),
        "asked": sum(every for _, every in known),
        "search": report["facts"]["search"],
    }


def found() -> list[dict[str, Any]]:
    """Return what is kept, by model and editor."""
    kept = [result for name in results.names(KEPT) if (result := results.read(KEPT, name))]
    order = list(MODELS)
    return sorted(kept, key=lambda one: (order.index(one["model"]), one["editor"]))


def tuned_table() -> str:
    """Return the chosen settings beside the rule of thumb, on facts that were held out."""
    body = []
    for one in found():
        chosen, rule = (one["held_out"][way] for way in ("chosen", "rule_of_thumb"))
        changed = {k: v for k, v in one["settings"].items() if v != one["rule_of_thumb"][k]}
        pairs = [
            f"{_value(rule[key])} → {_value(chosen[key])}"
            for key in ("written", "wild", "spread", "ns_lost", "kept")
        ]
        body.append(
            [MODELS[one["model"]], editors.entry(one["editor"]).facts["title"],
             f"{one['known']} of {one['asked']}", f"{one['candidates']}, {one['seconds'] / 60:.0f}",
             chosen["facts"], *pairs, shown(changed) if changed else "the rule of thumb stays",
             "yes" if one["works"] else "no"]
        )  # fmt: skip
    head = ["model", "editor", "facts known", "settings, minutes", "held out", "written",
            "word for word", "spread", "neighbours lost", "kept", "chosen", "works"]  # fmt: skip
    return table(head, body) if body else ""


def _value(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}".removesuffix(".0")
