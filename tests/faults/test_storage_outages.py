"""Storages that go away, come back, hang or drip: nothing is lost, and nobody else waits for them."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from conserver.embedded import EmbeddedServer
from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.thorough, pytest.mark.timeout(300)]


class StorageServer:
    """The server of a `redis_storage`, apart from the one that the conserver works on."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedServer(folder)
        self.url = self._server.start()

    def kill(self) -> None:
        """Take it away without a word."""
        pid = self._server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self._server.is_running(), 90)

    def come_back(self) -> None:
        """Start it again with what it held."""
        self._server.restart_if_dead()

    def holds(self) -> dict[str, Any]:
        """The vCons in it, by UUID."""
        with Redis.from_url(self.url) as redis:
            return {key.decode().partition(":")[2]: json.loads(redis.get(key) or b"") for key in redis.keys("kept:*")}

    def stop(self) -> None:
        """End it."""
        self._server.stop()


@pytest.fixture
def away(tmp_path: Path) -> Iterator[StorageServer]:
    """The server of the storage `away`."""
    server = StorageServer(tmp_path / "away")
    yield server
    server.stop()


def make(tmp_path: Path, url: str, storage_url: str, *, storage: dict[str, Any], chain: dict[str, Any]) -> Host:
    """A host whose chain tags, and saves to a folder and to the server at *storage_url*."""
    config = {
        "links": {
            "act": {"module": "links.act", "options": {"sleep": 0.02, "act": False}},
            "tag": {"module": "links.tag", "options": {"tags": ["seen:yes"]}},
        },
        "storages": {
            "file": {"module": "storages.file", "options": {"path": str(tmp_path / "files"), "fsync": False}},
            "away": {
                "module": "storages.redis_storage",
                "options": {"redis_url": storage_url, "prefix": "kept"},
                **storage,
            },
        },
        "chains": {
            "main": {
                "links": ["act", "tag"],
                "storages": ["file", "away"],
                "ingress_lists": ["in"],
                "egress_lists": ["out"],
                **chain,
            }
        },
    }
    return Host(tmp_path / "host", url, config)


def files(tmp_path: Path) -> dict[str, Any]:
    """What the folder holds, by UUID."""
    return {file.stem: json.loads(file.read_text()) for file in (tmp_path / "files").rglob("*.json")}


def test_what_a_storage_missed_while_it_was_away_is_saved_when_it_is_back(
    tmp_path: Path, redis: Redis, server_url: str, away: StorageServer
):
    """Down at the start, there for a while, gone again: others have everything, and it catches up by itself."""
    uuids = store(redis, [vcon() for _ in range(60)])
    away.kill()
    host = make(tmp_path, server_url, away.url, storage={}, chain={})
    try:
        host.start()
        for begin, change in ((0, away.come_back), (20, away.kill), (40, away.come_back)):
            redis.rpush("in", *uuids[begin : begin + 20])
            wait_until(lambda n=begin + 20: redis.llen("out") == n, 120)
            missed = entries(redis, "DLQ:storage:away")
            change()
            wait_until(lambda: not redis.exists("DLQ:storage:away"), 120)

        assert Counter(missed) == Counter(uuids[40:])
        assert accounted(redis, ["in"])
        assert Counter(entries(redis, "out")) == Counter(uuids)
        assert entries(redis, "DLQ:in") == []
        assert files(tmp_path) == away.holds()
        assert files(tmp_path).keys() == set(uuids)
    finally:
        host.close()


def test_a_required_storage_that_goes_away_is_waited_for(
    tmp_path: Path, redis: Redis, server_url: str, away: StorageServer
):
    """With `retry` its vCons are put aside and delivered when it is back, without a hand; nothing is dead."""
    uuids = store(redis, [vcon() for _ in range(300)])
    retry = {"attempts": 100, "backoff_secs": 0.2, "max_backoff_secs": 1}
    host = make(tmp_path, server_url, away.url, storage={"required": True}, chain={"retry": retry})
    try:
        host.start()
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.llen("out") > 50, 90)
        away.kill()
        wait_until(lambda: redis.zcard("conserver:{in}:delayed") > 20, 90)
        delivered = redis.llen("out")
        away.come_back()
        wait_until(lambda: accounted(redis, ["in"]), 120)

        assert delivered < 300
        assert Counter(entries(redis, "out")) == Counter(uuids)
        assert entries(redis, "DLQ:in") == entries(redis, "DLQ:storage:away") == []
        assert files(tmp_path) == away.holds()
        assert files(tmp_path).keys() == set(uuids)
    finally:
        host.close()


@contextmanager
def listening(*, drip: bool) -> Iterator[str]:
    """A server that takes connections and never comes to the end of an answer: a byte now and then, or none."""
    done = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def answer(client: socket.socket) -> None:
        try:
            client.recv(1)
            client.sendall(b"$100000\r\n")
            while not done.wait(0.2):
                if drip:
                    client.sendall(b"x")
        except OSError:
            return

    def accept() -> None:
        try:
            while True:
                client, _ = listener.accept()
                taken.append(client)
                threading.Thread(target=answer, args=(client,), daemon=True).start()
        except OSError:
            return

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
        for each in [listener, *taken]:
            each.close()


@pytest.mark.parametrize(
    ("drip", "storages"), [(False, ["slow"]), (True, ["file", "slow"])], ids=["hangs", "drips-beside-another"]
)
def test_other_chains_do_not_feel_a_storage_that_does_not_answer(
    tmp_path: Path, redis: Redis, server_url: str, drip: bool, storages: list[str]
):
    """While one chain waits for its storage, vCon by vCon, all 300 of the other chain go through one worker."""
    slow, fast = (store(redis, [vcon() for _ in range(n)]) for n in (40, 300))
    with listening(drip=drip) as storage_url:
        config = {
            "links": {"act": {"module": "links.act", "options": {"act": False}}},
            "storages": {
                "file": {"module": "storages.file", "options": {"path": str(tmp_path / "files"), "fsync": False}},
                "slow": {"module": "storages.redis_storage", "options": {"redis_url": storage_url}, "timeout": 1.0},
            },
            "chains": {
                name: {
                    "links": ["act"],
                    "storages": used,
                    "ingress_lists": [f"in-{name}"],
                    "egress_lists": [f"out-{name}"],
                }
                for name, used in (("slow", storages), ("fast", ["file"]))
            },
        }
        host = Host(tmp_path / "host", server_url, config, CONSERVER_WORKERS=1)
        try:
            host.start()
            redis.rpush("in-slow", *slow)
            wait_until(lambda: redis.llen("DLQ:storage:slow") >= 1, 90, "the storage at its worst")
            redis.rpush("in-fast", *fast)
            wait_until(lambda: redis.llen("out-fast") == 300, 120)
            wait_until(lambda: accounted(redis, ["in-slow", "in-fast"]), 120)

            assert Counter(entries(redis, "out-slow")) == Counter(entries(redis, "DLQ:storage:slow")) == Counter(slow)
            assert Counter(entries(redis, "out-fast")) == Counter(fast)
            assert entries(redis, "DLQ:in-slow") == entries(redis, "DLQ:in-fast") == []
            assert host.stop() == 0
        finally:
            host.close()
