"""conserver.queue: claims are held until they are settled, and nothing is lost in between."""

from __future__ import annotations

import hashlib
import uuid as uuids
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from conserver import scripts
from conserver.claims import Claim, Note, Settlement
from conserver.errors import ServerError
from conserver.queue import Queue
from conserver.session import NotAMember, Session, Trip
from tests.proxy import Proxy, proxied
from tests.server_moods import denied, full, read_only

A, B, C, D = (f"018f3c5e-0000-8000-8000-00000000000{n}" for n in "abcd")
HELD = "conserver:{in}:held:host:1"
RETURNED = "conserver:{in}:returned"
NOTE = Note(2, "0123456789ab", B, (("next", C),), 60)


@pytest.fixture
def queue(server_url: str) -> Queue:
    return Queue(server_url)


@pytest.fixture
def join(server_url: str) -> Callable[..., Session]:
    def joined(worker: str = "host:1", lists: tuple[str, ...] = ("in",), url: str = server_url) -> Session:
        session = Session(url, worker)
        session.join(lists)
        return session

    return joined


@pytest.fixture
def session(join: Callable[..., Session]) -> Session:
    return join()


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    with proxied(server_url) as proxy:
        yield proxy


def claim(session: Session, n: int = 1, name: str = "in") -> list[Claim]:
    trip = session.trip([], {name: n})
    assert trip.trouble is None
    return trip.claims


def settle(session: Session, *settlements: Settlement) -> list[int | str | None]:
    trip = session.trip(settlements, {})
    assert trip.trouble is None
    return trip.results


def entries(claims: list[Claim]) -> list[str]:
    return [claim.entry.decode() for claim in claims]


# Claim


def test_a_claim_is_held_until_it_is_settled(redis: Redis, session: Session) -> None:
    """Taking a UUID and noting who has it are one step, and so are its end and its push."""
    redis.rpush("in", A)

    (one,) = claim(session)
    held = redis.hgetall(HELD)
    results = settle(session, Settlement(one).push("out", A))

    assert held == {b"1": b"1 0 0 0 0\n" + A.encode()}
    assert results == [1]
    assert redis.lrange("out", 0, -1) == [A.encode()]
    assert not redis.exists(HELD, "in")


def test_first_come_first_claimed(redis: Redis, session: Session) -> None:
    """Entries are taken from the head, named by growing numbers, and never more than asked for."""
    redis.rpush("in", A, B, C)

    first, second = claim(session, 2), claim(session, 2)

    assert entries(first) == [A, B]
    assert entries(second) == [C]
    assert [c.seq for c in first + second] == [1, 2, 3]


def test_what_came_back_is_taken_before_the_list(redis: Redis, session: Session) -> None:
    """A record that was returned has waited longer than what is in the list."""
    redis.rpush("in", A, B)
    settle(session, Settlement(claim(session)[0]).give_back())
    redis.rpush("in", C)

    assert entries(claim(session, 3)) == [A, B, C]


def test_a_worker_that_was_recovered_gets_nothing(redis: Redis, session: Session, queue: Queue) -> None:
    """It is told so, and the list keeps its entries."""
    redis.rpush("in", A)
    queue.recover("in", "host:1", "returned", limit=b"{}")

    trip = session.trip([], {"in": 1})

    assert isinstance(trip.trouble, NotAMember)
    assert str(trip.trouble) == "worker host:1 was taken for dead and may not claim from 'in'"
    assert trip.claims == []
    assert redis.llen("in") == 1


def test_a_claim_script_that_is_repeated_hands_out_the_same_claims(redis: Redis, session: Session) -> None:
    """Called twice by one who knows of nothing, it takes once."""
    redis.rpush("in", A, B, C)
    keys = ["conserver:{in}:workers", HELD, "conserver:{in}:seq", "conserver:{in}:taken:host:1", RETURNED, "in"]

    first = scripts.CLAIM(redis, list(keys), ["host:1", 2, 0, 0, 6])
    again = scripts.CLAIM(redis, list(keys), ["host:1", 2, 0, 0, 6])

    assert again == first
    assert redis.lrange("in", 0, -1) == [C.encode()]


@pytest.mark.parametrize("settling", [0, 1, 2])
def test_a_claim_whose_reply_was_lost_is_handed_out_again(
    redis: Redis, proxy: Proxy, join: Callable[..., Session], settling: int
) -> None:
    """However many settlements were on the same trip, nothing is lost and nothing is done twice."""
    session = join(url=proxy.url)
    redis.rpush("in", A, B)
    ends = [Settlement(one).push("out", one.entry) for one in claim(session, 2)][:settling]
    redis.rpush("in", C, D)

    proxy.lose_next_reply()
    lost = session.trip(ends, {"in": 2})
    again = session.trip(ends, {"in": 2})

    assert isinstance(lost.trouble, ServerError)
    assert (lost.results, lost.claims) == ([None] * settling, [])
    assert again.results == [1] * settling
    assert (entries(again.claims), [c.seq for c in again.claims]) == ([C, D], [3, 4])
    assert redis.llen("out") == settling


