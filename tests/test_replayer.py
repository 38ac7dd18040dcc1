"""The replayer: dead letters of storages are saved by themselves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from conserver import replayer, vcons
from conserver.components import Storage
from conserver.errors import StorageError
from conserver.kept_lock import kept_lock
from conserver.queue import Queue
from conserver.replay import Replay
from conserver.replayer import Replayer
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.vcon import Vcon
from tests.host import Host, entries, store, vcon
from tests.waiting import wait_until

DEAD = "DLQ:storage:kept"


class Scene:
    """A storage that does as it is told, its dead letters, and its replayer."""

    def __init__(self, url: str, redis: Redis) -> None:
        self.redis = redis
        self.queue = Queue(url, "test")
        self.store = VconStore(url, Settings())
        self.down = False
        self.tries: list[tuple[float, str]] = []
        self.saved: set[str] = set()

    def bury(self, *subjects: str) -> list[str]:
        uuids = []
        for subject in subjects:
            document = Vcon.build_new()
            document.document["subject"] = subject
            self.store.create(document)
            uuids.append(str(document.uuid))
        self.redis.rpush(DEAD, *uuids)
        return uuids

    def save(self, uuid: str, options: Any) -> None:
        self.tries.append((time.monotonic(), uuid))
        if self.down or vcons.get(uuid).subject == "bad":
            raise StorageError("no room")
        self.saved.add(uuid)

    @contextmanager
    def replaying(self) -> Iterator[threading.Thread]:
        """Run the replayer while the block runs."""
        storage = Storage("kept", "storages.kept", self.save, {})
        stopping = threading.Event()
        one = self.replayer = Replayer(
            self.queue, Replay(self.queue, self.store, storage, Settings()), storage, stopping
        )
        thread = threading.Thread(target=one.run)
        thread.start()
        try:
            yield thread
        finally:
            stopping.set()
            thread.join(30)

    def left(self) -> list[str]:
        return [entry.decode() for entry in self.redis.lrange(DEAD, 0, -1)]


@pytest.fixture
def scene(redis: Redis, server_url: str, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """With pauses from a hundredth of a second."""
    for name in ("LOOK_SECS", "FIRST_PAUSE_SECS"):
        monkeypatch.setattr(replayer, name, 0.01)
    return Scene(server_url, redis)


def test_what_failed_is_saved_when_the_storage_works_again(scene: Scene) -> None:
    """Until then it is asked less and less often."""
    uuids = scene.bury(*["fine"] * 30)
    scene.down = True
    with scene.replaying():
        wait_until(lambda: len(scene.tries) >= 16, 60)
        scene.down = False
        wait_until(lambda: not scene.left(), 60)

    assert scene.saved == set(uuids)
    # Three tries a round, then a pause that has doubled four times by then, less the half of it that is random.
    assert scene.tries[15][0] - scene.tries[14][0] > 0.01 * 2**4 / 2


def test_what_the_storage_never_takes_keeps_nobody_up(scene: Scene) -> None:
    """However many there are in front; they stay dead letters, and are tried now and then."""
    bad = scene.bury(*["bad"] * 7)
    with scene.replaying():
        fine = scene.bury(*["fine"] * 5)
        wait_until(lambda: scene.saved == set(fine), 60)
        wait_until(lambda: sum(uuid == bad[0] for _, uuid in scene.tries) > 2, 60)

    assert scene.left() == bad


def test_a_vcon_that_comes_back_is_saved(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is nowhere is looked for again later."""
    monkeypatch.setattr(replayer, "LONGEST_LATE_SECS", 0.02)
    [uuid] = scene.bury("fine")
    text = scene.redis.getdel(f"vcon:{uuid}")
    with scene.replaying():
        wait_until(lambda: not scene.redis.exists(f"conserver:{{{DEAD}}}:replay"), 30)
        scene.redis.set(f"vcon:{uuid}", text)
        wait_until(lambda: scene.saved == {uuid}, 60)


def test_what_nothing_can_be_done_about_is_not_gone_through_all_the_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be many, and they may stay for weeks; what comes is seen at once all the same."""
    looks, rounds = [0], [0]
    dead_count, run = Queue.dead_count, Replay.run

    def look(queue: Queue, name: str) -> int:
        looks[0] += 1
        return dead_count(queue, name)

    def go(replay: Replay, **how: Any) -> Any:
        rounds[0] += 1
        return run(replay, **how)

    monkeypatch.setattr(Queue, "dead_count", look)
    monkeypatch.setattr(Replay, "run", go)
    scene.redis.rpush(DEAD, *(f"not a uuid {n}" for n in range(300)))
    with scene.replaying():
        wait_until(lambda: rounds[0] >= 3, 60)
        looked, went = looks[0], rounds[0]
        wait_until(lambda: looks[0] >= looked + 60, 60)
        went = rounds[0] - went
        [uuid] = scene.bury("fine")
        wait_until(lambda: scene.saved == {uuid}, 60)

    assert went <= 4


def test_what_was_saved_at_last_starts_afresh(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of its failures would have it wait when it comes again, and take room for ever."""
    monkeypatch.setattr(replayer, "LONGEST_LATE_SECS", 0.02)
    bad, other = scene.bury("bad", "bad")
    with scene.replaying():
        wait_until(lambda: sum(uuid == other for _, uuid in scene.tries) >= 2, 60)
        with scene.store.edit(other) as document:
            document.document["subject"] = "fine"
        wait_until(lambda: scene.left() == [bad], 60)
        wait_until(lambda: set(scene.replayer._late) == {bad}, 60)


