"""What is measured beside the questions of cases, and which cases are asked at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.case import Case
from errata.errors import DataError
from errata.evaluation.consistency import References
from errata.evaluation.general import General
from errata.evaluation.perplexity import load_text
from errata.evaluation.protocol import Protocol
from errata.evaluation.scoring import Scorer
from errata.evaluation.tracking import Tracker, spread
from errata.world.shipped import knows_world

if TYPE_CHECKING:
    from errata.model.lm import LM


@dataclass(frozen=True)
class Measures:
    """What is measured beside the questions of cases.

    Attributes:
        references: Reference texts of the cases that texts are sampled for; None for no texts.
        sampled: Ids of these cases.
        tracker: What is measured along sequences; None in other regimes.
        silent: Ids of cases that are edited and not asked.
    """

    references: References | None = None
    sampled: frozenset[str] = frozenset()
    tracker: Tracker | None = None
    silent: frozenset[str] = frozenset()

    def told(self) -> dict[str, Any]:
        """Return what perplexity and general ability are measured on."""
        assert self.tracker is not None
        text, general = self.tracker.text, self.tracker.general
        return {
            "perplexity": text and {"text": text.name, "tokens": text.tokens},
            "general": general and general.source,
        }


def measures_of(
    lm: LM,
    protocol: Protocol,
    cases: Sequence[Case],
    units: Sequence[Sequence[Case]],
    data: str,
) -> Measures:
    """Read the texts and tasks that are measured beside the questions, and choose who is asked.

    Args:
        lm: The model.
        protocol: What is measured.
        cases: All cases, in order.
        units: Those that are edited.
        data: Name of the data set.

    Raises:
        DataError: If a text or a task cannot be read.
        MissingExtra: If general ability is asked for without lm-evaluation-harness.
    """
    references = tracker = None
    if protocol.fluency:
        world = data == "world" and knows_world(lm.name)
        references = References(cases, file_of(protocol.references), world=world)
    if protocol.units.kind == "sequential":
        tracker = Tracker(
            lm,
            Scorer(lm, protocol.stack_size),
            protocol.every,
            load_text(lm, protocol.perplexity),
            General(lm, protocol.general, protocol.general_data) if protocol.general else None,
        )
    ids = [case.id for unit in units for case in unit]
    silent = frozenset(ids).difference(spread(ids, protocol.ask)) if protocol.ask else frozenset()
    asked = [case.id for case in cases if case.id not in silent]
    return Measures(references, frozenset(asked[:: protocol.fluency or 1]), tracker, silent)


def file_of(path: str | None) -> Path | None:
    """Return a file of reference texts; None for none.

    Raises:
        DataError: If it does not exist.
    """
    if path is None:
        return None
    found = Path(path).expanduser()
    if not found.is_file():
        raise DataError(f"no such file: {found}", "Give reference texts as a JSON file.")
    return found
