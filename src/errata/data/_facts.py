"""True facts with their subjects, to ask a model about: what causal tracing needs.

From the built-in world, from ROME's `known_1000`, from data sets that say the true answer of an
edit, or from a file of one's own.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from errata.case import Edit
from errata.config import did_you_mean
from errata.data import datasets, load_cases
from errata.data._download import fetch
from errata.data._formats import OWN, format_of
from errata.data._reading import read_lines, read_list
from errata.data._records import Record
from errata.errors import ConfigError, DataError

KNOWN = "known_1000"
KNOWN_URL = "https://rome.baulab.info/data/dsets/known_1000.json"
"""1,209 facts that GPT-2 XL knows (Meng et al. 2022)."""

ANSWERS = ("attribute", "target_true", "answer")
"""Fields that may hold the true answer; `target` is not one of them: it names what is false."""


@dataclass(frozen=True)
class Facts:
    """Facts in the order in which they are to be asked.

    Attributes:
        name: What was asked for.
        facts: Prompts with subjects; the target is the true answer.
        source: Where they come from.
    """

    name: str
    facts: tuple[Edit, ...]
    source: str


def default_facts(model: str) -> str:
    """Return the facts for a model of that name: what pocket was taught, else ROME's."""
    from errata.world.shipped import knows_world

    return "world" if knows_world(model) else KNOWN


def load_facts(spec: str | Path, split: str | None = None, seed: int | None = 0) -> Facts:
    """Load facts with their true answers.

    Args:
        spec: `world`, `known_1000`, a data set that says the true answers (`counterfact`), each of
            the latter also as `NAME:PATH` or as a file whose fields are known; or a .json or .jsonl
            file with the fields `subject`, `prompt` (or `template` with {} for the subject) and
            `attribute`.
        split: Part of the data set; of the world, facts about heads of the split `train` unless
            told otherwise.
        seed: Shuffles the facts, so that the first ones are a fair sample; None keeps the order.

    Raises:
        ConfigError: If the data set or split is unknown.
        DataError: If a file cannot be had, a record is broken, or no fact has a true answer.
    """
    spec = str(spec)
    name, _, rest = spec.partition(":")
    if name == "world" and not rest:
        facts, source = _of_world(split or "train", seed or 0), "errata.world"
    elif name == KNOWN or _is_facts(Path(spec)):
        path = Path(spec)
        if name == KNOWN:
            path = Path(rest).expanduser() if rest else fetch(KNOWN_URL, data=KNOWN)
        facts, source = list(_of_file(path)), str(path)
    else:
        loaded = load_cases(spec, split)
        edits = [edit for case in loaded.cases for edit in case.edits]
        facts = [
            replace(edit, target=edit.target_true, target_true=None, subject_rephrases=())
            for edit in edits
            if edit.target_true is not None and edit.subject is not None
        ]
        source = loaded.source
    if not facts:
        raise DataError(
            f"{spec} holds no fact with a subject and a true answer",
            f"Use world, {KNOWN}, counterfact, or a file with the fields subject, prompt and"
            " attribute.",
        )
    if seed is not None:
        random.Random(seed).shuffle(facts)
    return Facts(spec if not rest else name, tuple(facts), source)


def _is_facts(path: Path) -> bool:
    """Whether a path is a file of facts, and of no data set."""
    if not path.is_file() or path.suffix not in {".json", ".jsonl"}:
        return False
    return format_of(path, datasets) in (None, OWN)


def _of_world(split: str, seed: int) -> list[Edit]:
    """State the world's facts about heads of one split by known templates, under their labels."""
    from errata.world import SPLITS, build_world
    from errata.world.statements import direct

    if split not in SPLITS:
        raise ConfigError(f"world has no split {split!r}", did_you_mean(split, SPLITS))
    world, draw = build_world(), random.Random(f"facts/{seed}")
    found = []
    for number, fact in enumerate(world.facts):
        subject = world.entities[fact.head].label
        statement = direct(world, fact, draw, subject=subject)
        if world.split_of[fact.head] == split:
            found.append(Edit(statement.prompt, statement.answer, subject, id=str(number)))
    return found


def _of_file(path: Path) -> Iterable[Edit]:
    records = read_lines(path) if path.suffix == ".jsonl" else read_list(path, "known_id")
    for record in records:
        if isinstance(record, DataError):
            raise record
        yield _fact(record)


def _fact(record: Record) -> Edit:
    subject = record.text("subject")
    prompt = record.text("prompt") if record.has("prompt") else record.splice("template", subject)
    if "{}" in prompt and subject not in prompt:
        prompt = record.splice("prompt", subject)
    field = next((name for name in ANSWERS if record.has(name)), ANSWERS[0])
    if subject.strip() not in prompt:
        raise record.wrong("prompt", f"a text that holds the subject {subject!r}", prompt)
    return Edit(prompt.rstrip(), record.text(field).strip(), subject)
