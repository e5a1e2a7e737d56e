"""A reader's own hooks on a model, as torch installs them: errata's tests look through these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def hooks(*handles: Any) -> Iterator[None]:
    """Remove hook handles at the end, also after an exception."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
