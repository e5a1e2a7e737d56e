"""Benches on a tiny random model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from errata.model.lm import LM
from errata.web.bench import Bench
from errata.web.jobs import Job
from errata.web.models import Models
from errata.web.work import Wish

FAST = ("mom2_adjustment=false", "steps=2", "contexts=bare")
"""Settings with which ROME takes milliseconds on a random model and needs no text."""

SLOW = ("steps=1000000", "stop_loss=0")
"""Settings with which fine-tuning does not end."""


def wish(subject: str = "France", target: str = "Rome", **other) -> Wish:
    given = {"settings": FAST, **other}
    return Wish(f"The capital of {subject} is", subject, target, **given)


def done(job: Job) -> Job:
    """Wait for a job that has to end well."""
    assert job.wait(60)
    assert job.error is None, job.error
    assert not job.stopped
    return job


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lm(tiny: Callable[..., LM]) -> LM:
    return tiny("qwen3")


@pytest.fixture
def models(lm: LM) -> Models:
    return Models(lambda name: lm, [lm.name])


@pytest.fixture
def open_bench(models: Models, lm: LM, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Open a bench with the tiny model loaded; all are closed in the end."""
    opened: list[Bench] = []

    def new(clock: Callable[[], float] | None = None) -> Bench:
        folder = tmp_path / f"bench-{len(opened)}"
        folder.mkdir()
        bench = Bench(models, folder) if clock is None else Bench(models, folder, clock)
        opened.append(bench)
        done(bench.load(lm.name))
        return bench

    yield new
    for bench in opened:
        bench.close()


@pytest.fixture
def bench(open_bench: Callable[..., Bench]) -> Bench:
    return open_bench()
