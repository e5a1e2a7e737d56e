"""What a model says without and with a patch: the same prompts, asked twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from errata.case import Chat, Edit, Probe
from errata.model.given import expect_model
from errata.progress import waiting

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.tokens import Row
    from errata.patch.patch import Patch


@dataclass(frozen=True)
class View:
    """One prompt as the model sees it before and after a patch.

    Attributes:
        prompt: The prompt.
        before: The most probable next tokens with their probabilities, without the patch.
        after: The same under the patch.
        says_before: The model's own greedy continuation without the patch.
        says_after: The same under the patch.
        target: The answer that was asked about, if any.
        p_before: Probability of the whole target without the patch.
        p_after: The same under the patch.
        hit_before: Whether every token of the target is the most probable one, without the patch.
        hit_after: The same under the patch.
        chat: How the prompt was asked.
    """

    prompt: str
    before: tuple[tuple[str, float], ...]
    after: tuple[tuple[str, float], ...]
    says_before: str
    says_after: str
    target: str | None = None
    p_before: float | None = None
    p_after: float | None = None
    hit_before: bool | None = None
    hit_after: bool | None = None
    chat: Chat = "off"

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values; of a plain text nothing is said about a chat."""
        found = asdict(self)
        if self.chat == "off":
            del found["chat"]
        return found


class Comparison(list[View]):
    """Views of several prompts; in a notebook and in print it is a table."""

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (prompt, says before, says after) for every prompt."""
        return [(v.prompt, one_line(v.says_before), one_line(v.says_after)) for v in self]

    def table(self) -> str:
        """Return the rows as plain text under a heading."""
        lines = [("prompt", "before", "after"), *self.rows()]
        widths = [max(len(line[column]) for line in lines) for column in range(2)]
        return "\n".join(
            f"{prompt:<{widths[0]}}  {before:<{widths[1]}}  {after}".rstrip()
            for prompt, before, after in lines
        )

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows()
        )
        head = "<tr><th>prompt</th><th>before</th><th>after</th></tr>"
        return f"<table>{head}{body}</table>"


def one_line(text: str) -> str:
    """Return text with every run of white space as one space."""
    return " ".join(text.split())


@dataclass(frozen=True)
class _Look:
    top: list[list[tuple[str, float]]]
    says: list[str]
    likely: list[tuple[float, bool] | None]


Question = str | Edit | Probe
"""A text; or an edit or a probe, which say how they are asked and what the answer is."""


def answers(
    lm: LM,
    prompts: Sequence[Question],
    targets: Sequence[str | None],
    chat: Chat = "off",
    system: str | None = None,
) -> list[tuple[float, bool] | None]:
    """Return the probability of each target, and whether greedy decoding says it; None for None.

    NaN logits count as not said. An edit or a probe without a target is asked for its own.
    """
    rows = [
        _answered(lm, prompt, target, chat, system)
        for prompt, target in zip(prompts, targets, strict=True)
    ]
    asked = [(i, row) for i, row in enumerate(rows) if row is not None]
    found: list[tuple[float, bool] | None] = [None] * len(rows)
    scores = lm.score([row for _, row in asked])
    for (i, _), score in zip(asked, scores, strict=True):
        total = math.fsum(score.logprobs) if all(map(math.isfinite, score.logprobs)) else math.nan
        probability = 0.0 if math.isnan(total) else math.exp(total)
        found[i] = (probability, not any(score.ranks) and not math.isnan(total))
    return found


def _answered(
    lm: LM, prompt: Question, target: str | None, chat: Chat, system: str | None
) -> Row | None:
    if not isinstance(prompt, str):
        return lm.row_of(prompt, target)
    return None if target is None else lm.row(prompt, target, chat=chat, system=system)


def compare(
    lm: LM,
    patch: Patch,
    prompts: Sequence[Question],
    targets: Sequence[str | None] | None = None,
    *,
    k: int = 5,
    new_tokens: int = 8,
    before: Patch | None = None,
    chat: Chat = "off",
    system: str | None = None,
) -> Comparison:
    """Ask the same prompts without and with a patch.

    Args:
        lm: The model.
        patch: The patch; undone at the end.
        prompts: What to ask: texts, edits or probes.
        targets: For each prompt, an answer whose probability is wanted, or None; of edits and
            probes their own where nothing else is said.
        k: How many of the most probable next tokens to show.
        new_tokens: Length of the model's own continuation.
        before: What counts as before: an earlier patch, on which this one builds; None: the model.
        chat: How texts are asked: `off`, `user` or `system+user`; edits and probes say it.
        system: Their system message.

    Raises:
        PatchError: If a patch is for another model.
        ModelError: If there is no such chat template.
    """
    expect_model(lm)
    targets = list(targets) if targets is not None else [None] * len(prompts)
    if len(targets) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(targets)} targets")
    rows = lm.rows(prompts, chat, system)

    def look() -> _Look:
        return _Look(
            lm.top(rows, k),
            lm.generate(rows, new_tokens),
            answers(lm, prompts, targets, chat, system),
        )

    with waiting("asking before and after"):
        with nullcontext() if before is None else before.applied(lm):
            old = look()
        with patch.applied(lm):
            new = look()
    views = Comparison()
    for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        p_before, hit_before = old.likely[i] or (None, None)
        p_after, hit_after = new.likely[i] or (None, None)
        told = None if isinstance(prompt, str) else prompt
        views.append(
            View(
                prompt=str(prompt) if told is None else told.prompt,
                before=tuple(old.top[i]),
                after=tuple(new.top[i]),
                says_before=old.says[i],
                says_after=new.says[i],
                target=target if told is None or target is not None else told.target,
                p_before=p_before,
                p_after=p_after,
                hit_before=hit_before,
                hit_after=hit_after,
                chat=chat if told is None else told.chat,
            )
        )
    return views
