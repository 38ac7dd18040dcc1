"""What authors of links and storages import in their tests.

    from conserver.testing import run_link, storage_contract

    def test_adds_the_tag():
        vcon = run_link("links.tag", {"tags": ["a"]}, times=2)

        assert vcon.tags == ["a:a"]

    def test_keeps_the_contract(tmp_path):
        storage_contract("storages.file", {"path": str(tmp_path)})

With `pytest_plugins = ["conserver.testing"]` in conftest.py, `run_link` is a fixture as well, which looks for vCon
files beside the test. The store is a real one, on a Redis-compatible server of its own that starts with the first use
and ends with the process.
"""

from __future__ import annotations

import atexit
import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from conserver import connection
from conserver.ambient import Work, working
from conserver.components import Storage, load_link, load_storage
from conserver.config import LinkConfig, StorageConfig
from conserver.embedded import temporary_server
from conserver.errors import StorageError, VconNotFound
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.vcon import Vcon

try:
    import pytest
except ImportError:  # `conserver try` runs links where nobody tests
    pytest = None  # type: ignore[assignment]

Given = str | os.PathLike[str] | Mapping[str, Any] | Vcon | None


def two_party_call(uuid: str | None = None) -> Vcon:
    """Return a vCon of a short phone call between two people, with its transcript and nothing else."""
    vcon = Vcon.build_new()
    if uuid:
        vcon.document["uuid"] = uuid
    vcon.document["subject"] = "Broken kettle"
    vcon.add_party({"tel": "+12025550143", "name": "Ada Moss", "type": "person", "role": "agent"})
    vcon.add_party({"tel": "+12025550179", "name": "Ben Reyes", "type": "person", "role": "customer"})
    said = "Good morning, how can I help? -- My kettle does not boil any more. -- I will send you a new one."
    vcon.add_dialog(
        {
            "type": "recording",
            "start": vcon.created_at,
            "duration": 42.5,
            "parties": [0, 1],
            "originator": 1,
            "mediatype": "audio/x-wav",
            "url": "https://recordings.example/kettle.wav",
        }
    )
    vcon.add_analysis(
        type="transcript",
        dialog=0,
        vendor="example",
        body={"transcript": said, "paragraphs": {"transcript": said}},
    )
    return vcon


# Links


@dataclass(frozen=True)
class Trial:
    """What one run of a link did."""

    before: Vcon
    vcon: Vcon
    """The vCon that the chain would go on with; where the link stopped it, the one that it was given."""
    result: str | None
    """What `run` returned: a UUID, or None to stop."""
    pushes: tuple[tuple[str, str], ...]
    """(list, UUID), as the link asked for them; in a chain they are made when it settles."""
    expire_secs: int | None
    """The expiry that the link asked for."""


def run_link(
    module: str | ModuleType, options: Mapping[str, Any] | None = None, *, on: Given = None, times: int = 1
) -> Vcon:
    """Run a link on a vCon and return the vCon that it leaves behind; `try_link` tells more."""
    return try_link(module, options, on=on, times=times).vcon


def try_link(
    module: str | ModuleType,
    options: Mapping[str, Any] | None = None,
    *,
    on: Given = None,
    name: str = "link",
    times: int = 1,
    beside: Path | None = None,
) -> Trial:
    """Run a link on a vCon, with its options bound as in a chain, and return all that came of it.

    *on* is a Vcon, a document, or a file (looked for in the working directory, then in *beside*); by default a call of
    two people. With *times* above 1 it runs that often, as after a crash, and AssertionError tells where a later run
    changed something more. What the link raises comes out as it is.
    """
    name_of_module = module if isinstance(module, str) else module.__name__
    link = load_link(LinkConfig(name=name, module=name_of_module, options=dict(options or {})))
    vcon = _given(on, beside)
    store = throwaway_store()
    store.create(vcon, replace=True)
    trial = None
    for _ in range(times):
        with working(Work(store.writer())) as work:
            result = link.run(_uuid(vcon), name, link.options)
        if result is not None and not isinstance(result, str):
            raise AssertionError(f"{name_of_module}: run must return a UUID or None, not {result!r}")
        after = store.get(result or _uuid(vcon))
        before, trial = trial, Trial(vcon, after, result, tuple(work.pushes), work.expire_secs)
        if before is not None:
            _assert_same(name_of_module, before, trial)
    if trial is None:
        raise ValueError(f"times={times}: must be 1 or more")
    return trial


