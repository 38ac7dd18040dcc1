"""Rules about a server that is away, refuses, says nothing, or is killed in the middle of saves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar

from conserver.differences import short
from conserver.errors import StorageError
from conserver.testing.calls import two_party_call, uuid_of
from conserver.testing.case import Backend, Case, must
from conserver.vcon import Vcon

T = TypeVar("T")

_THREADS = 4
#: So many saves succeed before the server is killed, so that every thread has a connection.
_SAVES_BEFORE = 12


def refuses(case: Case) -> None:
    """Nothing of what the storage can do succeeds, and each says so."""
    uuid = uuid_of(two_party_call())
    _must_fail(case, "save", partial(case.put, two_party_call(uuid)))
    for name, call in (("get", case.get), ("delete", case.delete)):
        if getattr(case.storage, name) is not None:
            _must_fail(case, name, partial(call, uuid))
    for name, ask in (("ping", case.ping), ("list_uuids", case.uuids)):
        if getattr(case.storage, name) is not None:
            _must_fail(case, name, ask)


def ping_tells(case: Case) -> None:
    """A `ping` fails while the server is away, and works when it is back."""
    backend = _backend(case)
    case.ping()
    backend.stop()
    try:
        _must_fail(case, "ping", case.ping)
    finally:
        backend.start()
    _in_time(case, case.ping)


def killed(case: Case) -> None:
    """What was saved is there, what failed says so and can be saved again, and nothing is there by halves."""
    backend = _backend(case)
    saved: list[Vcon] = []
    tried = threading.Semaphore(0)
    over = threading.Event()

    def keep_saving() -> Vcon | None:
        while not over.is_set():
            vcon = _long_call()
            try:
                _timed(case, "save", partial(case.put, vcon))
            except StorageError as error:
                _must_tell_no_secret(case, error)
                return vcon
            finally:
                tried.release()
            saved.append(vcon)
        return None

    with ThreadPoolExecutor(_THREADS) as threads:
        running = [threads.submit(keep_saving) for _ in range(_THREADS)]
        try:
            for _ in range(_SAVES_BEFORE):
                tried.acquire(timeout=case.timeout_secs)
            must(not any(one.done() for one in running), "a save failed before the server was killed")
            backend.stop()
            try:
                wait(running, case.timeout_secs)
                must(all(one.done() for one in running), "save raised nothing although the server was killed")
            finally:
                backend.start()
        finally:
            over.set()
    failed = [vcon for one in running if (vcon := one.result()) is not None]
    for vcon in failed:
        if case.storage.get is not None:
            found = _in_time(case, partial(case.get, uuid_of(vcon)))
            must(found in (None, vcon.document), f"a save that failed left {short(found)}")
        _in_time(case, partial(case.put, vcon))
    for vcon in [*saved, *failed]:
        if case.storage.get is not None:
            case.holds(vcon)


def _long_call() -> Vcon:
    # Some hundred packets: where a kill meets it, it is under way.
    vcon = two_party_call()
    vcon.dialog[0].update(body="QUJD" * 50_000, encoding="base64url")
    return vcon


def _backend(case: Case) -> Backend:
    if case.backend is None:
        raise TypeError("this rule needs a backend")
    return case.backend


def _must_fail(case: Case, what: str, call: Callable[[], Any]) -> None:
    try:
        _timed(case, what, call)
    except StorageError as error:
        _must_tell_no_secret(case, error)
    else:
        raise AssertionError(f"{what} raised nothing although the server cannot be used")


def _timed(case: Case, what: str, call: Callable[[], Any]) -> None:
    began = time.monotonic()
    try:
        call()
    except StorageError:
        raise
    except Exception as error:
        raise AssertionError(f"{what} raised {type(error).__name__}, not StorageError: {error}") from error
    finally:
        took = time.monotonic() - began
        must(took < case.timeout_secs, f"{what} took {took:.1f} s, more than {case.timeout_secs:g} s")


def _must_tell_no_secret(case: Case, error: BaseException) -> None:
    for each in _causes(error):
        told = any(secret in f"{each} {each!r}" for secret in case.secrets)
        must(not told, f"the message of the error holds a secret ({type(each).__name__})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # A traceback shows them all.
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _in_time(case: Case, call: Callable[[], T]) -> T:
    """Call until it succeeds: a server that is back may need a moment, and a breaker has one of its own."""
    deadline = time.monotonic() + case.timeout_secs
    while True:
        try:
            return call()
        except StorageError as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"{case.timeout_secs:g} s after its start: {error}") from error
        time.sleep(0.05)
