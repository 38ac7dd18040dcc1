"""conserver.chain: every storage is tried, and one that fails does not stop the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from conserver import StorageError, deadline, outbound, push, vcons
from conserver.components import Storage
from conserver.config import Retry
from conserver.errors import ClaimLost
from conserver.settings import Settings
from conserver.store import digest
from tests.fakes.http_server import HttpServer
from tests.runs import A, Host, goes_on, link, storage
from tests.waiting import wait_until


@pytest.fixture(params=[True, False], ids=["parallel", "sequential"])
def host(redis: Redis, server_url: str, request: pytest.FixtureRequest) -> Host:
    return Host(redis, server_url, Settings(parallel_storage=request.param))


@pytest.fixture
def parallel(redis: Redis, server_url: str) -> Host:
    return Host(redis, server_url, Settings(parallel_storage=True))


def fails(uuid: str) -> None:
    raise StorageError("the bucket is gone")


def gives_back(uuid: str, opts: Any) -> None:
    return None


def test_one_that_fails_stops_no_other(host: Host) -> None:
    """What it could not save is told by name; the vCon is delivered."""
    saved: list[str] = []
    storages = [storage(fails, "a"), storage(lambda uuid: saved.append(uuid), "b"), storage(fails, "c")]

    outcome = host.run(host.chain([], storages))

    assert outcome.kind == "delivered"
    assert saved == [A]
    assert outcome.storage_errors == {name: "the bucket is gone" for name in ("a", "c")}


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), MemoryError()])
def test_whatever_a_storage_raises_is_its_own_failure(host: Host, error: BaseException) -> None:
    """Storages are other people's code."""

    def save(uuid: str) -> None:
        raise error

    outcome = host.run(host.chain([], [storage(save, "a"), storage(lambda uuid: None, "b")]))

    assert outcome.kind == "delivered"
    assert outcome.storage_errors.keys() == {"a"}


def test_a_required_one_that_fails_fails_the_vcon(host: Host) -> None:
    """All others are tried first; a retry need not run the links again."""
    saved: list[str] = []
    storages = [storage(fails, "a", required=True), storage(saved.append, "b")]
    retry = Retry(attempts=2)

    outcome = host.run(host.chain([link(goes_on)], storages, retry=retry))

    assert (outcome.kind, outcome.retry) == ("failed", retry)
    assert outcome.error == "storage 'a' is required and failed: the bucket is gone"
    assert saved == [A]
    assert outcome.note is not None
    assert outcome.note.done == 1


def test_all_save_the_version_that_may_expire(host: Host) -> None:
    """If somebody changes the vCon while they save, all of them save again: an older version may not come last."""
    saved: list[bytes] = []
    changed = threading.Lock()

    def save(uuid: str) -> None:
        vcon = vcons.get(uuid)
        with changed:
            if not saved:
                with host.store.edit(uuid) as other:
                    other.add_tag("late", "1")
            saved.append(vcon.to_bytes())

    storages = [storage(save, name, get=gives_back) for name in ("a", "b")]
    outcome = host.run(host.chain([], storages))

    assert saved[0] == saved[1]
    assert b"late" not in saved[0]
    assert saved[2] == saved[3]
    assert b"late" in saved[2]
    assert outcome.version == digest(saved[3])


def test_a_vcon_that_changes_all_the_time_is_delivered_and_does_not_expire(host: Host) -> None:
    """There is an end to saving again; whoever changes it last saves it last."""
    saved: list[str] = []

    def save(uuid: str) -> None:
        saved.append(uuid)
        with host.store.edit(uuid) as other:
            other.add_tag("late", str(len(saved)))

    outcome = host.run(host.chain([], [storage(save, get=gives_back)]))

    assert (outcome.kind, outcome.version) == ("delivered", "")
    assert len(saved) == 3


@pytest.mark.parametrize(
    "storages",
    [
        [],
        [storage(lambda uuid: None)],
        [storage(lambda uuid: None, "a", get=gives_back), storage(fails, "b")],
        [storage(fails, "a", get=gives_back)],
    ],
    ids=["none", "gives nothing back", "one failed", "the only one failed"],
)
def test_without_a_good_copy_elsewhere_nothing_may_expire(host: Host, storages: list[Storage]) -> None:
    """Every storage must have it, and one must be able to give it back."""
    assert host.run(host.chain([], storages)).version == ""


