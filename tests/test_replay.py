"""Replay of what a storage could not save."""

from __future__ import annotations

import threading
import uuid as uuids
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from conserver import vcons
from conserver.components import Storage
from conserver.errors import ServerError, StorageError
from conserver.queue import Queue
from conserver.replay import MOST_AT_ONCE, Replay, ReplayRuns
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.vcon import Vcon

DEAD = "DLQ:storage:files"


class Setup:
    """A storage that remembers what it saved, with its dead letters."""

    def __init__(self, url: str, redis: Redis) -> None:
        self.url = url
        self.redis = redis
        self.queue = Queue(url, "test")
        self.store = VconStore(url, Settings())
        self.saved: list[tuple[str, str | None]] = []

    def vcon(self, subject: str = "call") -> str:
        vcon = Vcon.build_new()
        vcon.document["subject"] = subject
        self.store.create(vcon)
        return str(vcon.uuid)

    def bury(self, *uuids_of_dead: str) -> None:
        self.redis.rpush(DEAD, *uuids_of_dead)

    def left(self) -> list[str]:
        return [entry.decode() for entry in self.redis.lrange(DEAD, 0, -1)]

    def save(self, uuid: str, options: Any) -> None:
        self.saved.append((uuid, vcons.get(uuid).subject))

    def replay(self, save: Callable[[str, Any], Any] | None = None, **how: Any) -> Any:
        more = {name: how.pop(name) for name in ("timeout", "get", "delete") if name in how}
        storage = Storage("files", "storages.files", save or self.save, {}, **more)
        others = how.pop("others", ())
        return Replay(self.queue, self.store, storage, Settings(), [storage, *others], ["other"]).run(**how)


@pytest.fixture
def setup(redis: Redis, server_url: str) -> Setup:
    return Setup(server_url, redis)


def test_saves_the_current_version_in_order_and_drops_the_entries(setup: Setup) -> None:
    """What was changed after the failure is what is saved."""
    first, second = setup.vcon(), setup.vcon()
    setup.bury(first, second)
    with setup.store.edit(first) as vcon:
        vcon.document["subject"] = "changed since"
    done = setup.replay()

    assert setup.saved == [(first, "changed since"), (second, "call")]
    assert (done.saved, done.failed, done.missing, done.left) == (2, "", [], 0)
    assert setup.left() == []


def test_stops_at_the_first_failure(setup: Setup) -> None:
    """A storage that is down is not asked for every vCon; the entry stays, and so do those behind it."""
    uuids_of_dead = [setup.vcon() for _ in range(5)]
    setup.bury(*uuids_of_dead)

    def save(uuid: str, options: Any) -> None:
        if uuid == uuids_of_dead[1]:
            raise StorageError("no room")
        setup.save(uuid, options)

    done = setup.replay(save)

    # The third one was under way beside the second.
    assert done.saved == 2
    assert done.failed == f"{uuids_of_dead[1]}: no room"
    assert done.left == 3
    assert setup.left() == [uuids_of_dead[1], *uuids_of_dead[3:]]


def test_passes_over_what_is_nowhere(setup: Setup) -> None:
    """A vCon that was deleted, or an entry that is no UUID, stays for the operator and keeps nobody up."""
    gone, here = str(uuids.uuid4()), setup.vcon()
    setup.bury(gone, "not a uuid", here)
    done = setup.replay()

    assert setup.saved == [(here, "call")]
    assert done.missing == [gone, "not a uuid"]
    assert done.left == 2
    assert setup.left() == [gone, "not a uuid"]


def test_most_limits_how_many_are_tried(setup: Setup) -> None:
    """The oldest come first."""
    uuids_of_dead = [setup.vcon() for _ in range(3)]
    setup.bury(*uuids_of_dead)
    done = setup.replay(most=2)

    assert (done.saved, done.left) == (2, 1)
    assert setup.left() == uuids_of_dead[2:]


def test_more_than_a_page(setup: Setup) -> None:
    """All of them, however many pages they fill."""
    uuids_of_dead = [setup.vcon() for _ in range(230)]
    setup.bury(*uuids_of_dead)
    done = setup.replay()

    assert done.saved == 230
    assert sorted(uuid for uuid, _ in setup.saved) == sorted(uuids_of_dead)


def test_a_storage_that_hangs_is_left_behind(setup: Setup) -> None:
    """It counts as a failure once its timeout is over."""
    setup.bury(setup.vcon())
    release = threading.Event()
    done = setup.replay(lambda uuid, options: release.wait(30), timeout=0.1)
    release.set()

    assert done.failed.endswith(": no answer within 0.1 s")
    assert done.left == 1


