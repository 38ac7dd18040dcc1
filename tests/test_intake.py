"""conserver.intake: fair by weight, and no chain has every thread."""

from __future__ import annotations

from collections import Counter

import pytest

from conserver import intake as intake_module
from conserver.config import ChainConfig
from conserver.intake import Intake


def chain(name: str, lists: list[str] | None = None, **more: object) -> tuple[ChainConfig, list[str]]:
    lists = lists or [name]
    return ChainConfig(name=name, ingress_lists=tuple(lists), **more), lists


def made(threads: int, *chains: tuple[ChainConfig, list[str]]) -> Intake:
    intake = Intake(threads)
    intake.set_chains(chains)
    return intake


def claim(intake: Intake, free: int, only: set[str] | None = None) -> Counter[str]:
    """One trip in which each list gives all that is wanted, or only those that are named give anything."""
    wanted = intake.wanted(free)
    got = {name: n for name, n in wanted.items() if only is None or name in only}
    intake.took(wanted, got)
    return Counter(got)


def settle(intake: Intake, claims: Counter[str]) -> None:
    for name in claims.elements():
        intake.settled(intake.chain_of(name))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [1000.0]
    monkeypatch.setattr(intake_module.time, "monotonic", lambda: now[0])
    return now


# Weights


@pytest.mark.parametrize(
    "threads",
    [
        1,
        5,
        16,
        64,
    ],
)
def test_weights_are_numbers_of_claims(threads: int) -> None:
    """4 to 1 in 1,000 claims of full lists, however many are claimed at once."""
    intake = made(threads, chain("a", weight=4), chain("b", weight=1))
    total: Counter[str] = Counter()

    while total.total() < 1000:
        claims = claim(intake, threads)
        settle(intake, claims)
        total += claims

    assert total["a"] / total["b"] == pytest.approx(4, rel=0.05)


def test_weights_hold_while_single_threads_come_free() -> None:
    """In a busy worker one thread after the other ends and is given away."""
    intake = made(10, chain("a", weight=4), chain("b", weight=1))
    in_hand, total = Counter[str](), Counter[str]()
    queue: list[str] = []

    for _ in range(1000):
        claims = claim(intake, 10 - in_hand.total())
        in_hand += claims
        total += claims
        queue += claims.elements()
        done = queue.pop(0)
        settle(intake, Counter([done]))
        in_hand -= Counter([done])

    assert total["a"] / total["b"] == pytest.approx(4, rel=0.05)


def test_equal_chains_get_equal_shares() -> None:
    """With no weights in the config nobody goes first for long."""
    intake = made(4, *(chain(name) for name in "abc"))
    total: Counter[str] = Counter()

    for _ in range(300):
        claims = claim(intake, 4)
        settle(intake, claims)
        total += claims

    assert max(total.values()) - min(total.values()) <= 4


def test_a_chain_that_had_nothing_to_do_saves_up_no_turns() -> None:
    """After a long rest it gets its share, not all that it had missed."""
    intake = made(4, chain("a"), chain("b"))
    for _ in range(1000):
        settle(intake, claim(intake, 4, only={"a"}))
        intake.look(["a", "b"])

    total: Counter[str] = Counter()
    for _ in range(50):
        claims = claim(intake, 4)
        settle(intake, claims)
        total += claims

    assert abs(total["a"] - total["b"]) <= 6


@pytest.mark.parametrize(
    "threads",
    [
        1,
        4,
    ],
)
def test_after_a_rest_of_all_they_begin_side_by_side(threads: int) -> None:
    """What one has done alone before is not held against it when work comes for both in the same moment."""
    intake = made(threads, chain("a"), chain("b"))
    for only in [{"a"}] * 1000 + [set()]:
        settle(intake, claim(intake, threads, only=only))
        intake.look(["a"])
    claim(intake, threads, only=set())
    intake.look(["a", "b"])

    total: Counter[str] = Counter()
    while total.total() < 50:
        claims = claim(intake, threads)
        settle(intake, claims)
        total += claims

    assert abs(total["a"] - total["b"]) <= 6


def test_an_empty_list_costs_the_others_nothing() -> None:
    """One chain alone has all its threads busy, but for those kept for a chain that may wake up."""
    intake = made(8, chain("a"), chain("b"))
    claim(intake, 8, only={"a"})

    claims = claim(intake, 4, only={"a"})

    assert claims["a"] >= 3


# Threads


def test_a_slow_chain_never_has_every_thread() -> None:
    """Its claims do not end; another that gets work finds a free thread at once."""
    intake = made(8, chain("slow"), chain("quick"))
    taken = 0
    for _ in range(20):
        taken += claim(intake, 8 - taken, only={"slow"})["slow"]
        intake.look(["slow", "quick"])

    assert taken < 8
    assert claim(intake, 8 - taken)["quick"] >= 1


def test_a_slow_chain_leaves_threads_to_those_that_have_nothing_to_do() -> None:
    """It is alone with work and takes what it may; the other has none, and may have some the next moment."""
    intake = made(8, chain("slow"), chain("quick"))
    taken = 0
    for _ in range(20):
        taken += claim(intake, 8 - taken, only={"slow"})["slow"]
        intake.look(["slow"])

    assert taken == 7
    intake.look(["quick"])
    assert claim(intake, 1) == {"quick": 1}


def test_with_work_for_both_a_slow_chain_keeps_to_its_share() -> None:
    """Half of the threads go on serving the other."""
    intake = made(8, chain("slow"), chain("quick"))
    slow = 0

    for _ in range(50):
        claims = claim(intake, 8 - slow)
        slow += claims["slow"]
        settle(intake, Counter(quick=claims["quick"]))

    assert slow == 4


