"""`errata ls`: what there is, read from the sources without importing them."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import _output
from errata.cli._completion import editor_names
from errata.cli._options import JsonFlag
from errata.config import did_you_mean
from errata.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from errata.registry import Registry

EXAMPLES = (
    "errata ls editors",
    "errata ls editors memit+blue",
    "errata ls datasets --json",
    "errata ls datasets --sizes",
    "errata ls metrics",
)

METRICS = {
    "reliability": "share of target tokens that are the most probable ones after the edit (top 1)",
    "generality": "share of target tokens among the k most probable ones (--top-k, default 5;"
    " yes/no questions: 1), on questions that follow from the edit: rephrased, multi-hop …",
    "locality": "share of the unedited model's answer tokens that are still among the k most"
    " probable ones (--top-k, default 5), on unrelated questions; in --json also with top 1",
    "average": "mean of reliability, generality and locality",
    "ES, PS, NS, S": "CounterFact: share of edits, paraphrases and neighbours whose right answer"
    " is more probable than its competitor, and the harmonic mean of the three",
    "fluency, consistency": "of sampled texts (--fluency N): entropy of their n-grams in bits,"
    " and likeness to reference texts",
    "retention": "reliability right after each edit and at the end of a sequence (--retention)",
    "perplexity, general, drift": "of the model along a sequence: of a text, of tasks of"
    " lm-evaluation-harness, and how far weights moved",
}

MODELS = {
    "pocket": "shipped with errata: a few million parameters that know the built-in world",
    "smollm2": "SmolLM2-135M-Instruct, dequantised from 4 bits; fetched once (93 MB)",
    "FOLDER": "any saved decoder-only transformers model (config.json and safetensors)",
    "FILE.gguf": "a model in llama.cpp's format, dequantised when it is loaded",
    "HUB-ID": "any decoder-only model of the Hugging Face Hub, for example Qwen/Qwen3-0.6B",
}


class What(StrEnum):
    """What can be listed."""

    editors = "editors"
    strategies = "strategies"
    datasets = "datasets"
    metrics = "metrics"
    models = "models"


def _registry(what: What) -> Registry:
    if what is What.editors:
        from errata.editors import editors as registry
    elif what is What.strategies:
        from errata.strategies import strategies as registry
    else:
        from errata.data import datasets as registry
    return registry


def rows_of(what: What) -> list[dict[str, Any]]:
    """Return one mapping per thing: `name`, `summary` and the facts that its class states."""
    if what is What.metrics:
        return [{"name": name, "summary": text} for name, text in METRICS.items()]
    if what is What.models:
        return [{"name": name, "summary": text} for name, text in MODELS.items()]
    rows = []
    for entry in _registry(what).entries.values():
        facts = {key: value for key, value in entry.facts.items() if key != "name"}
        rows.append({"name": entry.name, "summary": entry.summary, **facts})
        if what is What.datasets:
            rows[-1]["sample"] = _sample_of(entry.name)
    if what is What.editors:
        for row in rows:
            row["strategies"] = _strategies_on(row["name"])
    return rows


def _sample_of(name: str) -> str | None:
    """Return how the sample of a data set is named, if one ships with errata."""
    from errata.data import SAMPLE, sample_of

    return f"{name}:{SAMPLE}" if sample_of(name) else None


def _strategies_on(host: str) -> list[str]:
    from errata.strategies import strategies

    return [e.name for e in strategies.entries.values() if host in e.facts.get("hosts", ())]


def settings_of(name: str) -> dict[str, Any]:
    """Return what an editor or a pair is, needs and can be told.

    Raises:
        ConfigError: If there is no such editor.
    """
    from errata.editors import editors

    entry = editors.entry(name)
    cls = editors.load(name)
    settings = [
        {
            "name": field,
            "default": jsonable(info.get_default(call_default_factory=True)),
            "meaning": info.description or "",
        }
        for field, info in sorted(cls.Config.model_fields.items())
    ]
    return {
        "name": name,
        "summary": entry.summary,
        "title": cls.title,
        "paper": cls.paper,
        "needs": list(cls.needs),
        "weights": cls.weights,
        "batch": cls.batch,
        "sequence": cls.sequence,
        "sequential": cls.sequential,
        "exports": list(cls.exports),
        "settings": settings,
        "published": {backbone: dict(values) for backbone, values in cls.published.items()},
        "presets": {model: dict(values) for model, values in cls.presets.items()},
    }


BATCH = {
    "joint": "edits of a batch are solved together",
    "in turn": "edits of a batch follow one another",
    "memory": "each edit of a batch becomes an entry of its own",
}
SEQUENCE = {
    "adds": "a later change is added to the earlier patch",
    "grows": "the memory of the earlier patch grows",
}
"""What the words of an editor's class mean."""


