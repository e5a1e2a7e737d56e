"""Stretches of an edit's answer, each with a key and a value of its own.

A piece is an edit that is written at the token in front of its stretch, behind the rest of the
answer: the first one at the last token of the prompt (or of the subject, as locate-then-edit
methods do), each further one at the last answer token that it does not say.

```
 row of an edit   ids: [ p0 … pk | a0 a1 a2 | a3 a4 a5 | a6 … ]
   piece 0  (0, 3)             ▲ place, says a0 a1 a2
   piece 1  (3, 6)                       ▲ place, says a3 a4 a5
                                                  with overlap, a stretch begins further left
 Row.subject of a piece   (place of the edit's first piece, place of this one)
```

Everything that takes edits takes pieces: `rows_of` tokenises either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING

from errata.case import Edit
from errata.errors import ConfigError
from errata.locate.contexts import Contexts
from errata.locate.essence import essence_prompt
from errata.model.tokens import Row
from errata.tuning.places import with_end

if TYPE_CHECKING:
    from errata.model.lm import LM


@dataclass(frozen=True, slots=True, repr=False)
class Piece(Edit):
    """A stretch of an edit's answer.

    Attributes:
        start: Number of its first token within the answer.
        stop: Number of the token behind its last; None: the end of the answer.
        ends: Whether the answer goes on with the token that ends a text.
        at_subject: Whether the first piece of its edit is written at the subject's last token, with
            the subject's essence held; else at the prompt's.
        places: Starts of the pieces in front of it.
    """

    start: int = 0
    stop: int | None = None
    ends: bool = False
    at_subject: bool = False
    places: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        """How many pieces of the same answer stand in front of it."""
        return len(self.places)


def spans(length: int, window: int, overlap: int = 0) -> list[tuple[int, int]]:
    """Return where stretches of an answer begin and end.

    The last one ends with the answer. As released, windows go on until one begins behind the
    answer, so that with an overlap a last one may say nothing that is not said already.

    Args:
        length: Tokens of the answer.
        window: Tokens of a stretch at most.
        overlap: Tokens at the beginning of a stretch that the one before it says as well.

    Raises:
        ConfigError: If the window is empty or no longer than the overlap.
    """
    if window < 1 or not 0 <= overlap < window:
        raise ConfigError(
            f"windows of {window} tokens that share {overlap} do not get on",
            "A window holds one token at least, and more than the overlap.",
        )
    found = [(0, min(window, length))]
    while found[-1][1] < length:
        start = found[-1][1] - overlap
        found.append((start, min(start + window, length)))
    return found


def pieces_of(
    edit: Edit, cuts: Sequence[tuple[int, int | None]], *, ends: bool, at_subject: bool
) -> list[Piece]:
    """Return the pieces of an edit, in order.

    Args:
        edit: The edit.
        cuts: Where each begins and ends.
        ends: Whether the answer goes on with the token that ends a text.
        at_subject: Whether the first is written at the subject's last token.
    """
    said = {item.name: getattr(edit, item.name) for item in fields(Edit)}
    starts = tuple(start for start, _ in cuts)
    return [
        Piece(**said, start=start, stop=stop, ends=ends, at_subject=at_subject, places=starts[:n])
        for n, (start, stop) in enumerate(cuts)
    ]


def whole(edit: Edit) -> Edit:
    """Return the edit that a piece is of; an edit itself."""
    if not isinstance(edit, Piece):
        return edit
    return Edit(**{item.name: getattr(edit, item.name) for item in fields(Edit)})


def wholes(edits: Sequence[Edit]) -> list[Edit]:
    """Return the edits that pieces are of, each once where its pieces follow one another."""
    return [whole(edit) for edit in edits if not (isinstance(edit, Piece) and edit.number)]


def has_essence(edit: Edit) -> bool:
    """Whether the distribution at the subject is held while a value is found."""
    return not isinstance(edit, Piece) or (edit.at_subject and not edit.number)


def needs_subject(edit: Edit) -> bool:
    """Whether an edit is written at its subject."""
    return not isinstance(edit, Piece) or edit.at_subject


def answer_of(lm: LM, edit: Edit, *, subject: bool = False, prefix: str = "") -> Row:
    """Tokenise an edit with its answer; of a piece with what stands in front of it, and its own."""
    if not isinstance(edit, Piece):
        return lm.row_of(edit, subject=subject, prefix=prefix)
    row = _whole_row(lm, edit, subject, prefix)
    first, at = _places(edit, row)
    stop = len(row.labels) if edit.stop is None else edit.stop
    return replace(
        row,
        ids=row.ids[: row.prompt_length + stop - 1],
        positions=row.positions[edit.start : stop],
        labels=row.labels[edit.start : stop],
        subject=(first, at),
    )


def question_of(lm: LM, edit: Edit, *, subject: bool = False, prefix: str = "") -> Row:
    """Tokenise an edit without its answer; a piece up to the token that it is written at."""
    if not isinstance(edit, Piece):
        return lm.prompt_of(edit, subject=subject, prefix=prefix)
    row = _whole_row(lm, edit, subject, prefix)
    first, at = _places(edit, row)
    last = max(at, row.prompt_length - 1)
    return replace(row, ids=row.ids[: last + 1], positions=(last,), labels=(), subject=(first, at))


def rows_of(lm: LM, edit: Edit, contexts: Contexts, *, answered: bool) -> list[Row]:
    """Tokenise an edit or a piece in every context, with its answer or without.

    Args:
        lm: The model.
        edit: The edit.
        contexts: Texts in front of the prompt.
        answered: Whether with its answer.
    """
    make: Callable[..., Row] = partial(answer_of if answered else question_of, lm)
    return contexts.rows(edit, make)


def edit_rows(lm: LM, edit: Edit, contexts: Contexts, patch: int = -1) -> list[Row]:
    """Tokenise an edit: prompt and target in each context, then the essence row if it has one.

    Args:
        lm: The model.
        edit: An edit with a subject.
        contexts: Texts in front of the prompt.
        patch: The patch in the active stack that its rows run under; -1: none.
    """
    rows = rows_of(lm, edit, contexts, answered=True)
    if has_essence(edit):
        subject = str(edit.subject)
        essence = essence_prompt(subject)
        make = partial(lm.row, essence, None, subject)
        rows.append(contexts.off_sinks("", lambda text: make(prefix=text)))
    return [replace(row, patch=patch) for row in rows]


def _whole_row(lm: LM, piece: Piece, subject: bool, prefix: str) -> Row:
    row = lm.row_of(piece, subject=subject and piece.at_subject, prefix=prefix)
    return with_end(lm, row) if piece.ends else row


def _places(piece: Piece, row: Row) -> tuple[int, int]:
    """Return the places of the edit's first piece and of this one."""
    border = row.prompt_length - 1
    first = row.subject_last if piece.at_subject else border
    return first, border + piece.start if piece.number else first


def held_at(piece: Edit, row: Row, number: int) -> int:
    """Return the place in a piece's row of one of the pieces in front of it."""
    assert isinstance(piece, Piece)
    assert row.subject is not None
    first, at = row.subject
    return first if number == 0 else at - (piece.start - piece.places[number])
