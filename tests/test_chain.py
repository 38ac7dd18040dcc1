"""conserver.chain: links in order; what they return and raise becomes an outcome."""

from __future__ import annotations

import os
import uuid as uuids
from collections.abc import Callable
from typing import Any

import pytest
import redis as redis_py
from redis import Redis

from conserver import LinkError, Vcon, chain, push, vcons
from conserver.claims import Found
from conserver.config import Retry
from conserver.errors import ClaimLost, OutboundStatus, ServerError, VconConflict
from conserver.filters import When
from conserver.run import Run
from conserver.store import VconStore
from tests.runs import A, B, Host, document, goes_on, link, storage
from tests.server_moods import full


@pytest.fixture
def host(redis: Redis, server_url: str) -> Host:
    return Host(redis, server_url)


def raising(error: BaseException) -> Callable[[str], Any]:
    def link(uuid: str) -> None:
        raise error

    return link


# What links return


def test_links_run_in_order_and_then_the_storages(host: Host) -> None:
    """Each gets the UUID; all of them see the work of those before."""
    seen: list[str] = []
    links = [link(lambda uuid, n=n: seen.append(f"{n} {uuid}") or uuid, f"l{n}") for n in range(3)]

    outcome = host.run(host.chain(links, [storage(lambda uuid: seen.append(f"save {uuid}"))]))

    assert (outcome.kind, outcome.uuid, outcome.error) == ("delivered", A, "")
    assert seen == [f"0 {A}", f"1 {A}", f"2 {A}", f"save {A}"]


def test_a_link_gets_its_name_and_its_options(host: Host) -> None:
    """Under which it stands in the config."""
    got: list[Any] = []
    one = chain.Link("mine", "links.tag", lambda *args: got.append(args) or args[0], {"tags": ["a"]}, "f")

    host.run(host.chain([one]))

    assert got == [(A, "mine", {"tags": ["a"]})]


@pytest.mark.parametrize("result", [None, False, ""])
def test_a_link_stops_the_chain_with_nothing(host: Host, result: object) -> None:
    """No link after it and no storage runs, and it says which link it was."""
    seen: list[str] = []

    outcome = host.run(host.chain([link(lambda uuid: result, "sieve"), link(seen.append)], [storage(seen.append)]))

    assert (outcome.kind, outcome.link) == ("stopped", "sieve")
    assert seen == []


@pytest.mark.parametrize("result", [B, uuids.UUID(B)])
def test_another_uuid_goes_on_in_place_of_the_first(host: Host, result: object) -> None:
    """For the links after, the storages and the egress."""
    seen: list[str] = []

    outcome = host.run(
        host.chain([link(lambda uuid: result), link(lambda u: seen.append(u) or u)], [storage(seen.append)])
    )

    assert (outcome.kind, outcome.uuid) == ("delivered", B)
    assert seen == [B, B]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (True, "it returned True: a link returns a vCon's UUID, or None to stop the chain"),
        (7, "it returned 7: a link returns a vCon's UUID, or None to stop the chain"),
        ({"uuid": A}, "it returned {'uuid': '018f3c5e-0000-8000-8000-00000000000a'}: a link"),
        ("yes", "it returned 'yes', which is no UUID"),
    ],
)
def test_a_result_that_is_no_uuid_is_an_error(host: Host, result: object, words: str) -> None:
    """It names what came back and what should."""
    outcome = host.run(host.chain([link(lambda uuid: result, "odd")]))

    assert outcome.kind == "failed"
    assert outcome.error.startswith(f"link 'odd': {words}")


