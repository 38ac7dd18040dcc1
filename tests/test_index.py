"""conserver.index, terms and reindex: what is found, in which order, and that no page misses or repeats a vCon."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from conserver import index as indexes
from conserver import reindex as reindexing
from conserver import vcons as chain_vcons
from conserver.index import BadCursor, Index, Page
from conserver.reindex import reindex
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.terms import keys_of, words_of
from conserver.vcon import Vcon
from tests.runs import A, B, C, Host, document, link

ANN, BOB = {"name": "Ann", "tel": "+15550100"}, {"name": "Bob"}


def uuid(n: int) -> str:
    """The n-th UUID."""
    return f"018f3c5e-0000-8000-8000-{n:012x}"


def tags(*tags: str) -> dict[str, Any]:
    """An attachment with tags."""
    return {"purpose": "tags", "encoding": "json", "body": list(tags)}


def signed(payload: dict[str, Any]) -> dict[str, Any]:
    """A signed vCon; nobody checks the signature here."""
    text = base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")
    return {"payload": text, "signatures": [{"header": {"uuid": A}, "signature": "x"}]}


@pytest.fixture
def vcons(server_url: str) -> VconStore:
    return VconStore(server_url, Settings())


@pytest.fixture
def index(vcons: VconStore) -> Index:
    return vcons.index


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """This host is in another zone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "XYZ-9")
        time.tzset()
        yield
    time.tzset()


def walk(ask: Callable[[str], Page], between: Callable[[], None] = lambda: None) -> list[str]:
    """Every UUID of all pages; *between* happens between two."""
    page = ask("")
    found, cursors = [*page.uuids], set[str]()
    while page.after:
        assert page.after not in cursors
        cursors.add(page.after)
        between()
        page = ask(page.after)
        found += page.uuids
    return found


# What a vCon is found by


def test_a_vcon_is_found_by_parties_tags_and_words_of_its_subject(vcons: VconStore) -> None:
    """Several terms, several tags and several words mean all of them."""
    vcons.create(
        Vcon(document(A, parties=[ANN], attachments=[tags("mood:good", "lang:en")], subject="Your Order, No. 7"))
    )
    vcons.create(Vcon(document(B, parties=[ANN], attachments=[tags("mood:good")], subject="order")))

    def found(**terms: Any) -> list[str]:
        return vcons.index.search(terms, size=10).uuids

    assert found(tag="mood:good") == [B, A]
    assert found(tag=["mood:good", "lang:en"]) == [A]
    assert found(subject="ORDER") == [B, A]
    assert found(subject="7 your order") == [A]
    assert found(name="Ann", subject="seven") == []
    assert found(tel="+15550100", tag="lang:en") == [A]
    with pytest.raises(ValueError, match="subject: it needs at least one word of letters or digits"):
        found(subject="?!")
    with pytest.raises(ValueError, match="find needs at least one of tel, mailto, name, tag, subject"):
        found(tag=[])


def test_words_of_any_script_are_words() -> None:
    """Each once, whatever its case."""
    assert words_of("Straße STRASSE Ünï-code_2 李, 李!") == ["strasse", "ünï", "code", "2", "李"]


def test_a_signed_vcon_is_found_by_what_it_says(vcons: VconStore, redis: Redis) -> None:
    """Also by when it was created, and also if it was signed twice."""
    vcons.create(Vcon(signed(signed(document(A, parties=[ANN], subject="Hello")))))

    assert vcons.find(name="Ann", subject="hello") == {A}
    assert redis.zscore("vcons", A) == 1767225600.0


@pytest.mark.parametrize(
    "broken", [{"payload": "e30"}, {"payload": 5, "signatures": []}, {"payload": "!", "signatures": []}]
)
def test_an_envelope_that_cannot_be_read_is_in_no_index(broken: dict[str, Any]) -> None:
    """It is stored all the same."""
    assert keys_of({**broken, "uuid": A}) == set()


@pytest.mark.parametrize(
    "parts", [{"attachments": [1, None]}, {"attachments": {"a": 1}}, {"subject": 5}, {"parties": 1}]
)
def test_parts_of_any_shape_break_nothing(parts: dict[str, Any]) -> None:
    """What cannot be read is not indexed."""
    assert keys_of(document(A) | parts) == set()


