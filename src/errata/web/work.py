"""What takes time: loading, editing, asking, export and import, as jobs do it.

Each function gets the job that it works for, says what it does by `job.stage`, and returns frozen
results. It holds the lock of the models; the model is what it was when it returns or raises.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from errata.case import Edit
from errata.errors import ConfigError, DataError, EditError, ModelError, PatchError
from errata.patch.compare import View, compare

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch import Patch
    from errata.web.jobs import Job
    from errata.world import World

WORDS = 8
"""Tokens of the model's own words."""

TOP = 5
"""Most probable next tokens."""

LINES = 20
"""Questions of each kind that are asked at most."""

LONGEST = 2000
"""Characters of a text that is typed."""


@dataclass(frozen=True)
class Wish:
    """What was typed and chosen.

    Attributes:
        prompt: The question, ending just before the answer.
        subject: What it is about; empty: not said.
        target: The new answer.
        editors: One editor, or two that are compared.
        others: The same question in other words.
        questions: What else is asked.
        settings: `key=value` strings.
    """

    prompt: str
    subject: str
    target: str
    editors: tuple[str, ...] = ("rome",)
    others: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def edit(self) -> Edit:
        """Return the edit.

        Raises:
            EditError: Says which field is empty or too long.
        """
        for name, text in (("question", self.prompt), ("new answer", self.target)):
            if not text.strip():
                raise EditError(f"the {name} is empty", f"Type the {name}, then edit.")
        check_length(self.prompt, self.target, self.subject, *self.others, *self.questions)
        try:
            return Edit(self.prompt.strip(), self.target.strip(), self.subject.strip() or None)
        except DataError as error:
            raise EditError(error.message, error.hint) from None


def check_length(*texts: str) -> None:
    """Refuse what is too long for a question.

    Raises:
        EditError: Says how long it is.
    """
    longest = max(map(len, texts), default=0)
    if longest > LONGEST:
        raise EditError(
            f"a text of {longest:,} characters; expected at most {LONGEST:,}", "Shorten it."
        )


@dataclass(frozen=True)
class Group:
    """Questions of one kind.

    Attributes:
        kind: `edit`, `others`, `neighbours` or `questions`.
        views: What the model says before and after.
    """

    kind: str
    views: tuple[View, ...]


@dataclass(frozen=True)
class Made:
    """What one editor made of a wish.

    Attributes:
        editor: Its name.
        title: Its name in tables.
        patch: The patch; with its report.
        groups: What was asked before and after.
        seconds: Of editing.
        notes: What should be known of how it was made.
    """

    editor: str
    title: str
    patch: Patch
    groups: tuple[Group, ...]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def edit(job: Job, lm: LM, wish: Wish, earlier: Patch | None) -> tuple[Made, ...]:
    """Make the edit with each editor, and ask what it changed.

    Raises:
        ErrataError: If it cannot be made.
    """
    from errata.editors.fitting import fitted
    from errata.inspection.turns import built

    request = wish.edit()
    with job.watching(lm):
        chosen = [fitted(one, lm) for one in built(wish.editors, {}, wish.settings, None, lm.name)]
        for editor in chosen:
            if "subject" in editor.needs and request.subject is None:
                raise EditError(
                    f"{editor.title} needs to know what the fact is about",
                    "Fill in “About”: a name as it stands in the question.",
                )
            editor.check(request)
        others = _in_other_words(lm, wish, request)
        asked = [("others", others), ("questions", list(wish.questions[:LINES]))]
        return tuple(_made(job, lm, one, request, earlier, asked) for one in chosen)


def _made(
    job: Job,
    lm: LM,
    editor: Any,
    request: Edit,
    earlier: Patch | None,
    asked: Sequence[tuple[str, list[Edit | str]]],
) -> Made:
    from errata.inspection.look import look
    from errata.inspection.turns import make

    job.stage(f"{editor.title}: making the edit")
    began = time.perf_counter()
    editor.prepare(lm)
    patch, _ = make(lm, editor, [request], earlier)
    took = time.perf_counter() - began
    job.stage(f"{editor.title}: asking for the edit and its neighbours")
    patch = look(lm, patch, [request], earlier, editor=editor).dated()
    job.stage(f"{editor.title}: asking the questions before and after")
    groups = [("edit", editor.meant(lm, [request])), *asked]
    told = [editor.settings_from, *editor.notes(lm, [request])]
    return Made(
        editor.name, editor.title, patch, _asked(lm, patch, groups, earlier), took,
        tuple(text for text in told if text),
    )  # fmt: skip