# What links raise


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LinkError("no audio in dialog 0"), "no audio in dialog 0"),
        (ValueError("bad"), "ValueError: bad"),
        (KeyError(), "KeyError"),
        (SystemExit(3), "it called exit (3)"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (redis_py.ConnectionError("its own redis is gone"), "ConnectionError: its own redis is gone"),
        (redis_py.exceptions.OutOfMemoryError("OOM"), "OutOfMemoryError: OOM"),
    ],
)
def test_whatever_a_link_raises_fails_this_vcon_alone(host: Host, error: BaseException, words: str) -> None:
    """In words that say which link; only what is not expected has a traceback."""
    outcome = host.run(host.chain([link(goes_on), link(raising(error), "bad")]))

    assert (outcome.kind, outcome.link, outcome.error) == ("failed", "bad", f"link 'bad': {words}")
    assert (outcome.traceback == "") == isinstance(error, LinkError)
    assert outcome.note is not None
    assert outcome.note.done == 1


def test_secrets_of_its_options_are_not_in_what_is_said_of_a_failure(host: Host) -> None:
    """Neither in the error nor in the traceback, nor in that of what caused it."""

    def asks(uuid: str) -> None:
        try:
            raise ValueError("https://service.example/?key=sk-secret answered 401")
        except ValueError as error:
            raise RuntimeError("sk-secret is no good") from error

    outcome = host.run(host.chain([link(asks, "asks", secrets=frozenset({"sk-secret"}))]))

    assert outcome.error == "link 'asks': RuntimeError: *** is no good"
    assert "answered 401" in outcome.traceback
    assert "sk-secret answered" not in outcome.traceback
    assert "RuntimeError: *** is no good" in outcome.traceback


def test_the_retry_of_a_link_goes_before_that_of_its_chain(host: Host) -> None:
    """The outcome carries the one that counts."""
    mine, general = Retry(attempts=2), Retry(attempts=9)
    bad = raising(ValueError())

    assert host.run(host.chain([link(bad, retry=mine)], retry=general)).retry == mine
    assert host.run(host.chain([link(bad)], retry=general)).retry == general


def test_a_vcon_that_is_not_there_fails_without_a_retry(host: Host) -> None:
    """No link is troubled with it, and it is not a silent stop."""
    outcome = host.run(host.chain([link(raising(AssertionError()))], retry=Retry(attempts=5)), stored=False)

    assert (outcome.kind, outcome.link, outcome.retry) == ("failed", "", None)
    assert outcome.error == f"there is no vCon {A}: not in Redis, and no storage has it"


def test_what_is_stored_but_no_vcon_fails(host: Host) -> None:
    """With the reason of the parser."""
    host.redis.set(f"vcon:{A}", "garbage")

    outcome = host.run(host.chain([link(lambda uuid: vcons.get(uuid) and uuid, "reads")]))

    assert outcome.kind == "failed"
    assert outcome.error.startswith("link 'reads': NotAVcon: not JSON")


def wrapped(error: Exception) -> Exception:
    other = LinkError("could not do it")
    other.__cause__ = error
    return other


@pytest.mark.parametrize("wrap", [lambda e: e, wrapped])
def test_trouble_of_the_server_is_nobodys_fault(host: Host, wrap: Callable[[Exception], Exception]) -> None:
    """The claim is given back with its note, even if the link made another error of it."""
    outcome = host.run(host.chain([link(goes_on), link(raising(wrap(ServerError("gone"))))], retry=Retry(attempts=5)))

    assert (outcome.kind, outcome.retry) == ("returned", None)
    assert outcome.note is not None
    assert outcome.note.done == 1


def test_a_full_server_is_nobodys_fault(host: Host) -> None:
    """A link that cannot save its vCon runs again later."""

    def tags(uuid: str) -> str:
        with full(host.redis), vcons.edit(uuid) as vcon:
            vcon.add_tag("a", "b")
        return uuid

    assert host.run(host.chain([link(tags)])).kind == "returned"


@pytest.mark.parametrize("wrap", [lambda e: e, wrapped])
def test_a_lost_claim_ends_the_run(host: Host, wrap: Callable[[Exception], Exception]) -> None:
    """There is nothing more that this worker may do."""
    assert host.run(host.chain([link(raising(wrap(ClaimLost("recovered"))))])).kind == "lost"