def jsonable(value: Any) -> Any:
    """Return a default as JSON holds it."""
    return list(value) if isinstance(value, tuple) else value


def address(paper: str) -> str:
    """Return the arXiv ids of a citation."""
    found = re.findall(r"arxiv\.org/abs/([\d.]+)|arXiv:([\d.]+)", paper)
    return " ".join("arXiv:" + (a or b).rstrip(".") for a, b in found)


def _whats(incomplete: str) -> list[str]:
    return [what.value for what in What if what.value.startswith(incomplete)]


def _what(word: str) -> What:
    """Return what is to be listed.

    Raises:
        ConfigError: If there is no such thing; says which come close.
    """
    try:
        return What(word)
    except ValueError:
        known = [what.value for what in What]
        raise ConfigError(f"ls: unknown {word!r}", did_you_mean(word, known)) from None


def ls(
    what: Annotated[
        str,
        typer.Argument(
            metavar="|".join(What), help="What to list.", autocompletion=_whats, show_default=False
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            help="editors: one of them, with all its settings.", autocompletion=editor_names
        ),
    ] = None,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="datasets: records of each split, as published.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """List editors, strategies, data sets, metrics or models."""
    if sizes and _what(what) is not What.datasets:
        raise ConfigError(f"{what} have no sizes", "errata ls datasets --sizes")
    _list(_what(what), name, sizes, json)


def _list(what: What, name: str | None, sizes: bool, json: bool) -> None:
    if name is not None:
        if what is not What.editors:
            raise ConfigError(f"{what.value} have no settings to list", "errata ls editors rome")
        _one(settings_of(name), json)
        return
    rows = rows_of(what)
    if json:
        _output.print_json({"what": what.value, "entries": rows})
        return
    console = _output.out()
    if sizes:
        console.print(_sizes(rows))
        return
    columns = {
        What.editors: ("needs", "weights", "batch", "sequence", "exports"),
        What.strategies: ("works on", "paper"),
        What.datasets: ("a sample",),
    }.get(what, ())
    if _output.narrow(console):
        columns = columns[:1]  # `errata ls editors NAME` says the rest
    table = _output.table("name", "what it is", *columns)
    for row in rows:
        cells = {
            "needs": ",\n".join(row.get("needs", ())) or "–",
            "weights": "changed" if row.get("weights") else "kept",
            "batch": row.get("batch", ""),
            "sequence": row.get("sequence", ""),
            "exports": ",\n".join(row.get("exports", ())) or "–",
            "works on": ", ".join(row.get("hosts", ())),
            "a sample": row.get("sample") or "–",
            "paper": address(str(row.get("paper", ""))),
        }
        table.add_row(row["name"], row["summary"], *(cells[column] for column in columns))
    console.print(table)


def _sizes(rows: list[dict[str, Any]]) -> Table:
    """Return a table of the splits whose records were counted; of the others their names."""
    table = _output.table("name", "split", "records", right=(2,))
    for row in rows:
        counted, splits = row.get("sizes", {}), row.get("splits", ())
        for number, split in enumerate(counted):
            table.add_row("" if number else row["name"], split, f"{counted[split]:,}")
        rest = [split for split in splits if split not in counted]
        if rest:
            table.add_row("" if counted else row["name"], ", ".join(rest), "–")
    return table


def _one(found: dict[str, Any], json: bool) -> None:
    if json:
        _output.print_json(found)
        return
    out = _output.out()
    out.print(f"{found['name']}: {found['summary']}")
    if found["paper"]:
        out.print(found["paper"])
    out.print(f"needs: {', '.join(found['needs']) or 'nothing'}")
    out.print(f"weights: {'changed' if found['weights'] else 'left as they are'}")
    out.print(f"batch: {BATCH[found['batch']]}")
    fit = "" if found["sequential"] else "; not made for it: a sequence destroys the model"
    out.print(f"sequence: {SEQUENCE[found['sequence']]}{fit}")
    out.print(f"exports as: {', '.join(found['exports']) or 'nothing but its own format'}")
    table = _output.table("setting", "default", "meaning")
    for setting in found["settings"]:
        default = setting["default"]
        table.add_row(setting["name"], "" if default is None else str(default), setting["meaning"])
    out.print(table)
    if found["published"]:
        out.print("--as-published: " + ", ".join(found["published"]))
    if found["presets"]:
        out.print("settings found for: " + ", ".join(found["presets"]))
