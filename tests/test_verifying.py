"""Verification: whether a storage holds what Redis holds."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from conserver.claims import Claim
from conserver.places import PlaceDown
from conserver.queue import Queue
from conserver.records import Records
from conserver.session import Session
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.testing import two_party_call
from conserver.vcon import to_version
from conserver.verifying import Verdict, Verification
from tests.shelves import Gate, Shelf, stored


class Setup:
    """A storage beside Redis; the chain that saves to it reads `in`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = VconStore(url, Settings())
        self.shelf = Shelf()

    def verify(self, **how: Any) -> dict[str, Verdict]:
        queue, records = Queue(self.url), Records(self.url)
        verification = Verification(self.shelf.place(self.store), self.store, queue, records, ["in"])
        return {verdict.uuid: verdict for verdict in verification.run(**how)}

    def saved(self, subject: str = "call", **members: Any) -> str:
        uuid = stored(self.store, subject, **members)
        self.shelf.place(self.store).put_newest(uuid)
        return uuid

    def change(self, uuid: str, subject: str = "changed") -> None:
        with self.store.edit(uuid) as vcon:
            vcon.document["subject"] = subject


@pytest.fixture
def setup(server_url: str) -> Setup:
    return Setup(server_url)


def test_each_vcon_has_its_verdict(setup: Setup, redis: Redis) -> None:
    """Equal, missing, different with its place, not to be read, and not in Redis any more."""
    equal, missing, broken, gone = setup.saved(), stored(setup.store), setup.saved(), setup.saved()
    different, none, other = setup.saved(), setup.saved(), setup.saved()
    setup.shelf.held[different] = setup.store.read(different).replace(b"kettle", b"teapot")
    setup.shelf.trouble[broken] = "cannot read it"
    redis.delete(f"vcon:{gone}")
    redis.set(f"vcon:{none}", "no JSON")
    redis.delete(f"vcon:{other}")
    redis.rpush(f"vcon:{other}", "a list")
    verdicts = setup.verify()

    assert verdicts == {
        equal: Verdict(equal, "equal"),
        missing: Verdict(missing, "missing"),
        different: Verdict(different, "different", "at /dialog/0/url"),
        broken: Verdict(broken, "unreadable", "storage 'shelf': cannot read it"),
        gone: Verdict(gone, "gone"),
        none: verdicts[none],
        other: verdicts[other],
    }
    for one in (verdicts[none], verdicts[other]):
        assert one.state == "unreadable"
        assert one.why.startswith("Redis holds what is no vCon: ")


def test_a_storage_may_hold_an_older_version_of_the_draft(setup: Setup) -> None:
    """It was set to write that, or Redis holds what another program wrote."""
    uuid = setup.saved()
    old = to_version(setup.store.get(uuid).document, "0.0.1")
    setup.shelf.held[uuid] = json.dumps(old).encode()

    assert setup.verify()[uuid].state == "equal"


def test_what_redis_has_newer_and_keeps_is_not_wrong(setup: Setup, redis: Redis) -> None:
    """But if it is to expire, somebody has taken that version for saved."""
    uuid, expiring = setup.saved(), setup.saved()
    for one in (uuid, expiring):
        setup.change(one)
    redis.expire(f"vcon:{expiring}", 1000)
    verdicts = setup.verify()

    assert verdicts[uuid] == Verdict(uuid, "newer", "at /subject")
    assert verdicts[expiring] == Verdict(expiring, "different", "at /subject")


def test_what_is_on_its_way_is_not_wrong(setup: Setup, redis: Redis) -> None:
    """It waits, is held, waits again, or is a dead letter of the chain or of the storage."""
    names = ["held", "waits", "returned", "delayed", "dead", "not saved", "nowhere"]
    uuids = {name: stored(setup.store) for name in names}
    redis.rpush("in", uuids["held"], uuids["waits"])
    session = Session(setup.url, "worker-1")
    session.join(["in"])
    [claim] = session.trip([], {"in": 1}).claims
    record = Claim("in", 1, uuids["returned"].encode(), "").record()
    redis.rpush("conserver:{in}:returned", record)
    redis.zadd("conserver:{in}:delayed", {b"7:" + Claim("in", 7, uuids["delayed"].encode(), "").record(): 1})
    redis.rpush("DLQ:in", uuids["dead"])
    redis.rpush("DLQ:storage:shelf", uuids["not saved"].upper())
    verdicts = setup.verify()

    assert claim.uuid == uuids["held"]
    assert {name: (verdicts[uuid].state, verdicts[uuid].why) for name, uuid in uuids.items()} == {
        "held": ("unsaved", "it is being worked on"),
        "waits": ("unsaved", "it waits in 'in'"),
        "returned": ("unsaved", "it is to be worked on again by 'in'"),
        "delayed": ("unsaved", "it is to be worked on again by 'in'"),
        "dead": ("unsaved", "it is a dead letter of 'in'"),
        "not saved": ("unsaved", "it is a dead letter of 'storage:shelf'"),
        "nowhere": ("missing", ""),
    }


