"""Rows scored under patches: many patches per forward pass, each row under its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from errata.errors import PatchError
from errata.evaluation.fluency import sample
from errata.evaluation.regimes import chunks
from errata.model.kept import Kept, from_kept
from errata.model.tokens import patched
from errata.patch import Patch
from errata.patch.in_place import applied
from errata.patch.reach import first_changed
from errata.patch.stack import Stack

if TYPE_CHECKING:
    from errata.model.lm import LM, RowScore
    from errata.model.texts import Prompt
    from errata.model.tokens import Row

STACKED_RANK = 64
"""Patches of a higher rank run in place: stacked, every row would carry a copy of the factors.

The choice depends on the patch alone, so that numbers do not depend on what runs beside it."""


@runtime_checkable
class _Ask(Protocol):
    def __call__(self, which: list[int], places: list[int]) -> list[Any]: ...


class Scorer:
    """Scores and generates under one patch per row.

    Args:
        lm: The model; bit-identical after every call.
        stack_size: Largest number of patches installed side by side.
        kept: Hidden states of rows in the unedited model, which patches above may begin from.
    """

    def __init__(self, lm: LM, stack_size: int = 32, kept: Kept | None = None) -> None:
        self.lm = lm
        self.stack_size = stack_size
        self.kept = kept

    def score(self, rows: Sequence[Row], patches: Sequence[Patch | None]) -> list[RowScore]:
        """Score each row under its patch (None: the base model), in the order of `rows`."""

        def ask(which: list[int], places: list[int]) -> list[Any]:
            return self.lm.score(patched([rows[i] for i in which], places))

        return self._each(patches, ask)

    def generate(
        self,
        prompts: Sequence[Prompt],
        limits: Sequence[int],
        patches: Sequence[Patch | None],
        stops: Sequence[str] = (),
    ) -> list[str]:
        """Continue each prompt greedily under its patch by at most its number of tokens."""

        def ask(which: list[int], places: list[int]) -> list[Any]:
            rows = self.lm.rows(prompts[i] for i in which)
            return self.lm.generate(patched(rows, places), [limits[i] for i in which], stops=stops)

        return self._each(patches, ask)

    def sample(
        self, prompts: Sequence[str], seeds: Sequence[str], patches: Sequence[Patch | None]
    ) -> list[str]:
        """Sample a text from each prompt under its patch; see [`errata.evaluation.fluency`][]."""

        def ask(which: list[int], places: list[int]) -> list[Any]:
            rows = self.lm.rows(prompts[i] for i in which)
            return sample(self.lm, patched(rows, places), [seeds[i] for i in which])

        return self._each(patches, ask)

    def _each(self, patches: Sequence[Patch | None], ask: _Ask) -> list[Any]:
        """Ask every row under its patch and return the answers in order.

        `ask` is given rows, and the place of each one's patch in the active stack; -1: none.
        """
        base: list[int] = []
        by_patch: dict[int, tuple[Patch, list[int]]] = {}
        for i, patch in enumerate(patches):
            if patch is None or patch.is_empty:
                base.append(i)
            else:
                by_patch.setdefault(id(patch), (patch, []))[1].append(i)
        answers: list[Any] = [None] * len(patches)

        def put(which: list[int], places: list[int]) -> None:
            for i, answer in zip(which, ask(which, places), strict=True):
                answers[i] = answer

        if base:
            put(base, [-1] * len(base))
        light = [entry for entry in by_patch.values() if _is_light(entry[0])]
        alone = [entry for entry in by_patch.values() if not _is_light(entry[0])]
        for members in chunks(light, self.stack_size):
            stack, refused = self._stack([patch for patch, _ in members])
            alone += [members[at] for at in refused]
            kept = [entry for at, entry in enumerate(members) if at not in refused]
            if kept:
                pairs = [(i, place) for place, (_, which) in enumerate(kept) for i in which]
                with stack, self._from_kept([patch for patch, _ in kept]):
                    put([i for i, _ in pairs], [place for _, place in pairs])
        for patch, which in alone:
            with applied(self.lm, patch), self._from_kept([patch]):
                put(which, [-1] * len(which))
        return answers

    def _from_kept(self, patches: Sequence[Patch]) -> AbstractContextManager[None]:
        changed = None if self.kept is None else first_changed(self.lm, patches)
        return from_kept(self.lm, self.kept, changed)

    def _stack(self, patches: Sequence[Patch]) -> tuple[Stack, set[int]]:
        """Stack what can be stacked; return the numbers of those that have to run in place."""
        try:
            return Stack(self.lm, patches), set()
        except PatchError:
            refused = {at for at, patch in enumerate(patches) if not self._can_stack(patch)}
            kept = [patch for at, patch in enumerate(patches) if at not in refused]
            return Stack(self.lm, kept), refused

    def _can_stack(self, patch: Patch) -> bool:
        try:
            Stack(self.lm, [patch])
        except PatchError:
            return False
        return True


def _is_light(patch: Patch) -> bool:
    return max(patch.ranks().values(), default=0) <= STACKED_RANK
