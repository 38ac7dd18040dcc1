"""conserver.queue: what dead workers held, what waits for its time, and pauses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis

from conserver import scripts
from conserver.claims import Claim, Note, Settlement
from conserver.errors import ServerError
from conserver.queue import MAX_CRASHES, MAX_RETURNS, Depth, Queue
from conserver.session import Session
from tests.server_moods import denied, full, read_only
from tests.waiting import wait_until

A, B, C, D = (f"018f3c5e-0000-8000-8000-00000000000{n}" for n in "abcd")
HELD = "conserver:{in}:held:host:1"
LIMIT = b'{"n":1,"error":"too often"}'


@pytest.fixture
def queue(server_url: str) -> Queue:
    return Queue(server_url)


@pytest.fixture
def session(server_url: str) -> Session:
    session = Session(server_url, "host:1")
    session.join(["in"])
    return session


@pytest.fixture
def take(redis: Redis, server_url: str) -> Callable[..., list[Claim]]:
    """Push entries and have them claimed by a new worker."""

    def take(*entries: str | bytes, worker: str = "host:1", suspects: bool = False, n: int = 9) -> list[Claim]:
        if entries:
            redis.rpush("in", *entries)
        session = Session(server_url, worker, suspects=suspects)
        session.join(["in"])
        return session.trip([], {"in": n}).claims

    return take


def returned(redis: Redis) -> list[bytes]:
    return redis.lrange("conserver:{in}:returned", 0, -1)


def suspects(redis: Redis) -> list[bytes]:
    return redis.lrange("conserver:{in}:suspects", 0, -1)


def dead(redis: Redis) -> list[bytes]:
    return redis.lrange("DLQ:in", 0, -1)


# Recovery


def test_what_nobody_is_to_blame_for_goes_back_in_order(
    redis: Redis, queue: Queue, take: Callable[..., list[Claim]]
) -> None:
    """Eleven claims, so that an order by text would show; each counts one return."""
    entries = [f"entry {n}" for n in range(11)]
    take(*entries, n=11)

    counts = queue.recover("in", "host:1", "returned", limit=LIMIT)

    assert counts == (11, 0, 0)
    assert returned(redis) == [f"1 0 1 0 0\nentry {n}".encode() for n in range(11)]
    assert not redis.exists(HELD)
    assert queue.workers("in") == []


def test_recovery_can_be_repeated(redis: Redis, queue: Queue, take: Callable[..., list[Claim]]) -> None:
    """The second one finds nothing."""
    take(A)
    queue.recover("in", "host:1", "returned", limit=LIMIT)

    assert queue.recover("in", "host:1", "suspects", limit=LIMIT) == (0, 0, 0)
    assert len(returned(redis)) == 1


def test_a_claim_that_was_recovered_is_settled_by_nobody_else(
    redis: Redis, queue: Queue, session: Session, take: Callable[..., list[Claim]]
) -> None:
    """Its last worker is told that it was taken away, and pushes nothing; it runs elsewhere."""
    (one,) = take(A)
    queue.recover("in", "host:1", "returned", limit=LIMIT)

    trip = session.trip([Settlement(one).push("out", A)], {})

    assert trip.results == [0]
    assert not redis.exists("out")
    assert len(returned(redis)) == 1


def test_what_comes_back_too_often_is_dead(redis: Redis, queue: Queue, take: Callable[..., list[Claim]]) -> None:
    """At the limit a record still goes back, one more is a dead letter with the limit's reason."""
    redis.rpush(
        "conserver:{in}:returned",
        *(b"1 0 %d 0 0\n%b" % (n, entry.encode()) for n, entry in ((MAX_RETURNS - 1, A), (MAX_RETURNS, B))),
    )
    take()

    counts = queue.recover("in", "host:1", "returned", limit=LIMIT)

    assert counts == (1, 0, 1)
    assert dead(redis) == [B.encode()]
    assert queue.dead("in") == [(B.encode(), {"n": 1, "error": "too often"})]


def test_a_crash_makes_suspects_and_counts_nothing(
    redis: Redis, queue: Queue, take: Callable[..., list[Claim]]
) -> None:
    """Most of them are innocent; only quarantine takes them from there."""
    take(A, B)

    counts = queue.recover("in", "host:1", "suspects", limit=LIMIT)

    assert counts == (0, 2, 0)
    assert suspects(redis) == [b"1 0 0 0 0\n" + entry.encode() for entry in (A, B)]
    assert take(worker="host:2") == []
    assert [c.uuid for c in take(worker="host:q", suspects=True)] == [A, B]
    assert queue.suspects(["in", "other"]) == {}


