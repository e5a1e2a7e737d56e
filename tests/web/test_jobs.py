"""Work in a thread: progress, time left, waiting for others, and its end."""

from __future__ import annotations

import threading

import pytest

from errata.errors import EditError, ErrataError
from errata.progress import tracked, watched
from errata.web.jobs import Job
from tests.web.conftest import Clock


def test_a_result_and_the_progress_of_the_library_on_the_way():
    seen, clock = [], Clock()

    def work(job: Job) -> str:
        job.stage("editing")
        seen.append(job.progress)
        for _ in tracked(range(4), "tuning, step"):
            seen.append(job.progress)
            clock.now += 2.0
        with watched("moments") as step:
            step(1, 2)
            seen.append(job.progress)
        return "made"

    job = Job(work, threading.Lock(), "begins", clock=clock).start()
    assert job.wait(10)
    assert (job.result, job.error, job.stopped) == ("made", None, False)
    assert [(one.what, one.done, one.total) for one in seen] == [
        ("editing", 0, 0), ("editing", 0, 0), ("tuning, step", 1, 4), ("tuning, step", 2, 4),
        ("tuning, step", 3, 4), ("moments", 1, 2),
    ]  # fmt: skip
    assert seen[3].left is None  # one pace has not been seen twice
    assert seen[4].left == pytest.approx(2.0)
    assert [one.seconds for one in seen] == [0, 0, 2, 4, 6, 8]
    assert not any(one.waits for one in seen)


def test_what_is_shown_of_one_thread_is_not_shown_of_another():
    inside, go = threading.Event(), threading.Event()

    def work(job: Job) -> str:
        with watched("mine") as step:
            step(1, 9)
            inside.set()
            assert go.wait(10)
        return job.progress.what

    job = Job(work, threading.Lock(), "begins").start()
    assert inside.wait(10)
    for _ in tracked(range(3), "another"):
        assert job.progress.what == "mine"
    go.set()
    assert job.wait(10)
    assert job.result == "mine"


@pytest.mark.parametrize("how", ["cancelled", "given up"])
def test_stopped_at_the_next_step_and_nothing_swallows_it(how):
    begun, given_up = threading.Event(), threading.Event()

    def work(job: Job) -> None:
        step = 0
        while True:
            step += 1
            try:
                job.step(step, 0)
                begun.set()
            except Exception:  # as a library may do
                continue

    lock = threading.Lock()
    job = Job(work, lock, "works", given_up.is_set).start()
    assert begun.wait(10)
    job.cancel() if how == "cancelled" else given_up.set()
    assert job.wait(10)
    assert job.stopped
    assert job.error is None
    assert not lock.locked()


def test_one_works_and_the_other_waits_and_may_leave_off():
    lock, go = threading.Lock(), threading.Event()
    first = Job(lambda job: go.wait(10), lock, "first").start()
    while not lock.locked():
        pass
    second = Job(lambda job: "second", lock, "second").start()
    third = Job(lambda job: "third", lock, "third").start()
    assert second.progress.waits
    second.cancel()
    assert second.wait(10)
    assert second.stopped
    assert second.result is None
    go.set()
    assert third.wait(10)
    assert (first.running, third.result) == (False, "third")


def test_mistakes_and_bugs_and_the_system_are_sentences(caplog):
    def ended(error: BaseException) -> ErrataError:
        def work(job: Job) -> None:
            raise error

        job = Job(work, threading.Lock(), "works").start()
        assert job.wait(10)
        assert job.error is not None
        return job.error

    mistake = EditError("the subject is missing", "Give it.")
    assert ended(mistake) is mistake
    assert ended(MemoryError()).message == "memory ran out"
    assert "cannot use /x" in ended(FileNotFoundError(2, "No such file", "/x")).message
    assert not caplog.records
    bug = ended(KeyError("q" * 1000))
    assert "KeyError" in bug.message
    assert len(bug.message) < 300
    assert caplog.records[0].exc_info is not None  # for whoever looks at the terminal
