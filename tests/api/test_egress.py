"""conserver.api.egress: the destructive read, and the safe one with leases."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from conserver.configmodel import FollowerConfig
from conserver.followers.remote import Remote
from conserver.settings import Settings
from conserver.tokens import digest_of
from tests.api.server import CONFIG, TOKEN, ApiServer, pushed, running
from tests.waiting import wait_until

A, B, C, D = (f"018f3c5e-0000-8000-8000-00000000000{n}" for n in "abcd")
#: A list that only goes out by a tag's route, one that the next chain reads, and one that has been switched off.
ROUTES = {
    "links": {
        **CONFIG["links"],
        "route": {
            "module": "links.tag_router",
            "options": {"tag_routes": {"vip": "vips", "late": "in", "x": "DLQ:in"}},
        },
    },
    "storages": CONFIG["storages"],
    "chains": {
        **CONFIG["chains"],
        "main": {**CONFIG["chains"]["main"], "links": ["tag", "route"], "egress_lists": ["out", "next", "off"]},
        "next": {"links": [], "ingress_lists": ["next"], "egress_lists": ["out2"]},
        "old": {"links": [], "ingress_lists": ["off"], "enabled": False},
    },
    "api": {"tokens": {"reader": {"digest": digest_of("reader"), "scopes": ["read"]}}},
}


@pytest.fixture(scope="module")
def api_process(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API on a config in which lists have more than one role."""
    with running(ApiServer(tmp_path_factory.mktemp("api"), server, ROUTES)) as api:
        yield api


def leased(http: httpx.Client, **params: object) -> dict[str, object]:
    answer = http.post("/egress/lease", params={"egress_list": "out", **params})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ending(http: httpx.Client, how: str, lease: object, **more: object) -> httpx.Response:
    return http.post(f"/egress/{how}", json={"egress_list": "out", "lease": lease, **more})


# GET /vcon/egress


def test_the_destructive_read_takes_the_oldest_first(http: httpx.Client, redis: Redis) -> None:
    """200 with an array, as existing clients expect; one without a limit."""
    redis.rpush("out", A, B, C)

    one = http.get("/vcon/egress?egress_list=out")
    two = http.get("/api/vcon/egress?egress_list=out&limit=2")
    none = http.get("/vcon/egress?egress_list=out&limit=5")

    assert [(a.status_code, a.json()) for a in (one, two, none)] == [(200, [A]), (200, [B, C]), (200, [])]
    assert pushed(redis, "out") == []


@pytest.mark.parametrize("name", ["in", "next", "off", "DLQ:in", "vcons", "conserver:hosts", "nothing", ""])
@pytest.mark.parametrize("path", ["GET /vcon/egress", "POST /egress/lease", "GET /egress/leases"])
def test_only_lists_that_go_out_are_read(http: httpx.Client, redis: Redis, path: str, name: str) -> None:
    """Neither what a chain reads, be it switched off, nor dead letters, nor any other key."""
    if name and name not in ("vcons", "conserver:hosts"):
        redis.rpush(name, A)
    method, _, where = path.partition(" ")

    answer = http.request(method, where, params={"egress_list": name})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == "egress_list"
    assert not name or redis.llen(name) == (name not in ("vcons", "conserver:hosts"))


def test_a_refusal_says_why(http: httpx.Client) -> None:
    """With the chain that reads the list, or with what was probably meant."""
    answers = [http.get("/vcon/egress", params={"egress_list": name}).json()["detail"] for name in ("next", "ot")]

    assert answers == [
        "list 'next' is read by chain 'next': what is in it is for nobody else to take",
        "no chain pushes to list 'ot'; did you mean 'out'?",
    ]


def test_a_list_that_a_link_routes_to_is_read(http: httpx.Client, redis: Redis) -> None:
    """No chain names it, but that is where tag_router pushes."""
    redis.rpush("vips", A)

    assert http.get("/vcon/egress?egress_list=vips").json() == [A]


@pytest.mark.parametrize("limit", ["0", "-1", "10001", "x"])
def test_limits_are_checked(http: httpx.Client, redis: Redis, limit: str) -> None:
    """And nothing is taken."""
    redis.rpush("out", A)

    answers = [http.request(m, f"{p}?egress_list=out&limit={limit}") for m, p in _BOTH]

    assert [a.status_code for a in answers] == [422, 422]
    assert pushed(redis, "out") == [A]


_BOTH = [("GET", "/vcon/egress"), ("POST", "/egress/lease")]


