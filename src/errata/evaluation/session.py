"""The work of an evaluation: units edited side by side, questions asked, records yielded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from errata.case import Case
from errata.editors.base import Editor
from errata.errors import EditError, ModelError
from errata.evaluation import wild
from errata.evaluation.before import Before, ask_before, kept_below
from errata.evaluation.conditions import met
from errata.evaluation.editing import Edited, Numbered, Waiting, edit_cases
from errata.evaluation.judge import Judge
from errata.evaluation.long import long_scores
from errata.evaluation.measures import Measures
from errata.evaluation.metrics import mean
from errata.evaluation.pace import paced
from errata.evaluation.protocol import Protocol
from errata.evaluation.questioning import Questioner
from errata.evaluation.questions import Question, compares, questions_of
from errata.evaluation.regimes import chunks
from errata.evaluation.scoring import Scorer
from errata.evaluation.sequence import Checkpoints, SideBySide, joined
from errata.evaluation.tracking import spread
from errata.inspection.collapse import Watch, stops, unfit
from errata.inspection.limits import due, parse_limit
from errata.model.kept import keeping
from errata.patch import Patch

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.store.runs import RunFolder

log = logging.getLogger(__name__)

SHARED_CASES = 1024
"""Most cases of units that share a patch whose questions are asked together."""

PATIENCE = 6.0
"""Questions of many cases may take longer than a group of units: answers of few rows are written
at twice the cost of those of many."""


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
        self.left_out: dict[str, int] = {}
        self.before: dict[tuple[str, int], Before] = {}
        self.kept = kept_below(editor, lm)
        self.free: wild.Free | None = None
        self.laps: dict[str, float] = {}
        self.stop_when = stops(editor, protocol.stop_when)
        self.watch = Watch(lm, parse_limit(self.stop_when), log.warning)

    def prepare(self, cases: Sequence[Case], pending: Sequence[Sequence[Case]]) -> None:
        """Tokenise all questions, ask the unedited model, and let the editor get ready."""
        if not pending:
            self.once = {"prepare": 0.0, "pre_edit": 0.0}
            return
        if type(self.editor).meant is not Editor.meant:
            log.warning(
                "%s does not write the data's answers: reliability and generality count them, and "
                "say nothing of it; `--suite beyond` asks what is left of the old ones (leakage)",
                self.editor.name,
            )
        compare = compares(cases)
        for case in cases:
            try:
                self.questions[case.id] = questions_of(self.lm, case, self.protocol.top_k, compare)
            except (EditError, ModelError) as error:
                self.broken[case.id] = error.message
        with self.clock("pre_edit"):
            asked, self.left_out = met(self.lm, self._to_ask())
            self.questions |= asked
            with keeping(self.lm, self.kept):
                self.before = ask_before(self.lm, asked)
            form, most = self.protocol.form, self.protocol.new_tokens or 1
            if self.protocol.answers == "wild":
                said = wild.ask_before(self.lm, asked, form, most)
                self.free = wild.Free(form, most, said, self.judge)
            elif self.protocol.answers == "long":
                scores = long_scores(self.lm, self.protocol.similarity)
                self.free = wild.Free(form, most, {}, long=scores)
        with self.clock("prepare"):
            self.editor.prepare(self.lm)
        self.once, self.laps = self.laps, {}

    def _to_ask(self) -> dict[str, list[Question]]:
        silent = self.measures.silent
        return {case: own for case, own in self.questions.items() if case not in silent}

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

        Which units go together, and how many questions of large ones, depends on the time they
        take ([`errata.evaluation.pace`][]); what their records say does not depend on it. A unit of
        which only a part is on record is edited again, or its sequence taken from the checkpoint,
        and only the rest asked.

        Args:
            units: All units.
            done: Records that are there, by case; the caller adds those that it was given.
            show: Called with the cases whose work is done beyond the records; one that is edited
                but not asked counts half.
        """
        open_units = [
            (number, unit)
            for number, unit in enumerate(units)
            if any(case.id not in done for case in unit)
        ]
        edit = self._edit_sequences if self.protocol.units.kind == "sequential" else self._edit
        checkpoints = Checkpoints(self.folder)
        for batch in self._together(units, open_units):
            self.laps = {}
            edited = edit(batch, checkpoints, show)
            all_cases = sum(len(unit) for _, unit in batch)
            shared = {part: seconds / all_cases for part, seconds in self.laps.items()}
            waiting = [one for one in edited.cases(batch) if one.case.id not in done]
            for part in self._asked_together(waiting):
                self.laps = {}
                records = self._ask(part, edited)
                for name, seconds in self.laps.items():
                    self.laps[name] = seconds / len(records)
                for record in records:
                    record["seconds"] = {**shared, **self.laps}
                yield records
                show(sum(one.case.id not in done for one in waiting) // 2)
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

    def _edit(
        self, batch: Sequence[Numbered], checkpoints: Checkpoints, show: Callable[[int], None]
    ) -> Edited:
        """Edit units side by side."""
        units = [unit for _, unit in batch]
        failed = self._broken(units)
        editable = [[case for case in unit if case.id not in failed] for unit in units]
        with self.clock("edit"):
            patches, errors = edit_cases(self.editor, self.lm, editable, [None] * len(units))
        return Edited(patches, failed | errors)

    def _broken(self, units: Sequence[Sequence[Case]]) -> dict[str, str]:
        return {c.id: self.broken[c.id] for unit in units for c in unit if c.id in self.broken}

    def _asked_together(self, waiting: Sequence[Waiting]) -> Iterator[Sequence[Waiting]]:
        """Yield the cases that are asked in one go: all of a few, of many as time allows.

        Those that are not asked come first: their records say how they were edited.
        """
        silent = [one for one in waiting if one.case.id in self.measures.silent]
        if silent:
            yield silent
        waiting = [one for one in waiting if one.case.id not in self.measures.silent]
        together = self.protocol.stack_size
        if len(waiting) <= together:
            if waiting:
                yield waiting
            return
        asked = (self.questions.get(one.case.id, ()) for one in waiting)
        hops = any(question.hops for own in asked for question in own)
        if self.protocol.units.kind != "single" and not hops:
            together = max(together, SHARED_CASES)  # edited hops would be one patch per question
        yield from paced(waiting, together, patience=PATIENCE)

    def _ask(self, part: Sequence[Waiting], edited: Edited) -> list[dict[str, Any]]:
        """Ask all questions of cases under their patches, and return their records."""
        leave = {*edited.failed, *self.measures.silent}
        asked = [one for one in part if one.case.id not in leave]
        questioner = self._questioner()
        items = [(one.case.id, self.questions[one.case.id], one.patch) for one in asked]
        entries = questioner.ask(items)
        found: dict[str, dict[str, Any]] = {
            one.case.id: {"questions": own} for one, own in zip(asked, entries, strict=True)
        }
        if self.measures.references is not None:
            chosen = [
                (one.case, one.patch) for one in asked if one.case.id in self.measures.sampled
            ]
            texts = questioner.sample_texts(chosen, self.measures.references, self.protocol.seed)
            for (case, _), own in zip(chosen, texts, strict=True):
                found[case.id]["sampled"] = own
        return [
            self._record(one, found.get(one.case.id), edited.failed)
            | edited.also.get(one.case.id, {})
            for one in part
        ]

    # ------------------------------------------------------------------ sequences

    def _edit_sequences(
        self, batch: Sequence[Numbered], checkpoints: Checkpoints, show: Callable[[int], None]
    ) -> Edited:
        """Edit sequences side by side, from where a checkpoint stands."""
        units = [unit for _, unit in batch]
        sequences = SideBySide([number for number, _ in batch], units, self.protocol.batch)
        checkpoints.resume(sequences)
        self.laps = dict(sequences.seconds)  # of a run that goes on: what was spent before
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
            sequences.seconds = dict(self.laps)
            checkpoints.keep(sequences)
            show(sequences.taken() // 2)
        return Edited(sequences.patches, sequences.failed, sequences.also())

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
            leave = {*sequences.failed, *self.measures.silent}
            fresh = [(case, i) for case, i in fresh if case.id not in leave]
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
            Scorer(self.lm, self.protocol.stack_size, self.kept),
            self.editor,
            self.before,
            known_k=self.protocol.top_k,
            clock=self.clock,
            free=self.free,
            details=self.protocol.details,
        )

    def _record(
        self, one: Waiting, found: Mapping[str, Any] | None, failed: Mapping[str, str]
    ) -> dict[str, Any]:
        case = one.case
        record: dict[str, Any] = {
            "id": case.id,
            **self.stamp,
            "unit": one.unit,
            "edits": len(case.edits),
            "patch_bytes": 0 if one.patch is None else bytes_of(one.patch),
            "error": failed.get(case.id),
            "questions": [],
            **(found or {}),
        }
        if case.id in self.measures.silent:
            record["asked"] = False
        if isinstance(case.meta.get("domain"), str):
            record["domain"] = case.meta["domain"]
        if case.id in self.left_out:
            record["left_out"] = self.left_out[case.id]
        return record


def bytes_of(patch: Patch) -> int:
    """Return the bytes of a patch's tensors, with those that its editor keeps for later edits."""
    from torch import Tensor

    kept = [value for value in patch.state.values() if isinstance(value, Tensor)]
    return patch.nbytes + sum(tensor.nbytes for tensor in kept)
