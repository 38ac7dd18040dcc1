"""conserver.pools: connections that are kept for the next one."""

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from conserver import StorageError, pools
from conserver.pools import Pool


class Line:
    """A connection in name."""

    def __init__(self) -> None:
        self.ended = False
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        if self.ended:
            raise OSError("gone")


class Lines:
    """A pool of them, and all that were made."""

    def __init__(self, most: int = 4, wait_secs: float = 10.0) -> None:
        self.made: list[Line] = []
        self.pool = Pool(self._connect, Line.close, self._broken, most=most, wait_secs=wait_secs)

    def _connect(self) -> Line:
        self.made.append(Line())
        return self.made[-1]

    def _broken(self, line: Line, error: Exception | None) -> bool:
        return isinstance(error, ConnectionError) if error else line.ended


def talk(line: Line) -> Line:
    if line.ended:
        raise ConnectionResetError("gone")
    return line


def refuse(line: Line) -> None:
    raise ValueError("no")


def test_a_connection_is_used_again() -> None:
    """One thread needs one, also after an error that is not the connection's fault."""
    lines = Lines()
    first = lines.pool.run(talk)
    with pytest.raises(ValueError, match="no"):
        lines.pool.run(refuse)

    assert lines.pool.run(talk) is first
    assert first.closed == 0


def test_threads_never_share_a_connection() -> None:
    """And there are never more than allowed."""
    lines, using = Lines(most=3), set[Line]()
    lock = threading.Lock()

    def use(line: Line) -> None:
        with lock:
            assert line not in using
            using.add(line)
        with lock:
            using.remove(line)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: lines.pool.run(use), range(200)))

    assert 1 <= len(lines.made) <= 3


def test_a_connection_that_was_kept_and_is_broken_is_replaced() -> None:
    """Whether it is seen before or in its use: the caller does not notice, and the others are closed as well."""
    lines = Lines()
    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: lines.pool.run(lambda line: both.wait(10)), range(2)))
    seen = iter([True])

    def breaks(line: Line) -> Line:
        if next(seen, False):
            raise ConnectionResetError("gone")
        return line

    assert lines.pool.run(breaks) is lines.made[2]
    assert [line.closed for line in lines.made] == [1, 1, 0]

    lines.made[2].ended = True
    assert lines.pool.run(talk) is lines.made[3]
    assert lines.made[2].closed == 1


def test_a_new_connection_that_breaks_is_an_error() -> None:
    """There is no second try with something that was new, and nothing is kept of it."""
    lines = Lines()

    def breaks(line: Line) -> None:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        lines.pool.run(breaks)

    assert [line.closed for line in lines.made] == [1]


def test_a_connection_that_was_idle_for_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something in between may have forgotten it."""
    lines = Lines()
    lines.pool.run(talk)
    monkeypatch.setattr(pools, "_MOST_IDLE_SECS", 0.0)

    assert lines.pool.run(talk) is lines.made[1]
    assert lines.made[0].closed == 1


def test_waiting_for_a_connection_ends() -> None:
    """The error says how many there are, and for how long they were in use."""
    lines = Lines(most=1, wait_secs=0.05)

    with pytest.raises(StorageError, match=r"all 1 connections have been in use for 0\.05 s"):
        lines.pool.run(lambda _: lines.pool.run(talk))

    assert lines.pool.run(talk) is lines.made[0]


def test_a_connection_that_cannot_be_made_leaves_room_for_the_next() -> None:
    """Failed attempts do not use the pool up."""
    lines, pool_of = Lines(most=1), []

    def fail() -> Line:
        pool_of.append(1)
        raise ConnectionRefusedError("nobody there")

    pool = Pool(fail, Line.close, lines._broken, most=1, wait_secs=0.05)

    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            pool.run(talk)
    assert len(pool_of) == 3


def test_what_is_kept_is_closed_with_the_pool() -> None:
    """Nothing is left open when its options are gone."""
    lines = Lines()
    line = lines.pool.run(talk)

    del lines.pool
    gc.collect()

    assert line.closed == 1


def test_a_child_leaves_the_connections_of_its_parent_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fork it makes its own, and does not end those of the parent."""
    lines = Lines()
    lines.pool.run(talk)
    monkeypatch.setattr(os, "getpid", lambda: 1)

    assert lines.pool.run(talk) is lines.made[1]
    assert lines.made[0].closed == 0
