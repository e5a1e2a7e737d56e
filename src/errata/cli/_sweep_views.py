"""What `errata sweep` prints: a plan with estimates, and the table of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.cli import _output, _summary

if TYPE_CHECKING:
    from errata.sweeping.estimate import Estimate
    from errata.sweeping.recipe import Recipe
    from errata.sweeping.state import State
    from errata.sweeping.units import Unit

MINUTE, HOUR, DAY = 60, 3600, 86400


def counted(units: Sequence[Unit]) -> str:
    cells = [unit for unit in units if unit.kind == "eval"]
    parts = [f"{len(cells)} cells", f"{len(units) - len(cells)} trainings"]
    return ", ".join(parts)


def show_results(
    recipe: Recipe, units: Sequence[Unit], entries: Sequence[Mapping[str, Any]], state: State,
    folder: Path, json: bool,
) -> None:  # fmt: skip
    from errata.sweeping.scores import METRICS, count, label_of

    counts = count(units, state)
    if json:
        _output.print_json(
            {
                "sweep": recipe.name,
                "out": folder,
                "counts": counts,
                "cells": [e for u, e in zip(units, entries, strict=True) if u.kind == "eval"],
                "trainings": [e for u, e in zip(units, entries, strict=True) if u.kind == "train"],
            }
        )
        return
    seeds = len(recipe.seeds) > 1
    console = _output.out()
    heads = _summary.headings(console)
    unfinished = any(entry["status"] != "done" for entry in entries)
    names = ["model", "editor", "data", *(("seed",) if seeds else ()), "n", *heads]
    names += [""] if unfinished else []
    table = _output.table(*names, right=range(3, 4 + seeds + len(METRICS)))
    for unit, entry in zip(units, entries, strict=True):
        if unit.kind == "train" and entry["status"] == "done":
            continue
        seed = (str(unit.seed),) if seeds else ()
        rates = (_output.rate(entry.get(metric)) for metric in METRICS)
        status = "" if entry["status"] == "done" else entry["status"]
        n = entry.get("cases")
        cases = "–" if n is None else str(n)
        table.add_row(
            *label_of(recipe, unit), *seed, cases, *rates, *([status] if unfinished else [])
        )
    console.print(table)
    console.print(f"Rates: {_asked(recipe)}.", soft_wrap=True)
    told = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    console.print(f"{told}. All runs: {_near(folder)}/", soft_wrap=True)


def _asked(recipe: Recipe) -> str:
    """Say under which regime and k the rates of each data set were measured."""
    told: dict[str, list[str]] = {}
    for name, entry in recipe.data.items():
        own = recipe.protocol_on(name)
        suite = f", suite {own.suite}" if own.suite else ""
        told.setdefault(f"{own.regime}, top {own.top_k}{suite}", []).append(entry.label or name)
    if len(told) == 1:
        return next(iter(told))
    return "; ".join(f"{', '.join(names)}: {asked}" for asked, names in told.items())


def _near(path: Path) -> Path:
    """Return a path as seen from the current folder, if it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def show_plan(
    recipe: Recipe, units: Sequence[Unit], estimates: Mapping[str, Estimate], path: Path, json: bool
) -> None:
    from errata.sweeping.estimate import total
    from errata.sweeping.scores import facts, label_of

    open_units = [unit for unit in units if not unit.finished]
    everything = total(estimates, recipe.hardware.devices)
    left = total({unit.name: estimates[unit.name] for unit in open_units}, recipe.hardware.devices)
    if json:
        listed = []
        for unit in units:
            found = estimates[unit.name]
            listed.append(
                {
                    **facts(unit),
                    "kind": unit.kind,
                    "status": _status(unit),
                    "command": ["errata", *unit.words],
                    "memory": dict(found.memory),
                    "memory_bytes": found.bytes,
                    "network_parameters": found.network,
                    "seconds": found.seconds,
                }
            )
        document = {
            "sweep": recipe.name,
            "recipe": path,
            "dry_run": True,
            "hardware": recipe.hardware.model_dump(),
            "device_seconds": everything[0] if everything else None,
            "device_seconds_left": left[0] if left else None,
            "cells": [entry for entry in listed if entry.pop("kind") == "eval"],
        }
        cells = {entry["name"] for entry in document["cells"]}
        document["trainings"] = [entry for entry in listed if entry["name"] not in cells]
        _output.print_json(document)
        return
    seeds = len(recipe.seeds) > 1
    names = ("model", "editor", "data", *(("seed",) if seeds else ()), "memory", "time", "")
    table = _output.table(*names, right=range(3, 5 + seeds))
    for unit in units:
        found = estimates[unit.name]
        marks = [] if _status(unit) == "to do" else [_status(unit)]
        most = recipe.hardware.device_memory_gb
        if most is not None and (found.bytes or 0) > most * 1e9:
            marks.append(f"more than {most:g} GB")
        table.add_row(
            *label_of(recipe, unit),
            *((str(unit.seed),) if seeds else ()),
            "–" if found.bytes is None else _output.size(int(found.bytes)),
            _duration(found.seconds),
            ", ".join(marks),
        )
    console = _output.out()
    console.print(table)
    console.print(f"{recipe.name}: {counted(units)}.", soft_wrap=True)
    number = recipe.hardware.devices
    many = f" on {number} devices" if number > 1 else ""
    if left is not None:
        console.print(
            f"What is not finished: {_duration(left[0])} of device time,"
            f" {_duration(left[1])}{many}.",
            soft_wrap=True,
        )
    if everything is not None:
        console.print(f"All of it: {_duration(everything[0])} of device time.", soft_wrap=True)
    console.print(
        f"Estimates from sizes and {_tflops(recipe)}, not measurements; nothing was run.",
        soft_wrap=True,
    )


def _status(unit: Unit) -> str:
    return "finished" if unit.finished else "to do"


def _tflops(recipe: Recipe) -> str:
    from errata.sweeping.estimate import on_cpu, usual_tflops

    given = recipe.hardware.device_tflops
    if isinstance(given, dict):
        return "a sustained " + ", ".join(f"{v:g} TFLOP/s in {name}" for name, v in given.items())
    if given is not None:
        return f"a sustained {given:g} TFLOP/s"
    devices = {entry.device for entry in recipe.models.values()}
    told = []
    for cpu in sorted({on_cpu(device) for device in devices}):
        own = usual_tflops("cpu" if cpu else "cuda")
        told.append(f"{own:.2g} TFLOP/s {'as measured on this CPU' if cpu else 'for a GPU'}")
    return ", ".join(told) + " (say device_tflops in [hardware] to correct it)"


def _duration(value: float | None) -> str:
    if value is None:
        return "–"
    for unit, name in ((DAY, "days"), (HOUR, "h"), (MINUTE, "min")):
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value:.0f} s"
