"""conserver.storage_calls: one that hangs is left alone, for as long as it does."""

from __future__ import annotations

import subprocess
import sys
import threading
from itertools import pairwise
from typing import Any

import pytest

from conserver import storage_calls
from conserver.components import Storage
from conserver.errors import StorageError
from conserver.storage_calls import MOST_HANGING, StorageCall
from tests.waiting import wait_until


class Moody:
    """A storage whose calls never end while it hangs."""

    def __init__(self) -> None:
        self.hangs = True
        self.asked = 0
        self.over = threading.Event()
        self.storage = Storage("moody", "storages.moody", self.save, {}, timeout=0.05)

    def save(self, uuid: str, options: Any) -> str:
        self.asked += 1
        if self.hangs:
            self.over.wait(120)
        return "saved"

    def call(self) -> Any:
        return StorageCall(self.storage, self.storage.save, "", 60.0).result()

    def answers(self) -> bool:
        try:
            return bool(self.call() == "saved")
        except StorageError:
            return False


@pytest.fixture
def moody() -> Any:
    one = Moody()
    yield one
    one.over.set()


def test_calls_that_never_end_do_not_keep_a_storage_from_being_asked_again(
    moody: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its old connections may be dead for ever when it works again: now and then one call is let through."""
    monkeypatch.setattr(storage_calls, "FIRST_TRY_SECS", 0.2)
    for _ in range(MOST_HANGING):
        assert not moody.answers()
    with pytest.raises(StorageError, match="it was not asked"):
        moody.call()
    moody.hangs = False
    wait_until(moody.answers, 30)

    assert [moody.answers() for _ in range(20)] == [True] * 20
    assert not moody.over.is_set()


def test_a_storage_that_still_hangs_is_tried_less_and_less_often(moody: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call at a time, so the threads that it costs grow with the logarithm of the time at first."""
    clock = [1000.0]
    monkeypatch.setattr(storage_calls.time, "monotonic", lambda: clock[0])
    storage = Storage("moody", "storages.moody", moody.save, {})
    tries = []

    def enter() -> bool:
        call = storage_calls.under_way(storage, 1.0)
        try:
            call.__enter__()
        except StorageError:
            return False
        left.append(call)
        return True

    left: list[Any] = []
    for _ in range(MOST_HANGING):
        assert enter()
    for second in range(4 * 3600):
        clock[0] = 1002.0 + second
        if enter():
            tries.append(second)

    assert tries[0] >= 29
    assert len(tries) < 16
    assert max(later - earlier for earlier, later in pairwise(tries)) <= 1805
    for call in left:
        call.__exit__(None, None, None)


def test_the_copy_that_a_storage_makes_by_a_fork_goes_no_further() -> None:
    """It would go on with the run, over the connections of its parent."""
    script = """
import os
from conserver.components import Storage
from conserver.storage_calls import under_way

with under_way(Storage("s", "storages.s", print, {}), 60.0):
    os.fork()
print("went on", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)

    assert done.stdout == "went on\n"