def _assert_same(module: str, first: Trial, again: Trial) -> None:
    # A vCon that the link built is of the moment of its run.
    times = {"updated_at": None} if first.vcon.uuid == first.before.uuid else {"updated_at": None, "created_at": None}
    changed = difference({**first.vcon.document, **times}, {**again.vcon.document, **times})
    if changed:
        raise AssertionError(f"{module}: a second run changed more: {changed}")
    for what in ("result", "pushes", "expire_secs"):
        one, other = getattr(first, what), getattr(again, what)
        if one != other:
            raise AssertionError(f"{module}: {what} of a second run: {other!r}, of the first: {one!r}")


def difference(one: Any, other: Any, pointer: str = "") -> str:
    """Say where two JSON values first differ, as `/analysis/1: added`; "" if they do not."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys: Sequence[Any] = [*one, *(key for key in other if key not in one)]
        pairs = [(one.get(key, _NOTHING), other.get(key, _NOTHING)) for key in keys]
    elif isinstance(one, list) and isinstance(other, list):
        keys = range(max(len(one), len(other)))
        pairs = [(one[i] if i < len(one) else _NOTHING, other[i] if i < len(other) else _NOTHING) for i in keys]
    else:
        same = type(one) is type(other) and one == other
        if one is _NOTHING or other is _NOTHING:
            return f"{pointer}: {'added' if one is _NOTHING else 'removed'}"
        return "" if same else f"{pointer}: {_short(one)} became {_short(other)}"
    return next(
        (found for key, pair in zip(keys, pairs, strict=True) if (found := difference(*pair, f"{pointer}/{key}"))), ""
    )


_NOTHING = object()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _given(on: Given, beside: Path | None = None) -> Vcon:
    if on is None:
        return two_party_call()
    if isinstance(on, Vcon):
        return Vcon(on.to_dict())
    if isinstance(on, Mapping):
        return Vcon(copy.deepcopy(dict(on)))
    places = [Path(on), *([beside / on] if beside else [])]
    for place in places:
        if place.is_file():
            return Vcon.parse(place.read_bytes())
    raise FileNotFoundError(
        f"there is no vCon {os.fspath(on)}: looked for {', '.join(str(p.absolute()) for p in places)}"
    )


def _uuid(vcon: Vcon) -> str:
    if vcon.uuid is None:
        raise ValueError("the vCon to run on has no uuid")
    return vcon.uuid


@cache
def _server_url() -> str:
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(temporary_server())


def throwaway_store() -> VconStore:
    """Return an empty store, on a server that ends with this process."""
    url = _server_url()
    with connection.once(url, "testing") as client:
        client.flushall()
    return VconStore(url, Settings())


# Storages


def storage_contract(
    module: str | ModuleType,
    options: Mapping[str, Any] | None = None,
    *,
    rules: Sequence[str] | None = None,
    unreachable: Mapping[str, Any] | None = None,
    secrets: Sequence[str] = (),
    timeout_secs: float = 30.0,
) -> list[str]:
    """Check a storage against what every storage must do, and return the rules that were checked.

    AssertionError names the rule that does not hold. *rules* picks some of STORAGE_RULES. Rules about `get`, `delete`
    and `ping` are passed over where the module lacks them. *unreachable* are options that lead to a server which is
    not there: a save must raise StorageError within *timeout_secs*, and no message may hold one of *secrets*.
    """
    name = module if isinstance(module, str) else module.__name__
    bound = partial(StorageConfig, name="storage", module=name)
    case = _Case(load_storage(bound(options=dict(options or {}))), throwaway_store())
    chosen = STORAGE_RULES if rules is None else rules
    checked = []
    for rule in chosen:
        if rule == UNREACHABLE:
            if unreachable is None:
                continue
            storage = load_storage(bound(options={**(options or {}), **unreachable}))
            check = partial(_unreachable, _Case(storage, case.store), secrets, timeout_secs)
        else:
            needs, function = _RULES[rule]
            if any(getattr(case.storage, need) is None for need in needs):
                continue
            check = partial(function, case)
        try:
            check()
        except Exception as error:
            raise AssertionError(f"{name}: {rule}: {error or type(error).__name__}") from error
        checked.append(rule)
    return checked


@dataclass(frozen=True)
class _Case:
    storage: Storage
    store: VconStore

    @contextmanager
    def chain(self) -> Iterator[None]:
        with working(Work(self.store.writer())):
            yield

    def put(self, vcon: Vcon) -> str:
        """Store the vCon as the one to save, and save it."""
        self.store.create(vcon, replace=True)
        with self.chain():
            self.storage.save(_uuid(vcon), self.storage.options)
        return _uuid(vcon)

    def get(self, uuid: str) -> Any:
        return self._function("get")(uuid, self.storage.options)

    def delete(self, uuid: str) -> Any:
        return self._function("delete")(uuid, self.storage.options)

    def ping(self) -> None:
        self._function("ping")(self.storage.options)

    def _function(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] | None = getattr(self.storage, name)
        if function is None:
            raise TypeError(f"{self.storage.module} has no {name}")
        return function

    def keeps(self, vcon: Vcon) -> str:
        """Save the vCon and see that what comes back is the same JSON value."""
        uuid = self.put(vcon)
        found = self.get(uuid)
        _must(isinstance(found, dict), f"get returned {_short(found)} for a vCon that was saved")
        changed = difference(vcon.document, found)
        _must(not changed, f"what get returned is not what was saved: {changed}")
        return uuid


def _must(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _saves(case: _Case) -> None:
    case.put(two_party_call())


def _save_then_get(case: _Case) -> None:
    case.keeps(two_party_call())


def _no_options_change(case: _Case) -> None:
    before = copy.deepcopy(case.storage.options)
    case.put(two_party_call())
    _must(before == case.storage.options, "save changed its options, which all threads share")


def _saved_twice(case: _Case) -> None:
    vcon = two_party_call()
    case.put(vcon)
    vcon.add_tag("said", "twice")
    vcon.document["created_at"] = "2001-02-03T04:05:06+00:00"
    uuid = case.keeps(vcon)
    if case.storage.delete is not None:
        case.delete(uuid)
        _must(case.get(uuid) is None, "a vCon that was saved twice is still there after one delete")


def _shrinks(case: _Case) -> None:
    vcon = two_party_call()
    for _ in range(5):
        vcon.add_dialog(copy.deepcopy(vcon.dialog[0]))
    case.put(vcon)
    del vcon.dialog[1:], vcon.parties[1:]
    vcon.analysis.clear()
    case.keeps(vcon)


def _unknown_is_none(case: _Case) -> None:
    found = case.get(str(two_party_call().uuid))
    _must(found is None, f"get returned {_short(found)}, not None, for a UUID that was never saved")


def _missing_raises(case: _Case) -> None:
    uuid = str(two_party_call().uuid)
    try:
        with case.chain():
            case.storage.save(uuid, case.storage.options)
    except VconNotFound:
        return
    raise AssertionError("save of a vCon that does not exist must raise VconNotFound")


def _deletes(case: _Case) -> None:
    other = case.put(two_party_call())
    uuid = case.put(two_party_call())
    first, found, again = case.delete(uuid), case.get(uuid), case.delete(uuid)
    _must(first is True, f"delete returned {first!r}, not True, for a vCon that was saved")
    _must(found is None, "get still finds a vCon that was deleted")
    _must(again is False, f"delete returned {again!r}, not False, for a vCon that is gone")
    _must(case.get(other) is not None, "delete of one vCon took another one along")


def _unicode(case: _Case) -> None:
    vcon = two_party_call()
    vcon.document["subject"] = "žluťoučký kůň 馬 🐎 \u202eשלם\u202c e\u0301 \u2028 \x7f \\ \" ' ; -- %s {}"
    vcon.parties[0]["name"] = "Ἀδα\nMoss\t"
    case.keeps(vcon)


def _numbers(case: _Case) -> None:
    vcon = two_party_call()
    vcon.document["x_numbers"] = [2**53 + 1, 2**63, -(2**70), 0.1, 1e-320, 1.0, True, None]
    case.keeps(vcon)


def _unknown_members(case: _Case) -> None:
    vcon = two_party_call()
    vcon.document["x_unknown"] = {"": [{}, [], {"$set.a": None}], "_id": 7}
    vcon.dialog[0]["x_trunk"] = ["a", {"b": 1}]
    case.keeps(vcon)


def _signed(case: _Case) -> None:
    uuid = str(two_party_call().uuid)
    signature = {"header": {"uuid": uuid}, "protected": "eyJhbGciOiJSUzI1NiJ9", "signature": "c2lnbmF0dXJl"}
    case.keeps(Vcon({"payload": "eyJwYXJ0aWVzIjpbXX0", "signatures": [signature]}))


def _large(case: _Case) -> None:
    vcon = two_party_call()
    vcon.dialog[0].update(body="QUJD" * 1_250_000, encoding="base64url")
    del vcon.dialog[0]["url"]
    case.keeps(vcon)


def _at_once(case: _Case) -> None:
    def one(number: int) -> None:
        vcon = two_party_call()
        vcon.document["subject"] = f"call {number}"
        if case.storage.get is None:
            case.put(vcon)
        else:
            case.keeps(vcon)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(one, range(64)))


def _unreachable(case: _Case, secrets: Sequence[str], timeout_secs: float) -> None:
    uuid = str(two_party_call().uuid)
    began = time.monotonic()
    attempts: list[Callable[[], Any]] = [partial(case.put, two_party_call(uuid))]
    if case.storage.get is not None:
        attempts.append(partial(case.get, uuid))
    if case.storage.ping is not None:
        attempts.append(case.ping)
    for attempt in attempts:
        try:
            attempt()
        except StorageError as error:
            told = [secret for secret in secrets if secret in f"{error} {error!r}"]
            _must(not told, "the message of the error holds a secret")
        else:
            raise AssertionError("nothing was raised although nobody answers")
        took = time.monotonic() - began
        _must(took < timeout_secs, f"it took {took:.1f} s to say that nobody answers, more than {timeout_secs:g} s")
        began = time.monotonic()


UNREACHABLE = "a server that is not there is a StorageError, soon and without secrets"

_RULES: dict[str, tuple[tuple[str, ...], Callable[[_Case], None]]] = {
    "a vCon can be saved": ((), _saves),
    "a missing vCon is an error": ((), _missing_raises),
    "the options stay as they are": ((), _no_options_change),
    "what is saved comes back": (("get",), _save_then_get),
    "an unknown UUID is None": (("get",), _unknown_is_none),
    "saved twice is one record, the later one": (("get",), _saved_twice),
    "a vCon may shrink": (("get",), _shrinks),
    "unicode comes back": (("get",), _unicode),
    "numbers come back exactly": (("get",), _numbers),
    "unknown members come back": (("get",), _unknown_members),
    "a signed vCon comes back as it is": (("get",), _signed),
    "5 MB come back": (("get",), _large),
    "a deleted vCon is gone": (("get", "delete"), _deletes),
    "16 threads may save at once": ((), _at_once),
    "ping says that it works": (("ping",), _Case.ping),
}
STORAGE_RULES = (*_RULES, UNREACHABLE)


if pytest is not None:

    @pytest.fixture(name="run_link")
    def _run_link(request: pytest.FixtureRequest) -> Callable[..., Vcon]:
        """`run_link`, which finds vCon files beside the test."""

        def run(module: str | ModuleType, options: Mapping[str, Any] | None = None, **how: Any) -> Vcon:
            return try_link(module, options, beside=request.path.parent, **how).vcon

        return run
