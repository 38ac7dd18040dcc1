"""conserver.store: how vCons come, are found, expire and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from conserver.errors import StorageError, VconNotFound
from conserver.settings import Settings
from conserver.store import VconStore, digest
from conserver.vcon import Vcon
from tests.runs import A, B, document
from tests.waiting import wait_until

KEY = f"vcon:{A}"
ANN = {"tel": "+15550100", "name": "Ann"}
BOB = {"tel": "+15550199", "mailto": "bob@example.com", "name": "Bob"}


@pytest.fixture
def vcons(server_url: str) -> VconStore:
    return VconStore(server_url, Settings(index_expiry_secs=0))


@pytest.fixture
def backed(server_url: str) -> Callable[..., VconStore]:
    """A store over a storage that holds one document, and what was asked of it."""

    def made(document: dict[str, Any] | None, asked: list[str] | None = None, **settings: Any) -> VconStore:
        def read_through(uuid: str) -> dict[str, Any] | None:
            (asked if asked is not None else []).append(uuid)
            return document

        return VconStore(server_url, Settings(**settings), read_through)

    return made


# Creating and deleting


def test_create_keeps_what_is_there_unless_told_to_replace(vcons: VconStore) -> None:
    """The same text again is no other version: a request that was cut short can be repeated."""
    first, second = Vcon(document(subject="first")), Vcon(document(subject="second"))

    results = [vcons.create(v) for v in (first, first, second)]
    kept = vcons.get(A).subject

    assert results == ["created", "created", "exists"]
    assert kept == "first"
    assert vcons.create(second, replace=True) == "replaced"
    assert vcons.get(A).subject == "second"


def test_a_replaced_vcon_is_found_by_its_new_parties_only(vcons: VconStore) -> None:
    """The index follows."""
    vcons.create(Vcon(document(parties=[ANN])))

    vcons.create(Vcon(document(parties=[BOB])), replace=True)

    assert vcons.find(name="Bob") == {A}
    assert vcons.find(name="Ann") == set()


def test_a_deleted_vcon_stays_deleted(redis: Redis, vcons: VconStore, backed: Callable[..., VconStore]) -> None:
    """Neither a late save nor a storage that still has it brings it back."""
    vcons.create(Vcon(document(parties=[ANN])))
    writer = vcons.writer()
    late = writer.get(A)
    late.add_tag("too", "late")

    deleted = [vcons.delete(A), vcons.delete(A)]
    with pytest.raises(VconNotFound, match=f"vCon {A} was deleted"):
        writer.save(late)
    with pytest.raises(VconNotFound, match=f"vCon {A} was deleted"):
        backed(document()).get(A)

    assert deleted == [True, False]
    assert not redis.exists(KEY)
    assert vcons.find(name="Ann") == set()
    assert redis.zscore("vcons", A) is None
    assert redis.ttl(f"conserver:{{vcon:{A}}}:deleted") > 86400


def test_who_creates_a_deleted_vcon_again_means_it(vcons: VconStore) -> None:
    """It lives as if it had never been deleted."""
    vcons.create(Vcon(document()))
    vcons.delete(A)

    assert vcons.create(Vcon(document(subject="again"))) == "created"
    with vcons.edit(A) as vcon:
        vcon.add_tag("a", "b")
    assert vcons.get(A).tags == ["a:b"]


def test_what_is_no_vcon_at_all_can_be_replaced(redis: Redis, vcons: VconStore) -> None:
    """Replacing is the way to mend a key that holds garbage."""
    redis.set(KEY, "garbage")

    assert vcons.create(Vcon(document()), replace=True) == "replaced"


# Reading through


def test_what_a_storage_gives_back_is_cached_for_a_while(redis: Redis, backed: Callable[..., VconStore]) -> None:
    """The second read asks nobody; the copy goes away by itself, and can be found until then."""
    asked: list[str] = []
    vcons = backed(document(parties=[ANN]), asked, redis_expiry_secs=60)

    vcon, again = vcons.get(A), vcons.get(A)

    assert asked == [A]
    assert vcon.document == again.document == document(parties=[ANN])
    assert 0 < redis.ttl(KEY) <= 60
    assert vcons.find(name="Ann") == {A}


def test_a_storage_is_asked_only_if_that_is_enabled(backed: Callable[..., VconStore]) -> None:
    """`VCON_STORAGE_FALLBACK_ENABLED=false` means that Redis alone counts."""
    asked: list[str] = []

    with pytest.raises(VconNotFound, match="not in Redis"):
        backed(document(), asked, storage_fallback=False).get(A)

    assert asked == []


def test_the_answer_of_a_storage_must_be_the_vcon_that_was_asked_for(
    redis: Redis, backed: Callable[..., VconStore]
) -> None:
    """Anything else is not used and not cached."""
    with pytest.raises(StorageError, match=f"answered the read of vCon {A} with vCon '{B}': not used"):
        backed(document(B)).get(A)

    assert redis.keys("vcon:*") == []


def test_a_storage_does_not_overwrite_what_came_meanwhile(redis: Redis, server_url: str) -> None:
    """While the storage was asked somebody created the vCon: that one counts."""
    newer = Vcon(document(subject="newer"))

    def slow_storage(uuid: str) -> dict[str, Any]:
        redis.set(KEY, newer.to_bytes())
        return document(subject="older")

    assert VconStore(server_url, Settings(), slow_storage).get(A).subject == "newer"
    assert redis.get(KEY) == newer.to_bytes()


# Finding


def test_searching_for_two_things_means_both(vcons: VconStore) -> None:
    """A term that nothing matches finds nothing, whatever the others match."""
    vcons.create(Vcon(document(A, parties=[ANN, BOB])))
    vcons.create(Vcon(document(B, parties=[ANN])))

    assert vcons.find(name="Ann") == {A, B}
    assert vcons.find(name="Ann", mailto="bob@example.com") == {A}
    assert vcons.find(name="Ann", tel="+10000000000") == set()
    with pytest.raises(ValueError, match="find needs at least one of tel, mailto, name"):
        vcons.find()


@pytest.mark.parametrize("stored", ["+15550100", "tel:+15550100"])
@pytest.mark.parametrize("asked", ["+15550100", "tel:+15550100"])
def test_a_number_is_found_with_and_without_its_prefix(vcons: VconStore, stored: str, asked: str) -> None:
    """The draft allows both spellings."""
    vcons.create(Vcon(document(parties=[{"tel": stored}])))

    assert vcons.find(tel=asked) == {A}


@pytest.mark.parametrize("name", ["Zoë 李 🎧", "a:b {c} *", "\ud83d"])
def test_any_name_can_be_found(vcons: VconStore, name: str) -> None:
    """Also one with a lone surrogate, which JSON allows and UTF-8 does not."""
    vcons.create(Vcon(document(parties=[{"name": name}])))

    assert vcons.find(name=name) == {A}


def test_a_vcon_with_a_lone_surrogate_can_be_edited(vcons: VconStore) -> None:
    """Text from elsewhere is not always well-formed."""
    vcons.create(Vcon(document(parties=[{"name": "\ud83d"}])))

    with vcons.edit(A) as vcon:
        vcon.add_party({"name": "Bob"})

    assert vcons.find(name="Bob") == {A}


@pytest.mark.parametrize("parties", [None, {}, "x", [None, 1, {"tel": 5}, {"tel": ""}]])
def test_parties_of_any_shape_break_nothing(vcons: VconStore, parties: Any) -> None:
    """What is no text is not indexed."""
    assert vcons.create(Vcon(document(parties=parties))) == "created"


def test_the_index_follows_an_edit(vcons: VconStore) -> None:
    """New parties are found, and those that are gone are not."""
    vcons.create(Vcon(document(parties=[ANN])))

    with vcons.edit(A) as vcon:
        vcon.parties = [BOB]

    assert vcons.find(name="Bob") == {A}
    assert vcons.find(name="Ann") == set()


def test_the_sorted_set_knows_when_each_vcon_was_created(redis: Redis, vcons: VconStore) -> None:
    """Bare UUIDs by their time, as existing tools read them."""
    vcons.create(Vcon(document()))

    assert redis.zrange("vcons", 0, -1, withscores=True) == [(A.encode(), 1767225600.0)]


# Expiring


def test_only_the_version_that_storages_hold_expires(redis: Redis, vcons: VconStore) -> None:
    """One that was changed meanwhile stays, and so does one that is gone."""
    vcons.create(Vcon(document()))
    current, other = digest(redis.get(KEY)), digest(b"another text")

    assert vcons.expire([(A, other, 60), (B, other, 60)]) == 0
    assert redis.ttl(KEY) == -1
    assert vcons.expire([(A, current, 60)]) == 1
    assert 0 < redis.ttl(KEY) <= 60


def test_a_version_that_is_not_held_does_not_expire_any_more(redis: Redis, vcons: VconStore) -> None:
    """Who has saved an older version may have been the last to reach the storages."""
    vcons.create(Vcon(document()))
    vcons.expire([(A, digest(redis.get(KEY)), 60)])

    vcons.expire([(A, digest(b"an older text"), 60)])

    assert redis.ttl(KEY) == -1


def test_a_copy_that_expires_during_an_edit_is_merged_with_what_a_storage_holds(
    redis: Redis, vcons: VconStore, backed: Callable[..., VconStore]
) -> None:
    """Another has changed it, had it stored, and let it expire meanwhile: both changes stay."""
    vcons.create(Vcon(document()))

    with backed(document(subject="newer")).edit(A) as vcon:
        redis.delete(KEY)
        vcon.add_tag("a", "b")

    merged = vcons.get(A)
    assert (merged.subject, merged.tags) == ("newer", ["a:b"])


def test_a_copy_that_expires_during_an_edit_and_is_nowhere_else_is_saved(redis: Redis, vcons: VconStore) -> None:
    """What was read is all there is."""
    vcons.create(Vcon(document()))

    with vcons.edit(A) as vcon:
        redis.delete(KEY)
        vcon.add_tag("a", "b")

    assert vcons.get(A).tags == ["a:b"]


def test_a_save_clears_the_expiry(redis: Redis, vcons: VconStore) -> None:
    """No storage holds the new version yet."""
    vcons.create(Vcon(document()))
    vcons.expire([(A, digest(redis.get(KEY)), 60)])

    with vcons.edit(A) as vcon:
        vcon.add_tag("a", "b")

    assert redis.ttl(KEY) == -1


def test_what_a_chain_works_on_does_not_expire(redis: Redis, backed: Callable[..., VconStore]) -> None:
    """A copy that was fetched for a chain stays until the chain has settled."""
    vcons = backed(document())

    assert vcons.exists(A)
    assert redis.ttl(KEY) == -1


def test_a_vcon_that_has_expired_is_swept_from_the_index(redis: Redis, vcons: VconStore) -> None:
    """From the sorted set too, also in the spelling of the existing conserver; others are left alone."""
    for uuid in (A, B):
        vcons.create(Vcon(document(uuid, parties=[ANN])))
    redis.zadd("vcons", {KEY: 1})
    vcons.expire([(A, "*", 1)])
    redis.pexpire(KEY, 1)
    redis.zadd("conserver:expiring", {A: 0})

    wait_until(vcons.sweep)

    assert vcons.find(name="Ann") == {B}
    assert redis.zrange("vcons", 0, -1) == [B.encode()]
    assert redis.zcard("conserver:expiring") == 0
    assert redis.hkeys("conserver:index") == [B.encode()]


def test_a_sweep_leaves_what_lives_again(redis: Redis, vcons: VconStore) -> None:
    """One that was saved since is forgotten by the sweep; one that expires later is looked at later."""
    for uuid in (A, B):
        vcons.create(Vcon(document(uuid, parties=[ANN])))
    vcons.expire([(A, "*", 60), (B, "*", 60)])
    redis.persist(KEY)
    redis.zadd("conserver:expiring", {A: 0, B: 0})

    assert vcons.sweep() == 0
    assert vcons.find(name="Ann") == {A, B}
    ((uuid, due),) = redis.zrange("conserver:expiring", 0, -1, withscores=True)
    assert uuid == B.encode()
    assert due > 0


def test_search_still_finds_what_has_just_expired(redis: Redis, server_url: str) -> None:
    """For `VCON_INDEX_EXPIRY`: the storages can still give it back."""
    vcons = VconStore(server_url, Settings(index_expiry_secs=3600))
    vcons.create(Vcon(document(parties=[ANN])))
    vcons.expire([(A, "*", 1)])
    redis.delete(KEY)

    assert vcons.sweep() == 0
    assert vcons.find(name="Ann") == {A}
