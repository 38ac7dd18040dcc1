"""conserver.store: many writers of one vCon, and no update lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from conserver import scripts
from conserver import writer as writers
from conserver.errors import ClaimLost, NotAVcon, ServerError, VconConflict, VconNotFound, VconSealed
from conserver.settings import Settings
from conserver.store import VconStore, digest
from conserver.vcon import Vcon
from tests.runs import A, B, document
from tests.server_moods import full, read_only
from tests.waiting import wait_until

KEY = f"vcon:{A}"


@pytest.fixture
def vcons(server_url: str) -> VconStore:
    return VconStore(server_url, Settings())


@pytest.fixture
def stored(redis: Redis) -> Callable[..., bytes]:
    """Put a vCon where any client would."""

    def put(**parts: Any) -> bytes:
        vcon = Vcon(document(**parts))
        redis.set(f"vcon:{vcon.uuid}", vcon.to_bytes())
        return vcon.to_bytes()

    return put


# Reading


def test_what_is_not_there_is_not_found(vcons: VconStore) -> None:
    """It says which vCon, and that no storage has it either."""
    with pytest.raises(VconNotFound, match=f"there is no vCon {A}: not in Redis, and no storage gives it back"):
        vcons.get(A)
    assert not vcons.exists(A)


def test_a_read_vcon_is_migrated_but_what_is_stored_stays(redis: Redis, vcons: VconStore) -> None:
    """Reading writes nothing; the first save stores the migrated form."""
    old = b'{"vcon":"0.0.1","uuid":"%b","parties":[],"x-mine":12345678901234567890123}' % A.encode()
    redis.set(KEY, old)

    vcon = vcons.get(A)
    before = redis.get(KEY)
    with vcons.edit(A) as edited:
        edited.add_tag("a", "b")

    assert vcon.vcon == "0.4.0"
    assert before == old
    assert b'"vcon":"0.4.0"' in redis.get(KEY)
    assert b'"x-mine":12345678901234567890123' in redis.get(KEY)


@pytest.mark.parametrize(("command", "kind"), [(("HSET", KEY, "a", "b"), "hash"), (("RPUSH", KEY, "a"), "list")])
def test_a_key_of_another_type_is_no_vcon(redis: Redis, vcons: VconStore, command: tuple[str, ...], kind: str) -> None:
    """Neither reading nor saving touches it, and both name its type."""
    redis.execute_command(*command)
    words = f"key '{KEY}' holds a {kind}, not a vCon"

    with pytest.raises(NotAVcon, match=words):
        vcons.get(A)
    with pytest.raises(NotAVcon, match=words):
        vcons.writer().save(Vcon(document()))
    with pytest.raises(NotAVcon, match=words):
        vcons.create(Vcon(document()), replace=True)

    assert redis.type(KEY) == kind.encode()


def test_a_vcon_that_is_too_large_is_refused(server_url: str, stored: Callable[..., bytes]) -> None:
    """It says how large it is and how large it may be."""
    size = len(stored(subject="x" * 5000))

    with pytest.raises(NotAVcon, match=f"has {size:,} bytes, more than CONSERVER_MAX_VCON_BYTES"):
        VconStore(server_url, Settings(max_vcon_bytes=1024)).get(A)


# Editing


def test_an_edit_saves_what_was_changed(redis: Redis, vcons: VconStore, stored: Callable[..., bytes]) -> None:
    """With the time of the change."""
    stored()

    with vcons.edit(A) as vcon:
        vcon.add_tag("mood", "good")

    assert vcons.get(A).tags == ["mood:good"]
    assert vcons.get(A).updated_at is not None


def test_an_edit_without_a_change_writes_nothing(redis: Redis, vcons: VconStore, stored: Callable[..., bytes]) -> None:
    """Not even the expiry is touched."""
    before = stored()
    redis.expire(KEY, 100)

    with vcons.edit(A):
        pass

    assert redis.get(KEY) == before
    assert redis.ttl(KEY) > 0


def test_an_edit_that_fails_saves_nothing(redis: Redis, vcons: VconStore, stored: Callable[..., bytes]) -> None:
    """Half of a change is none."""
    before = stored()

    def change(vcon: Vcon) -> None:
        vcon.add_tag("mood", "good")
        raise KeyError

    with pytest.raises(KeyError), vcons.edit(A) as vcon:
        change(vcon)

    assert redis.get(KEY) == before


def test_a_sealed_vcon_cannot_be_edited(redis: Redis, vcons: VconStore) -> None:
    """A changed signature would be a broken one; but it can be read and stored."""
    encrypted = Vcon(
        {"uuid": A, "protected": "x", "unprotected": {"uuid": A}, "recipients": [], "iv": "", "ciphertext": "c"}
    )
    vcons.create(encrypted)

    with (
        pytest.raises(VconSealed, match=f"vCon {A} is encrypted: it cannot be changed without breaking it"),
        vcons.edit(A),
    ):
        pass

    assert vcons.get(A).to_bytes() == encrypted.to_bytes()


def test_the_changes_of_two_writers_both_stay(vcons: VconStore, stored: Callable[..., bytes]) -> None:
    """Each saves twice, in turns, from what it had read at first."""
    stored()
    one, two = vcons.writer(), vcons.writer()
    mine, theirs = one.get(A), two.get(A)

    for n in range(2):
        mine.add_analysis(type=f"mine {n}", dialog=[], vendor="v", body="m")
        one.save(mine)
        theirs.add_analysis(type=f"theirs {n}", dialog=[], vendor="v", body="t")
        two.save(theirs)
    one.save(mine)

    assert sorted(a["type"] for a in vcons.get(A).analysis) == ["mine 0", "mine 1", "theirs 0", "theirs 1"]


def test_two_who_change_the_same_field_conflict(vcons: VconStore, stored: Callable[..., bytes]) -> None:
    """The second is told where, and the first one's change stays."""
    stored(subject="was")
    one, two = vcons.writer(), vcons.writer()
    mine, theirs = one.get(A), two.get(A)
    theirs.document["subject"] = "theirs"
    two.save(theirs)
    mine.document["subject"] = "mine"

    with pytest.raises(VconConflict, match="/subject"):
        one.save(mine)

    assert vcons.get(A).subject == "theirs"


