"""Looking at a patch: every edit is asked as a user would ask, and so is what lies around it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from errata.case import Edit
from errata.errors import ErrataError
from errata.inspection import sentences
from errata.inspection.advice import advice, tried
from errata.inspection.answers import LONGEST, SHOWN, short_answers, word_of
from errata.inspection.neighbours import Asked, bare_subjects, neighbours_of
from errata.model.logprobs import RowScore
from errata.model.tokens import Row
from errata.patch.report import NAMED, EditReport, Neighbour, plain
from errata.progress import watched

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.patch import Patch

SAID = 8
"""Tokens of the model's own words where an edit was not taken, or its last word goes on."""

WEAKENED = 0.5
"""Share of its probability below which an earlier edit counts as weakened."""


PARTS = 4
"""Of asking: the unedited model about all around, about the edits; the patched one; its words."""


@dataclass(frozen=True)
class Answer:
    """What the model makes of a target.

    Attributes:
        probability: Of the whole target.
        right: Leading tokens of the target that are the most probable ones.
        tokens: Tokens of the target.
        runs_on: Whether the most probable token behind the target goes on with its last word:
            "Ulm" that becomes "Ulmab" is another answer.
    """

    probability: float
    right: int
    tokens: int
    runs_on: bool = False

    @property
    def taken(self) -> bool:
        """Whether greedy decoding says the target, token for token."""
        return self.right == self.tokens

    @property
    def whole(self) -> bool:
        """Whether it says the target, and the word ends there."""
        return self.taken and not self.runs_on

    @classmethod
    def of(cls, lm: LM, row: Row, score: RowScore) -> Answer:
        """Read the score of an edit's row; logits that are not finite count as not said.

        Args:
            lm: The model.
            row: The edit's row.
            score: Of that row, or of what `followed` makes of it.
        """
        n = len(row.labels)
        total, ranks = math.fsum(score.logprobs[:n]), score.ranks[:n]
        right = next((i for i, rank in enumerate(ranks) if rank), n)
        if not math.isfinite(total):
            return cls(0.0, min(right, n - 1), n)
        behind = score.argmax[n:]
        said = lm.text(row.labels)
        on = bool(behind) and runs_on(said, lm.text([*row.labels, *behind])[len(said) :])
        return cls(math.exp(total), right, n, on)


def followed(lm: LM, row: Row) -> Row:
    """Return a row that is also asked what stands behind its answer, where the context has room."""
    end = len(row.ids)
    if lm.max_length is not None and end + 1 > lm.max_length:
        return row
    last = row.labels[-1]  # as a label it says nothing: only the argmax is read
    return replace(
        row,
        ids=(*row.ids, last),
        positions=(*row.positions, end),
        labels=(*row.labels, last),
    )


def runs_on(text: str, behind: str) -> bool:
    """Whether a text goes on within its last word: letters of scripts with spaces, or digits."""
    return all(
        letter.isdigit() or letter.lower() != letter.upper()
        for letter in (text[-1:], behind[:1])
        if letter
    ) and bool(text and behind)


@dataclass
class Surroundings:
    """What lies around some edits, with the answers of the unedited model.

    Attributes:
        asked: Neighbours, then bare subjects.
        bare: Number of the bare subjects among them.
        rows: Each with the unedited model's short answer as labels.
        kept: What the unedited model says after general sentences.
    """

    asked: list[Asked]
    bare: int
    rows: list[Row]
    kept: sentences.Kept

    @classmethod
    def of(
        cls, lm: LM, edits: Sequence[Edit], avoid: Sequence[Edit] = (), also: Sequence[Row] = ()
    ) -> tuple[Surroundings, list[RowScore]]:
        """Choose what to ask, and ask the unedited model: nothing may be applied to it.

        Args:
            lm: The model.
            edits: Edits whose neighbours are asked.
            avoid: Edits whose questions are no neighbours.
            also: Rows that are scored in the same pass.

        Returns:
            The surroundings, and the scores of `also`.
        """
        names = [one for one in bare_subjects(edits) if _fits(lm, one)]
        asked = [one for one in neighbours_of(lm, edits, avoid) if _fits(lm, one)] + names
        rows, scores = short_answers(lm, [one.question for one in asked], also)
        return cls(asked, len(names), rows, sentences.unedited(lm)), scores

    def now(self, lm: LM, also: Sequence[Row] = ()) -> tuple[dict[str, Any], list[RowScore]]:
        """Ask the model as it is now.

        Args:
            lm: The model, under a patch.
            also: Rows that are scored in the same pass.

        Returns:
            `neighbours`, `bare` and `sentences` as a patch keeps them, and the scores of `also`.
        """
        scores = lm.score([*also, *self.rows])
        others, scores = scores[: len(also)], scores[len(also) :]
        moved = [any(score.ranks) for score in scores]
        after = [
            lm.text([*row.labels[: _first(score)], score.argmax[_first(score)]])
            for row, score in zip(self.rows, scores, strict=True)
        ]
        count = len(self.asked) - self.bare
        shown = [i for i in range(count) if moved[i]][:NAMED]
        shown += [i for i in range(count, len(moved)) if moved[i]][:1]
        if shown:  # their whole words are shown
            texts = lm.generate([self.asked[i].question for i in shown], SHOWN)
            for i, text in zip(shown, texts, strict=True):
                after[i] = text
        every = []
        for asked, row, differs, text in zip(self.asked, self.rows, moved, after, strict=True):
            before = word_of(lm.text(row.labels))
            new = word_of(text) if differs else before
            every.append(Neighbour(asked.prompt, asked.subject, before, new, differs))
        return {
            "neighbours": plain(every[:count]),
            "bare": plain(every[count:]),
            "sentences": sentences.moved(lm, self.kept).as_dict(),
        }, others


