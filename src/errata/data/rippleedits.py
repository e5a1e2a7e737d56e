"""RippleEdits: what should change with a fact and what should not, where the model knows enough.

```
edit        "The name of the country of citizenship of Ada is Oslo."   a whole statement
previous    "The name of the country of citizenship of Ada is Rome."
test        queries [prompt, answers], OR | AND, condition queries
```

The statement is all that the files say: where the answer begins and what the subject is called is
found from the queries of the record, and from the statement of the previous fact.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from errata.case import Case, Condition, Edit, Probe, ProbeKind
from errata.config import Settings
from errata.data._base import Dataset
from errata.data._questions import PORTABILITY
from errata.data._records import Record, freeze

CRITERIA: dict[str, ProbeKind] = {
    "Logical_Generalization": "generality",
    "Compositionality_I": "generality",
    "Compositionality_II": "generality",
    "Subject_Aliasing": "generality",
    "Relation_Specificity": "locality",
    "Relation_Specifity": "locality",
    "Forgetfulness": "locality",
}
"""The lists of a record; one of them is spelt in two ways."""

_WORDS = frozenset(
    "The the name names of which in by is are has a member part associated with plays won capital "
    "place number children gender occupation official mother tongue".split()
)
"""Words of the statements' templates, which are no part of a name at its ends."""

_VERB = re.compile(r" (?:is|are|follows|by) ")


class RippleOptions(Settings):
    """What counts."""

    known: bool = Field(
        False,
        description="as the published runner: questions count only if the unedited model knows the "
        "previous fact (recent: does not know the new one)",
    )
    conditions: bool = Field(
        True, description="questions count only if the unedited model answers their conditions"
    )


class RippleEdits(Dataset):
    """RippleEdits: six kinds of questions around an edit, and conditions under which they count."""

    name = "rippleedits"
    title = "RippleEdits"
    paper = (
        "Cohen et al. 2023, Evaluating the ripple effects of knowledge editing in language models,"
        " https://arxiv.org/abs/2307.12976"
    )
    splits = ("popular", "random", "recent")
    default = "popular"
    names: ClassVar[dict[str, tuple[str, ...]]] = {
        "popular": ("popular.json", "data/benchmark/popular.json"),
        "random": ("random.json", "data/benchmark/random.json"),
        "recent": ("recent.json", "data/benchmark/recent.json"),
    }
    marks = (("example_type", "edit", "Logical_Generalization", "Subject_Aliasing"),)
    Options = RippleOptions
    options: RippleOptions

    def case(self, record: Record, seed: int) -> Case:
        """Map one record.

        Raises:
            DataError: If it cannot be told where the answer begins in the statement.
        """
        edit = record.at("edit")
        statement, target_id = edit.text("prompt"), edit.identity("target_id")
        relation, subject_id = edit.optional_text("relation"), edit.optional_text("subject_id")
        kind = record.optional_text("example_type")
        queries = _queries(record)
        before = edit.at("previous_fact") if edit.has("previous_fact") else None
        old = None if before is None else before.text("prompt")
        at = _answer_at(statement, old, _labels(queries, target_id))
        if at is None:
            raise edit.wrong("prompt", "a statement whose answer can be told", statement)
        prompt, target = statement[:at].rstrip(), _bare(statement[at:])
        true = None
        if before is not None and old is not None:
            for field in ("subject_id", "relation", "target_id"):
                before.has(field)
            true = _bare(old[at:]) if old[:at] == statement[:at] else None
        same = [q.text("prompt") for q in queries if _subject_of(q) == subject_id]
        subject = _behind(prompt, relation) or _name(prompt, same)
        limits = self._limits(prompt, target, true, kind)
        probes = [
            probe
            for name, own in CRITERIA.items()
            if record.has(name)
            for test in record.items(name)
            for probe in self._test(test, name, own, limits)
        ]
        meta = {"relation": relation, "example_type": kind}
        name = record.key if not record.group else f"{record.group}-{record.key}"
        return Case(name, (Edit(prompt, target, subject, true, name),), tuple(probes), freeze(meta))

    def _limits(
        self, prompt: str, target: str, true: str | None, kind: str | None
    ) -> tuple[Condition, ...]:
        if not self.options.known:
            return ()
        if kind == "recent" or true is None:
            return (Condition(prompt, ((target,),), holds=False),)
        return (Condition(prompt, ((true,),)),)

    def _test(
        self, test: Record, criterion: str, kind: ProbeKind, limits: tuple[Condition, ...]
    ) -> list[Probe]:
        """Return one probe for each query of a test."""
        joined = test.text("test_condition") if test.has("test_condition") else "OR"
        if joined not in ("OR", "AND"):
            raise test.wrong("test_condition", "'OR' or 'AND'", joined)
        conditions = list(limits)
        for query in test.items("condition_queries") if test.has("condition_queries") else ():
            groups = _answers(query)
            if self.options.conditions and groups:
                conditions.append(Condition(query.text("prompt"), groups))
        name = criterion.lower().replace("specifity", "specificity")
        flags = (PORTABILITY,) if kind == "generality" else ()
        queries = test.items("test_queries", at_least=1)
        flags += (joined,) if len(queries) > 1 else ()
        found = []
        for query in queries:
            groups = _answers(query)
            if not groups:
                query.leave_out(f"{name} questions without an answer")
                continue
            spelt = tuple(text for group in groups for text in group)
            probe = Probe(
                query.text("prompt"), spelt[0], kind, name, flags, answers=spelt[1:],
                conditions=tuple(conditions),
            )  # fmt: skip
            found.append(probe)
        return found


