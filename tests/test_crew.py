"""conserver.crew: the threads that run chains, as many as are of use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conserver.crew import Crew
from tests.waiting import wait_until


class Job:
    """What a crew is given: it notes its thread, and ends when it may."""

    def __init__(self, *, waits: bool = False) -> None:
        self.may_end = threading.Event()
        if not waits:
            self.may_end.set()
        self.thread: threading.Thread | None = None
        self.abandoned = False

    def work(self) -> None:
        self.thread = threading.current_thread()
        self.may_end.wait(30)


class Shift:
    """A crew, and what it tells."""

    def __init__(self, threads: int) -> None:
        self.told = threading.Semaphore(0)
        self.crew = Crew(threads, Job.work, self.told.release)  # type: ignore[arg-type]
        self.jobs: list[Job] = []

    def start(self, *jobs: Job) -> list[Job]:
        self.jobs += jobs
        self.crew.start(jobs)  # type: ignore[arg-type]
        return list(jobs)

    def look_until(self, condition: Callable[[], Any]) -> None:
        """Do what a worker does while it waits."""

        def looks() -> Any:
            self.crew.look()
            return condition()

        wait_until(looks)

    def end(self) -> None:
        for job in self.jobs:
            job.may_end.set()


@pytest.fixture
def shift() -> Iterator[Callable[[int], Shift]]:
    """A crew of so many threads, until the test is over."""
    made: list[Shift] = []

    def shift(threads: int) -> Shift:
        made.append(Shift(threads))
        return made[-1]

    yield shift
    for each in made:
        each.end()


def test_each_run_ends_once(shift: Callable[[int], Shift]) -> None:
    """Batch after batch, with more threads than are needed."""
    on = shift(8)
    ended: list[Any] = []
    for _ in range(50):
        on.start(*[Job() for _ in range(8)])
        on.look_until(lambda: ended.extend(on.crew.ended()) or len(ended) == len(on.jobs))

    assert len(set(map(id, ended))) == len(on.jobs)


def test_a_run_that_hangs_keeps_no_other_from_a_thread(shift: Callable[[int], Shift]) -> None:
    """All that wait are taken, though one thread would do if they ended."""
    on = shift(16)

    jobs = on.start(*[Job(waits=True) for _ in range(16)])
    on.look_until(lambda: all(job.thread for job in jobs))

    assert len({job.thread for job in jobs}) == 16


def test_runs_that_end_at_once_need_few_threads(shift: Callable[[int], Shift]) -> None:
    """Nobody else is woken as long as somebody takes the next one."""
    on = shift(16)

    jobs = on.start(*[Job() for _ in range(16)])
    # Without a look: only a stall that somebody sees wakes more.
    wait_until(lambda: all(job.thread for job in jobs))

    assert len({job.thread for job in jobs}) == 1


def test_what_has_ended_is_told_when_nobody_has_more_to_do(shift: Callable[[int], Shift]) -> None:
    """Once for the batch, so that the protocol thread can sleep until then."""
    on = shift(4)

    on.start(*[Job() for _ in range(4)])

    assert on.told.acquire(timeout=10)
    assert len(on.crew.ended()) == 4
    assert not on.told.acquire(blocking=False)


def test_what_has_ended_does_not_wait_for_one_that_hangs(shift: Callable[[int], Shift]) -> None:
    """Nobody tells of it, so whoever waits is to ask again soon."""
    on = shift(1)
    first, second, third = on.start(Job(), Job(waits=True), Job())
    wait_until(lambda: second.thread)
    ended: list[Any] = []

    assert on.crew.patience_secs < 0.1
    on.look_until(lambda: ended.extend(on.crew.ended()) or ended)
    assert ended == [first]
    assert third.thread is None


def test_the_thread_of_an_abandoned_run_ends_when_it_comes_back(shift: Callable[[int], Shift]) -> None:
    """Somebody else has taken its place, and the run is told as any other."""
    on = shift(1)
    (lost,) = on.start(Job(waits=True))
    wait_until(lambda: lost.thread)
    lost.abandoned = True
    on.crew.add()
    (next_one,) = on.start(Job())
    on.look_until(lambda: next_one.thread)
    lost.may_end.set()
    assert lost.thread is not None
    lost.thread.join(10)

    assert not lost.thread.is_alive()
    assert next_one.thread is not lost.thread
    ended: list[Any] = []
    on.look_until(lambda: ended.extend(on.crew.ended()) or len(ended) == 2)
