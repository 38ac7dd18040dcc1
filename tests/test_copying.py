"""Copying from one storage to another."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from conserver.copying import Copied, Copying, CopyRuns
from conserver.errors import StorageError
from conserver.places import PlaceDown
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.testing import two_party_call
from conserver.vcon import Vcon, to_version
from tests.shelves import Gate, Shelf, stored
from tests.waiting import wait_until

KEY = "conserver:{copy:old:new}"


class Setup:
    """Two storages, the older one of which is copied to the newer one."""

    def __init__(self, url: str) -> None:
        self.store = VconStore(url, Settings())
        self.old, self.new = Shelf("old"), Shelf("new")

    def copying(self, **how: Any) -> Copying:
        return Copying(self.store, self.old.place(self.store), self.new.place(self.store), **how)

    def copy(self, *, restart: bool = False, threads: int = 4, **how: Any) -> dict[str, Copied]:
        return {one.uuid: one for one in self.copying(**how).run(restart=restart, threads=threads)}

    def states(self, **how: Any) -> Counter[str]:
        return Counter(one.state for one in self.copy(**how).values())


@pytest.fixture
def setup(server_url: str) -> Setup:
    return Setup(server_url)


def test_what_is_copied_is_what_the_storage_gave(setup: Setup, redis: Redis) -> None:
    """To the letter of an old draft; Redis has neither a vCon nor progress afterwards."""
    old = to_version(two_party_call().document, "0.0.1")
    setup.old.held = {old["uuid"]: Vcon(old).to_bytes()}
    uuid = setup.old.put()
    done = setup.copy()

    assert {one.state for one in done.values()} == {"copied"}
    assert setup.new.held == setup.old.held
    assert redis.keys("*") == []
    assert setup.states() == {"equal": 2}
    assert setup.store.text(uuid) is None


def test_what_differs_is_left(setup: Setup) -> None:
    """Unless it is to be overwritten."""
    uuid = setup.old.put("older")
    setup.new.held[uuid] = setup.old.held[uuid].replace(b"older", b"newer")

    assert setup.copy()[uuid] == Copied(uuid, "different", "at /subject")
    assert setup.new.subject(uuid) == "newer"
    assert setup.copy(overwrite=True)[uuid] == Copied(uuid, "overwritten")
    assert setup.new.subject(uuid) == "older"


def test_what_was_erased_is_not_copied(setup: Setup) -> None:
    """A storage that could not delete a vCon does not spread it."""
    uuid = setup.old.put()
    setup.store.delete(uuid)

    assert setup.copy()[uuid] == Copied(uuid, "erased")
    assert setup.new.held == {}


def test_these_and_no_others(setup: Setup) -> None:
    """One that is not there is told."""
    here, gone, _ = setup.old.put(), str(two_party_call().uuid), setup.old.put()

    assert setup.copy(uuids=[gone, here]) == {here: Copied(here, "copied"), gone: Copied(gone, "missing")}


def test_a_storage_without_a_list_is_walked_by_the_index(setup: Setup) -> None:
    """What Redis knows of, though it may have expired there."""
    setup.old = Shelf("old", list_uuids=None)
    known, unknown, elsewhere = stored(setup.store), setup.old.put(), stored(setup.store)
    setup.old.place(setup.store).put_newest(known)
    setup.store.client.delete(f"vcon:{known}")
    copying = setup.copying()
    done = {one.uuid: one.state for one in copying.run()}

    assert copying.by_index
    assert done == {known: "copied", elsewhere: "missing"}
    assert unknown not in setup.new.held


def test_a_storage_must_be_able_to_do_it(setup: Setup) -> None:
    """To give back, and to show what it would lose."""
    setup.new = Shelf("new", get=None)
    uuid = setup.old.put()
    with pytest.raises(
        StorageError, match=r"storage 'new': storages.shelf has no get, so what it holds cannot be seen"
    ):
        setup.copying()

    assert setup.copy(overwrite=True)[uuid].state == "copied"
    setup.old = Shelf("old", get=None)
    with pytest.raises(StorageError, match=r"storage 'old': storages.shelf has no get, so nothing can be copied"):
        setup.copying()


# While chains work


def test_a_version_that_is_not_in_the_storage_yet_waits(setup: Setup) -> None:
    """Redis holds another one than the storage: a chain is about to save it. It is tried again at the end."""
    uuid = stored(setup.store, "first")
    setup.old.place(setup.store).put_newest(uuid)
    with setup.store.edit(uuid) as vcon:
        vcon.document["subject"] = "second"

    assert setup.copy()[uuid] == Copied(uuid, "unsaved", "Redis holds another version, which 'old' does not have")
    assert setup.new.held == {}
    setup.old.place(setup.store).put_newest(uuid)
    assert setup.copy()[uuid].state == "copied"
    assert setup.new.subject(uuid) == "second"


def test_a_version_that_only_the_other_storage_has_is_fine(setup: Setup) -> None:
    """It is what Redis holds."""
    uuid = stored(setup.store, "first")
    setup.old.place(setup.store).put_newest(uuid)
    with setup.store.edit(uuid) as vcon:
        vcon.document["subject"] = "second"
    setup.new.place(setup.store).put_newest(uuid)

    assert setup.copy()[uuid].state == "equal"


@pytest.mark.parametrize("both", [True, False], ids=["to both", "to the new one first"])
def test_a_chain_that_saves_meanwhile_is_not_undone(setup: Setup, both: bool) -> None:
    """Its newer version may come to the storage just before the one that is copied."""
    uuid = stored(setup.store, "first")
    setup.old.place(setup.store).put_newest(uuid)

    def chain(saved: str) -> None:
        setup.new.before_save = lambda uuid: None
        with setup.store.edit(uuid) as vcon:
            vcon.document["subject"] = "second"
        for shelf in (setup.new, setup.old) if both else (setup.new,):
            shelf.place(setup.store).put_newest(uuid)

    setup.new.before_save = chain
    done = setup.copy()

    assert done[uuid].state in ("copied", "overwritten")
    assert setup.new.subject(uuid) == "second"


# Going on


def test_two_thousand_and_a_run_that_is_broken_off(setup: Setup) -> None:
    """It goes on where it was: nearly nothing is asked for twice."""
    uuids = sorted(setup.old.put() for _ in range(2000))
    run = setup.copying().run()
    for _, one in zip(range(1100), run, strict=False):
        assert one.state == "copied"
    run.close()  # type: ignore[attr-defined]
    wait_until(lambda: not any(thread.name == "storages" for thread in threading.enumerate()))
    setup.old.calls.clear()
    copying = setup.copying()
    before = copying.progress
    done = list(copying.run())

    assert before.counts == {"copied": 1000}
    assert before.after == uuids[999]
    assert len(done) == 1000
    assert len([call for call in setup.old.calls if call.startswith("get")]) == 1000
    assert sum(copying.progress.counts.values()) == 2000
    assert setup.new.held == setup.old.held


@pytest.mark.parametrize("walk", ["list", "index", "given"])
def test_each_walk_can_be_gone_on_with(setup: Setup, walk: str) -> None:
    """By the storage's list, by the index, or along the UUIDs that were given."""
    if walk == "index":
        setup.old = Shelf("old", list_uuids=None)
    uuids = [stored(setup.store) for _ in range(500)]
    for uuid in uuids:
        setup.old.place(setup.store).put_newest(uuid)
    given = {"uuids": uuids} if walk == "given" else {}
    run = setup.copying(**given).run()
    for _ in zip(range(300), run, strict=False):
        pass
    run.close()  # type: ignore[attr-defined]

    assert setup.copying(**given).progress.counts == {"copied": 200}
    assert sum(setup.states(**given).values()) == 300
    assert setup.new.held == setup.old.held


