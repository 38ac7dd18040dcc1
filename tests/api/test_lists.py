"""conserver.api.lists: how much waits where, what it is, and chains that pause."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest
from redis import Redis

from conserver.lease import HOSTS, host_key
from conserver.tokens import digest_of
from tests.api.server import CONFIG, ApiServer, pushed, running
from tests.host import store, vcon

A, B, C = (f"018f3c5e-0000-8000-8000-00000000000{n}" for n in "abc")
ODD = "späte/liste #1 100%?"
NAMES = {
    **CONFIG,
    "chains": {
        **CONFIG["chains"],
        "odd/kette ä": {"links": ["tag"], "ingress_lists": [ODD]},
        "off": {"links": [], "ingress_lists": ["off"], "enabled": False},
    },
    "api": {"tokens": {who: {"digest": digest_of(who), "scopes": [who]} for who in ("read", "write")}},
}


@pytest.fixture(scope="module")
def api_process(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API on a config with names as people may write them."""
    with running(ApiServer(tmp_path_factory.mktemp("api"), server, NAMES)) as api:
        yield api


def at(name: str, rest: str = "") -> str:
    return f"/lists/{quote(name, safe='')}{rest}"


# Lists


def test_lists_are_listed_with_what_is_where(http: httpx.Client, redis: Redis) -> None:
    """Those of the config, and those that ever had a worker, though no chain reads them any more."""
    redis.rpush("in", A, B)
    redis.rpush("DLQ:in", C)
    redis.rpush("out", C)
    redis.sadd("conserver:lists", "older", "in")
    redis.rpush("stranger", A)

    rows = {row["list"]: row for row in http.get("/lists").json()}

    assert sorted(rows) == ["in", "in2", "in3", "off", "older", "out", "out2", ODD]
    assert rows["in"] == {
        **{"list": "in", "chain": "main", "egress": False, "waiting": 2, "returned": 0, "delayed": 0},
        **{"suspects": 0, "held": 0, "dead": 1, "parked": 0},
    }
    assert (rows["out"]["chain"], rows["out"]["egress"], rows["out"]["waiting"]) == (None, True, 1)
    assert (rows["off"]["chain"], rows["older"]["chain"]) == (None, None)


@pytest.mark.parametrize("name", ["in", ODD])
def test_one_list_is_told(http: httpx.Client, redis: Redis, name: str) -> None:
    """Whatever characters its name has."""
    redis.rpush(name, A)

    answer = http.get(at(name))

    assert (answer.status_code, answer.json()["list"], answer.json()["waiting"]) == (200, name, 1)


@pytest.mark.parametrize("name", ["inn", "DLQ:in", "vcons", "conserver:lists", "x/../in"])
def test_an_unknown_list_is_404(http: httpx.Client, redis: Redis, name: str) -> None:
    """Also when there is such a key: it may be anything."""
    redis.rpush("DLQ:in", A)

    answers = [http.get(at(name)), http.get(at(name, "/entries"))]

    assert [a.status_code for a in answers] == [404, 404]
    assert answers[0].json()["type"] == "urn:conserver:problem:no-such-list"
    if name == "inn":
        assert answers[0].json()["detail"] == "no list 'inn' is known; did you mean 'in'?"


@pytest.mark.parametrize("name", ["a\tb", "\0", "x" * 201, "\u2028", "\x9b"])
def test_names_that_nobody_gives_a_list_are_refused(http: httpx.Client, name: str) -> None:
    """Control characters would stand in logs, and a long name in every key."""
    answers = [http.get(at(name)), http.get(at(name, "/entries")), http.post(at(name, "/entries"), json=[A])]

    assert [a.status_code for a in answers] == [422, 422, 422]


def test_entries_are_looked_at_by_pages(http: httpx.Client, redis: Redis) -> None:
    """The next one first; they stay where they are, and `Link` leads on."""
    redis.rpush(ODD, A, B, b"\xff")

    first = http.get(at(ODD, "/entries"), params={"limit": 2})
    second = http.get(first.links["next"]["url"])

    assert [row["entry"] for row in first.json() + second.json()] == [A, B, "\\xff"]
    assert "next" not in second.links
    assert redis.llen(ODD) == 3


def test_what_is_to_be_claimed_again_is_looked_at(http: httpx.Client, redis: Redis) -> None:
    """With what is known of it."""
    redis.rpush("conserver:{in}:returned", f"1 1 2 3 0\n{A}")
    redis.zadd("conserver:{in}:delayed", {f"7:1 0 0 1 0\n{B}": 5000})
    redis.rpush("conserver:{in}:parked", "9 of another version")

    rows = {what: http.get(at("in", f"/entries?what={what}")).json() for what in ("returned", "delayed", "parked")}

    known = {"crashes": 0, "returns": 0, "attempts": 0, "done": 0, "due_at": None}
    assert rows["returned"] == [{**known, "entry": A, "crashes": 1, "returns": 2, "attempts": 3}]
    assert rows["delayed"] == [{**known, "entry": B, "attempts": 1, "due_at": 5.0}]
    assert rows["parked"] == [{**known, "entry": "9 of another version"}]
    assert http.get(at("in", "/entries?what=suspects")).json() == []


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "start=-1", "what=held", "start=99999999999999999999"])
def test_pages_have_limits(http: httpx.Client, query: str) -> None:
    """And parts that are known."""
    assert http.get(at("in", f"/entries?{query}")).status_code == 422


