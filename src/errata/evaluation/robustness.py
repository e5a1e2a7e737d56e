"""REP's robustness suite: every case asked again under perturbations, scored as whole answers.

The suite turns cases into cases whose questions are the perturbed prompts, each under the name of
its test. Everything else (regimes, patches, records, resuming, intervals) is the evaluation's own.

```
edit            the prompt of the edit                                     (success)
prefix          a sampled sentence in front of it
long, long_held a stretch of ordinary text in front; `long` is unseen, `long_held` is what
                training may use
prompt          the data set's rephrased prompts
subject_id, _od the subject under another name; seen and unseen half
shuffle_id, _od the tokens of the subject in another order; seen and unseen half
possessive      the subject with 's
```

Locality questions are those of the data set, and ask for the same tokens as before the edit.

Source: Yan et al. 2024, "Keys to Robust Edits", https://arxiv.org/abs/2410.09338, and its released
evaluation; the random prefix is ours.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field

from errata.case import Case, Edit, Probe, how_asked
from errata.config import Settings, settings_from
from errata.data import LoadedData
from errata.data.corpus import Corpus, load_corpus
from errata.errors import DataError
from errata.locate.contexts import ContextSettings, get_contexts
from errata.locate.perturb import (
    LONG_HELD,
    LONG_WORDS,
    fit_context,
    halves,
    long_contexts,
    subject_shuffles,
    with_subject,
)
from errata.model.tokens import find_subject
from errata.world.shipped import knows_world

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.world import World

Test = Literal["prefix", "long", "prompt", "subject", "shuffle", "possessive", "locality"]
TESTS: tuple[Test, ...] = get_args(Test)

POCKET_WORDS = 20
"""Words of a long context for the pocket model, whose rows hold 40 tokens in training."""

NEIGHBOURS = 5
"""Other subjects of the same relation that are asked for in the built-in world."""

_POSSESSIVE = ("'", "’")
_OF_QUESTIONS = ("edit_keys", "locality_keys", "loc_type")
_FORMAT = 1


class RobustnessSettings(Settings):
    """What the suite asks, and from which seed it is drawn."""

    tests: tuple[Test, ...] = Field(default=TESTS, min_length=1, description="Tests to run")
    seed: int = Field(
        default=0,
        ge=0,
        description="Seed of shuffles and long contexts (an editor that trains on them has to use "
        "the same, REP's default is 0) and, one higher, of the random prefixes",
    )
    truth: bool = Field(
        default=False,
        description="Ask for the true answers and edit to them: with the editor none, how well the "
        "unedited model itself withstands each perturbation",
    )
    prefixes: int = Field(default=5, ge=1, description="Random prefixes per edit")
    prefix_recipe: str = Field(default="easyedit", description="Recipe of the random prefixes")
    words: int | Literal["auto"] = Field(
        default="auto",
        description=f"Words of a long context; auto: {LONG_WORDS} ({POCKET_WORDS} for pocket)",
    )
    held: int = Field(default=LONG_HELD, ge=0, description="Long contexts meant for training")
    text: str = Field(
        default="auto",
        description="Text of the long contexts: a file (.txt, .json, .jsonl), a data set of the Hub"
        ", or auto (pocket: its world; otherwise wikitext-103)",
    )
    documents: int = Field(default=2000, ge=1, description="Documents of that text to draw from")


@dataclass(frozen=True)
class Material:
    """What a data set has for the questions about one edit.

    Attributes:
        subjects: Other names of the subject.
        prompts: Other prompts for the same answer.
        locality: Questions that must not move, named after the test.
        truth: The true answer.
    """

    subjects: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    truth: str | None = None


@dataclass
class _Fitted:
    """Counts the long contexts that were too long for the model."""

    asked: int = 0
    words: list[int] = field(default_factory=list)


def robustness_suite(
    lm: LM,
    data: LoadedData,
    settings: RobustnessSettings | None = None,
    *,
    options: Mapping[str, Any] | None = None,
) -> LoadedData:
    """Return the cases of a data set with the questions of the suite.

    Args:
        lm: The model: its tokenizer splits subjects, it samples the prefixes, and its number of
            positions bounds the long contexts.
        data: Loaded cases. Rephrased subjects are read from `subject_rephrase` in their `meta`
            (REP's file), those of the built-in world from the world.
        settings: Settings of the suite.
        options: Settings with which the built-in world was loaded.

    Returns:
        Cases to evaluate; each edit holds the seen half of the rephrased subjects.

    Raises:
        DataError: If the text of the long contexts cannot be had or is too short, or a true answer
            is asked for that the data set does not tell.
        EditError: If a subject does not occur in its prompt.
    """
    settings = settings or RobustnessSettings()
    builder = _Builder(lm, settings)
    world = _world_of(options) if data.name == "world" else None
    cases = tuple(builder.case(case, _material(case, world, settings)) for case in data.cases)
    facts = [_FORMAT, data.version, settings.model_dump(mode="json"), [repr(c) for c in cases]]
    return replace(
        data,
        cases=cases,
        version=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        notes=(*data.notes, *builder.notes()),
    )


def settings_of(pairs: Iterable[str] | None) -> RobustnessSettings:
    """Read `KEY=VALUE` strings.

    Raises:
        ConfigError: If a name is unknown or a value out of range.
    """
    return settings_from(RobustnessSettings, where="suite robustness", overrides=pairs or ())


# ---------------------------------------------------------------------- material


def _world_of(options: Mapping[str, Any] | None) -> World:
    from errata.data.world import WorldOptions
    from errata.world import build_world

    chosen = settings_from(WorldOptions, options, where="data set world")
    return build_world(chosen.scale, chosen.seed)


def _material(case: Case, world: World | None, settings: RobustnessSettings) -> Material:
    if world is None:
        return _of_record(case)
    return _of_world(case, world, settings.seed)


def _of_record(case: Case) -> Material:
    """Read what a record says; its prompts count if they ask for what the edit writes."""
    locality = tuple(
        _unmoved(probe.prompt, probe.target, probe.name, **how_asked(probe))
        for probe in case.of("locality")
    )
    if len(case.edits) != 1:  # to which of them prompts and names belong is not said
        return Material(locality=locality)
    edit = case.edits[0]
    return Material(
        subjects=tuple(case.meta.get("subject_rephrase", edit.subject_rephrases)),
        prompts=tuple(
            probe.prompt
            for probe in case.of("generality")
            if probe.target == edit.target and not probe.hops
        ),
        locality=locality,
        truth=edit.target_true,
    )


def _unmoved(prompt: str, answer: str, name: str, **how: Any) -> Probe:
    return Probe(prompt, answer, "locality", name, top_k=1, **how)


def _of_world(case: Case, world: World, seed: int) -> Material:
    from errata.world import rephrase

    (edit,) = case.edits
    subject = edit.subject or ""
    fact = rephrase.fact_of(world, case.id, subject)
    before = edit.prompt[: find_subject(edit.prompt, subject)[0]]
    beside = rephrase.neighbours(world, fact, NEIGHBOURS, seed)
    own = rephrase.of_subject(world, fact, seed)
    return Material(
        subjects=rephrase.subject_forms(world.entities[fact.head], before),
        prompts=rephrase.paraphrases(world, fact),
        locality=(
            *(_unmoved(prompt, answer, "neighborhood") for prompt, answer in beside),
            *(_unmoved(prompt, answer, "same_subject") for prompt, answer in own),
        ),
        truth=world.entities[fact.tail].label,
    )


# ---------------------------------------------------------------------- cases


class _Builder:
    """Makes the questions of cases; texts and prefixes are fetched when they are first needed."""

    def __init__(self, lm: LM, settings: RobustnessSettings) -> None:
        self.lm = lm
        self.settings = settings
        self.fitted = _Fitted()
        self.words = settings.words
        if self.words == "auto":
            self.words = POCKET_WORDS if knows_world(lm.name) else LONG_WORDS
        self._prefixes: list[str] | None = None
        self._texts: Corpus | None = None

    def case(self, case: Case, material: Material) -> Case:
        """Return a case with the questions of the chosen tests."""
        seen, unseen = halves(material.subjects)
        edits, probes = [], []
        for edit in case.edits:
            chosen = self._target(case, edit, material)
            edits.append(replace(chosen, subject_rephrases=seen))
            probes += self._probes(chosen, material, seen, unseen)
        if "locality" in self.settings.tests:
            probes += material.locality
        # what a data set keeps there about its own questions does not hold for these
        kept = {key: value for key, value in case.meta.items() if key not in _OF_QUESTIONS}
        meta = MappingProxyType(kept)
        return Case(case.id, tuple(edits), tuple(probes), meta, exact=True)

    def _target(self, case: Case, edit: Edit, material: Material) -> Edit:
        if not self.settings.truth:
            return edit
        truth = edit.target_true if len(case.edits) > 1 else material.truth
        if truth is None:
            raise DataError(
                f"case {case.id!r} does not tell the true answer of {edit.prompt!r}",
                "Leave out --suite-set truth=true, or take a data set that has it "
                "(counterfact, rep, world).",
            )
        return replace(edit, target=truth, target_true=None)

    def _probes(
        self, edit: Edit, material: Material, seen: Sequence[str], unseen: Sequence[str]
    ) -> list[Probe]:
        asked: list[tuple[str, str]] = []
        tests = self.settings.tests
        if "prefix" in tests:
            asked += [("prefix", prefix + edit.prompt) for prefix in self._drawn(edit.prompt)]
        if "long" in tests:
            asked += self._long(edit)
        if "prompt" in tests:
            asked += [("prompt", prompt) for prompt in material.prompts]
        if edit.subject is not None:
            asked += self._subjects(edit.prompt, edit.subject, seen, unseen)
        return [
            Probe(
                prompt,
                edit.target,
                "generality",
                name,
                top_k=1,
                subject=edit.subject,
                **how_asked(edit),
            )
            for name, prompt in asked
        ]

    def _subjects(
        self, prompt: str, subject: str, seen: Sequence[str], unseen: Sequence[str]
    ) -> list[tuple[str, str]]:
        """Return the prompts with another form in place of the subject, by the name of the test."""
        forms: list[tuple[str, str]] = []
        if "subject" in self.settings.tests:
            forms += [("subject_id", form) for form in seen]
            forms += [("subject_od", form) for form in unseen]
        if "shuffle" in self.settings.tests:
            first, second = halves(subject_shuffles(self.lm, subject, seed=self.settings.seed))
            forms += [("shuffle_id", form) for form in first]
            forms += [("shuffle_od", form) for form in second]
        behind = prompt[find_subject(prompt, subject)[1] :]
        if "possessive" in self.settings.tests and not behind.startswith(_POSSESSIVE):
            forms.append(("possessive", f"{subject}'s"))
        asked = [(name, with_subject(prompt, subject, form)) for name, form in forms]
        return [(name, text) for name, text in asked if text != prompt]

    def _drawn(self, prompt: str) -> list[str]:
        settings = self.settings
        if self._prefixes is None:
            # not those that editors compute keys with, whose seed is 0 by default
            recipe = ContextSettings(contexts=settings.prefix_recipe, seed=settings.seed + 1)
            found = get_contexts(self.lm, recipe).prefixes
            self._prefixes = list(dict.fromkeys(prefix for prefix in found if prefix))
        rng = random.Random(f"prefix/{settings.seed}/{prompt}")
        return rng.sample(self._prefixes, min(settings.prefixes, len(self._prefixes)))

    def _long(self, edit: Edit) -> list[tuple[str, str]]:
        settings = self.settings
        assert isinstance(self.words, int)
        if self._texts is None:
            try:
                self._texts = load_corpus(self.lm.name, settings.text, settings.documents)
            except DataError as error:
                raise DataError(
                    error.message,
                    "Give a local text for the long contexts: --suite-set text=FILE.txt (or .json, "
                    ".jsonl), or leave that test out: --suite-set 'tests=[\"subject\", …]'",
                ) from None
        drawn = long_contexts(
            self._texts.texts,
            edit.prompt,
            words=self.words,
            held=settings.held,
            seed=settings.seed,
        )
        named = [("long", drawn.unseen), *(("long_held", text) for text in drawn.held)]
        asked = []
        for name, text in named:
            fitting = fit_context(self.lm, text, edit.prompt, [edit.target], **how_asked(edit))
            self.fitted.asked += 1
            if fitting != text:
                self.fitted.words.append(len(fitting.split()))
            asked.append((name, f"{fitting} {edit.prompt}"))
        return asked

    def notes(self) -> list[str]:
        """Return what is worth knowing about the questions made so far."""
        short = self.fitted.words
        if not short:
            return []
        return [
            f"{len(short):,} of {self.fitted.asked:,} long contexts shortened from {self.words} "
            f"words to {min(short)}-{max(short)}: the model has {self.lm.max_length} positions"
        ]
