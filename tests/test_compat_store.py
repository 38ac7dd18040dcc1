"""conserver.compat: what links store, take and push by the names of the existing conserver."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from conserver import ambient
from conserver.ambient import Work, working
from conserver.compat import redis_mgr
from conserver.compat.lib.queue import VconQueue
from conserver.compat.lib.vcon_redis import VconRedis
from conserver.compat.vcon import Vcon
from conserver.errors import ClaimLost, LinkError, VconConflict, VconNotFound, VconSealed
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.vcon import Vcon as OurVcon
from tests.runs import A, B, Host, document, link

SIGNED = {
    "payload": "eyJwYXJ0aWVzIjpbXX0",
    "signatures": [{"header": {"uuid": A}, "signature": "AA"}],
}


@pytest.fixture
def store(server_url: str) -> VconStore:
    """A store with vCon A in it."""
    store = VconStore(server_url, Settings())
    store.create(OurVcon(document()))
    return store


@pytest.fixture
def work(store: VconStore) -> Iterator[Work]:
    """The work of a link, bound to this thread."""
    with working(Work(store.writer())) as work:
        work.uuid = A
        yield work


@pytest.fixture
def outside(store: VconStore, server_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[VconStore]:
    """A script with REDIS_URL in its environment, and no chain."""
    monkeypatch.setenv("REDIS_URL", server_url)
    ambient._server.cache_clear()
    yield store
    ambient._server.cache_clear()


def put(redis: Redis, **parts: Any) -> bytes:
    """Store vCon A as text with these parts, and return the text."""
    text = OurVcon(document(**parts)).to_bytes()
    redis.set(f"vcon:{A}", text)
    return text


# VconRedis


@pytest.mark.usefixtures("work")
def test_a_vcon_that_is_not_there_is_none() -> None:
    """As links ask: `if not vcon`."""
    assert (VconRedis().get_vcon(B), VconRedis().get_vcon_dict(B)) == (None, None)


@pytest.mark.usefixtures("work")
def test_what_a_link_stores_is_merged_with_what_others_stored(store: VconStore) -> None:
    """With an object, with a dict, and again with the same object."""
    vcon, plain = VconRedis().get_vcon(A), VconRedis().get_vcon_dict(A)
    assert vcon is not None
    assert plain is not None
    with store.edit(A) as theirs:
        theirs.add_party({"name": "Theirs"})
    vcon.add_tag("mine", "1")
    VconRedis().store_vcon(vcon)
    plain["dialog"].append({"type": "text", "body": "x", "encoding": "none"})
    VconRedis().store_vcon_dict(plain)
    vcon.add_analysis(type="summary", dialog=0, vendor="x", body="short")
    VconRedis().store_vcon(vcon)

    stored = store.get(A)
    assert (stored.parties, stored.tags) == ([{"name": "Theirs"}], ["mine:1"])
    assert (len(stored.dialog), [entry["body"] for entry in stored.analysis]) == (1, ["short"])


def test_outside_of_a_chain_it_is_merged_too(outside: VconStore) -> None:
    """An object knows which text it came from, and so does a dict."""
    vcon, plain = VconRedis().get_vcon(A), VconRedis().get_vcon_dict(A)
    assert vcon is not None
    assert plain is not None
    with outside.edit(A) as theirs:
        theirs.add_party({"name": "Theirs"})
    vcon.vcon_dict["subject"] = "mine"
    VconRedis().store_vcon(vcon)
    plain["attachments"].append({"purpose": "x", "body": "1", "encoding": "none"})
    VconRedis().store_vcon(Vcon(plain))

    stored = outside.get(A)
    assert (stored.parties, stored.subject, len(stored.attachments)) == ([{"name": "Theirs"}], "mine", 1)


def test_a_conflict_lets_the_link_run_again(redis: Redis, server_url: str) -> None:
    """On the new copy, and its pushes count once."""
    host = Host(redis, server_url)
    tries: list[str | None] = []

    def run(uuid: str) -> str:
        vcon = VconRedis().get_vcon(uuid)
        assert vcon is not None
        tries.append(vcon.subject)
        VconQueue().enqueue("next", uuid)
        if len(tries) == 1:
            with host.store.edit(uuid) as theirs:
                theirs.document["subject"] = "theirs"
        vcon.vcon_dict["subject"] = f"mine after {vcon.subject}"
        VconRedis().store_vcon(vcon)
        return uuid

    run_of_chain = host.begin(host.chain([link(run)]))
    outcome = host.finish(run_of_chain)

    assert (outcome.kind, tries) == ("delivered", [None, "theirs"])
    assert host.store.get(A).subject == "mine after theirs"
    assert run_of_chain.pushes == [("next", A)]


def test_a_worker_that_lost_its_claim_stores_nothing(redis: Redis, server_url: str) -> None:
    """Neither by an object, nor by a dict, nor by the client's JSON."""
    host = Host(redis, server_url)
    lost: list[str] = []

    def run(uuid: str) -> str:
        vcon = VconRedis().get_vcon(uuid)
        assert vcon is not None
        redis.delete(*redis.keys("conserver:*:held:*"))
        vcon.vcon_dict["subject"] = "late"
        for store in (
            lambda: VconRedis().store_vcon(vcon),
            lambda: VconRedis().store_vcon_dict(vcon.to_dict()),
            lambda: redis_mgr.redis.json().set(f"vcon:{uuid}", "$", vcon.to_dict()),
            lambda: redis_mgr.set_key(f"vcon:{uuid}", vcon.to_dict()),
            lambda: asyncio.run(VconRedis().store_vcon_async(None, vcon)),
        ):
            try:
                store()
            except ClaimLost as error:
                lost.append(type(error).__name__)
        return uuid

    host.run(host.chain([link(run)]))

    assert lost == ["ClaimLost"] * 5
    assert host.store.get(A).subject is None


