"""Inputs in batches, each in a fork of a warm process; some of them again, alone and cold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from random import Random

from tests.robustness import fuzz, warm
from tests.robustness.kinds import kind_of
from tests.robustness.materials import Materials

ADDRESSES = 8 << 30
"""Bytes of addresses that a batch may take beyond the warm process: a broken file that asks for
more is told so, and that is a fault (`fuzz.MEMORY`)."""


def in_forks(made: Materials, numbers: Iterable[int], seed: int) -> Iterator[fuzz.Tried]:
    """Try inputs, a hundred per fork; an input that ends its fork is a fault, and the rest go on.

    Args:
        made: What is broken.
        numbers: Numbers of the inputs.
        seed: Of all of them.
    """
    todo = iter(numbers)
    rest: list[int] = []
    while batch := [*rest, *islice(todo, fuzz.BATCH - len(rest))]:
        done = 0
        for number, found, ended in warm.results(
            lambda number: asdict(fuzz.one(made, seed, number)),
            batch, 3 * fuzz.SECONDS, ADDRESSES,
        ):  # fmt: skip
            done += 1
            if ended is None:
                yield fuzz.Tried(**found)
            else:
                kind = kind_of(Random(f"{seed}/{number}"))
                yield fuzz.Tried(number, kind, "died", ended)
        rest = batch[done:]


def campaign(
    made: Materials,
    numbers: Iterable[int],
    seed: int,
    told: Callable[[fuzz.Tried, tuple[str, ...]], None],
) -> None:
    """Try inputs and tell what came of each.

    Args:
        made: What is broken.
        numbers: Numbers of the inputs.
        seed: Of all of them.
        told: Called with every input, and how it was tried again: `alone`, `cold`.
    """
    for tried in in_forks(made, numbers, seed):
        again = {} if tried.fault else dict(_again(made, seed, tried))
        others = [f"{code} {how}" for how, code in again.items() if code != tried.outcome]
        if others:
            fault = f"ends with {tried.outcome} among others and with {', '.join(others)}"
            tried = replace(tried, fault=fault)
        told(tried, tuple(again))


def _again(made: Materials, seed: int, tried: fuzz.Tried) -> Iterator[tuple[str, str]]:
    """Try an input once more, if it is its turn; yield how, and its outcome."""
    if tried.number % fuzz.ALONE == fuzz.ALONE - 1:
        for alone in in_forks(made, [tried.number], seed):
            yield "alone", alone.outcome
    if tried.number % fuzz.COLD == fuzz.COLD - 1:
        code = fuzz.cold(made, seed, tried.number)
        if code is not None:
            yield "cold", code
