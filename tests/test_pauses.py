"""conserver.pauses: a chain that fails the same way again and again stops, instead of emptying its queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from conserver.chain import Chain
from conserver.config import ChainConfig
from conserver.intake import Intake
from conserver.outcomes import settlement
from conserver.pauses import LONGEST_PAUSE_SECS, Pauses, signature
from conserver.queue import Queue
from conserver.run import Outcome, Run
from tests.runs import A, Host
from tests.server_moods import read_only
from tests.waiting import wait_until


@pytest.fixture
def host(redis: Redis, server_url: str) -> Host:
    return Host(redis, server_url)


class Worker:
    """What a worker does about pauses, without its process."""

    def __init__(self, host: Host, pause_after: int = 3, first_secs: float = 30.0) -> None:
        self.host = host
        self.chain: Chain = host.chain(pause_after=pause_after)
        self.intake = Intake(4)
        self.intake.set_chains([(ChainConfig(name="main", ingress_lists=("in",)), ["in"])])
        self.pauses = Pauses(host.queue, self.intake, first_secs)

    def end(self, outcome: Outcome) -> Run:
        """Have a new claim end with *outcome*, unless its chain's pause spares it."""
        run = self.host.begin(self.chain)
        run.outcome = self.pauses.spare(run, outcome)
        self.host.session.trip([settlement(run, run.outcome, "host:1")], {})
        run.settled = True
        self.pauses.note(run)
        self.host.redis.delete("conserver:{in}:returned")
        return run

    def look(self) -> list[str]:
        """What its reporting thread does once a second."""
        paused, probes = self.pauses.look()
        self.pauses.set(paused, probes)
        return probes


@pytest.fixture
def worker(host: Host) -> Worker:
    return Worker(host)


def failed(error: str = "401 Unauthorized", link: str = "openai") -> Outcome:
    return Outcome("failed", A, error, link)


def paused(queue: Queue) -> dict[str, Any]:
    return queue.paused().get("main", {})


