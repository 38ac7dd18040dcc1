"""conserver.api.claims: what is being worked on over all hosts, and hosts that are gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from conserver.lease import HOSTS, host_key
from conserver.session import Session
from conserver.tokens import digest_of
from tests.api.server import CONFIG, TOKEN, ApiServer, pushed, running
from tests.commands import Folder
from tests.host import Host, store, vcon
from tests.waiting import wait_until

A, B, C, D = (f"018f3c5e-0000-8000-8000-00000000000{n}" for n in "abcd")
TOKENS = {
    **CONFIG,
    "api": {"tokens": {who: {"digest": digest_of(who), "scopes": [who]} for who in ("read", "write")}},
}


@pytest.fixture(scope="module")
def api_process(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API, with tokens of little rights."""
    with running(ApiServer(tmp_path_factory.mktemp("api"), server, TOKENS)) as api:
        yield api


def hold(redis: Redis, url: str, worker: str, name: str, *entries: str | bytes) -> Session:
    redis.sadd("conserver:lists", name)
    redis.rpush(name, *entries)
    session = Session(url, worker)
    session.join([name])
    assert len(session.trip([], {name: len(entries)}).claims) == len(entries)
    return session


def named(claim: dict[str, object]) -> dict[str, object]:
    return {member: claim[member] for member in ("list", "worker", "seq")}


# Claims


def test_claims_of_all_hosts_are_listed_with_what_runs(http: httpx.Client, redis: Redis, server_url: str) -> None:
    """As far as their hosts tell it; one that speaks another language keeps nobody from the rest."""
    hold(redis, server_url, "h1:1", "in", A, B)
    hold(redis, server_url, "h2:7", "in2", C)
    running = [
        {"vcon": B, "list": "in", "what": "link tag", "seconds_left": 3.5},
        {"vcon": A, "list": "in", "what": ""},
    ]
    redis.sadd(HOSTS, "h1", "h2", "h3")
    redis.set(host_key("h1"), json.dumps({"workers": [{"name": "h1:1", "running": running}]}))
    redis.set(host_key("h2"), json.dumps({"workers": [{"busy": True}]}))
    redis.set(host_key("h3"), json.dumps({"workers": 7}))

    rows = http.get("/claims").json()

    known = {"crashes": 0, "returns": 0, "attempts": 0, "done": 0}
    assert rows == [
        {
            **known,
            **{"list": "in", "seq": 1, "worker": "h1:1", "host": "h1", "entry": A},
            "running": rows[0]["running"],
        },
        {
            **known,
            **{"list": "in", "seq": 2, "worker": "h1:1", "host": "h1", "entry": B},
            "running": rows[1]["running"],
        },
        {**known, **{"list": "in2", "seq": 1, "worker": "h2:7", "host": "h2", "entry": C}, "running": None},
    ]
    assert rows[0]["running"] == {"what": "", "seconds_left": None}
    assert rows[1]["running"] == {"what": "link tag", "seconds_left": 3.5}


def test_claims_are_listed_by_pages(http: httpx.Client, redis: Redis, server_url: str) -> None:
    """By list and seq, each once; of one list if that is wanted."""
    hold(redis, server_url, "h1:1", "in", A, B, b"\xff")
    hold(redis, server_url, "h2:1", "in2:x,y", C, D)
    path, seen = "/claims?limit=2", []

    while path:
        answer = http.get(path)
        seen.append([row["entry"] for row in answer.json()])
        path = answer.links.get("next", {}).get("url", "")

    assert seen == [[A, B], ["\\xff", C], [D], []]
    assert [row["entry"] for row in http.get("/claims", params={"list": "in2:x,y"}).json()] == [C, D]
    assert http.get("/claims?list=nothing").json() == []


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "after=x", "after=1", "after=-1:in", f"list={'x' * 201}"])
def test_pages_of_claims_have_limits(http: httpx.Client, query: str) -> None:
    """And begin where one has ended."""
    assert http.get(f"/claims?{query}").status_code == 422