def test_storages_may_save_at_the_same_time(parallel: Host) -> None:
    """Two that wait for each other both end."""
    both = threading.Barrier(2, timeout=10)

    outcome = parallel.run(parallel.chain([], [storage(lambda uuid: both.wait(), name) for name in "ab"]))

    assert outcome.storage_errors == {}


def test_storages_save_one_after_the_other_if_that_is_wanted(redis: Redis, server_url: str) -> None:
    """In the order of the chain."""
    host = Host(redis, server_url, Settings(parallel_storage=False))
    seen: list[str] = []

    host.run(host.chain([], [storage(lambda uuid, n=n: seen.append(n), n) for n in "abc"]))

    assert seen == ["a", "b", "c"]


def test_one_that_is_late_is_left_behind(parallel: Host, caplog: pytest.LogCaptureFixture) -> None:
    """The others count; when it ends at last, that is told and changes nothing."""
    wait, saved = threading.Event(), []
    storages = [
        storage(lambda uuid: wait.wait(10), "late", timeout=0.05, get=gives_back),
        storage(lambda uuid: saved.append(uuid), "good", get=gives_back),
    ]

    outcome = parallel.run(parallel.chain([], storages))
    wait.set()

    assert (outcome.kind, outcome.storage_errors) == ("delivered", {"late": "no answer within 0.05 s"})
    assert (saved, outcome.version) == ([A], "")
    wait_until(lambda: "storage 'late' ended late: saved" in caplog.text)
    assert outcome.storage_errors == {"late": "no answer within 0.05 s"}


def test_a_storage_that_ends_late_keeps_the_copy_in_redis(redis: Redis, parallel: Host) -> None:
    """Another chain may have given it a newer version in between, which the late one has overwritten."""
    wait = threading.Event()
    storages = [storage(lambda uuid: wait.wait(10), "late", timeout=0.05), storage(lambda uuid: None, "good")]

    parallel.run(parallel.chain([], storages))
    redis.expire(f"vcon:{A}", 60)
    wait.set()

    wait_until(lambda: redis.ttl(f"vcon:{A}") == -1)


def test_a_storage_that_is_late_sends_nothing_more(parallel: Host, caplog: pytest.LogCaptureFixture) -> None:
    """What it wrote now could take the place of a newer version."""
    wait = threading.Event()
    with HttpServer(lambda exchange: exchange.answer(200)) as server:

        def save(uuid: str) -> None:
            wait.wait(10)
            wait_until(lambda: deadline.secs_left() < 0)
            outbound.request("PUT", server.url, trusted=True)

        parallel.run(parallel.chain([], [storage(save, "late", timeout=0.05), storage(lambda uuid: None, "good")]))
        wait.set()
        wait_until(lambda: "storage 'late' ended late" in caplog.text)

    assert server.requests == []
    assert "not asked, since the time of the whole call is over" in caplog.text


def test_a_run_that_was_given_up_keeps_the_copy_in_redis(redis: Redis, server_url: str) -> None:
    """The same for a storage that is saved to by itself: what it writes late may be older than what it has by then."""
    host = Host(redis, server_url, Settings(parallel_storage=False))
    seen, wait = threading.Event(), threading.Event()
    run = host.begin(host.chain([], [storage(lambda uuid: (seen.set(), wait.wait(10)), "late", timeout=3.0)]))
    thread = threading.Thread(target=run.chain.run, args=(run,), daemon=True)
    thread.start()
    assert seen.wait(10)
    run.abandoned = True
    redis.expire(f"vcon:{A}", 60)
    wait.set()
    thread.join(10)

    assert redis.ttl(f"vcon:{A}") == -1


def test_a_copy_that_expires_while_storages_save_is_not_taken_back(redis: Redis, host: Host) -> None:
    """Nobody has deleted the vCon: they have the only one that is left, and it goes on."""
    kept: set[str] = set()

    def save(uuid: str) -> None:
        kept.add(uuid)
        redis.delete(f"vcon:{uuid}")

    storages = [storage(save, "a", delete=lambda uuid, opts: kept.discard(uuid)), storage(fails, "b")]
    outcome = host.run(host.chain([], storages))

    assert kept == {A}
    assert (outcome.kind, outcome.version) == ("delivered", "")
    assert outcome.storage_errors == {"b": "the bucket is gone"}


