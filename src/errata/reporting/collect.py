"""Run folders and sweep folders become cells: one editor, model, data set and seed each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errata.editors import editors
from errata.errors import RunError
from errata.reporting.folders import read_evaluation
from errata.store.runs import CONFIG, Run
from errata.sweeping import state
from errata.untrusted import read_object

SHORT = 8
"""Hexadecimal digits that tell models of one name apart."""


@dataclass(frozen=True)
class Cell:
    """A finished evaluation and its place in a table.

    Attributes:
        run: What its folder holds.
        editor: Name of the editor.
        row: What tells rows apart; of a sweep, the name in its recipe.
        label: Name of the row in tables.
        model: Name of the model in tables.
        data: Name of the data set in tables.
        seed: Seed that drew the cases.
    """

    run: Run
    editor: str
    row: str
    label: str
    model: str
    data: str
    seed: int

    @property
    def summary(self) -> Mapping[str, Any]:
        """The run's summary."""
        assert self.run.summary is not None
        return self.run.summary

    @property
    def data_name(self) -> str:
        """Name of the data set as `--data` has it."""
        return str(self.run.config["data"]["name"])

    @property
    def protocol(self) -> tuple[str, int, int, str]:
        """What has to be equal for numbers to stand in one table: regime, batch, top k, suite."""
        own = self.run.config["protocol"]
        suite = own.get("suite") or (self.run.config.get("suite") or {}).get("name")
        return str(own["regime"]), int(own.get("batch", 1)), int(own["top_k"]), str(suite or "")


@dataclass(frozen=True)
class Missing:
    """A cell that is planned and not finished.

    Attributes:
        name: `MODEL/ROW/DATA/seedK` of a sweep, else the folder.
        why: How it stands.
    """

    name: str
    why: str


@dataclass(frozen=True)
class Collection:
    """Everything found below the folders.

    Attributes:
        cells: Finished evaluations, in the order of their recipes.
        missing: Those that are not finished.
    """

    cells: tuple[Cell, ...]
    missing: tuple[Missing, ...]


def collect(folders: Sequence[Path]) -> Collection:
    """Read run folders, sweep folders, and those found below other folders.

    Raises:
        RunError: If a folder does not exist, nothing in it is finished, a file is damaged, or two
            runs are of the same cell.
    """
    cells: list[Cell] = []
    missing: list[Missing] = []
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"no such folder: {folder}", "Name a folder that errata eval wrote.")
        found = list(_below(folder))
        if not found:
            raise RunError(
                f"no run in {folder}",
                "Runs are written by errata eval --out DIR and errata sweep RECIPE.toml.",
            )
        for place in found:
            if (place / state.FILE).is_file():
                _read_sweep(place, cells, missing)
            else:
                _read_run(place, cells, missing)
    if not cells:
        raise RunError(
            f"nothing is finished in {', '.join(map(str, folders))}: " + told(missing),
            "Give the command that began it once more; what is done is kept.",
        )
    cells = _named_apart(_models_apart(cells))
    _refuse_doubles(cells)
    return Collection(tuple(cells), tuple(missing))


def told(missing: Sequence[Missing]) -> str:
    """Say in one line what is missing."""
    counts: dict[str, list[str]] = {}
    for entry in missing:
        counts.setdefault(entry.why, []).append(entry.name)
    parts = []
    for why, names in counts.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        parts.append(f"{len(names)} {why} ({', '.join(names[:3])}{more})")
    return "; ".join(parts)


def _below(folder: Path) -> Iterator[Path]:
    """Yield sweep folders and folders of evaluations in and below a folder."""
    if (folder / state.FILE).is_file():
        yield folder
    elif (folder / CONFIG).is_file():
        if _is_evaluation(folder):
            yield folder
    else:
        for child in sorted(path for path in folder.iterdir() if path.is_dir()):
            if not child.name.startswith("."):
                yield from _below(child)


def _is_evaluation(folder: Path) -> bool:
    """Whether a run folder is of an evaluation, not of a training."""
    try:
        config = read_object(folder / CONFIG)
    except (OSError, ValueError):
        return True  # reading it as a run says what is wrong
    return "protocol" in config


def _read_run(folder: Path, cells: list[Cell], missing: list[Missing]) -> None:
    run = read_evaluation(folder)
    if run.summary is None:
        missing.append(Missing(str(folder), _unfinished(run)))
        return
    name = run.config["editor"]["name"]
    cells.append(
        Cell(
            run, name, _row(run), title_of(name), str(run.config["model"]["name"]),
            str(run.config["data"]["name"]), _seed(run),
        )
    )  # fmt: skip


def title_of(name: str) -> str:
    """Return the name of an editor in tables."""
    return str(editors.entry(name).facts.get("title", name)) if name in editors else name


def _unfinished(run: Run) -> str:
    return f"unfinished after {len(run.records)} of {run.config['data'].get('cases', '?')} cases"


