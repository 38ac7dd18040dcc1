"""conserver.api.idempotency: a request that is repeated is done once; and what a crash cuts short can be repeated."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.exceptions import ResponseError

from conserver.scripts import ONCE
from conserver.tokens import digest_of
from tests.api.server import CONFIG, ApiServer, pushed, running
from tests.host import store, vcon
from tests.server_moods import full

OTHER = "token-of-somebody-else"
PARTNERS: dict[str, Any] = CONFIG | {
    "ingress_auth": {"in": ["key-of-ann"]},
    "api": {"tokens": {"other": {"digest": digest_of(OTHER), "scopes": ["write"]}}},
}


@pytest.fixture(scope="module")
def api_process(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API with a partner, and with two who may write."""
    with running(ApiServer(tmp_path_factory.mktemp("api"), server, PARTNERS)) as api:
        yield api


def new_key() -> dict[str, str]:
    return {"Idempotency-Key": str(uuids.uuid4())}


def marks(redis: Redis) -> list[bytes]:
    return sorted(redis.keys("conserver:idempotency:*"))


def test_a_create_that_is_repeated_is_done_once(http: httpx.Client, redis: Redis) -> None:
    """With the same answer, also when a link has changed the vCon since."""
    document, headers = vcon("first"), new_key()
    first = http.post("/vcon?ingress_lists=in", json=document, headers=headers)
    redis.set(f"vcon:{document['uuid']}", '{"changed": "by a link"}')

    again = http.post("/vcon?ingress_lists=in", json=document, headers=headers)

    assert (first.status_code, "Idempotency-Replayed" in first.headers) == (201, False)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert (again.content, again.headers["ETag"]) == (first.content, first.headers["ETag"])
    assert pushed(redis, "in") == [document["uuid"]]
    [mark] = marks(redis)
    assert 86000 < redis.ttl(mark) <= 86400


def test_the_other_requests_that_push_are_done_once_too(api: ApiServer, redis: Redis) -> None:
    """Each with the status and the body of the first time."""
    there, gone = store(redis, [vcon()])[0], str(uuids.uuid4())
    with api.client("key-of-ann") as partner:
        requests: list[Callable[[dict[str, str]], httpx.Response]] = [
            lambda h: partner.post("/vcon/external-ingress?ingress_list=in", content=document, headers=h),
            lambda h: api.http.post("/vcon/ingress?ingress_list=in", json=[there], headers=h),
            lambda h: api.http.post("/vcon/ingress?ingress_list=in&missing=skip", json=[there, gone], headers=h),
            lambda h: api.http.post("/vcons?ingress_lists=in", content=b"[%b, 7]" % document, headers=h),
        ]
        document = httpx.Request("POST", "http://x", json=vcon()).content
        for request in requests:
            headers = new_key()
            first, again = request(headers), request(headers)

            assert first.is_success
            assert (again.status_code, again.content) == (first.status_code, first.content)
            assert again.headers.get("content-type") == first.headers.get("content-type")
            assert (first.headers.get("Idempotency-Replayed"), again.headers["Idempotency-Replayed"]) == (None, "true")
    assert redis.llen("in") == len(requests)


def test_a_key_belongs_to_one_request(http: httpx.Client, redis: Redis) -> None:
    """With another body, list or path it is refused, and nothing is done."""
    document, headers = vcon(), new_key()
    http.post("/vcon?ingress_lists=in", json=document, headers=headers)

    answers = [
        http.post("/vcon?ingress_lists=in", json=vcon(), headers=headers),
        http.post("/vcon?ingress_lists=in2", json=document, headers=headers),
        http.post("/vcons?ingress_lists=in", json=[document], headers=headers),
    ]

    assert [answer.status_code for answer in answers] == [422] * 3
    assert {answer.json()["type"] for answer in answers} == {"urn:conserver:problem:idempotency-key-reused"}
    assert (redis.llen("in"), redis.llen("in2"), len(redis.keys("vcon:*"))) == (1, 0, 1)


