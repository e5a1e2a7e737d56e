"""Questions that an edit should stand beyond its own words: choice, negation, the old answer.

An edited model that says the new answer behind the edit's prompt may have learned a phrase and no
fact. The suite asks three things more, of any data set in which several edits share a relation:

```
edit      The capital of France is  ->  Rome   (true: Paris; others of the relation: Oslo, Bern)

choice    Oslo, Rome, Bern or Paris? The capital of France is    Rome is the likeliest of the four
negation  The capital of France is not                           Rome is not the likeliest
leakage   The capital of France is                               1 if Paris is likelier than Rome
```

Each is asked of the edit's prompt (`edit`) and of the first rephrasings of the data set
(`rephrase`). Answers are compared by their mean log-probability per token, so a small model can be
asked as well; `--protocol wild` besides reads what the model writes. What the unedited model does
stands beside every rate: by chance alone a negation is right for all answers but one.

Objects of the same relation are those of the other loaded cases that say the same relation, or ask
in the same words about another subject; of the built-in world, all that it has.

Source: the idea of a choice among distractors in the context is SA-MCQ's (2026, "surface
compliance"), known to us from its summary only; wordings and scores are ours.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from errata.case import BEYOND, Beyond, Case, Edit, Probe, how_asked, subject_starts
from errata.config import Settings, settings_from
from errata.data import LoadedData
from errata.evaluation.negated import negated
from errata.evaluation.wild import STOPS, squad
from errata.spacing import AUTO
from errata.store.digest import digest_of

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.world import World

OLD_TOKENS = 8
"""Most tokens of what the unedited model says, for it to be taken as an old answer."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FORMAT = 1


class BeyondSettings(Settings):
    """What the suite asks, and from which seed it is drawn."""

    tests: tuple[Beyond, ...] = Field(default=BEYOND, min_length=1, description="What is asked")
    seed: int = Field(default=0, ge=0, description="Seed of the distractors and of their order")
    options: int = Field(
        default=4, ge=2, le=len(_LETTERS),
        description="Answers of a choice, if the data set has as many: the new one, the old one, "
        "and other objects of the relation",
    )  # fmt: skip
    form: Literal["texts", "letters"] = Field(
        default="texts",
        description="texts: the answers themselves are compared; letters: A, B, C … are, which "
        "small models cannot read",
    )
    rephrased: int = Field(
        default=1, ge=0, description="Rephrasings of the edit that are asked as well, at most"
    )
    old: Literal["auto", "data", "model"] = Field(
        default="auto",
        description="The old answer: what the data set holds to be true, or what the unedited "
        "model says by itself; auto: the latter where the former is missing",
    )
    keep: bool = Field(default=True, description="Ask the data set's own questions too")


def beyond_suite(
    lm: LM,
    data: LoadedData,
    settings: BeyondSettings | None = None,
    *,
    options: Mapping[str, Any] | None = None,
) -> LoadedData:
    """Return the cases of a data set with the questions of the suite behind their own.

    Args:
        lm: The model, which is asked for old answers that the data set does not tell.
        data: Loaded cases.
        settings: Settings of the suite.
        options: Settings with which the built-in world was loaded.
    """
    settings = settings or BeyondSettings()
    world = _world_of(options) if data.name == "world" else None
    maker = _Maker(settings, *_objects(data.cases, world), _old(lm, data.cases, world, settings))
    cases = tuple(maker.case(case) for case in data.cases)
    facts = [_FORMAT, data.version, settings.model_dump(mode="json"), [repr(c) for c in cases]]
    return replace(
        data,
        cases=cases,
        version=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        notes=(*data.notes, *maker.notes()),
    )


def settings_of(pairs: Iterable[str] | None) -> BeyondSettings:
    """Read `KEY=VALUE` strings.

    Raises:
        ConfigError: If a name is unknown or a value out of range.
    """
    return settings_from(BeyondSettings, where="suite beyond", overrides=pairs or ())


# ---------------------------------------------------------------------- relations and answers

Which = tuple[str, int]
"""An edit: the id of its case, and its number there."""


def _world_of(options: Mapping[str, Any] | None) -> World:
    from errata.data.world import WorldOptions
    from errata.world import build_world

    chosen = settings_from(WorldOptions, options, where="data set world")
    return build_world(chosen.scale, chosen.seed)


def relation_of(case: Case, number: int) -> str | None:
    """Return what stands for the relation of an edit: its id, or its words without the subject."""
    for field in ("relation_id", "relation"):
        told = case.meta.get(field)
        if isinstance(told, str) and len(case.edits) == 1:
            return told
    triples = case.meta.get("edit_triples", ())
    if len(triples) == len(case.edits) and len(triples[number]) == 3:
        return str(triples[number][1])
    edit = case.edits[number]
    name = (edit.subject or "").strip()
    starts = subject_starts(edit.prompt, name) if name else []
    if not starts:
        return None
    at = starts[-1]
    return edit.prompt[:at] + "{}" + edit.prompt[at + len(name) :]


def _objects(
    cases: Sequence[Case], world: World | None
) -> tuple[dict[Which, str], dict[str, list[str]]]:
    """Return the relation of every edit that has one, and the objects of every relation."""
    relations: dict[Which, str] = {}
    objects: dict[str, dict[str, None]] = {}
    for case in cases:
        for number, edit in enumerate(case.edits):
            relation = relation_of(case, number)
            if relation is None:
                continue
            relations[case.id, number] = relation
            own = objects.setdefault(relation, {})
            for answer in (edit.target, edit.target_true):
                if answer is not None:
                    own[answer.strip()] = None
    if world is not None:
        for relation, own in objects.items():
            for fact in world.by_relation.get(relation, ()):
                own[world.entities[fact.tail].label] = None
    return relations, {relation: list(own) for relation, own in objects.items()}