@pytest.mark.usefixtures("work")
def test_what_was_not_changed_is_not_written(redis: Redis) -> None:
    """Whatever the text looks like: bodies that are objects, arrays that are not there, blanks."""
    text = json.dumps(
        {
            "uuid": A,
            "created_at": "2026-01-01T00:00:00Z",
            "analysis": [{"type": "a", "vendor": "v", "body": {"x": 1}, "encoding": "json"}],
        }
    )
    redis.set(f"vcon:{A}", text)
    vcon, plain = VconRedis().get_vcon(A), VconRedis().get_vcon_dict(A)
    assert vcon is not None
    assert plain is not None
    VconRedis().store_vcon(vcon)
    VconRedis().store_vcon_dict(plain)

    assert redis.get(f"vcon:{A}") == text.encode()
    assert (vcon.parties, vcon.dialog, vcon.attachments) == ([], [], [])


@pytest.mark.usefixtures("work")
def test_links_see_text_where_the_store_has_objects(redis: Redis) -> None:
    """As the existing conserver stores them; and what a link adds as text of an object is stored as the object."""
    put(
        redis,
        analysis=[{"type": "a", "vendor": "v", "dialog": 0, "body": {"x": 1}, "encoding": "json"}],
        attachments=[
            {"purpose": "tags", "body": ["a:b"], "encoding": "json"},
            {"purpose": "old", "body": '{"y": 2}', "encoding": "json"},
        ],
    )
    vcon = VconRedis().get_vcon(A)
    assert vcon is not None
    assert [entry["body"] for entry in (*vcon.analysis, *vcon.attachments)] == ['{"x":1}', '["a:b"]', '{"y": 2}']
    vcon.add_tag("c", "d")
    vcon.add_analysis(type="b", dialog=0, vendor="v", body={"z": 3})
    vcon.add_attachment(type="data", body=[4])
    VconRedis().store_vcon(vcon)

    stored = json.loads(redis.get(f"vcon:{A}") or b"")
    bodies = [(entry["body"], entry["encoding"]) for entry in (*stored["analysis"], *stored["attachments"])]
    assert [body for body, _ in bodies] == [{"x": 1}, {"z": 3}, ["a:b", "c:d"], '{"y": 2}', [4]]
    assert {encoding for _, encoding in bodies} == {"json"}
    assert stored["attachments"][2]["purpose"] == "data"