def test_a_claim_is_returned(http: httpx.Client, redis: Redis, server_url: str) -> None:
    """It is the next to be claimed, and its worker settles it no more."""
    hold(redis, server_url, "h1:1", "in", A)
    [claim] = http.get("/claims").json()

    first, again = (http.post("/claims/return", json=named(claim)) for _ in range(2))

    assert (first.status_code, first.json()) == (200, {"returned": True})
    assert again.status_code == 404
    assert again.json()["detail"] == "worker 'h1:1' holds no claim 1 of list 'in'"
    assert redis.llen("conserver:{in}:returned") == 1
    assert http.get("/claims").json() == []


def test_a_claim_is_dropped(http: httpx.Client, redis: Redis, server_url: str) -> None:
    """It is nowhere any more."""
    hold(redis, server_url, "h1:1", "in", A)
    [claim] = http.get("/claims").json()

    first, again = (http.post("/claims/drop", json=named(claim)) for _ in range(2))

    assert (first.status_code, first.json()) == (200, {"dropped": True})
    assert again.status_code == 404
    assert redis.llen("conserver:{in}:returned") == redis.llen("in") == 0


@pytest.mark.parametrize(
    "change",
    [
        {"list": "\ud800"},
        {"list": ""},
        {"worker": "a\nb"},
        {"worker": None},
        {"seq": -1},
        {"seq": 2**60},
        {"seq": True},
        {"seq": "1"},
    ],
)
@pytest.mark.parametrize("how", ["return", "drop"])
def test_a_claim_is_named_as_it_is(http: httpx.Client, how: str, change: dict[str, object]) -> None:
    """Anything else is refused, with the member that is wrong."""
    body = json.dumps({"list": "in", "worker": "h1:1", "seq": 1, **change})

    answer = http.post(f"/claims/{how}", content=body)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"/{next(iter(change))}"


def test_keys_of_another_type_break_nothing(http: httpx.Client, redis: Redis, server_url: str) -> None:
    """The claims of other lists are listed all the same; a claim that cannot be taken is 409."""
    hold(redis, server_url, "h1:1", "in", A)
    redis.sadd("conserver:lists", "odd")
    redis.set("conserver:{odd}:workers", "text")
    redis.set("conserver:{odd}:held:w", "text")

    rows = http.get("/claims")
    taken = http.post("/claims/drop", json={"list": "odd", "worker": "w", "seq": 1})

    assert [row["entry"] for row in rows.json()] == [A]
    assert taken.status_code == 409


# Hosts


def test_hosts_are_listed_with_what_they_say(http: httpx.Client, redis: Redis) -> None:
    """Also those that have gone."""
    redis.sadd(HOSTS, "a", "b")
    redis.set(host_key("b"), json.dumps({"pid": 7, "chains": ["main"]}))

    assert http.get("/hosts").json() == [
        {"host": "a", "alive": False},
        {"host": "b", "alive": True, "pid": 7, "chains": ["main"]},
    ]


def test_a_host_that_is_gone_is_forgotten(http: httpx.Client, redis: Redis, server_url: str) -> None:
    """What its workers held goes on elsewhere."""
    redis.sadd(HOSTS, "h1")
    hold(redis, server_url, "h1:1", "in", A, B)

    first, again = (http.delete("/hosts/h1") for _ in range(2))

    assert (first.status_code, first.json()) == (200, {"returned": 2, "dead": 0})
    assert (again.status_code, again.json()["detail"]) == (404, "there is no host 'h1'")
    assert redis.llen("conserver:{in}:returned") == 2
    assert redis.scard(HOSTS) == 0


def test_a_host_that_lives_is_not_forgotten(http: httpx.Client, redis: Redis, server_url: str) -> None:
    """Its workers keep what they hold."""
    redis.sadd(HOSTS, "h1")
    redis.set(host_key("h1"), "{}")
    hold(redis, server_url, "h1:1", "in", A)

    answer = http.delete("/hosts/h1")

    assert (answer.status_code, answer.json()["type"]) == (409, "urn:conserver:problem:host-lives")
    assert answer.json()["detail"] == "host 'h1' is alive: stop it, or wait until its lease has lapsed"
    assert len(http.get("/claims").json()) == 1


