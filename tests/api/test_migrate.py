"""What the existing conserver leaves, taken over as docs/how-to/migrate.md says."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.commands import Folder
from tests.conftest import missing
from tests.servers import RealServer, find_json_module
from tests.servers import running as serving
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="there is no build of the JSON module"
)
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "migrate.md"
#: As it was written for the existing conserver.
CONFIG = """\
links:
  tag:
    module: links.tag
    ingress-lists: [ignored]
    options:
      tags: [seen]
storages:
  files:
    module: storage.file
    options:
      path: vcons
  archive:
    module: storage.file
    options:
      path: archive
chains:
  main:
    links: [tag]
    storages: [files, archive]
    ingress_lists: [main_in]
    egress_lists: [main_out]
    enabled: 1
tracers:
"""
HOUR, DAY, WEEK = 3600, 86400, 604800


@pytest.fixture(scope="module")
def json_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A server with the JSON module."""
    with serving(RealServer(tmp_path_factory.mktemp("json") / "server", loadmodule=find_json_module())) as server:
        yield server


class Left:
    """What the existing conserver has left on a server."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.uuids: list[str] = []
        self.waiting = [self.create(version) for version in ("0.0.1", "0.3.0", "0.4.0") for _ in range(3)]
        self.waiting.append(self.create("0.4.0", as_text=True))
        self.delivered = [self.create("0.4.0") for _ in range(2)]
        self.dead = [self.create("0.0.1"), self.create("0.4.0")]
        self.not_saved = [self.create("0.4.0"), self.create("0.4.0")]
        self.alone = self.create("0.3.0")
        for name, entries in {
            "main_in": self.waiting,
            "main_out": self.delivered,
            "DLQ:main_in": self.dead,
            "DLQ:storage:archive": self.not_saved,
        }.items():
            redis.rpush(name, *entries)
        for uuid in (*self.dead, *self.not_saved):
            redis.expire(f"vcon:{uuid}", WEEK)
        # One that was read from a storage again: it is listed twice.
        redis.zadd("vcons", {self.delivered[0]: redis.zscore("vcons", f"vcon:{self.delivered[0]}")})
        # A replay died.
        redis.set("DLQ:storage:archive:replay-lock", "1")

    def create(self, version: str, *, as_text: bool = False) -> str:
        """Write a vCon as the existing API does, and return its UUID."""
        document = old_vcon(version, len(self.uuids))
        uuid = str(document["uuid"])
        key = f"vcon:{uuid}"
        if as_text:
            self.redis.set(key, json.dumps(document))
        else:
            self.redis.execute_command("JSON.SET", key, "$", json.dumps(document))
        self.redis.expire(key, HOUR)
        self.redis.zadd("vcons", {key: 1767225600 + len(self.uuids)})
        for index in ("tel:+15550100", f"mailto:ann{len(self.uuids)}@example.com", "name:Ann"):
            self.redis.sadd(index, uuid)
            self.redis.expire(index, DAY)
        context = f"context:main_in:{uuid}"
        self.redis.rpush(context, '{"trace_id": "0af7651916cd43dd8448eb211c80319c", "is_sampled": true}')
        self.redis.expire(context, DAY)
        self.uuids.append(uuid)
        return uuid


def old_vcon(version: str, number: int) -> dict[str, Any]:
    """A vCon as the existing conserver stores it: with a null for what was not given; 0.4.0 after a link's save."""
    is_new = version == "0.4.0"
    dialog = {
        "type": "text",
        "start": "2026-01-01T00:00:00.000Z",
        "duration": None,
        "parties": [0, 1],
        "url": None,
        "mediatype" if is_new else "mimetype": "text/plain",
        "alg": None,
        "body": "hello",
        "encoding": "none",
    }
    tags = {"body": json.dumps(["origin:old"]) if is_new else ["origin:old"], "encoding": "json" if is_new else "none"}
    return {
        "vcon": version,
        "uuid": str(uuids.uuid4()),
        "created_at": f"2026-01-01T00:00:{number:02}.000000+00:00",
        "subject": None,
        "parties": [
            {"tel": "+15550100", "name": "Ann", "mailto": f"ann{number}@example.com"},
            {"tel": None, "name": "Bob"},
        ],
        "dialog": [dialog],
        "analysis": [],
        "attachments": [{"purpose" if is_new else "type": "tags", **tags}],
        "amended" if is_new else "appended": None,
        **({} if is_new else {"redacted": {}, "group": []}),
    }


