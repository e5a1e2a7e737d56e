"""The work of an evaluation: units edited side by side, questions asked, records yielded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from errata.case import Case
from errata.errors import EditError, ModelError
from errata.evaluation.before import Before, ask_before
from errata.evaluation.editing import edit_cases
from errata.evaluation.exam import Examiner
from errata.evaluation.questions import Question, compares, questions_of
from errata.evaluation.regimes import Regime, chunks
from errata.evaluation.scoring import Scorer
from errata.patch import Patch

if TYPE_CHECKING:
    from errata.editors._base import Editor
    from errata.lm import LM


@dataclass
class Session:
    """The settings of one evaluation, and the model's answers before any edit."""

    lm: LM
    editor: Editor
    regime: Regime
    top_k: int
    stack_size: int
    generate: bool
    retention: bool
    step: int
    stamp: Mapping[str, Any]
    once: dict[str, float] = field(default_factory=dict)
    exams: dict[str, list[Question]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    before: dict[tuple[str, int], Before] = field(default_factory=dict)
    laps: dict[str, float] = field(default_factory=dict)

    def prepare(self, cases: Sequence[Case], pending: Sequence[Sequence[Case]]) -> None:
        """Tokenise all questions, ask the unedited model, and let the editor get ready."""
        if not pending:
            self.once = {"prepare": 0.0, "pre_edit": 0.0}
            return
        compare = compares(cases)
        for case in cases:
            try:
                self.exams[case.id] = questions_of(self.lm, case, self.top_k, compare)
            except (EditError, ModelError) as error:
                self.broken[case.id] = error.message
        with self.clock("pre_edit"):
            self.before = ask_before(self.lm, self.exams)
        with self.clock("prepare"):
            self.editor.prepare(self.lm)
        self.once, self.laps = self.laps, {}

    @contextmanager
    def clock(self, part: str) -> Iterator[None]:
        """Add the wall seconds of a block to a named part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.lm.device.type == "cuda":
                import torch

                torch.cuda.synchronize(self.lm.device)
            self.laps[part] = self.laps.get(part, 0.0) + time.perf_counter() - start

    # ------------------------------------------------------------------ batches

    def records(
        self, units: Sequence[Sequence[Case]], done: Mapping[str, Any]
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the records of finished batches of units, leaving out what is done already.

        A unit of which only a part is on record is edited again as a whole, and only the rest
        recorded.
        """
        numbered = [
            (number, unit)
            for number, unit in enumerate(units)
            if any(case.id not in done for case in unit)
        ]
        flight = self.step if self.regime.kind == "sequential" else self.regime.size
        for batch in chunks(numbered, max(1, self.stack_size // flight)):
            self.laps = {}
            records = self._batch(batch)
            finished = len(records)
            share = {part: seconds / finished for part, seconds in self.laps.items()}
            fresh = [record for record in records if record["id"] not in done]
            for record in fresh:
                record["seconds"] = share
            yield fresh

    def _batch(self, batch: Sequence[tuple[int, Sequence[Case]]]) -> list[dict[str, Any]]:
        """Edit units side by side and ask all their questions."""
        units = [unit for _, unit in batch]
        failed = {c.id: self.broken[c.id] for unit in units for c in unit if c.id in self.broken}
        editable = [[case for case in unit if case.id not in failed] for unit in units]
        immediate: dict[str, list[float]] = {}
        if self.regime.kind == "sequential":
            patches, ages = self._in_sequence(editable, failed, immediate)
        else:
            with self.clock("edit"):
                patches, errors = edit_cases(self.editor, self.lm, editable, [None] * len(units))
            failed |= errors
            ages = {}
        examiner = self._examiner()
        asked = [
            (case, patch)
            for unit, patch in zip(units, patches, strict=True)
            for case in unit
            if case.id not in failed
        ]
        entries: dict[str, list[dict[str, Any]]] = {}
        for part in chunks(asked, self.stack_size):
            items = [(case.id, self.exams[case.id], patch) for case, patch in part]
            for (case, _), found in zip(part, examiner.examine(items), strict=True):
                entries[case.id] = found
        return [
            self._record(case, number, entries.get(case.id, []), failed, ages, immediate)
            for number, unit in batch
            for case in unit
        ]

    def _in_sequence(
        self,
        units: Sequence[Sequence[Case]],
        failed: dict[str, str],
        immediate: dict[str, list[float]],
    ) -> tuple[list[Patch | None], dict[str, int]]:
        """Edit several sequences side by side, step after step, each on top of its patch so far.

        Returns:
            The last patch of each sequence, and for each case how many edits were made in later
            steps.
        """
        patches: list[Patch | None] = [None] * len(units)
        steps = [list(chunks(unit, self.step)) for unit in units]
        made: list[list[tuple[list[Case], int]]] = [[] for _ in units]
        examiner = self._examiner()
        for level in range(max(map(len, steps), default=0)):
            live = [i for i, own in enumerate(steps) if level < len(own)]
            groups = [steps[i][level] for i in live]
            with self.clock("edit"):
                results, errors = edit_cases(
                    self.editor, self.lm, groups, [patches[i] for i in live]
                )
            failed |= errors
            fresh: list[tuple[Case, Patch | None]] = []
            for i, group, patch in zip(live, groups, results, strict=True):
                patches[i] = patch
                good = [case for case in group if case.id not in failed]
                made[i].append((good, sum(len(case.edits) for case in good)))
                fresh += [(case, patch) for case in good]
            if self.retention and fresh:
                found = examiner.first_answers([(self.exams[c.id], p) for c, p in fresh])
                immediate |= {c.id: s for (c, _), s in zip(fresh, found, strict=True)}
        ages: dict[str, int] = {}
        for own in made:
            later = 0
            for group, count in reversed(own):
                ages |= {case.id: later for case in group}
                later += count
        return patches, ages

    def _examiner(self) -> Examiner:
        return Examiner(
            Scorer(self.lm, self.stack_size),
            self.editor,
            self.before,
            known_k=self.top_k,
            clock=self.clock,
            generate=self.generate,
        )

    def _record(
        self,
        case: Case,
        unit: int,
        entries: list[dict[str, Any]],
        failed: Mapping[str, str],
        ages: Mapping[str, int],
        immediate: Mapping[str, list[float]],
    ) -> dict[str, Any]:
        record: dict[str, Any] = {
            "id": case.id,
            **self.stamp,
            "unit": unit,
            "edits": len(case.edits),
            "error": failed.get(case.id),
            "questions": entries,
        }
        if isinstance(case.meta.get("domain"), str):
            record["domain"] = case.meta["domain"]
        if case.id in ages:
            record["age"] = ages[case.id]
        if case.id in immediate:
            record["immediate"] = immediate[case.id]
        return record
