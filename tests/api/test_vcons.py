"""conserver.api.vcons: create and read one vCon, as the contract says and where ours differs from it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis import Redis

from conserver.embedded import temporary_server
from conserver.tokens import digest_of
from tests.api.server import CONFIG, ApiServer, pushed, running
from tests.host import vcon
from tests.test_store_json import json_url  # noqa: F401  a fixture

DIALOG = {"type": "text", "start": "2026-01-01T00:00:00Z", "parties": 0, "mediatype": "text/plain"}
FROM_ADAPTER = "the-token-of-an-adapter"


def stored(redis: Redis, uuid: str) -> dict[str, Any]:
    return json.loads(redis.get(f"vcon:{uuid}"))


def b64(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def signed(document: dict[str, Any]) -> dict[str, Any]:
    header = {"uuid": document["uuid"], "x5u": "https://keys.example.com/a.pem"}
    return {"payload": b64(document), "signatures": [{"protected": b64({}), "header": header, "signature": "c2ln"}]}


def encrypted(uuid: str) -> dict[str, Any]:
    return {
        "unprotected": {"uuid": uuid, "cty": "application/vcon+json"},
        "recipients": [{"encrypted_key": "a2V5"}],
        **{name: "YWJj" for name in ("iv", "ciphertext", "tag")},
    }


def test_a_created_vcon_is_stored_indexed_and_queued(http: httpx.Client, redis: Redis) -> None:
    """All of it before the answer, for lists that are repeated as well as joined with commas."""
    document = vcon("hello")

    answer = http.post("/vcon?ingress_lists=in,in2&ingress_lists=in3", json=document)

    assert answer.status_code == 201
    assert answer.json() == document
    assert answer.headers["content-type"] == "application/json"
    assert [pushed(redis, name) for name in ("in", "in2", "in3")] == [[document["uuid"]]] * 3
    assert redis.smembers("tel:+15550100") == {document["uuid"].encode()}
    assert redis.ttl(f"vcon:{document['uuid']}") == -1
    again = http.get(f"/api/vcon/{document['uuid']}")
    assert again.json() == document
    assert again.headers["etag"] == answer.headers["etag"]


def test_a_vcon_without_lists_is_only_stored(http: httpx.Client, redis: Redis) -> None:
    """As in the existing API."""
    document = vcon()

    assert http.post("/vcon", json=document).status_code == 201
    assert stored(redis, document["uuid"]) == document
    assert not redis.keys("in*")


def test_the_same_content_again_is_201(http: httpx.Client, redis: Redis) -> None:
    """Also with its members in another order, so that a request that was cut short can be repeated."""
    document = vcon("same")
    first = http.post("/vcon", json=document)

    again = http.post("/vcon?ingress_lists=in", json=dict(reversed(document.items())))

    assert again.status_code == 201
    assert again.headers["etag"] == first.headers["etag"]
    assert pushed(redis, "in") == [document["uuid"]]


def test_the_same_content_in_an_older_version_is_201(http: httpx.Client, redis: Redis) -> None:
    """What the existing conserver has stored as it came is the same vCon."""
    document = vcon() | {"vcon": "0.0.1", "redacted": {}, "appended": None}
    redis.set(f"vcon:{document['uuid']}", json.dumps(document))

    assert http.post("/vcon", json=document).status_code == 201


def test_other_content_is_409_and_changes_nothing(http: httpx.Client, redis: Redis) -> None:
    """The answer says where the vCon is, and which version of it is stored."""
    document = vcon("first")
    first = http.post("/vcon", json=document)

    answer = http.post("/api/vcon?ingress_lists=in", json=document | {"subject": "second"})

    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:conserver:problem:exists"
    assert answer.headers["location"] == f"/api/vcon/{document['uuid']}"
    assert answer.headers["etag"] == first.headers["etag"]
    assert stored(redis, document["uuid"])["subject"] == "first"
    assert pushed(redis, "in") == []


def test_an_unknown_list_is_422(http: httpx.Client, redis: Redis) -> None:
    """The existing API pushes to any key, and nobody ever reads it."""
    document = vcon()

    answer = http.post("/vcon?ingress_lists=in,inn3", json=document)

    assert answer.status_code == 422
    assert answer.json()["detail"] == "no chain reads list 'inn3'; did you mean 'in3'?"
    assert not redis.keys("*")


def test_all_that_is_wrong_is_told_at_once(http: httpx.Client, redis: Redis) -> None:
    """Each with the JSON pointer of its place."""
    document = {"uuid": "x", "created_at": "now", "parties": [1], "dialog": [DIALOG | {"parties": [7]}], "group": 1}

    answer = http.post("/vcon", json=document)

    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:conserver:problem:invalid-vcon"
    assert {error["pointer"] for error in answer.json()["errors"]} >= {
        *("/uuid", "/created_at", "/parties/0", "/dialog/0/parties/0")
    }
    assert not redis.keys("*")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b"{}", b"\x1f\x8bnonsense", b"\xff"])
def test_what_is_no_vcon_is_422(http: httpx.Client, redis: Redis, body: bytes) -> None:
    """Never a 500, and always with a reason."""
    answer = http.post("/vcon", content=body)

    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"].startswith("this is no vCon: ")
    assert answer.json()["errors"][0]["detail"]
    assert not redis.keys("*")


def test_a_dialog_of_a_party_that_is_not_there_is_422(http: httpx.Client) -> None:
    """Also the existing API refuses it: nobody could tell who speaks."""
    answer = http.post("/vcon", json=vcon(dialog=[DIALOG | {"parties": [0, 3]}]))

    assert answer.status_code == 422
    assert "/dialog/0/parties/1 is 3, but /parties has 1 entries" in answer.json()["detail"]


@pytest.mark.parametrize(
    "more",
    [
        {"parties": [{"tel": "1001"}, {"tel": "911"}]},
        {"parties": [{"tel": "tel:+15550100"}, {"sip": "sip:ann@example.com"}]},
        {"dialog": [DIALOG | {"parties": 0}]},
        {"dialog": [DIALOG | {"parties": [[0], 0]}]},
        {"dialog": [DIALOG | {"mediatype": "audio/ogg;codecs=opus", "body": "YQ", "encoding": "base64url"}]},
        {"dialog": [DIALOG | {"url": "https://a.example/b", "content_hash": "sha512-" + "a" * 86}]},
        {"extensions": ["x"], "x_of_mine": {"deep": [1, 2.5, None, {"ü": "\u2028"}]}},
        {"count": 12345678901234567890, "group": [{"uuid": str(uuid4())}]},
    ],
)
def test_a_legal_vcon_is_kept_as_it_is(http: httpx.Client, redis: Redis, more: dict[str, Any]) -> None:
    """The existing API refuses these, or writes nulls into them."""
    document = vcon() | more

    answer = http.post("/vcon", json=document)

    assert answer.status_code == 201, answer.text
    assert "conserver-findings" not in answer.headers
    assert answer.json() == stored(redis, document["uuid"]) == document


def test_a_vcon_that_breaks_lesser_rules_is_stored_and_they_are_counted(http: httpx.Client) -> None:
    """Most programs that write vCons break one; what cannot be worked with is another matter."""
    document = vcon(analysis=[{"body": "no type, no vendor", "dialog": 4}], attachments=[{"body": "{", "party": 0}])
    del document["created_at"]

    answer = http.post("/vcon", json=document)

    # created_at; type, vendor and dialog of the analysis; start and dialog of the attachment
    assert (answer.status_code, answer.headers["conserver-findings"]) == (201, "6")


@pytest.mark.parametrize("version", ["0.0.1", "0.0.2", "0.3.0"])
def test_an_old_version_is_migrated(http: httpx.Client, redis: Redis, version: str) -> None:
    """So all that is stored is of one version."""
    document = vcon(dialog=[{"type": "recording", "start": "2026-01-01T00:00:00Z", "parties": [0]}])
    document["dialog"][0] |= {"mimetype": "audio/x-wav", "body": "YQ", "encoding": "base64url"}
    document |= {"vcon": version, "appended": None, "redacted": {}}

    answer = http.post("/vcon", json=document)

    assert answer.status_code == 201
    new = stored(redis, document["uuid"])
    assert (new["vcon"], new["dialog"][0]["mediatype"]) == ("0.4.0", "audio/x-wav")
    assert new.keys().isdisjoint({"appended", "redacted"})
    assert answer.json() == new


def test_sealed_vcons_are_stored_and_served_as_they_are(http: httpx.Client) -> None:
    """A change of one character would break them; a signed one is found by the parties of its payload."""
    one, other = signed(vcon() | {"vcon": "0.0.1"}), encrypted(str(uuid4()))
    one_uuid, other_uuid = one["signatures"][0]["header"]["uuid"], other["unprotected"]["uuid"]

    answers = [http.post("/vcon?ingress_lists=in", json=document) for document in (one, other)]

    assert [answer.status_code for answer in answers] == [201, 201]
    assert http.get(f"/vcon/{one_uuid}").json() == one
    assert http.get(f"/vcon/{other_uuid}").json() == other


def test_a_broken_seal_is_422(http: httpx.Client) -> None:
    """What nobody can ever open is no vCon."""
    broken = encrypted(str(uuid4()))
    del broken["tag"]
    two_names = signed(vcon())
    two_names["signatures"][0]["header"]["uuid"] = str(uuid4())

    answers = [http.post("/vcon", json=document) for document in (broken, two_names)]

    assert [answer.status_code for answer in answers] == [422, 422]
    assert [answer.json()["errors"][0]["pointer"] for answer in answers] == ["/tag", "/signatures/0/header/uuid"]


@pytest.mark.parametrize("form", ["unsigned", "signed", "encrypted"])
def test_a_uuid_in_upper_case_is_the_same_vcon(http: httpx.Client, redis: Redis, form: str) -> None:
    """In the body as well as in the path; lists have it in lower case."""
    uuid = str(uuid4())
    plain = vcon() | {"uuid": uuid.upper()}
    document = {"unsigned": plain, "signed": signed(plain), "encrypted": encrypted(uuid.upper())}[form]

    assert http.post("/vcon?ingress_lists=in", json=document).status_code == 201
    assert pushed(redis, "in") == [uuid]
    assert http.get(f"/vcon/{uuid}").json() == http.get(f"/vcon/{uuid.upper()}").json()
    assert http.post("/vcon", json=document).status_code == 201


def test_a_vcon_of_20_megabytes_is_a_vcon(http: httpx.Client, redis: Redis) -> None:
    """Recordings are inline in many of them."""
    body = "A" * 20_000_000
    document = vcon(dialog=[DIALOG | {"mediatype": "audio/x-wav", "body": body, "encoding": "base64url"}])

    answer = http.post("/vcon?ingress_lists=in", json=document)

    assert answer.status_code == 201
    assert pushed(redis, "in") == [document["uuid"]]
    assert http.get(f"/vcon/{document['uuid']}").json() == document


def test_an_unknown_vcon_is_404(http: httpx.Client) -> None:
    """With the UUID in its detail."""
    uuid = str(uuid4())

    answer = http.get(f"/vcon/{uuid}")

    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert uuid in answer.json()["detail"]


@pytest.mark.parametrize("uuid", ["x", "..%2f..%2fetc", "018f3c5e-0000-8000-8000-00000000000ax", "*"])
def test_what_is_no_uuid_is_422(http: httpx.Client, uuid: str) -> None:
    """It never becomes a part of a key or of a file's name."""
    answer = http.get(f"/vcon/{uuid}")

    assert answer.status_code in (404, 422)
    assert http.delete(f"/vcon/{uuid}").status_code in (404, 422)


