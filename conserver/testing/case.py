"""A storage under test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from conserver.ambient import Work, working
from conserver.components import Storage
from conserver.differences import difference, short
from conserver.store import VconStore
from conserver.testing.calls import uuid_of
from conserver.vcon import Vcon


class Backend(Protocol):
    """The server of a storage: `stop` kills it, `start` brings it back with what it has stored."""

    def stop(self) -> object:
        """Kill it, and return when nobody answers any more."""

    def start(self) -> object:
        """Start it again at the same place, and return when it answers."""


@dataclass(frozen=True)
class Case:
    """A storage with its options, and a store with the vCons that it is to save."""

    storage: Storage
    store: VconStore
    backend: Backend | None
    secrets: tuple[str, ...]
    timeout_secs: float

    @contextmanager
    def chain(self) -> Iterator[None]:
        """Be in a chain while the block runs."""
        with working(Work(self.store.writer())):
            yield

    def put(self, vcon: Vcon) -> str:
        """Store the vCon as the one to save, and save it."""
        self.store.create(vcon, replace=True)
        with self.chain():
            self.storage.save(uuid_of(vcon), self.storage.options)
        return uuid_of(vcon)

    def get(self, uuid: str) -> Any:
        """Ask the storage for a vCon."""
        return self._function("get")(uuid, self.storage.options)

    def delete(self, uuid: str) -> Any:
        """Delete a vCon from the storage."""
        return self._function("delete")(uuid, self.storage.options)

    def ping(self) -> None:
        """Ask the storage whether it works."""
        self._function("ping")(self.storage.options)

    def uuids(self, after: str = "") -> list[str]:
        """Ask the storage for what it holds behind *after*."""
        return list(self._function("list_uuids")(self.storage.options, after))

    def _function(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] | None = getattr(self.storage, name)
        if function is None:
            raise TypeError(f"{self.storage.module} has no {name}")
        return function

    def keeps(self, vcon: Vcon) -> str:
        """Save the vCon and see that what comes back is the same JSON value."""
        uuid = self.put(vcon)
        self.holds(vcon)
        return uuid

    def holds(self, vcon: Vcon) -> None:
        """See that the storage has this vCon, the same JSON value."""
        found = self.get(uuid_of(vcon))
        must(isinstance(found, dict), f"get returned {short(found)} for a vCon that was saved")
        changed = difference(vcon.document, found)
        must(not changed, f"what get returned is not what was saved: {changed}")


def must(holds: bool, message: str) -> None:
    """Raise AssertionError with *message* unless something holds."""
    if not holds:
        raise AssertionError(message)