@pytest.mark.parametrize(
    ("created_at", "score"),
    [
        ("2026-01-01T00:00:00Z", 1767225600),
        ("2026-01-01T01:00:00.999+01:00", 1767225600),
        ("2026-01-01T00:00:00", 1767225600),
        ("1960-01-01T00:00:00Z", -315619200),
    ],
)
def test_the_time_of_a_vcon_is_that_of_its_zone(
    vcons: VconStore, redis: Redis, elsewhere: None, created_at: str, score: int
) -> None:
    """Without a zone it is UTC, wherever this host is."""
    vcons.create(Vcon(document(A) | {"created_at": created_at}))

    assert redis.zscore("vcons", A) == score


def test_a_vcon_without_a_time_stays_where_it_was_first_put(vcons: VconStore, redis: Redis) -> None:
    """A save does not make it the newest."""
    redis.zadd("vcons", {A: 5})
    vcons.create(Vcon(document(A) | {"created_at": "yesterday"}))

    assert redis.zscore("vcons", A) == 5


# What changes


def test_what_a_link_changes_is_found_right_after_it(redis: Redis, server_url: str) -> None:
    """The next link finds by the new tag, party and subject, and not by the old ones."""
    host = Host(redis, server_url)
    host.store.create(Vcon(document(A, parties=[BOB], attachments=[tags("mood:bad", "kept:1")], subject="old words")))
    seen: dict[str, set[str]] = {}

    def changes(uuid: str) -> str:
        with chain_vcons.edit(uuid) as vcon:
            vcon.parties = [ANN]
            vcon.attachments = [tags("mood:good", "kept:1")]
            vcon.document["subject"] = "new words"
        return uuid

    def looks(uuid: str) -> str:
        for kind, value in [
            ("name", "Ann"),
            ("name", "Bob"),
            ("tag", "mood:good"),
            ("tag", "mood:bad"),
            ("tag", "kept:1"),
        ]:
            seen[value] = host.store.find(**{kind: value})
        for word in ("old", "new", "words"):
            seen[word] = host.store.find(subject=word)
        return uuid

    host.run(host.chain([link(changes), link(looks)]), stored=False)

    assert {value for value, found in seen.items() if found} == {"Ann", "mood:good", "kept:1", "new", "words"}


def test_a_vcon_that_comes_back_as_another_is_found_by_what_it_says_now(
    vcons: VconStore, redis: Redis, server_url: str
) -> None:
    """It had expired, and the index still knew it as it was."""
    vcons.create(Vcon(document(A, parties=[ANN, BOB], subject="old")))
    redis.delete(f"vcon:{A}")
    vcons.create(Vcon(document(A, parties=[BOB], subject="new")))
    created = [vcons.find(name="Ann"), vcons.find(name="Bob"), vcons.find(subject="old"), vcons.find(subject="new")]
    redis.delete(f"vcon:{A}")
    other = document(A, parties=[ANN])
    VconStore(server_url, Settings(), lambda uuid: other).read(A)

    assert created == [set(), {A}, set(), {A}]
    assert [vcons.find(name="Ann"), vcons.find(name="Bob"), vcons.find(subject="new")] == [{A}, set(), set()]
    assert index_is_exact(redis)


def test_a_saved_vcon_stands_in_the_sorted_set_once(vcons: VconStore, redis: Redis) -> None:
    """The member of the existing conserver goes away with the first save."""
    redis.set(f"vcon:{A}", json.dumps(document(A)))
    redis.zadd("vcons", {f"vcon:{A}": 7})

    with vcons.edit(A) as vcon:
        vcon.add_tag("a", "b")

    assert redis.zrange("vcons", 0, -1) == [A.encode()]


