"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from errata.store.files import cache_root

if TYPE_CHECKING:
    from errata.model.lm import LM


def pytest_configure(config: pytest.Config) -> None:
    """Give the tests, and the processes that they start, a cache that is nobody's.

    What fetches a real model keeps the user's: `make test-real` counts moments once and for all.
    """
    _build_commands_once()
    if "ERRATA_CACHE" in os.environ or os.environ.get("ERRATA_FETCH"):
        return  # asked for, or a worker, or a run on real models
    os.environ["ERRATA_USERS_CACHE"] = str(cache_root())
    os.environ["ERRATA_CACHE"] = folder = tempfile.mkdtemp(prefix="errata-tests-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def _build_commands_once() -> None:
    """Let typer turn an app into commands once: with ours it takes a tenth of a second a call."""
    import typer.testing

    made = getattr(typer.testing, "_get_command", None)
    if made is not None:
        typer.testing._get_command = cache(made)


def users_cache() -> Path:
    """Where models lie that the user has fetched."""
    return Path(os.environ.get("ERRATA_USERS_CACHE") or cache_root())


def shared_folder() -> Path:
    """Where that folder lies if it is there."""
    root = Path(__file__).resolve().parents[1]
    return Path(os.environ.get("ERRATA_SHARED", root.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with public benchmark files and golden outputs; absent on most machines."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip("needs the folder of public benchmark files (ERRATA_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def _nothing_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `errata tune` found on this machine is for its user; tests have caches of their own."""
    from errata.editors import fitting

    nowhere = Path("/nowhere")
    monkeypatch.setattr(
        fitting, "cache_root", lambda: cache_root() if os.environ.get("ERRATA_CACHE") else nowhere
    )


@pytest.fixture(autouse=True)
def _no_lines_while_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine a thread would print what no test expects."""
    from errata import progress

    monkeypatch.setattr(progress, "TICK_SECONDS", 3600.0)


@cache
def build(name: str, dtype: str = "float32", bos: bool = False) -> LM:
    """Return a tiny random model; shared, since nothing may change it."""
    import torch

    from errata.model.lm import LM
    from tests.tiny_models import DEVICE, TINY, tiny_tokenizer

    model = TINY[name]().to(DEVICE, getattr(torch, dtype))
    return LM(model, tiny_tokenizer(bos), name=f"tiny-{name}")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., LM]:
    return build
