from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.golden.published import models, requests_of

from errata.case import Edit


@pytest.fixture(scope="session")
def reference(shared: Path) -> Path:
    """Folder of what published code put out."""
    folder = shared / "reference"
    if not folder.is_dir():
        pytest.skip("needs the golden outputs (ERRATA_SHARED)")
    return folder


@pytest.fixture(scope="module", params=models())
def model(reference: Path, request: pytest.FixtureRequest) -> str:
    """Each of the fixed models that is there."""
    if not (reference / "models" / request.param).is_dir():
        pytest.skip(f"no golden outputs of {request.param}")
    return request.param


@pytest.fixture(scope="module")
def requests(reference: Path, model: str) -> list[dict[str, Any]]:
    """The six requests that were edited on a model."""
    return requests_of(reference, model)


@pytest.fixture(scope="module")
def edits(requests: list[dict[str, Any]]) -> list[Edit]:
    filled = [r.get("prompt_filled") or r["prompt"].replace("{}", r["subject"]) for r in requests]
    return [
        Edit(prompt, r["target_new"], r["subject"])
        for prompt, r in zip(filled, requests, strict=True)
    ]


@pytest.fixture(scope="module")
def ids(requests: list[dict[str, Any]]) -> list[int]:
    return [r["case_id"] for r in requests]
