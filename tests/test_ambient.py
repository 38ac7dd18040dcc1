"""conserver.ambient: what a link sees as `conserver.vcons` and `conserver.push`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

import conserver
from conserver import ambient
from conserver.ambient import Work, working
from conserver.errors import ConserverError, LinkError
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.vcon import Vcon

A = "018f3c5e-0000-8000-8000-00000000000a"
DOCUMENT = {"vcon": "0.4.0", "uuid": A, "created_at": "2026-01-01T00:00:00Z", "parties": []}


@pytest.fixture
def store(server_url: str) -> VconStore:
    store = VconStore(server_url, Settings())
    store.create(Vcon(dict(DOCUMENT)))
    return store


@pytest.fixture
def outside(server_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A script with REDIS_URL in its environment, and no chain."""
    monkeypatch.setenv("REDIS_URL", server_url)
    ambient._server.cache_clear()
    yield
    ambient._server.cache_clear()


def test_inside_a_link_a_push_waits_for_the_settlement(redis: Redis, store: VconStore) -> None:
    """So that a second run pushes once."""
    with working(Work(store.writer())) as work:
        conserver.push("out", A)

    assert work.pushes == [("out", A)]
    assert not redis.exists("out")


def test_inside_a_link_the_expiry_waits_too(redis: Redis, store: VconStore) -> None:
    """Nothing expires before the storages hold it."""
    with working(Work(store.writer())) as work:
        conserver.vcons.expire(A, 60)

    assert work.expire_secs == 60
    assert redis.ttl(f"vcon:{A}") == -1


@pytest.mark.parametrize("seconds", [0, -1, 0.5, True, None, "60", 10**10])
def test_an_expiry_that_cannot_be_is_refused_at_once(store: VconStore, seconds: Any) -> None:
    """Where it was asked for, and not when all is settled."""
    with (
        working(Work(store.writer())) as work,
        pytest.raises(LinkError, match=rf"a vCon cannot expire in {seconds!r} seconds"),
    ):
        conserver.vcons.expire(A, seconds)

    assert work.expire_secs is None


def test_inside_a_link_all_reads_and_saves_are_of_one_writer(store: VconStore) -> None:
    """What is saved is merged with what others wrote since this link read it."""
    with working(Work(store.writer())):
        mine = conserver.vcons.get(A)
        with store.edit(A) as theirs:
            theirs.add_tag("theirs", "1")
        mine.add_party({"name": "Ann"})
        conserver.vcons.save(mine)

    assert (store.get(A).tags, store.get(A).parties) == (["theirs:1"], [{"name": "Ann"}])


@pytest.mark.usefixtures("outside")
def test_outside_of_a_chain_everything_happens_at_once(redis: Redis, store: VconStore) -> None:
    """A script needs only REDIS_URL."""
    with conserver.vcons.edit(A) as vcon:
        vcon.add_tag("a", "b")
    conserver.push("out", A)
    conserver.vcons.expire(A, 60)

    assert store.get(A).tags == ["a:b"]
    assert redis.lrange("out", 0, -1) == [A.encode()]
    assert 0 < redis.ttl(f"vcon:{A}") <= 60


def test_without_a_server_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing that could be meant."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    ambient._server.cache_clear()

    with pytest.raises(
        ConserverError, match=r"outside of a chain, conserver\.vcons needs REDIS_URL in the environment"
    ):
        conserver.vcons.get(A)


def test_each_thread_has_work_of_its_own(store: VconStore) -> None:
    """Pushes of one link never settle with another's claim."""
    both = threading.Barrier(2, timeout=10)
    works = [Work(store.writer()), Work(store.writer())]

    def link(number: int) -> None:
        with working(works[number]):
            both.wait()
            conserver.push(f"out{number}", A)
            both.wait()

    threads = [threading.Thread(target=link, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert [work.pushes for work in works] == [[("out0", A)], [("out1", A)]]


def test_work_within_work_gives_way_again(store: VconStore) -> None:
    """After the block the work before is bound, also if the block failed."""
    outer, inner = Work(store.writer()), Work(store.writer())

    with working(outer):
        with pytest.raises(KeyError), working(inner):
            raise KeyError
        conserver.push("out", A)

    assert (outer.pushes, inner.pushes) == ([("out", A)], [])


def test_the_public_names_are_there() -> None:
    """What `conserver` promises to authors can be imported from it; anything else is an error."""
    assert all(getattr(conserver, name) is not None for name in conserver.__all__)
    with pytest.raises(AttributeError, match="module 'conserver' has no attribute 'vcon5'"):
        conserver.vcon5  # noqa: B018