def test_a_key_is_its_callers_own(api: ApiServer, redis: Redis) -> None:
    """Somebody else who happens to take the same key is not answered with what the first one did."""
    headers, documents = new_key(), [vcon(), vcon()]
    with api.client(OTHER) as other:
        answers = [
            client.post("/vcon?ingress_lists=in", json=document, headers=headers)
            for client, document in zip((api.http, other), documents, strict=True)
        ]

    assert [answer.status_code for answer in answers] == [201, 201]
    assert pushed(redis, "in") == [document["uuid"] for document in documents]


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_a_key_that_is_none_is_refused(http: httpx.Client, redis: Redis, key: str) -> None:
    """Rather than ignored: the client relies on it."""
    answer = http.post("/vcon", json=vcon(), headers={"Idempotency-Key": key})

    assert answer.status_code == 422
    assert answer.json()["detail"] == "Idempotency-Key: it must be 1 to 255 printable characters"
    assert redis.dbsize() == 0


def test_without_the_header_nothing_is_kept(http: httpx.Client, redis: Redis) -> None:
    """And nothing is asked."""
    http.post("/vcon?ingress_lists=in", json=vcon())
    redis.config_resetstat()
    http.post("/vcon?ingress_lists=in", json=vcon())

    assert marks(redis) == []
    assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] == 1


def test_what_was_refused_is_not_remembered(http: httpx.Client, redis: Redis) -> None:
    """The same request may be sent again as soon as its reason is gone."""
    document, headers = vcon("mine"), new_key()
    store(redis, [document | {"subject": "another"}])
    refused = http.post("/vcon?ingress_lists=in", json=document, headers=headers)
    left = marks(redis)
    redis.flushall()
    with full(redis):
        too_full = http.post("/vcon?ingress_lists=in", json=document, headers=headers)

    created = http.post("/vcon?ingress_lists=in", json=document, headers=headers)

    assert (refused.status_code, left, too_full.status_code) == (409, [], 507)
    assert (created.status_code, "Idempotency-Replayed" in created.headers) == (201, False)
    assert pushed(redis, "in") == [document["uuid"]]


def test_a_push_that_the_server_refuses_leaves_the_key_free(http: httpx.Client, redis: Redis) -> None:
    """A list whose key holds something else: what is stored stays, and the repeat does the rest."""
    document, headers = vcon(), new_key()
    redis.set("in2", "no list")
    refused = http.post("/vcon?ingress_lists=in,in2", json=document, headers=headers)
    before = redis.llen("in")
    redis.delete("in2")

    created = http.post("/vcon?ingress_lists=in,in2", json=document, headers=headers)

    assert (refused.status_code, before, created.status_code) == (409, 0, 201)
    assert refused.json()["detail"].endswith("key 'in2' holds a string, not a list")
    assert pushed(redis, "in") == pushed(redis, "in2") == [document["uuid"]]


