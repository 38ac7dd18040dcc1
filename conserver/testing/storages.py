"""What every storage must do, as rules that are checked one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from conserver.components import load_storage
from conserver.config import StorageConfig
from conserver.testing import documents, outages
from conserver.testing.calls import throwaway_store
from conserver.testing.case import Backend, Case

__all__ = [
    "DATA_RULES",
    "LIST_RULES",
    "ONE_WAY_RULES",
    "STORAGE_RULES",
    "UNREACHABLE",
    "Backend",
    "Case",
    "storage_contract",
]

_OPTIONAL = ("get", "delete", "ping", "list_uuids")
UNREACHABLE = "a server that is not there is a StorageError, soon and without secrets"

#: What a rule needs beside `save`: functions of the storage, and things that the caller gives.
_DATA: dict[str, tuple[tuple[str, ...], Callable[[Case], None]]] = {
    "a vCon can be saved": ((), documents.saves),
    "a missing vCon is an error": ((), documents.missing_raises),
    "the options stay as they are": ((), documents.no_options_change),
    "what is saved comes back": (("get",), documents.save_then_get),
    "an unknown UUID is None": (("get",), documents.unknown_is_none),
    "saved twice is one record, the later one": (("get",), documents.saved_twice),
    "a vCon may shrink": (("get",), documents.shrinks),
    "unicode comes back": (("get",), documents.unicode),
    "text that databases dislike comes back": (("get",), documents.awkward_text),
    "numbers come back exactly": (("get",), documents.numbers),
    "unknown members come back": (("get",), documents.unknown_members),
    "a vCon without a usable date comes back": (("get",), documents.undated),
    "a signed vCon comes back as it is": (("get",), documents.signed),
    "5 MB come back": (("get",), documents.large),
    "a deleted vCon is gone": (("get", "delete"), documents.deletes),
    "16 threads may save at once": ((), documents.at_once),
    "16 threads may save one vCon at once": (("get",), documents.one_at_once),
    "ping says that it works": (("ping",), Case.ping),
}
_LIST: dict[str, tuple[tuple[str, ...], Callable[[Case], None]]] = {
    "list_uuids names what is there, in order": (("list_uuids",), documents.lists),
}
_OUTAGES: dict[str, tuple[tuple[str, ...], Callable[[Case], None]]] = {
    UNREACHABLE: (("unreachable",), outages.refuses),
    "wrong credentials are a StorageError, soon and without secrets": (("denied",), outages.refuses),
    "a server that says nothing is a StorageError, in time and without secrets": (("slow",), outages.refuses),
    "ping tells a server that is away, and one that is back": (("backend", "ping"), outages.ping_tells),
    "a server that is killed in the middle of saves and comes back loses nothing": (("backend",), outages.killed),
}
_RULES = _DATA | _OUTAGES | _LIST
DATA_RULES = tuple(_DATA)
"""The rules about what a storage holds, which need nothing but its options."""
STORAGE_RULES = (*_DATA, *_OUTAGES)
"""All rules but LIST_RULES; those about a server that is away need to be given one."""
ONE_WAY_RULES = tuple(rule for rule in STORAGE_RULES if "get" not in _RULES[rule][0])
"""Those of STORAGE_RULES for a storage that cannot give back what it was given."""
LIST_RULES = tuple(_LIST)
"""The rules about `list_uuids`, which few storages have."""


def storage_contract(
    module: str | ModuleType,
    options: Mapping[str, Any] | None = None,
    *,
    rules: Sequence[str] | None = None,
    unreachable: Mapping[str, Any] | None = None,
    denied: Mapping[str, Any] | None = None,
    slow: Mapping[str, Any] | None = None,
    backend: Backend | None = None,
    secrets: Sequence[str] = (),
    timeout_secs: float = 30.0,
) -> list[str]:
    """Check a storage against what every storage must do, and return the rules that were checked.

    AssertionError names the rule that does not hold. *rules* picks some of them. Rules about `get`, `delete`,
    `ping` and `list_uuids` are passed over where the module lacks them, and so are those about trouble for which
    nothing is given: *unreachable*, *denied* and *slow* are options, over the others, that lead to a server which is
    not there, refuses the credentials, or takes the connection and says nothing. *backend* is the server itself, to be
    stopped and started again. Whatever cannot be done must then be a StorageError within *timeout_secs*, and no message
    may hold one of *secrets*; within *timeout_secs* of its start a server must be used again.
    """
    name = module if isinstance(module, str) else module.__name__
    bound = partial(StorageConfig, name="storage", module=name)
    store = throwaway_store()

    def case_of(more: Mapping[str, Any]) -> Case:
        storage = load_storage(bound(options={**(options or {}), **more}))
        return Case(storage, store, backend, tuple(secrets), timeout_secs)

    case = case_of({})
    trouble = {"unreachable": unreachable, "denied": denied, "slow": slow}
    given = trouble | {"backend": backend} | {need: getattr(case.storage, need) for need in _OPTIONAL}
    checked = []
    for rule in _RULES if rules is None else rules:
        needs, check = _RULES[rule]
        if any(given[need] is None for need in needs):
            continue
        try:
            check(next((case_of(trouble[need] or {}) for need in needs if need in trouble), case))
        except Exception as error:
            raise AssertionError(f"{name}: {rule}: {error or type(error).__name__}") from error
        checked.append(rule)
    return checked
