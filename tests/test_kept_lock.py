"""conserver.kept_lock: one holder, who knows when it is none any more."""

from __future__ import annotations

from itertools import pairwise

import pytest
from redis import Redis

from conserver import connection
from conserver.kept_lock import kept_lock
from tests.waiting import wait_until

KEY = "conserver:{test}:lock"


def test_it_is_kept_while_it_is_held_and_gone_afterwards(redis: Redis, server_url: str) -> None:
    """For longer than its lease."""
    with kept_lock(connection.once(server_url, "test"), KEY, 0.3) as lost:
        assert lost is not None
        renewed = []

        def seen() -> int:
            renewed.append(redis.pttl(KEY))
            return sum(later > before for before, later in pairwise(renewed)) >= 4

        wait_until(seen, 30)
        assert not lost.is_set()

    assert not redis.exists(KEY)


@pytest.mark.parametrize("theirs", ["another token", "no string"])
def test_who_has_lost_it_is_told_and_takes_nothing_away(redis: Redis, server_url: str, theirs: str) -> None:
    """Whatever stands there now."""
    with kept_lock(connection.once(server_url, "test"), KEY, 0.3) as lost:
        assert lost is not None
        redis.delete(KEY)
        if theirs == "no string":
            redis.hset(KEY, "a", "b")
        else:
            redis.set(KEY, theirs)
        assert lost.wait(30)

    assert redis.exists(KEY)


def test_a_full_server_gives_it(redis: Redis, server_url: str) -> None:
    """What is done under it may be what makes room."""
    redis.config_set("maxmemory", "1")
    try:
        with kept_lock(connection.once(server_url, "test"), KEY, 30.0) as lost:
            ttl = redis.pttl(KEY)
            with kept_lock(connection.once(server_url, "test"), KEY, 30.0) as second:
                pass
    finally:
        redis.config_set("maxmemory", "0")

    assert lost is not None
    assert second is None
    assert 0 < ttl <= 30_000