@pytest.mark.usefixtures("work")
def test_tags_of_two_writers_are_both_kept(store: VconStore) -> None:
    """An old link and one of ours at the same time."""
    with store.edit(A) as ours:
        ours.add_tag("first", "1")
    vcon = VconRedis().get_vcon(A)
    assert vcon is not None
    with store.edit(A) as ours:
        ours.add_tag("ours", "1")
    vcon.add_tag("theirs", "1")
    VconRedis().store_vcon(vcon)

    assert sorted(store.get(A).tags) == ["first:1", "ours:1", "theirs:1"]


@pytest.mark.usefixtures("work")
def test_an_object_of_another_package_can_be_stored(store: VconStore) -> None:
    """All that is asked of it is `uuid` and `to_dict()`; it replaces only what the link has not read."""

    class Other:
        uuid = B

        def to_dict(self) -> dict[str, Any]:
            return {**document(B), "vcon": "0.0.1", "attachments": [{"type": "t", "body": {"a": 1}}], "redacted": {}}

    VconRedis().store_vcon(Other())

    stored = store.get(B).document
    assert stored["vcon"] == "0.4.0"
    assert stored["attachments"] == [{"purpose": "t", "body": {"a": 1}, "encoding": "json"}]
    assert "redacted" not in stored


@pytest.mark.usefixtures("work")
def test_a_dict_is_brought_to_the_current_draft_in_place(store: VconStore) -> None:
    """As links know it: old names, empty members, bodies as text."""
    plain = {
        **document(B),
        "vcon": "0.0.1",
        "group": [],
        "appended": None,
        "dialog": [{"type": "text", "mimetype": "text/plain", "body": "x", "encoding": "none"}],
        "attachments": [{"type": "t", "body": {"a": 1}, "encoding": "none"}],
    }
    VconRedis().store_vcon_dict(plain)

    assert (plain["vcon"], "group" in plain, plain["dialog"][0]["mediatype"]) == ("0.4.0", False, "text/plain")
    assert plain["attachments"] == [{"purpose": "t", "body": '{"a":1}', "encoding": "json"}]
    assert store.get(B).attachments == [{"purpose": "t", "body": {"a": 1}, "encoding": "json"}]


@pytest.mark.usefixtures("work")
def test_a_signed_vcon_passes_and_cannot_be_changed(redis: Redis) -> None:
    """A link that only reads lets it through."""
    redis.set(f"vcon:{A}", json.dumps(SIGNED))
    vcon = VconRedis().get_vcon(A)
    assert vcon is not None
    VconRedis().store_vcon(vcon)
    with pytest.raises(VconSealed, match="attachments cannot be added to"):
        vcon.add_tag("a", "b")
    vcon.vcon_dict["analysis"] = [{}]
    with pytest.raises(VconSealed, match=f"vCon {A} is signed: it cannot be changed without breaking it"):
        VconRedis().store_vcon(vcon)

    assert json.loads(redis.get(f"vcon:{A}") or b"") == SIGNED


@pytest.mark.usefixtures("work")
def test_a_vcon_that_was_deleted_stays_deleted(store: VconStore) -> None:
    """A link that had read it before is told."""
    vcon = VconRedis().get_vcon(A)
    assert vcon is not None
    store.delete(A)
    vcon.vcon_dict["subject"] = "late"

    with pytest.raises(VconNotFound):
        VconRedis().store_vcon(vcon)


def test_in_a_chain_an_expiry_waits_for_the_settlement(redis: Redis, work: Work) -> None:
    """The chain's vCon stays until the storages hold it."""
    vcon_redis = VconRedis()
    vcon = vcon_redis.get_vcon(A)
    assert vcon is not None
    vcon_redis.store_vcon(vcon, ttl=60)
    asked = work.expire_secs
    answers = vcon_redis.get_ttl(A), vcon_redis.remove_expiry(A), vcon_redis.get_ttl(A), vcon_redis.set_expiry(A, 7)

    assert (asked, answers, work.expire_secs) == (60, (60, True, -1, True), 7)
    assert redis.ttl(f"vcon:{A}") == -1
    assert (vcon_redis.get_ttl(B), vcon_redis.set_expiry(B, 7), vcon_redis.remove_expiry(B)) == (-2, False, False)


