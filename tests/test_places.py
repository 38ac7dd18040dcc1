"""Storages as places of their own: what can be asked of one, and done with one vCon there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from conserver import vcons
from conserver.errors import StorageError, VconNotFound
from conserver.places import (
    MOST_IN_A_ROW,
    Place,
    PlaceDown,
    in_threads,
    ping_all,
)
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.testing import two_party_call
from conserver.vcon import to_version
from tests.shelves import Gate, Shelf, stored
from tests.waiting import wait_until


@pytest.fixture
def store(server_url: str) -> VconStore:
    return VconStore(server_url, Settings())


# One vCon


def test_what_is_put_goes_past_redis(store: VconStore) -> None:
    """The very document is kept, also of an older draft; Redis learns nothing of it."""
    shelf, document = Shelf(), to_version(two_party_call().document, "0.0.1")
    kept = shelf.place(store).put(document["uuid"], document)

    assert kept is True
    assert shelf.get(document["uuid"], {}) == document
    assert store.text(document["uuid"]) is None


def test_a_storage_may_not_change_vcons_while_it_saves(store: VconStore) -> None:
    """What would be written to Redis, or deleted there, is refused."""
    uuid = stored(store)

    def edit(uuid: str, options: Any) -> None:
        with vcons.edit(uuid) as vcon:
            vcon.document["subject"] = "another"

    for save in (edit, lambda uuid, options: vcons.delete(uuid), lambda uuid, options: vcons.save(vcons.get(uuid))):
        shelf = Shelf()
        place = Place(replace(shelf.storage, save=save), store, 30)

        with pytest.raises(StorageError, match=r"may not (change|delete) vCons"):
            place.put(uuid, two_party_call(uuid).document)
    assert store.get(uuid).subject == "call"


def test_a_vcon_that_is_erased_meanwhile_is_taken_back(store: VconStore) -> None:
    """The save may come after the erasure; what it has put is deleted again."""
    shelf, uuid = Shelf(), stored(store)
    shelf.before_save = store.delete
    kept = shelf.place(store).put(uuid, two_party_call(uuid).document)

    assert kept is False
    assert shelf.held == {}


def test_an_erased_vcon_that_cannot_be_taken_back_is_told(store: VconStore) -> None:
    """Somebody has to delete it by hand."""
    shelf, uuid = Shelf(delete=None), stored(store)
    shelf.before_save = store.delete

    with pytest.raises(StorageError, match=r"was deleted meanwhile, and storages.shelf has no delete"):
        shelf.place(store).put(uuid, two_party_call(uuid).document)


def test_a_save_that_ends_late_keeps_the_copy_in_redis(store: VconStore, redis: Redis) -> None:
    """It may have replaced a newer version that a chain saved in between."""
    shelf, uuid, gate = Shelf(), stored(store), Gate()
    shelf.before_save = gate
    with pytest.raises(StorageError, match=r"storage 'shelf': no answer within 0\.1 s"):
        shelf.place(store, 0.1).put(uuid, two_party_call(uuid).document)
    redis.expire(f"vcon:{uuid}", 1000)
    gate.open.set()

    wait_until(lambda: redis.ttl(f"vcon:{uuid}") == -1)


def test_the_newest_version_is_put_until_it_stands(store: VconStore) -> None:
    """What changes during the save is saved again."""
    shelf, uuid = Shelf(), stored(store, "first")

    def change(uuid: str) -> None:
        shelf.before_save = lambda uuid: None
        with store.edit(uuid) as vcon:
            vcon.document["subject"] = "second"

    shelf.before_save = change
    shelf.place(store).put_newest(uuid)

    assert shelf.subject(uuid) == "second"
    with pytest.raises(VconNotFound):
        shelf.place(store).put_newest(str(two_party_call().uuid))


def test_what_is_deleted_there_stays_in_redis(store: VconStore, redis: Redis) -> None:
    """Its copy was about to expire since the storage had the vCon."""
    shelf, uuid = Shelf(), stored(store)
    place = shelf.place(store)
    place.put_newest(uuid)
    redis.expire(f"vcon:{uuid}", 1000)

    assert (place.delete(uuid), place.delete(uuid)) == (True, False)
    assert redis.ttl(f"vcon:{uuid}") == -1


def test_an_answer_that_is_another_vcon_is_an_error(store: VconStore) -> None:
    """A storage that mixes things up is not believed."""
    shelf, uuid = Shelf(), str(two_party_call().uuid)
    shelf.held[uuid] = two_party_call().to_bytes()

    with pytest.raises(StorageError, match=rf"storage 'shelf': get\({uuid}\) returned what is not this vCon"):
        shelf.place(store).get(uuid)


# Storages that do not work


def test_several_failures_in_a_row_mean_that_it_is_down(store: VconStore) -> None:
    """Where there is no `ping` to say otherwise."""
    shelf = Shelf(ping=None)
    shelf.trouble["get"] = "no room"
    place = shelf.place(store)
    for _ in range(MOST_IN_A_ROW - 1):
        with pytest.raises(StorageError, match="storage 'shelf': no room"):
            place.get("x")

    with pytest.raises(PlaceDown, match="5 calls in a row have failed, the last one: storage 'shelf': no room"):
        place.get("x")


def test_a_storage_whose_ping_works_is_not_down(store: VconStore) -> None:
    """Then it is about the vCons."""
    shelf = Shelf()
    shelf.trouble["get"] = "too large"
    place = shelf.place(store)
    for _ in range(3 * MOST_IN_A_ROW):
        with pytest.raises(StorageError, match="too large"):
            place.get("x")
    shelf.trouble["ping"] = "no route to it"
    for _ in range(MOST_IN_A_ROW - 1):
        with pytest.raises(StorageError):
            place.get("x")

    with pytest.raises(PlaceDown, match="5 calls in a row have failed, the last one: storage 'shelf': too large"):
        place.get("x")


def test_ping_asks_all_at_the_same_time(store: VconStore) -> None:
    """Each works, says what is wrong, hangs, or has none; errors have no secrets of the options."""
    good, bad, mute = Shelf("good"), Shelf("bad"), Shelf("mute", ping=None)
    both = threading.Barrier(2)
    gate = Gate()
    slow = Shelf("slow", ping=gate)
    again = Shelf("again", ping=lambda options: both.wait(30))
    more = Shelf("more", ping=lambda options: both.wait(30))
    bad.trouble["ping"] = "no login with s3cret"
    secret = Shelf("bad", ping=bad.ping, secrets=frozenset({"s3cret"}))
    shelves = [good, secret, mute, again, more]
    told = ping_all([*(shelf.place(store) for shelf in shelves), slow.place(store, 0.1)])
    gate.open.set()

    assert told == {
        "good": "",
        "bad": "no login with ***",
        "mute": None,
        "again": "",
        "more": "",
        "slow": "no answer within 0.1 s",
    }


# Lists


def test_a_list_comes_in_pages_and_from_any_place(store: VconStore) -> None:
    """Each page says where to go on behind it; what is no UUID is left out."""
    shelf = Shelf()
    uuids = sorted(shelf.put() for _ in range(450))
    shelf.held["0"] = b"{}"
    pages = list(shelf.place(store).uuids())

    assert [uuid for page, _ in pages for uuid in page] == uuids
    assert [after for _, after in pages] == [uuids[198], uuids[398], uuids[449]]
    assert [uuid for page, _ in shelf.place(store).uuids(uuids[398]) for uuid in page] == uuids[399:]


@pytest.mark.parametrize("wrong", [["b", "a"], ["b", "b"], ["a"]])
def test_a_list_that_is_not_in_order_is_refused(store: VconStore, wrong: list[str]) -> None:
    """A copy could not go on behind a place in it."""
    shelf = Shelf(list_uuids=lambda options, after: iter(wrong))

    with pytest.raises(StorageError, match="list_uuids must name each vCon once, and in order"):
        list(shelf.place(store).uuids("a"))


# Threads


def test_threads_work_at_the_same_time_and_a_caller_that_goes_waits_for_none() -> None:
    """What hangs is left behind, and nothing more is begun."""
    gate, both, begun = Gate(), threading.Barrier(3), list[int]()

    def work(item: int) -> int:
        begun.append(item)
        if item:
            both.wait(30)
            gate()
        return item

    results: Iterator[int] = in_threads(work, range(100), 2)
    first = next(results)
    both.wait(30)
    results.close()  # type: ignore[attr-defined]
    gate.open.set()
    wait_until(lambda: not any(thread.name == "storages" for thread in threading.enumerate()))

    assert first == 0
    assert sorted(begun) == [0, 1, 2]


def test_what_a_thread_raises_is_raised_to_the_caller() -> None:
    """It ends the others."""
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 // item, [1, 1, 0], 2))