def test_a_death_in_quarantine_counts_and_the_third_is_the_end(
    redis: Redis, queue: Queue, take: Callable[..., list[Claim]]
) -> None:
    """Twice it goes back to the suspects."""
    take(A)
    queue.recover("in", "host:1", "suspects", limit=LIMIT)

    counts = []
    for n in range(MAX_CRASHES):
        (claim,) = take(worker=f"host:q{n}", suspects=True)
        assert claim.crashes == n
        counts.append(queue.recover("in", f"host:q{n}", "quarantine", limit=LIMIT))

    assert counts == [(0, 1, 0), (0, 1, 0), (0, 0, 1)]
    assert dead(redis) == [A.encode()]


@pytest.mark.parametrize("mode", ["returned", "suspects", "quarantine"])
def test_a_known_culprit_is_dead_at_once(
    redis: Redis, queue: Queue, take: Callable[..., list[Claim]], mode: str
) -> None:
    """With a reason of its own; its neighbours go on."""
    take(A, B, C)

    *_, died = queue.recover("in", "host:1", mode, limit=LIMIT, culprits={2: b'{"n":1,"error":"it hung"}'})

    assert died == 1
    assert queue.dead("in") == [(B.encode(), {"n": 1, "error": "it hung"})]
    assert [r[-36:] for r in returned(redis) + suspects(redis)] == [A.encode(), C.encode()]


@pytest.mark.parametrize("mode", ["returned", "suspects", "quarantine"])
def test_recovery_keeps_records_that_it_cannot_read(
    redis: Redis, queue: Queue, take: Callable[..., list[Claim]], mode: str
) -> None:
    """One that a newer version wrote goes back byte for byte, whatever the mode."""
    redis.rpush("conserver:{in}:returned", b"2 from the future\n" + A.encode())
    take()

    queue.recover("in", "host:1", mode, limit=LIMIT)

    assert returned(redis) == [b"2 from the future\n" + A.encode()]


def test_recovery_keeps_the_note_and_the_bytes(
    redis: Redis, queue: Queue, session: Session, take: Callable[..., list[Claim]]
) -> None:
    """Work that was noted is not done again, and an entry of any bytes stays what it is."""
    entry = bytes(range(256))
    redis.rpush("in", entry)
    (claim,) = session.trip([], {"in": 1}).claims
    note = Note(1, "abc", B, (("out", C),), 5)

    assert queue.note(claim, note)
    queue.recover("in", "host:1", "returned", limit=LIMIT)

    (again,) = take(worker="host:2")
    assert (again.entry, again.note, again.returns) == (entry, note, 1)


def test_a_claim_that_was_recovered_takes_no_note(queue: Queue, take: Callable[..., list[Claim]]) -> None:
    """A worker that was taken for dead writes nothing down."""
    (claim,) = take(A)
    queue.recover("in", "host:1", "returned", limit=LIMIT)

    assert queue.note(claim, Note(1, "abc", A)) is False


def test_recovery_works_on_a_full_server(redis: Redis, queue: Queue, take: Callable[..., list[Claim]]) -> None:
    """It removes first, after which the server lets it write."""
    take(A)

    with full(redis):
        counts = queue.recover("in", "host:1", "returned", limit=LIMIT)

    assert counts == (1, 0, 0)
    assert len(returned(redis)) == 1


@pytest.mark.parametrize("key", ["conserver:{in}:returned", "conserver:{in}:suspects", "DLQ:in", "conserver:{in}:dead"])
def test_recovery_into_a_key_of_another_type_moves_nothing(
    redis: Redis, queue: Queue, take: Callable[..., list[Claim]], key: str
) -> None:
    """It says which key, and can be repeated when that is mended."""
    take(A)
    redis.set(key, "a string")

    with pytest.raises(Exception, match=f"key '{key}' holds a string, not a "):
        queue.recover("in", "host:1", "returned", limit=LIMIT)

    assert redis.hlen(HELD) == 1
    assert queue.workers("in") == ["host:1"]


def test_recovery_on_a_read_only_server_moves_nothing(
    redis: Redis, queue: Queue, take: Callable[..., list[Claim]]
) -> None:
    """It is the server's trouble, and everything is where it was."""
    take(A)

    with read_only(redis), pytest.raises(ServerError):
        queue.recover("in", "host:1", "returned", limit=LIMIT)

    assert redis.hlen(HELD) == 1
    assert queue.workers("in") == ["host:1"]


def test_recovery_that_is_denied_leaves_the_worker_to_be_found(
    redis: Redis, queue: Queue, take: Callable[..., list[Claim]]
) -> None:
    """Hosts find what lapsed workers held by the members of a list: as long as something is held, one is a member."""
    take(A)

    with denied(redis, "-rpush"), pytest.raises(ServerError):
        queue.recover("in", "host:1", "returned", limit=LIMIT)

    assert redis.hlen(HELD) == 1
    assert queue.workers("in") == ["host:1"]


# What waits for its time