def test_outside_of_a_chain_it_expires_at_once(redis: Redis, outside: VconStore) -> None:
    """From then on."""
    VconRedis().store_vcon_dict(document(B), ttl=60)
    answers = VconRedis().get_ttl(B), VconRedis().remove_expiry(B), VconRedis().get_ttl(B), VconRedis().remove_expiry(B)

    assert answers == (60, True, -1, False)
    assert VconRedis().set_expiry(A, 50)
    assert redis.ttl(f"vcon:{A}") == 50


@pytest.mark.parametrize("ttl", [0, -1, True, "60", None])
def test_an_expiry_that_cannot_be_is_refused(outside: VconStore, ttl: Any) -> None:
    """The existing conserver deletes the vCon then."""
    with pytest.raises(LinkError, match="cannot expire in"):
        VconRedis().set_expiry(A, ttl)

    assert outside.exists(A)


@pytest.mark.usefixtures("work")
def test_the_async_ways_do_the_same(store: VconStore, work: Work) -> None:
    """Whatever client they are given."""

    async def run() -> tuple[Any, ...]:
        vcon_redis, vcon = VconRedis(), Vcon(document(B))
        await vcon_redis.store_vcon_async(None, vcon, ttl=5)
        await vcon_redis.store_vcon_dict_async(None, {**document(B), "subject": "again"})
        return await vcon_redis.set_expiry_async(None, A, 9), await vcon_redis.get_ttl_async(None, A)

    assert asyncio.run(run()) == (True, 9)
    assert store.get(B).subject == "again"
    assert work.expire_secs == 9


