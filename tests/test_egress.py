"""conserver.egress: what is delivered is read by those who come for it, and by nobody else meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.exceptions import ResponseError

from conserver import connection, scripts
from conserver.egress import LEASED, MOST_ENTRIES, Egress, LeaseLapsed, OpenLease
from conserver.errors import ServerError
from tests.proxy import Proxy, proxied
from tests.server_moods import denied, full, read_only
from tests.waiting import wait_until

LEASES, HASH = "conserver:{out}:leases", "conserver:{out}:leased"
KEYS = ["out", HASH, LEASES]
A, B, C, D, E, F = b"A", b"B", b"C", b"D", b"E", b"F"


@pytest.fixture
def egress(server_url: str) -> Egress:
    return Egress(server_url)


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    with proxied(server_url) as proxy:
        yield proxy


def waiting(redis: Redis, name: str = "out") -> list[bytes]:
    return redis.lrange(name, 0, -1)


def let_lapse(redis: Redis, *leases: str) -> None:
    """As if the time of these leases was over, each a millisecond after the one before."""
    redis.zadd(LEASES, {lease: n for n, lease in enumerate(leases)})


# Taking


def test_what_is_taken_is_gone_and_the_oldest_comes_first(redis: Redis, egress: Egress) -> None:
    """The reading that existing clients know; an empty list gives nothing."""
    redis.rpush("out", A, B, C)

    assert [egress.take("out", n) for n in (2, 2, 2)] == [[A, B], [C], []]
    assert redis.keys() == []


def test_a_take_is_not_repeated(redis: Redis, proxy: Proxy) -> None:
    """A second try would take what nobody has asked for."""
    redis.rpush("out", A, B)
    egress = Egress(proxy.url)
    egress.take("other", 1)

    proxy.lose_next_reply()
    with pytest.raises(ServerError):
        egress.take("out", 1)

    assert waiting(redis) == [B]


# Leasing


def test_what_is_leased_is_written_down_and_out_of_the_list(redis: Redis, egress: Egress) -> None:
    """From the head, up to so many, until a time of the server's clock; others get what comes behind."""
    redis.rpush("out", A, B, C)
    secs, micros = redis.time()

    first, second, third = (egress.lease("out", 2, 60) for _ in range(3))

    assert [lease.entries for lease in (first, second, third)] == [(A, B), (C,), ()]
    assert first.expires_at == pytest.approx(secs + micros / 1e6 + 60, abs=20)
    assert waiting(redis) == []
    assert redis.hvals(HASH).count(B) == 1
    assert set(redis.zrange(LEASES, 0, -1)) == {first.id.encode(), second.id.encode()}
    assert redis.smembers(LEASED) == {b"out"}
    assert len({first.id, second.id, third.id}) == 3


def test_entries_may_be_anything(redis: Redis, egress: Egress) -> None:
    """Bytes of all values, empty ones, ones that look like notes, in any number."""
    entries = [bytes(range(256)), b"", b"@x", b"1 2 3 - 0", *(b"%d" % n for n in range(MOST_ENTRIES - 4))]
    redis.rpush("out", *entries)

    lease = egress.lease("out", MOST_ENTRIES, 60)
    back = egress.give_back("out", lease.id)

    assert list(lease.entries) == entries
    assert back == MOST_ENTRIES
    assert waiting(redis) == entries


def test_a_lease_that_is_asked_for_again_is_given_again(redis: Redis, egress: Egress) -> None:
    """Who has lost the reply repeats the id; what has been acknowledged meanwhile does not come again."""
    redis.rpush("out", A, B, C)

    one = egress.lease("out", 2, 60, "x")
    again = egress.lease("out", 2, 999, "x")
    egress.acknowledge("out", "x", [A])

    assert (one.entries, one) == ((A, B), again)
    assert egress.lease("out", 2, 60, "x").entries == (B,)
    assert waiting(redis) == [C]


def test_a_lease_whose_reply_was_lost_on_the_wire_takes_once(redis: Redis, proxy: Proxy) -> None:
    """The client repeats it by itself."""
    redis.rpush("out", A, B, C)
    client = connection.client(proxy.url, "test")
    scripts.LEASE(client, list(KEYS), ["other", 1, 60_000])

    proxy.lose_next_reply()
    reply = scripts.LEASE(client, list(KEYS), ["x", 1, 60_000])

    assert reply[2:] == [B]
    assert waiting(redis) == [C]


