"""conserver.writes: whether the server does what runs ask of it."""

from __future__ import annotations

import pytest
from redis import Redis

from conserver.queue import Queue
from conserver.writes import MOST_UNEXPLAINED, Writes
from tests.server_moods import denied


@pytest.fixture
def writes(server_url: str) -> Writes:
    return Writes(Queue(server_url))


def test_a_server_that_has_failed_nothing_is_not_asked(writes: Writes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hot path costs nothing."""
    asked: list[None] = []
    monkeypatch.setattr(Queue, "probe", lambda self: asked.append(None))

    assert all(writes.accepted() for _ in range(100))
    assert asked == []


def test_a_server_that_refuses_writes_is_to_blame_until_it_takes_one(redis: Redis, writes: Writes) -> None:
    """Nothing is claimed meanwhile, and it is not asked all the time."""
    with denied(redis, "-set"):
        assert writes.to_blame()
        assert not writes.accepted()
    writes._ask_again = 0.0

    assert writes.accepted()


def test_what_the_server_fails_though_it_works_is_not_its_fault_at_first(redis: Redis, writes: Writes) -> None:
    """One vCon may ask for the impossible; ten in a row do not."""
    assert [writes.to_blame() for _ in range(MOST_UNEXPLAINED)] == [False] * (MOST_UNEXPLAINED - 1) + [True]
    assert writes.doubtful

    writes.went_well()

    assert not writes.doubtful
    assert not writes.to_blame()
