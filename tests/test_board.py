"""conserver.board: what threads run, in memory that another process reads."""

from __future__ import annotations

import multiprocessing
from typing import Any

from conserver.board import Board, Entry

CONTEXT = multiprocessing.get_context("spawn")
A = "018f3c5e-0000-8000-8000-00000000000a"


def write(memory: Any) -> None:
    board = Board(2, memory=memory)
    board.take(1, 7, "in", A)
    board.enter(1, b"link 'tag'", 12.5)


def test_another_process_reads_what_a_worker_wrote() -> None:
    """Even if that one has died since."""
    board = Board(2, CONTEXT)

    process = CONTEXT.Process(target=write, args=(board.memory,))
    process.start()
    process.join(30)

    assert board.read() == [Entry(12.5, 7, "in", A, "link 'tag'")]


def test_a_slot_shows_the_claim_only_while_something_runs() -> None:
    """Taken without a deadline, or free again: nothing there to be overdue."""
    board = Board(1, CONTEXT)

    board.take(0, 7, "in", A)
    taken = board.read()
    board.enter(0, b"link 'tag'", 1.0)
    board.enter(0, b"", 2.0)
    running = board.read()
    board.clear(0)

    assert taken == []
    assert running == [Entry(2.0, 7, "in", A, "")]
    assert board.read() == []


def test_the_next_claim_of_a_slot_has_nothing_of_the_one_before() -> None:
    """Who is killed is named rightly."""
    board = Board(1, CONTEXT)
    board.take(0, 7, "a long list name", A)
    board.enter(0, b"link 'with a long name'", 1.0)

    board.take(0, 8, "in", "b")

    assert board.read() == []
    board.enter(0, b"x", 3.0)
    assert board.read() == [Entry(3.0, 8, "in", "b", "x")]


def test_names_of_any_length_fit() -> None:
    """They are cut, and a character that is cut in two is replaced."""
    board = Board(2, CONTEXT)
    board.take(0, 2**62, "ü" * 300, A)
    board.enter(0, ("ä" * 200).encode(), 1.0)

    (entry,) = board.read()

    assert (entry.seq, entry.uuid) == (2**62, A)
    assert (entry.list, entry.what) == ("ü" * 100, "ä" * 50)