def test_one_thread_serves_all_chains_in_turn() -> None:
    """With a single thread there is nothing to keep free."""
    intake = made(1, chain("a"), chain("b"))
    order = []

    for _ in range(6):
        claims = claim(intake, 1)
        settle(intake, claims)
        order += claims.elements()

    assert Counter(order) == {"a": 3, "b": 3}


def test_a_chain_keeps_to_its_own_concurrency() -> None:
    """However many threads are free."""
    intake = made(8, chain("a", concurrency=2))

    first, second = claim(intake, 8), claim(intake, 6)
    settle(intake, Counter(a=1))

    assert (first["a"], second["a"]) == (2, 0)
    assert claim(intake, 7)["a"] == 1


def test_nothing_is_wanted_without_a_free_thread() -> None:
    """Claims are never more than what can run: there is no prefetch."""
    intake = made(4, chain("a"), chain("b"))

    for free in range(1, 5):
        wanted = intake.wanted(free)
        intake.took(wanted, {})
        intake.look(["a", "b"])
        assert sum(wanted.values()) <= free
    assert intake.wanted(0) == {}


# Lists


def test_the_lists_of_a_chain_take_turns() -> None:
    """The first in the config is not the only one that is served."""
    intake = made(1, chain("a", ["one", "two", "three"]))
    order = []

    for _ in range(6):
        claims = claim(intake, 1)
        settle(intake, claims)
        order += claims.elements()

    assert Counter(order) == {"one": 2, "two": 2, "three": 2}


def test_threads_are_shared_among_the_lists_of_a_chain() -> None:
    """As evenly as they divide."""
    assert sorted(made(8, chain("a", ["one", "two", "three"])).wanted(8).values()) == [2, 3, 3]


def test_an_empty_list_is_not_asked_again_until_something_may_be_in_it(clock: list[float]) -> None:
    """The watch says when; and now and then it is asked in any case."""
    intake = made(2, chain("a", ["one", "two"]))
    claim(intake, 2, only=set())

    asked = intake.wanted(2)
    empty = intake.empty()
    intake.look(["two"])
    after_the_watch = intake.wanted(2)
    intake.took(after_the_watch, {})
    clock[0] += intake_module.LOOK_AGAIN_SECS

    assert (asked, sorted(empty), after_the_watch) == ({}, ["one", "two"], {"two": 2})
    assert intake.wanted(2).keys() == {"one", "two"}


def test_a_list_that_gave_less_than_wanted_is_empty(clock: list[float]) -> None:
    """No second question about what the first has answered."""
    intake = made(4, chain("a"))
    wanted = intake.wanted(4)
    intake.took(wanted, {"a": 1})

    assert intake.wanted(3) == {}
    assert intake.empty() == ["a"]


def test_a_list_that_cannot_be_read_is_news_once(clock: list[float]) -> None:
    """It is left alone for a while, is not watched, and is news again after it has worked."""
    intake = made(2, chain("a", ["bad", "good"]))

    news = [intake.rest("bad", 5.0), intake.rest("bad", 5.0)]
    wanted, watched = intake.wanted(2), intake.empty()
    clock[0] += 5.0
    intake.took({"bad": 1}, {"bad": 1})

    assert (news, wanted, watched) == ([True, False], {"good": 2}, [])
    assert intake.rest("bad", 5.0)


# Pauses and reloads


def test_a_paused_chain_gets_nothing_and_the_others_go_on() -> None:
    """Until it is resumed."""
    intake = made(4, chain("a"), chain("b"))
    intake.set_paused(["a"])

    during = claim(intake, 4)
    settle(intake, during)
    intake.set_paused([])

    assert during.keys() == {"b"}
    assert not intake.paused("a")
    assert claim(intake, 4).keys() == {"a", "b"}


def test_a_probe_lets_one_claim_through() -> None:
    """Not one a thread, and not one a trip."""
    intake = made(4, chain("a", ["one", "two"]))
    intake.set_paused(["a"])
    intake.probe("a")

    claims = [claim(intake, 4), claim(intake, 3)]

    assert [c.total() for c in claims] == [1, 0]
    assert intake.paused("a")


def test_a_probe_of_an_empty_list_waits_for_the_first_that_comes() -> None:
    """An empty answer uses nothing up, and the list is watched."""
    intake = made(2, chain("a"))
    intake.set_paused(["a"])
    intake.probe("a")

    nothing = claim(intake, 2, only=set())
    watched = intake.empty()
    intake.look(["a"])

    assert (nothing.total(), watched) == (0, ["a"])
    assert claim(intake, 2).total() == 1


def test_what_is_in_hand_counts_after_a_reload() -> None:
    """Of a chain that changed, and of one that is gone."""
    intake = made(4, chain("a", concurrency=2), chain("gone"))
    claim(intake, 4)
    intake.set_paused(["a"])

    intake.set_chains([chain("a", ["new"], concurrency=2)])
    intake.settled("gone")
    paused = intake.paused("a")
    intake.set_paused([])

    assert paused
    assert intake.lists() == ["new"]
    assert claim(intake, 2).total() == 0
    assert intake.chain_of("new") == "a"


def test_a_chain_that_comes_while_it_is_paused_is_paused() -> None:
    """The pause is known before its config is, and outlasts a reload."""
    intake = Intake(4)
    intake.set_paused(["a"])

    intake.set_chains([chain("a"), chain("b")])
    first = intake.wanted(4)
    intake.set_chains([chain("a"), chain("b")])

    assert (list(first), list(intake.wanted(4))) == (["b"], ["b"])
    assert intake.paused("a")
