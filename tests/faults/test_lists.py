"""What may be on a list, how lists share the worker, and how fast an idle one wakes."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
from redis import Redis

from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = pytest.mark.faults


def chain(name: str, **more: object) -> dict[str, object]:
    """A chain that reads in-<name> and delivers to out-<name>."""
    return {"links": ["act"], "ingress_lists": [f"in-{name}"], "egress_lists": [f"out-{name}"], **more}


def act(**options: object) -> dict[str, object]:
    """The test link, which does not look at the vCon unless told to."""
    return {"act": {"module": "links.act", "options": {"act": False, **options}}}


def test_whatever_is_on_a_list_ends_somewhere(tmp_path: Path, redis: Redis, server_url: str):
    """Garbage is a dead letter with its reason, byte for byte, and what is behind it is delivered."""
    good = store(redis, [vcon() for _ in range(5)])
    unknown = str(uuid4())
    garbage = [b"", b"\xff\xfe\x00binary", b'{"uuid": "x"}', b"x" * 1_000_000, b"../../etc/passwd", unknown.encode()]
    redis.rpush("in-a", *good[:2], *garbage, *good[2:], good[0])
    redis.set(f"vcon:{(broken := str(uuid4()))}", b"{not json")
    redis.sadd(f"vcon:{(other_type := str(uuid4()))}", "x")
    redis.rpush("in-a", broken, other_type)
    config = {"links": act(act=True), "chains": {"a": chain("a", pause_after=0)}}
    host = Host(tmp_path / "host", server_url, config).start()
    try:
        wait_until(lambda: accounted(redis, ["in-a"]), 30, "everything settled")

        assert Counter(entries(redis, "out-a")) == Counter([*good, good[0]])
        assert Counter(redis.lrange("DLQ:in-a", 0, -1)) == Counter([*garbage, broken.encode(), other_type.encode()])
        reasons = [json.loads(why)["error"] for why in redis.hgetall("conserver:{in-a}:dead").values()]
        assert sum("is not a UUID" in why for why in reasons) == 5
        assert f"there is no vCon {unknown}: not in Redis, and no storage has it" in reasons
        assert any("JSON" in why for why in reasons)
        assert any("holds a set" in why for why in reasons)
    finally:
        host.close()


@pytest.mark.thorough
def test_a_list_that_is_none_stops_nobody_else(tmp_path: Path, redis: Redis, server_url: str):
    """An ingress key of another type is said once and left alone; when it is a list, it is worked on."""
    redis.set("in-bad", "a string")
    uuids = store(redis, [vcon() for _ in range(20)])
    redis.rpush("in-good", *uuids[:10])
    config = {"links": act(), "chains": {"bad": chain("bad"), "good": chain("good")}}
    host = Host(tmp_path / "host", server_url, config, CONSERVER_WORKERS=1).start()
    try:
        wait_until(lambda: redis.llen("out-good") == 10, 20)
        wait_until(lambda: "list 'in-bad' cannot be read" in host.said(), 10)
        redis.delete("in-bad")
        redis.rpush("in-bad", *uuids[10:])
        wait_until(lambda: redis.llen("out-bad") == 10, 20, "the list is read again")

        assert host.said().count("list 'in-bad' cannot be read") == 1
    finally:
        host.close()


@pytest.mark.thorough
def test_a_target_that_is_no_list_makes_a_dead_letter(tmp_path: Path, redis: Redis, server_url: str):
    """An egress key of another type: the vCon is a dead letter that says so, not lost and not half delivered."""
    redis.set("second", "a string")
    config = {"links": act(), "chains": {"a": chain("a", egress_lists=["first", "second"])}}
    uuids = store(redis, [vcon() for _ in range(5)])
    host = Host(tmp_path / "host", server_url, config).start()
    try:
        redis.rpush("in-a", *uuids)
        wait_until(lambda: accounted(redis, ["in-a"]), 20)

        assert Counter(entries(redis, "DLQ:in-a")) == Counter(uuids)
        assert entries(redis, "first") == []
        why = json.loads(redis.hget("conserver:{in-a}:dead", uuids[0]) or b"{}")["error"]
        assert why == "could not be delivered: key 'second' holds a string, not a list"
    finally:
        host.close()


@pytest.mark.thorough
def test_weights_show_in_the_claims(tmp_path: Path, redis: Redis, server_url: str):
    """With 4:1, of the first 1,000 runs four fifths belong to the heavier chain, and both lists move from the start."""
    config = {"links": act(sleep=0.002), "chains": {"a": chain("a", weight=4), "b": chain("b", weight=1)}}
    (tmp_path / "host").mkdir()
    uuids = store(redis, [vcon() for _ in range(2400)])
    redis.rpush("in-a", *uuids[:1200])
    redis.rpush("in-b", *uuids[1200:])
    host = Host(tmp_path / "host", server_url, config, CONSERVER_WORKERS=1).start()
    try:
        wait_until(lambda: host.effects().total() >= 1100, 60)
        order = [uuid for _, uuid in host.began()[:1000]]
        heavy = set(uuids[:1200])

        assert 760 <= sum(uuid in heavy for uuid in order) <= 840
        assert 70 <= sum(uuid in heavy for uuid in order[:100]) <= 90
    finally:
        host.close()


@pytest.mark.thorough
def test_a_slow_chain_never_has_every_thread(tmp_path: Path, redis: Redis, server_url: str):
    """While a slow chain has a full list, another chain's vCon does not wait for it."""
    links = {"slow": {"module": "links.act", "options": {"act": False, "sleep": 20}}, **act()}
    config = {"links": links, "chains": {"slow": chain("slow", links=["slow"]), "fast": chain("fast")}}
    uuids = store(redis, [vcon() for _ in range(101)])
    redis.rpush("in-slow", *uuids[:100])
    env = {"CONSERVER_WORKERS": 1, "CONSERVER_VCON_CONCURRENCY": 4, "CONSERVER_DRAIN_SECS": 0}
    host = Host(tmp_path / "host", server_url, config, **env).start()
    try:
        wait_until(lambda: host.effects().total() >= 3, 20, "the slow chain at work")
        redis.rpush("in-fast", uuids[100])

        wait_until(lambda: redis.llen("out-fast") == 1, 10, "the fast chain's vCon")
        assert redis.llen("out-slow") == 0
    finally:
        host.close()