def test_a_second_replay_is_told_so(setup: Setup) -> None:
    """Two at once would save everything twice; the lock has an expiry and is gone afterwards."""
    setup.bury(setup.vcon())
    told: list[str] = []
    expiry: list[int] = []

    def save(uuid: str, options: Any) -> None:
        expiry.append(setup.redis.pttl(f"conserver:{{{DEAD}}}:replay"))
        try:
            setup.replay()
        except ReplayRuns as error:
            told.append(str(error))

    done = setup.replay(save)

    assert told == ["storage 'files' is being replayed already; if that process died, try again in 30 s"]
    assert 0 < expiry[0] <= 30_000
    assert done.saved == 1
    assert not setup.redis.exists(f"conserver:{{{DEAD}}}:replay")


def test_it_asks_more_and_more_at_once(setup: Setup) -> None:
    """One by one until the storage works, then a few at the same time, and never one vCon twice at once."""
    uuids_of_dead = [setup.vcon() for _ in range(30)]
    setup.bury(*uuids_of_dead, *uuids_of_dead)
    lock, together, busy = threading.Lock(), [], set()

    def save(uuid: str, options: Any) -> None:
        with lock:
            assert uuid not in busy
            busy.add(uuid)
            together.append(len(busy))
        # Long enough for others to begin.
        threading.Event().wait(0.01)
        with lock:
            busy.discard(uuid)

    done = setup.replay(save)

    assert (done.saved, done.left, together[0]) == (60, 0, 1)
    assert 1 < max(together) <= MOST_AT_ONCE


def test_it_may_go_on_past_what_the_storage_refuses(setup: Setup) -> None:
    """One vCon that it never takes keeps no other from being saved; three in a row end the replay."""
    refused, fine = [setup.vcon("bad"), setup.vcon("bad")], [setup.vcon() for _ in range(4)]
    last = [setup.vcon("bad") for _ in range(4)]
    setup.bury(refused[0], *fine[:2], refused[1], *fine[2:], *last)
    tried: list[str] = []

    def save(uuid: str, options: Any) -> None:
        tried.append(uuid)
        if vcons.get(uuid).subject == "bad":
            raise StorageError("too large")

    done = setup.replay(save, go_on=True, wanted=lambda uuid: uuid != last[0])

    assert (done.saved, set(done.failures)) == (4, {*refused, *last[1:]})
    assert setup.left() == [*refused, *last]
    assert last[0] not in tried


def test_what_changes_while_it_is_saved_is_saved_again(setup: Setup) -> None:
    """A chain may have saved the newer version in between, so the older one would stand."""
    uuid = setup.vcon("first")
    setup.bury(uuid)

    def save(uuid: str, options: Any) -> None:
        setup.save(uuid, options)
        if len(setup.saved) == 1:
            with setup.store.edit(uuid) as vcon:
                vcon.document["subject"] = "second"

    done = setup.replay(save)

    assert setup.saved == [(uuid, "first"), (uuid, "second")]
    assert (done.saved, done.left) == (1, 0)


def test_what_is_deleted_while_it_is_saved_does_not_come_back(setup: Setup) -> None:
    """Nobody would delete it from there any more."""
    uuid = setup.vcon()
    setup.bury(uuid)
    held: set[str] = set()

    def save(uuid: str, options: Any) -> None:
        held.add(uuid)
        setup.store.delete(uuid)

    done = setup.replay(save, delete=lambda uuid, options: held.discard(uuid))

    assert (done.saved, done.missing, held) == (0, [uuid], set())


def test_a_copy_expires_once_no_storage_lacks_it(setup: Setup) -> None:
    """The storage that has it now must be one that gives it back."""
    kept, lacking, one_way = setup.vcon(), setup.vcon(), setup.vcon()
    setup.bury(kept, lacking)
    setup.redis.hset("conserver:{DLQ:storage:other}:dead", lacking, '{"n":1}')
    setup.replay(get=lambda uuid, options: None)
    setup.bury(one_way)
    setup.replay()

    lives = [setup.redis.ttl(f"vcon:{uuid}") for uuid in (kept, lacking, one_way)]
    assert 0 < lives[0] <= 3600
    assert lives[1:] == [-1, -1]


def test_a_copy_that_expires_while_it_is_saved_undoes_nothing(setup: Setup) -> None:
    """Nobody has deleted the vCon, and this may be the only place that has it now."""
    uuid = setup.vcon()
    setup.bury(uuid)
    held: set[str] = set()

    def save(uuid: str, options: Any) -> None:
        held.add(uuid)
        setup.redis.delete(f"vcon:{uuid}")

    done = setup.replay(save, delete=lambda uuid, options: held.discard(uuid))

    assert (done.saved, done.missing, done.left, held) == (1, [], 0, {uuid})


def test_what_a_save_that_was_cut_off_has_left_of_a_deleted_vcon_is_deleted(setup: Setup) -> None:
    """It may have ended after the vCon was deleted there; until the entry is dropped, that is looked after."""
    uuid = setup.vcon()
    setup.bury(uuid)
    setup.store.delete(uuid)
    held = {uuid}
    done = setup.replay(delete=lambda uuid, options: held.discard(uuid))

    assert (done.missing, held) == ([uuid], set())