def test_what_is_delayed_comes_back_when_it_is_due(redis: Redis, queue: Queue, session: Session) -> None:
    """By the server's clock, and not before."""
    redis.rpush("in", A, B)
    one, two = session.trip([], {"in": 2}).claims
    one.attempts = 1
    session.trip([Settlement(one).delay(0.05), Settlement(two).delay(3600)], {})

    wait_until(lambda: queue.wake_due(["in", "nothing"]))

    assert returned(redis) == [b"1 0 0 1 0\n" + A.encode()]
    (later,) = redis.zrange("conserver:{in}:delayed", 0, -1, withscores=True)
    assert later[0] == b"2:1 0 0 0 0\n" + B.encode()
    assert later[1] / 1000 == pytest.approx(queue.server_time() + 3600, abs=60)


def test_one_uuid_that_was_pushed_twice_is_delayed_twice(redis: Redis, queue: Queue, session: Session) -> None:
    """Members of a sorted set are unique; two runs of one vCon are not one."""
    redis.rpush("in", A, A)
    session.trip([Settlement(claim).delay(-1) for claim in session.trip([], {"in": 2}).claims], {})

    assert queue.depths(["in"])["in"].delayed == 2
    assert queue.wake_due(["in"]) == 2
    assert len(returned(redis)) == 2


def test_the_due_come_back_on_a_full_server(redis: Redis, queue: Queue, session: Session) -> None:
    """It takes no more memory than before."""
    redis.rpush("in", A)
    session.trip([Settlement(session.trip([], {"in": 1}).claims[0]).delay(-1)], {})

    with full(redis):
        assert queue.wake_due(["in"]) == 1


def test_the_due_that_are_denied_stay_delayed(redis: Redis, queue: Queue, session: Session) -> None:
    """A push that is refused takes nothing away."""
    redis.rpush("in", A)
    session.trip([Settlement(session.trip([], {"in": 1}).claims[0]).delay(-1)], {})

    with denied(redis, "-rpush"), pytest.raises(ServerError):
        queue.wake_due(["in"])

    assert queue.wake_due(["in"]) == 1


# Looking


def test_depths_say_where_everything_is(
    redis: Redis, queue: Queue, session: Session, take: Callable[..., list[Claim]]
) -> None:
    """Each state is counted apart, and a key of another type counts as empty."""
    redis.set("odd", "a string")
    redis.rpush("in", *[A] * 10)
    one, two, three, *_ = session.trip([], {"in": 5}).claims
    ends = [Settlement(one).give_back(), Settlement(two).delay(60), Settlement(three).die(b'{"n":1}')]
    session.trip(ends, {})
    redis.rpush("conserver:{in}:suspects", b"1 0 0 0 0\n" + A.encode())

    depths = queue.depths(["in", "odd"])

    assert depths["in"] == Depth(waiting=5, returned=1, delayed=1, suspects=1, held=2, dead=1, parked=0)
    assert depths["odd"] == Depth(0, 0, 0, 0, 0, 0, 0)
    assert queue.lists() == ["in"]


def test_a_server_that_may_forget_is_warned_about(redis: Redis, queue: Queue) -> None:
    """Without an append-only file, or with eviction, what was accepted can vanish."""
    assert queue.server_warnings() == []

    redis.config_set("maxmemory-policy", "allkeys-lru")
    redis.config_set("appendonly", "no")
    warnings = queue.server_warnings()
    redis.config_set("maxmemory-policy", "noeviction")
    redis.config_set("appendonly", "yes")

    assert [warning.partition(" (")[2] for warning in warnings] == [
        "set appendonly yes)",
        "maxmemory-policy allkeys-lru): vCons and lists would vanish (set maxmemory-policy noeviction)",
    ]


def test_a_server_that_takes_no_writes_is_noticed(redis: Redis, queue: Queue) -> None:
    """Readiness means that work can be done."""
    queue.probe()

    with full(redis), pytest.raises(ServerError, match="the server does not take writes: "):
        queue.probe()


# Pauses


def test_a_pause_stands_for_all_until_it_ends(server_url: str, queue: Queue) -> None:
    """Another process reads what one has written."""
    queue.pause("main", {"reason": "the service is gone", "secs": 30})

    assert Queue(server_url).paused() == {"main": {"reason": "the service is gone", "secs": 30}}
    assert [queue.resume("main"), queue.resume("main")] == [True, False]
    assert queue.paused() == {}


def test_one_of_all_workers_tries_a_paused_chain_again(server_url: str, queue: Queue) -> None:
    """Only one wins, and after the time another may."""
    assert queue.win_probe("main", 0.05)
    assert not Queue(server_url).win_probe("main", 60)

    assert queue.win_probe("other", 60)
    wait_until(lambda: queue.win_probe("main", 60))


def test_every_script_says_what_its_keys_are() -> None:
    """Who reads a script first reads a legend of the keys that it touches."""
    for script in scripts.ALL:
        legend = (scripts._FOLDER / f"{script.name}.lua").read_text().split("\n\n")[0]

        assert all(line.startswith("--") for line in legend.splitlines()), script.name
        assert "KEYS" in legend, script.name
