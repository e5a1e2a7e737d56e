"""One setting on some facts: what was written, spread and moved; kept on disk as it comes."""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.case import Edit
from errata.errors import ErrataError, RunError
from errata.evaluation.editing import edit_groups
from errata.evaluation.metrics import mean_nll, prefers
from errata.evaluation.scoring import Scorer
from errata.evaluation.wild import STOPS, exact_match
from errata.patch import Patch
from errata.store.cache import digest

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.searching.facts import Trial

log = logging.getLogger(__name__)

LONGEST = 50
"""Tokens of a free answer at most, as in WILD."""

LEAST = 0.5
"""Share of edits below which settings are of no use."""


@dataclass(frozen=True)
class Outcome:
    """What became of one edit.

    Attributes:
        written: Whether the model's own greedy answer is the target.
        p: Probability of the target.
        spread: Share of the paraphrases whose greedy answer is the target.
        ns: Share of the neighbours that find their own answer likelier than the target.
        ns_before: The same before the edit.
        kept: Share of the neighbours whose greedy answer is still their own.
        seconds: What it took.
        wild: Whether the free answer, up to a full stop or a line break, is the target and nothing
            else; None: not asked.
        error: Why it could not be made; empty if it could.
    """

    written: bool
    p: float
    spread: float | None
    ns: float
    ns_before: float
    kept: float
    seconds: float = 0.0
    wild: bool | None = None
    error: str = ""


@dataclass(frozen=True)
class Stats:
    """Outcomes of one setting, averaged.

    Attributes:
        facts: How many.
        written: Share of edits that were written.
        spread: Mean share of paraphrases.
        ns_lost: By how much the share of neighbours that prefer their own answer fell.
        kept: Mean share of neighbours with their own greedy answer.
        p: Mean probability of the target.
        seconds: Per edit.
        wild: Share of free answers that are the target; None: not asked.
        failed: Edits that could not be made.
        doubt: Standard error of `ns_lost` over facts.
    """

    facts: int
    written: float
    spread: float
    ns_lost: float
    kept: float
    p: float
    seconds: float
    wild: float | None = None
    failed: int = 0
    doubt: float = 0.0

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Stats:
        """Average outcomes."""
        count = len(outcomes)
        spreads = [one.spread for one in outcomes if one.spread is not None]
        free = [one.wild for one in outcomes if one.wild is not None]
        lost = [one.ns_before - one.ns for one in outcomes]
        return cls(
            count,
            sum(one.written for one in outcomes) / count,
            sum(spreads) / len(spreads) if spreads else 1.0,
            sum(lost) / count,
            sum(one.kept for one in outcomes) / count,
            sum(one.p for one in outcomes) / count,
            sum(one.seconds for one in outcomes) / count,
            sum(free) / len(free) if free else None,
            sum(bool(one.error) for one in outcomes),
            statistics.stdev(lost) / math.sqrt(count) if count > 1 else 0.0,
        )

    @property
    def value(self) -> float:
        """One number to compare by: writing counts most, then what moved, then what spread.

        Losing neighbours costs half of what is lost, and four times what is lost beyond five
        points; that much counts as lost that a standard error more may be. To write fewer than half
        of the edits costs as much: what writes nothing spares everything.
        """
        harm = 0.5 * self.ns_lost + 4 * max(0.0, self.ns_lost + self.doubt - ALLOWED)
        idle = 4 * max(0.0, LEAST - self.written)
        return self.written + 0.25 * self.spread + 0.25 * self.kept + 0.1 * self.p - harm - idle

    @property
    def effect(self) -> tuple[float, float, float, float]:
        """What is written, spread, not lost and kept: more is better."""
        return self.written, self.spread, -self.ns_lost, self.kept

    def dominates(self, other: Stats) -> bool:
        """Whether nothing is worse and something is better, in what is written, spread and kept."""
        pairs = zip(self.effect, other.effect, strict=True)
        return self.effect != other.effect and all(a >= b for a, b in pairs)

    def like(self, other: Stats) -> bool:
        """Whether the effect is the same, to half a hundredth of the target's probability."""
        return self.effect == other.effect and abs(self.p - other.p) < 0.005


def leaders(measured: Sequence[tuple[dict[str, Any], Stats]]) -> list[dict[str, Any]]:
    """Return settings, the best first; of those with the same effect only the first that came.

    A clamp that is never reached, say, makes copies, which would keep others out.

    Args:
        measured: Settings, and what was measured on the same facts.
    """
    best: list[tuple[dict[str, Any], Stats]] = []
    for settings, stats in sorted(measured, key=lambda one: -one[1].value):
        if not any(stats.like(other) for _, other in best):
            best.append((settings, stats))
    return [settings for settings, _ in best]


ALLOWED = 0.05
"""Share of neighbours that may be lost."""


