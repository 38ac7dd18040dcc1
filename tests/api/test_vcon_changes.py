"""conserver.api.vcons and patches: versions, PUT and PATCH."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis import Redis

from conserver.api import patches
from conserver.api.conditions import Condition, etag
from conserver.api.patches import merged
from conserver.api.problems import Problem
from conserver.configmodel import ApiConfig
from conserver.errors import VconConflict
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.stored import digest
from conserver.talk import hold
from conserver.vcon import Vcon
from tests.api.server import ApiServer
from tests.api.test_vcons import DIALOG, encrypted, signed, stored
from tests.host import vcon


def created(http: httpx.Client, **more: Any) -> tuple[dict[str, Any], str]:
    """Create a vCon; return it, and its ETag."""
    document = vcon(**more)
    answer = http.post("/vcon", json=document)
    assert answer.status_code == 201, answer.text
    return document, answer.headers["etag"]


def test_it_creates_what_is_not_there(http: httpx.Client, redis: Redis) -> None:
    """201, and where it is; it is stored, indexed, and on no list."""
    document = vcon()

    answer = http.put(f"/api/vcon/{document['uuid']}", json=document)

    assert (answer.status_code, answer.json()) == (201, document)
    assert answer.headers["location"] == f"/api/vcon/{document['uuid']}"
    assert http.get(f"/vcon/{document['uuid']}").headers["etag"] == answer.headers["etag"]
    assert redis.smembers("tel:+15550100") == {document["uuid"].encode()}


def test_it_replaces_what_is_there_as_it_is_sent(http: httpx.Client, redis: Redis) -> None:
    """The document is the client's own, `updated_at` included; the index follows."""
    document, tag = created(http, subject="an old invoice")
    new = document | {"subject": "another", "updated_at": "2026-02-01T00:00:00Z", "parties": [{"tel": "+15550199"}]}

    answer = http.put(f"/vcon/{document['uuid'].upper()}", json=new)

    assert (answer.status_code, answer.json()) == (200, new)
    assert answer.headers["etag"] != tag
    assert stored(redis, document["uuid"]) == new
    assert redis.smembers("tel:+15550199") == {document["uuid"].encode()}
    assert not redis.exists("tel:+15550100", "conserver:subject:invoice")


def test_it_is_the_vcon_of_the_path(http: httpx.Client, redis: Redis) -> None:
    """Else one would be replaced by another one."""
    document = vcon()

    answer = http.put(f"/vcon/{uuid4()}", json=document)

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/uuid")
    assert not redis.keys("vcon:*")


def test_it_is_checked_like_a_create(http: httpx.Client, redis: Redis) -> None:
    """With all findings at once."""
    document, _ = created(http)

    answer = http.put(f"/vcon/{document['uuid']}", json=document | {"parties": [1], "dialog": {}})

    assert answer.status_code == 422
    assert {error["pointer"] for error in answer.json()["errors"]} == {"/parties/0", "/dialog"}
    assert stored(redis, document["uuid"]) == document


def test_sealed_vcons_are_replaced_as_a_whole(http: httpx.Client) -> None:
    """A new seal is the only way to change one."""
    first, second = vcon("first"), vcon("second")
    second["uuid"] = first["uuid"]
    http.post("/vcon", json=signed(first))

    assert http.put(f"/vcon/{first['uuid']}", json=signed(second)).status_code == 200
    assert http.get(f"/vcon/{first['uuid']}").json() == signed(second)
    assert http.put(f"/vcon/{first['uuid']}", json=encrypted(first["uuid"])).status_code == 200


def test_a_deleted_vcon_comes_back_by_a_put(http: httpx.Client) -> None:
    """As by a create: it is a client's wish, and no late save."""
    document, _ = created(http)
    http.delete(f"/vcon/{document['uuid']}")

    assert http.put(f"/vcon/{document['uuid']}", json=document).status_code == 201
    assert http.patch(f"/vcon/{document['uuid']}", json={"subject": "x"}).status_code == 200


METHODS = pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])


def send(http: httpx.Client, method: str, document: dict[str, Any], **headers: str) -> httpx.Response:
    body = {} if method == "DELETE" else {"json": document | {"subject": "changed"}}
    if method == "PATCH":
        body = {"json": {"subject": "changed"}}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.request(method, f"/vcon/{document['uuid']}", headers=given, **body)