def test_a_plain_push_wakes_an_idle_daemon_with_50_lists(tmp_path: Path, redis: Redis, server_url: str):
    """An RPUSH by any client to any of 50 lists is worked on at once, not at the next look."""
    config = {"links": act(), "chains": {f"c{n}": chain(f"c{n}") for n in range(50)}}
    uuids = store(redis, [vcon() for _ in range(50)])
    host = Host(tmp_path / "host", server_url, config, CONSERVER_WORKERS=1).start()
    try:
        used_before = cpu_secs(host)
        for n, uuid in enumerate(uuids):
            redis.rpush(f"in-c{n}", uuid)
            wait_until(lambda n=n: redis.llen(f"out-c{n}") == 1, 2, f"list {n}")

        assert cpu_secs(host) - used_before < 10
    finally:
        host.close()


def cpu_secs(host: Host) -> float:
    """What the worker processes have used of the processor."""
    ticks = 0
    for pid in host.worker_pids():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.thorough
def test_a_changed_config_is_in_force_for_what_is_claimed_later(tmp_path: Path, redis: Redis, server_url: str):
    """A config edited while 1,000 vCons flow: later ones go the new way; a broken one is reported and not used."""
    config = {"links": act(sleep=0.08), "chains": {"a": chain("a")}}
    uuids = store(redis, [vcon() for _ in range(1200)])
    host = Host(tmp_path / "host", server_url, config).start()
    try:
        redis.rpush("in-a", *uuids[:1000])
        wait_until(lambda: redis.llen("out-a") > 20, 20)
        host.configure({"links": act(sleep=0.02), "chains": {"a": chain("a", egress_lists=["new"])}})
        wait_until(lambda: redis.llen("new") > 0, 20, "the new config in force")
        host.configure("chains: [half writ")
        wait_until(lambda: "config before stays in force" in host.said(), 20)
        host.config_file.unlink()
        wait_until(lambda: host.said().count("config before stays in force") == 2, 20)
        redis.rpush("in-a", *uuids[1000:])
        wait_until(lambda: accounted(redis, ["in-a"]), 60)

        assert Counter(entries(redis, "out-a") + entries(redis, "new")) == Counter(uuids)
        assert entries(redis, "new")[-1] in uuids[1000:]
        assert "error[syntax]" in host.said()
        assert entries(redis, "DLQ:in-a") == []
    finally:
        host.close()
