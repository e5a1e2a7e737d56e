"""One way to stand for a text in few characters, and one way to draw from it; without torch.

Files are `errata.store.files.sha256_of`, keys of caches `errata.store.cache.digest`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def digest_of(text: str) -> str:
    """Return the SHA-256 of a text, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_value(value: Any) -> str:
    """Return the SHA-256 of a JSON value, 64 hex digits; what JSON cannot hold counts as text."""
    return digest_of(json.dumps(value, sort_keys=True, default=str))


def digest_of_all(texts: Iterable[str]) -> str:
    """Return the SHA-256 over the SHA-256 of each text, so that their borders count."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()


def seed_of(text: str, size: int = 7) -> int:
    """Return a seed that depends on a text alone, the same in every process and release.

    Args:
        text: Everything that the draw may depend on.
        size: Bytes of the seed; 7 fit torch's signed 64 bits, numpy takes 8 as well.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size], "big")
