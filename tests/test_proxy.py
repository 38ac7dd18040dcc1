"""The proxy of the tests does to a connection what it says, or the tests that use it prove nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, TimeoutError
from redis.retry import Retry

from conserver.embedded import temporary_server
from tests.proxy import Proxy, proxied
from tests.waiting import wait_until


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    with proxied(server_url) as proxy:
        yield proxy


def client(proxy: Proxy, patience_secs: float = 10.0) -> Redis:
    """A client that sends each command once, to the proxy."""
    return Redis.from_url(proxy.url, socket_timeout=patience_secs, retry=Retry(NoBackoff(), 0))


def test_it_brings_everything_both_ways(proxy: Proxy) -> None:
    """Large values too, in many pieces."""
    with client(proxy) as one:
        one.set("key", "x" * 3_000_000)

        assert one.get("key") == b"x" * 3_000_000


def test_a_reset_is_an_rst_and_comes_as_often_as_asked(redis: Redis, proxy: Proxy) -> None:
    """The client hears ECONNRESET; with a chance of 0 nothing is reset."""
    with client(proxy) as one:
        with proxy.resetting(1.0, seed=1), pytest.raises(ConnectionError, match="reset by peer"):
            one.ping()
        refused = 0
        with proxy.resetting(0.2, seed=1):
            for _ in range(100):
                try:
                    one.ping()
                except ConnectionError:
                    refused += 1
        before = proxy.resets

        assert 10 < refused < 90
        assert all(one.ping() for _ in range(20))
        assert proxy.resets == before


def test_latency_is_on_both_ways(proxy: Proxy) -> None:
    """A request and its reply take twice the delay."""
    with client(proxy) as one:
        one.ping()
        proxy.delay_secs = 0.1
        began = time.monotonic()
        one.ping()

        assert time.monotonic() - began >= 0.2


def test_a_blackhole_answers_nothing_and_forgets_what_it_got(redis: Redis, proxy: Proxy) -> None:
    """Old connections and new ones are accepted and silent; afterwards new ones work, and nothing came through."""
    with client(proxy, 0.2) as old, client(proxy, 0.2) as new:
        old.ping()
        with proxy.blackhole():
            for each in (old, new):
                with pytest.raises(TimeoutError):
                    each.set("key", "value")

        assert old.ping()
        assert new.ping()
        assert redis.get("key") is None


def test_what_is_held_arrives_after_its_sender_has_given_up(redis: Redis, proxy: Proxy) -> None:
    """As packets do that a router kept for a while."""
    with client(proxy, 0.2) as one:
        one.ping()
        with proxy.holding():
            with pytest.raises(TimeoutError):
                one.rpush("list", "late")
            one.close()
            before = redis.llen("list")

        assert before == 0
        wait_until(lambda: redis.lrange("list", 0, -1) == [b"late"], 10)


def test_a_cut_ends_what_is_there_and_lets_new_ones_in(redis: Redis, proxy: Proxy) -> None:
    """Every connection, at once."""
    with client(proxy) as one:
        before = one.client_id()
        proxy.cut()
        wait_until(lambda: before not in {int(each["id"]) for each in redis.client_list()}, 10)

        assert one.client_id() != before


def test_it_can_be_pointed_at_another_server(redis: Redis, proxy: Proxy) -> None:
    """New connections go there; those that are open stay where they are."""
    redis.set("key", "old")
    with temporary_server() as url, client(proxy) as one, client(proxy) as two:
        one.ping()
        proxy.point_at(url)

        assert one.get("key") == b"old"
        assert two.get("key") is None
