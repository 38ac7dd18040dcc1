"""conserver.records: operators see what is under way on all hosts, and take claims from workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from conserver.claims import Claim, Note, Settlement
from conserver.errors import ClaimLost, ServerError
from conserver.queue import Queue
from conserver.records import Held, Records, Waiting
from conserver.session import Session
from conserver.settings import Settings
from conserver.store import VconStore
from tests.host import EFFECT, Host, accounted, entries, store, vcon
from tests.proxy import Proxy, proxied
from tests.server_moods import denied, full
from tests.waiting import wait_until

A, B, C, D = (f"018f3c5e-0000-8000-8000-00000000000{n}" for n in "abcd")
HELD, TAKEN, RETURNED = "conserver:{in}:held:host:1", "conserver:{in}:taken:host:1", "conserver:{in}:returned"

#: Waits until the test lets it go on, and writes into the vCon then.
SLOW = (
    EFFECT
    + """
from conserver import vcons

def run(vcon_uuid, link_name, opts):
    effect("began", link_name, vcon_uuid)
    while not os.path.exists("go"):
        time.sleep(0.02)
    if vcons.get(vcon_uuid).subject == "edits":
        with vcons.edit(vcon_uuid) as vcon:
            vcon.add_tag("done", "yes")
    effect("ended", link_name, vcon_uuid)
    return vcon_uuid
