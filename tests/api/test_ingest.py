"""conserver.api.ingest, many and checking: partners, stored vCons that are pushed, many at once, and verdicts."""

from __future__ import annotations

import gzip
import json
import uuid as uuids
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from conserver.tokens import digest_of
from tests.api.server import CONFIG, TOKEN, ApiServer, pushed, running
from tests.host import store, vcon
from tests.server_moods import full
from tests.waiting import wait_until

KEYS = ["key-of-ann", "key-of-bob"]
V8 = "01928e10-193e-8231-b9a2-279e0d16bc46"
FEEDER, READER = "token-of-the-feeder", "token-of-a-reader"
PARTNERS: dict[str, Any] = CONFIG | {
    "ingress_auth": {"in": KEYS, "in2": "key-of-in2", "in3": []},
    "api": {
        "tokens": {
            "feeder": {"digest": digest_of(FEEDER), "scopes": ["ingress:in"]},
            "reader": {"digest": digest_of(READER), "scopes": ["read"]},
        }
    },
}


@pytest.fixture(scope="module")
def api_process(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API with partners, and tokens of little rights."""
    with running(ApiServer(tmp_path_factory.mktemp("api"), server, PARTNERS)) as api:
        yield api


Clients = Callable[[str | None], httpx.Client]


@pytest.fixture
def by(api: ApiServer) -> Iterator[Clients]:
    """Who calls with the token or key that is given."""
    clients: list[httpx.Client] = []

    def client(token: str | None) -> httpx.Client:
        clients.append(api.client(token))
        return clients[-1]

    yield client
    for one in clients:
        one.close()


def new_uuid() -> str:
    return str(uuids.uuid4())


# Partners


def test_contract_external_ingress_takes_a_vcon_by_a_key_of_the_list(by: Clients, redis: Redis) -> None:
    """204, stored, indexed and queued; each key of the list counts."""
    documents = [vcon("one"), vcon("two")]

    answers = [
        by(key).post("/vcon/external-ingress?ingress_list=in", json=document)
        for key, document in zip(KEYS, documents, strict=True)
    ]

    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 2
    assert pushed(redis, "in") == [document["uuid"] for document in documents]
    assert redis.smembers("tel:+15550100") == {document["uuid"].encode() for document in documents}


@pytest.mark.parametrize(
    ("key", "name", "detail"),
    [
        (None, "in", "an API key is required, in the header x-conserver-api-token"),
        ("key-of-ann", "in4", "ingress list 'in4' is not configured for external ingress"),
        ("key-of-ann", "in3", "the configuration of ingress list 'in3' is invalid: it has no key"),
        ("key-of-ann", "in2", "invalid API key for ingress list 'in2'"),
        ("wrong", "in", "invalid API key for ingress list 'in'"),
        (TOKEN, "in", "invalid API key for ingress list 'in'"),
        (READER, "in", "invalid API key for ingress list 'in'"),
        (FEEDER, "in2", "invalid API key for ingress list 'in2'"),
    ],
)
def test_contract_external_ingress_says_why_a_key_does_not_count(
    by: Clients, redis: Redis, key: str | None, name: str, detail: str
) -> None:
    """403; the token of the API is no key of a partner."""
    answer = by(key).post(f"/vcon/external-ingress?ingress_list={name}", json=vcon())

    assert (answer.status_code, answer.json()["detail"]) == (403, detail)
    assert redis.dbsize() == 0


def test_contract_external_ingress_without_partners_is_refused(server_url: str, tmp_path: Path) -> None:
    """The fifth of the details, and again the others as soon as the config has partners."""
    with running(ApiServer(tmp_path / "api", server_url)) as api, api.client("key-of-ann") as partner:
        before = partner.post("/vcon/external-ingress?ingress_list=in", json=vcon())
        api.configure(PARTNERS)
        wait_until(
            lambda: partner.post("/vcon/external-ingress?ingress_list=in", json=vcon()).status_code == 204, 30, "a key"
        )

    assert (before.status_code, before.json()["detail"]) == (403, "no ingress auth is configured")


def test_a_token_with_the_scope_of_a_list_creates_for_it_by_either_way(by: Clients, redis: Redis) -> None:
    """And for no other list, nor without one; it reads nothing."""
    feeder, document = by(FEEDER), vcon()

    assert feeder.post("/vcon/external-ingress?ingress_list=in", json=document).status_code == 204
    assert feeder.post("/vcon?ingress_lists=in", json=vcon()).status_code == 201
    assert feeder.post("/vcons?ingress_lists=in", json=[vcon()]).json()[0]["status"] == 201
    assert feeder.post("/vcon/ingress?ingress_list=in", json=[document["uuid"]]).status_code == 204
    assert redis.llen("in") == 4
    for path in ("/vcon?ingress_lists=in,in2", "/vcon", "/vcons?ingress_lists=in2", "/vcons/import", "/vcon/validate"):
        assert feeder.post(path, json=vcon()).status_code == 403, path
    assert feeder.post("/vcon/ingress?ingress_list=in2", json=[document["uuid"]]).status_code == 403
    assert feeder.get(f"/vcon/{document['uuid']}/findings").status_code == 403


def test_a_partner_never_replaces_a_stored_vcon(api: ApiServer, by: Clients, redis: Redis) -> None:
    """Not even where a create does, and not what only a storage holds any more; the same once more is no harm."""
    api.configure(PARTNERS | {"api": PARTNERS["api"] | {"on_existing": "replace"}})
    document, older = vcon("mine"), vcon("older")
    store(redis, [document])
    folder = api.folder / "vcons"
    folder.mkdir(exist_ok=True)
    (folder / f"{older['uuid']}.json").write_text(json.dumps(older))
    wait_until(lambda: api.http.post("/vcon", json=document | {"subject": "other"}).status_code == 201, 30, "replace")
    partner = by("key-of-ann")

    answers = [
        partner.post("/vcon/external-ingress?ingress_list=in", json=sent)
        for sent in (document, older | {"subject": "another"}, older)
    ]

    api.configure(PARTNERS)
    assert [answer.status_code for answer in answers] == [409, 409, 204]
    assert answers[0].json()["detail"] == (
        f"another vCon is stored under {document['uuid']}: it was not changed, and not pushed"
    )
    assert json.loads(redis.get(f"vcon:{document['uuid']}"))["subject"] == "other"
    assert json.loads(redis.get(f"vcon:{older['uuid']}"))["subject"] == "older"
    assert pushed(redis, "in") == [older["uuid"]]


def test_external_ingress_refuses_what_is_no_vcon_and_a_list_that_no_chain_reads(api: ApiServer, by: Clients) -> None:
    """422 for both, as for a create."""
    partner = by("key-of-ann")
    api.configure(PARTNERS | {"ingress_auth": {"in": KEYS, "nowhere": "key-of-ann"}})

    def unknown() -> httpx.Response | None:
        answer = partner.post("/vcon/external-ingress?ingress_list=nowhere", json=vcon())
        return answer if answer.status_code != 403 else None

    list_unknown = wait_until(unknown, 30, "the new key")
    api.configure(PARTNERS)
    no_vcon = partner.post("/vcon/external-ingress?ingress_list=in", json={"uuid": "x"})
    assert (list_unknown.status_code, list_unknown.json()["type"]) == (422, "urn:conserver:problem:unknown-list")
    assert (no_vcon.status_code, no_vcon.json()["type"]) == (422, "urn:conserver:problem:invalid-vcon")


# Stored vCons that are pushed


def test_contract_ingress_pushes_stored_vcons_in_order(http: httpx.Client, redis: Redis) -> None:
    """204; a UUID that is there twice is pushed twice, and one in upper case is the same one."""
    one, two = store(redis, [vcon(), vcon()])

    answer = http.post("/api/vcon/ingress?ingress_list=in", json=[two, one.upper(), two])

    assert (answer.status_code, answer.content) == (204, b"")
    assert pushed(redis, "in") == [two, one, two]


def test_contract_ingress_pushes_none_if_one_is_missing_and_says_which(http: httpx.Client, redis: Redis) -> None:
    """404 that names it; with `missing=skip` the others are pushed, and the answer names what was left out."""
    (there,), gone = store(redis, [vcon()]), new_uuid()

    refused = http.post("/vcon/ingress?ingress_list=in", json=[there, gone])
    none = redis.llen("in")
    skipped = http.post("/vcon/ingress?ingress_list=in&missing=skip", json=[gone, there, gone])

    assert (refused.status_code, none) == (404, 0)
    assert refused.json()["missing"] == [gone]
    assert refused.json()["errors"] == [{"detail": f"there is no vCon {gone}"}]
    assert refused.json()["detail"] == (
        "1 of 2 vCons are not stored, and none was pushed: leave them out, or use missing=skip"
    )
    assert (skipped.status_code, skipped.json()) == (200, {"pushed": 1, "missing": [gone]})
    assert pushed(redis, "in") == [there]


def test_a_pushed_vcon_is_looked_for_in_the_storages(api: ApiServer, redis: Redis) -> None:
    """An operator queues old ones again: Redis does not have them any more."""
    folder, documents = api.folder / "vcons", [vcon() for _ in range(50)]
    folder.mkdir(exist_ok=True)
    for document in documents:
        (folder / f"{document['uuid']}.json").write_text(json.dumps(document))
    asked_for = [document["uuid"] for document in documents]

    answer = api.http.post("/vcon/ingress?ingress_list=in", json=asked_for)

    assert answer.status_code == 204
    assert pushed(redis, "in") == asked_for
    assert all(redis.exists(f"vcon:{uuid}") for uuid in asked_for)


def test_a_pushed_vcon_does_not_expire_while_it_waits(http: httpx.Client, redis: Redis) -> None:
    """One that was to expire soon stays for a month; one that was not stays as it is."""
    soon, never, late = store(redis, [vcon(), vcon(), vcon()])
    redis.expire(f"vcon:{soon}", 60)
    redis.expire(f"vcon:{late}", 90 * 86400)

    assert http.post("/vcon/ingress?ingress_list=in", json=[soon, never, late]).status_code == 204

    days = [redis.ttl(f"vcon:{uuid}") / 86400 for uuid in (soon, never, late)]
    assert 29 < days[0] <= 30
    assert redis.ttl(f"vcon:{never}") == -1
    assert 89 < days[2] <= 90


def test_100_000_uuids_are_pushed_in_one_call(http: httpx.Client, api: ApiServer, redis: Redis) -> None:
    """In a time that a client waits, while others are answered."""
    asked_for = [new_uuid() for _ in range(100_000)]
    pipe = redis.pipeline(transaction=False)
    for uuid in asked_for:
        pipe.set(f"vcon:{uuid}", "{}")
    pipe.execute()

    answer = http.post("/vcon/ingress?ingress_list=in", json=asked_for)
    too_many = http.post("/vcon/ingress?ingress_list=in", json=[*asked_for, new_uuid()])
    listed = pushed(redis, "in")
    redis.flushall()
    none = http.post("/vcon/ingress?ingress_list=in2", json=asked_for[:5000])

    assert answer.status_code == 204
    assert listed == asked_for
    assert too_many.status_code == 413
    assert none.status_code == 404
    assert len(none.json()["missing"]) == 5000
    assert len(none.json()["errors"]) == 100
    assert redis.llen("in2") == 0


@pytest.mark.parametrize(
    ("query", "body", "status", "detail"),
    [
        ("ingress_list=in", ["x"], 422, "1 of 1 are no UUIDs"),
        ("ingress_list=in", {}, 422, "the body must be an array of UUIDs"),
        ("ingress_list=out", [], 422, "no chain reads list 'out'"),
        ("", [], 422, "ingress_list: Field required"),
        ("ingress_list=in&missing=maybe", [], 422, "missing: Input should be 'refuse' or 'skip'"),
    ],
)
def test_ingress_refuses_what_makes_no_sense(
    http: httpx.Client, query: str, body: Any, status: int, detail: str
) -> None:
    """With what is wrong; an empty list of UUIDs is nothing to do."""
    answer = http.post(f"/vcon/ingress?{query}", json=body)

    assert answer.status_code == status
    assert answer.json()["detail"].startswith(detail)
    assert http.post("/vcon/ingress?ingress_list=in", json=[]).status_code == 204


# Many at once


def test_many_are_created_and_each_has_its_result(http: httpx.Client, redis: Redis) -> None:
    """In order: created, another is stored, no vCon; those that were created are queued."""
    taken = vcon("taken")
    store(redis, [taken])
    good, again = vcon("good"), taken | {"subject": "other"}
    bad = vcon() | {"dialog": "none"}

    answer = http.post("/vcons?ingress_lists=in,in2", json=[good, again, bad, 7, good])

    assert answer.status_code == 200
    results = answer.json()
    assert [result["status"] for result in results] == [201, 409, 422, 422, 201]
    assert [result["uuid"] for result in results] == [good["uuid"], taken["uuid"], bad["uuid"], None, good["uuid"]]
    assert results[1]["problem"]["detail"] == f"another vCon is stored under {taken['uuid']}"
    assert results[2]["problem"]["errors"][0]["pointer"] == "/dialog"
    assert pushed(redis, "in") == pushed(redis, "in2") == [good["uuid"]] * 2
    assert http.get(f"/vcon/{good['uuid']}").json()["subject"] == "good"


def test_a_thousand_are_created_at_once_and_no_more(http: httpx.Client, redis: Redis) -> None:
    """Also as gzip; their order is that of their pushes."""
    documents = [vcon(str(n)) for n in range(1000)]
    body = gzip.compress(json.dumps(documents).encode())

    answer = http.post("/vcons?ingress_lists=in", content=body, headers={"Content-Encoding": "gzip"})
    too_many = http.post("/vcons", json=[*documents, vcon()])

    assert {result["status"] for result in answer.json()} == {201}
    assert pushed(redis, "in") == [document["uuid"] for document in documents]
    assert (too_many.status_code, too_many.json()["detail"]) == (
        413,
        "the body has 1,001 vCons; 1,000 at once are possible",
    )


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"{}", "the body must be an array of vCons"),
        (b"[{]", "the body is not JSON: "),
        (b"\x1f\x8bxx", "the body is gzip data is "),
        (b"[" * 10000, "the body is not usable JSON: nested deeper than 200 levels"),
    ],
)
def test_many_refuses_what_is_no_array(http: httpx.Client, body: bytes, detail: str) -> None:
    """The whole request: nobody can say where its vCons begin."""
    answer = http.post("/vcons", content=body)

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(detail), answer.text


def test_many_for_a_server_that_is_full_is_507(http: httpx.Client, redis: Redis) -> None:
    """Nothing was stored, so there is no list of results to look through."""
    with full(redis):
        answer = http.post("/vcons?ingress_lists=in", json=[vcon(), vcon()])

    assert answer.status_code == 507
    assert redis.llen("in") == 0


# Verdicts


def test_a_verdict_on_a_vcon_stores_nothing(by: Clients, redis: Redis) -> None:
    """Who may read may ask; findings are those of the vCon as it would be stored."""
    reader, good = by(READER), {**vcon(), "uuid": V8, "parties": []}
    old = {**vcon(), "vcon": "0.0.1", "redacted": {}}
    bad = {**vcon(), "dialog": [{"type": "recording", "parties": [0]}]}

    verdicts = [reader.post("/vcon/validate", json=sent).json() for sent in (good, old, bad)]

    assert verdicts[0] == {"valid": True, "accepted": True, "migrated": [], "findings": []}
    assert verdicts[1]["migrated"] == ["/redacted: dropped, it was empty", "/vcon: 0.0.1 is now 0.4.0"]
    assert (verdicts[2]["valid"], verdicts[2]["accepted"]) == (False, True)
    assert {"E10"} <= {finding["rule"] for finding in verdicts[2]["findings"]}
    assert redis.dbsize() == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"nothing", "not JSON: "),
        (b"[]", "a vCon is a JSON object, not an array"),
        (b'{"uuid": 5}', "5"),
        (gzip.compress(b"{}", mtime=0)[:12], "gzip data is"),
        (b'{"uuid": "\\ud800"}', "UUID"),
    ],
)
def test_a_verdict_on_what_is_no_vcon_says_so(http: httpx.Client, body: bytes, message: str) -> None:
    """With 200: the question was answered."""
    answer = http.post("/vcon/validate", content=body)

    assert answer.status_code == 200
    verdict = answer.json()
    assert (verdict["valid"], verdict["accepted"]) == (False, False)
    assert any(message in finding["message"] for finding in verdict["findings"]), verdict


def test_a_verdict_agrees_with_a_create(http: httpx.Client) -> None:
    """What it says is accepted is created, and what it does not is refused."""
    sent = [
        vcon(),
        vcon() | {"dialog": [{"type": "nonsense"}]},
        vcon() | {"dialog": [{"type": "text", "parties": [9], "start": "2026-01-01T00:00:00Z"}]},
        vcon() | {"critical": ["unheard-of"]},
        vcon() | {"created_at": "yesterday"},
    ]

    said = [http.post("/vcon/validate", json=document).json()["accepted"] for document in sent]

    assert [http.post("/vcon", json=document).status_code == 201 for document in sent] == said
    assert set(said) == {True, False}


def test_a_verdict_on_a_stored_vcon(http: httpx.Client, redis: Redis) -> None:
    """The same, by its UUID; 404 if there is none."""
    (uuid,) = store(redis, [vcon() | {"dialog": [{"type": "nonsense"}], "vcon": "0.0.1"}])

    verdict = http.get(f"/vcon/{uuid}/findings").json()

    assert verdict["migrated"] == ["/vcon: 0.0.1 is now 0.4.0"]
    assert not verdict["valid"]
    assert "/dialog/0/type" in {finding["pointer"] for finding in verdict["findings"]}
    assert http.get(f"/vcon/{new_uuid()}/findings").status_code == 404
