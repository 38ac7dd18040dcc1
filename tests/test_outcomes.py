"""conserver.outcomes: from the outcome of a run to its settlement and its log line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from conserver import telemetry
from conserver.claims import Note
from conserver.config import Retry
from conserver.outcomes import Reporter, backoff_secs, settlement
from conserver.queue import MAX_RETURNS
from conserver.run import Outcome, Run
from conserver.settings import Settings
from conserver.store import digest
from tests.runs import A, B, Host, storage
from tests.server_moods import read_only

NOTE = Note(1, "0123456789ab", A)


@pytest.fixture
def host(redis: Redis, server_url: str) -> Host:
    return Host(redis, server_url)


@pytest.fixture
def settle(host: Host) -> Callable[..., Run]:
    """Have a run end with an outcome, on the server."""

    def settle(outcome: Outcome, claim: Any = None, **config: Any) -> Run:
        run = host.begin(host.chain(**({"egress_lists": ("out",)} | config)), claim)
        run.outcome = outcome
        (result,) = host.session.trip([settlement(run, outcome, "host:1")], {}).results
        run.settled = result == 1
        return run

    return settle


def expire(host: Host, commands: list[Any]) -> None:
    """Send what a report wants to be sent, as a worker does with its next trip."""
    Reporter.expired(commands, host.session.trip([], {}, commands).also)


def lists(redis: Redis) -> dict[str, list[bytes]]:
    """What every list of the server holds."""
    return {key.decode(): redis.lrange(key, 0, -1) for key in redis.scan_iter() if redis.type(key) == b"list"}


# Settlements


def test_a_delivered_vcon_goes_to_every_egress_list(redis: Redis, settle: Callable[..., Run]) -> None:
    """Before what its links asked for; and nothing is held any more."""
    outcome = Outcome("delivered", B)

    run = settle(outcome, egress_lists=("out", "also"))

    assert (run.ending, run.settled) == ("delivered", True)
    assert lists(redis) == {"out": [B.encode()], "also": [B.encode()]}
    assert not redis.keys("*held*")


def test_a_stopped_vcon_goes_nowhere_but_where_its_links_sent_it(redis: Redis, host: Host) -> None:
    """A router stops the chain and pushes to another list."""
    run = host.begin(host.chain(egress_lists=("out",)))
    run.pushes.append(("other", A))

    host.session.trip([settlement(run, Outcome("stopped", A, link="router"), "host:1")], {})

    assert run.ending == "stopped"
    assert lists(redis) == {"other": [A.encode()]}


def test_a_failed_save_is_a_dead_letter_of_the_storage(redis: Redis, settle: Callable[..., Run], host: Host) -> None:
    """Of the vCon that was to be saved; it is delivered all the same."""
    settle(Outcome("delivered", B, storage_errors={"s3": "no answer"}))

    ((entry, why),) = host.queue.dead("storage:s3")
    assert lists(redis) == {"out": [B.encode()], "DLQ:storage:s3": [B.encode()]}
    assert entry == B.encode()
    assert {"error": "no answer", "chain": "main", "worker": "host:1"}.items() <= why.items()


def test_a_failed_vcon_is_a_dead_letter(redis: Redis, settle: Callable[..., Run], host: Host) -> None:
    """What was pushed, with the vCon that it had led to and how far it came; what links had pushed is dropped."""
    run = settle(Outcome("failed", B, "link 'tag': bad", "tag", note=NOTE))

    ((entry, why),) = host.queue.dead("in")
    assert run.ending == "dead"
    assert lists(redis) == {"DLQ:in": [A.encode()]}
    assert entry == A.encode()
    assert why.pop("at").endswith("Z")
    assert why == {
        "n": 1,
        "error": "link 'tag': bad",
        "link": "tag",
        "chain": "main",
        "worker": "host:1",
        "uuid": B,
        "note": json.loads(NOTE.to_json()),
    }


def test_a_failure_is_tried_again_as_often_as_configured(redis: Redis, settle: Callable[..., Run], host: Host) -> None:
    """Runs in all, the first included; then it is a dead letter."""
    outcome = Outcome("failed", A, "no", "tag", retry=Retry(attempts=3, backoff_secs=0), note=NOTE)
    endings, notes = [], []
    claim = host.claim()

    for _ in range(3):
        endings.append(settle(outcome, claim).ending)
        if host.queue.wake_due(["in"]):
            (claim,) = host.session.trip([], {"in": 1}).claims
            notes.append(claim.note)

    assert endings == ["delayed", "delayed", "dead"]
    assert notes == [NOTE, NOTE]
    assert lists(redis) == {"DLQ:in": [A.encode()]}


def test_a_service_that_asks_to_be_left_alone_is(redis: Redis, settle: Callable[..., Run]) -> None:
    """The vCon waits in Redis for as long as the service asks, if that is longer than the back-off."""
    settle(Outcome("failed", A, "busy", retry=Retry(attempts=3, backoff_secs=1), wait_secs=50))

    ((_, due),) = redis.zrange("conserver:{in}:delayed", 0, -1, withscores=True)
    assert 45_000 < due - redis.time()[0] * 1000 < 52_000


def test_a_vcon_that_the_server_fails_while_it_works_for_others_is_put_aside(
    redis: Redis, settle: Callable[..., Run]
) -> None:
    """Each time for longer, and it is counted; it keeps nobody busy."""
    outcome = Outcome("returned", A, "too large for the server", server_failed=True)

    run = settle(outcome)

    ((member, due),) = redis.zrange("conserver:{in}:delayed", 0, -1, withscores=True)
    assert (run.ending, run.claim.returns) == ("returned", 1)
    assert member == b"1:1 0 1 0 0\n" + A.encode()
    assert 0 < due - redis.time()[0] * 1000 < 2500
    assert lists(redis) == {}


def test_back_off_doubles_up_to_its_limit() -> None:
    """With a tenth of jitter to both sides, so that equal failures do not come back together."""
    retry = Retry(attempts=99, backoff_secs=10, max_backoff_secs=600)

    for attempt, expected in [(1, 10), (2, 20), (3, 40), (6, 320), (7, 600), (90, 600)]:
        secs = [backoff_secs(retry, attempt) for _ in range(50)]
        assert 0.9 * expected <= min(secs) < max(secs) <= 1.1 * expected


@pytest.mark.parametrize("kind", ["returned", "lost"])
def test_what_is_nobodys_fault_goes_back(redis: Redis, settle: Callable[..., Run], host: Host, kind: str) -> None:
    """Also a claim that is said to be lost: if it is held after all, it must not vanish."""
    run = settle(Outcome(kind, A, "the server was full", note=NOTE))

    (claim,) = host.session.trip([], {"in": 1}).claims
    assert (claim.uuid, claim.returns, claim.note) == (A, 1, NOTE)
    assert (run.ending, lists(redis)) == (kind, {})


def test_what_goes_back_keeps_the_note_that_it_had(settle: Callable[..., Run], host: Host) -> None:
    """An outcome that knows nothing of it takes nothing away."""
    claim = host.claim()
    claim.note = NOTE

    settle(Outcome("lost", A), claim)

    assert host.session.trip([], {"in": 1}).claims[0].note == NOTE


def test_what_comes_back_again_and_again_is_dead_at_last(redis: Redis, settle: Callable[..., Run], host: Host) -> None:
    """With the last cause in its reason."""
    claim = host.claim()
    claim.returns = MAX_RETURNS - 1
    settle(Outcome("returned", A, "gone"), claim)
    (claim,) = host.session.trip([], {"in": 1}).claims

    run = settle(Outcome("returned", A, "still gone"), claim)

    assert run.ending == "dead"
    assert lists(redis) == {"DLQ:in": [A.encode()]}
    assert host.queue.dead("in")[0][1]["error"] == f"it came back {MAX_RETURNS + 1} times; the last time: still gone"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (b"not a uuid", "the entry 'not a uuid' (10 bytes) is not a UUID"),
        (b"\xff\x00\n" * 100, r"the entry '\xff\x00\n\xff\x00\n"),
        (b"", "the entry '' (0 bytes) is not a UUID"),
        (b"vcon:" + A.encode(), f"the entry 'vcon:{A}' (41 bytes) is not a UUID"),
    ],
)
def test_an_entry_that_is_no_uuid_is_a_dead_letter(redis: Redis, host: Host, entry: bytes, words: str) -> None:
    """Byte for byte, with a reason that can be read."""
    run = host.begin(host.chain(), host.claim(entry))
    outcome = Reporter("host:1", host.store, host.settings).unusable(run)

    host.session.trip([settlement(run, outcome, "host:1")], {})

    assert run.uuid == ""
    assert redis.lrange("DLQ:in", 0, -1) == [entry]
    assert host.queue.dead("in")[0][1]["error"].startswith(words)


def test_a_record_of_another_version_is_parked(redis: Redis, host: Host) -> None:
    """It is neither run nor dead."""
    redis.rpush("conserver:{in}:returned", b"9 future")
    (claim,) = host.session.trip([], {"in": 1}).claims
    run = host.begin(host.chain(), claim)

    host.session.trip([settlement(run, Reporter("host:1", host.store, host.settings).unusable(run), "host:1")], {})

    assert lists(redis) == {"conserver:{in}:parked": [b"9 future"]}


# Reports


@pytest.fixture
def reported(host: Host, settle: Callable[..., Run], caplog: pytest.LogCaptureFixture) -> Callable[..., Any]:
    """The log records of a run with this outcome."""

    def report(outcome: Outcome, **more: Any) -> list[logging.LogRecord]:
        run = settle(outcome, **more)
        with caplog.at_level(logging.INFO, "conserver.outcomes"):
            expire(host, Reporter("host:1", host.store, host.settings).report([run]))
        return caplog.records

    return report


@pytest.mark.parametrize(
    ("outcome", "level", "message"),
    [
        (Outcome("delivered", A), "INFO", "delivered"),
        (Outcome("stopped", A), "INFO", "stopped"),
        (
            Outcome("delivered", A, storage_errors={"s3": "x", "file": "y"}),
            "WARNING",
            "delivered, but not saved to s3, file",
        ),
        (Outcome("failed", A, "bad"), "ERROR", "dead letter in DLQ:in: bad"),
        (
            Outcome("failed", A, "bad", retry=Retry(attempts=2)),
            *("WARNING", "failed, to be tried again (attempt 1): bad"),
        ),
        (Outcome("returned", A, "full"), "WARNING", "given back, to run again: full"),
    ],
)
def test_each_vcon_has_one_line_with_its_ids(
    reported: Callable[..., Any], outcome: Outcome, level: str, message: str
) -> None:
    """The ids are fields, so that they can be searched for."""
    (record,) = reported(outcome)

    assert (record.levelname, record.getMessage()) == (level, message)
    assert record.fields.pop("secs") >= 0
    assert record.fields == {"vcon": A, "chain": "main", "list": "in"}


def test_a_claim_that_was_gone_is_told_as_lost(
    host: Host, settle: Callable[..., Run], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts for whoever has it now, and not here."""
    claim = host.claim()
    host.queue.recover("in", "host:1", "returned", limit=b"{}")
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())

    run = settle(Outcome("delivered", A), claim)
    expire(host, Reporter("host:1", host.store, host.settings).report([run]))

    assert not run.settled
    assert [r.getMessage() for r in caplog.records] == [
        "not settled, since the claim was taken from this worker: delivered"
    ]
    assert telemetry.metrics.snapshot()["counters"] == {}


