"""`errata ls`: what there is, read from the sources without importing them."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any

import typer

from errata.cli import _output
from errata.cli._options import JsonFlag

EXAMPLES = ("errata ls editors", "errata ls datasets --json", "errata ls metrics")

METRICS = {
    "reliability": "share of target tokens that are the most probable ones after the edit",
    "generality": "the same for questions that follow from the edit: rephrased, multi-hop …",
    "locality": "share of tokens that are what they were before, on unrelated questions",
    "average": "mean of reliability, generality and locality",
}

MODELS = {
    "pocket": "shipped with errata: a few million parameters that know the built-in world",
    "FOLDER": "any saved decoder-only transformers model (config.json and safetensors)",
    "HUB-ID": "any decoder-only model of the Hugging Face Hub, for example Qwen/Qwen3-0.6B",
}


class What(StrEnum):
    """What can be listed."""

    editors = "editors"
    datasets = "datasets"
    metrics = "metrics"
    models = "models"


def _registered(what: What) -> list[dict[str, Any]]:
    if what is What.editors:
        from errata.editors import editors as registry
    else:
        from errata.data import datasets as registry
    rows = []
    for entry in registry.entries.values():
        facts = {key: value for key, value in entry.facts.items() if key != "name"}
        rows.append({"name": entry.name, "summary": entry.summary, **facts})
    return rows


def rows_of(what: What) -> list[dict[str, Any]]:
    """Return one mapping per thing: `name`, `summary` and the facts that its class states."""
    if what is What.metrics:
        return [{"name": name, "summary": text} for name, text in METRICS.items()]
    if what is What.models:
        return [{"name": name, "summary": text} for name, text in MODELS.items()]
    return _registered(what)


def _address(paper: str) -> str:
    found = re.search(r"arxiv\.org/abs/(\S+)|arXiv:(\S+)", paper)
    return "arXiv:" + (found[1] or found[2]).rstrip(";,.)") if found else ""


def ls(
    what: Annotated[What, typer.Argument(help="What to list.")],
    json: JsonFlag = False,
) -> None:
    """List editors, data sets, metrics or models."""
    rows = rows_of(what)
    if json:
        _output.print_json({"what": what.value, "entries": rows})
        return
    papers = any(row.get("paper") for row in rows)
    table = _output.table("name", "what it is", *(["paper"] if papers else []))
    for row in rows:
        paper = [_address(str(row.get("paper", "")))] if papers else []
        table.add_row(row["name"], row["summary"], *paper)
    _output.out().print(table)
