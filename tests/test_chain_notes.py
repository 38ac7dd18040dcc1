"""conserver.chain: slow links are not paid twice, and what links asked for happens once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from redis import Redis

from conserver import Vcon, chain, push, vcons
from conserver import run as run_module
from conserver.claims import Note, Settlement
from conserver.config import Retry
from tests.runs import A, B, Host, document, goes_on, link, storage
from tests.server_moods import full


@pytest.fixture
def host(redis: Redis, server_url: str) -> Host:
    return Host(redis, server_url)


@pytest.fixture
def seen() -> list[str]:
    return []


@pytest.fixture
def sees(seen: list[str]) -> Callable[[str], chain.Link]:
    """A link that says that it ran."""
    return lambda name: link(lambda uuid: seen.append(f"{name} {uuid[-1]}") or uuid, name)


def fails(uuid: str) -> str:
    raise ValueError("no good")


def pushes(uuid: str) -> str:
    push("out", uuid)
    vcons.expire(uuid, 7)
    return uuid


def pushes_and_fails(uuid: str) -> str:
    push("out", uuid)
    raise ValueError("no good")


def put_back(host: Host, run: chain.Run) -> None:
    host.session.trip([Settlement(run.claim).give_back()], {})


def claimed_again(host: Host) -> chain.Claim:
    (claim,) = host.session.trip([], {"in": 1}).claims
    return claim


def test_slow_work_is_noted_where_recovery_finds_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another worker reads after a kill -9 in the middle of the second link."""
    monkeypatch.setattr(run_module, "NOTE_AFTER_SECS", 0.0)
    notes: list[Note | None] = []

    def looks(uuid: str) -> str:
        host.queue.recover("in", "host:1", "returned", limit=b"{}")
        host.session._held["in"].clear()
        host.redis.sadd("conserver:{in}:workers", "host:1")
        notes.append(claimed_again(host).note)
        return uuid

    made = host.chain([link(lambda uuid: pushes(uuid) and B, "first"), link(looks, "second")])
    host.run(made)

    assert notes == [Note(1, made.prefixes[1], B, (("out", A),), 7)]


def test_quick_work_is_not_noted(host: Host) -> None:
    """A note costs a round trip, which would be most of the time of a quick link."""
    run = host.begin(host.chain([link(goes_on)] * 3))
    run.take_note = lambda note: pytest.fail("noted")

    assert run.chain.run(run).kind == "delivered"


def test_a_note_that_the_server_refuses_does_not_waste_the_work(
    host: Host, monkeypatch: pytest.MonkeyPatch, sees: Callable[[str], chain.Link], seen: list[str]
) -> None:
    """What a slow link has done is settled once the server works again, though it could not be written down."""
    monkeypatch.setattr(run_module, "NOTE_AFTER_SECS", 0.0)
    run = host.begin(host.chain([sees("a"), sees("b")]))

    with full(host.redis):
        outcome = run.chain.run(run)

    assert outcome.kind == "delivered"
    assert seen == ["a a", "b a"]


def test_a_note_that_is_not_taken_ends_the_run(host: Host, monkeypatch: pytest.MonkeyPatch, seen: list[str]) -> None:
    """The claim is somebody else's by now: running on would do the work twice."""
    monkeypatch.setattr(run_module, "NOTE_AFTER_SECS", 0.0)
    run = host.begin(host.chain([link(goes_on), link(seen.append)]))
    run.take_note = lambda note: False

    assert run.chain.run(run).kind == "lost"
    assert seen == []


def test_a_run_goes_on_behind_what_was_done(host: Host, sees: Callable[[str], chain.Link], seen: list[str]) -> None:
    """With the vCon, the pushes and the expiry that those links had led to."""
    made = host.chain([sees("a"), sees("b"), sees("c")])
    claim = host.claim()
    claim.note = Note(2, made.prefixes[2], B, (("out", A),), 7)
    run = host.begin(made, claim)

    assert made.run(run).kind == "delivered"
    assert seen == ["c b"]
    assert (run.pushes, run.expire_secs) == ([("out", A)], 7)


def test_links_that_are_all_done_leave_only_the_storages(
    host: Host, sees: Callable[[str], chain.Link], seen: list[str]
) -> None:
    """As after a required storage has failed."""
    made = host.chain([sees("a")], [storage(lambda uuid: seen.append("saved"))])
    claim = host.claim()
    claim.note = Note(1, made.prefixes[1], A)

    assert host.run(made, claim).kind == "delivered"
    assert seen == ["saved"]


