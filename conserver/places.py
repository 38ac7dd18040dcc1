"""Storages as places of their own, outside of a chain: what can be asked of one, and done with one vCon there.

Each call has its time and is left behind when that is over; see storage_calls. `verifying` and `copying` say what is
done with many vCons.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from queue import SimpleQueue
from typing import Any, NoReturn, TypeVar

from conserver.ambient import Work, working
from conserver.components import Storage
from conserver.config import Config, load_config
from conserver.errors import ConfigError, ConserverError, ServerError, StorageError, VconNotFound
from conserver.findings import did_you_mean
from conserver.run import SAVE_ROUNDS
from conserver.settings import Settings
from conserver.storage_calls import StorageCall
from conserver.store import VconStore
from conserver.vcon import Vcon
from conserver.vcon_forms import is_uuid
from conserver.vcon_json import copied
from conserver.workload import load_storages
from conserver.writer import Writer

T = TypeVar("T")
Item = TypeVar("Item")

#: So many failures in a row are not about these vCons, unless `ping` says that the storage works.
MOST_IN_A_ROW = 5
#: For a page of the list of all that a storage holds, which it may have to look for.
LISTING_SECS = 600.0
_PAGE = 200


class PlaceDown(ConserverError):
    """A storage fails again and again, so the others would fail as well."""


class Place:
    """One storage, asked from outside of a chain; safe for many threads.

    What it cannot do is a StorageError that names it, without its secrets. After several failures in a row of which its
    `ping` does not say that they mean nothing, PlaceDown.
    """

    def __init__(self, storage: Storage, store: VconStore, timeout_secs: float) -> None:
        """*timeout_secs* is for a call of a storage that has no timeout of its own."""
        self.storage = storage
        self.name = storage.name
        self._store = store
        self._timeout_secs = timeout_secs
        self._counting = threading.Lock()
        self._in_a_row = Counter[str]()

    def get(self, uuid: str) -> dict[str, Any] | None:
        """Return the document, or None if it is not there."""
        found: dict[str, Any] | None = self._ask("get", self._function("get"), uuid)
        if found is None:
            return None
        if not isinstance(found, dict) or str(Vcon(found).uuid).lower() != uuid.lower():
            raise StorageError(f"storage {self.name!r}: get({uuid}) returned what is not this vCon")
        return found

    def put(self, uuid: str, document: dict[str, Any]) -> bool:
        """Let it save this very document, which goes past Redis; False if the vCon was erased meanwhile, here as well.

        If that takes too long, it may end later, when a newer version has been saved: then Redis keeps its copy.
        """
        given_up = threading.Event()

        def save(uuid: str, options: Any) -> bool:
            with working(Work(_Given(self._store, uuid, document))):
                self.storage.save(uuid, options)
            if self._store.is_erased(uuid):
                self._take_back(uuid)
                return False
            if given_up.is_set():
                self._store.keep(uuid)
            return True

        try:
            return bool(self._ask("save", save, uuid))
        except StorageError:
            given_up.set()
            raise

    def _take_back(self, uuid: str) -> None:
        if self.storage.delete is None:
            raise StorageError(f"vCon {uuid} was deleted meanwhile, and {self.storage.module} has no delete")
        self.storage.delete(uuid, self.storage.options)

    def put_newest(self, uuid: str) -> None:
        """Let it save what Redis holds, until that is what was saved; VconNotFound if Redis does not hold the vCon."""
        for _ in range(SAVE_ROUNDS):
            text = self._store.text(uuid)
            if text is None:
                raise VconNotFound(f"vCon {uuid} is not in Redis any more")
            self.put(uuid, Vcon.parse(text).document)
            if self._store.text(uuid) == text:
                return
        raise StorageError(f"vCon {uuid} is changed all the time")

    def delete(self, uuid: str) -> bool | None:
        """Delete the vCon there and nowhere else; None if the storage does not say whether there was one.

        Redis keeps its copy, if it has one: it may have been about to expire, since this storage held the vCon.
        """
        delete = self._function("delete")
        self._store.keep(uuid)
        answer = self._ask("delete", delete, uuid)
        return None if answer is None else bool(answer)

    def ping(self) -> bool:
        """Return True if it says that it works, False if it has no `ping`; StorageError if it does not work."""
        if self.storage.ping is None:
            return False
        self._ping_call().result()
        return True

    def _ping_call(self) -> StorageCall:
        ping: Any = self.storage.ping
        return StorageCall(self.storage, lambda _, options: ping(options), "", self._timeout_secs)

    def uuids(self, after: str = "") -> Iterator[tuple[list[str], str]]:
        """Yield the UUIDs of all that it holds, in order, some at a time, each time with where to go on behind them.

        From behind *after* on; it may have what is no UUID, which is left out.
        """
        list_uuids: Any = self._function("list_uuids")
        listing = replace(self.storage, timeout=LISTING_SECS)
        iterator: list[Iterator[str]] = []

        def some(after: str, options: Any) -> list[str]:
            if not iterator:
                iterator.append(iter(list_uuids(options, after)))
            return list(islice(iterator[0], _PAGE))

        while page := self._told(StorageCall(listing, some, after, LISTING_SECS).result):
            if [after, *page] != sorted({after, *page}):
                raise StorageError(f"storage {self.name!r}: list_uuids must name each vCon once, and in order")
            after = page[-1]
            yield [uuid for uuid in page if is_uuid(uuid)], after

    def _function(self, name: str) -> Callable[[str, Any], Any]:
        function: Callable[[str, Any], Any] | None = getattr(self.storage, name)
        if function is None:
            raise StorageError(f"storage {self.name!r}: {self.storage.module} has no {name}")
        return function

    def _ask(self, what: str, function: Callable[[str, Any], Any], uuid: str) -> Any:
        try:
            answer = self._told(StorageCall(self.storage, function, uuid, self._timeout_secs).result)
        except StorageError as error:
            self._count(what, error)
            raise
        with self._counting:
            self._in_a_row[what] = 0
        return answer

    def _told(self, result: Callable[[], T]) -> T:
        try:
            return result()
        except StorageError as error:
            if isinstance(error.__cause__, ServerError):
                # Not the storage's doing: Redis went away.
                raise error.__cause__ from None
            raise StorageError(f"storage {self.name!r}: {error}") from error

    def _count(self, what: str, error: StorageError) -> None:
        # Each kind of call by itself: one that is full can be read.
        with self._counting:
            self._in_a_row[what] += 1
            if self._in_a_row[what] < MOST_IN_A_ROW:
                return
            self._in_a_row[what] = 0
        with suppress(StorageError):
            if self.ping():
                return
        raise PlaceDown(f"{MOST_IN_A_ROW} calls in a row have failed, the last one: {error}") from error


class _Given(Writer):
    """Gives the storage that saves the one vCon at hand, and neither reads nor writes Redis."""

    def __init__(self, store: VconStore, uuid: str, document: dict[str, Any]) -> None:
        super().__init__(store, None)
        self._uuid = uuid
        self._document = document

    def get(self, uuid: str) -> Vcon:
        if uuid != self._uuid:
            raise VconNotFound(f"a storage that saves vCon {self._uuid} is not given vCon {uuid}")
        # Of an older draft it stays what it is.
        return Vcon(copied(self._document))

    def _save(self, vcon: Vcon, *, changed: bool, exact: bool = False) -> NoReturn:
        raise StorageError(f"a storage that saves vCon {self._uuid} may not change vCons")

    def delete(self, uuid: str) -> NoReturn:
        raise StorageError(f"a storage that saves vCon {self._uuid} may not delete vCons")


def load_places(
    settings: Settings, store: VconStore, wanted: Sequence[str] = ()
) -> tuple[Config, dict[str, Place], dict[str, str]]:
    """Return the config, its storages (or those *wanted*) that can be used, and why the others cannot.

    ConfigError if the config cannot be used, or has no storage of a name that is wanted.
    """
    config, findings = load_config(settings.config_file)
    if config is None:
        errors = [finding for finding in findings if finding.level == "error"]
        raise ConfigError(f"the storages cannot be looked up: {errors[0]}")
    for name in wanted:
        if name not in config.storages:
            raise ConfigError(f"{config.file} has no storage {name!r}{did_you_mean(name, config.storages)}")
    names = list(dict.fromkeys(wanted)) or list(config.storages)
    usable, broken = load_storages(config)
    places = {name: Place(usable[name], store, settings.storage_timeout_secs) for name in names if name in usable}
    return config, places, {name: str(broken[name]) for name in names if name in broken}


def ping_all(places: Iterable[Place]) -> dict[str, str | None]:
    """Ask all at the same time; return of each "" if it works, what is wrong, or None if it has no `ping`."""
    calls = {place.name: place._ping_call() if place.storage.ping else None for place in places}
    return {name: None if call is None else _trouble(call) for name, call in calls.items()}


def _trouble(call: StorageCall) -> str:
    try:
        call.result()
    except StorageError as error:
        return str(error)
    return ""


_END = object()


def in_threads(work: Callable[[Item], T], items: Iterable[Item], threads: int) -> Iterator[T]:
    """Yield what *work* returns for each item, as it comes.

    What it raises ends it. Nobody waits for threads that hang when the caller goes.
    """
    todo, taking = iter(items), threading.Lock()
    done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    over = threading.Event()

    def run() -> None:
        try:
            while not over.is_set():
                with taking:
                    item: Any = next(todo, _END)
                if item is _END:
                    break
                done.put((work(item), None))
        except BaseException as error:  # noqa: BLE001  it is raised where the results are waited for
            done.put((None, error))
        done.put((_END, None))

    for _ in range(threads):
        threading.Thread(target=run, name="storages", daemon=True).start()
    try:
        while threads:
            result, error = done.get()
            if error is not None:
                raise error
            if result is _END:
                threads -= 1
            else:
                yield result
    finally:
        over.set()