def test_a_worker_that_was_recovered_saves_nothing(host: Host) -> None:
    """While the link worked, somebody else has taken the claim over."""

    def slow(uuid: str) -> str:
        host.queue.recover("in", "host:1", "returned", limit=b"{}")
        with vcons.edit(uuid) as vcon:
            vcon.add_tag("too", "late")
        return uuid

    outcome = host.run(host.chain([link(slow)], [storage(raising(AssertionError()))]))

    assert outcome.kind == "lost"
    assert host.store.get(A).tags == []


@pytest.mark.parametrize(("asked", "waits"), [(30.0, 30.0), (None, 0.0), (1e9, 3600.0)])
def test_what_a_service_asks_for_is_handed_on(host: Host, asked: float | None, waits: float) -> None:
    """Also if the link says it in its own words; but no service may ask for ever."""

    def busy(uuid: str) -> str:
        error = OutboundStatus("answered 429", 429)
        error.retry_after_secs = asked
        try:
            raise error
        except OutboundStatus as status:
            raise LinkError("the model is busy") from status

    outcome = host.run(host.chain([link(busy)], retry=Retry(attempts=2)))

    assert (outcome.kind, outcome.wait_secs) == ("failed", waits)
    assert outcome.error.endswith("the model is busy")


def test_a_run_that_was_abandoned_goes_no_further(host: Host) -> None:
    """Its claim is settled: what the link returns at last counts no more."""
    seen: list[str] = []
    run = host.begin(host.chain([link(lambda uuid: setattr(run, "abandoned", True) or uuid), link(seen.append)]))

    outcome = run.chain.run(run)

    assert outcome.kind == "lost"
    assert seen == []


def test_a_run_that_was_abandoned_while_its_vcon_was_read_runs_no_link(host: Host, server_url: str) -> None:
    """A storage that is asked for it may take too long; what it gives at last begins nothing."""
    seen: list[str] = []

    def comes_late(uuid: str) -> dict[str, Any]:
        run.abandoned = True
        return document(uuid)

    vcons = VconStore(server_url, host.settings, read_through=comes_late)
    run = Run(host.claim(), host.chain([link(seen.append)]), vcons, found=Found(False))

    outcome = run.chain.run(run)

    assert outcome.kind == "lost"
    assert seen == []


# Conflicts


TRIES = [f"018f3c5e-0000-8000-8000-{n:012d}" for n in range(4)]


def test_a_link_that_conflicts_runs_again_and_then_alone(host: Host) -> None:
    """Twice on the new copy as it is, then with the vCon to itself; its pushes are those of the last run."""
    locked: list[bool] = []

    def conflicts(uuid: str) -> str:
        locked.append(bool(host.redis.exists(f"conserver:{{vcon:{uuid}}}:lock")))
        push("out", TRIES[len(locked)])
        if len(locked) < 3:
            raise VconConflict("changed")
        return uuid

    run = host.begin(host.chain([link(lambda uuid: push("first", uuid) or uuid), link(conflicts)]))

    assert run.chain.run(run).kind == "delivered"
    assert locked == [False, False, True]
    assert run.pushes == [("first", A), ("out", TRIES[3])]
    assert host.redis.keys("*lock*") == []


def test_a_link_that_builds_its_vcon_recovers_from_a_conflict(host: Host) -> None:
    """In its second try it starts from what it reads then, not from what it had read in the first."""
    tries: list[int] = []

    def builds(uuid: str) -> str:
        read = vcons.get(uuid).to_dict()
        tries.append(len(tries))
        if len(tries) == 1:
            with host.store.edit(uuid) as other:
                other.document["subject"] = "theirs"
        vcons.save(Vcon(read | {"subject": f"{read.get('subject')} and mine"}))
        return uuid

    assert host.run(host.chain([link(builds)])).kind == "delivered"
    assert host.store.get(A).subject == "theirs and mine"
    assert len(tries) == 2


def test_a_link_that_conflicts_for_ever_fails(host: Host) -> None:
    """With the words of the conflict."""
    tries: list[str] = []

    outcome = host.run(
        host.chain([link(lambda uuid: tries.append(uuid) or raising(VconConflict("/subject"))(uuid), "l")])
    )

    assert (outcome.kind, outcome.error) == ("failed", "link 'l': VconConflict: /subject")
    assert len(tries) == 4