def test_a_key_of_somebody_else_spoils_no_save(
    vcons: VconStore, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said that the index is not complete."""
    redis.set("name:Ann", "mine")

    vcons.create(Vcon(document(A, parties=[ANN])))

    assert vcons.find(tel="+15550100") == {A}
    assert "the index is not complete, since a key of it is something else" in caplog.text


# Pages


def test_pages_are_newest_first(index: Index, redis: Redis) -> None:
    """By number and by cursor, with and without a time; the ends of the time belong to it."""
    redis.zadd("vcons", {uuid(n): n // 2 for n in range(10)})
    newest_first = [uuid(n) for n in reversed(range(10))]

    assert walk(lambda after: index.page(after=after, size=3)) == newest_first
    assert [index.page(skip=skip, size=4).uuids for skip in (0, 4, 8, 12)] == [
        newest_first[:4],
        newest_first[4:8],
        newest_first[8:],
        [],
    ]
    assert walk(lambda after: index.page(after=after, since=1, until=3, size=2)) == newest_first[2:8]
    assert index.page(since=1, until=3, skip=4, size=2) == Page(newest_first[6:8])
    assert index.page(until=1, after=index.page(size=1).after, size=1).uuids == [uuid(3)]
    assert index.page(since=1.9, until=1.9, size=9).uuids == [uuid(3), uuid(2)]


def test_members_with_a_prefix_are_vcons_and_listed_once(index: Index, redis: Redis) -> None:
    """What is neither spelling of a UUID is no vCon; no page fails for it."""
    junk = [b"vcon:", b"vcon:x", b"\xff\xfe", b"", b"_" * 3000]
    redis.zadd("vcons", {f"vcon:{A}": 1, A: 3, f"vcon:{B}": 2, C: 2, **dict.fromkeys(junk, 2)})

    for size in range(1, 10):
        assert walk(lambda after, size=size: index.page(after=after, size=size)) == [A, B, C]
        pages = [index.page(skip=n * size, size=size).uuids for n in range(10)]
        assert list(itertools.chain(*pages)) == [A, B, C]


@pytest.mark.parametrize("score", [0.5, 1e300, -1e300, float("inf"), float("-inf"), 1767225600.123, 9007199254740993.0])
def test_any_score_can_be_paged_over(index: Index, redis: Redis, score: float) -> None:
    """Others may have written it."""
    redis.zadd("vcons", {uuid(n): score for n in range(5)})

    assert walk(lambda after: index.page(after=after, size=2)) == [uuid(n) for n in (4, 3, 2, 1, 0)]


@pytest.mark.parametrize("cursor", ["x", "5", "nan_x", "1e_x", "1.2.3_x", "--5_x", "5-x", "_", "_x", "1e5\n_"])
def test_what_is_no_cursor_is_refused(index: Index, cursor: str) -> None:
    """In its own words."""
    with pytest.raises(BadCursor, match="is no cursor: take it from the answer before"):
        index.page(after=cursor, size=1)
    with pytest.raises(BadCursor, match="is no cursor: take it from the answer before"):
        index.search({"name": "Ann"}, after=cursor, size=1)


@pytest.fixture(params=["sorted here", "looked through"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A search for what few, or what many have: it takes two ways, which must not differ."""
    if request.param == "looked through":
        monkeypatch.setattr(indexes, "FEW", 0)
        monkeypatch.setattr(indexes, "_STEP", 3)
    return str(request.param)


@pytest.mark.usefixtures("both_ways")
def test_a_search_is_paged_like_a_list(index: Index, redis: Redis) -> None:
    """Newest first, in the time, whatever the spelling of the members."""
    for n in range(12):
        redis.zadd("vcons", {("vcon:" if n % 3 == 0 else "") + uuid(n): n // 2})
        redis.sadd("name:Ann", uuid(n))
        if n % 2:
            redis.sadd("conserver:tag:odd:1", uuid(n))
    redis.zadd("vcons", {f"vcon:{uuid(1)}": 9, uuid(99): 3})
    redis.sadd("name:Ann", "no-uuid", uuid(100))

    def found(**more: Any) -> list[str]:
        return walk(lambda after: index.search({"name": "Ann", "tag": "odd:1"}, after=after, **more))

    # Of one time those with a prefix come first, as they stand.
    by_time = sorted(range(12), key=lambda n: (n // 2, n % 3 == 0, n), reverse=True)
    odd = [uuid(n) for n in by_time if n % 2]
    assert [found(size=size) for size in (1, 2, 5, 20)] == [odd] * 4
    assert index.search({"tag": "odd:1"}, size=6) == Page(odd)
    assert found(size=2, since=1, until=3) == [uuid(n) for n in (7, 5, 3)]
    assert walk(lambda after: index.search({"name": "Ann"}, after=after, size=5)) == [uuid(n) for n in by_time]
    assert index.search({"name": "Ann", "tag": "none:1"}, size=5) == Page([])


Change = tuple[str, int, int]
CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "prefixed", "remove", "move"]), st.integers(0, 23), st.integers(0, 3)), max_size=6
)


@pytest.mark.parametrize("searching", [False, True], ids=["list", "search"])
@pytest.mark.parametrize("few", [0, 1000], ids=["looked through", "sorted here"])
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.dictionaries(st.integers(0, 23), st.integers(0, 3)),
    size=st.integers(1, 4),
    rounds=st.lists(CHANGES, max_size=12),
)
def test_every_vcon_that_is_there_all_the_time_is_seen_once(
    index: Index,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    few: int,
    searching: bool,
    first: dict[int, int],
    size: int,
    rounds: list[list[Change]],
) -> None:
    """While others come, go and move between the pages, that which a page has ended with among them."""
    monkeypatch.setattr(indexes, "FEW", few)
    redis.flushall()
    there = dict(first)
    for n, score in there.items():
        redis.zadd("vcons", {uuid(n): score})
    redis.sadd("name:Ann", *map(uuid, range(24)))
    stayed, coming = set(there), iter(rounds)

    def between() -> None:
        for what, n, score in next(coming, ()):
            if what == "remove" or (what == "move" and n in there):
                stayed.discard(n)
                there.pop(n, None)
                redis.zrem("vcons", uuid(n), "vcon:" + uuid(n))
            if what == "prefixed" and n in stayed:
                redis.zadd("vcons", {"vcon:" + uuid(n): score})
            elif what in ("add", "move") and n not in there:
                there[n] = score
                redis.zadd("vcons", {uuid(n): score})

    def ask(after: str) -> Page:
        if searching:
            return index.search({"name": "Ann"}, after=after, size=size)
        return index.page(after=after, size=size)

    seen = walk(ask, between)

    kept = [uuid(n) for n in sorted(stayed, key=lambda n: (first[n], n), reverse=True)]
    assert [one for one in seen if one in kept] == kept


