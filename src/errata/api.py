"""What a notebook and the command line share: edit, trace or train in one call, look at both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from errata.arguments import all_of, expect, expect_whole, path_of, several
from errata.case import HOW, Chat, Edit
from errata.editors import get_editor
from errata.editors.base import Editor
from errata.editors.fitting import fitted
from errata.errors import ConfigError, EditError
from errata.inspection.look import look
from errata.inspection.turns import REGIMES as REGIMES
from errata.inspection.turns import best, built, check_regime, make
from errata.model.given import expect_model
from errata.model.lm import LM
from errata.patch import Patch
from errata.patch.compare import Comparison as Comparison
from errata.patch.compare import View as View
from errata.patch.compare import compare as compare
from errata.spacing import AUTO

if TYPE_CHECKING:
    from errata.progress import Step
    from errata.searching.result import Tuned
    from errata.tracing.effects import Trace
    from errata.training import Cases, TrainConfig
    from errata.training.loop import Trained
    from errata.training.prepared import Prepared
    from errata.training.trainable import Trainable


def edit(
    lm: LM,
    prompt: str | Edit | Sequence[Edit],
    target: str | None = None,
    *,
    subject: str | None = None,
    joiner: str = AUTO,
    chat: Chat = "off",
    system: str | None = None,
    editor: str | Editor | Sequence[str | Editor] = "rome",
    after: Patch | None = None,
    regime: str = "joint",
    as_published: str | None = None,
    stop_when: str | None = None,
    ask: bool = True,
    neighbourhood: bool = True,
    progress: Step | None = None,
    **settings: Any,
) -> Patch:
    """Make one edit, or many, and return them as one patch; the model stays what it was.

    What became of them, and what else moved, is in the patch's `report`.

    ```python
    patch = errata.edit(lm, "The capital of France is", "Rome", subject="France")
    print(patch.report)
    errata.edit(lm, errata.load_edits("facts.jsonl"), editor="memit")
    errata.edit(lm, "The capital of France is", "Rome", subject="France", editor=["rome", "ft"])
    ```

    Args:
        lm: The model; bit for bit the same afterwards.
        prompt: The question, ending just before the answer; or an edit, or several.
        target: The answer to write, if the prompt is a text.
        subject: The entity the fact is about, as it stands in the prompt; many editors need it.
        editor: Name of an editor, or an editor; or several, which are tried in turn: the patch with
            most edits taken, then fewest neighbours moved, is returned.
        joiner: What stands between prompt and target; `auto`: a space where their scripts use one.
        chat: `user` or `system+user`: the prompt is a user's message in the model's chat.
        system: The system message.
        after: An earlier patch that the new one builds on and contains.
        regime: Many edits: `joint` (solved together) or `sequential` (one after another).
        as_published: Start from the settings published for this backbone.
        stop_when: A sequence stops where it does too much harm: `perplexity=2x`.
        ask: Whether the edits are asked for afterwards.
        neighbourhood: Whether neighbours and general sentences are asked as well.
        progress: Called with (done, total) between edits that are made one after another.
        settings: Settings of the editor (`layer=3`); of several, each takes those that it has.

    Raises:
        ConfigError: If the editor, the regime or a setting is unknown, or the target is missing.
        EditError: If a request cannot be carried out.
    """
    expect_model(lm)
    requests = _requests(prompt, target, subject, joiner=joiner, chat=chat, system=system)
    check_regime(regime, stop_when)
    if not isinstance(editor, str | Editor):
        expect(editor, Sequence, "the editor", "an editor, its name, or a list of them", EDITOR)
        if not ask or not neighbourhood:
            raise ConfigError("several editors are compared by what is asked", "Leave it on.")
        for one in editor:
            expect(one, (str, Editor), "one of the editors", "an editor or its name", EDITOR)
        made = built(list(editor), settings, (), as_published, lm.name)
        named = [isinstance(one, str) for one in editor]
        chosen = [fitted(one, lm) if by else one for one, by in zip(made, named, strict=True)]
        if not chosen:
            raise ConfigError("there is no editor", "Give at least one.")
        _, patch = best(
            lm, chosen, requests, after, regime=regime, stop_when=stop_when, progress=progress
        )
        return patch.dated()
    if isinstance(editor, str):
        editor = fitted(get_editor(editor, settings, as_published=as_published, model=lm.name), lm)
    patch, told = make(
        lm, editor, requests, after, regime=regime, stop_when=stop_when, progress=progress
    )
    if ask:
        patch = look(
            lm, patch, requests, after, editor=editor, neighbourhood=neighbourhood, sequence=told
        )
    return patch.dated()


EDITOR = 'Type: editor="rome", or editor=errata.get_editor("rome")'
WHAT = ("what is to be edited", "a prompt, an Edit, or a list of edits")


def _requests(
    prompt: str | Edit | Sequence[Edit], target: str | None, subject: str | None, **how: Any
) -> list[Edit]:
    if isinstance(prompt, str):
        if target is None:
            raise ConfigError("the target is missing", "errata.edit(lm, PROMPT, TARGET)")
        return [Edit(prompt, target, subject, **how)]
    if target is not None or subject is not None or how != HOW:
        raise ConfigError(
            "edits bring their own targets and subjects, and say how they are asked",
            "errata.edit(lm, edits, editor=…)",
        )
    requests = [prompt] if isinstance(prompt, Edit) else list(several(prompt, *WHAT))
    if not requests:
        raise EditError("there is no edit to make", "Give at least one.")
    return requests


def trace(
    lm: LM,
    data: str | Edit | Sequence[Edit] | None = None,
    *,
    limit: int | None = 100,
    split: str | None = None,
    kinds: Sequence[str] = ("hidden", "ffn", "attn"),
    progress: Step | None = None,
    **settings: Any,
) -> Trace:
    """Find out which blocks recall what the model knows, by causal tracing.

    The choice of blocks is kept in the cache, where `layer=auto` finds it.

    Args:
        lm: The model.
        data: Facts: a name or file as `errata.data._facts.load_facts` takes it, or an edit, or
            several, whose target is the true answer. Default: the built-in world for pocket, else
            `known_1000`.
        limit: Number of facts that the model knows; None for all.
        split: Part of the data set.
        kinds: Which states are restored: `hidden`, `ffn`, `attn`.
        progress: Called with (facts done, facts).
        settings: Settings of the trace (`samples=10`, `noise=3.0`, `window="auto"`, `seed=0`).

    Raises:
        ConfigError: If a name or a setting is unknown.
        DataError: If the facts cannot be read, or the model answers none of them.
        EditError: If a fact has no subject, or it is not in the prompt.
    """
    from errata.config import settings_from
    from errata.data._facts import Facts, default_facts, load_facts
    from errata.tracing.effects import TraceSettings
    from errata.tracing.trace import trace as run

    expect_model(lm)
    if limit is not None:
        expect_whole(limit, "limit")
    chosen = settings_from(TraceSettings, settings, where="trace")
    if data is None:
        data = default_facts(lm.name)
    if isinstance(data, str):
        facts = load_facts(data, split, chosen.seed)
    else:
        given = [data] if isinstance(data, Edit) else data
        facts = Facts("given facts", all_of(given, Edit, "facts", "a list of edits"), "")
    return run(
        lm, facts.facts, chosen, kinds=kinds, limit=limit, data=facts.name, progress=progress
    )


def train(
    lm: LM,
    editor: Trainable | str,
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
    from errata.editors.base_networks import trainable
    from errata.training import TrainConfig, train_networks
    from errata.training.config import settings_for

    expect_model(lm)
    out = path_of(out, "the folder of the training run")
    if isinstance(editor, str):
        editor = trainable(editor, lm.name)
    learns = object if hasattr(editor, "defaults") else ()  # whatever has what `Trainable` asks for
    expect(editor, learns, "the editor", "a trained editor or its name", 'Type: "ibke"')
    if config is not None:
        expect(config, TrainConfig, "config", "a TrainConfig", "Type: errata.TrainConfig(steps=…)")
    return train_networks(
        lm,
        editor,
        cases,
        out,
        config or settings_for(editor, lm.name),
        validation=validation,
        resume=resume,
        force=force,
        about=about,
        report=report,
        prepared=prepared,
        watch=watch,
    )


def tune(
    lm: LM,
    editor: str,
    facts: str | Path | None = None,
    *,
    minutes: float = 15.0,
    seed: int = 0,
    force: bool = False,
    progress: Step | None = None,
    **settings: Any,
) -> Tuned:
    """Find settings of an editor with which it writes, spreads and spares on this model.

    They are tried on facts that the model knows, and measured on others that were held out. From
    then on the editor takes them when this model is edited, unless others are asked for.

    ```python
    print(errata.tune(lm, "memit", minutes=15).settings)
    ```

    Args:
        lm: The model; bit for bit the same afterwards.
        editor: Name of an editor that writes into weights and needs no training.
        facts: Facts with their true answers, as `errata.data._facts.load_facts` takes them;
            default: well known ones that ship with errata.
        minutes: Time for all of it. A search that was interrupted goes on where it stopped, and
            what it spent counts.
        seed: Seed of facts and candidates.
        force: Forget what earlier runs of the same search measured.
        progress: Called with (seconds spent, seconds given, what is being done).
        settings: Settings of the editor that are given and not searched.

    Raises:
        ConfigError: If no search is made for this editor, or the time does not suffice for one.
        DataError: If the facts cannot be read, or the model knows too few of them.
    """
    from errata.searching.search import search

    expect_model(lm)
    expect(editor, str, "the editor", "the name of an editor")
    expect(minutes, (int, float), "minutes", "a number")
    return search(
        lm, editor, facts,
        minutes=minutes, seed=seed, force=force, progress=progress, settings=settings,
    )  # fmt: skip


class FixedPatch(Editor):
    """Answers every request with one and the same patch, so that a finished patch can be evaluated.

    Args:
        patch: The patch.
    """

    name: ClassVar[str] = "patch"
    title: ClassVar[str] = "A finished patch"
    paper: ClassVar[str] = ""

    def __init__(self, patch: Patch) -> None:
        super().__init__()
        self.patch = patch

    def check_together(self, group: Sequence[Edit]) -> None:
        """Nothing is edited, so nothing contradicts."""

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Return the patch that was made before, whatever is asked."""
        if any(patch is self.patch for patch in before):
            raise EditError("a finished patch is asked as it is: nothing is edited on top of it")
        return [self.patch] * len(groups)

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        return added
