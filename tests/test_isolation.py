"""conserver.isolation: answers from code that may take its process down."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from conserver.isolation import Died, Tell, call, call_each
from tests.waiting import wait_until


def act(order: str) -> str:
    if order.startswith("exit"):
        os._exit(7)
    if order.startswith("sleep"):
        time.sleep(600)
    return order.upper()


def test_answers_come_in_order_whatever_happens_in_between() -> None:
    """A child that dies is replaced, and what is alike to its killer is not tried again."""
    orders = ["a", "exit 1", "b", "exit 2", "sleep", "c"]
    answers = call_each(act, orders, limit_secs=2, alike=lambda order: order.split()[0])

    died = Died("ends its process with exit code 7")
    assert answers == ["A", died, "B", died, Died("takes longer than 2 s"), "C"]


def test_no_items_start_no_process() -> None:
    """An empty config is checked for nothing."""
    assert call_each(act, [], limit_secs=0, alike=str) == []


def test_large_items_and_answers_go_through() -> None:
    """More than a pipe holds."""
    order = "x" * 1_000_000

    assert call_each(act, [order], limit_secs=30, alike=str) == [order.upper()]


def tell_of(order: str, tell: Tell) -> None:
    tell(order[:5])
    if order == "detach":
        away = subprocess.Popen(["sleep", "600"], start_new_session=True)
        copy = os.fork()
        if not copy:
            os.setsid()
            time.sleep(600)
        tell([away.pid, copy])
    if order == "fork":
        copy = os.fork()
        if not copy:
            tell("from the copy")
        os.waitpid(copy, 0)
    if order == "hang":
        time.sleep(600)
    tell(os.environ.get("ONLY", "") + str(len(order)))


def test_a_call_tells_as_it_goes() -> None:
    """What it told before its end counts, and its environment is what it was given."""
    assert call(tell_of, "plain", limit_secs=60, env={"ONLY": "n="}) == (["plain", "n=5"], None)
    assert call(tell_of, "hang", limit_secs=1) == (["hang"], Died("takes longer than 1 s"))


def test_the_copy_that_a_fork_makes_tells_nothing() -> None:
    """It would say everything a second time."""
    assert call(tell_of, "fork", limit_secs=60) == (["fork", "4"], None)


def test_a_large_argument_goes_through() -> None:
    """More than a pipe holds."""
    assert call(tell_of, "x" * 3_000_000, limit_secs=60) == (["xxxxx", "3000000"], None)


def test_nothing_that_was_started_is_left() -> None:
    """Not in a session of its own either."""
    told, died = call(tell_of, "detach", limit_secs=60)

    assert (len(told), died) == (3, None)
    for pid in told[1]:
        wait_until(lambda pid=pid: is_gone(pid))


def is_gone(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
