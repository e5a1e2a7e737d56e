"""The request turned round: a second source of signals, for questions asked in reverse.

The gradient of "The capital of France is … Rome" says how to answer with Rome, but nothing in it
says how to answer with France when Rome is asked about. The gradient of the same sentence with
subject and target in each other's place does. The sentence need not be true or even sensible: its
signals only feed the networks, which learn what to make of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.model.tokens import find_subject
from errata.nets.capture import Signals

MIRROR: Any = Field(
    default=False,
    description="Also look at the request turned round (target in the subject's place, subject as "
    "the answer) where the subject is known: its signals say how to answer in reverse",
)
"""The setting of editors that can do so."""


@dataclass(frozen=True, slots=True)
class Mirror(Edit):
    """A request turned round."""


def mirrors(edit: Edit) -> list[Edit]:
    """Return the request turned round; nothing if its subject is unknown or not in the prompt."""
    if edit.subject is None or edit.subject.strip() not in edit.prompt:
        return []
    start, end = find_subject(edit.prompt, edit.subject, edit.subject_at)
    prompt = edit.prompt[:start] + edit.target.strip() + edit.prompt[end:]
    return [Mirror(prompt, edit.subject.strip())]


def turned(signals: Signals) -> Bool[Tensor, " E"]:
    """Return which requests are turned round."""
    marks = [isinstance(edit, Mirror) for edit in signals.edits] or [False] * len(signals.owner)
    return torch.tensor(marks, device=signals.owner.device)
