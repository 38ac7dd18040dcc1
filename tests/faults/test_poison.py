"""Promise 3, by force: vCons that end, starve, overflow or fill the process of their link die alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from redis import Redis

from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

#: What the vCon's subject asks for.
POISON = r'''
"""Ends, starves, overflows or fills its process, as the subject says."""
import ctypes, os, re, resource, signal, socket, sys, time, zlib
from conserver import vcons

LOG = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def fill():
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + 200_000_000, before[1]))
    try:
        hoard = []
        while True:
            hoard.append(bytearray(16_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

def overflow():
    sys.setrecursionlimit(100_000_000)
    nested = []
    for _ in range(200_000):
        nested = [nested]
    repr(nested)

def run(vcon_uuid, link_name, opts):
    what = vcons.get(vcon_uuid).subject
    os.write(LOG, f"{what or 'good'} {vcon_uuid}\n".encode())
    if what == "":
        time.sleep(0.02)
    elif what.startswith("exit "):
        os._exit(int(what[5:]))
    elif what == "abort":
        os.abort()
    elif what == "segfault":
        ctypes.string_at(0)
    elif what == "overflow":
        overflow()
    elif what == "killed":
        # What the kernel does to a process when the machine has no memory left.
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "alarm":
        os.kill(os.getpid(), signal.SIGALRM)
    elif what == "fill":
        fill()
    elif what == "regex":
        # In C, and with the interpreter's lock.
        re.match("(a+)+$", "a" * 60 + "!")
    elif what == "zip":
        # In C, and without it.
        while True:
            zlib.crc32(b"x" * 50_000_000)
    elif what == "socket":
        here, there = socket.socketpair()
        here.recv(1)
    return vcon_uuid
'''
LATE = "link 'poison' ran longer than its timeout of 2 s"
BLOCKED = "link 'poison' did not end within its timeout and blocked its process, which was killed"


def make(tmp_path: Path, url: str, *, timeout: float = 30, **env: object) -> Host:
    """A host with the link above, which may take *timeout* seconds."""
    config = {
        "links": {"poison": {"module": "links.poison", "timeout": timeout}},
        "chains": {"main": {"links": ["poison"], "ingress_lists": ["in"], "egress_lists": ["out"], "pause_after": 0}},
    }
    return Host(tmp_path / "host", url, config, links={"poison": POISON}, **env)


def why(redis: Redis, uuid: str) -> str:
    """The reason of a dead letter."""
    return json.loads(redis.hget("conserver:{in}:dead", uuid) or b"{}").get("error", "")


def assert_only_these_die(redis: Redis, uuids: list[str], whys: dict[str, str]) -> None:
    """Of *uuids* those in *whys* are dead letters, with reasons that begin so; all others are delivered once."""
    wait_until(lambda: accounted(redis, ["in"]), 200, "everything settled")

    assert Counter(entries(redis, "out")) == Counter(set(uuids) - whys.keys())
    assert Counter(entries(redis, "DLQ:in")) == Counter(whys.keys())
    for uuid, reason in whys.items():
        assert why(redis, uuid).startswith(reason)


@pytest.mark.thorough
def test_vcons_that_end_their_process_die_alone(tmp_path: Path, redis: Redis, server_url: str):
    """However it ends, also with the exit code of a good one: the culprit is found, its neighbours are delivered."""
    endings = {
        "exit 0": "its process ended with exit code 0, 3 times in quarantine",
        "exit 75": "its process ended with exit code 75, 3 times in quarantine",
        "abort": "its process was ended by SIGABRT, 3 times in quarantine",
        "overflow": "its process was ended by SIGSEGV, 3 times in quarantine",
        "killed": "its process was ended by SIGKILL, 3 times in quarantine",
        "alarm": "its process was ended by SIGALRM, 3 times in quarantine",
    }
    documents = [vcon(what) for what in endings]
    good = [vcon() for _ in range(60)]
    uuids = store(redis, [*good[:20], *documents, *good[20:]])
    host = make(tmp_path, server_url)
    try:
        host.start()
        redis.rpush("in", *uuids)

        whys = {document["uuid"]: endings[document["subject"]] for document in documents}
        assert_only_these_die(redis, uuids, whys)
        assert all(n <= 3 + 2 for (what, _), n in host.effects().items() if what != "good")
        assert host.stop() == 0
    finally:
        host.close()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("what", "reason"), [("fill", "link 'poison': MemoryError"), ("regex", BLOCKED), ("zip", LATE), ("socket", LATE)]
)
def test_vcons_that_use_up_their_process_die_alone(
    tmp_path: Path, redis: Redis, server_url: str, what: str, reason: str
):
    """One that takes all memory, all time or the interpreter is found out, and its neighbours are delivered."""
    documents = [vcon(what if n == 3 else "") for n in range(60)]
    uuids = store(redis, documents)
    host = make(tmp_path, server_url, timeout=2, CONSERVER_WORKERS=1)
    try:
        host.start()
        redis.rpush("in", *uuids)

        assert_only_these_die(redis, uuids, {uuids[3]: reason})
        assert host.stop() == 0
    finally:
        host.close()


@pytest.mark.thorough
def test_a_stream_of_poison_does_not_stop_what_is_behind_it(tmp_path: Path, redis: Redis, server_url: str):
    """Every twentieth vCon ends its process: all others are delivered."""
    documents = [vcon("exit 1" if n % 20 == 10 else "") for n in range(120)]
    uuids = store(redis, documents)
    host = make(tmp_path, server_url)
    try:
        host.start()
        redis.rpush("in", *uuids)

        poison = [document["uuid"] for document in documents if document["subject"]]
        reason = "its process ended with exit code 1, 3 times in quarantine"
        assert_only_these_die(redis, uuids, dict.fromkeys(poison, reason))
    finally:
        host.close()