# Rebuilding


def test_rebuilding_finds_what_others_have_stored(redis: Redis, vcons: VconStore) -> None:
    """Every vCon that is in Redis, and nothing else that lies under such a key."""
    for n in range(100, 350):
        redis.set(f"vcon:{uuid(n)}", json.dumps(document(uuid(n), parties=[ANN], subject=f"call {n}")))
    redis.set(f"vcon:{A}", "no json")
    redis.rpush(f"vcon:{B}", "x")
    redis.set(f"vcon:{C}", json.dumps(document(A)))
    redis.set("vcon:note", json.dumps(document(A)))

    assert reindex(vcons.client, Settings()) == 250
    assert len(vcons.find(name="Ann")) == 250
    assert vcons.find(subject="249") == {uuid(249)}
    assert redis.zcard("vcons") == 250
    assert {len(json.loads(keys)) for keys in redis.hvals("conserver:index")} == {4}
    assert reindex(vcons.client, Settings()) == 250


def test_rebuilding_mends_what_is_left_of_an_index(
    redis: Redis, vcons: VconStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets that have expired come back; keys that a vCon does not say any more lose it."""
    monkeypatch.setattr(reindexing, "_LATER_SECS", 0.0)
    vcons.create(Vcon(document(A, parties=[ANN])))
    vcons.create(Vcon(document(B, parties=[BOB])))
    redis.delete("name:Ann", "vcons")
    redis.set(f"vcon:{B}", json.dumps(document(B, parties=[{"name": "Eve"}])))

    reindex(vcons.client, Settings())

    assert vcons.find(name="Ann") == {A}
    assert vcons.find(name="Eve") == {B}
    assert vcons.find(name="Bob") == set()
    assert json.loads(redis.hget("conserver:index", B)) == ["name:Eve"]
    assert index_is_exact(redis)


def index_is_exact(redis: Redis) -> bool:
    """Say whether each set holds just those vCons whose entry names it."""
    noted = {(key, one.decode()) for one, keys in redis.hgetall("conserver:index").items() for key in json.loads(keys)}
    held = {
        (key.decode(), one.decode())
        for pattern in ("tel:*", "mailto:*", "name:*", "conserver:tag:*", "conserver:subject:*")
        for key in redis.keys(pattern)
        for one in redis.smembers(key)
    }
    return noted == held


def test_rebuilding_leaves_what_is_only_in_storages(redis: Redis, vcons: VconStore) -> None:
    """It can still be found; but what expires is noted, so that it is swept one day."""
    for one in (A, B):
        vcons.create(Vcon(document(one, parties=[ANN])))
    redis.delete(f"vcon:{A}", "conserver:expiring")
    redis.expire(f"vcon:{B}", 1000)

    assert reindex(vcons.client, Settings()) == 1
    assert vcons.find(name="Ann") == {A, B}
    assert redis.zrange("conserver:expiring", 0, -1) == [B.encode()]


def test_rebuilding_takes_prefixes_off(redis: Redis, vcons: VconStore) -> None:
    """Also of what is in no key any more; where both are there, the one without says when it was."""
    redis.zadd("vcons", {f"vcon:{A}": 1, f"vcon:{B}": 2, B: 3, C: 4, "vcon:note": 5, "other": 6})

    reindex(vcons.client, Settings())

    expected = [(A, 1), (B, 3), (C, 4), ("vcon:note", 5), ("other", 6)]
    assert redis.zrange("vcons", 0, -1, withscores=True) == [(name.encode(), score) for name, score in expected]


def test_rebuilding_does_not_undo_what_is_written_meanwhile(
    redis: Redis, vcons: VconStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vCon that changes between being read and being entered is read again."""
    monkeypatch.setattr(reindexing, "_LATER_SECS", 0.0)
    for n in range(5):
        vcons.create(Vcon(document(uuid(n), subject="zero")))
    edits = itertools.count(1)
    read = reindexing._documents

    def slowly(pipe: Any, uuids: list[str]) -> dict[str, dict[str, Any]]:
        documents = read(pipe, uuids)
        edit = next(edits)
        if edit < 6:
            with vcons.edit(uuid(3)) as vcon:
                vcon.document["subject"] = f"edit{edit}"
        return documents

    monkeypatch.setattr(reindexing, "_documents", slowly)

    assert reindex(vcons.client, Settings()) == 5
    assert [vcons.find(subject=word) for word in ("edit4", "edit5")] == [set(), {uuid(3)}]
    assert len(vcons.find(subject="zero")) == 4
    assert index_is_exact(redis)


def test_rebuilding_keeps_what_a_writer_is_about_to_save(
    redis: Redis, vcons: VconStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has entered the vCon, and written that down, while the old text was read."""
    vcons.create(Vcon(document(A, subject="old")))
    keys = keys_of(document(A, subject="old new"))
    read = reindexing._documents

    def late(pipe: Any, uuids: list[str]) -> dict[str, dict[str, Any]]:
        vcons.index.write(vcons.index.add_commands(A, document(A), (), keys))
        return read(pipe, uuids)

    monkeypatch.setattr(reindexing, "_documents", late)
    reindex(vcons.client, Settings())

    assert set(json.loads(redis.hget("conserver:index", A))) == keys
    assert index_is_exact(redis)


def test_large_vcons_are_not_read_together(redis: Redis, vcons: VconStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """So much memory it may take, however many there are."""
    monkeypatch.setattr(reindexing, "_MOST_BYTES", 100_000)
    for n in range(10):
        redis.set(f"vcon:{uuid(n)}", json.dumps(document(uuid(n), x="y" * 40_000)))

    assert sorted(map(len, reindexing._steps(vcons.client))) == [2] * 5
    assert reindex(vcons.client, Settings()) == 10
