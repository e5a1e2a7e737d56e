"""Finished runs made ready to be looked into: their model, editor and cases, as they were.

```
RUN/config.json ──▶ model (checked by fingerprint), editor with its networks (likewise)
               ──▶ data set, read again; those of its cases that are on record
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from errata.case import Case
from errata.errors import RunError
from errata.reporting.collect import Cell

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM

AGAIN = "Run it again: errata eval --editor {editor} --data world --out DIR --force"


@dataclass(frozen=True)
class Reopened:
    """A finished run that can be edited and asked again.

    Attributes:
        cell: Its place in tables.
        lm: The model; runs of one model share it.
        editor: The editor as it was set.
        cases: The cases on record without errors, in their order.
    """

    cell: Cell
    lm: LM
    editor: Editor
    cases: tuple[Case, ...]


def reopened(cells: Sequence[Cell], limit: int | None = None) -> Iterator[Reopened]:
    """Yield runs one after another, each model loaded once while its runs stand together.

    Args:
        cells: The runs.
        limit: Cases of each at most; None: all on record.

    Raises:
        RunError: If a run does not say what it was made of, or that is not what it was.
        ConfigError: If networks are not where they were.
        DataError: If the data cannot be read any more.
    """
    lm: LM | None = None
    asked: Any = None
    for cell in cells:
        model = cell.run.config["model"]
        if model != asked:
            lm, asked = _model(cell), model
        assert lm is not None
        yield Reopened(cell, lm, _editor(cell, lm), _cases(cell, lm, limit))


def _model(cell: Cell) -> LM:
    from errata.model.loading import load

    model = cell.run.config["model"]
    lm = load(model["name"], dtype=model.get("dtype"), revision=model.get("revision"))
    if model.get("fingerprint") not in (None, lm.fingerprint):
        raise RunError(
            f"{cell.run.path} is of other weights than {model['name']} has now",
            AGAIN.format(editor=cell.editor),
        )
    return lm


def _editor(cell: Cell, lm: LM) -> Editor:
    from errata.editors import get_editor

    own = cell.run.config["editor"]
    editor = get_editor(own["name"], own.get("config") or {})
    for name, value in editor.made_of(lm).items():
        if own.get(name) not in (None, value):
            raise RunError(
                f"{cell.run.path} is of other {name} than its editor has now",
                AGAIN.format(editor=cell.editor),
            )
    return editor


def _cases(cell: Cell, lm: LM, limit: int | None) -> tuple[Case, ...]:
    """Read the data again and return the cases on record, checked by what they ask for.

    Of a run under a suite they have the suite's questions.
    """
    from errata.data import load_cases
    from errata.evaluation.protocol import Protocol
    from errata.evaluation.robustness import robustness_suite

    config, path = cell.run.config, cell.run.path
    told = (config.get("run") or {}).get("data") or {}
    again = AGAIN.format(editor=cell.editor)
    if not told.get("spec"):
        raise RunError(f"{path} lacks run.data.spec, which says how its data are read", again)
    shuffled = (config.get("request") or {}).get("shuffle")
    seed = int(config["protocol"].get("seed", 0)) if shuffled else None
    data = load_cases(told["spec"], told.get("split"), None, seed, True, told.get("options"))
    records = [r for r in cell.run.records if r.get("error") is None][:limit]
    wanted = {record["id"] for record in records}
    data = replace(data, cases=tuple(case for case in data.cases if case.id in wanted))
    own = config["protocol"]
    if own.get("suite"):
        tests = Protocol(suite=own["suite"], suite_set=own.get("suite_set") or {}).tests
        data = robustness_suite(lm, data, tests, options=told.get("options"))
    by_id = {case.id: case for case in data.cases}
    found = []
    for record in records:
        case = by_id.get(record["id"])
        asked = [q.get("prompt") for q in record["questions"] if q["kind"] == "reliability"]
        if case is None or asked != [edit.prompt for edit in case.edits]:
            raise RunError(f"case {record['id']!r} of {path} is not what {told['spec']} has", again)
        found.append(case)
    if not found:
        raise RunError(f"{path} has no case that was edited", again)
    return tuple(found)