def look(
    lm: LM,
    patch: Patch,
    requests: Sequence[Edit],
    earlier: Patch | None = None,
    *,
    editor: Editor | None = None,
    neighbourhood: bool = True,
    sequence: dict[str, Any] | None = None,
) -> Patch:
    """Ask for all edits of a patch, and for what lies around them; return it with the answers.

    Args:
        lm: The unedited model.
        patch: The patch.
        requests: The edits that were asked for now.
        earlier: The patch that it builds on: what counts as before.
        editor: Who made it: what was tried, and what to try.
        neighbourhood: Whether neighbours and general sentences are asked.
        sequence: What was measured while the edits were made one after another.
    """
    requests = requests if editor is None else editor.meant(lm, requests)
    old = () if earlier is None else earlier.edits
    # an editor may leave earlier edits out of its patch, and a strategy may add some
    edits = list(dict.fromkeys([*requests, *patch.edits, *old]))
    asked = [lm.row_of(edit) for edit in edits]
    rows = [followed(lm, row) for row in asked]
    around, scores = None, []
    with watched("asking what came of it, part") as part:
        part(0, PARTS)
        if neighbourhood:
            around, scores = Surroundings.of(lm, requests, edits, rows if earlier is None else ())
        part(1, PARTS)
        with _under(lm, earlier):
            before = [
                Answer.of(lm, *one) for one in zip(asked, scores or lm.score(rows), strict=True)
            ]
        part(2, PARTS)
        with patch.applied(lm):
            seen, scores = ({}, lm.score(rows)) if around is None else around.now(lm, rows)
            after = [Answer.of(lm, *one) for one in zip(asked, scores, strict=True)]
            part(3, PARTS)
            missed = [i for i, answer in enumerate(after) if not answer.whole]
            says = lm.generate([edits[i] for i in missed], SAID) if missed else []
        part(PARTS, PARTS)
    results: dict[Edit, dict[str, Any]] = {
        edit: {
            "taken": new.taken, "taken_before": was.taken, "p_before": was.probability,
            "p_after": new.probability, "tokens": new.tokens, "right": new.right,
        }
        for edit, was, new in zip(edits, before, after, strict=True)
    }  # fmt: skip
    for i, text in zip(missed, says, strict=True):
        results[edits[i]]["says_after"] = text
    made = requests
    if sequence is not None and sequence.get("stopped"):
        made = requests[: sequence["stopped"]["kept"]]
        for edit in requests[len(made) :]:
            results[edit]["tried"] = f"nothing: stopped by {sequence['stopped']['when']}"
    if editor is not None:
        _explain(lm, editor, made, results, len(requests), sequence is not None)
    aftermath: dict[str, Any] = {}
    absent = [edit for edit in dict.fromkeys(requests) if edit not in patch.edits]
    if absent:
        aftermath["left_out"] = plain([EditReport.of(edit, results[edit]) for edit in absent])
    aftermath |= seen | _earlier_edits(old, requests, results)
    if sequence is not None:
        aftermath["sequence"] = sequence
    noted = tuple(results[edit] for edit in patch.edits)
    return replace(patch, results=noted, aftermath=aftermath)


def _explain(
    lm: LM,
    editor: Editor,
    requests: Sequence[Edit],
    results: dict[Edit, dict[str, Any]],
    group: int,
    in_turn: bool,
) -> None:
    done = tried(lm, editor)
    for edit in dict.fromkeys(requests):
        result = results[edit]
        result["tried"] = done
        if not result["taken"]:
            result["advice"] = advice(lm, editor, edit, result, group, in_turn)


def _earlier_edits(
    old: Sequence[Edit], requests: Sequence[Edit], results: dict[Edit, dict[str, Any]]
) -> dict[str, Any]:
    """Return the earlier edits that held before and do not hold now, or only weakly.

    What a request answers otherwise is replaced, not lost.
    """
    replaced = {edit.question for edit in requests}
    kept = [edit for edit in dict.fromkeys(old) if edit.question not in replaced]
    held = [edit for edit in kept if results[edit]["taken_before"]]
    lost = [EditReport.of(e, results[e]) for e in held if not results[e]["taken"]]
    weaker = [
        EditReport.of(e, results[e])
        for e in held
        if results[e]["taken"] and results[e]["p_after"] < WEAKENED * results[e]["p_before"]
    ]
    found = {"lost": plain(lost), "weaker": plain(weaker)}
    return {"earlier": len(held), **found} if old else {}


def _fits(lm: LM, asked: Asked) -> bool:
    """Whether a question can be asked and answered: another subject may be longer."""
    try:
        (row,) = lm.rows([asked.question])
    except ErrataError:
        return False
    return lm.max_length is None or len(row.ids) + LONGEST <= lm.max_length


def _first(score: RowScore) -> int:
    """Return the first token that is not the most probable one."""
    return next((i for i, rank in enumerate(score.ranks) if rank), len(score.ranks) - 1)


@contextmanager
def _under(lm: LM, patch: Patch | None) -> Iterator[None]:
    with nullcontext() if patch is None else patch.applied(lm):
        yield


def surroundings(lm: LM, patch: Patch) -> dict[str, Any]:
    """Ask only what lies around the edits of a finished patch.

    Args:
        lm: The unedited model.
        patch: The patch.

    Returns:
        `neighbours`, `bare` and `sentences` as a patch keeps them (`Patch.aftermath`).
    """
    around, _ = Surroundings.of(lm, patch.edits, patch.edits)
    with patch.applied(lm):
        return around.now(lm)[0]