def test_a_death_when_the_entry_is_dropped_leaves_no_copy_for_ever(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else would let it expire."""
    uuid = setup.vcon()
    setup.bury(uuid)
    drop = Queue.drop_under

    def die(*args: Any, **more: Any) -> bool:
        drop(*args, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(Queue, "drop_under", die)
    with pytest.raises(KeyboardInterrupt):
        setup.replay(get=lambda uuid, options: None)

    assert setup.left() == []
    assert setup.redis.ttl(f"vcon:{uuid}") > 0


def test_the_last_of_two_replays_lets_it_expire(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the other storage gets the vCon just before the entry of this one is dropped."""
    uuid = setup.vcon()
    setup.bury(uuid)
    setup.redis.hset("conserver:{DLQ:storage:other}:dead", uuid, '{"n":1}')
    drop = Queue.drop_under

    def late(*args: Any, **more: Any) -> bool:
        setup.redis.delete("conserver:{DLQ:storage:other}:dead")
        return drop(*args, **more)

    monkeypatch.setattr(Queue, "drop_under", late)
    setup.replay(get=lambda uuid, options: None)

    assert setup.redis.ttl(f"vcon:{uuid}") > 0


def test_a_replay_that_has_lost_its_lock_drops_nothing(setup: Setup) -> None:
    """The entry may be another one by then: of a version that the storage was not given."""
    uuid = setup.vcon()
    setup.bury(uuid)

    with pytest.raises(ServerError, match="the lock of this replay of storage 'files' was lost; replay again"):
        setup.replay(lambda uuid, options: setup.redis.set(f"conserver:{{{DEAD}}}:replay", "somebody else"))

    assert setup.left() == [uuid]


def test_a_full_server_is_relieved(setup: Setup) -> None:
    """What storages have missed fills it; were it full, and nothing could be replayed, it would stay so."""
    uuids_of_dead = [setup.vcon() for _ in range(20)]
    setup.bury(*uuids_of_dead)
    setup.redis.config_set("maxmemory", "1")
    try:
        done = setup.replay(get=lambda uuid, options: None)
    finally:
        setup.redis.config_set("maxmemory", "0")

    assert (done.saved, done.left) == (20, 0)
    assert all(setup.redis.ttl(f"vcon:{uuid}") > 0 for uuid in uuids_of_dead)


def test_a_storage_is_asked_for_one_alone_until_one_is_saved(setup: Setup) -> None:
    """However many entries it is not asked for."""
    setup.bury(*(f"unwanted {n}" for n in range(400)), *(str(uuids.uuid4()) for _ in range(3)))
    setup.bury(*(setup.vcon() for _ in range(8)))
    begun = threading.Semaphore(0)
    alone: list[bool] = []

    def save(uuid: str, options: Any) -> None:
        if not alone:
            alone.append(not begun.acquire(timeout=0.2))
        begun.release()

    done = setup.replay(save, go_on=True, wanted=lambda entry: not entry.startswith("unwanted"))

    assert (done.saved, len(done.missing), alone) == (8, 3, [True])


def test_what_is_nowhere_does_not_count_as_a_storage_that_works(setup: Setup) -> None:
    """Three failures in a row end a replay, whatever was passed over between them."""
    bad = [setup.vcon() for _ in range(5)]
    setup.bury(*(entry for uuid in bad for entry in (uuid, str(uuids.uuid4()))))

    def save(uuid: str, options: Any) -> None:
        raise StorageError("no room")

    assert set(setup.replay(save, go_on=True).failures) == set(bad[:3])


def test_one_replay_after_the_other_takes_no_new_connections(setup: Setup) -> None:
    """A replayer runs for weeks, and looks every second."""
    storage = Storage("files", "storages.files", setup.save, {})
    replay = Replay(setup.queue, setup.store, storage, Settings())
    setup.bury("not a uuid")
    replay.run()
    before = setup.redis.info("stats")["total_connections_received"]
    for _ in range(10):
        replay.run()

    assert setup.redis.info("stats")["total_connections_received"] - before <= 2


def test_a_copy_expires_that_another_storage_gives_back(setup: Setup) -> None:
    """The storage that has caught up cannot; the one that can must hold this very version."""
    same, older, nowhere = setup.vcon(), setup.vcon(), setup.vcon()
    held = {uuid: setup.store.get(uuid).document for uuid in (same, older)}
    with setup.store.edit(older) as vcon:
        vcon.document["subject"] = "changed since"
    down = Storage("down", "storages.down", setup.save, {}, get=lambda uuid, options: 1 / 0)
    keeps = Storage("keeps", "storages.keeps", setup.save, {}, get=lambda uuid, options: held.get(uuid))
    setup.bury(same, older, nowhere)
    setup.replay(others=[down, keeps])

    lives = [setup.redis.ttl(f"vcon:{uuid}") for uuid in (same, older, nowhere)]
    assert 0 < lives[0] <= 3600
    assert lives[1:] == [-1, -1]