@METHODS
@pytest.mark.parametrize(
    "given",
    [lambda tag: '"0a1b"', lambda tag: f"W/{tag}", lambda tag: tag.strip('"'), lambda tag: "", lambda tag: '"*"'],
)
def test_another_version_is_412(http: httpx.Client, redis: Redis, method: str, given: Callable[[str], str]) -> None:
    """Also a weak tag, which says too little, and one without quotes; nothing changes."""
    document, tag = created(http)

    answer = send(http, method, document, if_match=given(tag))

    assert answer.status_code == 412, answer.text
    assert answer.json()["type"] == "urn:conserver:problem:other-version"
    assert answer.headers["etag"] == tag
    assert stored(redis, document["uuid"]) == document


@METHODS
@pytest.mark.parametrize("given", [lambda tag: tag, lambda tag: f'"other" ,{tag}', lambda tag: "*"])
def test_this_version_is_changed(http: httpx.Client, method: str, given: Callable[[str], str]) -> None:
    """Alone, as one of several, or as any."""
    document, tag = created(http)

    assert send(http, method, document, if_match=given(tag)).is_success
    assert send(http, method, document, if_match=tag).status_code == 412


@METHODS
def test_what_is_not_there_has_no_version(http: httpx.Client, redis: Redis, method: str) -> None:
    """Not even any."""
    answer = send(http, method, vcon(), if_match="*")

    assert answer.status_code == 412
    assert not redis.keys("vcon:*")


@METHODS
def test_only_what_is_not_there_may_be_asked_for(http: httpx.Client, redis: Redis, method: str) -> None:
    """`If-None-Match: *` creates, and never replaces."""
    document, tag = created(http)

    assert send(http, method, document, if_none_match="*").status_code == 412
    assert send(http, method, document, if_none_match=tag).status_code == 412
    assert stored(redis, document["uuid"]) == document
    assert send(http, method, vcon(), if_none_match="*").status_code == (201 if method == "PUT" else 404)


def test_it_changes_what_it_names(http: httpx.Client, redis: Redis) -> None:
    """The rest stays; null removes; `updated_at` is the time of the change; the index follows."""
    document, tag = created(http, subject="an old invoice", mine={"a": 1, "b": 2})

    answer = http.patch(f"/vcon/{document['uuid']}", json={"subject": None, "mine": {"a": None, "c": {"d": 3}}})

    new = answer.json()
    assert answer.status_code == 200
    assert new.pop("updated_at") > "2026"
    assert new == {name: value for name, value in document.items() if name != "subject"} | {
        "mine": {"b": 2, "c": {"d": 3}}
    }
    assert stored(redis, document["uuid"]).items() >= new.items()
    assert http.get(f"/vcon/{document['uuid']}").headers["etag"] == answer.headers["etag"] != tag
    assert not redis.exists("conserver:subject:invoice")


def test_a_patch_that_changes_nothing_leaves_the_version(http: httpx.Client) -> None:
    """So it can be repeated."""
    document, tag = created(http, subject="x")

    for patch in ({}, {"subject": "x"}, {"nothing": None}, {"uuid": document["uuid"].upper()}):
        answer = http.patch(f"/vcon/{document['uuid']}", json=patch)
        assert (answer.status_code, answer.headers["etag"]) == (200, tag)


@pytest.mark.parametrize("kind", ["application/merge-patch+json", "application/json; charset=utf-8"])
def test_its_type_is_that_of_a_merge_patch(http: httpx.Client, kind: str) -> None:
    """Or plain JSON; a patch of another kind is refused with what is possible."""
    document, _ = created(http)
    path = f"/vcon/{document['uuid']}"

    assert http.patch(path, content=b'{"subject":"x"}', headers={"Content-Type": kind}).status_code == 200
    other = http.patch(path, content=b"[]", headers={"Content-Type": "application/json-patch+json"})
    assert (other.status_code, other.headers["accept-patch"]) == (415, "application/merge-patch+json")


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b'"x"'])
def test_it_is_an_object(http: httpx.Client, redis: Redis, body: bytes) -> None:
    """Anything else would replace the whole vCon by what is none."""
    document, _ = created(http)

    answer = http.patch(f"/vcon/{document['uuid']}", content=body)

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "")
    assert stored(redis, document["uuid"]) == document