def test_many_writers_at_once_lose_nothing(vcons: VconStore, stored: Callable[..., bytes]) -> None:
    """Eight threads add ten tags each to one vCon."""
    stored()

    def add(n: int) -> None:
        for k in range(10):
            with vcons.edit(A) as vcon:
                vcon.add_tag(f"t{n}", str(k))

    threads = [threading.Thread(target=add, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(vcons.get(A).tags) == sorted(f"t{n}:{k}" for n in range(8) for k in range(10))


def test_a_save_that_is_repeated_is_done_once(redis: Redis, vcons: VconStore, stored: Callable[..., bytes]) -> None:
    """The client may send the script again after a cut connection, and is told the same."""
    before = stored()
    after = Vcon(document(subject="new")).to_bytes()
    keys = [KEY, f"conserver:{{vcon:{A}}}:deleted", f"conserver:{{vcon:{A}}}:lock"]
    args = [digest(before), after, "", "string", 0, ""]

    assert [scripts.SAVE(redis, list(keys), args) for _ in range(2)] == [[b"ok"], [b"ok"]]
    assert redis.get(KEY) == after


def test_a_vcon_that_was_built_replaces_what_is_there(vcons: VconStore, stored: Callable[..., bytes]) -> None:
    """A link that makes the same derived vCon again on a second run does not conflict with its first."""
    stored(subject="first")

    vcons.writer().save(Vcon(document(subject="second")))

    assert vcons.get(A).subject == "second"


@pytest.mark.parametrize(("broken", "error"), [({}, "this vCon has no uuid"), ({"uuid": ""}, "this vCon has no uuid")])
def test_a_vcon_without_a_uuid_is_not_stored(vcons: VconStore, broken: dict[str, Any], error: str) -> None:
    """There is no key for it."""
    with pytest.raises(NotAVcon, match=error):
        vcons.writer().save(Vcon(broken))


def test_all_storages_of_a_run_save_one_version(redis: Redis, vcons: VconStore, stored: Callable[..., bytes]) -> None:
    """What others write after the freeze is theirs to save; the name of the version is that of the text."""
    stored(subject="frozen")
    writer = vcons.writer()
    text = redis.get(KEY)

    version = writer.freeze(A)
    with vcons.edit(A) as vcon:
        vcon.document["subject"] = "later"

    assert version == digest(text)
    assert writer.get(A).subject == "frozen"


def test_the_frozen_version_has_what_the_writer_saved(
    redis: Redis, vcons: VconStore, stored: Callable[..., bytes]
) -> None:
    """Its own change and, merged, that of another; and it is the version that may expire."""
    stored()
    one, two = vcons.writer(), vcons.writer()
    mine = one.get(A)
    with two.edit(A) as vcon:
        vcon.add_tag("theirs", "1")
    mine.add_party({"name": "Mine"})
    one.save(mine)

    version = one.freeze(A)

    assert version == digest(redis.get(KEY))
    assert (one.get(A).tags, one.get(A).parties) == (["theirs:1"], [{"name": "Mine"}])


def test_a_vcon_that_was_deleted_is_not_frozen(vcons: VconStore, stored: Callable[..., bytes]) -> None:
    """A link that changed it and then deleted it does not want it in the storages."""
    stored()
    writer = vcons.writer()
    with writer.edit(A) as vcon:
        vcon.add_tag("a", "b")
    writer.delete(A)

    with pytest.raises(VconNotFound):
        writer.freeze(A)


# Fences and locks


def test_a_worker_that_lost_its_claim_cannot_write(
    redis: Redis, vcons: VconStore, stored: Callable[..., bytes]
) -> None:
    """While the claim is held it can; afterwards its late save changes nothing."""
    stored()
    redis.hset("held", "7", "record")
    writer = vcons.writer(("held", 7))
    with writer.edit(A) as vcon:
        vcon.add_tag("while", "held")
    before = redis.get(KEY)
    redis.hdel("held", "7")

    with pytest.raises(ClaimLost, match=f"vCon {A} was not saved"), writer.edit(A) as vcon:
        vcon.add_tag("too", "late")
    with pytest.raises(ClaimLost):
        writer.save(Vcon(document(B)))

    assert redis.get(KEY) == before
    assert not redis.exists(f"vcon:{B}")


def test_a_worker_that_lost_its_claim_cannot_delete(
    redis: Redis, vcons: VconStore, stored: Callable[..., bytes]
) -> None:
    """Whoever has the claim now needs the vCon."""
    before = stored()
    writer = vcons.writer(("held", 7))

    with pytest.raises(ClaimLost):
        writer.delete(A)

    assert redis.get(KEY) == before


def test_one_who_has_a_vcon_alone_is_not_disturbed(
    redis: Redis, vcons: VconStore, stored: Callable[..., bytes]
) -> None:
    """Others wait until the block is left, and then merge."""
    stored()
    one = vcons.writer()

    def add_tag() -> None:
        with vcons.edit(A) as vcon:
            vcon.add_tag("other", "1")

    def scripts_run() -> int:
        return int(redis.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])

    with one.alone(A):
        other = threading.Thread(target=add_tag)
        before = scripts_run()
        other.start()
        wait_until(lambda: scripts_run() > before + 1 or not other.is_alive())
        with one.edit(A) as vcon:
            vcon.add_tag("alone", "1")
        tags = vcons.get(A).tags
    other.join(10)

    assert tags == ["alone:1"]
    assert sorted(vcons.get(A).tags) == ["alone:1", "other:1"]


def test_who_waits_too_long_is_told_of_a_conflict(
    redis: Redis, vcons: VconStore, stored: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs again later; nothing was written over."""
    before = stored()
    monkeypatch.setattr(writers, "LOCK_SECS", -5)
    redis.set(f"conserver:{{vcon:{A}}}:lock", "somebody")

    with pytest.raises(VconConflict, match="is being changed by somebody else all the time"), vcons.edit(A) as vcon:
        vcon.add_tag("a", "b")

    assert redis.get(KEY) == before


def test_a_lock_outlives_nobody(redis: Redis, vcons: VconStore) -> None:
    """It ends with its block, and by itself if the process dies in it."""
    with vcons.writer().alone(A):
        left = redis.pttl(f"conserver:{{vcon:{A}}}:lock")

    assert 0 < left <= writers.LOCK_SECS * 1000
    assert not redis.exists(f"conserver:{{vcon:{A}}}:lock")


# The server's trouble


def test_a_server_that_takes_no_writes_is_no_fault_of_the_vcon(
    redis: Redis, vcons: VconStore, stored: Callable[..., bytes]
) -> None:
    """Full or read-only: a ServerError, after which the claim waits."""
    before = stored()

    for mood in (full, read_only):
        with mood(redis), pytest.raises(ServerError), vcons.edit(A) as vcon:
            vcon.add_tag("a", "b")

    assert redis.get(KEY) == before


def test_a_cut_connection_is_repaired(redis: Redis, vcons: VconStore, stored: Callable[..., bytes]) -> None:
    """A restart of a proxy in between is not noticed."""
    stored()
    vcons.get(A)
    redis.client_kill_filter(_type="normal", skipme=True)

    with vcons.edit(A) as vcon:
        vcon.add_tag("a", "b")

    assert wait_until(lambda: vcons.get(A).tags == ["a:b"])


# What came with a claim


def test_what_came_with_the_claim_is_read_once(vcons: VconStore, stored: Callable[..., bytes]) -> None:
    """The second read asks the server; so does a later link, and one that comes late."""
    before = stored(subject="before")
    with vcons.edit(A) as vcon:
        vcon.document["subject"] = "after"

    def reader(at: float) -> writers.Writer:
        made = vcons.writer(found=(A, before, at))
        made.begin()
        return made

    first, late, second_link = reader(time.monotonic()), reader(time.monotonic() - 1), reader(time.monotonic())
    second_link.begin()

    assert [first.get(A).subject, first.get(A).subject] == ["before", "after"]
    assert (late.get(A).subject, second_link.get(A).subject) == ("after", "after")


def test_what_came_with_the_claim_hides_nothing_that_its_reader_did(
    vcons: VconStore, stored: Callable[..., bytes]
) -> None:
    """A link that writes or deletes before it reads sees what it has done; storages get what is there."""
    before = stored(subject="before")
    one, two, three = (vcons.writer(found=(A, before, time.monotonic())) for _ in range(3))
    for writer in (one, two, three):
        writer.begin()
    one.save(Vcon(document(subject="built")))
    frozen = two.freeze(A)
    two_reads = two.get(A).subject
    three.delete(A)

    assert (one._saved[A], two_reads) == (two._frozen[A], "built")
    assert frozen == digest(one._saved[A])
    with pytest.raises(VconNotFound):
        three.get(A)