"""
)


@pytest.fixture
def records(server_url: str) -> Records:
    return Records(server_url)


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    with proxied(server_url) as proxy:
        yield proxy


def session(url: str, worker: str = "host:1", *lists: str) -> Session:
    session = Session(url, worker)
    session.join(lists or ["in"])
    return session


def claim(session: Session, n: int = 9, name: str = "in") -> list[Claim]:
    trip = session.trip([], {name: n})
    assert trip.trouble is None
    return trip.claims


# Looking


def test_the_claims_of_all_hosts_are_listed(redis: Redis, records: Records, server_url: str) -> None:
    """By list and seq, with what they have been through; a key of another type holds nothing."""
    redis.rpush("in", A)
    redis.rpush(RETURNED, Claim("in", 0, b"\xff", "", 1, 2, 3, Note(4, "x", A)).record(), b"9 from the future")
    redis.rpush("other", B)
    redis.set("conserver:{bad}:workers", "a string")
    claim(session(server_url, "host:1"), 2)
    claim(session(server_url, "ho:st:7"), 1)
    claim(session(server_url, "host:2", "other"), 1, "other")

    claims = records.claims(["other", "in", "bad", "empty"])

    assert claims == [
        Held("in", 1, "host:1", "host", b"\xff", 1, 2, 3, 4),
        Held("in", 2, "host:1", "host", b"9 from the future", 0, 0, 0, 0),
        Held("in", 3, "ho:st:7", "ho:st", A.encode(), 0, 0, 0, 0),
        Held("other", 1, "host:2", "host", B.encode(), 0, 0, 0, 0),
    ]


def test_claims_come_in_pages(redis: Redis, records: Records, server_url: str) -> None:
    """Eleven, so that an order by text would show; each page begins behind the last one."""
    redis.rpush("in", *[A] * 11)
    claim(session(server_url), 11)

    pages = [records.claims(["in"], after=after, count=4) for after in (None, ("in", 4), ("in", 8), ("in", 11))]

    assert [[held.seq for held in page] for page in pages] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11], []]


def test_what_waits_to_be_claimed_again_can_be_looked_at(redis: Redis, records: Records, server_url: str) -> None:
    """In each place, paged, the next one first; it stays there."""
    redis.rpush("in", A, B, C)
    one, two, three = claim(worker := session(server_url))
    two.attempts = 1
    worker.trip([Settlement(one).delay(600), Settlement(two).delay(60), Settlement(three).give_back()], {})
    redis.rpush("conserver:{in}:suspects", b"1 2 0 0 0\n" + D.encode())
    redis.rpush("conserver:{in}:parked", b"9 from the future")
    secs = redis.time()[0]

    seen = {what: records.waiting_again("in", what) for what in ("returned", "delayed", "suspects", "parked")}

    assert seen["returned"] == [Waiting(C.encode(), 0, 0, 0, 0)]
    assert seen["delayed"] == [
        Waiting(B.encode(), 0, 0, 1, 0, pytest.approx(secs + 60, abs=20)),
        Waiting(A.encode(), 0, 0, 0, 0, pytest.approx(secs + 600, abs=20)),
    ]
    assert seen["suspects"] == [Waiting(D.encode(), 2, 0, 0, 0)]
    assert seen["parked"] == [Waiting(b"9 from the future", 0, 0, 0, 0)]
    assert records.waiting_again("in", "delayed", 1, 1) == seen["delayed"][1:]
    assert records.waiting_again("in", "returned", 1) == []
    with pytest.raises(ValueError, match="'held': must be one of returned, delayed, suspects, parked"):
        records.waiting_again("in", "held")


def test_entries_of_a_list_can_be_looked_at(redis: Redis, server_url: str) -> None:
    """Paged, and they stay there."""
    redis.rpush("in", A, b"\xff", C)

    assert Queue(server_url).entries("in", 1, 1) == [b"\xff"]
    assert Queue(server_url).entries("in", 2) == [C.encode()]
    assert redis.llen("in") == 3


# Taking claims from workers


@pytest.mark.parametrize("how", ["return_claim", "drop_claim"])
def test_a_claim_that_was_taken_is_settled_saved_and_noted_by_nobody_else(
    redis: Redis, records: Records, server_url: str, how: str
) -> None:
    """Its worker is told so, as often as it asks, and goes on with the others that it holds."""
    store(redis, [vcon(uuid=A)])
    vcons = VconStore(server_url, Settings())
    redis.rpush("in", A, B)
    one, two = claim(worker := session(server_url))

    taken = [getattr(records, how)("in", "host:1", one.seq) for _ in range(2)]
    ends = [Settlement(one).push("out", A), Settlement(two).push("out", B)]
    results = [worker.trip(ends, {}).results for _ in range(2)]

    assert taken == [True, False]
    assert results == [[0, 1], [0, 1]]
    assert entries(redis, "out") == [B]
    assert not Queue(server_url).note(one, Note(1, "x", A))
    with pytest.raises(ClaimLost):
        vcons.writer((one.held_key, one.seq)).save(vcons.get(A))


def test_a_claim_that_is_returned_is_the_next(redis: Redis, records: Records, server_url: str) -> None:
    """Before all that came back earlier, with its note, and counted as nothing."""
    redis.rpush("in", A, B)
    (one,) = claim(worker := session(server_url), 1)
    Queue(server_url).note(one, note := Note(1, "x", A))
    redis.rpush(RETURNED, b"1 0 1 0 0\n" + C.encode())

    assert records.return_claim("in", "host:1", one.seq)
    again = claim(worker)

    assert [(c.entry.decode(), c.seq, c.returns) for c in again] == [(A, 2, 0), (C, 3, 1), (B, 4, 0)]
    assert again[0].note == note
    assert worker.trip([Settlement(one), Settlement(again[0]).push("out", A)], {}).results == [0, 1]


def test_a_claim_that_is_dropped_is_nowhere(redis: Redis, records: Records, server_url: str) -> None:
    """And it alone."""
    redis.rpush("in", A, B)
    one, two = claim(session(server_url))

    assert records.drop_claim("in", "host:1", one.seq)
    assert [held.seq for held in records.claims(["in"])] == [two.seq]
    assert not redis.exists(RETURNED, "in", "DLQ:in")


def test_what_is_settled_or_unknown_cannot_be_taken(redis: Redis, records: Records, server_url: str) -> None:
    """The worker was quicker, and is not told anything else when it asks again."""
    redis.rpush("in", A)
    (one,) = claim(worker := session(server_url))
    end = Settlement(one).push("out", A)
    worker.trip([end], {})

    taken = [records.return_claim("in", "host:1", one.seq), records.drop_claim("in", "host:2", 1)]

    assert taken == [False, False]
    assert worker.trip([end], {}).results == [1]
    assert not redis.exists(RETURNED, TAKEN)


def test_a_lost_claim_is_handed_out_although_another_was_taken(
    redis: Redis, proxy: Proxy, records: Records, server_url: str
) -> None:
    """The worker holds as many as it knows of, and they are others."""
    redis.rpush("in", A)
    worker = session(proxy.url)
    (one,) = claim(worker)
    redis.rpush("in", B)
    proxy.lose_next_reply()
    assert worker.trip([], {"in": 1}).claims == []
    records.drop_claim("in", "host:1", one.seq)
    redis.rpush("in", C)

    trip = worker.trip([], {"in": 2})

    assert trip.trouble is None
    assert [claim.entry.decode() for claim in trip.claims] == [B, C]


@pytest.mark.parametrize("end", ["recover", "leave"])
def test_what_was_taken_is_forgotten_with_its_worker(redis: Redis, records: Records, server_url: str, end: str) -> None:
    """It is kept for as long as its worker may ask, and no longer."""
    redis.rpush("in", A)
    (one,) = claim(worker := session(server_url))
    records.drop_claim("in", "host:1", one.seq)
    kept = redis.smembers(TAKEN)

    if end == "leave":
        worker.leave()
    else:
        Queue(server_url).recover("in", "host:1", "returned", limit=b"{}")

    assert kept == {b"1"}
    assert not redis.exists(TAKEN, "conserver:{in}:workers")


def test_claims_are_taken_on_a_full_server(redis: Redis, records: Records, server_url: str) -> None:
    """It takes no more memory than before."""
    redis.rpush("in", A, B)
    claim(session(server_url))

    with full(redis):
        assert records.return_claim("in", "host:1", 1)
        assert records.drop_claim("in", "host:1", 2)

    assert redis.lrange(RETURNED, 0, -1) == [b"1 0 0 0 0\n" + A.encode()]


@pytest.mark.parametrize("rule", ["-lpush", "-sadd", "-hdel"])
def test_a_claim_that_cannot_be_returned_stays_with_its_worker(
    redis: Redis, records: Records, server_url: str, rule: str
) -> None:
    """Who is refused has changed nothing."""
    redis.rpush("in", A)
    (one,) = claim(worker := session(server_url))

    with denied(redis, rule), pytest.raises(ServerError):
        records.return_claim("in", "host:1", one.seq)

    assert not redis.exists(TAKEN, RETURNED)
    assert worker.trip([Settlement(one).push("out", A)], {}).results == [1]
    assert entries(redis, "out") == [A]


def test_a_return_whose_reply_was_lost_is_not_repeated(redis: Redis, proxy: Proxy, server_url: str) -> None:
    """Somebody else may hold it by now; who asks again is told that this worker does not."""
    redis.rpush("in", A)
    claim(session(server_url))
    records = Records(proxy.url)
    records.return_claim("in", "host:1", 99)

    proxy.lose_next_reply()
    with pytest.raises(ServerError):
        records.return_claim("in", "host:1", 1)

    assert redis.llen(RETURNED) == 1
    assert records.return_claim("in", "host:1", 1) is False


def test_a_worker_whose_claims_are_taken_delivers_none_of_them(
    redis: Redis, records: Records, server_url: str, tmp_path: Path
) -> None:
    """A real one, with slow links: what it loses it neither saves nor pushes nor counts, and its threads are free."""
    config = {
        "links": {"slow": {"module": "links.slow"}},
        "chains": {"main": {"links": ["slow"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
    }
    dropped, returned, kept, later = store(redis, [vcon(s) for s in ("edits", "", "edits", "edits")])
    given = redis.get(f"vcon:{dropped}")
    redis.rpush("in", dropped, returned, kept)
    env = {"CONSERVER_WORKERS": 1, "CONSERVER_VCON_CONCURRENCY": 3}
    host = Host(tmp_path, server_url, config, links={"slow": SLOW}, **env)
    try:
        host.start()
        wait_until(lambda: len(host.effects()) == 3, 60)
        claims = {held.entry.decode(): held for held in records.claims(["in"])}
        for uuid, take in ((dropped, records.drop_claim), (returned, records.return_claim)):
            assert take("in", claims[uuid].worker, claims[uuid].seq)
        assert wait_until(lambda: redis.lrange(RETURNED, 0, -1)) == [b"1 0 0 0 0\n" + returned.encode()]
        redis.rpush("in", *[later] * 6)
        (host.folder / "go").touch()
        wait_until(lambda: accounted(redis, ["in"]), 60)
        counted = wait_until(lambda: processed(host) if processed(host).get("delivered", 0) >= 8 else None, 30)
        assert host.stop() == 0
    finally:
        host.close()

    assert sorted(entries(redis, "out")) == sorted([returned, kept, *[later] * 6])
    assert redis.get(f"vcon:{dropped}") == given
    assert host.effects() == {("slow", u): n for u, n in ((dropped, 1), (returned, 2), (kept, 1), (later, 6))}
    assert counted == {"delivered": 8.0}
    assert host.said().count("not settled, since the claim was taken from this worker") == 2
    assert not redis.exists("DLQ:in")
    assert not redis.keys("conserver:*:taken:*")


def processed(host: Host) -> dict[str, float]:
    """How many vCons this host says that it has processed, by outcome."""
    lines = host.get("/metrics").text.splitlines()
    rows = [line.split() for line in lines if line.startswith("conserver_main_loop_count_vcons_processed_total{")]
    return {labels.partition('outcome="')[2].partition('"')[0]: float(value) for labels, value in rows}
