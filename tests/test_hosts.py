"""conserver.hosts: what hosts say of themselves, and the end of one that is gone."""

from __future__ import annotations

import json

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from conserver.hosts import HostLives, Hosts, Recovered
from conserver.lease import HOSTS, host_key
from conserver.queue import MAX_RETURNS, Queue
from conserver.session import Session

A, B, C = (f"018f3c5e-0000-8000-8000-00000000000{n}" for n in "abc")


@pytest.fixture
def hosts(server_url: str) -> Hosts:
    return Hosts(server_url)


def hold(redis: Redis, url: str, worker: str, name: str, *entries: str) -> None:
    redis.rpush(name, *entries)
    session = Session(url, worker)
    session.join([name])
    assert len(session.trip([], {name: len(entries)}).claims) == len(entries)


def test_hosts_are_listed_with_what_they_say(redis: Redis, hosts: Hosts) -> None:
    """Also one whose lease has lapsed, and one that speaks another language."""
    redis.sadd(HOSTS, "b", "a", "odd", "older")
    redis.set(host_key("b"), json.dumps({"pid": 7}))
    redis.set(host_key("odd"), b"\xff")
    redis.set(host_key("older"), "[1]")

    assert hosts.all() == [
        {"host": "a", "alive": False},
        {"host": "b", "alive": True, "pid": 7},
        {"host": "odd", "alive": True},
        {"host": "older", "alive": True},
    ]


def test_a_server_without_hosts_has_none(hosts: Hosts) -> None:
    """Nobody has ever run there."""
    assert hosts.all() == []
    assert hosts.forget("me") is None


def test_a_host_that_is_alive_is_not_forgotten(redis: Redis, hosts: Hosts, server_url: str) -> None:
    """Its workers keep what they hold."""
    redis.sadd(HOSTS, "me")
    redis.set(host_key("me"), "{}")
    hold(redis, server_url, "me:1", "in", A)

    with pytest.raises(HostLives, match="host 'me' is alive: stop it, or wait until its lease has lapsed"):
        hosts.forget("me")

    assert redis.hlen("conserver:{in}:held:me:1") == 1
    assert redis.smembers(HOSTS) == {b"me"}


def test_what_a_forgotten_host_held_goes_back(redis: Redis, hosts: Hosts, server_url: str) -> None:
    """On every list, of all its workers and of nobody else's; what came back too often is dead. It can be repeated."""
    redis.sadd(HOSTS, "me", "me:too")
    hold(redis, server_url, "me:1", "in", A)
    hold(redis, server_url, "me:2", "other", B)
    hold(redis, server_url, "me:too:1", "in", C)
    redis.hset("conserver:{in}:held:me:1", "9", b"1 0 %d 0 0\nworn out" % MAX_RETURNS)

    forgotten = [hosts.forget("me"), hosts.forget("me")]

    assert forgotten == [Recovered(returned=2, dead=1), None]
    assert redis.lrange("conserver:{in}:returned", 0, -1) == [b"1 0 1 0 0\n" + A.encode()]
    assert redis.lrange("conserver:{other}:returned", 0, -1) == [b"1 0 1 0 0\n" + B.encode()]
    ((entry, why),) = Queue(server_url).dead("in")
    assert (entry, why["error"], why["worker"]) == (b"worn out", f"it came back more than {MAX_RETURNS} times", "me:1")
    assert redis.hlen("conserver:{in}:held:me:too:1") == 1
    assert redis.smembers(HOSTS) == {b"me:too"}


def test_a_host_that_nobody_lists_is_found_by_its_workers(redis: Redis, hosts: Hosts, server_url: str) -> None:
    """Its name may be gone while it is a member of lists still."""
    hold(redis, server_url, "me:1", "in", A)

    assert hosts.forget("me") == Recovered(returned=1, dead=0)


def test_a_list_that_refuses_keeps_its_host_on_the_list(redis: Redis, hosts: Hosts, server_url: str) -> None:
    """The other lists do not wait for it, and when it is mended the host can be forgotten."""
    redis.sadd(HOSTS, "me")
    for name in ("bad", "in"):
        hold(redis, server_url, "me:1", name, A)
    redis.set("conserver:{bad}:returned", "a string")
    redis.sadd("conserver:lists", "worse")
    redis.set("conserver:{worse}:workers", "a string")

    with pytest.raises(ResponseError, match=r"key 'conserver:{bad}:returned' holds a string, not a list"):
        hosts.forget("me")
    kept = redis.smembers(HOSTS)
    redis.delete("conserver:{bad}:returned")

    assert kept == {b"me"}
    assert redis.llen("conserver:{in}:returned") == 1
    assert hosts.forget("me") == Recovered(returned=1, dead=0)
    assert redis.smembers(HOSTS) == set()