def test_it_waits_for_who_is_at_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host, or somebody by hand."""
    monkeypatch.setattr(replayer, "LOCK_SECS", 0.03)
    asked = threading.Event()
    run = Replay.run
    monkeypatch.setattr(Replay, "run", lambda self, **how: (asked.set(), run(self, **how))[1])
    scene.bury("fine")
    with kept_lock(scene.store.client, f"conserver:{{{DEAD}}}:replay", 30.0), scene.replaying():
        asked.wait(30)
        asked.clear()
        asked.wait(30)
        meanwhile = list(scene.tries)
    with scene.replaying():
        wait_until(lambda: not scene.left(), 60)

    assert meanwhile == []


@pytest.mark.parametrize("error", [StorageError("away"), RuntimeError("a bug"), SystemExit(1)])
def test_nothing_ends_it(scene: Scene, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Whatever the storage raises, and whatever goes wrong beside it."""
    failures = 2
    dead_count = Queue.dead_count

    def fail(queue: Queue, name: str) -> int:
        nonlocal failures
        failures -= 1
        if failures >= 0 and isinstance(error, Exception):
            raise error
        return dead_count(queue, name)

    monkeypatch.setattr(Queue, "dead_count", fail)
    [uuid] = scene.bury("fine")
    save, scene.save = (
        scene.save,
        lambda uuid, options: (_ for _ in ()).throw(error) if failures > -5 else save(uuid, options),
    )  # type: ignore[method-assign]
    with scene.replaying() as thread:
        wait_until(lambda: scene.saved == {uuid}, 60)
        alive = thread.is_alive()

    assert alive


# As a process beside the workers

FOLDER = """
import os
from conserver import vcons

def save(vcon_uuid, opts):
    if os.path.exists(opts["path"] + ".down"):
        raise ConnectionError("the folder is down")
    os.makedirs(opts["path"], exist_ok=True)
    with open(f"{opts['path']}/{vcon_uuid}", "w") as file:
        file.write(vcons.get(vcon_uuid).to_json())
"""


def host_with(tmp_path: Path, url: str, **entry: Any) -> Host:
    storage = {"module": "storages.folder", "options": {"path": str(tmp_path / "kept")}, **entry}
    chain = {"links": [], "storages": ["kept"], "ingress_lists": ["in"]}
    host = Host(tmp_path / "host", url, {"storages": {"kept": storage}, "chains": {"main": chain}}, CONSERVER_WORKERS=1)
    (host.folder / "storages").mkdir()
    (host.folder / "storages" / "folder.py").write_text(FOLDER)
    (tmp_path / "kept.down").touch()
    return host


def kept(tmp_path: Path) -> set[str]:
    return {file.name for file in (tmp_path / "kept").glob("*")}


def replayer_of(host: Host) -> Callable[[], int]:
    """The process that replays, or 0."""
    return lambda: host.status().get("services", {}).get("replayer", {}).get("pid", 0)


def test_the_process_comes_with_the_first_dead_letter(tmp_path: Path, redis: Redis, server_url: str) -> None:
    """Not before; a kill -9 of it loses nothing, and it counts what it has saved."""
    uuids = store(redis, [vcon() for _ in range(3)])
    host = host_with(tmp_path, server_url).start()
    try:
        before = replayer_of(host)()
        redis.rpush("in", *uuids)
        first = wait_until(replayer_of(host), 60)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: replayer_of(host)() not in (0, first), 60)
        (tmp_path / "kept.down").unlink()
        wait_until(lambda: redis.llen(DEAD) == 0, 60)

        assert before == 0
        assert kept(tmp_path) == set(uuids)
        counted = 'conserver_storage_replayed_total{backend="kept"} 3'
        wait_until(lambda: counted in host.get("/metrics").text, 30)
        assert host.stop() == 0
    finally:
        host.close()


def test_a_storage_may_be_left_to_an_operator(tmp_path: Path, redis: Redis, server_url: str) -> None:
    """With `replay: false`."""
    uuids = store(redis, [vcon()])
    host = host_with(tmp_path, server_url, replay=False).start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.llen(DEAD) == 1, 60)
        looked = wait_until(lambda: host.status().get("at"), 30)
        wait_until(lambda: host.status().get("at", 0) > looked + 2, 30)

        assert replayer_of(host)() == 0
    finally:
        host.close()


def test_a_storage_that_hangs_when_it_is_read_keeps_no_other_from_catching_up(
    tmp_path: Path, redis: Redis, server_url: str
) -> None:
    """It is asked for what is not in Redis any more; what is there goes to the storage that works."""
    host = host_with(tmp_path, server_url)
    host.env["CONSERVER_STORAGE_TIMEOUT_SECS"] = "1"
    (host.folder / "storages" / "asleep.py").write_text(
        "import threading\ndef save(vcon_uuid, opts): ...\ndef get(vcon_uuid, opts): threading.Event().wait()\n"
    )
    kept_one = {"module": "storages.folder", "options": {"path": str(tmp_path / "kept")}}
    asleep = {"module": "storages.asleep", "options": {}}
    chain = {"links": [], "storages": ["kept"], "ingress_lists": ["in"]}
    host.configure({"storages": {"asleep": asleep, "kept": kept_one}, "chains": {"main": chain}})
    (tmp_path / "kept.down").unlink()
    gone = [f"018f3c5e-0000-8000-8000-0000000001{n:02}" for n in range(8)]
    uuids = store(redis, [vcon() for _ in range(3)])
    redis.rpush(DEAD, *gone, *uuids)
    host.start()
    try:
        wait_until(lambda: entries(redis, DEAD) == gone, 60)
        assert kept(tmp_path) == set(uuids)
    finally:
        host.close()
