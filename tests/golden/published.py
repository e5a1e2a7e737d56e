"""Reading what published code put out, and comparing with it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.conftest import shared_folder
from torch import Tensor

REQUESTS = {"proto": "requests_C.json"}
"""Requests that were edited on a model, where they are not those of all others."""


def models() -> list[str]:
    """Return the fixed models that are there, whatever they are called."""
    folder = shared_folder() / "reference" / "models"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ["no model"]


def requests_of(reference: Path, model: str) -> list[dict[str, Any]]:
    """Return the requests that were edited on a model."""
    file = reference / "inputs" / REQUESTS.get(model, "requests_AB.json")
    found = json.loads(file.read_text())
    return found["requests"] if isinstance(found, dict) else found


def input_of(reference: Path, name: str) -> Path:
    """Return a file of inputs; without it the test is skipped."""
    path = reference / "inputs" / name
    if not path.is_file():
        pytest.skip(f"no golden input {name}")
    return path


def golden_file(reference: Path, model: str, name: str) -> Path:
    """Return a file of a model's outputs; without it the test is skipped."""
    path = reference / model / name
    if not path.is_file():
        pytest.skip(f"no golden output {name} of {model}")
    return path


@cache
def golden(
    reference: Path, item: str, model: str, dtype: str = "f64"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and facts of one item of a model; a test that lacks them is skipped."""
    facts = json.loads(golden_file(reference, model, f"{item}.{dtype}.json").read_text())
    return load_file(golden_file(reference, model, f"{item}.{dtype}.safetensors")), facts


def stored(delta: Tensor, like: Tensor) -> Tensor:
    """Return a `d_out x d_in` update as the published file stores it: GPT-2's are transposed."""
    assert delta.shape[0] != delta.shape[1]  # else the shapes would not tell
    return delta if delta.shape == like.shape else delta.T


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare by the relative Frobenius distance."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    error = float((found - expected).norm() / expected.norm())
    assert error <= tolerance, error