def test_an_old_vcon_that_others_have_stored_is_migrated(http: httpx.Client, redis: Redis) -> None:
    """What is stored stays; its digest is the version."""
    document = vcon() | {"vcon": "0.0.1", "appended": None}
    redis.set(f"vcon:{document['uuid']}", json.dumps(document))

    assert http.get(f"/vcon/{document['uuid']}").json() == vcon() | {"uuid": document["uuid"]}


def test_the_version_that_the_client_has_is_304(http: httpx.Client) -> None:
    """Also when a proxy has made the tag a weak one; another one is sent."""
    document = vcon()
    tag = http.post("/vcon", json=document).headers["etag"]

    for given in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        answer = http.get(f"/vcon/{document['uuid']}", headers={"If-None-Match": given})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert http.get(f"/vcon/{document['uuid']}", headers={"If-None-Match": '"other"'}).status_code == 200
    assert http.get(f"/vcon/{uuid4()}", headers={"If-None-Match": "*"}).status_code == 404


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API that replaces, demands all rules, serves an old version, and has a server of its own."""
    adapter = {"digest": digest_of(FROM_ADAPTER), "scopes": ["ingress:in"]}
    api = {"on_existing": "replace", "validation": "strict", "tokens": {"adapter": adapter}}
    with temporary_server() as url:
        folder = tmp_path_factory.mktemp("own")
        with running(ApiServer(folder, url, CONFIG | {"api": api}, EGRESS_FORMAT_VERSION="0.0.1")) as server:
            server.url = url
            yield server


def test_where_creates_replace_other_content_is_201(own: ApiServer) -> None:
    """For clients that update by posting again; the index follows."""
    document = vcon("first")
    own.http.post("/vcon", json=document)

    answer = own.http.post("/vcon?ingress_lists=in", json=document | {"parties": [{"tel": "+15550177"}]})

    assert answer.status_code == 201
    with Redis.from_url(own.url) as redis:
        assert redis.smembers("tel:+15550177") == {document["uuid"].encode()}
        assert document["uuid"].encode() not in redis.smembers("tel:+15550100")
        assert document["uuid"] in pushed(redis, "in")


def test_who_may_only_create_replaces_nothing(own: ApiServer) -> None:
    """An adapter's token creates for its list, and repeats; it changes no vCon of others."""
    document = vcon("first")

    with own.client(FROM_ADAPTER) as adapter:
        answers = [
            adapter.post("/vcon?ingress_lists=in", json=document),
            adapter.post("/vcon?ingress_lists=in", json=document),
            adapter.post("/vcon?ingress_lists=in", json=document | {"subject": "second"}),
            adapter.post("/vcon?ingress_lists=in2", json=vcon()),
            adapter.post("/vcon", json=vcon()),
            adapter.put(f"/vcon/{document['uuid']}", json=document),
            adapter.patch(f"/vcon/{document['uuid']}", json={}),
            adapter.delete(f"/vcon/{document['uuid']}"),
            adapter.get(f"/vcon/{document['uuid']}"),
        ]

    assert [answer.status_code for answer in answers] == [201, 201, 409, *[403] * 6]
    assert own.http.get(f"/vcon/{document['uuid']}").json()["subject"] == "first"


