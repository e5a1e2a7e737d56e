"""Search for settings: what is asked for, and what is kept of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from errata.editors import get_editor
from errata.editors.fitting import folder_of
from errata.errors import ConfigError, RunError
from errata.progress import Ticker
from errata.searching import budget, course
from errata.searching.facts import deal, of_file, shipped
from errata.searching.spaces import check_editor, stands_on
from errata.searching.trials import Store
from errata.store.cache import digest
from errata.store.locks import take_lock

if TYPE_CHECKING:
    from pathlib import Path

    from errata.model.lm import LM
    from errata.progress import Step
    from errata.searching.result import Tuned

FORMAT = 1


def search(
    lm: LM,
    editor: str,
    facts: str | Path | None = None,
    *,
    minutes: float = 15.0,
    seed: int = 0,
    force: bool = False,
    progress: Step | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> Tuned:
    """Find settings of an editor for a model, and keep them for whoever edits it.

    Args:
        lm: The model; bit-identical afterwards.
        editor: Name of the editor.
        facts: A file or data set with true facts; default: those that ship with errata.
        minutes: Time for all of it; what an earlier run of the same search spent counts.
        seed: Seed of facts and candidates.
        force: Forget what earlier runs measured.
        progress: Called with (seconds spent, seconds given, what is being done).
        settings: Settings that are given, not searched.
        overrides: The same as `key=value`.

    Raises:
        ConfigError: If no search is made for this editor, or the time does not suffice for one.
        DataError: If the facts cannot be read, or the model knows too few of them.
        RunError: If results cannot be written.
    """
    check(editor, lm.name, facts, minutes, overrides)
    relations = shipped() if facts is None else of_file(facts)
    name = "the facts that ship with errata" if facts is None else str(facts)
    given = get_editor(editor, dict(settings or {}), overrides, model=lm.name)
    fixed = given.config.model_dump(include=set(given.asked or ()), exclude_unset=False)
    lm.check_finite()
    folder = folder_of(lm) / "trials"
    started = time.perf_counter()
    with _telling(progress, 60 * minutes, "asking which facts the model knows"):
        dealt = deal(
            lm, relations, name, search=budget.LAST, held=budget.HELD, seed=seed,
            folder=folder, anew=force,
        )  # fmt: skip
    asked = time.perf_counter() - started
    dtype = str(lm.dtype).removeprefix("torch.")
    basis = stands_on(lm, given, fixed)
    key = digest(FORMAT, editor, sorted(fixed), basis, dealt.id, dtype, seed)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{editor}-{key}.jsonl"
    try:
        lock = take_lock(folder)
    except RunError as error:
        raise RunError(
            error.message, "Another search for this model goes on: wait for it."
        ) from None
    try:
        if force:
            path.unlink(missing_ok=True)
        store = Store(path)
        if not store.seconds:
            store.spend(asked, course.ASKING)
        run = course.Course(lm, given, fixed, dealt, store, 60 * minutes, progress)
        return run.result(key, seed)
    finally:
        lock.release()


@contextmanager
def _telling(progress: Step | None, seconds: float, text: str) -> Iterator[None]:
    """Report every second for how long something has gone on."""
    if progress is None:
        yield
        return
    started, report, total = time.perf_counter(), progress, max(int(seconds), 1)

    def say() -> None:
        report(min(int(time.perf_counter() - started), total - 1), total, text)

    clock = Ticker(say)
    try:
        yield
    finally:
        clock.stop()


def check(
    editor: str,
    model: str,
    facts: str | Path | None,
    minutes: float,
    overrides: Sequence[str] = (),
) -> None:
    """Refuse what cannot be searched, before a model is loaded for nothing.

    Raises:
        ConfigError: If no search is made for this editor, a setting is unknown, or there is no
            time.
        DataError: If the facts cannot be read.
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"{minutes:g} minutes are no time", "Example: --minutes 15")
    check_editor(get_editor(editor, overrides=overrides, model=model))
    if facts is not None:
        of_file(facts)
