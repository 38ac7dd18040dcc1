"""Followers as processes: one of several follows, and whatever becomes of it costs nothing and repeats nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.fakes.http_server import Exchange
from tests.fakes.other_conserver import LIST, TOKEN, OtherConserver, hang
from tests.waiting import wait_until

#: For whatever is waited for; the machine may be slow.
PATIENT_SECS = 60
LEASE_SECS = 1.0

PROCESS = """
import signal, sys, threading
from conserver import followers
from conserver.configmodel import Config, FollowerConfig
from conserver.settings import Settings

url, other, egress_list, token = sys.argv[1:5]
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
peer = FollowerConfig(
    name="peer", url=other, egress_list=egress_list, follower_ingress_list="in", auth_token=token,
    pulling_interval=0.05, fetch_vcon_limit=10,
)
config = Config(file="config.yml", folder=".", followers={"peer": peer})
followers.serve(url, Settings(lease_secs=float(sys.argv[5])), config, stopping)
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(params=[True, False], ids=["safe", "old"])
def other(request: pytest.FixtureRequest) -> Iterator[OtherConserver]:
    """Another conserver: once with the safe egress, once with the old one only."""
    with OtherConserver(safe=request.param) as other:
        yield other


@pytest.fixture
def start(other: OtherConserver, server_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start a process that follows; what it says goes to a file `log`."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(**env: object) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", PROCESS, server_url, other.url, LIST, TOKEN, str(LEASE_SECS)]
        environment = {**os.environ, **{name: str(value) for name, value in env.items()}}
        with (tmp_path / "log").open("ab") as log:
            processes.append(subprocess.Popen(argv, env=environment, stdout=log, stderr=log))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait(PATIENT_SECS)


def pushed(redis: Redis) -> list[str]:
    return [uuid.decode() for uuid in redis.lrange("in", 0, -1)]


def finished(redis: Redis, other: OtherConserver, uuids: list[str]) -> None:
    """Each was pushed once and is stored, nothing is in hand any more, and the other side knows."""
    wait_until(lambda: len(pushed(redis)) >= len(uuids) and not other.waiting + other.leased(), PATIENT_SECS)
    wait_until(lambda: not redis.exists("follower:peer", "conserver:{follower:peer}:leases"), PATIENT_SECS)

    assert Counter(pushed(redis)) == Counter(uuids)
    assert redis.exists(*(f"vcon:{uuid}" for uuid in uuids)) == len(uuids)
    assert redis.keys("conserver:{follower:peer}:done*") + redis.keys("conserver:{follower:peer}:leased*") == []
    if other.safe:
        assert sorted(other.acknowledged) == sorted(uuids)


def test_a_death_between_taking_and_storing_loses_nothing(redis: Redis, other: OtherConserver, start: Start) -> None:
    """By kill -9, with some done, one in hand, and others taken."""
    uuids = [other.add() for _ in range(5)]
    other.behave(f"GET /vcon/{uuids[2]}", hang, times=1)
    process = start()
    wait_until(lambda: other.asked(uuids[2]), PATIENT_SECS)
    assert (pushed(redis), other.waiting) == (uuids[:2], [])
    process.kill()
    start()

    finished(redis, other, uuids)


@pytest.mark.parametrize("point", ["follow.sent:2", "follow.replied:2"])
def test_a_death_beside_the_push_repeats_nothing(redis: Redis, other: OtherConserver, start: Start, point: str) -> None:
    """The push and the note that it was done are one step."""
    uuids = [other.add() for _ in range(4)]
    process = start(CONSERVER_TESTING=1, CONSERVER_CRASHPOINT=point)
    assert process.wait(PATIENT_SECS) == -signal.SIGKILL
    start()

    finished(redis, other, uuids)


def test_of_several_processes_one_follows_and_another_when_it_dies(
    redis: Redis, other: OtherConserver, start: Start
) -> None:
    """Each vCon is fetched once, whoever does it."""
    first = start()
    uuids = [other.add()]
    wait_until(lambda: pushed(redis) == uuids, PATIENT_SECS)
    start(), start()
    for _ in range(20):
        uuids.append(other.add())
        wait_until(lambda: len(pushed(redis)) == len(uuids), PATIENT_SECS)
    first.kill()
    uuids += [other.add() for _ in range(20)]

    finished(redis, other, uuids)
    assert [len(other.asked(f"GET /vcon/{uuid}")) for uuid in uuids] == [1] * len(uuids)


def test_a_process_that_stands_still_does_nothing_twice_when_it_wakes(
    redis: Redis, other: OtherConserver, start: Start
) -> None:
    """Another has taken over what it had in hand."""
    uuids = [other.add() for _ in range(4)]
    stopped: list[int] = []

    def stops(exchange: Exchange) -> None:
        os.kill(process.pid, signal.SIGSTOP)
        stopped.append(1)
        exchange.answer(200, other.vcons[uuids[1]], content_type="application/json")

    other.behave(f"GET /vcon/{uuids[1]}", stops, times=1)
    process = start()
    wait_until(lambda: stopped, PATIENT_SECS)
    start()
    wait_until(lambda: len(pushed(redis)) == 4, PATIENT_SECS)
    os.kill(process.pid, signal.SIGCONT)
    # It waits for its turn again once it has seen what happened.
    process.terminate()
    assert process.wait(PATIENT_SECS) == 0

    finished(redis, other, uuids)


def test_who_is_told_to_stop_gives_back_what_is_not_done(redis: Redis, other: OtherConserver, start: Start) -> None:
    """At once, without waiting for a lease to lapse."""
    uuids = [other.add() for _ in range(8)]

    def slow(exchange: Exchange) -> None:
        exchange.pause(0.3)
        uuid = exchange.request.path.rpartition("/")[2]
        exchange.answer(200, other.vcons[uuid], content_type="application/json")

    for uuid in uuids:
        other.behave(f"GET /vcon/{uuid}", slow)
    process = start()
    wait_until(lambda: len(pushed(redis)) == 2, PATIENT_SECS)
    process.terminate()
    assert process.wait(PATIENT_SECS) == 0
    done = pushed(redis)

    assert 2 <= len(done) < 6
    assert other.leased() == []
    assert other.waiting + [uuid.decode() for uuid in redis.lrange("follower:peer", 0, -1)] == uuids[len(done) :]
    assert not redis.exists("conserver:{follower:peer}:lock")
    start()
    finished(redis, other, uuids)


@pytest.mark.parametrize("other", [False], indirect=True, ids=["old"])
def test_a_death_while_entries_are_on_the_way_is_told(other: OtherConserver, start: Start, tmp_path: Path) -> None:
    """The old egress has no other way; an operator has to look."""
    other.behave("GET /vcon/egress", hang, times=1)
    process = start()
    wait_until(lambda: other.asked("GET /vcon/egress"), PATIENT_SECS)
    process.kill()
    start()

    said = wait_until(lambda: "may be lost" in (tmp_path / "log").read_text() and (tmp_path / "log").read_text(), 60)
    assert (
        "follower 'peer': up to 10 entries may be lost that were taken from list 'out' of the other conserver:"
        " a process died while it took them"
    ) in said