def _asked(
    lm: LM,
    patch: Patch,
    groups: Sequence[tuple[str, Sequence[Edit | str]]],
    earlier: Patch | None = None,
) -> tuple[Group, ...]:
    """Ask all groups at once, and sort the answers into them."""
    every = [question for _, questions in groups for question in questions]
    views = compare(lm, patch, every, k=TOP, new_tokens=WORDS, before=earlier) if every else []
    found, first = [], 0
    for kind, questions in groups:
        if questions:
            found.append(Group(kind, tuple(views[first : first + len(questions)])))
        first += len(questions)
    return tuple(found)


def ask(
    job: Job, lm: LM, questions: Sequence[str], patch: Patch | None
) -> tuple[tuple[str, str, str | None], ...]:
    """Ask questions of the unedited model and under a patch.

    Returns:
        For each its text, and what is said without and with the patch; None: there is none.
    """
    check_length(*questions)
    asked = [line for line in questions if line.strip()][:LINES]
    if not asked:
        raise ConfigError("there is no question", "Type one, a line each.")
    job.stage("asking")
    with job.watching(lm):
        before = lm.generate(asked, WORDS)
        after: Sequence[str | None] = [None] * len(asked)
        if patch is not None:
            with patch.applied(lm):
                after = lm.generate(asked, WORDS)
    return tuple(zip(asked, before, after, strict=True))


def look_at(job: Job, lm: LM, patch: Patch, name: str) -> Made:
    """Check a patch that came from elsewhere, and ask for its edits.

    Raises:
        PatchError: If it is for another model, or nothing can be said under it.
    """
    from errata.inspection.soundness import check_answers

    job.stage("checking the patch")
    if patch.is_empty:
        raise PatchError(f"{name} changes nothing", "Choose another file.")
    patch.check(lm)
    patch.check_finite()
    with job.watching(lm):
        check_answers(patch, lm)
        job.stage("asking for its edits before and after")
        groups = _asked(lm, patch, [("edit", patch.edits[:LINES])])
    editor = str(patch.meta.get("editor") or "imported")
    return Made(editor, editor, patch, groups)


# ---------------------------------------------------------------------- other words


def _in_other_words(lm: LM, wish: Wish, request: Edit) -> list[Edit | str]:
    """Return the question in other words: those typed, else those that errata knows by itself.

    The example has some, and the built-in world has templates that its text never had. Where the
    model has a chat, the question is put there as well.
    """
    from errata.locate.contexts import Context

    typed: list[Edit | str] = [
        Edit(line.strip(), request.target) for line in wish.others[:LINES] if line.strip()
    ]
    if typed:
        return typed
    case = _case(lm.name)
    known = case["paraphrases"] if case["prompt"] == request.prompt else ()
    found: list[Edit | str] = [
        Edit(text, request.target) for text in known or world_paraphrases(lm.name, request)
    ]
    in_chat = Context(other=True).put(request)
    try:
        lm.row_of(in_chat)
    except (ModelError, DataError):
        pass
    else:
        found.append(in_chat)
    return found


def world_paraphrases(model: str, request: Edit) -> list[str]:
    """Return a question of the built-in world in words that its text does not have."""
    from errata.world import statements
    from errata.world.rephrase import paraphrases
    from errata.world.shipped import knows_world

    if request.subject is None or not knows_world(model):
        return []
    world = _world()
    heads = {e.id for e in world.entities.values() if e.label == request.subject}
    for fact in world.facts:
        if fact.head not in heads:
            continue
        relation = world.relations[fact.relation]
        for template in (*relation.templates, *relation.heldout):
            if statements.fill(template, world, fact, request.subject) == request.prompt:
                found = paraphrases(world, fact)
                return [text for text in found if text != request.prompt][:LINES]
    return []


@cache
def _world() -> World:
    from errata.world import build_world

    return build_world()


# ---------------------------------------------------------------------- editors


def editors_for(model: str) -> list[tuple[str, str]]:
    """Return the editors that work without training, as (label, name): also those that ship.

    Args:
        model: Name of the model.
    """
    from errata.editors import editors
    from errata.nets.weights import CONFIG, SHIPPED
    from errata.world.shipped import is_shipped

    found = []
    for name, entry in editors.entries.items():
        trained = "training" in entry.facts.get("needs", ())
        ships = is_shipped(model) and (SHIPPED / name / CONFIG).is_file()
        if name != "none" and (not trained or ships):
            found.append((str(entry.facts.get("title") or name), name))
    return found


def example(model: str) -> Wish:
    """Return a fact to try on a model; in other words it is known by itself."""
    case = _case(model)
    questions = tuple(prompt for prompt, _ in case["neighbours"])
    return Wish(case["prompt"], case["subject"], case["target"], questions=questions)


def _case(model: str) -> dict[str, Any]:
    from errata.world.shipped import demo_case, knows_world, real_case

    return demo_case() if knows_world(model) else real_case()