@pytest.mark.parametrize("note", [Note(1, "another", B), Note(9, "x", B), Note(1, "", B)])
def test_a_note_of_another_chain_counts_for_nothing(
    host: Host, sees: Callable[[str], chain.Link], seen: list[str], note: Note
) -> None:
    """The config was changed meanwhile: the links run from the first, on the vCon that was pushed."""
    claim = host.claim()
    claim.note = note

    assert host.run(host.chain([sees("a"), sees("b")]), claim).kind == "delivered"
    assert seen == ["a a", "b a"]


def test_a_chain_that_grew_behind_the_note_goes_on(
    host: Host, sees: Callable[[str], chain.Link], seen: list[str]
) -> None:
    """Only what the note speaks of has to be the same."""
    claim = host.claim()
    claim.note = Note(1, host.chain([sees("a")]).prefixes[1], A)

    host.run(host.chain([sees("a"), sees("new")]), claim)

    assert seen == ["new a"]


def test_a_note_to_a_vcon_that_is_gone_fails(host: Host, sees: Callable[[str], chain.Link]) -> None:
    """The vCon that the links had made must be there, not the one that was pushed."""
    made = host.chain([sees("a"), link(lambda uuid: vcons.get(uuid) and uuid, "reads")])
    claim = host.claim()
    claim.note = Note(1, made.prefixes[1], B)
    host.store.create(Vcon(document(A)))

    outcome = host.run(made, claim, stored=False)

    assert outcome.kind == "failed"
    assert f"there is no vCon {B}" in outcome.error


@pytest.mark.parametrize("before", [[], [link(goes_on)]])
def test_pushes_of_a_link_that_failed_are_not_kept(host: Host, before: list[chain.Link]) -> None:
    """It runs again and pushes again: once is what was asked for."""
    outcome = host.run(host.chain([*before, link(pushes_and_fails)], retry=Retry(attempts=2)))

    assert outcome.note is not None
    assert outcome.note.pushes == ()


def test_pushes_of_links_that_are_done_are_kept(host: Host) -> None:
    """They do not run again, so the note speaks for them."""
    outcome = host.run(host.chain([link(pushes), link(fails)], retry=Retry(attempts=2)))

    assert outcome.note is not None
    assert (outcome.note.done, outcome.note.pushes, outcome.note.expire_secs) == (1, (("out", A),), 7)


# Over the time


def overdue(host: Host, made: chain.Chain, until: str) -> chain.Outcome:
    """How a run of *made* ends that is given up while it is in *until*."""
    run = host.begin(made)
    thread = threading.Thread(target=made.run, args=(run,), daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while run.stage != until and time.monotonic() < deadline:
        time.sleep(0.001)
    return run.overdue()


def test_a_link_over_its_time_fails_by_name(host: Host) -> None:
    """With the timeout that it had, its retry, and a note of what was done before it."""
    wait = threading.Event()
    mine = Retry(attempts=3)
    slow = link(lambda uuid: wait.wait(10) and uuid, "slow", timeout=5.0, retry=mine)

    outcome = overdue(host, host.chain([link(goes_on, "a"), slow]), "link 'slow'")
    wait.set()

    assert (outcome.kind, outcome.link, outcome.retry) == ("failed", "slow", mine)
    assert outcome.error == "link 'slow' ran longer than its timeout of 5 s"
    assert outcome.note is not None
    assert outcome.note.done == 1


def test_a_chain_over_its_time_says_where_it_was(host: Host) -> None:
    """Its own timeout counts, whatever is left to the link."""
    wait = threading.Event()
    slow = link(lambda uuid: wait.wait(10) and uuid, "slow")

    outcome = overdue(host, host.chain([slow], timeout=0.0001), "link 'slow'")
    wait.set()

    assert outcome.error == "the chain ran longer than its timeout of 0.0001 s, in link 'slow'"


def test_the_board_shows_what_runs_and_until_when(host: Host) -> None:
    """The supervisor reads it; the chain's own time is a limit for each link in it."""
    entries: list[tuple[bytes, float]] = []
    made = host.chain([link(goes_on, "a", timeout=100.0), link(goes_on, "b")], timeout=50.0)
    run = host.begin(made)
    run.board = lambda what, deadline: entries.append((what, round(deadline - run.began)))

    made.run(run)

    assert entries == [(b"link 'a'", 50), (b"link 'b'", 50)]
