"""conserver.watch: an idle worker is told of a push at once, without writing and without polling."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

import pytest
from redis import Redis

from conserver import watch as watch_module
from conserver.watch import Watch
from tests.proxy import proxied
from tests.server_moods import denied
from tests.waiting import wait_until

KEYS = {"in": "in", "conserver:{in}:returned": "in", "other": "other"}
Woken = SimpleQueue[set[str]]


@pytest.fixture
def woken() -> Woken:
    return SimpleQueue()


@pytest.fixture
def watching(redis: Redis, server_url: str, woken: Woken, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watch]:
    """A watch that has read all keys by now and would look by itself in an hour."""
    monkeypatch.setattr(watch_module, "LOOK_AGAIN_SECS", 3600.0)

    def made(keys: dict[str, str] = KEYS, url: str = server_url) -> Watch:
        watch = Watch(url, "test", lambda lists: woken.put(set(lists)))
        before = llens(redis)
        watch.arm(keys)
        wait_until(lambda: llens(redis) >= before + len(keys))
        return watch

    return made


def llens(redis: Redis) -> int:
    return int(redis.info("commandstats").get("cmdstat_llen", {"calls": 0})["calls"])


def test_a_push_by_any_client_wakes_with_its_list(redis: Redis, watching: Callable[..., Watch], woken: Woken) -> None:
    """Not only with the key, and long before anybody would look again."""
    watch = watching()

    redis.rpush("other", "a")
    first = woken.get(timeout=5)
    redis.delete("other")
    watch.arm({"conserver:{in}:returned": "in"})
    redis.rpush("conserver:{in}:returned", "b")
    second = woken.get(timeout=5)

    assert (first, second) == ({"other"}, {"in"})


def test_what_is_there_already_wakes_at_once(redis: Redis, server_url: str, woken: Woken) -> None:
    """Something was pushed between the last claim and the arming."""
    redis.rpush("in", "a")

    Watch(server_url, "test", lambda lists: woken.put(set(lists))).arm(KEYS)

    assert woken.get(timeout=5) == {"in"}


def test_it_wakes_once_each_time_it_is_armed(redis: Redis, watching: Callable[..., Watch], woken: Woken) -> None:
    """A busy worker is left in peace."""
    watch = watching()
    redis.rpush("in", "a")
    woken.get(timeout=5)
    redis.rpush("in", "b")

    with pytest.raises(Empty):
        woken.get(timeout=0.3)
    watch.arm(KEYS)

    assert woken.get(timeout=5) == {"in"}


def test_other_keys_wake_nobody(redis: Redis, watching: Callable[..., Watch], woken: Woken) -> None:
    """However busy the server is."""
    watching()

    redis.rpush("elsewhere", "a")
    redis.set("vcon:x", "y")

    with pytest.raises(Empty):
        woken.get(timeout=0.3)


def test_lists_that_come_later_are_watched_too(redis: Redis, watching: Callable[..., Watch], woken: Woken) -> None:
    """The worker arms again while the watch waits."""
    watch = watching({"in": "in"})

    before = llens(redis)
    watch.arm({"in": "in", "new": "new"})
    wait_until(lambda: llens(redis) > before)
    redis.rpush("new", "a")

    assert woken.get(timeout=5) == {"new"}


def test_an_empty_server_wakes_rather_than_sleeps(redis: Redis, watching: Callable[..., Watch], woken: Woken) -> None:
    """FLUSHALL says that everything has changed, not what."""
    watching()

    redis.flushall()

    assert woken.get(timeout=5) == {"in", "other"}


def test_a_server_without_tracking_is_asked_again_and_again(
    redis: Redis, watching: Callable[..., Watch], woken: Woken
) -> None:
    """As behind a proxy that does not know the command."""
    with denied(redis, "-client|tracking"):
        watching()
        redis.rpush("in", "a")

        assert woken.get(timeout=5) == {"in"}


def test_a_cut_connection_wakes_and_is_opened_again(
    redis: Redis, server_url: str, watching: Callable[..., Watch], woken: Woken
) -> None:
    """What was pushed meanwhile is not slept over, and the next watch tracks again."""
    with proxied(server_url) as proxy:
        watch = watching(url=proxy.url)
        redis.client_kill_filter(_type="normal", skipme=True)
        after_the_cut = woken.get(timeout=5)
        before = llens(redis)
        watch.arm(KEYS)
        wait_until(lambda: llens(redis) > before)

        redis.rpush("in", "a")

        assert after_the_cut == {"in", "other"}
        assert woken.get(timeout=5) == {"in"}


def test_waiting_writes_nothing(redis: Redis, watching: Callable[..., Watch]) -> None:
    """Nor does it ask: what the server counts while nothing happens is this test alone."""
    watching()
    writes, calls = redis.info("persistence")["rdb_changes_since_last_save"], llens(redis)
    until = time.monotonic() + 0.6

    wait_until(lambda: time.monotonic() > until)

    assert redis.info("persistence")["rdb_changes_since_last_save"] == writes
    assert llens(redis) == calls


def test_now_and_then_it_looks_in_any_case(
    redis: Redis, server_url: str, woken: Woken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message of the server can be lost where a vCon may not."""
    monkeypatch.setattr(watch_module, "LOOK_AGAIN_SECS", 0.1)

    Watch(server_url, "test", lambda lists: woken.put(set(lists))).arm(KEYS)

    assert woken.get(timeout=5) == {"in", "other"}
