"""Keys and values of the texts in front of prompts: those of every edit, computed once per model.

```
 row   [ The man said. │ Rome is the capital of │ … ]     contexts begin alike in every edit;
       └── kept once ──┘└── prefix ──┘                    the bare prompt begins with none
```

A text counts only if a row begins with all its tokens: some tokenizers merge across the seam. Under
a patch the same text has other keys and values, so nothing is taken from here then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from errata.locate.contexts import Contexts
from errata.model.prefixes import Prefix, make_prefix
from errata.model.tokens import Row

if TYPE_CHECKING:
    from errata.model.lm import LM


@dataclass(frozen=True)
class Beginnings:
    """What rows may begin with.

    Attributes:
        places: By its tokens, which row of the prefix a text is.
        prefix: Keys and values, a row a text.
    """

    places: dict[tuple[int, ...], int]
    prefix: Prefix

    def of(self, rows: Sequence[Row], starts: Sequence[int]) -> Prefix | None:
        """Return what is known of each row, up to a position; None: nothing of any."""
        found = [self._longest(row.ids[:n]) for row, n in zip(rows, starts, strict=True)]
        if not any(found):
            return None
        device = self.prefix.mask.device
        index = torch.tensor([self.places.get(ids, 0) for ids in found], device=device)
        picked = self.prefix.rows(index)
        has = torch.tensor([[bool(ids)] for ids in found], device=device)
        return replace(picked, mask=picked.mask * has, starts=tuple(map(len, found)))

    def _longest(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return the longest text that some tokens begin with; none: no token."""
        fits = (text for text in self.places if ids[: len(text)] == text)
        return max(fits, key=len, default=())


def beginnings(lm: LM, contexts: Contexts) -> Beginnings | None:
    """Return what is kept of the contexts, computing it the first time.

    Args:
        lm: The model.
        contexts: Texts in front of prompts.

    Returns:
        None where there is nothing to keep, or a patch is active.
    """
    if not lm.installed.nothing or not any(contexts.prefixes):
        return None
    # products may be rounded now, and not the next time
    key = ("beginnings", contexts.prefixes, lm.roughly)
    return lm.once(key, lambda: _computed(lm, contexts.prefixes))


def _computed(lm: LM, texts: Sequence[str]) -> Beginnings:
    rows = {row.ids: row for row in (lm.row(text.rstrip()) for text in texts if text.strip())}
    prefix = make_prefix(lm, list(rows.values()), [len(ids) for ids in rows])
    return Beginnings({ids: place for place, ids in enumerate(rows)}, prefix)