def _queries(record: Record) -> list[Record]:
    return [
        query
        for name in CRITERIA
        if record.has(name)
        for test in record.items(name)
        for field in ("test_queries", "condition_queries")
        if test.has(field)
        for query in test.items(field)
    ]


def _subject_of(query: Record) -> str | None:
    """Return the subject of a query that is in the words of its relation."""
    for field in ("query_type", "relation", "target_ids", "second_relation",
                  "second_hop_target_ids"):  # fmt: skip
        query.has(field)
    subject = query.optional_text("subject_id")
    return None if query.has("phrase") else subject


def _answers(query: Record) -> tuple[tuple[str, ...], ...]:
    """Return the accepted spellings of every answer; single letters are none, as published."""
    found = []
    for answer in query.items("answers"):
        texts = [answer.optional_text("value")]
        if answer.has("aliases"):
            texts += answer.visible_texts("aliases", "blank aliases")
        kept = [t.strip() for t in texts if t and (len(t.strip()) > 1 or t.strip().isdigit())]
        if kept:
            found.append(tuple(dict.fromkeys(kept)))
    return tuple(found)


def _labels(queries: Sequence[Record], target_id: str) -> list[str]:
    """Return how queries with the edit's answer spell it, the longest first."""
    found = set()
    for query in queries:
        targets = query.get("target_ids") if query.has("target_ids") else ()
        if query.has("second_hop_target_ids") or targets != [target_id]:
            continue
        found |= {text for group in _answers(query) for text in group}
    return sorted(found, key=len, reverse=True)


def _answer_at(statement: str, old: str | None, labels: Sequence[str]) -> int | None:
    """Return where the answer begins in a statement."""
    body = statement.rstrip().removesuffix(".")
    for label in labels:
        if body.endswith(f" {label}"):
            return len(body) - len(label)
    shared = body if old is None else _shared(body, old)
    verbs = list(_VERB.finditer(shared))
    return verbs[-1].end() if verbs and verbs[-1].end() < len(body) else None


def _shared(one: str, two: str) -> str:
    """Return the beginning that two texts share."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False))
    return one[: sum(1 for _ in same)]


def _bare(answer: str) -> str:
    return answer.strip().removesuffix(".").strip()


def _behind(prompt: str, relation: str | None) -> str | None:
    """Return what stands between the words of the relation and the verb, as in most statements."""
    words = re.escape((relation or "").lower().replace("_", " ").strip())
    found = re.search(rf"\b{words} of (.+?) (?:is|are)$", prompt, re.IGNORECASE) if words else None
    return found[1] if found else None


def _name(prompt: str, others: Sequence[str]) -> str | None:
    """Return the subject: the longest run of words that all questions about it share."""
    words = prompt.split()
    best = ""
    for first in range(len(words)):
        for end in range(first + 1, len(words) + 1):
            run = words[first:end]
            if run[0] in _WORDS or run[-1] in _WORDS:
                continue
            text = " ".join(run)
            if others and all(text in other for other in others) and len(text) > len(best):
                best = text
    return best or None
