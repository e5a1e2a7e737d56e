"""On what a result was made: seconds of a processor are told only of cells that ran on one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from errata.model.lm import LM


def card_of(lm: LM) -> str | None:
    """Return the name of the GPU that a model lies on; None on a processor."""
    return torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else None


def spent_since(start: float, card: str | None) -> float | None:
    """Return the processor's seconds since `time.process_time` said `start`; None with a GPU."""
    return None if card else time.process_time() - start


def told(made: Iterable[tuple[str, Mapping[str, Any] | None]]) -> str:
    """Return a sentence that names the rows made on a GPU, card by card; empty where none was."""
    rows: dict[str, list[str]] = {}
    for title, result in made:
        card = (result or {}).get("device")
        if card and title not in rows.setdefault(card, []):
            rows[card].append(title)
    return " ".join(
        f"Made on one {card}, so that no processor's seconds are told: {', '.join(titles)}."
        for card, titles in rows.items()
    )