def test_a_real_conflict_ends_with_both_changes(host: Host) -> None:
    """The link reads the other's copy on its second run."""
    runs: list[Any] = []

    def appends(uuid: str) -> str:
        with vcons.edit(uuid) as vcon:
            runs.append(vcon.subject)
            if len(runs) == 1:
                with host.store.edit(uuid) as other:
                    other.document["subject"] = "theirs"
            vcon.document["subject"] = f"{vcon.subject} and mine"
        return uuid

    assert host.run(host.chain([link(appends)])).kind == "delivered"
    assert runs == [None, "theirs"]
    assert host.store.get(A).subject == "theirs and mine"


# when


def test_a_link_runs_only_when_its_condition_holds(host: Host) -> None:
    """The chain goes on without it; the condition is looked at when its turn has come."""
    seen: list[str] = []
    when = When(has_tag=("mood",))

    def tags(uuid: str) -> str:
        with vcons.edit(uuid) as vcon:
            vcon.add_tag("mood", "good")
        return uuid

    def note(name: str) -> Callable[[str], str]:
        return lambda uuid: seen.append(name) or uuid

    links = [link(note("before"), "b", when=when), link(tags), link(note("after"), "a", when=when)]

    assert host.run(host.chain(links)).kind == "delivered"
    assert seen == ["after"]


# The process that all links share


def changes_directory(uuid: str) -> str:
    os.chdir("/")
    return uuid


@pytest.mark.parametrize(
    "then",
    [
        goes_on,
        raising(ValueError("in /")),
    ],
)
def test_the_working_directory_is_changed_back(
    host: Host, monkeypatch: pytest.MonkeyPatch, then: Callable[[str], str]
) -> None:
    """However the link ended: those of other vCons open their files in it."""
    monkeypatch.chdir(chain._FOLDER)

    host.run(host.chain([link(lambda uuid: then(changes_directory(uuid)))]))

    assert os.getcwd() == chain._FOLDER


def test_the_thread_is_bound_to_nothing_after_a_run(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push in a hook between two runs belongs to neither of them."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    host.run(host.chain([link(raising(ValueError()))]))

    assert getattr(chain.ambient._local, "work", None) is None


def test_a_run_counts_what_its_links_did(host: Host) -> None:
    """Success, halt and error apart, and the time of each that came back."""
    run = host.begin(host.chain([link(goes_on, "good"), link(lambda uuid: None, "sieve")]))
    run.chain.run(run)
    bad = host.begin(host.chain([link(raising(ValueError()), "bad")]))
    bad.chain.run(bad)

    assert [dict(labels) for _, labels in run.counts + bad.counts] == [
        {"link_name": "good", "outcome": "success"},
        {"link_name": "sieve", "outcome": "halt"},
        {"link_name": "bad", "outcome": "error"},
    ]
    assert [dict(labels)["link_name"] for (_, labels), _ in run.timings] == ["good", "sieve"]


def test_no_link_is_lost_to_a_note_of_another_chain() -> None:
    """The names in the notes change with each link's name and options."""
    links = [link(goes_on, "a"), link(goes_on, "b"), link(goes_on, "a", fingerprint="other")]
    prefixes = {
        p for chosen in ([0, 1], [1, 0], [2, 1], [0, 2]) for p in chain._prefixes([links[i] for i in chosen])[1:]
    }

    assert len(prefixes) == 7
    assert chain._prefixes(links[:1]) == chain._prefixes(links)[:2]


# Errors of other people


def test_an_error_of_any_size_is_cut(host: Host) -> None:
    """Megabytes of message would go into Redis, the log and every comparison of failures."""
    outcome = host.run(host.chain([link(raising(ValueError("x" * 5_000_000)))]))

    assert len(outcome.error) < 10_000
    assert len(outcome.traceback) < 40_000