@pytest.mark.parametrize("uuid", [None, "018f3c5e-0000-8000-8000-00000000000b", 7, {}])
def test_the_uuid_cannot_change(http: httpx.Client, redis: Redis, uuid: Any) -> None:
    """It would be another vCon."""
    document, _ = created(http)

    answer = http.patch(f"/vcon/{document['uuid']}", json={"uuid": uuid, "subject": "x"})

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/uuid")
    assert stored(redis, document["uuid"]) == document


def test_only_what_the_patch_brings_in_is_told(http: httpx.Client, redis: Redis) -> None:
    """What was there before refuses no change of something else."""
    document = vcon(dialog=[DIALOG | {"parties": 9}], parties=[])
    redis.set(f"vcon:{document['uuid']}", json.dumps(document))
    path = f"/vcon/{document['uuid']}"

    good, bad = http.patch(path, json={"subject": "x"}), http.patch(path, json={"parties": [1]})

    assert (good.status_code, good.headers["conserver-findings"]) == (200, "1")
    assert bad.status_code == 422
    assert "/parties/0" in {error["pointer"] for error in bad.json()["errors"]}
    assert stored(redis, document["uuid"])["subject"] == "x"


def test_old_names_are_migrated(http: httpx.Client) -> None:
    """A client that knows an older version patches with its names."""
    document, _ = created(http)

    answer = http.patch(f"/vcon/{document['uuid']}", json={"dialog": [DIALOG | {"mimetype": "text/plain"}]})

    assert "mimetype" not in answer.json()["dialog"][0]


def test_what_is_sealed_is_409(http: httpx.Client) -> None:
    """A change would break it; and no patch makes a seal."""
    plain, document = vcon(), vcon()
    http.post("/vcon", json=plain)
    http.post("/vcon", json=signed(document))

    sealed = http.patch(f"/vcon/{document['uuid']}", json={"subject": "x"})

    assert (sealed.status_code, sealed.json()["type"]) == (409, "urn:conserver:problem:sealed")
    assert http.get(f"/vcon/{document['uuid']}").json() == signed(document)
    assert http.patch(f"/vcon/{plain['uuid']}", json=signed(plain)).status_code == 422


def test_an_unknown_vcon_is_404(http: httpx.Client) -> None:
    """A patch creates nothing."""
    assert http.patch(f"/vcon/{uuid4()}", json={"subject": "x"}).status_code == 404


def test_changes_of_several_clients_are_merged(api: ApiServer, redis: Redis) -> None:
    """Without a condition each changes the newest, and nothing that others change meanwhile is lost."""
    document, _ = created(api.http)

    def change(client: int) -> set[int]:
        with api.client(api.token) as http:
            patches = [{f"of_{client}_{n}": n} for n in range(20)]
            return {http.patch(f"/vcon/{document['uuid']}", json=patch).status_code for patch in patches}

    with ThreadPoolExecutor(4) as pool:
        statuses = set().union(*pool.map(change, range(4)))

    assert statuses == {200}
    assert len([name for name in stored(redis, document["uuid"]) if name.startswith("of_")]) == 80


def test_a_merge_patch_does_what_the_rfc_says() -> None:
    """The examples of RFC 7396, appendix A, whose patches are objects."""
    for target, patch, result in [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ]:
        assert merged(target, patch) == result