def measure(
    lm: LM,
    editor: Editor,
    trials: Sequence[Trial],
    free: bool = False,
    scorer: Scorer | None = None,
) -> list[Outcome]:
    """Edit each fact alone, ask, and undo; all in one turn with an editor that is meant for that.

    Args:
        lm: The model; bit-identical afterwards.
        editor: The editor.
        trials: The facts.
        free: Whether free answers are asked for as well.
        scorer: Scores under patches; default: a new one.
    """
    scorer = scorer or Scorer(lm)
    started = time.perf_counter()
    groups = [[trial.edit for trial in trials]] if editor.in_turns else [[t.edit] for t in trials]
    made = edit_groups(editor, lm, groups, [None] * len(groups))
    made = made * len(trials) if editor.in_turns else made
    patches = [one if isinstance(one, Patch) else None for one in made]
    rows, owners = [], []
    for trial, patch in zip(trials, patches, strict=True):
        target = trial.edit.target
        asked = [trial.edit, *trial.paraphrases]
        for neighbour in trial.neighbours:
            asked += [neighbour, Edit(neighbour.prompt, target)]
        rows += [lm.row_of(one) for one in asked]
        owners += [patch] * len(asked)
    after = iter(scorer.score(rows, owners))
    before = iter(_before(lm, trials))
    said: list[str | None] = [None] * len(trials)
    if free:
        prompts = [trial.edit.prompt for trial in trials]
        said = list(scorer.generate(prompts, [LONGEST] * len(prompts), patches, stops=STOPS))
    found = []
    for trial, outcome, text in zip(trials, made, said, strict=True):
        own = next(after)
        spread = [not any(next(after).ranks) for _ in trial.paraphrases]
        ns, kept = [], []
        for _ in trial.neighbours:
            truth, moved = next(after), next(after)
            kept.append(not any(truth.ranks))
            ns.append(prefers(mean_nll(truth.logprobs), mean_nll(moved.logprobs)))
        failed = not isinstance(outcome, Patch)
        total = math.fsum(own.logprobs)
        found.append(
            Outcome(
                written=not failed and not any(own.ranks),
                p=0.0 if failed or not math.isfinite(total) else math.exp(total),
                spread=_mean(spread),
                ns=_mean(ns) or 0.0,
                ns_before=next(before),
                kept=_mean(kept) or 0.0,
                wild=None if text is None else exact_match(text, [trial.edit.target]),
                error=outcome.message if isinstance(outcome, ErrataError) else "",
            )
        )
    seconds = (time.perf_counter() - started) / len(trials)
    return [replace(one, seconds=seconds) for one in found]


def _before(lm: LM, trials: Sequence[Trial]) -> list[float]:
    """Return for each fact the share of neighbours that prefer their own answer unedited."""
    known: dict[str, float] = lm.once("neighbours before an edit", dict)
    new = [trial for trial in trials if trial.id not in known]
    rows = []
    for trial in new:
        for neighbour in trial.neighbours:
            rows += [lm.row_of(neighbour), lm.row_of(Edit(neighbour.prompt, trial.edit.target))]
    scores = iter(lm.score(rows))
    for trial in new:
        own = [
            prefers(mean_nll(next(scores).logprobs), mean_nll(next(scores).logprobs))
            for _ in trial.neighbours
        ]
        known[trial.id] = _mean(own) or 0.0
    return [known[trial.id] for trial in trials]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


class Store:
    """Outcomes on disk: what an earlier run of the same search measured is there at once.

    Args:
        path: Its file: one JSON line per outcome.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[tuple[str, str], Outcome] = {}
        self.times: dict[str, float] = {}
        self.seconds = 0.0
        for line in self._lines():
            try:
                entry = json.loads(line)
                if entry["kind"] == "outcome":
                    outcome = Outcome(**entry["outcome"])
                    self.outcomes[entry["settings"], entry["fact"]] = outcome
                    self.seconds += outcome.seconds
                else:
                    self.seconds += entry["seconds"]
                    self.times[entry["what"]] = entry["seconds"]
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a killed run

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(
                f"{self.path} cannot be read: {error}", "Start anew with --force."
            ) from None

    def get(self, settings: Mapping[str, Any], trial: Trial, free: bool) -> Outcome | None:
        """Return what was measured, if it was."""
        found = self.outcomes.get((name_of(settings), trial.id))
        return None if found is None or (free and found.wild is None) else found

    def add(
        self, settings: Mapping[str, Any], trials: Sequence[Trial], outcomes: Sequence[Outcome]
    ) -> None:
        """Write outcomes down; when this returns they are on disk."""
        name = name_of(settings)
        lines = []
        for trial, outcome in zip(trials, outcomes, strict=True):
            self.outcomes[name, trial.id] = outcome
            entry = {"settings": name, "fact": trial.id, "outcome": asdict(outcome)}
            lines.append({"kind": "outcome", **entry, "values": dict(settings)})
        self._append(lines)

    def spend(self, seconds: float, what: str) -> None:
        """Write down what else took time."""
        self.times[what] = seconds
        self._append([{"kind": "time", "what": what, "seconds": seconds}])

    def _append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        data = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as handle:
                if handle.tell() and not self.path.read_bytes().endswith(b"\n"):
                    handle.write(b"\n")  # a killed run left half a line
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror or error}",
                "Make room, and type the same again: what was measured is kept.",
            ) from error


def name_of(settings: Mapping[str, Any]) -> str:
    """Return a short name for settings."""
    return digest({key: settings[key] for key in sorted(settings)})