def test_an_unexpected_error_is_logged_with_its_traceback(reported: Callable[..., Any]) -> None:
    """Who has to mend the link sees where."""
    (record,) = reported(Outcome("failed", A, "ValueError: bad", traceback="File links/mine.py"))

    assert record.fields["traceback"] == "File links/mine.py"


def test_what_was_settled_is_counted(host: Host, settle: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """By list, by chain and outcome, and once."""
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())

    Reporter("host:1", host.store, host.settings).report(
        [settle(Outcome("delivered", A)), settle(Outcome("failed", B))]
    )

    counters = {f"{name} {dict(labels)}": n for (name, labels), n in telemetry.metrics.snapshot()["counters"].items()}
    assert counters == {
        "conserver.main_loop.count_vcons_received {'ingress_list': 'in'}": 2,
        "conserver.main_loop.count_vcons_processed {'chain_name': 'main', 'outcome': 'delivered'}": 1,
        "conserver.main_loop.count_vcons_processed {'chain_name': 'main', 'outcome': 'dead'}": 1,
        "conserver.dlq.count {'queue_name': 'DLQ:in'}": 1,
    }


# Expiry


def expires(host: Host, run: Run, uuid: str = A, **settings: Any) -> int:
    """The seconds that the copy in Redis has left after the report; -1 for ever."""
    expire(host, Reporter("host:1", host.store, Settings(**settings)).report([run]))
    return int(host.redis.ttl(f"vcon:{uuid}"))