def test_a_trip_that_never_reached_the_server_can_be_repeated(
    redis: Redis, proxy: Proxy, join: Callable[..., Session]
) -> None:
    """The settlement is done by the second attempt, once."""
    session = join(url=proxy.url)
    redis.rpush("in", A, B)
    end = Settlement(claim(session)[0]).push("out", A)

    proxy.lose_next_request()
    lost = session.trip([end], {"in": 1})
    again = session.trip([end], {"in": 1})

    assert lost.results == [None]
    assert (again.results, entries(again.claims)) == ([1], [B])
    assert redis.lrange("out", 0, -1) == [A.encode()]


def test_a_server_that_names_a_claim_as_one_before_is_not_believed(redis: Redis, session: Session) -> None:
    """It has gone back in time: under this name an old run could settle a new claim."""
    redis.rpush("in", A)
    claim(session)
    redis.delete("conserver:{in}:seq")
    redis.rpush("in", B)

    trip = session.trip([], {"in": 1})

    assert trip.claims == []
    assert isinstance(trip.trouble, NotAMember)
    assert str(trip.trouble) == "the server has gone back in time: it names a claim of 'in' as one before"


def test_a_server_that_holds_again_what_was_settled_is_not_believed(
    redis: Redis, proxy: Proxy, join: Callable[..., Session]
) -> None:
    """After a failover to an old copy nobody would find those claims while their worker lives and is idle."""
    redis.rpush("in", A, B)
    session = join(url=proxy.url)
    first, second = claim(session, 2)
    record = redis.hget(HELD, str(first.seq)) or b""
    settle(session, Settlement(first))

    proxy.lose_next_reply()
    assert session.trip([], {"in": 1}).trouble is not None
    honest = session.trip([], {"in": 1}).trouble
    proxy.lose_next_reply()
    assert session.trip([], {"in": 1}).trouble is not None
    redis.hset(HELD, str(first.seq), record)
    trip = session.trip([Settlement(second)], {"in": 1})

    assert honest is None
    assert isinstance(trip.trouble, NotAMember)
    assert str(trip.trouble) == "the server has gone back in time: it does not know what was claimed or settled before"
    assert trip.results == [None]


def test_a_server_that_counts_from_an_earlier_number_after_a_cut_is_an_old_copy(redis: Redis, session: Session) -> None:
    """Even if nothing was held: the next claims would have names that old runs may still settle."""
    redis.rpush("in", A, B)
    (first,) = claim(session)
    session.trip([Settlement(first)], {})
    redis.decr("conserver:{in}:seq")
    redis.client_kill_filter(_type="normal", skipme=True)

    cut = session.trip([], {"in": 1})
    after = session.trip([], {"in": 1})

    assert isinstance(cut.trouble, ServerError)
    assert isinstance(after.trouble, NotAMember)
    assert redis.lrange("in", 0, -1) == [B.encode()]


def test_one_who_leaves_with_a_lost_claim_can_still_be_found(
    redis: Redis, proxy: Proxy, join: Callable[..., Session], queue: Queue
) -> None:
    """While the server holds something for a worker, that worker stays on the list that recovery goes through."""
    session = join(url=proxy.url)
    claim(session)
    redis.rpush("in", A)
    proxy.lose_next_reply()
    session.trip([], {"in": 1})

    session.leave()

    assert redis.hlen(HELD) == 1
    assert queue.workers("in") == ["host:1"]


def test_a_list_of_another_type_is_named_and_the_others_are_served(redis: Redis, join: Callable[..., Session]) -> None:
    """One broken key stops nobody."""
    session = join(lists=("in", "other"))
    redis.set("in", "a string")
    redis.rpush("other", A)

    trip = session.trip([], {"in": 1, "other": 1})

    assert entries(trip.claims) == [A]
    assert trip.trouble is None
    assert trip.unreadable.keys() == {"in"}
    assert "wrong kind of value" in trip.unreadable["in"]


@pytest.mark.parametrize("rule", ["-incrby", "-hset", "-ltrim", "-sismember"])
def test_a_claim_that_is_denied_on_its_way_takes_nothing(redis: Redis, session: Session, rule: str) -> None:
    """The list is as it was, nobody holds anything, and later the entry is claimed once."""
    redis.rpush("in", A, B)

    with denied(redis, rule):
        trip = session.trip([], {"in": 2})
    before = redis.lrange("in", 0, -1), redis.hgetall(HELD)

    assert isinstance(trip.trouble, ServerError)
    assert before == ([A.encode(), B.encode()], {})
    assert entries(claim(session, 3)) == [A, B]


