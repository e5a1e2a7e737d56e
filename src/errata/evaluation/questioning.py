"""Asking the questions of cases under their patches, hops included."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from errata.case import Case, Edit, Probe, how_asked
from errata.errors import EditError, ErrataError, ModelError
from errata.evaluation.before import Before
from errata.evaluation.consistency import References
from errata.evaluation.editing import edit_groups
from errata.evaluation.fluency import fluency, prompts_of
from errata.evaluation.metrics import compare, hits, margin, mean, mean_nll, prefers
from errata.evaluation.questions import Question
from errata.evaluation.regimes import chunks
from errata.evaluation.scoring import Scorer
from errata.evaluation.wild import STOPS, Free, item_of, rows_of, score_of
from errata.patch import Patch

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import RowScore
    from errata.model.tokens import Row

SHOWN_TOKENS = 32
"""Longest answer whose predicted tokens are written into records."""

Clock = Callable[[str], AbstractContextManager[None]]


@dataclass
class _Asked:
    """One question, the patch it is asked under, and what became of its hops."""

    case: str
    number: int
    question: Question
    patch: Patch | None
    edited: int = 0
    known: int = 0
    failures: list[str] = field(default_factory=list)


class Questioner:
    """Asks questions as the protocol says.

    Args:
        scorer: Scores rows under patches.
        editor: Editor the hops that the edited model does not know.
        before: The unedited model's answers.
        known_k: A hop is known if all its target tokens are among this many most probable ones.
        clock: Measures named parts of the work.
        free: How free answers are asked for besides; None: they are not.
        details: Whether entries hold probability and rank of every token that is scored.
    """

    def __init__(
        self,
        scorer: Scorer,
        editor: Editor,
        before: Mapping[tuple[str, int], Before],
        *,
        known_k: int,
        clock: Clock,
        free: Free | None = None,
        details: bool = False,
    ) -> None:
        self.details = details
        self.scorer = scorer
        self.editor = editor
        self.before = before
        self.known_k = known_k
        self.clock = clock
        self.free = free

    def ask(
        self, items: Sequence[tuple[str, Sequence[Question], Patch | None]]
    ) -> list[list[dict[str, Any]]]:
        """Return one entry per question of each (case id, questions, patch), in order."""
        asked = [
            _Asked(case, number, question, patch)
            for case, questions, patch in items
            for number, question in enumerate(questions)
        ]
        self._edit_hops(asked)
        with self.clock("evaluate"):
            entries = self._score(asked)
            if self.free is not None:
                self._speak(asked, entries)
        each = iter(entries)
        return [[next(each) for _ in questions] for _, questions, _ in items]

    def first_answers(
        self, items: Sequence[tuple[Sequence[Question], Patch | None]]
    ) -> list[list[float]]:
        """Return only the reliability of each request of each (questions, patch)."""
        pairs = [
            (i, question, patch)
            for i, (questions, patch) in enumerate(items)
            for question in questions
            if question.kind == "reliability"
        ]
        with self.clock("evaluate"):
            scores = self.scorer.score([q.row for _, q, _ in pairs], [p for _, _, p in pairs])
        found: list[list[float]] = [[] for _ in items]
        for (i, question, _), score in zip(pairs, scores, strict=True):
            found[i].append(_share(hits(score.ranks, score.logprobs, question.k), question))
        return found

    def sample_texts(
        self, items: Sequence[tuple[Case, Patch | None]], references: References, seed: int
    ) -> list[dict[str, Any]]:
        """Sample texts from the generation prompts of each (case, patch), and score them."""
        asked = [
            (i, prompt, f"{seed}/{case.id}/{number}")
            for i, (case, _) in enumerate(items)
            for number, prompt in enumerate(prompts_of(case))
        ]
        with self.clock("sample"):
            texts = self.scorer.sample(
                [prompt for _, prompt, _ in asked],
                [own for _, _, own in asked],
                [items[i][1] for i, _, _ in asked],
            )
        said: list[list[str]] = [[] for _ in items]
        for (i, _, _), text in zip(asked, texts, strict=True):
            said[i].append(text)
        return [
            {
                "fluency": mean(map(fluency, own)),
                "consistency": references.consistency(case.id, own),
                "texts": own,
            }
            for (case, _), own in zip(items, said, strict=True)
        ]

    # ------------------------------------------------------------------ hops

    def _edit_hops(self, asked: Sequence[_Asked]) -> None:
        """Edit unknown hops level by level; every question keeps its own patch."""
        level = 0
        while open_now := [one for one in asked if len(one.question.hops) > level]:
            self._edit_level([(one, one.question.hops[level]) for one in open_now])
            level += 1

    def _edit_level(self, pairs: Sequence[tuple[_Asked, Edit]]) -> None:
        """Probe one hop per question, edit unknown ones; equal hops under one patch run once."""
        same: dict[tuple[int, Edit], list[_Asked]] = {}
        for one, hop in pairs:
            same.setdefault((id(one.patch), hop), []).append(one)
        rows: list[Row] = []
        probed: list[tuple[Edit, list[_Asked]]] = []
        for (_, hop), ones in same.items():
            try:
                rows.append(self.scorer.lm.row_of(hop))
            except (EditError, ModelError) as error:
                for one in ones:
                    one.failures.append(error.message)
            else:
                probed.append((hop, ones))
        with self.clock("evaluate"):
            scores = self.scorer.score(rows, [ones[0].patch for _, ones in probed])
        unknown = []
        for (hop, ones), score in zip(probed, scores, strict=True):
            if not all(hits(score.ranks, score.logprobs, self.known_k)):
                unknown.append((hop, ones))
                continue
            for one in ones:
                one.known += 1
        with self.clock("hops"):
            for part in chunks(unknown, self.scorer.stack_size):
                outcomes = edit_groups(
                    self.editor,
                    self.scorer.lm,
                    [[hop] for hop, _ in part],
                    [ones[0].patch for _, ones in part],
                )
                for (_, ones), outcome in zip(part, outcomes, strict=True):
                    for one in ones:
                        if isinstance(outcome, ErrataError):
                            one.failures.append(outcome.message)
                        else:
                            one.patch = outcome
                            one.edited += 1

    # ------------------------------------------------------------------ scores

    def _score(self, asked: Sequence[_Asked]) -> list[dict[str, Any]]:
        rows: list[Row] = []
        patches: list[Patch | None] = []
        for one in asked:
            rows.append(self._supervised(one))
            if one.question.foil is not None:
                rows.append(one.question.foil)
            rows += one.question.choices
            patches += [one.patch] * (len(rows) - len(patches))
        scores = iter(self.scorer.score(rows, patches))
        entries = []
        for one in asked:
            score = next(scores)
            foil = next(scores) if one.question.foil is not None else None
            entry = self._entry(one, score, foil)
            if one.question.compared:
                others = [next(scores) for _ in one.question.choices]
                entry |= self._compared(one, score, others)
            entries.append(entry)
        return entries

    def _supervised(self, one: _Asked) -> Row:
        """Return the row to score; for locality its labels are the model's own pre-edit tokens.

        Where the answer's probability is wanted as well, the positions are asked twice in one row.
        """
        row = one.question.row
        if one.question.kind != "locality":
            return row
        own = self.before[one.case, one.number].argmax
        if one.question.foil is None:
            return replace(row, labels=own)
        return replace(row, positions=row.positions * 2, labels=own + row.labels)

    def _entry(self, one: _Asked, score: RowScore, foil: RowScore | None) -> dict[str, Any]:
        question = one.question
        n = len(question.row.labels)
        hit = hits(score.ranks[:n], score.logprobs[:n], question.k)
        top1 = hits(score.ranks[:n], score.logprobs[:n], 1)
        broken = any(map(math.isnan, score.logprobs))
        entry: dict[str, Any] = {
            "kind": question.kind,
            "name": question.name,
            "prompt": question.prompt,
            "target": question.target,
            "k": question.k,
            "score": _share(hit, question),
            "hits": hit,
            "top1": _share(top1, question),
        }
        entry |= how_asked(question.source)
        if question.exact:
            entry["exact"] = True
        if question.criteria:
            entry["criteria"] = list(question.criteria)
        if question.kind == "locality":
            gold = [
                int(said == label and not broken)
                for said, label in zip(score.argmax[:n], question.row.labels, strict=True)
            ]
            entry["gold"] = mean(gold)
        if self.details:
            entry |= _details(score.logprobs[:n], score.ranks[:n])
        if n <= SHOWN_TOKENS:
            entry["argmax"] = list(score.argmax[:n])
            entry["predicted"] = self.scorer.lm.tokenizer.decode(list(score.argmax[:n]))
        if question.hops:
            entry["hops"] = {
                "asked": len(question.hops),
                "known": one.known,
                "edited": one.edited,
                "failed": one.failures,
            }
        if foil is not None:
            entry |= self._comparison(one, score, foil)
        return entry

    def _comparison(self, one: _Asked, score: RowScore, foil: RowScore) -> dict[str, Any]:
        """Compare the answer with its competitor, after and before the edit."""
        n = len(one.question.row.labels)
        nll, foil_nll = mean_nll(score.logprobs[-n:]), mean_nll(foil.logprobs)
        before = self.before[one.case, one.number]
        return {
            "nll": nll,
            "foil_nll": foil_nll,
            "prefers": prefers(nll, foil_nll),
            "margin": margin(nll, foil_nll),
            "greedy": int(all(hits(score.ranks[-n:], score.logprobs[-n:], 1))),
            "before": {
                "nll": before.nll,
                "foil_nll": before.foil_nll,
                "prefers": prefers(before.nll, before.foil_nll),
                "margin": margin(before.nll, before.foil_nll),
                "greedy": int(before.argmax == one.question.row.labels),
            },
        }

    def _compared(self, one: _Asked, score: RowScore, others: Sequence[RowScore]) -> dict[str, Any]:
        """Compare the answer with all others, after and before the edit."""
        question = one.question
        assert isinstance(question.source, Probe)
        nlls = [mean_nll(own.logprobs) for own in (score, *others)]
        texts = (question.target, *question.source.choices)
        finite = [(nll, text) for nll, text in zip(nlls, texts, strict=True) if nll is not None]
        before = self.before[one.case, one.number]
        return {
            "score": float(compare(question.kind, nlls[0], nlls[1:])),
            "choices": list(question.source.choices),
            "nll": nlls[0],
            "choices_nll": nlls[1:],
            "likeliest": min(finite)[1] if finite else None,
            "before": {
                "score": float(compare(question.kind, before.nll, before.choices_nll)),
                "nll": before.nll,
                "choices_nll": list(before.choices_nll),
            },
        }

    # ------------------------------------------------------------------ free answers

    def _speak(self, asked: Sequence[_Asked], entries: Sequence[dict[str, Any]]) -> None:
        """Add what the model says by itself, and its score.

        See `errata.evaluation.wild`, and for long answers `errata.evaluation.long`.
        """
        assert self.free is not None
        lm, long = self.scorer.lm, self.free.long
        questions = {
            (one.case, one.number): one.question
            for one in asked
            if long is None or one.question.kind != "locality"
        }
        rows, refused = rows_of(lm, questions, self.free.form)
        numbers = [i for i, one in enumerate(asked) if (one.case, one.number) in rows]
        texts = self.scorer.generate(
            [rows[asked[i].case, asked[i].number] for i in numbers],
            [self.free.new_tokens] * len(numbers),
            [asked[i].patch for i in numbers],
            stops=STOPS if long is None else (),
        )
        for i, text in zip(numbers, texts, strict=True):
            which = asked[i].case, asked[i].number
            if long is not None:
                entries[i]["long"] = {"text": text, **long(questions[which].target, text)}
                continue
            before = self.free.before.get(which)
            entries[i]["wild"] = {
                "text": text,
                "score": score_of(lm, questions[which], text, before),
                **({} if before is None else {"before": before}),
            }
        self._judge(asked, entries)
        for one, entry in zip(asked, entries, strict=True):
            if (one.case, one.number) in refused:
                entry["wild_refused" if long is None else "long_refused"] = refused[
                    one.case, one.number
                ]

    def _judge(self, asked: Sequence[_Asked], entries: Sequence[dict[str, Any]]) -> None:
        """Add a judge's verdicts on free answers, if there is a judge."""
        assert self.free is not None
        if self.free.judge is None:
            return
        judged = [
            (one, entry)
            for one, entry in zip(asked, entries, strict=True)
            if "wild" in entry and one.question.kind in ("reliability", "generality")
        ]
        verdicts = self.free.judge(
            [item_of(one.question, entry["wild"]["text"]) for one, entry in judged]
        )
        for (_, entry), verdict in zip(judged, verdicts, strict=True):
            entry["wild"]["judge"] = int(verdict)


def _details(logprobs: Sequence[float], ranks: Sequence[int]) -> dict[str, Any]:
    """Return probability and rank of each token that is scored; the first rank is 1.

    A model that gives no numbers has null for both.
    """
    broken = [math.isnan(value) for value in logprobs]
    return {
        "probability": [None if b else math.exp(v) for b, v in zip(broken, logprobs, strict=True)],
        "rank": [None if b else 1 + rank for b, rank in zip(broken, ranks, strict=True)],
    }


def _share(hit: Sequence[int], question: Question) -> float:
    """Return the share of tokens that are hit, or whether all are, as the question asks."""
    return float(all(hit)) if question.exact else mean(hit) or 0.0