def _old(
    lm: LM, cases: Sequence[Case], world: World | None, settings: BeyondSettings
) -> dict[Which, str]:
    """Return the old answers that differ from the new ones."""
    found: dict[Which, str] = {}
    missing: list[tuple[Which, Edit]] = []
    for case in cases:
        for number, edit in enumerate(case.edits):
            told = edit.target_true if world is None else _truth(world, case, edit)
            if settings.old == "model" or (told is None and settings.old == "auto"):
                missing.append(((case.id, number), edit))
            elif told is not None and squad(told) != squad(edit.target):
                found[case.id, number] = told.strip()
    rows = [lm.prompt_of(edit) for _, edit in missing]
    said = lm.generate(rows, OLD_TOKENS + 1, stops=STOPS) if rows else []
    for (which, edit), text in zip(missing, said, strict=True):
        tokens = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        if squad(text) and squad(text) != squad(edit.target) and len(tokens) <= OLD_TOKENS:
            found[which] = text.strip()
    return found


def _truth(world: World, case: Case, edit: Edit) -> str:
    from errata.world import rephrase

    return world.entities[rephrase.fact_of(world, case.id, edit.subject or "").tail].label


# ---------------------------------------------------------------------- questions


class _Maker:
    """Makes the questions of cases, and counts those that cannot be made."""

    def __init__(
        self,
        settings: BeyondSettings,
        relations: Mapping[Which, str],
        objects: Mapping[str, Sequence[str]],
        old: Mapping[Which, str],
    ) -> None:
        self.settings, self.relations, self.objects, self.old = settings, relations, objects, old
        self.lacking: Counter[str] = Counter()
        self.edits = 0

    def case(self, case: Case) -> Case:
        """Return a case with the questions about each of its edits."""
        probes = list(case.probes) if self.settings.keep else []
        for number, edit in enumerate(case.edits):
            self.edits += 1
            which = case.id, number
            answers, old = self._answers(which, edit), self.old.get(which)
            prompts: list[tuple[str, Edit | Probe]] = [("edit", edit)]
            prompts += [("rephrase", probe) for probe in self._rephrased(case, edit)]
            draw = random.Random(f"beyond/{self.settings.seed}/{case.id}/{number}")
            for name, asked in prompts:
                how = how_asked(asked) | {"subject": edit.subject}
                probes += self._probes(name, asked.prompt, edit, answers, old, how, draw)
        return replace(case, probes=tuple(probes))

    def _rephrased(self, case: Case, edit: Edit) -> list[Probe]:
        if len(case.edits) != 1:  # of which of them they are is not said
            return []
        own = [p for p in case.of("generality") if p.target == edit.target and not p.hops]
        return own[: self.settings.rephrased]

    def _answers(self, which: Which, edit: Edit) -> tuple[str, ...]:
        """Return the answers beside the new one: the old one, if known, then others.

        Each object has a place of its own for every edit, so that what else is loaded changes few.
        """
        old = self.old.get(which)
        taken = {squad(text) for text in (edit.target, old) if text is not None}
        known = self.objects.get(self.relations.get(which, ""), ())
        others = [text for text in known if squad(text) not in taken]
        others.sort(key=lambda text: digest_of(f"{self.settings.seed}/{which}/{text}"))
        found = (*(() if old is None else (old,)), *others)[: self.settings.options - 1]
        if not found:
            self.lacking["edits without another object of their relation or an old answer"] += 1
        elif old is None and "leakage" in self.settings.tests:
            self.lacking["edits without an old answer are not asked for it"] += 1
        return found

    def _probes(
        self, name: str, prompt: str, edit: Edit, answers: tuple[str, ...], old: str | None,
        how: Mapping[str, Any], draw: random.Random,
    ) -> Iterator[Probe]:  # fmt: skip
        tests = self.settings.tests
        if "choice" in tests and answers:
            shown = draw.sample((edit.target, *answers), len(answers) + 1)
            yield _choice(name, prompt, edit.target, shown, self.settings.form, how)
        if "negation" in tests and answers:
            text = negated(prompt, edit.subject)
            if text is None:
                self.lacking["prompts that no rule negates"] += 1
            else:
                yield Probe(text, edit.target, "negation", name, choices=answers, **how)
        if "leakage" in tests and old is not None:
            yield Probe(prompt, old, "leakage", name, choices=(edit.target,), **how)

    def notes(self) -> list[str]:
        """Return what could not be asked."""
        told = f"of {self.edits:,} edits"
        return [f"suite beyond, {told}: {count:,} {what}" for what, count in self.lacking.items()]


def _choice(
    name: str, prompt: str, new: str, shown: Sequence[str], form: str, how: Mapping[str, Any]
) -> Probe:
    """Return the question with its answers in front of it, or as a list by letters behind it."""
    if form == "texts":
        asked = f"{', '.join(shown[:-1])} or {shown[-1]}? {prompt}"
        others = tuple(text for text in shown if text != new)
        return Probe(asked, new, "choice", name, choices=others, **how)
    lines = [f"{letter}. {text}" for letter, text in zip(_LETTERS, shown, strict=False)]
    asked = "\n".join([prompt, *lines, "Answer:"])
    right = _LETTERS[list(shown).index(new)]
    others = tuple(letter for letter in _LETTERS[: len(shown)] if letter != right)
    return Probe(asked, right, "choice", name, choices=others, **{**how, "joiner": AUTO})