@pytest.mark.parametrize("how", [{"restart": True}, {"overwrite": True}, {"uuids": []}, {"elsewhere": True}])
def test_another_copy_begins_anew(setup: Setup, how: dict[str, Any]) -> None:
    """Asked for, or since something else is copied, or to another place."""
    for _ in range(300):
        setup.old.put()
    run = setup.copying().run()
    for _ in zip(range(250), run, strict=False):
        pass
    run.close()  # type: ignore[attr-defined]
    if how.pop("elsewhere", False):
        setup.new = Shelf("new")
        setup.new.storage = replace(setup.new.storage, options={"path": "elsewhere"})

    assert sum(setup.states(**how).values()) == (0 if how == {"uuids": []} else 300)


def test_what_failed_is_tried_again(setup: Setup, redis: Redis) -> None:
    """It stops nothing, is tried once more at the end, and by the next run alone."""
    uuids = [setup.old.put() for _ in range(20)]
    bad = uuids[7]
    setup.new.trouble[bad] = "too large"
    first = list(setup.copying().run())
    left = setup.copying().left()
    again = setup.copy()
    setup.new.trouble.clear()
    last = setup.copying()
    done = list(last.run())

    assert Counter(one.state for one in first) == {"copied": 19, "failed": 2}
    assert first[-1] == Copied(bad, "failed", "storage 'new': too large")
    assert left == 1
    assert again == {bad: first[-1]}
    assert done == [Copied(bad, "copied")]
    assert last.progress.counts == {"copied": 20}
    assert redis.keys("*") == []