@pytest.fixture
def left(json_server: RealServer) -> Left:
    """What the existing conserver has left, on a server with nothing else."""
    json_server.client.flushall()
    return Left(json_server.client)


@contextmanager
def taken_over(folder: Folder, **env: str) -> Iterator[httpx.Client]:
    """Run ours on it; a client of its API."""
    process = folder.start("run", CONSERVER_API_PORT="0", CONSERVER_API_TOKEN="token-of-old", **env)
    try:
        said = wait_until(lambda: re.search(r"^api: +(http://\S+)$", folder.said(), re.MULTILINE), 60, "the API")
        headers = {"x-conserver-api-token": "token-of-old"}
        with httpx.Client(base_url=said[1], headers=headers, timeout=60, verify=False) as http:
            wait_until(lambda: answers(http), 60, "an answer of the API")
            yield http
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def at_rest(http: httpx.Client) -> bool:
    here = http.get("/lists/main_in").raise_for_status().json()
    return not any(here[where] for where in ("waiting", "returned", "delayed", "suspects", "held"))


def listed(http: httpx.Client, url: str) -> list[str]:
    """The entries of all pages."""
    found: list[str] = []
    answer = http.get(url).raise_for_status()
    while True:
        found += answer.json()
        if "next" not in answer.links:
            return found
        answer = http.get(answer.links["next"]["url"]).raise_for_status()


def files(folder: Folder, path: str) -> set[str]:
    return {file.stem for file in (folder.path / path).rglob("*.json")}


def test_everything_that_was_left_comes_out(json_server: RealServer, left: Left, tmp_path: Path) -> None:
    """The backlog runs, dead letters and failed saves are done again, and every vCon is read, listed and found."""
    redis, folder = left.redis, Folder(tmp_path, url=json_server.url, config=CONFIG)
    checked = folder.run("check")

    with taken_over(folder) as http:
        wait_until(lambda: at_rest(http), 60, "the backlog")
        before = listed(http, "/vcon?size=5")
        indexed = http.get("/index_vcons").json()
        retried = folder.run("dlq", "retry", "main_in")
        replayed = folder.run("dlq", "replay", "archive")
        wait_until(lambda: at_rest(http), 60, "the dead letters")
        after = listed(http, "/vcon?size=5")
        found = listed(http, "/vcons/search?tel=%2B15550100&size=4")
        one = listed(http, "/vcons/search?mailto=ann3@example.com&name=Ann")
        texts = {uuid: http.get(f"/vcon/{uuid}").raise_for_status().json() for uuid in left.uuids}
        letters = http.get("/dlq?ingress_list=main_in").json(), http.get("/dlq/storage?storage_name=archive").json()
        delivered = http.post("/egress/lease?egress_list=main_out&limit=1000").json()["vcons"]

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert retried.returncode == replayed.returncode == 0, retried.stdout + replayed.stdout + replayed.stderr
    newest_first = left.uuids[::-1]
    assert before == after == found == newest_first
    assert one == [left.uuids[3]]
    assert indexed == len(left.uuids)
    assert letters == ([], [])
    assert delivered == [*left.delivered, *left.waiting, *left.dead]
    assert {document["vcon"] for document in texts.values()} == {"0.4.0"}
    worked_on = {*left.waiting, *left.dead}
    assert {uuid for uuid, document in texts.items() if "seen:seen" in str(document["attachments"])} == worked_on
    assert all("origin:old" in str(document["attachments"]) for document in texts.values())
    assert files(folder, "vcons") == worked_on
    assert files(folder, "archive") == worked_on | set(left.not_saved)
    # What storages hold expires anew.
    assert all(0 < redis.ttl(f"vcon:{uuid}") <= HOUR for uuid in left.uuids)
    assert {member.decode() for member in redis.zrange("vcons", 0, -1)} == set(left.uuids)


