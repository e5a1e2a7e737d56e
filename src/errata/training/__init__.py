"""Training of editors that learn: one loop for all of them, which knows none of them.

`errata.train` trains an editor by its name; here the loop takes an object, a `Trainable`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.arguments import all_of, several
from errata.training.config import TrainConfig

if TYPE_CHECKING:
    from errata.case import Case
    from errata.data import LoadedData
    from errata.data.corpus import Corpus
    from errata.model.lm import LM
    from errata.training.loop import Trained
    from errata.training.prepared import Prepared
    from errata.training.trainable import Trainable

    Cases = LoadedData | Sequence[Case]

__all__ = ["TrainConfig", "train_networks"]


def train_networks(
    lm: LM,
    editor: Trainable,
    cases: Cases | Sequence[Cases],
    out: str | Path,
    config: TrainConfig,
    *,
    validation: Cases | None = None,
    resume: bool = False,
    force: bool = False,
    about: Mapping[str, Any] | None = None,
    report: Callable[[str, int, int], None] | None = None,
    prepared: Prepared | None = None,
    watch: Callable[[Mapping[str, Any]], None] | None = None,
) -> Trained:
    """Make training groups of cases and train an editor's networks on them.

    This is `errata.train`, where every argument is described, without its defaults: the editor is
    an object and the settings of the loop are given.
    """
    from errata.training.groups import complete, make_groups, with_sentences
    from errata.training.loop import Trainer
    from errata.training.sources import describe

    loaded, pools = _pools(cases)
    held_out = None if validation is None else _cases(validation)
    if held_out is None:
        pools, held_out = _hold_out(pools, config)
    if about is None:
        about = {"data": [describe(data.name, data) for data in loaded]} if loaded else {}

    text = None if config.il_text is None else _text(lm, config.il_text)
    if text is not None:
        about = {**about, "il_text": text.id}

    def groups(some: Sequence[Case]) -> list[Any]:
        made = make_groups(
            lm, some, hops=config.hops, generality=config.generality, seed=config.seed
        )
        if text is not None:
            made = with_sentences(lm, made, text.texts, config.seed)
        return complete(lm, editor, made)

    lm.check_finite()
    made = [groups(pool) for pool in pools]
    held = groups(held_out[: config.validation_groups])
    trainer = Trainer(
        lm, editor, made, held, config, Path(out), dict(about), report, prepared, watch
    )
    return trainer.run(resume=resume, force=force)


DOCUMENTS = 2000
"""Texts that sentences are drawn from."""


def _text(lm: LM, source: str) -> Corpus:
    """Read the texts of `il_text`."""
    from errata.data.corpus import WIKITEXT, load_corpus

    return load_corpus(lm.name, WIKITEXT if source == "wikitext" else source, DOCUMENTS)


LEARNED = "cases as errata.load_cases returns them, or a list of such sets"
LOADED = "Type: errata.load_cases(NAME)"


def _cases(data: Cases) -> list[Case]:
    from errata.case import Case
    from errata.data import LoadedData

    if isinstance(data, LoadedData):
        return list(data.cases)
    return list(all_of(data, Case, "cases", LEARNED, LOADED))


def _pools(cases: Any) -> tuple[list[LoadedData], list[list[Case]]]:
    """Return the data sets as they were loaded, as far as they were, and their cases."""
    from errata.case import Case
    from errata.data import LoadedData

    if not isinstance(cases, LoadedData):
        cases = several(cases, "cases", LEARNED)
    if isinstance(cases, LoadedData) or all(isinstance(case, Case) for case in cases):
        cases = [cases]
    return [data for data in cases if isinstance(data, LoadedData)], [_cases(d) for d in cases]


def _hold_out(pools: list[list[Case]], config: TrainConfig) -> tuple[list[list[Case]], list[Case]]:
    """Take validation cases out of the main pool: at most a tenth of it, drawn by the seed."""
    import random

    main = list(pools[0])
    count = min(config.validation_groups, len(main) // 10)
    chosen = set(random.Random(config.seed).sample(range(len(main)), count))
    held = [case for at, case in enumerate(main) if at in chosen]
    kept = [case for at, case in enumerate(main) if at not in chosen]
    return [kept, *pools[1:]], held
