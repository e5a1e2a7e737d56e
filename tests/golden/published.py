"""Reading what published code put out, and comparing with it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

MODELS = {
    "tiny-gpt2": "requests_AB.json",
    "tiny-llama": "requests_AB.json",
    "proto": "requests_C.json",
}
"""Fixed models and the requests that were edited on them; only some may be there."""


@cache
def golden(
    reference: Path, item: str, model: str = "tiny-gpt2", dtype: str = "f64"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and facts of one item."""
    stem = reference / model / f"{item}.{dtype}"
    facts = json.loads(stem.with_name(stem.name + ".json").read_text())
    return load_file(stem.with_name(stem.name + ".safetensors")), facts


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare by the relative Frobenius distance."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    error = float((found - expected).norm() / expected.norm())
    assert error <= tolerance, error
