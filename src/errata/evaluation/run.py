"""Running an evaluation: edit units of cases, ask their questions, record, summarise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.arguments import all_of, expect, path_of
from errata.case import Case, check_chat
from errata.config import did_you_mean
from errata.data import LoadedData, drop_collisions, load_cases
from errata.editors import base, get_editor
from errata.editors.fitting import fitted
from errata.errors import ConfigError, DataError
from errata.evaluation.configuration import compared, config_of, stamp_of
from errata.evaluation.judge import (
    Endpoint,
    Function,
    Judge,
    by_function,
    contains,
    name_of,
)
from errata.evaluation.measures import measures_of
from errata.evaluation.protocol import CALLABLE, CONTAINS, Protocol, protocol_of
from errata.evaluation.regimes import Regime, units_of
from errata.evaluation.result import Result
from errata.evaluation.session import Session
from errata.evaluation.suites import perturbed
from errata.evaluation.summary import summarise
from errata.model.chat import frame_of
from errata.model.given import expect_model
from errata.progress import Step
from errata.store.records import counting
from errata.store.runs import RunFolder

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM


def evaluate(
    lm: LM,
    editor: Editor | str,
    cases: Sequence[Case] | LoadedData | str,
    *,
    protocol: Protocol | Mapping[str, Any] | str | None = None,
    as_published: str | None = None,
    data_name: str = "",
    data_version: str = "",
    data_options: Mapping[str, Any] | None = None,
    judge: Function | str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Step | None = None,
    config_extra: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Result:
    """Evaluate an editor on cases.

    Every unit of the regime is edited from the unedited model, its questions are asked, and the
    model is left as it was. Rates are means over items inside each named sub-metric, then over
    sub-metrics.

    ```python
    errata.evaluate(lm, "rome", cases, layer=5)
    errata.evaluate(lm, "memit", "world", regime="sequential:200", batch=20, every=2)
    ```

    Args:
        lm: The model.
        editor: An editor, or the name of one.
        cases: Cases, loaded data, or a data set for [`errata.data.load_cases`][]. The order is
            kept.
        protocol: What is asked; default: each edit alone, top 5.
        as_published: Start a named editor from the settings published for this backbone.
        data_name: Name for records; default that of the loaded data.
        data_version: Checksum for records; default that of the loaded data, else one over the
            cases.
        data_options: Settings with which the built-in world was loaded, for a suite about it.
        judge: Judges free answers (`protocol="wild"`), called with the question, the accepted
            answers and what was said; or `contains`, or an endpoint's address, with `judge_model`.
        out: Run folder; None keeps everything in memory.
        resume: Go on with the run in `out`.
        force: Replace the run in `out`.
        progress: Called with (cases done, cases in all) after every batch or step of sequences; a
            case that is edited but not asked yet counts half.
        config_extra: More settings to keep in the run's configuration (JSON values).
        settings: Settings of the protocol (`regime="batch:10"`, `top_k=1`, see
            [`errata.evaluation.Protocol`][]) or of a named editor (`layer=5`); a name that both
            have is the protocol's.

    Returns:
        Summary and records.

    Raises:
        ConfigError: If a setting is unknown, out of range, or asks for what only sequences have.
        ModelError: If the chat is asked for, and the model has no such template.
        DataError: If there is no case, two have one id, or a text or task cannot be read.
        MissingExtra: If general ability is asked for without lm-evaluation-harness.
        RunError: If the run folder cannot be used.
    """
    out = _place(lm, out, resume)
    chosen, others, judged = _split(protocol, settings, judge)
    editor = _editor(lm, editor, others, as_published)
    loaded = _in_chat(lm, _loaded(cases, data_name, data_version), chosen)
    data = _in_chat(lm, perturbed(lm, loaded, chosen, data_options), chosen)
    notes = (*loaded.notes, *data.notes)
    kept = list(data.cases) if chosen.keep_collisions else drop_collisions(data.cases)
    units = units_of(kept, chosen.units, chosen.drop_partial)
    _check_cases(kept, units, chosen.units)
    measures = measures_of(lm, chosen, kept, units, data.name)
    config = config_of(lm, editor, data, kept, chosen, measures) | dict(config_extra or {})
    folder = None
    if out is not None:
        folder = RunFolder.create(out, config, resume=resume, force=force, compared=compared)
    with folder or nullcontext():
        done = {record["id"]: record for record in folder.records} if folder else {}
        stamp = stamp_of(config, chosen, done)
        run = Session(lm, editor, chosen, stamp, measures, folder, judged)
        run.prepare(kept, [unit for unit in units if any(case.id not in done for case in unit)])
        total = sum(len(unit) for unit in units)
        show = _counted(progress, done, total)
        for records in run.records(units, done, show):
            if folder is not None:
                folder.append(records)
            done |= {record["id"]: record for record in records}
        records = [done[case.id] for unit in units for case in unit]
        header = {
            **stamp, "notes": list(notes), "top_k": chosen.top_k,
            "skipped": len(kept) - total, "collisions": _asked(data.cases) - _asked(kept),
            **({"tracked": measures.told()} if measures.tracker is not None else {}),
        }  # fmt: skip
        with nullcontext() if folder is None else counting([folder.path]):
            summary = summarise(records, header, bootstrap=chosen.bootstrap, seed=chosen.seed)
        summary["seconds"] |= run.once
        if folder is not None:
            folder.finish(summary)
            folder.drop_checkpoint()
    return Result(summary, records, out, notes)


def _asked(cases: Sequence[Case]) -> int:
    return sum(len(case.probes) for case in cases)


# ---------------------------------------------------------------------- what is asked for


def _place(lm: LM, out: Any, resume: bool) -> Path | None:
    """Return where the run is kept, if it is.

    Raises:
        ArgumentError: If the model or the folder is none.
        ConfigError: If a run is to be gone on with, and none is named.
    """
    expect_model(lm)
    if out is not None:
        return path_of(out, "the run folder")
    if resume:
        raise ConfigError("resume: there is no run to go on with", "Name its folder: out=…")
    return None


def _split(
    protocol: Protocol | Mapping[str, Any] | str | None,
    settings: Mapping[str, Any],
    judge: Function | str | None,
) -> tuple[Protocol, dict[str, Any], Judge | None]:
    """Return the protocol, the settings that are not its own, and who judges free answers."""
    if isinstance(judge, str):
        settings = {**settings, "judge": judge}
    known = Protocol.model_fields
    own = {name: value for name, value in settings.items() if name in known}
    others = {name: value for name, value in settings.items() if name not in known}
    chosen, judged = _judged(protocol_of(protocol, own), judge)
    return chosen, others, judged


def _judged(protocol: Protocol, function: Function | str | None) -> tuple[Protocol, Judge | None]:
    """Return the protocol with the name of its judge, and the judge."""
    if callable(function):
        named = {"judge": CALLABLE, "judge_model": name_of(function)}
        return protocol_of(protocol, named), by_function(function)
    if function is not None:
        expect(function, str, "the judge", "a function, `contains` or an address")
    if protocol.judge is None:
        return protocol, None
    if protocol.judge == CALLABLE:
        raise ConfigError(
            f"the judge {protocol.judge_model} is a function", "Give it again: evaluate(judge=…)."
        )
    if protocol.judge == CONTAINS:
        return protocol, by_function(contains)
    assert protocol.judge_model is not None
    return protocol, Endpoint(protocol.judge, protocol.judge_model)


EDITOR = 'Type: "rome", or errata.get_editor("rome")'


def _editor(
    lm: LM, editor: Editor | str, settings: Mapping[str, Any], as_published: str | None
) -> Editor:
    """Return the editor with these settings; an unknown name is looked for in the protocol too."""
    theirs: Sequence[str] = ()
    expect(editor, (str, base.Editor), "the editor", "an editor or its name", EDITOR)
    if isinstance(editor, str):
        plain = get_editor(editor, as_published=as_published, model=lm.name)
        theirs = tuple(type(plain.config).model_fields)
    for name in settings:
        if name not in theirs:
            raise ConfigError(
                f"evaluate: unknown setting {name!r}",
                did_you_mean(name, [*Protocol.model_fields, *theirs]),
            )
    if isinstance(editor, str):
        return fitted(get_editor(editor, settings, as_published=as_published, model=lm.name), lm)
    return editor


def _loaded(cases: Sequence[Case] | LoadedData | str | Path, name: str, version: str) -> LoadedData:
    if isinstance(cases, str | Path):
        cases = load_cases(cases)
    if isinstance(cases, LoadedData):
        return replace(cases, name=name or cases.name, version=version or cases.version)
    told = "cases as errata.load_cases returns them, or a list of them"
    given = all_of(cases, Case, "cases", told, "Type: errata.Case(ID, edits, probes)")
    return LoadedData(name, given, version, source="")


def _in_chat(lm: LM, data: LoadedData, protocol: Protocol) -> LoadedData:
    """Return the cases as asked in the chat, if the protocol says so."""
    chat = check_chat(protocol.chat, protocol.system)
    if chat == "off":
        return data
    frame_of(lm.tokenizer, chat, protocol.system)  # else every case would fail by itself
    cases = tuple(replace(case, chat=chat, system=protocol.system) for case in data.cases)
    return replace(data, cases=cases)


def _counted(progress: Step | None, done: Mapping[str, Any], total: int) -> Callable[[int], None]:
    """Report what is on record; return a function that does, with what is made beyond it."""

    def show(made: int) -> None:
        if progress is not None:
            progress(min(len(done) + made, total), total)

    show(0)
    return show


def _check_cases(cases: Sequence[Case], units: Sequence[Sequence[Case]], regime: Regime) -> None:
    if not cases:
        raise DataError("there is no case to evaluate")
    if not units:
        raise DataError(
            f"{len(cases)} cases do not fill one unit of regime {regime}",
            "Take a smaller unit, or keep partial units.",
        )
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise DataError(f"two cases have the id {case.id!r}; ids have to be unique")
        seen.add(case.id)
