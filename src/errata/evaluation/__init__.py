"""Evaluation of editors: the protocol, the metrics, and summaries made from records.

```
regimes     cases -> units (single, batch, sequential)
questions   case -> tokenised questions
before      what the unedited model says, cached
editing     units -> patches; a case that cannot be edited costs only itself
exam        questions under patches, unknown hops edited first
metrics     hits, rates, comparisons, generated answers
summary     records -> summary, with bootstrap intervals
```
"""

from __future__ import annotations

from errata.evaluation.protocol import evaluate
from errata.evaluation.result import Result
from errata.evaluation.summary import summarise

__all__ = ["Result", "evaluate", "summarise"]