def test_in_strict_mode_each_error_refuses(own: ApiServer) -> None:
    """Warnings do not."""
    document = vcon(analysis=[{"body": "x"}])

    answer = own.http.post("/vcon", json=document)

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("/analysis/0/type is missing")
    assert {e["pointer"] for e in answer.json()["errors"] if e["level"] == "error"} == {
        "/analysis/0/type",
        "/analysis/0/vendor",
    }
    assert own.http.put(f"/vcon/{document['uuid']}", json=document).status_code == 422


def test_the_egress_format_is_served(own: ApiServer) -> None:
    """For consumers that know nothing newer; what is stored stays of the current draft."""
    document = vcon(dialog=[DIALOG | {"body": "hello", "encoding": "none"}])
    own.http.post("/vcon", json=document)

    old = own.http.get(f"/vcon/{document['uuid']}").json()

    assert (old["vcon"], old["dialog"][0]["mimetype"], old["appended"]) == ("0.0.1", "text/plain", None)
    with Redis.from_url(own.url) as redis:
        assert stored(redis, document["uuid"]) == document


def test_a_full_server_is_507(own: ApiServer) -> None:
    """Nothing is stored then; but what is deleted makes room."""
    document, other, new = vcon(), vcon(), vcon()
    uuid = document["uuid"]
    for one in (document, other):
        own.http.post("/vcon", json=one)
    with Redis.from_url(own.url) as redis:
        redis.config_set("maxmemory", 1)
        full = [
            own.http.post("/vcon", json=new),
            own.http.put(f"/vcon/{uuid}", json=document | {"subject": "x"}),
            own.http.patch(f"/vcon/{uuid}", json={"subject": "x"}),
        ]
        deleted = own.http.delete(f"/vcon/{other['uuid']}")
        redis.config_set("maxmemory", 0)

        assert [answer.status_code for answer in full] == [507, 507, 507]
        assert not redis.exists(f"vcon:{new['uuid']}")
        assert stored(redis, uuid) == document
        assert deleted.status_code == 204
        assert not redis.exists(f"vcon:{other['uuid']}")
    assert own.http.post("/vcon", json=new).status_code == 201