def test_taking_from_workers_needs_admin(api: ApiServer, redis: Redis, server_url: str) -> None:
    """Looking needs `read`."""
    redis.sadd(HOSTS, "h1")
    hold(redis, server_url, "h1:1", "in", A)
    body = {"list": "in", "worker": "h1:1", "seq": 1}
    with api.client("read") as reader, api.client("write") as writer, api.client("wrong") as nobody:
        seen = [who.get(p).status_code for who in (reader, nobody) for p in ("/claims", "/hosts", "/status")]
        taken = [writer.post(f"/claims/{how}", json=body).status_code for how in ("return", "drop")]
        taken.append(writer.delete("/hosts/h1").status_code)

    assert seen == [200] * 3 + [403] * 3
    assert taken == [403] * 3
    assert len(api.http.get("/claims").json()) == 1


def test_the_status_is_that_of_the_command(api: ApiServer, redis: Redis, server_url: str, tmp_path: Path) -> None:
    """The same members with the same values, but for the clock."""
    redis.rpush("in", A)
    folder = Folder(tmp_path, url=server_url)

    printed = folder.run("status", "--format", "json", CONSERVER_CONFIG_FILE=str(api.config_file))
    told = api.http.get("/status")

    expected, got = json.loads(printed.stdout), told.json()
    expected["config"]["file"] = got["config"]["file"]
    assert told.status_code == 200
    assert {**got, "server_time": 0, "server": 0} == {**expected, "server_time": 0, "server": 0}
    assert got["server"].keys() == expected["server"].keys()
    assert TOKEN not in told.text


def test_the_status_of_a_host_tells_where_its_api_is(redis: Redis, server_url: str, tmp_path: Path) -> None:
    """As long as it is served beside the workers."""
    redis.sadd(HOSTS, "a", "b")
    redis.set(host_key("a"), json.dumps({"pid": 7, "services": {"api": {"pid": 8, "address": "http://127.0.0.1:80"}}}))
    redis.set(host_key("b"), json.dumps({"pid": 9, "services": {"followers": {"pid": 10}}}))

    printed = Folder(tmp_path, url=server_url).run("status").stdout

    assert "host    a: pid 7, API on http://127.0.0.1:80\n" in printed
    assert "host    b: pid 9\n" in printed


def test_a_claim_that_hangs_goes_to_another_worker(api: ApiServer, redis: Redis, tmp_path: Path) -> None:
    """Over real hosts: what runs is shown with its host, and once returned it is delivered by the other one."""
    config = {
        "links": {"wait": {"module": "links.wait", "timeout": 600}},
        "chains": {"main": {"links": ["wait"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
    }
    # Hangs where the file is that says so: on the first host that tries.
    wait = (
        "import os, time\n"
        "def run(vcon_uuid, link_name, opts):\n"
        "    try:\n        os.unlink('hang')\n"
        "    except FileNotFoundError:\n        return vcon_uuid\n"
        "    time.sleep(3600)\n"
    )
    url = api.env["REDIS_URL"]
    host = Host(tmp_path, url, config, links={"wait": wait}, CONSERVER_WORKERS=1, CONSERVER_API_PORT="off")
    (tmp_path / "hang").touch()
    [uuid] = store(redis, [vcon("x")])
    try:
        host.start()
        redis.rpush("in", uuid)

        def hanging() -> dict[str, object] | None:
            rows = api.http.get("/claims").json()
            return rows[0] if rows and rows[0]["running"] and rows[0]["running"]["what"] else None

        claim = wait_until(hanging, 60, "the claim with what runs")
        returned = api.http.post("/claims/return", json=named(claim))

        assert returned.json() == {"returned": True}
        assert (claim["entry"], claim["host"]) == (uuid, host.status()["host"])
        assert claim["running"]["what"] == "link 'wait'"
        assert 500 < claim["running"]["seconds_left"] <= 600
        assert api.http.delete(f"/hosts/{claim['host']}").status_code == 409
        wait_until(lambda: pushed(redis, "out") == [uuid], 60, "the vCon on the other thread")
    finally:
        host.close()
