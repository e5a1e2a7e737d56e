"""What settings are tried on: facts that the model knows, each to be answered otherwise.

Facts come by relation (one prompt for many subjects): those that ship with errata, or a file. A
fact is known if the model says its answer by itself. A known fact becomes an edit towards the
answer of another known fact of its relation; the others are its neighbours, whose answers have to
stay. Facts are dealt in turn over the relations, first those that decide in the end (held out),
then those of the search.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from errata.case import Edit
from errata.data._facts import load_facts
from errata.errors import DataError, EditError, ErrataError, ModelError
from errata.store.cache import digest, load_json, save_json
from errata.store.digest import digest_of

if TYPE_CHECKING:
    from errata.model.lm import LM

RELATIONS = Path(__file__).parent / "relations.txt"

FEWEST = 3
"""Known facts of a relation: one to edit, one to move to, one to stay."""

NEIGHBOURS = 6
"""Neighbours of one edit at most."""

FRAMES = ("It is well known that {}", "In other words: {}")
"""Further prompts for facts of a file, which has one prompt each."""

LEAST = 8
"""Usable facts below which nothing is searched."""


@dataclass(frozen=True)
class Relation:
    """One prompt for many subjects.

    Attributes:
        name: Its name: that of the list, or the prompt with {} for the subject.
        prompts: The prompt of edits, then further ones; {} stands for the subject.
        facts: Subjects and their true answers.
    """

    name: str
    prompts: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Trial:
    """A fact to be edited.

    Attributes:
        edit: The edit; `target_true` is what the model says now.
        paraphrases: Further prompts that should give the new answer.
        neighbours: Facts of the same relation, whose answers should stay.
        relation: Where it is from.
    """

    edit: Edit
    paraphrases: tuple[Edit, ...]
    neighbours: tuple[Edit, ...]
    relation: str

    @property
    def id(self) -> str:
        """Names what is asked, whatever stands beside it."""
        asked = [self.edit.prompt, self.edit.target, *(n.prompt for n in self.neighbours)]
        return digest_of("\n".join([*asked, *(p.prompt for p in self.paraphrases)]))[:16]


@dataclass(frozen=True)
class Deal:
    """The facts of a search.

    Attributes:
        search: What settings are compared on.
        held: What the chosen ones are measured on, and nothing else.
        known: How many facts the model knows of how many, by relation.
        left_out: Relations of which it knows too few.
        unknown: Prompts that it does not answer rightly.
        name: Where the facts come from.
    """

    search: tuple[Trial, ...]
    held: tuple[Trial, ...]
    known: dict[str, tuple[int, int]]
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]
    name: str

    @property
    def id(self) -> str:
        """Names the facts and who knows them."""
        every = (*self.search, *self.held)
        return digest_of("\n".join([trial.id for trial in every]))[:16]


@cache
def shipped() -> tuple[Relation, ...]:
    """Return the relations that ship with errata."""
    found: list[Relation] = []
    for line in RELATIONS.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("relation "):
            found.append(Relation(line.removeprefix("relation "), (), ()))
            continue
        last = found[-1]
        if "{}" in line:
            prompts = (*last.prompts, line.removeprefix("~ "))
            found[-1] = replace(last, prompts=prompts)
            continue
        pairs = (fact.partition("=") for fact in line.split("|"))
        facts = tuple((name.strip(), answer.strip()) for name, _, answer in pairs)
        found[-1] = replace(last, facts=last.facts + facts)
    return tuple(found)


def of_file(spec: str | Path) -> tuple[Relation, ...]:
    """Return the facts of a file or data set, those of one prompt together.

    Raises:
        ConfigError: If there is no such data set.
        DataError: If it cannot be read, or holds no fact with a subject and a true answer.
    """
    grouped: dict[str, dict[str, str]] = {}
    for fact in load_facts(spec, seed=None).facts:
        assert fact.subject is not None
        template = fact.prompt.replace(fact.subject, "{}")
        if template.count("{}") == 1:
            grouped.setdefault(template, {})[fact.subject] = fact.target
    return tuple(
        Relation(template, (template, *_framed(template)), tuple(facts.items()))
        for template, facts in grouped.items()
    )


def _framed(template: str) -> Iterable[str]:
    return (frame.format(template) for frame in FRAMES)


def deal(
    lm: LM,
    relations: Sequence[Relation],
    name: str,
    *,
    search: int,
    held: int,
    seed: int = 0,
    folder: Path | None = None,
    anew: bool = False,
) -> Deal:
    """Ask the model for all facts, and deal those that it knows.

    Args:
        lm: The unedited model.
        relations: The facts.
        name: Where they come from.
        search: Facts of the search at most.
        held: Facts that are held out, at most.
        seed: Seed of who is dealt, and of new answers.
        folder: Where it is kept what this model knows; what is there is not asked again.
        anew: Ask again in any case.

    Raises:
        DataError: If the model knows too few of them.
    """
    known, unknown = _kept(lm, relations, folder, anew) if folder else _known(lm, relations)
    draw = random.Random(f"deal/{seed}")
    usable: list[list[Trial]] = []
    left_out: list[str] = []
    for relation in relations:
        trials = _trials(lm, relation, known[relation.name], draw)
        if trials:
            draw.shuffle(trials)
            usable.append(trials)
        else:
            left_out.append(relation.name)
    draw.shuffle(usable)
    usable.sort(key=lambda trials: -min(len(trials), 4))  # of many small relations the best known
    total = sum(map(len, usable))
    if total < LEAST:
        raise DataError(
            f"{lm.name} knows too few facts of {name}: {total} that can be edited and have "
            f"neighbours, at least {LEAST} are needed",
            "Give facts that it knows: --facts FILE, with the fields subject, prompt and attribute,"
            f" and at least {FEWEST} subjects for each prompt.",
        )
    every = _in_turn(usable)
    # a small set is shared fairly: half of it is held out
    held = min(held, total // 2)
    counts = {r.name: (len(known[r.name]), len(r.facts)) for r in relations}
    return Deal(
        tuple(every[held : held + search]), tuple(every[:held]), counts, tuple(left_out),
        tuple(unknown), name,
    )  # fmt: skip


Known = tuple[dict[str, list[tuple[str, str]]], list[str]]
"""Subjects and answers by relation, and the prompts that were not answered rightly."""


def _kept(lm: LM, relations: Sequence[Relation], folder: Path, anew: bool) -> Known:
    """Return what is known, from a file if it was asked before: a large model takes minutes."""
    asked = [[relation.name, relation.prompts[0], relation.facts] for relation in relations]
    path = folder / f"known-{digest(str(lm.dtype), asked)}.json"
    kept = None if anew else load_json(path)
    if kept is not None:
        pairs = {
            name: [(s, answer) for s, answer in facts] for name, facts in kept["known"].items()
        }
        return pairs, list(kept["unknown"])
    known, unknown = _known(lm, relations)
    save_json(path, {"known": known, "unknown": unknown})
    return known, unknown


def _known(lm: LM, relations: Sequence[Relation]) -> Known:
    """Return the facts of each relation that the model answers rightly, and the prompts of others.

    What cannot be asked (too long, without a tokenisation) counts as not known.
    """
    rows, places = [], []
    found: dict[str, list[tuple[str, str]]] = {relation.name: [] for relation in relations}
    unknown: list[str] = []
    for relation in relations:
        for subject, answer in relation.facts:
            prompt = put(relation.prompts[0], subject)
            try:
                rows.append(lm.row_of(Edit(prompt, answer, subject), subject=True))
                places.append((relation.name, subject, answer, prompt))
            except (EditError, ModelError, DataError):
                unknown.append(prompt)
    for (name, subject, answer, prompt), score in zip(places, lm.score(rows), strict=True):
        if any(score.ranks):
            unknown.append(prompt)
        else:
            found[name].append((subject, answer))
    return found, unknown


def _trials(
    lm: LM, relation: Relation, known: Sequence[tuple[str, str]], draw: random.Random
) -> list[Trial]:
    """Return an edit for every known fact that can be answered otherwise and has neighbours.

    Those whose subject is the first token of the text are left out.
    """
    if len(known) < FEWEST:
        return []
    found: list[Trial] = []
    for subject, answer in known:
        others = sorted({other for _, other in known if other != answer})
        if not others:
            continue
        target = draw.choice(others)
        stay = [(s, a) for s, a in known if s != subject and a != target]
        if not stay:
            continue
        chosen = draw.sample(stay, min(NEIGHBOURS, len(stay)))
        prompt, *further = (put(template, subject) for template in relation.prompts)
        try:
            edit = Edit(prompt, target, subject_in(prompt, subject), target_true=answer)
            row = lm.row_of(edit, subject=True)
        except ErrataError:
            continue
        if not row.subject_last:  # an attention sink: no setting makes it hold there
            continue
        neighbours = tuple(Edit(put(relation.prompts[0], s), a) for s, a in chosen)
        asked = tuple(Edit(text, target) for text in further)
        found.append(Trial(edit, asked, neighbours, relation.name))
    return found


def _in_turn(groups: Sequence[Sequence[Trial]]) -> list[Trial]:
    """Return trials, one of each group, then the next of each."""
    longest = max(map(len, groups))
    return [group[i] for i in range(longest) for group in groups if len(group) > i]


def put(template: str, subject: str) -> str:
    """Put a subject into a prompt; a prompt begins with a capital letter."""
    text = template.replace("{}", subject)
    if not template.startswith("{}") and subject.startswith("The ") and f" {subject}" in text:
        text = template.replace("{}", f"the {subject[4:]}")
    return text[:1].upper() + text[1:]


def subject_in(prompt: str, subject: str) -> str:
    """Return the subject as it stands in a prompt."""
    at = prompt.lower().find(subject.lower())
    return prompt[at : at + len(subject)] if at >= 0 else subject
