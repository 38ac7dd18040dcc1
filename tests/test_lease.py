"""conserver.lease: who is alive, by the server's clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from conserver.errors import ServerError
from conserver.lease import HOSTS, Lease, host_key, host_of
from tests.proxy import proxied
from tests.server_moods import full, read_only
from tests.waiting import wait_until

SECS = 9.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(server_url: str, clock: Clock) -> Iterator[Lease]:
    lease = Lease(server_url, "me", SECS, clock=clock)
    lease.begin()
    yield lease
    lease.end()


@pytest.fixture
def steady(lease: Lease, clock: Clock) -> Callable[[float], None]:
    """Renew three times a lease, as the thread does, for so many seconds."""

    def go_on(secs: float) -> None:
        until = clock.now + secs
        while clock.now < until:
            clock.now += SECS / 3
            lease.renew()

    return go_on


def test_a_lease_stands_and_is_given_up(redis: Redis, server_url: str) -> None:
    """Its key ends by itself if nobody ends it."""
    lease = Lease(server_url, "me", SECS)
    lease.begin()
    left, hosts = redis.pttl(host_key("me")), redis.smembers(HOSTS)
    lease.end()

    assert 0 < left <= SECS * 1000
    assert hosts == {b"me"}
    assert not redis.exists(host_key("me"), HOSTS)


def test_it_is_renewed_by_itself(redis: Redis, server_url: str) -> None:
    """A third of its length is never gone by for long."""
    lease = Lease(server_url, "me", 0.6)
    lease.begin()
    redis.pexpire(host_key("me"), 300_000)

    wait_until(lambda: redis.pttl(host_key("me")) <= 600, 5)

    lease.end()


def test_nobody_is_called_dead_before_a_whole_lease(lease: Lease, steady: Callable[[float], None]) -> None:
    """A host that has just begun cannot know whether others had time to renew."""
    early = lease.lapsed(["other"])
    steady(SECS)
    still_early = lease.lapsed(["other"])
    steady(SECS / 3)

    assert (early, still_early) == ([], [])
    assert lease.lapsed(["other", "me"]) == ["other"]


def test_others_are_judged_by_their_key_alone(redis: Redis, lease: Lease, steady: Callable[[float], None]) -> None:
    """While it stands its host is alive, whatever the key says."""
    steady(SECS * 2)
    redis.set(host_key("alive"), "nonsense", px=60_000)

    assert lease.lapsed(["alive", "dead", "gone"]) == ["dead", "gone"]
    assert lease.lapsed([]) == []


def test_a_host_that_had_no_workers_is_found_too(redis: Redis, lease: Lease, steady: Callable[[float], None]) -> None:
    """It has said once that it is there, and is forgotten when it has gone."""
    redis.sadd(HOSTS, "gone")
    steady(SECS * 2)

    lapsed = lease.lapsed([])
    lease.forget("gone")

    assert lapsed == ["gone"]
    assert redis.smembers(HOSTS) == {b"me"}


def test_after_a_gap_nobody_is_judged_for_a_whole_lease(
    lease: Lease, clock: Clock, steady: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A pause of this host, of the server or of the network lets every lease look lapsed."""
    steady(SECS * 2)
    clock.now += SECS
    during = lease.lapsed(["other"])
    lease.renew()
    after = lease.lapsed(["other"])
    steady(SECS)
    still = lease.lapsed(["other"])
    steady(SECS / 3)

    assert (during, after, still) == ([], [], [])
    assert lease.lapsed(["other"]) == ["other"]
    assert "this host gave no sign of life for 9.0 s" in caplog.text


@pytest.mark.parametrize("mood", [read_only])
def test_a_server_that_refuses_begins_the_time_anew(
    redis: Redis, lease: Lease, steady: Callable[[float], None], mood: Callable[[Redis], object]
) -> None:
    """Others may not have been able to renew either."""
    steady(SECS * 2)
    with mood(redis):
        lease.renew()
        during = lease.lapsed(["other"])
    steady(SECS)

    assert during == []
    assert lease.lapsed(["other"]) == []


def test_a_full_server_takes_a_renewal(redis: Redis, lease: Lease, steady: Callable[[float], None]) -> None:
    """So nobody is taken for dead when the memory is full."""
    with full(redis):
        redis.pexpire(host_key("me"), 1000)
        steady(SECS * 2)

    assert redis.pttl(host_key("me")) > 1000
    assert lease.may_judge


def test_a_lease_that_has_gone_is_taken_again(
    redis: Redis, lease: Lease, steady: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    """And nobody is judged for a whole lease: it was this host that was away."""
    steady(SECS * 2)
    redis.delete(host_key("me"), HOSTS)

    lease.renew()

    assert redis.exists(host_key("me"))
    assert redis.smembers(HOSTS) == {b"me"}
    assert not lease.may_judge


def test_a_renewal_without_an_answer_is_no_sign_of_life(server_url: str, clock: Clock) -> None:
    """A connection that is cut is tried once more; a server that lets that be cut as well is silent."""
    with proxied(server_url) as proxy:
        lease = Lease(proxy.url, "me", SECS, clock=clock)
        lease.begin()
        for _ in range(6):
            clock.now += SECS / 3
            lease.renew()
        before = lease.may_judge
        proxy.lose_next_reply()
        lease.renew()
        cut = lease.may_judge
        with proxy.blackhole():
            lease.renew()
        after = lease.may_judge
        lease.end()

    assert (before, cut, after) == (True, True, False)


def test_a_lease_that_cannot_be_taken_is_an_error(redis: Redis, server_url: str) -> None:
    """A host does not begin to work without one."""
    with read_only(redis), pytest.raises(ServerError):
        Lease(server_url, "me", SECS).begin()


def test_what_a_host_does_stands_in_its_lease(redis: Redis, lease: Lease) -> None:
    """Readable by others, and gone with it."""
    lease.publish(b'{"pid":1}')

    assert redis.get(host_key("me")) == b'{"pid":1}'
    assert 0 < redis.pttl(host_key("me")) <= SECS * 1000


def test_a_host_whose_work_was_recovered_is_forgotten(redis: Redis, lease: Lease) -> None:
    """And no other."""
    redis.sadd(HOSTS, "dead")

    lease.forget("dead")

    assert redis.smembers(HOSTS) == {b"me"}


def test_a_workers_name_begins_with_its_host() -> None:
    """Also where the host has colons of its own."""
    assert host_of("host:with:colons:7") == "host:with:colons"