def _seed(run: Run) -> int:
    return int(run.config["protocol"].get("seed", 0))


def _row(run: Run) -> str:
    """Return what tells editors with other settings apart."""
    return json.dumps(run.config["editor"], sort_keys=True)


def _read_sweep(folder: Path, cells: list[Cell], missing: list[Missing]) -> None:
    document = state.read(folder)
    labels: Mapping[str, Mapping[str, str]] = document.get("labels", {})

    def label(kind: str, name: str) -> str:
        return labels.get(kind, {}).get(name, name)

    places = [place for name in document["units"] if (place := _place(name)) is not None]
    for name, model, row, data, seed in sorted(places, key=lambda place: _order(place, labels)):
        entry = document["units"][name]
        run = _finished(folder / "cells" / name)
        if run is None or run.summary is None:
            missing.append(Missing(name, _why(state.progress_from(entry), run)))
            continue
        editor = str(run.config["editor"]["name"])
        called = label("rows", row)  # a row that is called by its editor has the editor's title
        cells.append(
            Cell(
                run, editor, row, title_of(editor) if called == editor else called,
                label("models", model), label("data", data), seed,
            )
        )  # fmt: skip


def _place(name: str) -> tuple[str, str, str, str, int] | None:
    """Split the name of a cell, `MODEL/ROW/DATA/seedK`; None for a training."""
    parts = name.split("/")
    if parts[0] == "train" or len(parts) != 4:
        return None
    model, row, data, seed = parts
    number = seed.removeprefix("seed")
    if not number.isdecimal() or len(number) > 18 or any(part in ("", ".", "..") for part in parts):
        raise RunError(f"{name!r} in {state.FILE} names no cell: expected MODEL/ROW/DATA/seedK")
    return name, model, row, data, int(number)


def _order(
    place: tuple[str, str, str, str, int], labels: Mapping[str, Mapping[str, str]]
) -> tuple[int, ...]:
    """Return where a cell stands in its recipe; what is not in it any more comes last."""
    _, model, row, data, seed = place

    def at(kind: str, name: str) -> int:
        names = list(labels.get(kind, {}))
        return names.index(name) if name in names else len(names)

    return at("models", model), at("rows", row), at("data", data), seed


def _finished(folder: Path) -> Run | None:
    return read_evaluation(folder) if (folder / CONFIG).is_file() else None


def _why(progress: state.Progress, run: Run | None) -> str:
    if progress.status == "failed":
        return f"failed: {progress.reason}" if progress.reason else "failed"
    if progress.status == "blocked":
        return "waiting for a training that failed"
    if run is not None and run.records:
        return "unfinished"
    return "unfinished" if progress.status == "running" else "not begun"


# ---------------------------------------------------------------------- names


def _models_apart(cells: Sequence[Cell]) -> list[Cell]:
    """Add the fingerprint to models of one name and other weights."""
    prints: dict[str, set[str]] = {}
    for cell in cells:
        prints.setdefault(cell.model, set()).add(_fingerprint(cell))
    return [
        replace(cell, model=f"{cell.model} ({_fingerprint(cell)[:SHORT]})")
        if len(prints[cell.model]) > 1
        else cell
        for cell in cells
    ]


def _fingerprint(cell: Cell) -> str:
    return str(cell.run.config["model"].get("fingerprint", ""))


def _named_apart(cells: Sequence[Cell]) -> list[Cell]:
    """Add to rows of one label the settings in which they differ."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in cells:
        own = _flat(cell.run.config["editor"])
        rows.setdefault(cell.label, {}).setdefault(cell.row, own)
    labels: dict[tuple[str, str], str] = {}
    for label, own in rows.items():
        names = dict.fromkeys(name for values in own.values() for name in values)
        differ = [n for n in names if len({str(values.get(n)) for values in own.values()}) > 1]
        for row, values in own.items():
            tail = [f"{name}={values.get(name)}" for name in differ]
            labels[label, row] = " ".join([label, *tail]) if len(own) > 1 else label
    return [replace(cell, label=labels[cell.label, cell.row]) for cell in cells]


def _flat(editor: Mapping[str, Any]) -> dict[str, Any]:
    config = editor.get("config")
    return {key: editor[key] for key in editor if key not in ("name", "config")} | dict(
        config if isinstance(config, Mapping) else {}
    )


def _refuse_doubles(cells: Iterable[Cell]) -> None:
    seen: dict[tuple[Any, ...], Cell] = {}
    for cell in cells:
        key = (cell.model, cell.label, cell.data, cell.seed, cell.protocol)
        first = seen.setdefault(key, cell)
        if first is not cell:
            raise RunError(
                f"{first.run.path} and {cell.run.path} are both {cell.label} on {cell.data} with "
                f"seed {cell.seed}",
                "Name one of them, or run one with another --seed.",
            )