def test_a_storage_that_is_down_ends_it_and_it_goes_on_later(setup: Setup) -> None:
    """After a few failures in a row; nothing is left out when it is back."""
    for _ in range(300):
        setup.old.put()
    setup.new.trouble |= {"save": "no route", "ping": "no route"}
    with pytest.raises(PlaceDown, match="5 calls in a row have failed, the last one: storage 'new': no route"):
        setup.copy(threads=2)
    tried = len([call for call in setup.new.calls if call.startswith("save")])
    setup.new.trouble.clear()
    setup.copy()

    assert tried < 30
    assert setup.new.held == setup.old.held


def test_failures_in_a_row_do_not_hold_it_up_for_ever(setup: Setup) -> None:
    """A storage that cannot say that it works: each run leaves those that fail to the end."""
    setup.new = Shelf("new", ping=None)
    uuids = sorted(setup.old.put() for _ in range(30))
    setup.new.trouble |= dict.fromkeys(uuids[:12], "too large")
    for _ in range(5):
        try:
            setup.copy(threads=1)
        except PlaceDown:
            continue

    assert set(setup.new.held) == set(uuids[12:])


def test_a_storage_that_hangs_is_left_behind(setup: Setup) -> None:
    """Each call has its time; then it is down, and nobody waits for it."""
    gate = Gate()
    for _ in range(50):
        setup.old.put()
    setup.new.storage = replace(setup.new.storage, get=gate, ping=gate, timeout=0.1)

    with pytest.raises(PlaceDown, match=r"5 calls in a row have failed, the last one: storage 'new': .* 0\.1 s"):
        setup.copy()
    gate.open.set()


def test_one_copy_at_a_time(setup: Setup, redis: Redis) -> None:
    """The lock lapses by itself."""
    setup.old.put()
    told: list[str] = []
    expiry: list[Any] = []

    def second(uuid: str) -> None:
        expiry.append(redis.pttl(f"{KEY}:lock"))
        try:
            list(setup.copying().run())
        except CopyRuns as error:
            told.append(str(error))

    setup.new.before_save = second
    setup.copy()

    assert told == ["storage 'old' is being copied to 'new' already; if that process died, try again in 10 s"]
    assert 0 < expiry[0] <= 10_000


def test_progress_that_cannot_be_read_is_none(setup: Setup, redis: Redis) -> None:
    """What another program, or another version, has put there."""
    setup.old.put()
    redis.set(f"{KEY}:progress", "{")

    assert setup.states() == {"copied": 1}


def test_threads_copy_at_the_same_time(setup: Setup) -> None:
    """As many as are asked for."""
    together = threading.Barrier(4)
    for _ in range(4):
        setup.old.put()
    setup.new.before_save = lambda uuid: together.wait(30)

    assert setup.states(threads=4) == {"copied": 4}