def test_what_is_acknowledged_is_gone(redis: Redis, egress: Egress) -> None:
    """Some of it, then all; only what the lease has counts, and each entry as often as it is named."""
    redis.rpush("out", A, B, A, C, D)
    lease = egress.lease("out", 4, 60).id

    assert egress.acknowledge("out", lease, [A, b"unknown", D]) == 1
    assert [(o.id, o.count) for o in egress.leases("out")] == [(lease, 3)]
    assert egress.lease("out", 9, 60, lease).entries == (B, A, C)
    assert egress.acknowledge("out", lease, [A, A]) == 1
    assert egress.acknowledge("out", lease) == 2
    assert egress.leases("out") == []
    assert waiting(redis) == [D]


def test_an_acknowledgement_whose_reply_was_lost_counts_once(redis: Redis, proxy: Proxy) -> None:
    """A UUID that was delivered twice is in the lease twice; to acknowledge the one leaves the other."""
    redis.rpush("out", A, A, B)
    egress = Egress(proxy.url)
    lease = egress.lease("out", 2, 60).id
    egress.acknowledge("out", egress.lease("out", 1, 60).id)

    proxy.lose_next_reply()

    assert egress.acknowledge("out", lease, [A]) == 1
    assert egress.acknowledge("out", lease) == 1


def test_what_is_given_back_is_at_the_head_in_its_old_order(redis: Redis, egress: Egress) -> None:
    """All of it, or some; the next reader gets the oldest first."""
    redis.rpush("out", A, B, C, D, E)
    first, second = egress.lease("out", 3, 60).id, egress.lease("out", 1, 60).id

    assert egress.give_back("out", second) == 1
    assert egress.give_back("out", first, [C, A]) == 2
    assert waiting(redis) == [A, C, D, E]
    assert egress.give_back("out", first) == 1
    assert waiting(redis) == [B, A, C, D, E]


def test_a_lease_that_is_gone_is_told_from_one_that_is_done(redis: Redis, egress: Egress) -> None:
    """Its entries may have gone to others. One with nothing left is known for a while: for who repeats himself."""
    redis.rpush("out", A, B)
    done, lapsed = egress.lease("out", 1, 60).id, egress.lease("out", 1, 60).id
    egress.acknowledge("out", done)
    let_lapse(redis, lapsed)
    egress.put_back_lapsed()

    assert [egress.acknowledge("out", done), egress.give_back("out", done, [A])] == [0, 0]
    secs, micros = redis.time()
    assert redis.zscore(LEASES, done) / 1000 == pytest.approx(secs + micros / 1e6 + 60, abs=30)
    for verb in (egress.acknowledge, egress.give_back):
        with pytest.raises(LeaseLapsed, match=f"list 'out' has no lease '{lapsed}': it has lapsed, and its entries"):
            verb("out", lapsed)
    assert waiting(redis) == [B]


def test_an_answer_that_is_late_counts_while_nobody_else_has_the_entries(redis: Redis, egress: Egress) -> None:
    """To deliver them again would help nobody."""
    redis.rpush("out", A, B)
    lease = egress.lease("out", 2, 60).id
    let_lapse(redis, lease)

    assert egress.acknowledge("out", lease, [A]) == 1
    assert egress.extend("out", lease, 60)
    assert egress.put_back_lapsed() == 0


def test_a_lease_is_extended(redis: Redis, egress: Egress) -> None:
    """From now on; one that is gone or done is not, and does not come to life."""
    redis.rpush("out", A, B)
    one, done = egress.lease("out", 1, 60).id, egress.lease("out", 1, 60).id
    egress.acknowledge("out", done)
    before = redis.zscore(LEASES, done)

    assert [egress.extend("out", lease, 600) for lease in (one, done, "unknown")] == [True, False, False]
    assert redis.zscore(LEASES, done) == before
    (left,) = egress.leases("out")
    assert left == OpenLease(one, 1, pytest.approx(600, abs=20))
    assert redis.zcard(LEASES) == 2


# What lapses


def test_what_lapses_comes_back_by_the_servers_clock(redis: Redis, egress: Egress) -> None:
    """Without anybody asking for it, and not before."""
    redis.rpush("out", A, B, C)
    egress.lease("out", 1, 0.05)
    egress.lease("out", 1, 60)

    moved = wait_until(egress.put_back_lapsed)

    assert moved == 1
    assert waiting(redis) == [A, C]


def test_what_lapses_together_comes_back_in_the_old_order(redis: Redis, egress: Egress) -> None:
    """Whichever lapsed first; behind it is what was never leased."""
    redis.rpush("out", A, B, C, D, E, F)
    leases = [egress.lease("out", 2, 60).id for _ in range(2)]
    late = egress.lease("out", 1, 60).id
    let_lapse(redis, late, *leases)

    assert egress.put_back_lapsed() == 5
    assert waiting(redis) == [A, B, C, D, E, F]


