"""The work of an evaluation: units edited side by side, questions asked, records yielded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.case import Case
from errata.errors import EditError, ModelError
from errata.evaluation import wild
from errata.evaluation.before import Before, ask_before
from errata.evaluation.consistency import References
from errata.evaluation.editing import edit_cases
from errata.evaluation.judge import Judge
from errata.evaluation.long import long_scores
from errata.evaluation.metrics import mean
from errata.evaluation.pace import paced
from errata.evaluation.protocol import Protocol
from errata.evaluation.questioning import Questioner
from errata.evaluation.questions import Question, compares, questions_of
from errata.evaluation.regimes import chunks
from errata.evaluation.scoring import Scorer
from errata.evaluation.sequence import Checkpoints, SideBySide, joined
from errata.evaluation.tracking import Tracker, spread
from errata.inspection.collapse import Watch, stops, unfit
from errata.inspection.limits import due, parse_limit
from errata.patch import Patch

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.store.runs import RunFolder

log = logging.getLogger(__name__)

SHARED_CASES = 1024
"""Most cases of units that share a patch whose questions are asked together."""


Numbered = tuple[int, Sequence[Case]]
"""A unit and its number."""


@dataclass(frozen=True)
class Measures:
    """What is measured beside the questions of cases.

    Attributes:
        references: Reference texts of the cases that texts are sampled for; None for no texts.
        sampled: Ids of these cases.
        tracker: What is measured along sequences; None in other regimes.
    """

    references: References | None = None
    sampled: frozenset[str] = frozenset()
    tracker: Tracker | None = None

    def told(self) -> dict[str, Any]:
        """Return what perplexity and general ability are measured on."""
        assert self.tracker is not None
        text, general = self.tracker.text, self.tracker.general
        return {
            "perplexity": text and {"text": text.name, "tokens": text.tokens},
            "general": general and general.source,
        }


class Session:
    """One evaluation under way.

    Args:
        lm: The model.
        editor: The editor.
        protocol: What is asked.
        stamp: What every record says of the evaluation.
        measures: What is measured beside the questions.
        folder: Where the state of sequences is kept; None for nowhere.
        judge: Judges free answers; None: nobody does.

    Attributes:
        once: Seconds of what is done once, before the first edit.
    """

    def __init__(
        self,
        lm: LM,
        editor: Editor,
        protocol: Protocol,
        stamp: Mapping[str, Any],
        measures: Measures | None = None,
        folder: RunFolder | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.judge = judge
        self.lm, self.editor, self.protocol, self.stamp = lm, editor, protocol, stamp
        self.measures = measures or Measures()
        self.folder = folder
        self.once: dict[str, float] = {}
        self.questions: dict[str, list[Question]] = {}
        self.broken: dict[str, str] = {}
        self.before: dict[tuple[str, int], Before] = {}
        self.free: wild.Free | None = None
        self.laps: dict[str, float] = {}
        self.stop_when = stops(editor, protocol.stop_when)
        self.watch = Watch(lm, parse_limit(self.stop_when), log.warning)

    def prepare(self, cases: Sequence[Case], pending: Sequence[Sequence[Case]]) -> None:
        """Tokenise all questions, ask the unedited model, and let the editor get ready."""
        if not pending:
            self.once = {"prepare": 0.0, "pre_edit": 0.0}
            return
        compare = compares(cases)
        for case in cases:
            try:
                self.questions[case.id] = questions_of(self.lm, case, self.protocol.top_k, compare)
            except (EditError, ModelError) as error:
                self.broken[case.id] = error.message
        with self.clock("pre_edit"):
            self.before = ask_before(self.lm, self.questions)
            form, most = self.protocol.form, self.protocol.new_tokens or 1
            if self.protocol.answers == "wild":
                said = wild.ask_before(self.lm, self.questions, form, most)
                self.free = wild.Free(form, most, said, self.judge)
            elif self.protocol.answers == "long":
                scores = long_scores(self.lm, self.protocol.similarity)
                self.free = wild.Free(form, most, {}, long=scores)
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
        self,
        units: Sequence[Sequence[Case]],
        done: Mapping[str, Any],
        show: Callable[[int], None] = lambda made: None,
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the records of units as they are finished, leaving out what is done already.

        Which units go together depends on the time they take ([`errata.evaluation.pace`][]); what
        their records say does not depend on it. A unit of which only a part is on record is done
        again, and only the rest recorded.

        Args:
            units: All units.
            done: Records that are there, by case.
            show: Called with the cases that are edited but not on record, inside sequences.
        """
        open_units = [
            (number, unit)
            for number, unit in enumerate(units)
            if any(case.id not in done for case in unit)
        ]
        finish = self._finish_sequences if self.protocol.units.kind == "sequential" else self._batch
        checkpoints = Checkpoints(self.folder)
        for batch in self._together(units, open_units):
            self.laps = {}
            records = finish(batch, checkpoints, show)
            share = {part: seconds / len(records) for part, seconds in self.laps.items()}
            fresh = [record for record in records if record["id"] not in done]
            for record in fresh:
                record["seconds"] = share
            yield fresh
            checkpoints.drop()  # the records are on disk by now

    def _together(
        self, units: Sequence[Sequence[Case]], open_units: Sequence[Numbered]
    ) -> Iterator[Sequence[Numbered]]:
        """Yield the units that are edited side by side.

        Sequences always go together with the same others, as a checkpoint holds them; they are
        written down step by step. Other units are taken by the time they need.
        """
        regime = self.protocol.units
        if regime.kind == "sequential":
            waiting = {number for number, _ in open_units}
            most = max(1, self.protocol.stack_size // self.protocol.batch)
            for batch in chunks(list(enumerate(units)), most):
                if any(number in waiting for number, _ in batch):
                    yield batch
            return
        yield from paced(open_units, max(1, self.protocol.stack_size // regime.size))

    def _batch(
        self, batch: Sequence[Numbered], checkpoints: Checkpoints, show: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """Edit units side by side and ask all their questions."""
        units = [unit for _, unit in batch]
        failed = self._broken(units)
        editable = [[case for case in unit if case.id not in failed] for unit in units]
        with self.clock("edit"):
            patches, errors = edit_cases(self.editor, self.lm, editable, [None] * len(units))
        failed |= errors
        entries = self._ask(units, patches, failed)
        return [
            self._record(case, number, patch, entries.get(case.id), failed)
            for (number, unit), patch in zip(batch, patches, strict=True)
            for case in unit
        ]

    def _broken(self, units: Sequence[Sequence[Case]]) -> dict[str, str]:
        return {c.id: self.broken[c.id] for unit in units for c in unit if c.id in self.broken}

    def _ask(
        self,
        units: Sequence[Sequence[Case]],
        patches: Sequence[Patch | None],
        failed: Mapping[str, str],
    ) -> dict[str, dict[str, Any]]:
        """Ask all questions of units under their patches: by case, what its record says of them."""
        asked = [
            (case, patch)
            for unit, patch in zip(units, patches, strict=True)
            for case in unit
            if case.id not in failed
        ]
        together = self.protocol.stack_size
        if self.protocol.units.kind != "single" and not self._has_hops(units):
            together = max(together, SHARED_CASES)  # edited hops would be one patch per question
        questioner = self._questioner()
        found: dict[str, dict[str, Any]] = {}
        for part in chunks(asked, together):
            items = [(case.id, self.questions[case.id], patch) for case, patch in part]
            for (case, _), entries in zip(part, questioner.ask(items), strict=True):
                found[case.id] = {"questions": entries}
        if self.measures.references is not None:
            chosen = [(case, patch) for case, patch in asked if case.id in self.measures.sampled]
            texts = questioner.sample_texts(chosen, self.measures.references, self.protocol.seed)
            for (case, _), own in zip(chosen, texts, strict=True):
                found[case.id]["sampled"] = own
        return found

    # ------------------------------------------------------------------ sequences

    def _finish_sequences(
        self, batch: Sequence[Numbered], checkpoints: Checkpoints, show: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """Edit sequences side by side, from where a checkpoint stands, and ask all questions."""
        units = [unit for _, unit in batch]
        sequences = SideBySide([number for number, _ in batch], units, self.protocol.batch)
        checkpoints.resume(sequences)
        if not sequences.step:
            sequences.failed |= self._broken(units)
            if self.measures.tracker is not None:
                with self.clock("track"):
                    sequences.trajectory = [[self.measures.tracker.base()] for _ in units]
        told = unfit(self.editor)
        if told is not None and sequences.length > 1 and not sequences.step:
            log.warning("%s", told)
        while sequences.live():
            self._step(sequences)
            checkpoints.keep(sequences)
            show(sequences.taken())
        entries = self._ask(units, sequences.patches, sequences.failed)
        ages = sequences.ages()
        records = []
        for (number, unit), patch, trajectory, watched in zip(
            batch, sequences.patches, sequences.trajectory, sequences.watched, strict=True
        ):
            for case in unit:
                record = self._record(case, number, patch, entries.get(case.id), sequences.failed)
                if case.id in ages:
                    record["age"] = ages[case.id]
                if case.id in sequences.immediate:
                    record["immediate"] = sequences.immediate[case.id]
                records.append(record)
            if trajectory:
                records[-1]["trajectory"] = trajectory  # of the whole sequence
            if watched["points"]:
                records[-1]["watched"] = watched
        return records

    def _has_hops(self, units: Sequence[Sequence[Case]]) -> bool:
        questions = (self.questions.get(case.id, ()) for unit in units for case in unit)
        return any(question.hops for asked in questions for question in asked)

    def _step(self, sequences: SideBySide) -> None:
        """Make one step of every sequence that has one, each on top of its patch so far."""
        live = sequences.live()
        groups = [sequences.group(i) for i in live]
        with self.clock("edit"):
            patches, errors = edit_cases(
                self.editor, self.lm, groups, [sequences.patches[i] for i in live]
            )
        sequences.failed |= errors
        for i, patch in zip(live, patches, strict=True):
            sequences.patches[i] = joined(patch)
        if self.protocol.retention:
            fresh = [(c, i) for i, group in zip(live, groups, strict=True) for c in group]
            fresh = [(case, i) for case, i in fresh if case.id not in sequences.failed]
            found = self._first_answers([(case, sequences.patches[i]) for case, i in fresh])
            sequences.immediate |= {c.id: s for (c, _), s in zip(fresh, found, strict=True)}
        sequences.step += 1
        self._watch(sequences, live)
        if self.measures.tracker is None:
            return
        for i in live:
            last = sequences.step == len(sequences.steps[i]) or "stopped" in sequences.watched[i]
            if self.measures.tracker.due(sequences.step, last):
                made, patch = sequences.made(i), sequences.patches[i]
                with self.clock("track"):
                    point = self.measures.tracker.point(
                        sequences.step, sum(len(c.edits) for c in made), patch
                    )
                again = spread(made)
                scores = self._first_answers([(case, patch) for case in again])
                point["recall"] = {
                    "score": mean(score for own in scores for score in own),
                    "cases": len(again),
                }
                sequences.trajectory[i].append(point)

    def _watch(self, sequences: SideBySide, live: Sequence[int]) -> None:
        """Measure what the sequences do to general sentences, and stop those that do too much."""
        limit = self.watch.limit
        for i in live:
            steps = len(sequences.steps[i])
            if steps < 2 or not due(sequences.step, steps, limit is not None):
                continue
            edits = sum(len(case.edits) for case in sequences.made(i))
            with self.clock("track"):
                points = sequences.watched[i]["points"]
                if self.watch.look(sequences.patches[i], edits, points):
                    assert self.stop_when is not None
                    sequences.stop(i, self.stop_when)

    def _first_answers(self, items: Sequence[tuple[Case, Patch | None]]) -> list[list[float]]:
        if not items:
            return []
        return self._questioner().first_answers(
            [(self.questions[c.id], patch) for c, patch in items]
        )

    def _questioner(self) -> Questioner:
        return Questioner(
            Scorer(self.lm, self.protocol.stack_size),
            self.editor,
            self.before,
            known_k=self.protocol.top_k,
            clock=self.clock,
            free=self.free,
        )

    def _record(
        self,
        case: Case,
        unit: int,
        patch: Patch | None,
        found: Mapping[str, Any] | None,
        failed: Mapping[str, str],
    ) -> dict[str, Any]:
        record: dict[str, Any] = {
            "id": case.id,
            **self.stamp,
            "unit": unit,
            "edits": len(case.edits),
            "patch_bytes": 0 if patch is None else bytes_of(patch),
            "error": failed.get(case.id),
            "questions": [],
            **(found or {}),
        }
        if isinstance(case.meta.get("domain"), str):
            record["domain"] = case.meta["domain"]
        return record


def bytes_of(patch: Patch) -> int:
    """Return the bytes of a patch's tensors, with those that its editor keeps for later edits."""
    from torch import Tensor

    kept = [value for value in patch.state.values() if isinstance(value, Tensor)]
    return patch.nbytes + sum(tensor.nbytes for tensor in kept)