def test_only_what_storages_hold_expires(host: Host, settle: Callable[..., Run]) -> None:
    """That very version, after `VCON_REDIS_EXPIRY`; 0 means never."""
    host.begin(host.chain())
    version = digest(host.redis.get(f"vcon:{A}"))

    assert expires(host, settle(Outcome("delivered", A))) == -1
    assert expires(host, settle(Outcome("delivered", A, version="another"))) == -1
    assert expires(host, settle(Outcome("delivered", A, version=version)), redis_expiry_secs=0) == -1
    assert expires(host, settle(Outcome("delivered", A, version=version)), redis_expiry_secs=60) in (59, 60)


def test_a_link_sets_when_what_storages_hold_expires(host: Host, settle: Callable[..., Run]) -> None:
    """In place of the setting; without storages it is the operator's own order."""
    run = settle(Outcome("delivered", A, version=digest(host.text(A))))
    run.expire_secs = 7
    alone = settle(Outcome("delivered", B))
    alone.expire_secs = 9

    assert expires(host, run) in (6, 7)
    assert expires(host, alone, B) in (8, 9)


def test_a_link_cannot_let_expire_what_a_storage_failed_to_save(host: Host) -> None:
    """The copy in Redis is the only one."""
    run = host.begin(host.chain([], [storage(lambda uuid: None)]))
    run.expire_secs, run.settled, run.ending = 7, True, "delivered"
    run.outcome = Outcome("delivered", A, storage_errors={"s3": "gone"})

    assert expires(host, run) == -1


