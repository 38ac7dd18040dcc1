"""conserver.worker: one process claims, runs and settles, whatever the server and the links do."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from redis import Redis

import conserver
from conserver.board import Board
from conserver.chain import Chain
from conserver.errors import ServerError, StorageError
from conserver.session import Session
from conserver.settings import Settings
from conserver.storage_calls import MOST_HANGING
from conserver.worker import MAX_ABANDONED, Worker, slots_for
from tests.runs import A, B, C, Host, goes_on, link, storage
from tests.waiting import wait_until

HELD = "conserver:{in}:held:host:1"


class InProcess:
    """A worker of this process, without a supervisor."""

    def __init__(self, url: str, threads: int) -> None:
        board = Board(slots_for(threads), multiprocessing.get_context("spawn"))
        settings = Settings(concurrency=threads, parallel_storage=True)
        self.retired = threading.Event()
        self.worker = Worker("host:1", url, settings, board, quarantine=False, retire=self.retired.set)
        self.thread = threading.Thread(target=self.worker.run, daemon=True)

    def start(self, *chains: Chain) -> None:
        self.worker.chains = {chain.name: chain for chain in chains}
        self.worker.session.join([name for chain in chains for name in chain.config.ingress_lists])
        self.worker.intake.set_chains((chain.config, list(chain.config.ingress_lists)) for chain in chains)
        self.thread.start()

    def stop(self) -> None:
        self.worker.inbox.put(lambda: self.worker.stop(0.0))
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def host(redis: Redis, server_url: str) -> Host:
    """A store with the vCons A, B and C."""
    for uuid in (A, B, C):
        redis.set(f"vcon:{uuid}", Host.text(uuid))
    return Host(redis, server_url, Settings(parallel_storage=True))


@pytest.fixture
def start(server_url: str) -> Iterator[Callable[..., InProcess]]:
    """Run chains in a worker with so many threads, until the test is over."""
    with ExitStack() as stack:

        def started(*chains: Chain, threads: int = 1) -> InProcess:
            made = InProcess(server_url, threads)
            stack.callback(made.stop)
            made.start(*chains)
            return made

        yield started


def test_claims_beyond_the_free_threads_wait_and_no_more_are_taken(
    redis: Redis, server_url: str, host: Host, start: Callable[..., Any]
) -> None:
    """Claims whose reply was lost come beside those that are asked for; each is run, in its turn."""
    held: list[int] = []

    def looks(uuid: str) -> str:
        held.append(sum(int(redis.hlen(key)) for key in redis.scan_iter("conserver:*:held:*")))
        return uuid

    before = Session(server_url, "host:1")
    before.join(["in"])
    redis.rpush("in", A, B)
    redis.rpush("also in", C, A)
    before.trip([], {"in": 2})

    start(
        host.chain([link(looks)], egress_lists=("out",)),
        host.chain([link(looks)], egress_lists=("out",), name="other", ingress_lists=("also in",)),
    )
    wait_until(lambda: redis.llen("out") == 4)

    assert held == [2, 1, 1, 1]
    assert redis.lrange("out", 0, -1) == [uuid.encode() for uuid in (A, B, C, A)]
    wait_until(lambda: not list(redis.scan_iter("conserver:*:held:*")))


def test_a_server_that_takes_no_writes_is_not_counted_against_the_vcon(
    redis: Redis, host: Host, start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It is given back as it was, and delivered when the server works again."""
    records: list[bytes] = []

    def fails_once(uuid: str) -> str:
        records.extend(redis.hvals(HELD))
        if len(records) == 1:
            redis.replicaof("127.0.0.1", "1")
            raise ServerError("READONLY You can't write against a read only replica.")
        return uuid

    redis.rpush("in", A)
    try:
        start(host.chain([link(fails_once)], egress_lists=("out",)))
        wait_until(lambda: "nothing is claimed until it does" in caplog.text)
    finally:
        redis.replicaof("NO", "ONE")
    wait_until(lambda: redis.llen("out") == 1, 30)

    assert [record.split()[:4] for record in records] == [[b"1", b"0", b"0", b"0"]] * 2


