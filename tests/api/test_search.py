"""conserver.api.search and conserver.api.depths: lists, searches, many vCons at once, depths, the index."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from redis import Redis

from conserver.vcon import VERSION
from tests.api.server import ApiServer, running
from tests.host import store, vcon
from tests.waiting import wait_until

TAGS = [{"purpose": "tags", "encoding": "json", "body": ["mood:good", "lang:en"]}]


def uuid(n: int) -> str:
    """The n-th UUID."""
    return f"018f3c5e-0000-8000-8000-{n:012x}"


def fill(redis: Redis, scores: dict[str, float]) -> None:
    """Put UUIDs into the sorted set."""
    redis.zadd("vcons", scores)


def following(http: httpx.Client, path: str) -> list[list[str]]:
    """All pages from *path* on, by their links."""
    pages = []
    while path:
        answer = http.get(path)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        link = answer.headers.get("link", "")
        match = re.fullmatch(r'<(/[^>]*)>; rel="next"', link)
        assert bool(match) == bool(link)
        path = match[1] if match else ""
    return pages


def joined(pages: list[list[str]]) -> list[str]:
    """What is on all pages."""
    return [one for page in pages for one in page]


# GET /vcon


def test_vcons_are_listed_newest_first(http: httpx.Client, redis: Redis) -> None:
    """Fifty at a time unless told otherwise, by number or by link."""
    fill(redis, {uuid(n): n for n in range(120)})
    newest = [uuid(n) for n in reversed(range(120))]

    assert http.get("/vcon").json() == newest[:50]
    assert http.get("/vcon?page=3").json() == newest[100:]
    assert http.get("/vcon?page=4").json() == []
    assert http.get("/vcon?page=2&size=7").json() == newest[7:14]
    assert following(http, "/vcon") == [newest[:50], newest[50:100], newest[100:]]
    assert following(http, "/vcon?page=2&size=60") == [newest[60:]]


def test_the_list_holds_both_spellings_of_members_once(http: httpx.Client, redis: Redis) -> None:
    """What the existing conserver left fails on no page."""
    fill(redis, {f"vcon:{uuid(1)}": 1, uuid(1): 1, f"vcon:{uuid(2)}": 2, uuid(3): 3, "vcon:": 2})

    assert http.get("/vcon").json() == [uuid(3), uuid(2), uuid(1)]
    assert joined(following(http, "/vcon?size=1")) == [uuid(3), uuid(2), uuid(1)]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("since=2026-01-01T00:00:02Z", [3, 2]),
        ("until=2026-01-01T00:00:01", [1, 0]),
        ("since=2026-01-01T01:00:01%2B01:00&until=2026-01-01T01:00:02+01:00", [2, 1]),
        ("since=2026-01-01T00:00:01.5Z&until=2026-01-01T00:00:01.7Z", [1]),
        ("since=2026-01-01T00:00:03Z&until=2026-01-01T00:00:01Z", []),
        ("since=0001-01-01T00:00:00%2B14:00&until=9999-12-31T23:59:59-14:00", [3, 2, 1, 0]),
    ],
)
def test_a_list_may_be_of_a_time(http: httpx.Client, redis: Redis, query: str, numbers: list[int]) -> None:
    """With a zone, without one, and with a plus that was not escaped."""
    fill(redis, {uuid(n): 1767225600 + n for n in range(4)})

    answer = http.get(f"/vcon?{query}")

    assert answer.json() == [uuid(n) for n in numbers]
    assert joined(following(http, f"/vcon?{query}&size=1")) == [uuid(n) for n in numbers]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("page=0", "page"),
        ("page=x", "page"),
        ("size=0", "size"),
        ("size=1001", "size"),
        ("since=yesterday", "since"),
        ("since=1767225600", "since"),
        ("until=2026-13-01T00:00:00Z", "until"),
        ("after=x", "after"),
    ],
)
@pytest.mark.parametrize("path", ["/vcon", "/vcons/search"])
def test_a_wrong_parameter_is_named(http: httpx.Client, path: str, query: str, parameter: str) -> None:
    """In the errors of a 422."""
    if path == "/vcons/search":
        query = query.replace("page=", "size=").replace("1001", "10001") + "&name=Ann"
        parameter = parameter.replace("page", "size")

    answer = http.get(f"{path}?{query}")

    assert answer.status_code == 422
    assert [error["parameter"] for error in answer.json()["errors"]] == [parameter]


def test_a_link_keeps_the_path_and_all_other_parameters(http: httpx.Client, redis: Redis) -> None:
    """So it can be followed as it is; a page number means nothing there."""
    fill(redis, {uuid(n): n for n in range(5)})

    link = http.get("/api/vcon?size=2&page=2&since=1970-01-01T00:00:00%2B00:00&x=%0d%0aSet-Cookie:a").headers["link"]

    query = f"size=2&since=1970-01-01T00%3A00%3A00%2B00%3A00&x=%0D%0ASet-Cookie%3Aa&after=1_{uuid(1)}"
    assert link == f'</api/vcon?{query}>; rel="next"'


def test_a_cursor_outlives_what_it_ended_with(http: httpx.Client, redis: Redis) -> None:
    """The next page begins where that was."""
    fill(redis, {uuid(n): 5 for n in range(6)})
    path = re.findall("<(.*)>", http.get("/vcon?size=2").headers["link"])[0]

    redis.zrem("vcons", uuid(4), uuid(5))
    fill(redis, {uuid(9): 5})

    assert http.get(path).json() == [uuid(3), uuid(2)]


def test_a_sorted_set_that_is_none_is_no_server_error(http: httpx.Client, redis: Redis) -> None:
    """It says what the server says."""
    redis.set("vcons", "x")

    answer = http.get("/vcon")

    assert answer.status_code == 409
    assert "WRONGTYPE" in answer.json()["detail"]


# GET /vcons/search


@pytest.fixture
def three(http: httpx.Client, redis: Redis) -> list[str]:
    """Three vCons, the newest first."""
    ann, bob = {"tel": "+15550100", "name": "Ann"}, {"mailto": "bob@example.com", "name": "Bob"}
    documents = [
        vcon("Order 7: refund", parties=[ann, bob], attachments=TAGS, created_at="2026-01-03T00:00:00Z"),
        vcon("order 8", parties=[{**ann, "tel": "tel:+15550100"}], created_at="2026-01-02T00:00:00Z"),
        vcon("", parties=[bob], attachments=TAGS[:1], created_at="2026-01-01T00:00:00Z"),
    ]
    for document in documents:
        assert http.post("/vcon", json=document).status_code == 201
    return [document["uuid"] for document in documents]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("tel=%2B15550100", [0, 1]),
        ("tel=tel:%2B15550100", [0, 1]),
        ("tel=5550100", []),
        ("mailto=bob@example.com", [0, 2]),
        ("mailto=mailto:bob@example.com", [0, 2]),
        ("name=Ann", [0, 1]),
        ("name=ann", []),
        ("name=Ann&mailto=bob@example.com", [0]),
        ("name=Ann&mailto=nobody@example.com", []),
        ("name=Nobody&tel=%2B15550199", []),
        ("tag=mood:good&tag=lang:en", [0, 2]),
        ("tag=mood:good&tag=lang:de", []),
        ("tag=mood:good&name=Ann", [0]),
        ("subject=ORDER", [0, 1]),
        ("subject=refund%20order", [0]),
        ("subject=refund%20order%208", []),
        ("name=Ann&since=2026-01-02T12:00:00Z", [0]),
        ("name=Ann&until=2026-01-02T12:00:00Z", [1]),
        ("name=Ann&tel=&tag=", [0, 1]),
    ],
)
def test_a_search_meets_every_term(http: httpx.Client, three: list[str], query: str, found: list[int]) -> None:
    """Newest first; a term that nothing matches finds nothing, whatever the others match."""
    answer = http.get(f"/vcons/search?{query}")

    assert answer.status_code == 200
    assert answer.json() == [three[n] for n in found]
    assert joined(following(http, f"/vcons/search?{query}&size=1")) == answer.json()


@pytest.mark.parametrize("query", ["", "?tel=", "?since=2026-01-01T00:00:00Z", "?tag="])
def test_a_search_for_nothing_is_refused(http: httpx.Client, query: str) -> None:
    """It says what may be looked for."""
    answer = http.get(f"/vcons/search{query}")

    assert answer.status_code == 400
    assert answer.json()["detail"] == "say what to look for: tel, mailto, name, tag, subject"


def test_a_subject_needs_a_word(http: httpx.Client) -> None:
    """Signs alone are none."""
    answer = http.get("/vcons/search?subject=%3F!")

    assert answer.status_code == 422
    assert answer.json()["errors"][0] == {
        "parameter": "subject",
        "detail": "subject: it needs at least one word of letters or digits",
    }


def test_what_is_changed_or_deleted_is_not_found_any_more(http: httpx.Client, three: list[str]) -> None:
    """Nor is it listed."""
    http.patch(f"/vcon/{three[0]}", json={"attachments": [], "parties": [{"name": "Eve"}], "subject": "solved"})
    http.delete(f"/vcon/{three[1]}")

    assert http.get("/vcons/search?name=Ann").json() == []
    assert http.get("/vcons/search?tag=mood:good").json() == [three[2]]
    assert http.get("/vcons/search?subject=order").json() == []
    assert http.get("/vcons/search?name=Eve&subject=solved").json() == [three[0]]
    assert http.get("/vcon").json() == [three[0], three[2]]


# GET /vcons


def test_many_vcons_come_in_the_order_of_the_request(http: httpx.Client, three: list[str], redis: Redis) -> None:
    """Null for what is not there, or is no vCon; repeated or joined, in either case."""
    redis.set(f"vcon:{uuid(1)}", "no json")
    redis.rpush(f"vcon:{uuid(2)}", "x")
    asked = [three[2], uuid(9), three[0].upper(), uuid(1), uuid(2), three[2]]

    answer = http.get("/vcons", params={"vcon_uuids": ",".join(asked)})
    repeated = http.get("/vcons", params={"vcon_uuids": asked})

    assert answer.status_code == 200
    assert [v and v["uuid"] for v in answer.json()] == [three[2], None, three[0], None, None, three[2]]
    assert answer.json()[0] == http.get(f"/vcon/{three[2]}").json()
    assert repeated.json() == answer.json()


def test_many_vcons_come_from_storages_too(http: httpx.Client, api: ApiServer, redis: Redis) -> None:
    """What has expired from Redis."""
    documents = [vcon(str(n)) for n in range(20)]
    folder = api.folder / "vcons"
    folder.mkdir(exist_ok=True)
    for document in documents:
        (folder / f"{document['uuid']}.json").write_text(json.dumps(document))
    uuids = [document["uuid"] for document in documents]

    answer = http.get("/vcons", params={"vcon_uuids": [*uuids, uuid(5)]})

    assert [v and v["subject"] for v in answer.json()] == [*map(str, range(20)), None]


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("", 422, "Field required"),
        ("?vcon_uuids=", 422, "'' is no UUID"),
        (f"?vcon_uuids={uuid(1)},x&vcon_uuids=../y", 422, "'x' is no UUID"),
        ("?vcon_uuids=" + ",".join(map(uuid, range(1001))), 422, "1,001 UUIDs: ask for 1,000 at the most"),
    ],
)
def test_many_vcons_need_uuids(http: httpx.Client, query: str, status: int, words: str) -> None:
    """And not too many."""
    answer = http.get(f"/vcons{query}")

    assert answer.status_code == status
    assert answer.json()["errors"][0] == {"parameter": "vcon_uuids", "detail": words}


def test_many_vcons_that_are_too_large_together_are_refused(http: httpx.Client, redis: Redis) -> None:
    """Before they are read: it says what to do."""
    document = vcon("x" * 10_000_000)
    store(redis, [document])

    assert http.get("/vcons", params={"vcon_uuids": [document["uuid"]] * 6}).status_code == 200
    answer = http.get("/vcons", params={"vcon_uuids": [document["uuid"]] * 7})

    assert answer.status_code == 413
    assert answer.json()["detail"] == "these vCons have more than 67,108,864 bytes together: ask for fewer at once"


# GET /vcon/count, GET /stats/queue


def test_an_egress_list_is_counted(http: httpx.Client, redis: Redis) -> None:
    """The bare number."""
    redis.rpush("out", "a", "b", "c")

    assert http.get("/vcon/count?egress_list=out").json() == 3
    assert http.get("/api/vcon/count?egress_list=out2").text == "0"
    assert http.get("/vcon/count").status_code == 422
    refused = http.get("/vcon/count?egress_list=out3")
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("no chain pushes to list 'out3'; did you mean 'out")


@pytest.mark.parametrize("name", ["in", "in2", "out", "DLQ:in", "DLQ:storage:files"])
def test_lists_of_the_config_and_their_dead_letters_have_a_depth(http: httpx.Client, redis: Redis, name: str) -> None:
    """With their name."""
    redis.rpush(name, "a", "b")

    assert http.get("/stats/queue", params={"list_name": name}).json() == {"list_name": name, "depth": 2}


@pytest.mark.parametrize("name", ["vcons", "conserver:lists", "vcon:x", "DLQ:out", "DLQ:storage:none", "", "In"])
def test_other_keys_have_none(http: httpx.Client, redis: Redis, name: str) -> None:
    """Whatever lies there."""
    answer = http.get("/stats/queue", params={"list_name": name})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == "list_name"
    assert f"the config has no list {name!r}" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/vcon/count?egress_list=out", "/stats/queue?list_name=out"])
def test_a_list_that_is_something_else_is_no_server_error(http: httpx.Client, redis: Redis, path: str) -> None:
    """It says what the server says."""
    redis.set("out", "x")

    answer = http.get(path)

    assert answer.status_code == 409
    assert "WRONGTYPE" in answer.json()["detail"]


# GET /index_vcons


def test_the_index_is_rebuilt(http: httpx.Client, redis: Redis, api: ApiServer) -> None:
    """What others have stored is found; who rebuilt it is noted."""
    documents = [vcon("hello"), vcon("there")]
    store(redis, documents)
    redis.set("vcon:note", "x")
    fill(redis, {f"vcon:{uuid(1)}": 1})

    answer = http.get("/index_vcons")

    assert answer.status_code == 200
    assert answer.json() == 2
    assert http.get("/vcons/search?subject=hello").json() == [documents[0]["uuid"]]
    assert redis.zrange("vcons", 0, 0) == [uuid(1).encode()]
    wait_until(lambda: "GET /index_vcons" in api.said(), 20)


# Who may


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/vcon", "read"),
        ("/vcons/search?name=Ann", "read"),
        (f"/vcons?vcon_uuids={uuid(1)}", "read"),
        ("/vcon/count?egress_list=out", "read"),
        ("/stats/queue?list_name=in", "read"),
        ("/index_vcons", "write"),
        (f"/vcon/{uuid(1)}/jq?filter=.", "read"),
        (f"/vcon/{uuid(1)}/jsonpath?path=$", "read"),
    ],
)
def test_every_endpoint_needs_its_scope(scoped: ApiServer, path: str, scope: str) -> None:
    """A token that is missing, wrong or too narrow gets nothing."""
    narrower = {"read": "feeder", "write": "reader"}[scope]
    statuses = []
    for token in (None, "wrong", narrower, {"read": "reader", "write": "writer"}[scope]):
        with scoped.client(token) as client:
            statuses.append(client.get(path).status_code)

    assert statuses[:3] == [403, 403, 403]
    assert statuses[3] in (200, 404)


@pytest.fixture(scope="module")
def scoped(server: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An API with narrow tokens, which serves vCons as they were in version 0.0.1."""
    from conserver.tokens import digest_of
    from tests.api.server import CONFIG

    scopes = {"reader": ["read"], "writer": ["write"], "feeder": ["ingress:in"]}
    tokens = {name: {"digest": digest_of(name), "scopes": some} for name, some in scopes.items()}
    config = {**CONFIG, "api": {"tokens": tokens}}
    folder = tmp_path_factory.mktemp("scoped")
    with running(ApiServer(folder, server, config, EGRESS_FORMAT_VERSION="0.0.1")) as api:
        yield api


def test_many_vcons_have_the_version_that_consumers_want(scoped: ApiServer, redis: Redis) -> None:
    """Like one that is read alone."""
    document = vcon("old")
    store(redis, [document])

    [answer] = scoped.http.get("/vcons", params={"vcon_uuids": [document["uuid"]]}).json()

    assert answer["vcon"] == "0.0.1" != VERSION
    assert scoped.http.get(f"/vcon/{document['uuid']}/jq?filter=.vcon").json() == ["0.0.1"]