def test_the_default_of_the_ttl_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the class, as links read it."""
    default = VconRedis.DEFAULT_TTL
    monkeypatch.setenv("VCON_REDIS_EXPIRY", "77")

    assert (default, VconRedis.DEFAULT_TTL, VconRedis().DEFAULT_TTL) == (3600, 77, 77)


def test_what_the_api_calls_is_there() -> None:
    """Two that have an underscore and are called all the same."""
    entry = {"body": {"a": 1}}
    VconRedis._stringify_json_body(entry)

    assert entry == {"body": '{"a":1}', "encoding": "json"}
    assert VconRedis._enforce_spec_on_write({"appended": {"x": 1}, "redacted": {}}) == {
        "amended": {"x": 1},
        "vcon": "0.4.0",
    }


# redis_mgr


@pytest.mark.usefixtures("work")
def test_the_json_of_a_vcon_goes_through_the_store(store: VconStore) -> None:
    """`redis.json()` on its key, the whole or a member, though it is stored as text."""
    client = redis_mgr.get_client()
    whole = client.json().get(f"vcon:{A}")
    with store.edit(A) as theirs:
        theirs.add_party({"name": "Theirs"})
    client.json().set(f"vcon:{A}", "$", {**whole, "subject": "mine"})

    assert (store.get(A).parties, store.get(A).subject) == ([{"name": "Theirs"}], "mine")
    assert client.json().get(f"vcon:{A}", "$") == [redis_mgr.get_key(f"vcon:{A}")]
    assert (client.json().get(f"vcon:{A}", "$.subject"), client.json().get(f"vcon:{A}", ".subject")) == (
        ["mine"],
        "mine",
    )
    assert client.json().set(f"vcon:{A}", "$.subject", "yours")
    assert store.get(A).subject == "yours"
    assert client.json().get(f"vcon:{B}") is None
    assert client.json().set(f"vcon:{B}", "$.subject", "x") is None
    with pytest.raises(ValueError, match="only the whole and its members can be had"):
        client.json().get(f"vcon:{A}", "$.parties[0]")


@pytest.mark.usefixtures("work")
def test_values_of_other_keys_are_json_text(redis: Redis) -> None:
    """And come back as what they were."""
    redis_mgr.set_key("mine", {"a": [1]})
    redis.expire("mine", 100)
    redis_mgr.set_key("mine", {"a": [2]})

    assert json.loads(redis.get("mine") or b"") == {"a": [2]}
    assert redis.ttl("mine") > 50
    assert (redis_mgr.get_key("mine"), redis_mgr.get_key("none")) == ({"a": [2]}, None)
    assert (redis_mgr.show_keys("mi*"), redis_mgr.redis.get("mine")) == (["mine"], '{"a": [2]}')
    assert (redis_mgr.delete_key("mine"), redis_mgr.delete_key("mine")) == (1, 0)


@pytest.mark.usefixtures("work")
def test_a_deleted_key_of_a_vcon_is_a_deleted_vcon(store: VconStore) -> None:
    """It is gone from what finds it, too."""
    with store.edit(A) as vcon:
        vcon.add_party({"tel": "+15550100"})

    assert redis_mgr.delete_key(f"vcon:{A}") == 1
    assert store.find(tel="+15550100") == set()


@pytest.mark.usefixtures("work")
def test_the_async_client_is_of_the_same_server(redis: Redis) -> None:
    """And its replies are text."""

    async def run() -> Any:
        client = await redis_mgr.get_async_client()
        await client.set("said", "yes")
        said = await client.get("said")
        await client.aclose()
        return said

    assert asyncio.run(run()) == "yes"
    assert redis.get("said") == b"yes"


# VconQueue


def test_in_a_chain_a_queue_pushes_when_it_settles(redis: Redis, work: Work) -> None:
    """All of its ways to push."""
    queue = VconQueue()

    async def run() -> None:
        await queue.enqueue_async(None, "d", A, B)

    queue.enqueue("a", A)
    queue.enqueue_front("b", A)
    queue.enqueue_dlq("in", A)
    queue.enqueue_storage_dlq("s3", A, retention_seconds=60)
    asyncio.run(run())

    assert work.pushes == [("a", A), ("b", A), ("DLQ:in", A), ("DLQ:storage:s3", A), ("d", A), ("d", B)]
    assert redis.keys("[abd]") == []


@pytest.mark.usefixtures("outside")
def test_outside_of_a_chain_it_pushes_and_takes_at_once(redis: Redis) -> None:
    """The head and the tail, several lists, and dead letters."""
    queue = VconQueue()
    queue.enqueue("a", A)
    queue.enqueue_front("a", B)
    queue.enqueue_dlq("in", A)

    async def run() -> tuple[Any, ...]:
        client = await redis_mgr.get_async_client()
        await queue.enqueue_async(client, "c", A, B)
        answers = await queue.queue_length_async(client, "c"), await queue.dequeue_dlq_async(client, "in")
        again = await queue.dequeue_dlq_async(client, "in")
        await client.aclose()
        return *answers, again

    assert queue.queue_length("a") == 2
    assert [queue.dequeue(["none", "a"]), queue.dequeue("a"), queue.dequeue(["a"], timeout=0.01)] == [
        ("a", B),
        ("a", A),
        None,
    ]
    assert asyncio.run(run()) == (2, A, None)
    assert queue.set_vcon_ttl(A, 60)
    assert redis.ttl(f"vcon:{A}") == 60


def test_a_queue_with_a_client_of_its_own_uses_it(redis: Redis) -> None:
    """Replies may be bytes there."""
    redis.rpush("a", A, B)

    assert (VconQueue(redis).dequeue(["a"]), VconQueue(redis).queue_length("a")) == (("a", A), 1)


@pytest.mark.usefixtures("work")
def test_a_queue_takes_no_nonsense() -> None:
    """An entry that is no UUID would be a dead letter later."""
    with pytest.raises(LinkError, match="it is no UUID"):
        VconQueue().enqueue("a", "nonsense")


def test_each_thread_has_the_server_of_its_run(redis: Redis, outside: VconStore) -> None:
    """The shared client is not bound to where the module was imported."""
    said: list[Any] = []
    thread = threading.Thread(target=lambda: said.append(redis_mgr.redis.llen("a")))
    redis.rpush("a", A)
    thread.start()
    thread.join(30)

    assert said == [1]
    assert repr(redis_mgr.redis).startswith("<client of ")


def test_conflicts_reach_the_caller(store: VconStore) -> None:
    """With both names of what was changed."""
    with working(Work(store.writer())):
        vcon = VconRedis().get_vcon(A)
        assert vcon is not None
        with store.edit(A) as theirs:
            theirs.document["subject"] = "theirs"
        vcon.vcon_dict["subject"] = "mine"
        with pytest.raises(VconConflict, match="/subject"):
            VconRedis().store_vcon(vcon)

    assert store.get(A).subject == "theirs"