@given(
    entry=st.binary(max_size=300),
    note=st.none() | st.builds(Note, st.integers(0, 99), st.text(), st.text()) | st.just(NOTE),
    counts=st.tuples(*[st.integers(0, 10**6)] * 3),
)
def test_a_record_says_all_that_was_known(entry: bytes, note: Note | None, counts: tuple[int, int, int]) -> None:
    """Whatever the entry's bytes, also if they look like a record."""
    before = Claim("in", 7, entry, HELD, *counts, note=note)

    assert Claim.parse("in", HELD, 7, before.record()) == before


def test_what_a_claim_has_been_through_survives_the_server(redis: Redis, session: Session) -> None:
    """Counters, note and a megabyte of any bytes come back as they were."""
    entry = bytes(range(256)) * 4096
    redis.rpush("in", entry)
    (one,) = claim(session)
    one.returns, one.attempts, one.note = 2, 1, NOTE
    settle(session, Settlement(one).give_back())

    (again,) = claim(session)

    assert (again.entry, again.returns, again.attempts, again.note) == (entry, 2, 1, NOTE)


def test_an_entry_that_looks_like_a_record_is_an_entry(redis: Redis, session: Session) -> None:
    """What anybody pushes to the list is never taken for our own notes."""
    redis.rpush("in", b"1 9 9 9 0\n" + A.encode())

    (one,) = claim(session)

    assert (one.crashes, one.returns, one.uuid) == (0, 0, None)


def test_a_record_of_an_unknown_version_is_put_aside_as_it_is(redis: Redis, session: Session, queue: Queue) -> None:
    """A newer version may have written it; it is kept for that one."""
    redis.rpush(RETURNED, b"9 from the future")

    (one,) = claim(session)
    settle(session, Settlement(one).give_back())

    assert not one.readable
    assert redis.lrange("conserver:{in}:parked", 0, -1) == [b"9 from the future"]
    assert queue.depths(["in"])["in"].parked == 1


# Settle


def test_a_claim_is_settled_once(redis: Redis, session: Session) -> None:
    """Who settles a second time, since the answer was lost, is told that it is done, and pushes nothing."""
    redis.rpush("in", A)
    end = Settlement(claim(session)[0]).push("out", A)

    assert [settle(session, end), settle(session, end)] == [[1], [1]]
    assert redis.llen("out") == 1


def test_a_target_of_another_type_refuses_the_whole_settlement(redis: Redis, session: Session) -> None:
    """Nothing is pushed anywhere, the claim is still held, and the others of the trip are settled."""
    redis.rpush("in", A, B)
    redis.set("bad", "a string")
    one, two = claim(session, 2)

    results = settle(session, Settlement(one).push("out", A).push("bad", A), Settlement(two).push("out", B))

    assert results == ["key 'bad' holds a string, not a list", 1]
    assert redis.lrange("out", 0, -1) == [B.encode()]
    assert redis.hkeys(HELD) == [b"1"]


def test_a_settlement_that_is_denied_on_its_way_is_undone(redis: Redis, session: Session) -> None:
    """Pushes and reasons that were done before are taken back, and the claim is still held."""
    redis.rpush("in", A)
    redis.rpush("out", B)
    end = Settlement(claim(session)[0]).push("out", A).bury("DLQ:x", A, b'{"n":1}').delay(5)

    with denied(redis, "-zadd"):
        trip = session.trip([end], {})

    assert "no permissions to run the 'zadd' command" in str(trip.trouble)
    assert redis.lrange("out", 0, -1) == [B.encode()]
    assert not redis.exists("DLQ:x", "conserver:{DLQ:x}:dead", "conserver:{in}:delayed")
    assert redis.hgetall(HELD) == {b"1": b"1 0 0 0 0\n" + A.encode()}
    assert settle(session, end) == [1]


@pytest.mark.parametrize(
    "rule",
    [
        "-rpush",
        "-hdel",
        "-hset",
        "-hget",
    ],
)
def test_a_denied_command_leaves_the_claim_somewhere(redis: Redis, session: Session, rule: str) -> None:
    """Whatever an operator denies in the middle of the work: once it is allowed, nothing is missing."""
    redis.rpush("in", A)
    end = Settlement(claim(session)[0]).die(b'{"n":1}')

    with denied(redis, rule):
        trip = session.trip([end], {})
    settle(session, end)

    assert isinstance(trip.trouble, ServerError)
    assert trip.results == [None]
    assert redis.lrange("DLQ:in", 0, -1) == [A.encode()]
    assert not redis.exists(HELD)


