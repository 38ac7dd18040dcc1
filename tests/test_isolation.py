"""conserver.isolation: answers from code that may take its process down."""

from __future__ import annotations

import os
import time

from conserver.isolation import Died, call_each


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
