"""Storages of tests that keep vCons in memory, with troubles of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from conserver import Vcon, vcons
from conserver.components import Storage
from conserver.errors import StorageError
from conserver.places import Place
from conserver.store import VconStore
from conserver.testing import two_party_call


class Shelf:
    """A storage in memory: what is in `held` is there, what is in `trouble` fails."""

    def __init__(self, name: str = "shelf", **lacks_or_more: Any) -> None:
        self.name = name
        self.held: dict[str, bytes] = {}
        self.trouble: dict[str, str] = {}
        self.calls: list[str] = []
        self.before_save: Callable[[str], object] = lambda uuid: None
        functions = {name: getattr(self, name) for name in ("get", "delete", "ping", "list_uuids")}
        self.storage = Storage(name, "storages.shelf", self.save, {}, **(functions | lacks_or_more))

    def place(self, store: VconStore, timeout_secs: float = 30.0) -> Place:
        return Place(self.storage, store, timeout_secs)

    def save(self, uuid: str, options: Any) -> None:
        self._check("save", uuid)
        text = vcons.get(uuid).to_bytes()
        self.before_save(uuid)
        self.held[uuid] = text

    def get(self, uuid: str, options: Any) -> dict[str, Any] | None:
        self._check("get", uuid)
        text = self.held.get(uuid)
        return None if text is None else Vcon.parse(text, migrate=False).document

    def delete(self, uuid: str, options: Any) -> bool:
        self._check("delete", uuid)
        return self.held.pop(uuid, None) is not None

    def ping(self, options: Any) -> None:
        self._check("ping", "")

    def list_uuids(self, options: Any, after: str) -> Iterator[str]:
        self._check("list_uuids", after)
        yield from sorted(uuid for uuid in self.held if uuid > after)

    def _check(self, function: str, uuid: str) -> None:
        self.calls.append(f"{function} {uuid}")
        for about in (function, uuid, f"{function} {uuid}"):
            if about in self.trouble:
                raise StorageError(self.trouble[about])

    def put(self, subject: str = "call", **members: Any) -> str:
        """Put a new vCon there, and nowhere else."""
        vcon = two_party_call()
        vcon.document |= {"subject": subject, **members}
        self.held[str(vcon.uuid)] = vcon.to_bytes()
        return str(vcon.uuid)

    def subject(self, uuid: str) -> Any:
        return Vcon.parse(self.held[uuid]).subject


def stored(store: VconStore, subject: str = "call", **members: Any) -> str:
    """Store a new vCon, and return its UUID."""
    vcon = two_party_call()
    vcon.document |= {"subject": subject, **members}
    store.create(vcon)
    return str(vcon.uuid)


class Gate:
    """A place in a storage where calls wait until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self.reached.set()
        assert self.open.wait(60), "nobody has opened the gate"