def test_a_process_whose_storages_leave_many_threads_behind_is_replaced(
    redis: Redis, host: Host, start: Callable[..., Any]
) -> None:
    """What waits for a storage that does not answer is delivered; the process tells its supervisor, and finishes."""
    answer = threading.Event()
    # One alone is not asked any more, after four threads.
    hanging = [storage(lambda uuid: answer.wait(60), f"hangs {n}", timeout=0.01) for n in range(4)]
    storages = [*hanging, storage(goes_on, "good")]
    redis.rpush("in", *[A, B, C] * 4)
    try:
        made = start(host.chain([], storages, egress_lists=("out",)), threads=4)

        assert made.retired.wait(20)
        made.thread.join(20)
        assert redis.llen("out") > 8
        assert not list(redis.scan_iter("conserver:*:held:*"))
    finally:
        answer.set()


def test_a_vcon_goes_on_when_its_storages_have_it_and_not_before(
    redis: Redis, host: Host, start: Callable[..., Any]
) -> None:
    """While a storage still saves, the egress list is empty, though the worker has settled another vCon meanwhile."""
    answer = threading.Event()
    start(
        host.chain([link(goes_on)], [storage(lambda uuid: answer.wait(20))], egress_lists=("out",)),
        host.chain([], egress_lists=("other out",), name="other", ingress_lists=("also in",)),
        threads=2,
    )
    redis.rpush("in", A)
    wait_until(lambda: redis.hlen(HELD) == 1)
    redis.rpush("also in", B)
    wait_until(lambda: redis.llen("other out") == 1)
    before = redis.llen("out")
    answer.set()

    wait_until(lambda: redis.llen("out") == 1)
    assert before == 0


def test_what_others_change_while_storages_save_is_saved_too(
    redis: Redis, host: Host, start: Callable[..., Any]
) -> None:
    """The storages are given the newer version as well, and only then the vCon goes on, once."""
    saved: list[str | None] = []

    def save(uuid: str) -> None:
        if not saved:
            with host.store.edit(uuid) as vcon:
                vcon.document["subject"] = "theirs"
        saved.append(conserver.vcons.get(uuid).subject)

    made = start(host.chain([link(goes_on)], [storage(save)], egress_lists=("out",)))
    redis.rpush("in", A)
    wait_until(lambda: redis.llen("out") == 1)
    made.stop()

    assert saved == [None, "theirs"]
    assert redis.lrange("out", 0, -1) == [A.encode()]
    assert made.worker.free == 1
    assert sorted(made.worker.slots) == list(range(made.worker.board.slots))


def test_what_is_deleted_while_storages_save_is_in_none_of_them(
    redis: Redis, host: Host, start: Callable[..., Any]
) -> None:
    """The one who has deleted it looked there before it was saved."""
    kept: dict[str, set[str]] = {"one": set(), "two": set()}

    def save(name: str, uuid: str) -> None:
        kept[name].add(uuid)
        host.store.delete(uuid)

    def delete(name: str, uuid: str) -> bool:
        if name == "one":
            raise StorageError("busy")
        kept[name].discard(uuid)
        return True

    storages = [
        storage(partial(save, name), name, delete=lambda uuid, _, name=name: delete(name, uuid)) for name in kept
    ]
    start(host.chain([link(goes_on)], [*storages, storage(goes_on, "log")], egress_lists=("out",)))
    redis.rpush("in", A)
    wait_until(lambda: redis.llen("DLQ:in") == 1)

    # That one is asked, and cannot.
    assert kept == {"one": {A}, "two": set()}
    assert not redis.exists("out")


def test_a_storage_that_hangs_is_left_alone(redis: Redis, host: Host, start: Callable[..., Any]) -> None:
    """Once its calls are over their time it is asked no more, so what comes is not held up, until one has ended."""
    answer, asked = threading.Event(), threading.Semaphore(0)

    def save(uuid: str) -> None:
        asked.release()
        answer.wait(60)

    hangs = storage(save, "hangs", timeout=0.2)
    made = start(host.chain([], [hangs, storage(goes_on, "good")], egress_lists=("out",)), threads=4)
    try:
        redis.rpush("in", *[A, B, C] * 8)
        wait_until(lambda: redis.llen("out") == 24)
        whys = redis.hvals("conserver:{DLQ:storage:hangs}:dead")
        times = len(made.worker.late)
    finally:
        answer.set()
    wait_until(lambda: not any(thread.is_alive() for thread in made.worker.late))
    redis.rpush("in", A)
    wait_until(lambda: redis.llen("out") == 25)

    # Two may begin beside each other, just before the first is over its time.
    assert MOST_HANGING <= times <= 2 * MOST_HANGING
    assert any(b"it was not asked" in why for why in whys)
    assert redis.llen("DLQ:storage:hangs") == 24
    assert not made.retired.is_set()