def test_a_lease_gives_what_has_lapsed_first(redis: Redis, egress: Egress) -> None:
    """Where no supervisor looks after it, the next reader does; the lease's old id begins anew."""
    redis.rpush("out", A, B, C, D)
    first, second = egress.lease("out", 1, 60).id, egress.lease("out", 2, 60).id
    let_lapse(redis, first, second)

    assert egress.lease("out", 2, 60, first).entries == (A, B)
    assert waiting(redis) == [C, D]


def test_much_that_has_lapsed_comes_back_in_pieces(redis: Redis, egress: Egress) -> None:
    """No call holds the server for long, and the order is kept across them."""
    entries = [b"%d" % n for n in range(13_000)]
    redis.rpush("out", *entries)
    leases = [egress.lease("out", 6_000, 60).id for _ in range(2)]
    leases += [egress.lease("out", 1, 60).id for _ in range(150)]
    let_lapse(redis, *leases)

    first = scripts.LAPSE(redis, list(KEYS), [])
    lease = egress.lease("out", 6_001, 60)

    assert first == [100, 1]
    assert list(lease.entries) == entries[:6_001]
    assert waiting(redis) == entries[6_001:]


def test_nothing_is_left_when_all_is_done(redis: Redis, egress: Egress) -> None:
    """Only the name of the list, since a lease may begin at any moment."""
    redis.rpush("out", A, B)
    done, back = egress.lease("out", 1, 60).id, egress.lease("out", 1, 60).id
    egress.acknowledge("out", done)
    egress.give_back("out", back)
    egress.take("out", 1)
    let_lapse(redis, done, back)

    assert egress.put_back_lapsed() == 0
    assert redis.keys() == [LEASED.encode()]


def test_a_key_of_another_type_keeps_no_other_list_waiting(redis: Redis, egress: Egress) -> None:
    """It is named, and what is leased of it stays written down."""
    for name in ("bad", "out"):
        redis.rpush(name, A)
        redis.zadd(f"conserver:{{{name}}}:leases", {egress.lease(name, 1, 60).id: 0})
    redis.set("bad", "a string")

    with pytest.raises(ResponseError, match="wrong kind of value"):
        egress.put_back_lapsed()

    assert waiting(redis) == [A]
    assert redis.hvals("conserver:{bad}:leased").count(A) == 1


# A server or a reader in trouble


def test_a_full_server_leases_nothing_and_loses_nothing(redis: Redis, egress: Egress) -> None:
    """What has been leased can be acknowledged, given back and extended, and what is left can be taken."""
    redis.rpush("out", A, B, C, D, E)
    one, two = egress.lease("out", 2, 60).id, egress.lease("out", 1, 60).id

    with full(redis):
        with pytest.raises(ServerError, match="maxmemory"):
            egress.lease("out", 1, 60)
        assert waiting(redis) == [D, E]
        assert egress.acknowledge("out", one, [A]) == 1
        assert egress.extend("out", one, 60)
        assert egress.give_back("out", one) == 1
        assert waiting(redis) == [B, D, E]
        assert egress.take("out", 1) == [B]
    let_lapse(redis, two)
    with full(redis):
        assert egress.put_back_lapsed() == 1

    assert waiting(redis) == [C, D, E]


@pytest.mark.parametrize("rule", ["-hincrby", "-hset", "-zadd", "-ltrim", "-lrange"])
def test_a_lease_that_is_denied_on_its_way_takes_nothing(redis: Redis, egress: Egress, rule: str) -> None:
    """The list is as it was, nobody has anything, and later the entries are leased once."""
    redis.rpush("out", A, B)

    with denied(redis, rule), pytest.raises(ServerError):
        egress.lease("out", 2, 60)

    assert waiting(redis) == [A, B]
    assert A not in redis.hvals(HASH)
    assert redis.zcard(LEASES) == 0
    assert egress.lease("out", 2, 60).entries == (A, B)


@pytest.mark.parametrize("rule", ["-lpush", "-hdel"])
def test_a_return_that_is_denied_leaves_the_lease(redis: Redis, egress: Egress, rule: str) -> None:
    """Each entry is in one place, and it can be repeated."""
    redis.rpush("out", A, B)
    lease = egress.lease("out", 2, 60).id

    with denied(redis, rule), pytest.raises(ServerError):
        egress.give_back("out", lease)
    with read_only(redis), pytest.raises(ServerError):
        egress.give_back("out", lease)

    assert waiting(redis) == []
    assert egress.give_back("out", lease) == 2
    assert waiting(redis) == [A, B]