def test_a_long_list_is_read_to_its_head(setup: Setup, redis: Redis) -> None:
    """However many entries wait behind."""
    uuid = stored(setup.store)
    redis.rpush("in", uuid, *(str(two_party_call().uuid) for _ in range(2500)))

    assert setup.verify()[uuid].state == "unsaved"


def test_what_changes_while_it_is_compared_is_not_wrong(setup: Setup) -> None:
    """Neither if it is saved between the looks, nor if it is not saved yet."""
    saved, changing = stored(setup.store), setup.saved()
    looks = Counter[str]()
    get = setup.shelf.get

    def change_and_get(uuid: str, options: Any) -> Any:
        looks[uuid] += 1
        if uuid == saved and looks[uuid] == 2:
            setup.shelf.place(setup.store).put_newest(uuid)
        if uuid == changing:
            setup.change(uuid, f"change {looks[uuid]}")
            setup.change(uuid, f"again {looks[uuid]}")
        return get(uuid, options)

    setup.change(changing)
    setup.shelf.storage = replace(setup.shelf.storage, get=change_and_get)
    verdicts = setup.verify()

    assert looks == {saved: 2, changing: 2}
    assert verdicts[saved].state == "equal"
    assert verdicts[changing] == Verdict(changing, "unsaved", "it was changed while it was compared")


def test_repair_saves_again(setup: Setup) -> None:
    """What is missing or differs is saved, and the rest is left alone."""
    missing, newer, equal, refused = stored(setup.store), setup.saved(), setup.saved(), stored(setup.store)
    setup.change(newer)
    setup.shelf.calls.clear()
    setup.shelf.trouble[f"save {refused}"] = "too large"
    verdicts = setup.verify(repair=("missing", "newer"))

    assert verdicts[missing] == Verdict(missing, "repaired", "it was missing")
    assert verdicts[newer] == Verdict(newer, "repaired", "it was newer at /subject")
    assert verdicts[refused] == Verdict(refused, "missing", "not repaired: storage 'shelf': too large")
    assert setup.shelf.subject(newer) == "changed"
    assert [call for call in setup.shelf.calls if call == f"save {equal}"] == []
    assert {verdict.state for uuid, verdict in setup.verify().items() if uuid != refused} == {"equal"}


def test_since_and_limit(setup: Setup) -> None:
    """Those that were created last come first."""
    old, middle, new = (setup.saved(created_at=f"2026-01-0{day}T00:00:00Z") for day in (1, 2, 3))

    assert list(setup.verify(limit=2, threads=1)) == [new, middle]
    assert set(setup.verify(since=1767225600.0 + 86400)) == {new, middle}
    assert set(setup.verify()) == {new, middle, old}


def test_two_thousand(setup: Setup) -> None:
    """More than a page, more than is looked at again together."""
    for _ in range(600):
        setup.saved()
    for _ in range(1400):
        stored(setup.store)
    verdicts = setup.verify()

    assert Counter(verdict.state for verdict in verdicts.values()) == {"equal": 600, "missing": 1400}


def test_a_storage_that_is_down_ends_it(setup: Setup) -> None:
    """Not every vCon waits for its timeout."""
    for _ in range(50):
        stored(setup.store)
    gate = Gate()
    setup.shelf.storage = replace(setup.shelf.storage, get=gate, ping=gate, timeout=0.1)

    with pytest.raises(PlaceDown, match=r"5 calls in a row have failed, the last one: storage 'shelf': .* 0\.1 s"):
        setup.verify()
    gate.open.set()
