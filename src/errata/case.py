"""What should become true, and the questions that test it: frozen data without torch.

An [`Edit`][errata.case.Edit] is one fact to write into a model. A `Probe` is one question asked of
the edited model. A `Case` joins them: one benchmark record, edited as one unit and scored by its
probes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from errata.errors import DataError

ProbeKind = Literal["generality", "locality"]

SubjectAt = Literal["first", "last"] | int
"""Which occurrence of a subject in a prompt is meant; numbers count from 1."""


def subject_starts(prompt: str, subject: str) -> list[int]:
    """Return where the subject occurs: as whole words if it does so anywhere, else anyhow."""
    pattern = re.escape(subject.strip())
    whole = [found.start() for found in re.finditer(rf"(?<!\w){pattern}(?!\w)", prompt)]
    return whole or [found.start() for found in re.finditer(pattern, prompt)]


def _require_text(value: object, what: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{what} is {value!r}; expected a text with at least one visible character")


@dataclass(frozen=True, slots=True)
class Edit:
    """One fact to write: after `prompt`, the model should say `target`.

    Attributes:
        prompt: The full question, subject filled in, ending just before the target.
        target: The answer to write. A leading space is added by the tokenisation when absent.
        subject: The entity the fact is about. It has to occur in `prompt` for editors that need it
            (they check; an editor that does not use subjects accepts any prompt).
        target_true: The answer that a dataset holds to be true before the edit, if it says one.
        id: A name for messages and records.
        subject_rephrases: Other ways to name the subject that an editor may learn from (REP does).
            Those that an evaluation keeps for its own questions do not belong here.
        subject_at: Which occurrence of the subject is meant where the prompt holds several:
            `first`, `last` or a number from 1. The last one has read all others.

    Raises:
        DataError: If prompt, target or a name of the subject is empty or only white space, or
            `subject_at` is none of these.
    """

    prompt: str
    target: str
    subject: str | None = None
    target_true: str | None = None
    id: str | None = None
    subject_rephrases: tuple[str, ...] = ()
    subject_at: SubjectAt = "last"

    def __post_init__(self) -> None:
        _require_text(self.prompt, "prompt")
        _require_text(self.target, "target")
        if self.subject is not None:
            _require_text(self.subject, "subject")
        # a list, as JSON has it, would not be hashable
        object.__setattr__(self, "subject_rephrases", tuple(self.subject_rephrases))
        for name in self.subject_rephrases:
            _require_text(name, "subject rephrase")
        at: Any = self.subject_at  # out of a file it may be anything
        if at not in ("first", "last") and (not isinstance(at, int) or at is True or at < 1):
            raise DataError(f"subject_at is {at!r}; expected 'first', 'last' or a number from 1")


@dataclass(frozen=True, slots=True)
class Probe:
    """One question asked of the edited model.

    Attributes:
        prompt: The question, ending just before the answer.
        target: The expected answer; for locality, the answer on which the model is teacher-forced.
        kind: `generality` (the edit should show) or `locality` (nothing should move).
        name: Sub-metric in which the score is averaged (`rephrase`, `uni_gen`, `multi_hop`, `NQ`
        …).
        criteria: Flags of the benchmark (UniEdit: `Rep`, `MH`, `RR`, `SER`, `SA`, `OA`, `SS`, `RS`,
            `OS`, `1-NF`, `W/O`), for break-downs.
        hops: Facts the question builds on; those unknown to the model are edited before it is
        asked.
        top_k: Rank that still counts as a hit, if it differs from the protocol's (1 for yes/no).
        foil: A competing answer; set where the benchmark compares two probabilities (CounterFact).
        answers: Further spellings accepted when a generated answer is compared.
        subject: The entity the question is about, if the data set says so.
    """

    prompt: str
    target: str
    kind: ProbeKind
    name: str
    criteria: tuple[str, ...] = ()
    hops: tuple[Edit, ...] = ()
    top_k: int | None = None
    foil: str | None = None
    answers: tuple[str, ...] = ()
    subject: str | None = None

    def __post_init__(self) -> None:
        _require_text(self.prompt, "probe prompt")
        _require_text(self.target, "probe target")


@dataclass(frozen=True, slots=True)
class Case:
    """One benchmark record: edits applied as one unit, and the probes that score them.

    Attributes:
        id: Unique within its data set.
        edits: At least one edit.
        probes: Questions asked after the edits; may be empty.
        meta: Whatever else the record says (domain, relation, triples …), read-only.
        exact: Whether edits and generality questions are scored as wholes: all tokens of the target
            hit, or nothing (robustness tests). Locality is a share of tokens in any case.

    Raises:
        DataError: If there is no edit.
    """

    id: str
    edits: tuple[Edit, ...]
    probes: tuple[Probe, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    exact: bool = False

    def __post_init__(self) -> None:
        if not self.edits:
            raise DataError(f"case {self.id!r} has no edit; expected at least one")

    def of(self, kind: ProbeKind) -> tuple[Probe, ...]:
        """Return the probes of one kind, in order."""
        return tuple(probe for probe in self.probes if probe.kind == kind)