def test_equal_failures_in_a_row_pause_the_chain(worker: Worker, host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """For all workers and to be seen, with the cause and when it is tried again."""
    before = host.queue.server_time()

    for _ in range(2):
        worker.end(failed())
    early = paused(host.queue)
    worker.end(failed())

    pause = paused(host.queue)
    assert early == {}
    assert worker.intake.paused("main")
    assert pause["reason"] == "3 equal failures in a row; 401 Unauthorized"
    assert before + 30 <= pause["retry_at"] <= host.queue.server_time() + 30
    assert "chain 'main' is paused for 30 s: 3 equal failures in a row; 401 Unauthorized" in caplog.text


@pytest.mark.parametrize(
    "errors",
    [
        (
            "vCon 018f3c5e-0000-8000-8000-00000000000a has no audio",
            "vCon 018f3c5e-0000-8000-8000-00000000000b has no audio",
        ),
        ("no answer after 3.2 s", "no answer after 11.07 s"),
        ("<Audio at 0x7f3a9c>", "<Audio at 0x7fb211>"),
    ],
)
def test_failures_are_equal_but_for_ids_and_numbers(errors: tuple[str, str]) -> None:
    """What differs from vCon to vCon does not tell one cause from another."""
    one, two = (signature(failed(error)) for error in errors)

    assert one == two
    assert one is not None


def test_different_failures_pause_nothing(worker: Worker, host: Host) -> None:
    """Many bad vCons are no broken service; neither are equal words of two links."""
    for n in range(9):
        worker.end(failed(f"bad {'abc'[n % 3]}"))
        worker.end(failed("same", link=f"l{n % 2}"))

    assert paused(host.queue) == {}


@pytest.mark.parametrize("good", [Outcome("delivered", A), Outcome("stopped", A, link="sieve")])
def test_one_success_ends_the_row(worker: Worker, host: Host, good: Outcome) -> None:
    """The service works for some."""
    for outcome in (failed(), failed(), good, failed(), failed()):
        worker.end(outcome)

    assert paused(host.queue) == {}


def test_failures_without_a_link_pause_nothing(worker: Worker, host: Host) -> None:
    """A list full of UUIDs without vCons is emptied into the DLQ, as it should be."""
    for _ in range(9):
        worker.end(failed("there is no vCon", link=""))

    assert paused(host.queue) == {}


def test_pauses_can_be_switched_off(host: Host) -> None:
    """`pause_after: 0` means never."""
    worker = Worker(host, pause_after=0)

    for _ in range(30):
        worker.end(failed())

    assert paused(host.queue) == {}


def test_what_was_in_hand_when_the_pause_came_is_given_back(worker: Worker, host: Host) -> None:
    """If it fails for the same cause; another failure is its own."""
    for _ in range(3):
        worker.end(failed())

    same, other = worker.end(failed()), worker.end(failed("bad audio"))

    assert (same.ending, other.ending) == ("returned", "dead")
    assert host.queue.dead_count("in") == 4


def test_what_a_pause_gives_back_is_not_counted(worker: Worker) -> None:
    """What was in hand has run into the trouble of everybody, however often."""
    for _ in range(3):
        worker.end(failed())

    assert worker.end(failed()).claim.returns == 0


def test_a_pause_reaches_other_workers(worker: Worker, host: Host, server_url: str) -> None:
    """At their next look; and so does its end."""
    other = Worker(Host(host.redis, server_url))
    for _ in range(3):
        worker.end(failed())

    other.look()
    during = other.intake.paused("main"), other.end(failed()).ending
    host.queue.resume("main")
    other.look()
    worker.look()

    assert during == (True, "returned")
    assert not other.intake.paused("main")
    assert not worker.intake.paused("main")


# Trying again


def pause(worker: Worker, secs: float = 30.0) -> None:
    """Pause the chain, and let its time be over."""
    for _ in range(3):
        worker.end(failed())
    entry = paused(worker.host.queue)
    worker.host.queue.pause("main", entry | {"retry_at": worker.host.queue.server_time() - 1, "secs": secs})


def test_nothing_is_tried_before_its_time(worker: Worker) -> None:
    """By the server's clock."""
    for _ in range(3):
        worker.end(failed())

    assert worker.look() == []
    assert worker.intake.wanted(4) == {}


def test_one_worker_tries_one_claim(worker: Worker, host: Host, server_url: str) -> None:
    """All others wait for what becomes of it."""
    other = Worker(Host(host.redis, server_url))
    pause(worker)

    probes = [worker.look(), other.look(), worker.look()]

    assert probes == [["main"], [], []]
    assert worker.intake.wanted(4) == {"in": 1}
    assert other.intake.wanted(4) == {}


def test_a_probe_that_goes_well_ends_the_pause(worker: Worker, host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """The chain goes on, and a later row of failures starts at one."""
    pause(worker)
    worker.look()

    worker.end(Outcome("delivered", A))

    assert paused(host.queue) == {}
    assert not worker.intake.paused("main")
    assert "chain 'main' works again and goes on" in caplog.text
    worker.end(failed())
    assert paused(host.queue) == {}


def test_a_probe_that_fails_doubles_the_pause_and_gives_the_vcon_back(worker: Worker, host: Host) -> None:
    """With the first cause and since when, up to the longest pause."""
    pause(worker)
    first = paused(host.queue)
    worker.look()

    run = worker.end(failed())

    again = paused(host.queue)
    assert run.ending == "returned"
    assert again["secs"] == 60
    assert (again["reason"], again["since"], again["signature"]) == (
        first["reason"],
        first["since"],
        first["signature"],
    )
    assert again["retry_at"] > host.queue.server_time() + 55
    assert host.queue.dead_count("in") == 3


def test_a_pause_does_not_double_for_ever(worker: Worker, host: Host) -> None:
    """An hour later it is still tried every ten minutes."""
    pause(worker, secs=LONGEST_PAUSE_SECS - 1)
    worker.look()

    worker.end(failed())

    assert paused(host.queue)["secs"] == LONGEST_PAUSE_SECS


def test_a_probe_that_never_came_back_is_tried_again_by_others(host: Host) -> None:
    """Its worker may have died."""
    worker = Worker(host, first_secs=0.05)
    pause(worker, secs=0.05)

    first = worker.look()

    assert first == ["main"]
    wait_until(worker.look)


def test_a_pause_of_an_operator_is_ended_by_an_operator(worker: Worker, host: Host) -> None:
    """Without a time to try again nobody tries; failures in hand are not spared."""
    host.queue.pause("main", {"reason": "maintenance"})

    probes = worker.look()

    assert probes == []
    assert worker.intake.wanted(4) == {}
    assert worker.end(failed()).ending == "dead"


def test_a_pause_of_an_operator_is_not_replaced(worker: Worker, host: Host) -> None:
    """Whatever else would pause the chain: it would be tried again, which the operator did not want."""
    host.queue.pause("main", {"reason": "maintenance"})
    worker.look()

    worker.pauses.pause(worker.chain, "dead letters are refused")

    assert paused(host.queue) == {"reason": "maintenance"}


def test_a_pause_that_cannot_be_written_holds_here(
    worker: Worker, redis: Redis, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """The server is in trouble as well; at least this worker stops."""
    runs: list[Callable[[], Run]] = [lambda: worker.end(failed())] * 2
    for run in runs:
        run()
    last = host.begin(worker.chain)
    last.outcome = failed()
    settlement(last, last.outcome, "host:1")

    with read_only(redis):
        worker.pauses.note(last)

    assert worker.intake.paused("main")
    assert "the pause of chain 'main' is known to this worker only" in caplog.text