def test_a_storage_that_hangs_when_it_is_read_holds_nobody_up(
    redis: Redis, host: Host, start: Callable[..., Any]
) -> None:
    """What it may have cannot be worked on; the threads come back, and the process stays."""
    answer = threading.Event()
    hangs = storage(goes_on, "hangs", timeout=0.1, get=lambda uuid, opts: answer.wait(60))
    gone = [f"018f3c5e-0000-8000-8000-0000000001{n:02}" for n in range(24)]
    made = start(host.chain([link(goes_on)], egress_lists=("out",)), threads=2)
    made.worker.storages = [hangs]
    try:
        redis.rpush("in", *gone, A)
        wait_until(lambda: redis.llen("out") == 1, 30)
    finally:
        answer.set()

    assert redis.llen("DLQ:in") == 24
    assert not made.retired.is_set()


def test_threads_that_are_left_behind_leave_slots_for_the_others(
    redis: Redis, host: Host, start: Callable[..., Any]
) -> None:
    """Links and storages may hang beside each other; each has its own limit."""
    answer = threading.Event()
    links = host.chain([link(lambda uuid: answer.wait(60), timeout=0.01)], name="links", ingress_lists=("links",))
    hanging = [
        host.chain(
            [],
            [storage(lambda uuid: answer.wait(60), f"hangs {n}", timeout=0.01)],
            name=f"storing {n}",
            ingress_lists=(f"to {n}",),
            egress_lists=("out",),
        )
        for n in range(2)
    ]
    made = start(links, *hanging, host.chain([], name="good", ingress_lists=("good",), egress_lists=("good out",)))
    try:
        redis.rpush("links", *[A] * MAX_ABANDONED)
        wait_until(lambda: redis.llen("DLQ:links") == MAX_ABANDONED, 60)
        for n in range(2):
            redis.rpush(f"to {n}", *[A] * MOST_HANGING)
        wait_until(lambda: redis.llen("out") == 2 * MOST_HANGING or not made.thread.is_alive(), 60)
        redis.rpush("good", B)
        wait_until(lambda: redis.llen("good out") == 1 or not made.thread.is_alive(), 60)
    finally:
        answer.set()

    assert redis.llen("good out") == 1


def test_a_chain_that_reads_its_vcons_gets_them_with_the_claim(
    redis: Redis, host: Host, start: Callable[..., Any]
) -> None:
    """From the second run on; what somebody writes later is seen all the same."""
    seen: list[Any] = []

    def reads(uuid: str) -> str:
        before = redis.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"]
        first = conserver.vcons.get(uuid).subject
        seen.append((redis.info("commandstats")["cmdstat_get"]["calls"] - before, first))
        with host.store.edit(uuid) as vcon:
            vcon.document["subject"] = "later"
        seen.append(conserver.vcons.get(uuid).subject)
        return uuid

    start(host.chain([link(reads)], egress_lists=("out",)))
    for n, uuid in enumerate((A, B), 1):
        redis.rpush("in", uuid)
        wait_until(lambda n=n: redis.llen("out") == n)

    assert seen == [(1, None), "later", (0, None), "later"]


def test_what_still_runs_when_the_time_to_drain_is_over_is_given_back(
    redis: Redis, host: Host, start: Callable[..., Any]
) -> None:
    """It is held by nobody, and the worker ends though its link does not."""
    answer = threading.Event()
    made = start(host.chain([link(lambda uuid: answer.wait(20))]))
    redis.rpush("in", A)
    wait_until(lambda: redis.hlen(HELD) == 1)
    try:
        made.worker.inbox.put(lambda: made.worker.stop(0.1))

        wait_until(lambda: redis.llen("conserver:{in}:returned") == 1)
        assert not redis.exists(HELD)
    finally:
        answer.set()


def test_while_the_server_is_silent_no_deadline_passes(redis: Redis, host: Host, start: Callable[..., Any]) -> None:
    """A link that waits for it has time left when it speaks again."""

    def waits(uuid: str) -> str:
        redis.client_pause(3500, all=True)
        host.store.get(uuid)
        return uuid

    start(host.chain([link(waits, timeout=1.5)], egress_lists=("out",)))
    redis.rpush("in", A)

    wait_until(lambda: redis.llen("out") + redis.llen("DLQ:in") == 1, 30)
    assert redis.llen("DLQ:in") == 0