def test_a_push_to_a_denied_key_is_no_trouble_of_the_neighbours(redis: Redis, session: Session) -> None:
    """A link that pushes where it may not keeps nobody else from being settled."""
    redis.rpush("in", A, B)
    one, two = claim(session, 2)
    ends = [Settlement(one).push("secret", A), Settlement(two).push("out", B)]

    with denied(redis, "resetkeys", "~in", "~out", "~conserver:*", "~DLQ:*"):
        for _ in range(2):
            trip = session.trip(ends, {})

    assert "No permissions to access a key" in str(trip.results[0])
    assert redis.lrange("out", 0, -1) == [B.encode()]


def test_a_full_server_settles_but_hands_out_nothing(redis: Redis, session: Session) -> None:
    """What is in hand can be delivered; what waits goes on waiting."""
    redis.rpush("in", A, B, C)
    one, two, _ = claim(session, 3)
    redis.rpush("in", D)

    with full(redis):
        trip = session.trip([Settlement(one).push("out", A), Settlement(two).give_back()], {"in": 1})

    assert trip.results == [1, 1]
    assert isinstance(trip.trouble, ServerError)
    assert trip.claims == []
    assert redis.lrange("in", 0, -1) == [D.encode()]
    assert redis.hkeys(HELD) == [b"3"]
    assert entries(claim(session, 2)) == [B, D]


def test_a_read_only_server_changes_nothing(redis: Redis, session: Session) -> None:
    """Neither the settlement nor the claim is done, and both can be repeated."""
    redis.rpush("in", A, B)
    end = Settlement(claim(session)[0]).push("out", A)

    with read_only(redis):
        during = session.trip([end], {"in": 1})
    after = session.trip([end], {"in": 1})

    assert isinstance(during.trouble, ServerError)
    assert (during.results, during.claims) == ([None], [])
    assert (after.results, entries(after.claims)) == ([1], [B])


def test_a_server_that_forgot_the_scripts_is_told_again(redis: Redis, session: Session, queue: Queue) -> None:
    """A restart between two trips costs nothing."""
    redis.rpush("in", A, B)
    end = Settlement(claim(session)[0]).die(b'{"n":1}')
    redis.script_flush()

    trip = session.trip([end], {"in": 1})
    redis.script_flush()

    assert (trip.results, entries(trip.claims)) == ([1], [B])
    assert queue.retry("in", 10) == 1


def test_a_server_that_takes_no_scripts_is_in_trouble(redis: Redis, join: Callable[..., Session]) -> None:
    """Denied SCRIPT LOAD is the server's trouble, which ends when the operator allows it."""
    session = join()
    redis.rpush("in", A)
    redis.script_flush()

    with denied(redis, "-script"):
        trip: Trip = session.trip([], {"in": 1})

    assert isinstance(trip.trouble, ServerError)
    assert entries(claim(session)) == [A]


def test_found_says_which_vcons_are_there_and_keeps_them(redis: Redis, session: Session) -> None:
    """A vCon that was about to expire stays while it is worked on."""
    redis.set(f"vcon:{A}", "{}", ex=100)
    redis.rpush("in", A, "no uuid", B)

    found = session.found(claim(session, 3))

    assert [one.there for one in found] == [True, False, False]
    assert found[0].left_secs == pytest.approx(100, abs=2)
    assert found[0].version == hashlib.sha1(b"{}").hexdigest()
    assert redis.ttl(f"vcon:{A}") == -1


def test_a_push_of_any_length_keeps_its_order(redis: Redis, queue: Queue) -> None:
    """More than one command holds arrives whole."""
    uuids_ = [str(uuids.UUID(int=n)) for n in range(12_001)]

    assert queue.push("in", uuids_) == 12_001
    assert redis.lrange("in", 0, -1) == [u.encode() for u in uuids_]


def test_small_texts_come_with_the_look(redis: Redis, session: Session) -> None:
    """Where they are asked for, also of a vCon that was to expire; what is too large, absent or no text does not."""
    redis.set(f"vcon:{A}", b"a" * 10)
    redis.set(f"vcon:{B}", b"b" * 11, ex=100)
    odd, absent = str(uuids.uuid4()), str(uuids.uuid4())
    redis.hset(f"vcon:{odd}", "no", "text")
    redis.rpush("in", A, B, A, odd, "no UUID", absent, B)

    found = session.found(claim(session, 7), [10, 10, 0, 10, 10, 10, 11])

    assert [each.text for each in found] == [b"a" * 10, None, None, None, None, None, b"b" * 11]
    assert [each.there for each in found] == [True, True, True, True, False, False, True]
    assert [each.left_secs > 90 for each in found] == [False, True, False, False, False, False, False]
