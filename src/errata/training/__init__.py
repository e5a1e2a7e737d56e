"""Training of editors that learn: one loop for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.training.config import TrainConfig

if TYPE_CHECKING:
    from errata.case import Case
    from errata.data import LoadedData
    from errata.editors.base_networks import NetworkEditor
    from errata.model.lm import LM
    from errata.training.loop import Trained
    from errata.training.prepared import Prepared

    Cases = LoadedData | Sequence[Case]

__all__ = ["TrainConfig", "train"]


def train(
    lm: LM,
    editor: NetworkEditor | str,
    cases: Cases | Sequence[Cases],
    out: str | Path,
    *,
    validation: Cases | None = None,
    config: TrainConfig | None = None,
    resume: bool = False,
    force: bool = False,
    about: Mapping[str, Any] | None = None,
    report: Callable[[str, int, int], None] | None = None,
    prepared: Prepared | None = None,
    watch: Callable[[Mapping[str, Any]], None] | None = None,
) -> Trained:
    """Train the networks of an editor; the model stays as it is.

    Interrupted or killed, a run goes on with `resume` and ends with the same weights as one that
    was not, bit for bit on the same machine. Start it with `accelerate launch` for more than one
    process.

    Args:
        lm: The base model.
        editor: A trained editor (`ibke`, `mend` …) with the settings of its networks, or its name;
            it holds the best networks afterwards.
        cases: Records to train on, as `load_cases` returns them; or several sets of them, the main
            data set first.
        out: Folder: `config.json`, `log.jsonl`, `checkpoint.safetensors`, `summary.json`, and
            `best/` with the networks of lowest validation loss.
        validation: Records that choose the best networks; None: held out from `cases`.
        config: Settings of the loop; None: those that suit the editor.
        resume: Go on with the run in `out`, if there is one.
        force: Replace the run in `out`, if there is one.
        about: JSON values kept with the run (`data`: what was read).
        report: Called with (what, done, total).
        prepared: What a frozen model says about the groups, shared between runs on the same cases
            and matrices.
        watch: Called with every entry of the log: losses, steps per second, remaining seconds.

    Raises:
        ConfigError: If settings contradict each other.
        DataError: If there is nothing to learn from.
        RunError: If the loss becomes NaN, the folder holds another run, or cannot be written.
    """
    from errata.training.config import settings_for, trainable
    from errata.training.groups import complete, make_groups
    from errata.training.loop import Trainer
    from errata.training.sources import describe

    if isinstance(editor, str):
        editor = trainable(editor, lm.name)
    config = config or settings_for(editor, lm.name)
    loaded, pools = _pools(cases)
    held_out = None if validation is None else _cases(validation)
    if held_out is None:
        pools, held_out = _hold_out(pools, config)
    if about is None:
        about = {"data": [describe(data.name, data) for data in loaded]} if loaded else {}

    def groups(some: Sequence[Case]) -> list[Any]:
        made = make_groups(
            lm, some, hops=config.hops, generality=config.generality, seed=config.seed
        )
        return complete(lm, editor, made)

    lm.check_finite()
    made = [groups(pool) for pool in pools]
    held = groups(held_out[: config.validation_groups])
    trainer = Trainer(
        lm, editor, made, held, config, Path(out), dict(about), report, prepared, watch
    )
    return trainer.run(resume=resume, force=force)


def _cases(data: Cases) -> list[Case]:
    from errata.data import LoadedData

    return list(data.cases if isinstance(data, LoadedData) else data)


def _pools(cases: Any) -> tuple[list[LoadedData], list[list[Case]]]:
    """Return the data sets as they were loaded, as far as they were, and their cases."""
    from errata.case import Case
    from errata.data import LoadedData

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
