"""Sequences that destroy a model, looked at while they are made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from errata.inspection.limits import COLLAPSED, DAMAGED, times, worst
from errata.inspection.sentences import TEXT, rows_of
from errata.model.tokens import Row

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.patch import Patch


def text_rows(lm: LM) -> list[Row]:
    """Return the sentences with every token but the first as a label."""
    return [
        Row(row.ids[:-1], tuple(range(len(row.ids) - 1)), row.ids[1:], len(row.ids))
        for row in rows_of(lm, TEXT)
        if len(row.ids) > 1
    ]


def likelihood(lm: LM) -> float:
    """Return the mean negative log-likelihood per token of the model as it is now."""
    scores = lm.score(text_rows(lm))
    total = math.fsum(x for score in scores for x in score.logprobs)
    count = sum(len(score.logprobs) for score in scores)
    return -total / count if math.isfinite(total) else math.inf


@dataclass
class Watch:
    """Looks after sequences of edits.

    Attributes:
        lm: The unedited model.
        limit: Relative perplexity beyond which a sequence is to stop; None: never.
        say: Told in a sentence when a model is damaged, and when it has collapsed.
    """

    lm: LM
    limit: float | None = None
    say: Callable[[str], None] = lambda text: None
    _base: float | None = field(default=None, repr=False)

    def ratio(self, patch: Patch | None) -> float:
        """Return the perplexity under a patch, relative to the unedited model's."""
        if self._base is None:
            own = self.lm.installed.nothing  # a patch that somebody has applied is not kept
            self._base = (
                self.lm.once("collapse unedited", lambda: likelihood(self.lm))
                if own
                else likelihood(self.lm)
            )
        if patch is None or patch.is_empty:
            return 1.0
        with patch.applied(self.lm):
            now = likelihood(self.lm)
        return math.exp(min(now - self._base, 700.0)) if math.isfinite(now) else math.inf

    def look(self, patch: Patch | None, edits: int, points: list[dict[str, Any]]) -> bool:
        """Measure, and add the point; whether the sequence is to stop here.

        Args:
            patch: The patch of the sequence so far.
            edits: How many edits it holds.
            points: Earlier points of the sequence.
        """
        before = worst(points)
        ratio = self.ratio(patch)
        points.append({"edits": edits, "perplexity_ratio": ratio if math.isfinite(ratio) else None})
        for limit, state in ((COLLAPSED, "has collapsed"), (DAMAGED, "is being damaged")):
            if ratio > limit and not before > limit:
                self.say(
                    f"the model {state}: after {edits} edits the perplexity of general sentences "
                    f"is {times(ratio)} that of the unedited model"
                )
                break
        return self.limit is not None and ratio > self.limit


def unfit(editor: Editor) -> str | None:
    """Return what there is to say at the first step of a sequence; None if the editor is fit."""
    if editor.lasts:
        return None
    if editor.sequential:
        return (
            f"{editor.name} adds its edits up as it is set, which destroys a model within ten: "
            "leave out joint=sum, and they are solved for together"
        )
    return (
        f"{editor.name} is not made for edits one after another: its updates are made for the "
        "unedited model. Give all edits to one call, or take another editor"
    )


def stops(editor: Editor, asked: str | None) -> str | None:
    """Return when a sequence is to stop: as asked, else at a collapse if the editor is not fit."""
    return asked if asked is not None or editor.lasts else f"perplexity={COLLAPSED:g}x"