def overdue(host: Host, late: Storage, seen: threading.Event) -> Any:
    run = host.begin(host.chain([link(goes_on)], [storage(fails, "a"), late]))
    threading.Thread(target=run.chain.run, args=(run,), daemon=True).start()
    assert seen.wait(10)
    return run.overdue()


def test_storages_behind_one_that_hangs_are_not_forgotten(redis: Redis, server_url: str) -> None:
    """One after the other: those that had no turn are told as failed, and a required one fails the run."""
    host = Host(redis, server_url, Settings(parallel_storage=False))
    outcomes = []
    for required in (False, True):
        seen, wait = threading.Event(), threading.Event()
        hangs = storage(lambda uuid, seen=seen, wait=wait: (seen.set(), wait.wait(10)), "hangs", timeout=3.0)
        run = host.begin(host.chain([], [hangs, storage(lambda uuid: None, "behind", required=required)]))
        thread = threading.Thread(target=run.chain.run, args=(run,), daemon=True)
        thread.start()
        assert seen.wait(5)
        outcomes.append(run.overdue())
        run.abandoned = True
        wait.set()
        thread.join(5)

    delivered, failed = outcomes
    assert delivered.kind == "delivered"
    assert delivered.storage_errors == {
        "hangs": "no answer within 3 s",
        "behind": "not tried, since storage 'hangs' did not answer",
    }
    assert (failed.kind, failed.error) == (
        "failed",
        "storage 'behind' is required and failed: not tried, since storage 'hangs' did not answer",
    )


@pytest.mark.parametrize("required", [False, True])
def test_a_run_that_is_given_up_in_a_storage_is_delivered_unless_it_is_required(
    redis: Redis, server_url: str, required: bool
) -> None:
    """What the storages before it said is kept."""
    host = Host(redis, server_url, Settings(parallel_storage=False))
    seen, wait = threading.Event(), threading.Event()
    late = storage(lambda uuid: (seen.set(), wait.wait(10)), "late", timeout=3.0, required=required)

    outcome = overdue(host, late, seen)
    wait.set()

    if required:
        assert (outcome.kind, outcome.error) == (
            "failed",
            "storage 'late' is required and failed: no answer within 3 s",
        )
    else:
        assert outcome.kind == "delivered"
        assert outcome.storage_errors == {"a": "the bucket is gone", "late": "no answer within 3 s"}


def test_a_claim_that_is_lost_in_a_storage_ends_the_run(host: Host) -> None:
    """There is nothing to deliver, and no dead letter of the storage."""

    def save(uuid: str) -> None:
        raise ClaimLost("recovered")

    assert host.run(host.chain([], [storage(save, "a"), storage(lambda uuid: None, "b")])).kind == "lost"


def test_a_storage_may_push_like_a_link(host: Host) -> None:
    """In whichever thread it runs, its pushes settle with the claim."""
    run = host.begin(host.chain([], [storage(lambda uuid: push("to a", uuid))]))
    two: list[Callable[[str], Any]] = [lambda uuid: push("one", uuid), lambda uuid: push("two", uuid)]
    run_of_two = host.begin(host.chain([], [storage(save, str(i)) for i, save in enumerate(two)]))

    run.chain.run(run)
    run_of_two.chain.run(run_of_two)

    assert run.pushes == [("to a", A)]
    assert sorted(run_of_two.pushes) == [("one", A), ("two", A)]


def test_a_vcon_that_was_deleted_on_its_way_is_saved_nowhere(host: Host) -> None:
    """It fails, and says that the vCon was not there any more."""
    saved: list[str] = []
    delete = link(lambda uuid: host.store.delete(uuid) and uuid, "deletes")

    outcome = host.run(host.chain([delete], [storage(saved.append)]))

    assert outcome.kind == "failed"
    assert f"there is no vCon {A}" in outcome.error
    assert saved == []


def test_a_run_counts_what_its_storages_did(host: Host) -> None:
    """Success and error apart, and how long each took."""
    run = host.begin(host.chain([], [storage(fails, "a"), storage(lambda uuid: None, "b")]))
    run.chain.run(run)

    assert sorted((dict(labels)["backend"], dict(labels)["outcome"]) for _, labels in run.counts) == [
        ("a", "error"),
        ("b", "success"),
    ]
    assert sorted(dict(labels)["backend"] for (_, labels), _ in run.timings) == ["a", "b"]