def test_without_a_server_it_is_503(own: ApiServer) -> None:
    """With the time to wait, and within a few seconds; when the server is back, all goes on."""
    document = vcon()
    uuid = document["uuid"]
    own.http.post("/vcon", json=document)
    with Redis.from_url(own.url) as redis:
        redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        redis.config_set("maxclients", 1)
        began = time.monotonic()
        away = [
            own.http.post("/vcon", json=vcon()),
            own.http.get(f"/vcon/{uuid}"),
            own.http.put(f"/vcon/{uuid}", json=document),
            own.http.patch(f"/vcon/{uuid}", json={"subject": "x"}),
        ]
        took = time.monotonic() - began
        redis.config_set("maxclients", 1000)

    assert [answer.status_code for answer in away] == [503] * 4
    assert all(int(answer.headers["retry-after"]) > 0 for answer in away)
    assert took < 20
    assert own.http.get(f"/vcon/{uuid}").status_code == 200


def test_with_a_json_module_versions_are_those_that_it_gives_back(json_url: str, tmp_path: Path) -> None:  # noqa: F811
    """It stores 1.50 as 1.5: the ETag of an answer is that of the next read, and the same content is the same."""
    body = json.dumps(vcon(count=1)).replace('"count": 1', '"count": 1.50').encode()
    uuid = json.loads(body)["uuid"]
    with running(ApiServer(tmp_path, json_url, VCON_REDIS_FORMAT="json")) as api, Redis.from_url(json_url) as redis:
        first = api.http.post("/vcon", content=body)
        again = api.http.post("/vcon", content=body)
        read = api.http.get(f"/vcon/{uuid}")
        put = api.http.put(f"/vcon/{uuid}", json=first.json() | {"a": 2.50}, headers={"If-Match": read.headers["etag"]})
        patch = api.http.patch(f"/vcon/{uuid}", json={"b": 3.50}, headers={"If-Match": put.headers["etag"]})
        stale = api.http.delete(f"/vcon/{uuid}", headers={"If-Match": put.headers["etag"]})
        kind = redis.type(f"vcon:{uuid}")
        gone = api.http.delete(f"/vcon/{uuid}", headers={"If-Match": patch.headers["etag"]})

    assert [first.status_code, again.status_code, put.status_code, patch.status_code] == [201, 201, 200, 200]
    assert first.headers["etag"] == again.headers["etag"] == read.headers["etag"]
    assert (stale.status_code, gone.status_code, kind) == (412, 204, b"ReJSON-RL")