@pytest.mark.parametrize("path", _BOTH)
def test_a_key_of_another_type_is_refused(http: httpx.Client, redis: Redis, path: tuple[str, str]) -> None:
    """409, since the request is all right."""
    redis.set("out", "text")

    answer = http.request(*path, params={"egress_list": "out"})

    assert (answer.status_code, answer.json()["type"]) == (409, "urn:conserver:problem:wrong-type")
    assert redis.get("out") == b"text"


@pytest.mark.parametrize("token", ["wrong", "reader"])
def test_removing_needs_write(api: ApiServer, redis: Redis, token: str) -> None:
    """Who has no token can neither take, lease, nor end a lease; nor can one who only reads."""
    redis.rpush("out", A)
    with api.client(token) as nobody:
        answers = [nobody.request(m, f"{p}?egress_list=out") for m, p in [*_BOTH, ("GET", "/egress/leases")]]
        answers += [ending(nobody, how, "x") for how in ("acknowledge", "return", "extend")]

    assert [a.status_code for a in answers] == [403] * 6
    assert pushed(redis, "out") == [A]


def test_what_is_taken_is_in_the_audit_log(api: ApiServer, http: httpx.Client, redis: Redis) -> None:
    """Though it is a GET; a GET that found nothing is not."""
    redis.rpush("vips", A)

    http.get("/vcon/egress?egress_list=vips", headers={"x-request-id": "took-one"})
    http.get("/vcon/egress?egress_list=vips", headers={"x-request-id": "took-none"})

    wait_until(lambda: "took-one" in api.said(), 10, "a line of the audit log")
    assert "GET /vcon/egress" in api.said()
    assert "took-none" not in api.said()


# Leases


def test_a_lease_that_is_acknowledged_is_done(http: httpx.Client, redis: Redis) -> None:
    """Oldest first; what is not leased stays."""
    redis.rpush("out", A, B, C)

    lease = leased(http, limit=2, secs=30)
    acknowledged = ending(http, "acknowledge", lease["lease"])

    assert (lease["vcons"], lease["secs"]) == ([A, B], 30)
    assert (acknowledged.status_code, acknowledged.json()) == (200, {"acknowledged": 2})
    assert pushed(redis, "out") == [C]
    assert http.get("/egress/leases?egress_list=out").json() == []


def test_an_empty_list_gives_no_lease(http: httpx.Client) -> None:
    """With an id that is empty, so that nobody takes it for one."""
    answer = leased(http)

    assert (answer["lease"], answer["vcons"]) == ("", [])


def test_parts_of_a_lease_are_acknowledged_and_returned(http: httpx.Client, redis: Redis) -> None:
    """What is returned is at the head again, and the lease stands with the rest."""
    redis.rpush("out", A, B, C, D)
    lease = leased(http, limit=3)["lease"]

    acknowledged = ending(http, "acknowledge", lease, vcons=[B, D])
    returned = ending(http, "return", lease, vcons=[A])

    assert (acknowledged.json(), returned.json()) == ({"acknowledged": 1}, {"returned": 1})
    assert pushed(redis, "out") == [A, D]
    [left] = http.get("/egress/leases?egress_list=out").json()
    assert (left["lease"], left["vcons"]) == (lease, 1)
    assert 50 < left["secs_left"] <= 60


def test_a_repeat_with_the_id_gets_the_same(http: httpx.Client, redis: Redis) -> None:
    """The answer may have been lost, and then the entries would be out of reach."""
    redis.rpush("out", A, B, C)

    first = leased(http, limit=2, lease="mine-1", secs=60)
    again = leased(http, limit=2, lease="mine-1", secs=600)

    assert (first["lease"], first["vcons"]) == (again["lease"], again["vcons"]) == ("mine-1", [A, B])
    assert 50 < again["secs"] <= 60, "it stands for as long as it did"
    assert again["expires_at"] == first["expires_at"]


def test_a_lease_that_lapses_goes_back(http: httpx.Client, redis: Redis) -> None:
    """Its reader is told when it comes back, and others get the entries."""
    redis.rpush("out", A)
    lease = leased(http, secs=1)["lease"]

    wait_until(lambda: leased(http)["vcons"] == [A], 30, "the entry to come back")
    late = [ending(http, how, lease) for how in ("acknowledge", "return", "extend")]

    assert [(a.status_code, a.json()["type"]) for a in late] == [(404, "urn:conserver:problem:lease-lapsed")] * 3
    assert late[0].json()["detail"] == (
        f"list 'out' has no lease '{lease}': it has lapsed, and its entries may go to other readers"
    )


