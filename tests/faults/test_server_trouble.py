"""A server that is full, read-only, forgetful, forbids a command or is away: nobody's dead letter."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

TAGGER = '''
"""Adds a tag."""
import time
from conserver import vcons

def run(vcon_uuid, link_name, opts):
    time.sleep(0.02)
    with vcons.edit(vcon_uuid) as vcon:
        vcon.add_tag("seen", "yes")
    return vcon_uuid
'''
CONFIG = {
    "links": {"tag": {"module": "links.tagger"}},
    "chains": {"main": {"links": ["tag"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
}


def full(redis: Redis) -> Callable[[], object]:
    """No memory left for anything new."""
    redis.config_set("maxmemory", "1mb")
    return lambda: redis.config_set("maxmemory", "0")


def read_only(redis: Redis) -> Callable[[], object]:
    """A replica of a server that is not there: it refuses writes."""
    redis.replicaof("127.0.0.1", "1")
    return lambda: redis.replicaof("NO", "ONE")


def forbidden(redis: Redis) -> Callable[[], object]:
    """An ACL takes away the command that keeps claims."""
    redis.execute_command("ACL", "SETUSER", "default", "-hset")
    return lambda: redis.execute_command("ACL", "SETUSER", "default", "+hset")


def forbidden_push(redis: Redis) -> Callable[[], object]:
    """An ACL takes away the command that delivers."""
    redis.execute_command("ACL", "SETUSER", "default", "-rpush")
    return lambda: redis.execute_command("ACL", "SETUSER", "default", "+rpush")


def forbidden_save(redis: Redis) -> Callable[[], object]:
    """An ACL takes away the command that saves vCons; claims go on."""
    redis.execute_command("ACL", "SETUSER", "default", "-set")
    return lambda: redis.execute_command("ACL", "SETUSER", "default", "+set")


def forgetful(redis: Redis) -> Callable[[], object]:
    """The script cache is empty, again and again."""
    redis.script_flush()
    return lambda: redis.script_flush()


@pytest.fixture
def host(tmp_path: Path, server_url: str) -> Iterator[Host]:
    """A conserver that tags vCons."""
    host = Host(tmp_path / "host", server_url, CONFIG, links={"tagger": TAGGER})
    yield host
    host.close()


@pytest.mark.parametrize("trouble", [full, read_only, forbidden, forbidden_push, forbidden_save, forgetful])
def test_trouble_of_the_server_is_nobodys_dead_letter(
    host: Host, redis: Redis, trouble: Callable[[Redis], Callable[[], object]]
):
    """While it lasts everything waits; afterwards each vCon is tagged and delivered once, by itself."""
    uuids = store(redis, [vcon() for _ in range(400)])
    host.start()
    redis.rpush("in", *uuids)
    wait_until(lambda: redis.llen("out") > 50, 30)
    mend = trouble(redis)
    try:
        if trouble is not forgetful:
            wait_until(lambda: "does not work" in host.said() or "could not be settled" in host.said(), 15)
    finally:
        mend()
    wait_until(lambda: accounted(redis, ["in"]), 60, "everything settled")

    assert Counter(entries(redis, "out")) == Counter(uuids)
    assert entries(redis, "DLQ:in") == []
    assert all(len(json.loads(redis.get(f"vcon:{uuid}") or b"{}")["attachments"]) == 1 for uuid in uuids)
    assert host.process is not None
    assert host.process.poll() is None


def test_cut_connections_cost_nothing(host: Host, redis: Redis):
    """Every connection is cut, twenty times: each vCon is delivered once."""
    uuids = store(redis, [vcon() for _ in range(1000)])
    host.start()
    redis.rpush("in", *uuids)
    for n in range(1, 21):
        wait_until(lambda n=n: redis.llen("out") > 40 * n, 30)
        redis.client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: accounted(redis, ["in"]), 60, "everything settled")

    assert Counter(entries(redis, "out")) == Counter(uuids)
    assert entries(redis, "DLQ:in") == []