def test_dead_letters_keep_their_vcons_unless_told_otherwise(host: Host, settle: Callable[..., Run]) -> None:
    """They are needed for the retry."""
    assert expires(host, settle(Outcome("failed", A))) == -1
    assert expires(host, settle(Outcome("failed", A)), dlq_expiry_secs=60) in (59, 60)


def test_an_expiry_that_the_server_refuses_costs_memory_only(
    redis: Redis, host: Host, settle: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    """The vCon is settled; it is told how many stay."""
    run = settle(Outcome("delivered", A, version=digest(host.text(A))))

    with read_only(redis):
        expire(host, Reporter("host:1", host.store, host.settings).report([run]))

    assert "1 vCons stay in Redis that could have expired" in caplog.text


def test_a_stop_leaves_the_expiry_as_it_was(redis: Redis, host: Host) -> None:
    """A claim keeps the vCon; a chain that stops has changed nothing, so it goes when it would have gone."""
    redis.set(f"vcon:{A}", host.text(A), ex=1000)
    run = host.begin(host.chain())
    kept = redis.ttl(f"vcon:{A}")
    run.outcome = Outcome("stopped", A)
    (result,) = host.session.trip([settlement(run, run.outcome, "host:1")], {}).results
    run.settled = result == 1

    assert kept == -1
    assert 990 < expires(host, run) <= 1000
