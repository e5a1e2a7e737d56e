"""The course of a search: a rule of thumb, halving over candidates, then one setting at a time.

```
rule of thumb ─┬─ 4 facts ─ best third ─ 8 facts ─ best third ─ 16 facts
leads, draws  ─┘                                                   │ neighbours of the best
                                                                   ▼
                                     the best three on 40 facts: chance chose them on 16
                                                                   │
               the best and the rule of thumb on the facts that were held out
```

How many candidates there are follows from what the first trial took and the time that is given, so
a search that was killed goes on to the same result.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from errata.editors import get_editor
from errata.editors.fitting import Found, keep_found
from errata.errors import ConfigError, ErrataError
from errata.evaluation.scoring import Scorer
from errata.progress import Ticker
from errata.searching import budget
from errata.searching.facts import Deal
from errata.searching.result import Tried, Tuned, shown
from errata.searching.spaces import Space, base_of, blocks_tried, space_of
from errata.searching.trials import LEAST, Stats, Store, leaders, measure, name_of
from errata.store.provenance import now

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.progress import Step
    from errata.searching.facts import Trial

log = logging.getLogger(__name__)

ASKING, PREPARING = "asking", "preparing"
"""What takes time beside trials: which facts the model knows, and second moments."""

LATELY = 5
"""Measurements that tell how slow the machine is by now."""

CHUNK = 4
"""Facts that are edited side by side, and lost if the process is killed."""


class Course:
    """One search.

    Args:
        lm: The model.
        given: The editor as asked for, with the rule of thumb where nothing was given.
        fixed: Settings that were given.
        dealt: The facts.
        store: What was measured.
        seconds: Time that may be spent.
        progress: Called with (seconds spent, seconds given, what is being done), every second from
            a thread of its own: a trial may take minutes.
    """

    def __init__(
        self,
        lm: LM,
        given: Editor,
        fixed: Mapping[str, Any],
        dealt: Deal,
        store: Store,
        seconds: float,
        progress: Step | None,
    ) -> None:
        self.lm, self.given, self.fixed, self.deal = lm, given, fixed, dealt
        self.store, self.seconds, self.progress = store, seconds, progress
        self.earlier, self.started = store.seconds, time.perf_counter()
        self.pace, self.paces = 0.0, deque[float](maxlen=LATELY)
        self.doing = ""
        self.base = base_of(lm, given, fixed)
        self.rule = self.editor({})
        self.space: Space = space_of(self.rule, lm, list(fixed))
        self.scorer = Scorer(lm)
        self.facts = dealt.search[: budget.RUNGS[-1]]
        self.decided_on = len(self.facts)
        self.looked_at: dict[str, dict[str, Any]] = {}
        self._whole: dict[str, dict[str, Any]] = {}

    # ------------------------------------------------------------------ what everything stands on

    def editor(self, settings: Mapping[str, Any]) -> Editor:
        """Return the editor with the rule of thumb, some settings, and those that were given."""
        values = {**self.base, **settings, **self.fixed}
        return get_editor(self.given.name, values, model=self.lm.name)

    def spent(self) -> float:
        """Return the seconds that are gone, those of earlier runs included."""
        return self.earlier + time.perf_counter() - self.started

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.seconds - self.spent()

    @property
    def slower(self) -> float:
        """How much slower edits are than they were: others may use the machine, too.

        Some settings take longer than others, so no single measurement says that.
        """
        return max(1.0, statistics.median(self.paces)) if self.paces else 1.0

    def say(self, text: str) -> None:
        """Report what is being done."""
        self.doing = text
        if self.progress is not None:
            done = min(int(self.spent()), int(self.seconds) - 1)
            self.progress(max(done, 0), max(int(self.seconds), 1), text)

    def stats(
        self,
        settings: Mapping[str, Any],
        trials: Sequence[Trial],
        *,
        free: bool = False,
        reserve: float | None = None,
    ) -> Stats | None:
        """Measure a setting on some facts, from the store as far as it is there.

        Args:
            settings: What differs from the rule of thumb.
            trials: The facts.
            free: Whether free answers are asked for.
            reserve: Stop without a result where only so many seconds are left; None: never.
        """
        turn, kept = self.given.in_turns, self._kept_as(settings, trials)
        missing = [trial for trial in trials if self.store.get(kept, trial, free) is None]
        if turn and missing:
            missing = list(trials)  # made together
        editor = None
        size = len(trials) if turn else CHUNK
        for start in range(0, len(missing), size):
            if reserve is not None and self.left() < self.slower * reserve:
                return None
            part = missing[start : start + size]
            editor = editor or self.editor(settings)
            try:
                outcomes = measure(self.lm, editor, part, free, self.scorer)
            except ErrataError as error:
                log.warning("%s: %s; these settings are left out", shown(settings), error.message)
                return None
            self.store.add(kept, part, outcomes)
            if self.pace:
                self.paces.append(outcomes[0].seconds / self.pace)
        found = [self.store.get(kept, trial, free) for trial in trials]
        return Stats.of([one for one in found if one is not None])

    def _kept_as(self, settings: Mapping[str, Any], trials: Sequence[Trial]) -> Mapping[str, Any]:
        """Return what outcomes are kept under: made in one turn, its size is a setting too."""
        return {**settings, "edits of a turn": len(trials)} if self.given.in_turns else settings

    # ------------------------------------------------------------------ the course of it

    def result(self, key: str, seed: int) -> Tuned:
        """Run the search to its end."""
        self.say("preparing")
        clock = Ticker(lambda: self.say(self.doing))
        try:
            return self._result(key, seed)
        finally:
            clock.stop()

    def _result(self, key: str, seed: int) -> Tuned:
        held, best, tried = self.run(seed)
        self.say("held-out facts, rule of thumb")
        rule = self.stats({}, held, free=True)
        self.say("held-out facts, the chosen settings")
        chosen = self.stats(best, held, free=True) if best else rule
        if rule is None or chosen is None:
            raise ConfigError(
                f"{self.given.name} cannot be measured on {self.lm.name} (see the warnings)"
            )
        if chosen.value < rule.value or chosen.written < LEAST * rule.written:
            log.warning(
                "on held-out facts the rule of thumb does better than what the search chose; it "
                "stays"
            )
            best, chosen = {}, rule
        tuned = Tuned(
            self.given.name, self.lm.name, self.whole(best), chosen, rule, self.whole({}), tried,
            len(self.looked_at), self.deal, self.spent(), key[:8],
        )  # fmt: skip
        about = self.decided_on, tuned.id, now(), tuned.as_dict()
        found = Found(self.given.name, dict(tuned.settings), *about)
        keep_found(self.lm, found)
        return tuned

    def run(self, seed: int) -> tuple[tuple[Trial, ...], dict[str, Any], tuple[Tried, ...]]:
        """Return the held-out facts that are asked, the best settings, and what was measured."""
        self._prepare()
        self.say("the rule of thumb")
        base = self.stats({}, self.facts[: budget.RUNGS[0]])
        if base is None:
            raise ConfigError(
                f"{self.given.name} cannot edit {self.lm.name} with the rule of thumb (see the "
                "warnings)"
            )
        self._look({})
        candidates, plan = self._gather(seed, base.seconds)
        held, deciding = self.deal.held[: plan.held], self.deal.search[: plan.last]
        last = 2 * len(held) * self.pace
        reserve = last + plan.deciding * self.pace
        left = self._halve(candidates, reserve)
        self.say("the rule of thumb")
        self.stats({}, self.facts, reserve=reserve)  # for the table
        best = self._refine(left[0], reserve) if left else {}
        tried = self._tried()
        return held, self._decide(best, tried, deciding, last), tried

    def _prepare(self) -> None:
        """Count the second moments of all blocks that may be tried, in one pass."""
        config: Any = self.rule.config
        started = time.perf_counter()
        if "moments_text" in type(config).model_fields:
            from errata.locate.moments import get_moments

            blocks = blocks_tried(self.space, self.rule, self.lm)
            if not any(self.lm.spec.routed(block) for block in blocks):
                self.say(f"preparing, second moments of {len(blocks)} blocks")
                get_moments(self.lm, blocks, config)
        self.rule.prepare(self.lm)
        if PREPARING not in self.store.times:
            self.store.spend(time.perf_counter() - started, PREPARING)
        self.budget = budget.Budget(
            self.seconds, self.store.times.get(ASKING, 0.0) + self.store.times[PREPARING],
            len(self.deal.search), len(self.deal.held), self.given.in_turns,
        )  # fmt: skip

    def _gather(self, seed: int, pace: float) -> tuple[list[dict[str, Any]], budget.Plan]:
        """Return as many candidates as there is time for at the pace seen, and held-out facts.

        They are measured on the first facts as they come, for the first trial of all may be slow.

        Raises:
            ConfigError: If there is no time for any other candidate.
        """
        self.pace = pace
        paces: list[float] = []
        self.budget.check(pace)
        plan = self.budget.plan(pace)
        first = self.facts[: budget.RUNGS[0]]
        candidates: list[dict[str, Any]] = []
        seen: list[dict[str, Any]] = []
        for made in self.space.candidates(seed):
            if self.whole(made) in seen:
                continue  # the same, said otherwise
            seen.append(self.whole(made))
            candidates.append(made)
            self.say(f"{len(first)} facts, candidate {len(candidates)} of {plan.candidates}")
            stats = self.stats(made, first, reserve=2 * plan.held * self.pace)
            if made and stats is not None:
                paces.append(stats.seconds)
                self.pace = statistics.median(paces)
                plan = self.budget.plan(self.pace)
            if len(candidates) >= plan.candidates:
                break
        return candidates, plan

    def _halve(self, candidates: Sequence[dict[str, Any]], reserve: float) -> list[dict[str, Any]]:
        """Return the candidates that are left on all facts of the search, the best first."""
        now_in = list(candidates)
        steps = budget.steps_to(len(self.facts))
        best: list[dict[str, Any]] = [{}]
        for step, rung in enumerate(steps):
            measured: list[tuple[dict[str, Any], Stats]] = []
            for number, settings in enumerate(now_in):
                self.say(f"{rung} facts, candidate {number + 1} of {len(now_in)}")
                stats = self.stats(settings, self.facts[:rung], reserve=reserve)
                self._look(settings)
                if stats is not None:
                    measured.append((settings, stats))
            if not measured:
                break
            best = leaders(measured)
            now_in = best[: budget.kept(len(now_in))] if step + 1 < len(steps) else best
        return best

    def _refine(self, best: dict[str, Any], reserve: float) -> dict[str, Any]:
        """Change one setting at a time as long as it helps and time is left."""
        facts = self.facts
        now_at = self.stats(best, facts, reserve=reserve)
        if now_at is None:
            return best
        again = True
        while again and now_at.value < _PERFECT:
            again = False
            for settings in list(self.space.beside(best, self.whole({}))):
                if self._seen(settings):
                    continue
                self.say(f"beside the best: {shown(settings)}")
                small = self.stats(settings, facts[: budget.RUNGS[1]], reserve=reserve)
                if small is None and self.left() < self.slower * reserve:
                    return best
                self._look(settings)
                same = self.stats(best, facts[: budget.RUNGS[1]])
                if small is None or same is None or small.value < same.value - 0.02:
                    continue
                full = self.stats(settings, facts, reserve=reserve)
                if full is not None and full.value > now_at.value + 1e-9:
                    best, now_at, again = settings, full, True
                    break
        return best

    def _decide(
        self,
        best: dict[str, Any],
        tried: Sequence[Tried],
        facts: Sequence[Trial],
        reserve: float,
    ) -> dict[str, Any]:
        """Return the best of the few that lead, on more facts than they were chosen by."""
        if len(facts) <= len(self.facts):
            return best
        found: list[tuple[dict[str, Any], Stats]] = []
        finalists = leaders([(dict(one.settings), one.stats) for one in tried])[: budget.FINALISTS]
        for settings in finalists:
            self.say(f"{len(facts)} facts: {shown(settings)}")
            stats = self.stats(settings, facts, reserve=reserve)
            if stats is not None:
                found.append((settings, stats))
        if not found:
            return best
        self.decided_on = len(facts)
        return leaders(found)[0]

    def _look(self, settings: Mapping[str, Any]) -> None:
        self.looked_at.setdefault(name_of(settings), dict(settings))

    def _seen(self, settings: Mapping[str, Any]) -> bool:
        """Whether the same was looked at, maybe said otherwise."""
        mine = self.whole(settings)
        return any(self.whole(other) == mine for other in self.looked_at.values())

    def _tried(self) -> tuple[Tried, ...]:
        """Return what was measured on all facts of the search, the best first.

        Where the time sufficed for none of them, on as many as there are measurements of.
        """
        for count in reversed(budget.steps_to(len(self.facts))):
            if found := self._tried_on(self.facts[:count]):
                return found
        return ()

    def _tried_on(self, facts: Sequence[Trial]) -> tuple[Tried, ...]:
        rows = []
        for settings in self.looked_at.values():
            kept = self._kept_as(settings, facts)
            if all(self.store.get(kept, trial, False) for trial in facts):
                stats = self.stats(settings, facts)
                if stats is not None:
                    rows.append((settings, stats))
        rows.sort(key=lambda row: -row[1].value)
        return tuple(
            Tried(settings, stats, not any(other.dominates(stats) for _, other in rows))
            for settings, stats in rows
        )

    def whole(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of all settings that are searched, the blocks as numbers."""
        name = name_of(settings)
        if name not in self._whole:
            self._whole[name] = self._made_whole(settings)
        return self._whole[name]

    def _made_whole(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        editor: Any = self.editor(settings)
        names = {name for _, options in self.space.dimensions for o in options for name in o}
        names |= self.base.keys()  # what was found stands in the place of the rule of thumb
        values = {name: getattr(editor.config, name) for name in sorted(names)}
        blocks = list(editor.edited_layers(self.lm) or ())
        if "layers" in values:
            values["layers"] = tuple(blocks)
        if "layer" in values:
            values["layer"] = blocks[0]
        return values


_PERFECT = 1.0 + 0.25 + 0.25 + 0.1 - 0.02
"""Beyond this there is nothing left to gain."""