def test_what_a_killed_reader_had_comes_back(redis: Redis, egress: Egress, server_url: str) -> None:
    """It has died with its entries in hand; the next reader gets them, before what is behind them."""
    redis.rpush("out", A, B, C)
    with subprocess.Popen([sys.executable, "-c", READER, server_url]) as reader:
        wait_until(lambda: waiting(redis) == [C], 60)
        reader.send_signal(signal.SIGKILL)
    let_lapse(redis, "x")

    assert egress.lease("out", 3, 60).entries == (A, B, C)
    with pytest.raises(LeaseLapsed):
        egress.acknowledge("out", "x")


@pytest.mark.parametrize(
    ("n", "secs", "words"),
    [
        (0, 60, "n=0: must be more than 0, and 10,000 at the most"),
        (MOST_ENTRIES + 1, 60, "n=10001: must be more than 0, and 10,000 at the most"),
        (1, 0, "secs=0: must be more than 0, and 86,400 at the most"),
        (1, float("nan"), "secs=nan: must be more than 0, and 86,400 at the most"),
        (1, 86_401, "secs=86401: must be more than 0, and 86,400 at the most"),
    ],
)
def test_every_number_has_a_limit(redis: Redis, egress: Egress, n: int, secs: float, words: str) -> None:
    """Nobody holds the server, or an entry, for as long as he likes."""
    redis.rpush("out", A)
    with pytest.raises(ValueError, match=words):
        egress.lease("out", n, secs)
    with pytest.raises(ValueError, match="10,001 entries: a call takes 10,000 at the most"):
        egress.acknowledge("out", "x", [A] * (MOST_ENTRIES + 1))

    assert waiting(redis) == [A]


READER = """
import sys, time
from conserver.egress import Egress

Egress(sys.argv[1]).lease("out", 2, 60, "x")
time.sleep(99)
"""


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["push", "lease", "lease", "acknowledge", "give back", "lapse", "take", "put back"]),
        st.integers(1, 4),
        st.sampled_from(["", "", "reply", "request"]),
    ),
    min_size=10,
    max_size=40,
)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
@given(steps=STEPS)
def test_each_entry_is_in_exactly_one_place(server: str, steps: Sequence[tuple[str, int, str]]) -> None:
    """Whatever readers do, and whatever is lost on the wire: waiting, leased, or with a reader for good."""
    with Redis.from_url(server) as redis, proxied(server) as proxy:
        redis.flushall()
        egress, plain = Egress(proxy.url), Egress(server)
        pushed: Counter[bytes] = Counter()
        read: Counter[bytes] = Counter()
        leases: list[str] = []
        for number, (step, n, lost) in enumerate(steps):
            if lost and step in ("lease", "acknowledge", "give back"):
                (proxy.lose_next_reply if lost == "reply" else proxy.lose_next_request)()
            if step == "push":
                entries = [b"%d" % (number % 5)] * n
                redis.rpush("out", *entries)
                pushed.update(entries)
            elif step == "lease":
                leases.append(egress.lease("out", n, 60).id)
            elif step == "take":
                read.update(plain.take("out", n))
            elif step == "put back":
                plain.put_back_lapsed()
            elif step == "lapse":
                redis.zadd(LEASES, {leases[-n % len(leases)]: n}, xx=True) if leases else None
            elif leases:
                lease = leases[-n % len(leases)]
                had = left_of(redis, lease)
                try:
                    if step == "give back":
                        egress.give_back("out", lease, had[:n])
                    else:
                        assert egress.acknowledge("out", lease, had[:n]) == len(had[:n])
                        read.update(had[:n])
                except LeaseLapsed:
                    assert not had

            noted = Counter(value for field, value in redis.hgetall(HASH).items() if field.isdigit())
            assert noted + Counter(waiting(redis)) + read == pushed
            counts = {open_.id: open_.count for open_ in plain.leases("out")}
            assert counts == {lease: len(left) for lease in leases if (left := left_of(redis, lease))}


def left_of(redis: Redis, lease: str) -> list[bytes]:
    """What is written down for a lease and has neither been acknowledged nor gone back."""
    first, n = (int(number) for number in (redis.hget(HASH, f"@{lease}") or b"0 0").split()[:2])
    seqs = range(first + 1, first + n + 1)
    return [entry for entry in redis.hmget(HASH, list(seqs)) if entry is not None] if seqs else []
