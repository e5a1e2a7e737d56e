"""What a model says without and with a patch: the same prompts, asked twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from errata.model.lm import LM
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

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


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


def answers(
    lm: LM, prompts: Sequence[str], targets: Sequence[str | None]
) -> list[tuple[float, bool] | None]:
    """Return the probability of each target, and whether greedy decoding says it; None for None.

    NaN logits count as not said.
    """
    asked = [i for i, target in enumerate(targets) if target is not None]
    rows = [lm.row(prompts[i], targets[i]) for i in asked]
    found: list[tuple[float, bool] | None] = [None] * len(prompts)
    for i, score in zip(asked, lm.score(rows), strict=True):
        total = math.fsum(score.logprobs) if all(map(math.isfinite, score.logprobs)) else math.nan
        probability = 0.0 if math.isnan(total) else math.exp(total)
        found[i] = (probability, not any(score.ranks) and not math.isnan(total))
    return found


def _look(
    lm: LM, prompts: Sequence[str], targets: Sequence[str | None], k: int, new_tokens: int
) -> _Look:
    return _Look(
        lm.top(prompts, k), lm.generate(prompts, new_tokens), answers(lm, prompts, targets)
    )


def compare(
    lm: LM,
    patch: Patch,
    prompts: Sequence[str],
    targets: Sequence[str | None] | None = None,
    *,
    k: int = 5,
    new_tokens: int = 8,
    before: Patch | None = None,
) -> Comparison:
    """Ask the same prompts without and with a patch.

    Args:
        lm: The model.
        patch: The patch; undone at the end.
        prompts: What to ask.
        targets: For each prompt, an answer whose probability is wanted, or None.
        k: How many of the most probable next tokens to show.
        new_tokens: Length of the model's own continuation.
        before: What counts as before: an earlier patch, on which this one builds; None: the model.

    Raises:
        PatchError: If a patch is for another model.
    """
    targets = list(targets) if targets is not None else [None] * len(prompts)
    if len(targets) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(targets)} targets")
    with nullcontext() if before is None else before.applied(lm):
        old = _look(lm, prompts, targets, k, new_tokens)
    with patch.applied(lm):
        new = _look(lm, prompts, targets, k, new_tokens)
    views = Comparison()
    for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        p_before, hit_before = old.likely[i] or (None, None)
        p_after, hit_after = new.likely[i] or (None, None)
        views.append(
            View(
                prompt=prompt,
                before=tuple(old.top[i]),
                after=tuple(new.top[i]),
                says_before=old.says[i],
                says_after=new.says[i],
                target=target,
                p_before=p_before,
                p_after=p_after,
                hit_before=hit_before,
                hit_after=hit_after,
            )
        )
    return views