def type_in(word: str, url: str) -> None:
    """Give the commands of the page that have *word* in them."""
    if shutil.which("redis-cli") is None:
        missing("no redis-cli on PATH (apt-get install redis-tools)")
    (commands,) = [code for code in blocks("sh") if word in code]
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands], env={**os.environ, "REDIS_URL": url}, check=True)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_what_waits_does_not_expire_before_it_is_worked_on(json_server: RealServer, left: Left, tmp_path: Path) -> None:
    """The commands of the page, given before the old workers are stopped; in the end storages hold it all."""
    waits = [*left.waiting, *left.dead, *left.not_saved]
    type_in("PERSIST", json_server.url)
    lives = [left.redis.ttl(f"vcon:{uuid}") for uuid in waits]
    others = [left.redis.ttl(f"vcon:{uuid}") for uuid in (*left.delivered, left.alone)]

    with taken_over(Folder(tmp_path, url=json_server.url, config=CONFIG)) as http:
        wait_until(lambda: at_rest(http), 60, "the backlog")

    assert lives == [-1] * len(waits)
    assert all(0 < life <= HOUR for life in others)
    assert all(0 < left.redis.ttl(f"vcon:{uuid}") <= HOUR for uuid in left.waiting)


def test_the_way_back_is_open(json_server: RealServer, left: Left, tmp_path: Path) -> None:
    """With VCON_REDIS_FORMAT=json the existing conserver reads every vCon, list and dead letter that ours has left."""
    redis = left.redis
    missing_vcon = str(uuids.uuid4())
    redis.rpush("main_in", missing_vcon)
    folder = Folder(tmp_path, url=json_server.url, config=CONFIG)
    with taken_over(folder, VCON_REDIS_FORMAT="json") as http:
        created = {**old_vcon("0.4.0", 50), "uuid": str(uuids.uuid4())}
        http.post("/vcon?ingress_lists=main_in", json=created).raise_for_status()
        wait_until(lambda: at_rest(http), 60, "the backlog")

    worked_on = [*left.waiting, created["uuid"]]
    # As it reads them: one worked on as a text before is a value now.
    texts = [json.loads(redis.execute_command("JSON.GET", f"vcon:{uuid}")) for uuid in worked_on]
    assert all("seen:seen" in str(document["attachments"]) for document in texts)
    assert [entry.decode() for entry in redis.lrange("main_out", 0, -1)] == [*left.delivered, *worked_on]
    assert [entry.decode() for entry in redis.lrange("DLQ:main_in", 0, -1)] == [*left.dead, missing_vcon]
    assert redis.llen("main_in") == 0
    assert files(folder, "vcons") == set(worked_on)

    type_in("EVAL", json_server.url)
    assert {member.decode() for member in redis.zrange("vcons", 0, -1)} == {
        f"vcon:{uuid}" for uuid in (*left.uuids, created["uuid"])
    }
    assert redis.zscore("vcons", f"vcon:{left.uuids[3]}") == 1767225603


def test_two_that_read_one_list_share_it(json_server: RealServer, left: Left, tmp_path: Path) -> None:
    """An old worker beside ours: each entry is had by one of them, and ours works on what the old API stores."""
    redis, url = left.redis, json_server.url
    old_had: list[str] = []
    folder = Folder(tmp_path, url=url, config=CONFIG)
    with taken_over(folder, VCON_REDIS_FORMAT="json") as http, json_server.connect() as old:
        for _ in range(30):
            redis.rpush("main_in", left.create("0.4.0"))
            if taken := old.blpop(["main_in"], timeout=0.01):
                old_had.append(taken[1].decode())
        wait_until(lambda: at_rest(http), 60, "the backlog")
        dead = http.get("/dlq?ingress_list=main_in").json()

    delivered = [entry.decode() for entry in redis.lrange("main_out", 0, -1)][len(left.delivered) :]
    created = set(left.uuids) - {*left.delivered, *left.dead, *left.not_saved, left.alone}
    assert sorted([*delivered, *old_had]) == sorted(created)
    assert delivered
    assert dead == left.dead


def test_the_config_of_the_page_has_two_warnings(tmp_path: Path) -> None:
    """As the page says."""
    (config,) = blocks("yaml")
    folder = Folder(tmp_path, config=config)

    said = folder.run("check", "--format", "json")

    found = json.loads(said.stdout)["findings"]
    assert [(finding["rule"], finding["level"]) for finding in found] == [
        ("unknown-field", "warning"),
        ("deprecated", "warning"),
    ]
