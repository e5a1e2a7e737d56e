"""The evaluation protocol: edit units of cases, ask their questions, record, summarise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata import __version__
from errata.case import Case
from errata.data import LoadedData, drop_collisions, load_cases
from errata.editors import get_editor
from errata.errors import ConfigError, DataError
from errata.evaluation.consistency import References
from errata.evaluation.general import General
from errata.evaluation.perplexity import load_text
from errata.evaluation.regimes import Regime, parse_regime, units_of
from errata.evaluation.result import Result
from errata.evaluation.scoring import Scorer
from errata.evaluation.session import Session
from errata.evaluation.summary import summarise
from errata.evaluation.tracking import Tracker
from errata.store.files import sha256_of
from errata.store.runs import UNCOMPARED, RunFolder
from errata.world.shipped import knows_world

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM

Progress = Callable[[int, int], None]
SHORT = 16
"""Hexadecimal digits of a fingerprint in records."""


def evaluate(
    lm: LM,
    editor: Editor | str,
    cases: Sequence[Case] | LoadedData | str,
    *,
    data_name: str = "",
    data_version: str = "",
    regime: str = "single",
    top_k: int = 5,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    stack_size: int = 32,
    generate: bool = False,
    bootstrap: int = 1000,
    retention: bool = False,
    batch: int = 1,
    fluency: int = 0,
    references: str | Path | None = None,
    perplexity: str | None = "auto",
    general: str | None = None,
    every: int = 0,
    drop_partial: bool = False,
    keep_collisions: bool = False,
    config_extra: Mapping[str, Any] | None = None,
) -> Result:
    """Evaluate an editor on cases.

    Every unit of the regime is edited from the unedited model, its questions are asked, and the
    model is left as it was. Rates are means over items inside each named sub-metric, then over
    sub-metrics.

    Args:
        lm: The model.
        editor: An editor, or the name of one with its default settings for this model.
        cases: Cases, loaded data, or a data set for [`errata.data.load_cases`][]. The order is
            kept.
        data_name: Name for records; default that of the loaded data.
        data_version: Checksum for records; default that of the loaded data, else one over the
            cases.
        regime: `single`, `batch:N` or `sequential:N`, N being the number of edits of a unit.
        top_k: Rank that counts as a hit for generality, locality and known hops.
        seed: Seed of the bootstrap; written into every record. Cases are not shuffled here.
        out: Run folder; None keeps everything in memory.
        resume: Go on with the run in `out`.
        force: Replace the run in `out`.
        progress: Called with (cases done, cases in all) after every batch.
        stack_size: Number of patches that share a forward pass. Changes speed and memory, not
            numbers.
        generate: Also compare generated answers.
        bootstrap: Resamples of the records for confidence intervals; 0 for none.
        retention: In a sequential regime, also score each edit right after it is made.
        batch: Edits carried out jointly in one step of a sequential regime.
        fluency: Also sample texts for every so manieth case, for fluency and consistency: 1 for
            all, 10 as published for many edits; 0 for none.
        references: Reference texts for consistency; see
            [`errata.evaluation.consistency.References`][].
        perplexity: In a sequential regime, the text whose perplexity is measured; see
            [`errata.evaluation.perplexity.load_text`][].
        general: In a sequential regime, the task of lm-evaluation-harness that measures general
            ability; see [`errata.evaluation.general.General`][].
        every: Steps of a sequential regime between two measurements of perplexity, general
            ability, weight drift and recall; 0 measures before the first and after the last only.
        drop_partial: Leave out a last unit with fewer edits than N, as the published protocol does.
        keep_collisions: Keep locality questions that build on a fact some case of the set edits.
            By default they are left out.
        config_extra: More settings to keep in the run's configuration (JSON values).

    Returns:
        Summary and records.

    Raises:
        ConfigError: If a setting is out of range, or asks for what only sequences have.
        DataError: If there is no case, two have one id, or a text or task cannot be read.
        MissingExtra: If general ability is asked for without lm-evaluation-harness.
        RunError: If the run folder cannot be used.
    """
    if isinstance(editor, str):
        editor = get_editor(editor, model=lm.name)
    if isinstance(cases, str):
        cases = load_cases(cases)
    if isinstance(cases, LoadedData):
        data_name, data_version = data_name or cases.name, data_version or cases.version
        cases = cases.cases
    _check(1, top_k=top_k, stack_size=stack_size, batch=batch)
    _check(0, fluency=fluency, every=every)
    chosen = parse_regime(regime)
    _check_regime(chosen, batch=batch > 1, general=general, every=every)
    kept = list(cases) if keep_collisions else drop_collisions(cases)
    units = units_of(kept, chosen, drop_partial)
    _check_cases(kept, units, chosen)
    data_version = data_version or _digest([_plain_case(case) for case in kept])[:SHORT]
    tracker = None
    if chosen.kind == "sequential":
        tracker = Tracker(
            lm,
            Scorer(lm, stack_size),
            every,
            load_text(lm, perplexity),
            None if general is None else General(lm, general),
        )
    protocol = {
        "regime": str(chosen),
        "top_k": top_k,
        "batch": batch,
        "drop_partial": drop_partial,
        "generate": generate,
        "retention": retention,
        "fluency": fluency,
        "references": None if references is None else sha256_of(_file(references)),
        **({} if tracker is None else _track_ids(tracker)),
        "bootstrap": bootstrap,
        "seed": seed,
    }
    data = {
        "name": data_name,
        "version": data_version,
        "cases": len(kept),
        "ids": _digest([case.id for case in kept])[:SHORT],
        "keep_collisions": keep_collisions,
    }
    config = {
        "model": _model(lm),
        "editor": {"name": editor.name, **_made_of(lm, editor), "config": _settings(editor)},
        "data": data,
        "protocol": protocol,
        UNCOMPARED: {"stack_size": stack_size, "device": str(lm.device), "errata": __version__},
        **(config_extra or {}),
    }
    stamp = {
        "editor": editor.name,
        "model": lm.name,
        "fingerprint": lm.fingerprint[:SHORT],
        "data": data_name,
        "data_version": data_version,
        "seed": seed,
        "errata": __version__,
        "config_hash": _digest({k: v for k, v in config.items() if k != UNCOMPARED})[:SHORT],
        "regime": str(chosen),
    }
    folder = RunFolder.create(out, config, resume=resume, force=force) if out is not None else None
    with folder or nullcontext():
        done = {record["id"]: record for record in folder.records} if folder else {}
        run = Session(
            lm, editor, chosen, top_k, stack_size, stamp, batch, generate, retention,
            references=_references(kept, references, lm, data_name) if fluency else None,
            sampled=frozenset(case.id for case in kept[:: fluency or 1]),
            seed=seed, tracker=tracker, folder=folder,
        )  # fmt: skip
        run.prepare(kept, [unit for unit in units if any(case.id not in done for case in unit)])
        total = sum(len(unit) for unit in units)
        if progress is not None:
            progress(len(done), total)
        for records in run.records(units, done):
            if folder is not None:
                folder.append(records)
            done |= {record["id"]: record for record in records}
            if progress is not None:
                progress(len(done), total)
        records = [done[case.id] for unit in units for case in unit]
        header = {
            **stamp,
            "top_k": top_k,
            "skipped": len(kept) - total,
            "collisions": sum(len(case.probes) for case in cases)
            - sum(len(case.probes) for case in kept),
            **({"tracked": _tracked(tracker)} if tracker is not None else {}),
        }
        summary = summarise(records, header, bootstrap=bootstrap, seed=seed)
        summary["seconds"] |= run.once
        if folder is not None:
            folder.finish(summary)
            folder.drop_checkpoint()
    return Result(summary, records, Path(out) if out is not None else None)


def _check(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ConfigError(f"{name} is {value}; expected at least {least}")


def _check_regime(regime: Regime, **asked: Any) -> None:
    """Refuse what only sequences have in another regime, where it would silently do nothing."""
    for name, value in asked.items():
        if value and regime.kind != "sequential":
            raise ConfigError(
                f"{name} belongs to sequences; the regime is {regime}",
                f"Example: regime sequential:{max(regime.size, 100)}. With as many edits per batch "
                "as in all, a sequence is one batch.",
            )


def _track_ids(tracker: Tracker) -> dict[str, Any]:
    """Return what changes the numbers measured along sequences, whatever files are called."""
    text, general = tracker.text, tracker.general
    return {
        "every": tracker.every,
        "perplexity": text and text.id,
        "general": general and general.id,
    }


def _tracked(tracker: Tracker) -> dict[str, Any]:
    """Return what perplexity and general ability are measured on."""
    text, general = tracker.text, tracker.general
    return {
        "perplexity": text and {"text": text.name, "tokens": text.tokens},
        "general": general and general.source,
    }


def _file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"no such file: {path}", "Give reference texts as a JSON file.")
    return path


def _references(cases: Sequence[Case], source: str | Path | None, lm: LM, data: str) -> References:
    return References(cases, source, world=data == "world" and knows_world(lm.name))


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


def _model(lm: LM) -> dict[str, Any]:
    return {
        "name": lm.name,
        "revision": lm.revision,
        "fingerprint": lm.fingerprint,
        "dtype": str(lm.dtype).removeprefix("torch."),
    }


def _made_of(lm: LM, editor: Editor) -> dict[str, Any]:
    """Return what an editor is made of besides settings; asked first, as it may complete them."""
    made_of = getattr(editor, "made_of", None)
    return made_of(lm) if made_of is not None else {}


def _settings(editor: Editor) -> dict[str, Any]:
    config = editor.config
    if config is None:
        return {}
    return config.model_dump(mode="json") if hasattr(config, "model_dump") else dict(config)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _plain_case(case: Case) -> list[Any]:
    return [case.id, [repr(edit) for edit in case.edits], [repr(probe) for probe in case.probes]]
