"""The config changes while vCons wait: what is good comes into force, what is not changes nothing, nobody is lost."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.commands import run_beside
from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.thorough, pytest.mark.timeout(300)]

#: Fails in link `gone`, and takes its time in all others.
WORK = """
import time

def run(vcon_uuid, link_name, opts):
    time.sleep(0.1)
    if link_name == "gone":
        raise ConnectionError("this service does not exist any more")
    return vcon_uuid
"""


def config(links: dict[str, list[str]]) -> dict[str, Any]:
    """Chains by their links; each reads in-<name> and delivers to out-<name>."""
    retry = {"attempts": 1000, "backoff_secs": 0.2, "max_backoff_secs": 0.2}
    return {
        "links": {link: {"module": "links.work"} for names in links.values() for link in names},
        "chains": {
            name: {
                "links": names,
                "ingress_lists": [f"in-{name}"],
                "egress_lists": [f"out-{name}"],
                "retry": retry,
                "pause_after": 0,
            }
            for name, names in links.items()
        },
    }


def make(tmp_path: Path, url: str, links: dict[str, list[str]], **env: object) -> Host:
    """A host with these chains."""
    return Host(tmp_path / "host", url, config(links), links={"work": WORK}, **env)


def in_force(host: Host, links: dict[str, list[str]]) -> None:
    """Change the config, and wait until the host says that it is in force."""
    before = host.said().count("it is in force")
    host.configure(config(links))
    wait_until(lambda: host.said().count("it is in force") > before, 90, "the new config in force")


def held(redis: Redis) -> int:
    """How many claims anybody has."""
    return sum(redis.hlen(key) for key in redis.keys("conserver:*:held:*"))


def test_what_waits_for_a_chain_that_is_taken_away_stays_and_is_shown(tmp_path: Path, redis: Redis, server_url: str):
    """In hand, put aside or on the list: it waits, also when a worker dies; with the chain back all is delivered."""
    first, delayed, later = (store(redis, [vcon() for _ in range(n)]) for n in (60, 10, 5))
    both = {"a": ["work"], "b": ["work", "gone"]}
    host = make(tmp_path, server_url, both, CONSERVER_WORKERS=1)
    try:
        host.start()
        redis.rpush("in-b", *delayed)
        wait_until(lambda: redis.zcard("conserver:{in-b}:delayed") == 10, 90)
        redis.rpush("in-b", *first)
        in_force(host, {"a": ["work"]})
        host.signal(signal.SIGKILL, host.worker_pids())
        redis.rpush("in-b", *later)
        redis.rpush("in-a", first[0])
        wait_until(lambda: redis.llen("out-a") == 1, 90, "the other chain works")
        wait_until(lambda: not held(redis) and not redis.zcard("conserver:{in-b}:delayed"), 90)
        waiting = redis.llen("in-b") + sum(
            redis.llen(f"conserver:{{in-b}}:{what}") for what in ("returned", "suspects")
        )
        said = run_beside(host, "status")

        assert waiting == 75
        assert "no chain reads list 'in-b': what is in it waits" in said
        in_force(host, {"a": ["work"], "b": ["work"]})
        wait_until(lambda: accounted(redis, ["in-b"]), 120)
        assert Counter(entries(redis, "out-b")) == Counter([*first, *delayed, *later])
        assert entries(redis, "DLQ:in-b") == []
    finally:
        host.close()


def test_what_waits_for_a_link_that_is_taken_away_goes_on_without_it(tmp_path: Path, redis: Redis, server_url: str):
    """Its service is gone for good, and all vCons wait for it: without the link they are delivered."""
    uuids = store(redis, [vcon() for _ in range(30)])
    host = make(tmp_path, server_url, {"a": ["work", "gone", "last"]})
    try:
        host.start()
        redis.rpush("in-a", *uuids)
        wait_until(lambda: redis.zcard("conserver:{in-a}:delayed") > 0, 90)
        in_force(host, {"a": ["work", "last"]})
        wait_until(lambda: accounted(redis, ["in-a"]), 120)

        assert Counter(entries(redis, "out-a")) == Counter(uuids)
        assert entries(redis, "DLQ:in-a") == []
    finally:
        host.close()


@pytest.mark.parametrize(
    "broken",
    [
        "links: {work: {module: links.work}}\nchains: {a: {links: [work], ingr",
        "links: {work: {module: links.nowhere}}\nchains: {a: {links: [work], ingress_lists: [in-a]}}\n",
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{n}: &{n} [{', '.join(['*' + m] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)),
        "\0\0\0",
    ],
    ids=["half-written", "no-such-module", "bomb", "zeros"],
)
def test_a_config_that_cannot_be_used_changes_nothing(tmp_path: Path, redis: Redis, server_url: str, broken: str):
    """It is told with its line, workers that start later use the last good one, and a mended one comes into force."""
    uuids = store(redis, [vcon() for _ in range(40)])
    host = make(tmp_path, server_url, {"a": ["work"]}, CONSERVER_WORKERS=1)
    try:
        host.start()
        redis.rpush("in-a", *uuids[:30])
        host.configure(broken)
        wait_until(lambda: "the config before stays in force" in host.said(), 90)
        host.signal(signal.SIGKILL, host.worker_pids())
        wait_until(lambda: accounted(redis, ["in-a"]), 120)
        mended = config({"a": ["work"]})
        mended["chains"]["a"]["egress_lists"] = ["mended"]
        host.configure(mended)
        wait_until(lambda: "it is in force" in host.said(), 90)
        redis.rpush("in-a", *uuids[30:])
        wait_until(lambda: accounted(redis, ["in-a"]), 120)

        assert Counter(entries(redis, "out-a") + entries(redis, "mended")) == Counter(uuids)
        assert "config.yml:" in host.said().partition("stays in force")[2]
    finally:
        host.close()


def test_a_module_that_comes_after_its_config_is_found(tmp_path: Path, redis: Redis, server_url: str):
    """A deploy writes the config first and the link a moment later: the config comes into force by itself."""
    host = make(tmp_path, server_url, {"a": ["work"]}, CONSERVER_WORKERS=1)
    try:
        host.start()
        changed = config({"a": ["work", "late"]})
        changed["links"]["late"] = {"module": "links.late"}
        changed["chains"]["a"]["egress_lists"] = ["new"]
        host.configure(changed)
        wait_until(lambda: "the config before stays in force" in host.said(), 90)
        (host.folder / "links" / "late.py").write_text(WORK)
        wait_until(lambda: "it is in force" in host.said(), 120)
        (uuid,) = store(redis, [vcon()])
        # A worker has it a moment after its supervisor.
        wait_until(lambda: redis.rpush("in-a", uuid) and redis.llen("new") > 0, 90)

        assert host.said().count("the config before stays in force") == 1
    finally:
        host.close()


def test_a_module_that_is_missing_for_a_while_costs_no_vcon(tmp_path: Path, redis: Redis, server_url: str):
    """A worker that starts meanwhile leaves the list alone; once the module is back, it works on it by itself."""
    uuids = store(redis, [vcon() for _ in range(20)])
    host = make(tmp_path, server_url, {"a": ["work"]}, CONSERVER_WORKERS=1)
    try:
        host.start()
        source = host.folder / "links" / "work.py"
        source.rename(source.with_suffix(".away"))
        host.signal(signal.SIGKILL, host.worker_pids())
        wait_until(lambda: "is not worked on, its lists wait" in host.said(), 90)
        redis.rpush("in-a", *uuids)
        source.with_suffix(".away").rename(source)
        wait_until(lambda: accounted(redis, ["in-a"]), 120)

        assert Counter(entries(redis, "out-a")) == Counter(uuids)
        assert entries(redis, "DLQ:in-a") == []
    finally:
        host.close()


def test_records_of_a_version_that_is_unknown_are_parked(tmp_path: Path, redis: Redis, server_url: str):
    """A newer conserver has written them and is gone: they are kept byte for byte and shown; the rest goes on."""
    uuids = store(redis, [vcon() for _ in range(20)])
    newer = [b"2 0 0 0 0 7\n{}" + uuid.encode() for uuid in uuids[:4]]
    redis.rpush("conserver:{in-a}:returned", newer[0])
    redis.rpush("conserver:{in-a}:suspects", newer[1])
    redis.zadd("conserver:{in-a}:delayed", {b"7:" + newer[2]: 0})
    redis.sadd("conserver:lists", "in-a")
    redis.sadd("conserver:{in-a}:workers", "gone-1-a:1")
    redis.hset("conserver:{in-a}:held:gone-1-a:1", "1", newer[3])
    redis.rpush("in-a", *uuids[4:])
    host = make(tmp_path, server_url, {"a": ["work"]})
    try:
        host.start()
        wait_until(lambda: redis.llen("conserver:{in-a}:parked") == 4, 90)
        wait_until(lambda: accounted(redis, ["in-a"]), 90)
        said = json.loads(run_beside(host, "status", "--format", "json"))

        assert sorted(redis.lrange("conserver:{in-a}:parked", 0, -1)) == sorted(newer)
        assert Counter(entries(redis, "out-a")) == Counter(uuids[4:])
        assert entries(redis, "DLQ:in-a") == []
        assert [row["parked"] for row in said["lists"] if row["list"] == "in-a"] == [4]
        assert host.stop() == 0
    finally:
        host.close()