def test_a_lease_is_extended(http: httpx.Client, redis: Redis) -> None:
    """From now on, and by the server's clock."""
    redis.rpush("out", A)
    lease = leased(http, secs=5)["lease"]

    answer = ending(http, "extend", lease, secs=500)

    assert (answer.status_code, answer.json()) == (200, {"extended": True})
    assert http.get("/egress/leases?egress_list=out").json()[0]["secs_left"] > 400


def test_a_reader_ends_its_lease_whatever_the_config_says_by_now(api: ApiServer, redis: Redis) -> None:
    """It has had the entries; refused, they would be delivered twice."""
    redis.rpush("out", A)
    lease = leased(api.http)["lease"]
    api.configure({**ROUTES, "chains": {"main": {**ROUTES["chains"]["main"], "egress_lists": []}}})
    try:
        wait_until(lambda: api.http.get("/vcon/egress?egress_list=out").status_code == 422, 30, "the new config")
        acknowledged = ending(api.http, "acknowledge", lease)
        again = ending(api.http, "acknowledge", "another")
    finally:
        api.configure(ROUTES)
        wait_until(lambda: api.http.get("/vcon/egress?egress_list=out").status_code == 200, 30, "the old config")

    assert acknowledged.json() == {"acknowledged": 1}
    assert again.status_code == 422


def test_entries_that_are_no_text_are_named_and_ended(http: httpx.Client, redis: Redis) -> None:
    """Anybody may push what he likes; each entry can be acknowledged by what the lease calls it."""
    odd = [b"\xff\x00\xfe", "naïve ☂".encode(), b"\\xff", b"", b"a\nb"]
    redis.rpush("out", *odd)

    lease = leased(http)
    acknowledged = [ending(http, "acknowledge", lease["lease"], vcons=[text]).json() for text in lease["vcons"]]
    redis.rpush("out", *odd)
    taken = http.get("/vcon/egress?egress_list=out&limit=9").json()

    assert taken == lease["vcons"] == ["\\xff\0\\xfe", "naïve ☂", "\\xff", "", "a\nb"]
    assert acknowledged == [{"acknowledged": 1}] * 5


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"", ""),
        (b"[]", ""),
        (b'{"lease": "x"}', "/egress_list"),
        (b'{"egress_list": "out"}', "/lease"),
        (b'{"egress_list": "out", "lease": ""}', "/lease"),
        (b'{"egress_list": "o\\nut", "lease": "x"}', "/egress_list"),
        (b'{"egress_list": "\\ud800", "lease": "x"}', "/egress_list"),
        (b'{"egress_list": "out", "lease": "\\ud800"}', "/lease"),
        (b'{"egress_list": "out", "lease": "x", "vcons": [1]}', "/vcons"),
        (b'{"egress_list": "out", "lease": "x", "vcons": ["\\ud800"]}', None),
        (b'{"egress_list": "out", "lease": "x", "secs": 1e999}', None),
    ],
)
@pytest.mark.parametrize("how", ["acknowledge", "return", "extend"])
def test_bodies_that_make_no_sense_are_refused(http: httpx.Client, how: str, body: bytes, pointer: str | None) -> None:
    """With the place in the body; never a 500."""
    answer = http.post(f"/egress/{how}", content=body)

    assert answer.status_code in (404, 422), answer.text
    if pointer and not (pointer == "/vcons" and how == "extend"):
        assert answer.json()["errors"][0]["pointer"].startswith(pointer)


@pytest.mark.parametrize("secs", ["0", "3601", "nan", "inf", "x"])
def test_a_lease_has_a_length(http: httpx.Client, redis: Redis, secs: str) -> None:
    """Between a second and an hour."""
    redis.rpush("out", A)

    answer = http.post(f"/egress/lease?egress_list=out&secs={secs}")

    assert answer.status_code == 422
    assert pushed(redis, "out") == [A]


def test_a_follower_of_ours_leases_acknowledges_and_gives_back(api: ApiServer, redis: Redis) -> None:
    """What conserver.followers asks for is what this API gives; also as many as it may ask for at once."""
    redis.rpush("out", A, B, C)
    config = FollowerConfig(
        name="f",
        url=f"{api.address}/api",
        egress_list="out",
        follower_ingress_list="in",
        auth_token=TOKEN,
        pulling_interval=1,
        fetch_vcon_limit=1,
    )
    remote = Remote(config, Settings())

    lease = remote.lease(50_000, 300.0)

    assert lease is not None
    assert (lease.entries, lease.secs) == ([A, B, C], 300.0)
    assert remote.acknowledge(lease.id, [A])
    assert remote.give_back(lease.id, [B, C])
    assert not remote.acknowledge("gone", [A])
    assert pushed(redis, "out") == [B, C]
