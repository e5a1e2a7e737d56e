"""Evaluation of editors: the protocol, the metrics, and summaries made from records.

```
protocol    what can be asked, as one class of settings
run         the evaluation: from cases to a summary
session     what happens in between, unit by unit
regimes     cases -> units (single, batch, sequential)
pace        how many units go together, by the time they take
questions   case -> tokenised questions
conditions  what the unedited model has to know, for a question to count
before      what the unedited model says, cached
editing     units -> patches; a case that cannot be edited costs only itself
questioning questions under patches, unknown hops edited first
wild        the same questions answered freely
beyond      a suite: choice, negation, the old answer (negated: prompts negated by rule)
robustness  a suite: every case asked under perturbations
metrics     hits, rates, comparisons
summary     records -> summary, with bootstrap intervals
```

What needs torch is imported on first use: reports read summaries without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from errata.evaluation.protocol import Protocol as Protocol
    from errata.evaluation.result import Result as Result
    from errata.evaluation.run import evaluate as evaluate
    from errata.evaluation.summary import summarise as summarise

__all__ = ["Protocol", "Result", "evaluate", "summarise"]

_PLACES = {
    "Protocol": "protocol",
    "Result": "result",
    "evaluate": "run",
    "summarise": "summary",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
