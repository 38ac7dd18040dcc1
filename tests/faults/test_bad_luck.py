"""What a review of the engine found that could go wrong; each stays mended."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
import yaml
from redis import Redis

from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.thorough]

#: Works in small steps for as long as the subject says, or asks for something that it may not.
STEPS = """
import time
import uuid as uuids
from conserver import push, vcons

class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")

def run(vcon_uuid, link_name, opts):
    what = vcons.get(vcon_uuid).subject
    if what == "steps":
        for _ in range(30):
            time.sleep(0.1)
            vcons.get(vcon_uuid)
    if what == "bites":
        import ctypes
        for _ in range(12):
            ctypes.PyDLL(None).usleep(1_600_000 // 2)
            ctypes.PyDLL(None).usleep(1_600_000 // 2)
    if what == "push":
        push("elsewhere", None)
    if what == "push uuid":
        push("elsewhere", uuids.UUID(vcon_uuid))
    if what == "expire":
        vcons.expire(vcon_uuid, 0.5)
    if what == "unspeakable":
        raise Unspeakable
    if what == "secret":
        raise RuntimeError(f"https://service.example/?key={opts['api_key']} answered 401")
    return vcon_uuid
"""


def make(tmp_path: Path, url: str, **env: object) -> Host:
    """A host with the link above, which may take five seconds."""
    config = {
        "links": {"steps": {"module": "links.steps", "options": {"api_key": "sk-very-secret"}, "timeout": 5}},
        "chains": {"main": {"links": ["steps"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
    }
    return Host(tmp_path / "host", url, config, links={"steps": STEPS}, **env)


def pause(host: Host, pids: list[int], secs: int, redis: Redis | None = None) -> None:
    """SIGSTOP for *secs* seconds by a clock that goes on."""
    import time

    host.signal(signal.SIGSTOP, pids)
    until = time.monotonic() + secs
    wait_until(lambda: time.monotonic() > until, secs + 5)
    host.signal(signal.SIGCONT, pids)


@pytest.mark.parametrize("who", ["host", "server"])
def test_a_pause_in_the_middle_of_work_blames_nobody(tmp_path: Path, redis: Redis, server_url: str, who: str):
    """The host, or the server, stops for longer than a link may take: what ran goes on and is delivered."""
    uuids = store(redis, [vcon("steps") for _ in range(4)])
    server_pid = int(redis.info("server")["process_id"])
    host = make(tmp_path, server_url, CONSERVER_LEASE_SECS=30).start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: len(list(redis.scan_iter("conserver:*:held:*"))) > 0, 10)
        pause(host, host.family() if who == "host" else [server_pid], 7)
        wait_until(lambda: accounted(redis, ["in"]), 60)

        assert Counter(entries(redis, "out")) == Counter(uuids)
        assert entries(redis, "DLQ:in") == []
    finally:
        host.signal(signal.SIGCONT, [server_pid])
        host.close()


def test_what_a_link_asks_for_in_vain_is_its_own_failure(tmp_path: Path, redis: Redis, server_url: str):
    """A push of nothing, half a second of life, an error without words: a dead letter, and everybody else goes on."""
    bad = {what: vcon(what) for what in ("push", "expire", "unspeakable", "secret")}
    good = [vcon() for _ in range(20)] + [vcon("push uuid")]
    uuids = store(redis, [*good[:10], *bad.values(), *good[10:]])
    host = make(tmp_path, server_url).start()
    try:
        redis.rpush("in", *uuids)
        wait_until(lambda: accounted(redis, ["in"]), 30)

        assert Counter(entries(redis, "out")) == Counter(document["uuid"] for document in good)
        assert Counter(entries(redis, "DLQ:in")) == Counter(document["uuid"] for document in bad.values())
        assert entries(redis, "elsewhere") == [good[-1]["uuid"]]
        whys = {
            what: json.loads(redis.hget("conserver:{in}:dead", document["uuid"]) or b"{}")["error"]
            for what, document in bad.items()
        }
        assert whys["push"] == "link 'steps': 'None' cannot be pushed to list 'elsewhere': it is no UUID"
        assert whys["expire"].startswith("link 'steps': a vCon cannot expire in 0.5 seconds")
        assert whys["unspeakable"] == "link 'steps': Unspeakable: its message cannot be had: RuntimeError"
        assert "sk-very-secret" not in host.said() + whys["secret"]
        assert "answered 401" in whys["secret"]
        assert len(host.worker_pids()) == 2
    finally:
        host.close()


def test_a_link_that_keeps_the_interpreter_in_bites_has_a_timeout_all_the_same(
    tmp_path: Path, redis: Redis, server_url: str
):
    """Its process looks as if it was stopped again and again; it ends as a dead letter, not after all its bites."""
    (uuid,) = store(redis, [vcon("bites")])
    host = make(tmp_path, server_url, CONSERVER_WORKERS=1).start()
    try:
        redis.rpush("in", uuid)
        wait_until(lambda: entries(redis, "DLQ:in") == [uuid], 60)

        assert entries(redis, "out") == []
    finally:
        host.close()


def test_keys_of_other_programs_do_not_stop_a_host(tmp_path: Path, redis: Redis, server_url: str):
    """A list of dead letters that is no list: recovery says so and waits, and the other list is worked on."""
    uuids = store(redis, [vcon() for _ in range(10)])
    redis.set("DLQ:in", "something else")
    host = make(tmp_path, server_url).start()
    try:
        host.signal(signal.SIGKILL, host.worker_pids()[:1])
        wait_until(lambda: "recovery: it cannot be done and is tried again" in host.said(), 20)
        wait_until(lambda: len(host.worker_pids()) >= 2, 20)
        redis.rpush("in", *uuids)
        wait_until(lambda: redis.llen("out") == 10, 20)
        redis.delete("DLQ:in")

        assert host.stop() == 0
    finally:
        host.close()


def test_a_list_that_cannot_be_recovered_keeps_no_other_from_it(tmp_path: Path, redis: Redis, server_url: str):
    """The dead letters of the first are no list: what the killed worker held of the second is delivered."""
    uuids = store(redis, [vcon("steps") for _ in range(4)])
    redis.set("DLQ:first", "something else")
    host = make(tmp_path, server_url, CONSERVER_WORKERS=1)
    config = yaml.safe_load(host.config_file.read_text())
    config["chains"]["main"]["ingress_lists"] = ["first", "second"]
    host.configure(config)
    host.start()
    try:
        redis.rpush("second", *uuids)
        wait_until(lambda: len(list(redis.scan_iter("conserver:{second}:held:*"))) > 0, 10)
        host.signal(signal.SIGKILL, host.worker_pids())
        wait_until(lambda: redis.llen("out") == 4, 40)

        assert Counter(entries(redis, "out")) == Counter(uuids)
        assert "recovery: it cannot be done and is tried again" in host.said()
    finally:
        host.close()


def test_a_drain_does_not_wait_for_a_server_that_hangs(tmp_path: Path, redis: Redis, server_url: str):
    """SIGTERM while the server is silent: the host ends within its drain time and a little more."""
    server_pid = int(redis.info("server")["process_id"])
    host = make(tmp_path, server_url, CONSERVER_DRAIN_SECS=1).start()
    try:
        host.signal(signal.SIGSTOP, [server_pid])
        host.stop(timeout=40)
    finally:
        host.signal(signal.SIGCONT, [server_pid])
        host.close()
