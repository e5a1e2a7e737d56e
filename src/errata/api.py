"""What a notebook and the command line share: edit, trace or train in one call, look at both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from errata.case import Edit
from errata.editors import get_editor
from errata.editors.base import Editor
from errata.errors import EditError
from errata.model.lm import LM
from errata.patch import Patch

if TYPE_CHECKING:
    from errata.tracing.effects import Trace
    from errata.tracing.trace import Progress
    from errata.training import Cases, TrainConfig
    from errata.training.loop import Trained
    from errata.training.prepared import Prepared
    from errata.training.trainable import Trainable


def edit(
    lm: LM,
    prompt: str,
    target: str,
    *,
    subject: str | None = None,
    editor: str | Editor = "rome",
    after: Patch | None = None,
    as_published: str | None = None,
    **settings: Any,
) -> Patch:
    """Make one edit and return it as a patch; the model stays bit for bit what it was.

    Args:
        lm: The model.
        prompt: The question, ending just before the answer.
        target: The answer to write.
        subject: The entity the fact is about, as it stands in the prompt; many editors need it.
        editor: Name of an editor, or an editor.
        after: An earlier patch that the new one builds on and contains.
        as_published: Start from the settings published for this backbone.
        settings: Settings of the editor (`layer=3`).

    Raises:
        ConfigError: If the editor or a setting is unknown.
        EditError: If the request cannot be carried out.
    """
    if isinstance(editor, str):
        editor = get_editor(editor, settings, as_published=as_published, model=lm.name)
    return editor.edit_one(lm, [Edit(prompt, target, subject)], after)


def trace(
    lm: LM,
    data: str | Sequence[Edit] | None = None,
    *,
    limit: int | None = 100,
    split: str | None = None,
    kinds: Sequence[str] = ("hidden", "ffn", "attn"),
    progress: Progress | None = None,
    **settings: Any,
) -> Trace:
    """Find out which blocks recall what the model knows, by causal tracing.

    The choice of blocks is kept in the cache, where `layer=auto` finds it.

    Args:
        lm: The model.
        data: Facts: a name or file as `errata.data._facts.load_facts` takes it, or edits whose
            target is the true answer. Default: the built-in world for pocket, else `known_1000`.
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

    chosen = settings_from(TraceSettings, settings, where="trace")
    if data is None:
        data = default_facts(lm.name)
    if isinstance(data, str):
        facts = load_facts(data, split, chosen.seed)
    else:
        facts = Facts("given facts", tuple(data), "")
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
    from errata.training import train_networks
    from errata.training.config import settings_for

    if isinstance(editor, str):
        editor = trainable(editor, lm.name)
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


@dataclass(frozen=True)
class View:
    """One prompt as the model sees it before and after a patch.

    Attributes:
        prompt: The prompt.
        before: The most probable next tokens with their probabilities, without the patch.
        after: The same under the patch.
        says_before: The model's own greedy continuation without the patch.
        says_after: The same under the patch.
        target: The answer that was asked about, if any.
        p_before: Probability of the whole target without the patch.
        p_after: The same under the patch.
        hit_before: Whether every token of the target is the most probable one, without the patch.
        hit_after: The same under the patch.
    """

    prompt: str
    before: tuple[tuple[str, float], ...]
    after: tuple[tuple[str, float], ...]
    says_before: str
    says_after: str
    target: str | None = None
    p_before: float | None = None
    p_after: float | None = None
    hit_before: bool | None = None
    hit_after: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Look:
    top: list[list[tuple[str, float]]]
    says: list[str]
    likely: list[tuple[float, bool] | None]


def _look(
    lm: LM, prompts: Sequence[str], targets: Sequence[str | None], k: int, new_tokens: int
) -> _Look:
    asked = [i for i, target in enumerate(targets) if target is not None]
    rows = [lm.row(prompts[i], targets[i]) for i in asked]
    likely: list[tuple[float, bool] | None] = [None] * len(prompts)
    for i, score in zip(asked, lm.score(rows), strict=True):
        likely[i] = (math.exp(sum(score.logprobs)), not any(score.ranks))
    return _Look(lm.top(prompts, k), lm.generate(prompts, new_tokens), likely)


def compare(
    lm: LM,
    patch: Patch,
    prompts: Sequence[str],
    targets: Sequence[str | None] | None = None,
    *,
    k: int = 5,
    new_tokens: int = 8,
) -> list[View]:
    """Ask the same prompts without and with a patch.

    Args:
        lm: The model.
        patch: The patch; undone at the end.
        prompts: What to ask.
        targets: For each prompt, an answer whose probability is wanted, or None.
        k: How many of the most probable next tokens to show.
        new_tokens: Length of the model's own continuation.

    Raises:
        PatchError: If the patch is for another model.
    """
    targets = list(targets) if targets is not None else [None] * len(prompts)
    if len(targets) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(targets)} targets")
    before = _look(lm, prompts, targets, k, new_tokens)
    with patch.applied(lm):
        after = _look(lm, prompts, targets, k, new_tokens)
    views = []
    for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        p_before, hit_before = before.likely[i] or (None, None)
        p_after, hit_after = after.likely[i] or (None, None)
        views.append(
            View(
                prompt=prompt,
                before=tuple(before.top[i]),
                after=tuple(after.top[i]),
                says_before=before.says[i],
                says_after=after.says[i],
                target=target,
                p_before=p_before,
                p_after=p_after,
                hit_before=hit_before,
                hit_after=hit_after,
            )
        )
    return views


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

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Return the patch that was made before, whatever is asked."""
        if any(patch is self.patch for patch in before):
            raise EditError("a finished patch is asked as it is: nothing is edited on top of it")
        return [self.patch] * len(groups)

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        return added