def test_requests_that_come_at_the_same_time_are_done_once(http: httpx.Client, redis: Redis) -> None:
    """The others get the same answer, or are told to ask again later."""
    document, headers = vcon(), new_key()
    with ThreadPoolExecutor(16) as threads:
        sent = [threads.submit(http.post, "/vcon?ingress_lists=in", json=document, headers=headers) for _ in range(48)]
        answers = [one.result() for one in sent]

    assert {answer.status_code for answer in answers} <= {201, 409}
    assert sum(answer.status_code == 201 and "Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    assert pushed(redis, "in") == [document["uuid"]]


def test_while_the_first_one_runs_the_others_wait(http: httpx.Client, redis: Redis) -> None:
    """409 with Retry-After, as after a crash, until the mark lapses."""
    document, headers = vcon(), new_key()
    http.post("/vcon?ingress_lists=in", json=document, headers=headers)
    [mark] = marks(redis)
    state, fingerprint, _ = redis.get(mark).split(b" ", 2)
    redis.set(mark, b"runs " + fingerprint + b" 0011", ex=60)

    answer = http.post("/vcon?ingress_lists=in", json=document, headers=headers)
    lapsed = redis.delete(mark)
    again = http.post("/vcon?ingress_lists=in", json=document, headers=headers)

    assert (state, lapsed) == (b"done", 1)
    assert (answer.status_code, answer.headers["Retry-After"]) == (409, "2")
    assert answer.json()["type"] == "urn:conserver:problem:idempotency-key-in-use"
    assert again.status_code == 201


def test_a_run_that_has_lost_its_mark_pushes_nothing(redis: Redis) -> None:
    """Another one may have begun: it pushes."""
    redis.set("conserver:idempotency:x", "mark of another run")

    for mark in ("mark of mine", "mark that has lapsed"):
        with pytest.raises(ResponseError, match="TAKEN this run of the request has lost its mark"):
            ONCE(redis, ["conserver:idempotency:x", "in"], [mark, "done", 60, "uuid"])
        redis.delete("conserver:idempotency:x")

    assert redis.dbsize() == 0


# Crashes


@pytest.fixture
def dying(server_url: str, tmp_path: Path) -> Iterator[Callable[[str], ApiServer]]:
    """An API that dies at a crash point; `reborn` starts it again, without that."""
    apis: list[ApiServer] = []

    def start(point: str) -> ApiServer:
        apis.append(ApiServer(tmp_path / "api", server_url, CONSERVER_TESTING=1, CONSERVER_CRASHPOINT=point))
        return apis[-1].start()

    yield start
    for api in apis:
        api.close()


def dies(api: ApiServer, path: str, **request: Any) -> ApiServer:
    """Send what it dies of, and return it after a new start."""
    with pytest.raises(httpx.TransportError):
        api.http.post(path, **request)
    assert api.process is not None
    assert api.process.wait(60) == -9
    del api.env["CONSERVER_CRASHPOINT"]
    return api.start()


@pytest.mark.parametrize("point", ["save.sent", "save.replied"])
def test_a_create_that_a_crash_cut_short_is_repaired_by_a_repeat(
    dying: Callable[[str], ApiServer], redis: Redis, point: str
) -> None:
    """It was stored, but neither indexed nor queued."""
    document = vcon()
    api = dies(dying(point), "/vcon?ingress_lists=in,in2", json=document)
    half = (redis.exists(f"vcon:{document['uuid']}"), redis.llen("in"), redis.exists("vcons"))

    answer = api.http.post("/vcon?ingress_lists=in,in2", json=document)

    assert half == (1, 0, 0)
    assert answer.status_code == 201
    assert pushed(redis, "in") == pushed(redis, "in2") == [document["uuid"]]
    assert redis.zrange("vcons", 0, -1) == [document["uuid"].encode()]
    assert redis.smembers("tel:+15550100") == {document["uuid"].encode()}


def test_a_crash_before_the_push_keeps_the_key_until_its_mark_lapses(
    dying: Callable[[str], ApiServer], redis: Redis
) -> None:
    """Then the repeat does the rest, once."""
    document, headers = vcon(), new_key()
    api = dies(dying("save.replied"), "/vcon?ingress_lists=in", json=document, headers=headers)
    waits = api.http.post("/vcon?ingress_lists=in", json=document, headers=headers)
    [mark] = marks(redis)
    secs = redis.ttl(mark)
    redis.delete(mark)

    answers = [api.http.post("/vcon?ingress_lists=in", json=document, headers=headers) for _ in range(2)]

    assert waits.status_code == 409
    assert 0 < secs <= 60
    assert [answer.status_code for answer in answers] == [201, 201]
    assert pushed(redis, "in") == [document["uuid"]]


@pytest.mark.parametrize("point", ["once.sent", "once.replied"])
def test_a_crash_after_the_push_pushes_no_second_time(
    dying: Callable[[str], ApiServer], redis: Redis, point: str
) -> None:
    """The push went along with the note that it is done."""
    document, headers = vcon(), new_key()

    api = dies(dying(point), "/vcon?ingress_lists=in", json=document, headers=headers)
    again = api.http.post("/vcon?ingress_lists=in", json=document, headers=headers)

    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert pushed(redis, "in") == [document["uuid"]]


def test_a_repeat_of_many_does_the_rest(dying: Callable[[str], ApiServer], redis: Redis) -> None:
    """Those that were pushed before the crash are not pushed again, even when a link has changed them since."""
    documents, headers = [vcon(str(n)) for n in range(5)], new_key()
    api = dies(dying("once.sent:2"), "/vcons?ingress_lists=in", json=documents, headers=headers)
    before = pushed(redis, "in")
    [mark] = [mark for mark in marks(redis) if mark.count(b":") == 2]
    redis.delete(mark)
    redis.set(f"vcon:{documents[0]['uuid']}", '{"uuid": "changed by a link"}')

    answer = api.http.post("/vcons?ingress_lists=in", json=documents, headers=headers)

    assert before == [document["uuid"] for document in documents[:2]]
    assert [result["status"] for result in answer.json()] == [201] * 5
    assert sorted(pushed(redis, "in")) == sorted(document["uuid"] for document in documents)
