"""The metrics as pure functions of what the model said at supervised positions (no model, no text).

Definitions, with `k` counted over token ids:

* **reliability** `(1/m) Σ_t [argmax p'(· | q, o_<t) = o_t]`;
* **generality** `(1/m) Σ_t [o_t ∈ top-k p'(· | q, o_<t)]`;
* **locality** the same with `o_t` replaced by the model's own pre-edit argmax at that position;
* **ES, PS, NS** `[NLL(answer) < NLL(competitor)]`, NLL as the mean over target tokens; the answer
  is the new object for edits and paraphrases (ES, PS) and the true one for neighbours (NS);
* **choice** `[NLL(answer) < NLL(c) for every choice c]`; **leakage** the same of the old answer,
  compared with the new one; **negation** `[NLL(c) < NLL(answer) for some choice c]`;
* **EM, PM, NM** `exp(-NLL(answer)) - exp(-NLL(competitor))`; **S** the harmonic mean of ES, PS, NS.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def hits(ranks: Sequence[int], logprobs: Sequence[float], k: int) -> list[int]:
    """Return 1 for every label among the `k` most probable tokens, else 0.

    A position whose logits hold NaN or infinite values is a miss: comparisons with NaN would
    otherwise give a destroyed model rank 0 everywhere.

    Args:
        ranks: Rank of each label, 0 for the most probable token.
        logprobs: Log-probability of each label.
        k: Number of tokens that count.
    """
    return [
        int(rank < k and not math.isnan(logprob))
        for rank, logprob in zip(ranks, logprobs, strict=True)
    ]


def mean(values: Iterable[float]) -> float | None:
    """Return the arithmetic mean, or None of nothing."""
    values = list(values)
    return math.fsum(values) / len(values) if values else None


def mean_nll(logprobs: Sequence[float]) -> float | None:
    """Return the length-normalised negative log-likelihood, None if it is not finite."""
    value = mean(-logprob for logprob in logprobs)
    return value if value is not None and math.isfinite(value) else None


def prefers(nll: float | None, foil_nll: float | None) -> int:
    """Return 1 if the answer is more probable than its competitor, 0 also if one is not finite."""
    return int(nll is not None and foil_nll is not None and nll < foil_nll)


def compare(kind: str, nll: float | None, choices: Sequence[float | None]) -> int:
    """Return the score of a question whose answer is compared with others; ties never count.

    What is not finite makes nothing right: a destroyed model resists no negation.

    Args:
        kind: `choice`, `negation` or `leakage`.
        nll: Of the answer.
        choices: Of the others.
    """
    if kind == "negation":
        return int(any(prefers(other, nll) for other in choices))
    return int(all(prefers(nll, other) for other in choices))


def margin(nll: float | None, foil_nll: float | None) -> float:
    """Return `exp(-NLL(answer)) - exp(-NLL(competitor))`; what is not finite counts as 0."""
    left, right = (0.0 if x is None else math.exp(-x) for x in (nll, foil_nll))
    return left - right


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean of rates; 0 if one of them is 0.

    Raises:
        ValueError: If there is none, or one is negative.
    """
    if not values or min(values) < 0:
        raise ValueError("the harmonic mean needs at least one rate, and no negative one")
    return 0.0 if 0 in values else len(values) / math.fsum(1 / value for value in values)