@pytest.mark.parametrize("times", [200, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_no_change_of_two_clients_with_if_match_is_lost(api: ApiServer, redis: Redis, times: int) -> None:
    """One replaces, the other patches; each reads again after a 412, and counts one further."""
    document, _ = created(api.http, count=0)
    path = f"/vcon/{document['uuid']}"

    def count(method: str) -> int:
        refused = 0
        with api.client(api.token) as http:
            done = 0
            while done < times:
                read = http.get(path)
                new = {"count": read.json()["count"] + 1}
                body = read.json() | new if method == "PUT" else new
                answer = http.request(method, path, json=body, headers={"If-Match": read.headers["etag"]})
                assert answer.status_code in (200, 412), answer.text
                done += answer.status_code == 200
                refused += answer.status_code == 412
        return refused

    with ThreadPoolExecutor(2) as pool:
        refused = list(pool.map(count, ["PUT", "PATCH"]))

    assert stored(redis, document["uuid"])["count"] == 2 * times
    assert sum(refused) > 0, "they never met"


class Meanwhile:
    """An Api of one process, in which somebody else changes the vCon while each patch is applied."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch, document: dict[str, Any]) -> None:
        self.settings, self.config = Settings(), SimpleNamespace(api=ApiConfig())
        self.store = VconStore(url, self.settings)
        self.store.create(Vcon(dict(document)))
        self.times = 0
        self.change: Callable[[dict[str, Any]], object] = lambda document: None
        apply = patches._apply

        def meanwhile(*args: Any) -> int:
            self.times += 1
            with self.store.edit(document["uuid"]) as vcon:
                self.change(vcon.document)
            return apply(*args)

        monkeypatch.setattr(patches, "_apply", meanwhile)


def test_a_patch_meets_the_newest_copy_a_few_times(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who changes the same at the same moment, each time, makes it a conflict: 409."""
    document = vcon("first")
    api = Meanwhile(server_url, monkeypatch, document)
    api.change = lambda document: document.update(subject=f"theirs {api.times}")

    with pytest.raises(VconConflict, match="/subject"):
        patches.change(api, document["uuid"], {"subject": "mine"}, Condition(None, None))
    assert api.times == 5


def test_a_conflict_that_ends_is_no_conflict(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one counts."""
    document = vcon("first")
    api = Meanwhile(server_url, monkeypatch, document)
    api.change = lambda document: api.times > 2 or document.update(subject=f"theirs {api.times}")

    text, _ = patches.change(api, document["uuid"], {"subject": "mine"}, Condition(None, None))

    assert (json.loads(text)["subject"], api.times) == ("mine", 3)


def test_with_a_condition_nothing_is_merged(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a change of something else: the client has not seen it."""
    document = vcon("first")
    api = Meanwhile(server_url, monkeypatch, document)
    api.change = lambda document: document.update(other=1)
    tag = etag(api.store.read(document["uuid"]))

    with pytest.raises(Problem) as raised:
        patches.change(api, document["uuid"], {"subject": "mine"}, Condition(tag, None))

    assert (raised.value.status, api.times) == (412, 1)
    assert api.store.get(document["uuid"]).subject == "first"


def test_any_version_is_the_newest_one(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`If-Match: *` only says that there must be one."""
    document = vcon("first")
    api = Meanwhile(server_url, monkeypatch, document)
    api.change = lambda document: document.update(other=1)

    text, _ = patches.change(api, document["uuid"], {"subject": "mine"}, Condition("*", None))

    assert (json.loads(text)["subject"], json.loads(text)["other"]) == ("mine", 1)


def test_what_somebody_has_for_himself_is_waited_for(http: httpx.Client, redis: Redis) -> None:
    """A link that met conflicts has it for a moment."""
    document, _ = created(http)
    redis.set(f"conserver:{{vcon:{document['uuid']}}}:lock", "theirs", px=400)

    assert http.put(f"/vcon/{document['uuid']}", json=document | {"subject": "x"}).status_code == 200
    redis.set(f"conserver:{{vcon:{document['uuid']}}}:lock", "theirs", px=400)
    assert http.patch(f"/vcon/{document['uuid']}", json={"subject": "y"}).status_code == 200


def test_a_replacement_is_of_what_was_looked_at(server_url: str) -> None:
    """Whoever writes between the look and the save has his version looked at as well."""
    store = VconStore(server_url, Settings())
    document = vcon("first")
    store.create(Vcon(dict(document)))
    seen: list[str] = []

    def may_replace(text: bytes | None) -> bool:
        assert text is not None
        seen.append(json.loads(text)["subject"])
        if len(seen) < 3:
            with store.edit(document["uuid"]) as vcon:
                vcon.document["subject"] = f"theirs {len(seen)}"
        return len(seen) < 4

    mine = Vcon(document | {"subject": "mine"})
    first = hold(store.replacing(mine, mine.to_bytes(), may_replace), store.client.call)
    second = hold(store.replacing(mine, b"{}", lambda text: False), store.client.call)

    assert (first.outcome, seen) == ("replaced", ["first", "theirs 1", "theirs 2"])
    assert (second.outcome, second.text) == ("kept", mine.to_bytes())


def test_a_delete_of_a_version_leaves_another_one(server_url: str, redis: Redis) -> None:
    """Neither the vCon nor the mark of a deleted one is touched."""
    store = VconStore(server_url, Settings())
    document = vcon()
    store.create(Vcon(document))

    with pytest.raises(VconConflict, match="another version"):
        store.delete(document["uuid"], expected="0" * 40)

    assert redis.exists(f"vcon:{document['uuid']}")
    assert not redis.keys("*:deleted")
    assert store.delete(document["uuid"], expected=digest(store.read(document["uuid"])))