def test_a_list_of_another_type_is_409(http: httpx.Client, redis: Redis) -> None:
    """To look at it; how much waits in it is nothing, as in `conserver status`."""
    redis.set("in", "text")

    assert http.get(at("in", "/entries")).status_code == 409
    assert http.get(at("in")).json()["waiting"] == 0


def test_stored_vcons_are_pushed(http: httpx.Client, redis: Redis) -> None:
    """In order, as by `POST /vcon/ingress`."""
    uuids = store(redis, [vcon("one"), vcon("two")])

    answer = http.post(at(ODD, "/entries"), json=uuids)

    assert (answer.status_code, answer.content) == (204, b"")
    assert pushed(redis, ODD) == uuids


def test_pushes_are_checked(http: httpx.Client, redis: Redis) -> None:
    """A list that no chain reads, a vCon that is not stored, no UUID: nothing is pushed."""
    [uuid] = store(redis, [vcon("one")])

    answers = [
        http.post(at("out", "/entries"), json=[uuid]),
        http.post(at("in", "/entries"), json=[uuid, A]),
        http.post(at("in", "/entries"), json=[uuid, "x"]),
    ]

    assert [a.status_code for a in answers] == [422, 404, 422]
    assert pushed(redis, "in") == pushed(redis, "out") == []


# Chains


def test_chains_are_listed_with_who_works_on_them(http: httpx.Client, redis: Redis) -> None:
    """What the config says, whether they are paused, and which hosts that live have them."""
    redis.sadd(HOSTS, "h1", "h2", "gone", "odd")
    redis.set(host_key("h1"), json.dumps({"chains": ["main", "other"]}))
    redis.set(host_key("h2"), json.dumps({"chains": ["main"]}))
    redis.set(host_key("odd"), json.dumps({"chains": 7}))
    redis.hset("conserver:paused", "other", json.dumps({"reason": "no", "since": "now", "retry_at": 7.5, "secs": 30}))

    rows = {row["name"]: row for row in http.get("/chains").json()}

    assert sorted(rows) == ["main", "odd/kette ä", "off", "other"]
    assert rows["main"] == {
        **{"name": "main", "enabled": True, "waits_for": None, "links": ["tag"], "storages": ["files"]},
        **{"ingress_lists": ["in"], "egress_lists": ["out"], "paused": None, "hosts": ["h1", "h2"]},
    }
    assert rows["other"]["paused"] == {"reason": "no", "since": "now", "retry_at": 7.5}
    assert rows["other"]["hosts"] == ["h1"]
    assert rows["off"]["enabled"] is False


@pytest.mark.parametrize("name", ["main", "odd/kette ä"])
def test_a_chain_is_paused_and_resumed(http: httpx.Client, redis: Redis, name: str) -> None:
    """Workers claim nothing for it meanwhile; the reason is told."""
    where = f"/chains/{quote(name, safe='')}"

    paused = http.post(f"{where}/pause", json={"reason": "maintenance of the transcriber"})
    shown = {row["name"]: row["paused"] for row in http.get("/chains").json()}[name]
    resumed = [http.post(f"{where}/resume").json() for _ in range(2)]

    assert (paused.status_code, paused.json()["reason"]) == (200, "maintenance of the transcriber")
    assert (shown["reason"], shown["retry_at"]) == ("maintenance of the transcriber", None)
    assert resumed == [{"resumed": True}, {"resumed": False}]
    assert redis.hlen("conserver:paused") == 0


def test_a_pause_needs_no_body(http: httpx.Client, redis: Redis) -> None:
    """An operator has paused it, then."""
    assert http.post("/chains/main/pause").json()["reason"] == "paused by an operator"
    assert json.loads(redis.hget("conserver:paused", "main"))["reason"] == "paused by an operator"


@pytest.mark.parametrize(
    "body", [{"reason": "x" * 201}, {"reason": "a\nb"}, {"reason": ""}, {"reason": 7}, [], {"reason": "\ud800"}]
)
def test_a_reason_is_a_line(http: httpx.Client, redis: Redis, body: object) -> None:
    """Of at most 200 characters: it stands in logs and on screens."""
    answer = http.post("/chains/main/pause", content=json.dumps(body))

    assert answer.status_code == 422
    assert redis.hlen("conserver:paused") == 0


def test_an_unknown_chain_is_404(http: httpx.Client, redis: Redis) -> None:
    """With what was probably meant; one that the config has no more can be resumed."""
    redis.hset("conserver:paused", "gone", "{}")

    answers = [http.post(f"/chains/mian/{how}") for how in ("pause", "resume")]

    assert [a.status_code for a in answers] == [404, 404]
    assert answers[0].json()["detail"] == "there is no chain 'mian'; did you mean 'main'?"
    assert http.post("/chains/gone/resume").json() == {"resumed": True}


def test_who_only_reads_or_writes_pauses_nothing(api: ApiServer, redis: Redis) -> None:
    """Looking is `read`, pushing `write`, pausing `admin`."""
    with api.client("read") as reader, api.client("write") as writer, api.client("wrong") as nobody:
        seen = [who.get(path).status_code for who in (reader, nobody) for path in ("/lists", at("in"), "/chains")]
        pushes = [who.post(at("in", "/entries"), json=[]).status_code for who in (reader, nobody)]
        pauses = [
            who.post(f"/chains/main/{how}").status_code for who in (reader, writer) for how in ("pause", "resume")
        ]

    assert seen == [200] * 3 + [403] * 3
    assert pushes == [403] * 2
    assert pauses == [403] * 4
    assert redis.hlen("conserver:paused") == 0
