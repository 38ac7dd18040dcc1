"""Keep each vCon as a document of MongoDB.

    {database}.{collection}: {"_id": uuid, ... the members of the vCon ..., "_exact": [...]}

As in the existing conserver, `created_at` and the `start` of each dialog are dates, so that one can ask for a time;
documents of either are read by both. BSON holds neither all of JSON nor a date to the letter: dates have milliseconds
and no offset, integers 64 bits, names no `$` at their beginning. So `_exact` lists each place where the document is not
what the vCon is, with the JSON that belongs there, and `get` gives the vCon back as it was. Where somebody has changed
such a place since, what is there counts. Of documents that the existing conserver has written, the dates come back in
UTC.

A save replaces the whole document in one step, also members that only an older version had.

The rights that it needs: find, update, insert and remove on the collection, as the role readWrite has.

Reads: the document of a vCon. Writes: one document for each vCon.
Needs: conserver[mongo].
"""

import atexit
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from conserver import StorageError, outbound, vcons
from conserver.errors import OutboundError
from conserver.outbound import Backoff, Retryable

T = TypeVar("T")

_EXACT = "_exact"
# MongoDB allows 100 levels; ours stand a few below the top.
_MOST_LEVELS = 90
_PAGE = 1000
_BACKOFF = Backoff(attempts=3, total_secs=15.0)


class Options(BaseModel):
    """Which server, and where in it."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    url: SecretStr = Field(
        default=SecretStr("mongodb://localhost:27017/"),
        description="The server, as `mongodb://` or `mongodb+srv://` URL with login, replica set and TLS options.",
    )
    database: str = Field(default="conserver", min_length=1, description="The database.")
    collection: str = Field(default="vcons", min_length=1, description="The collection.")
    timeout: float = Field(default=20.0, gt=0, description="Seconds for the search for a server, and for its answer.")
    name: str = Field(default="mongo", description="Of no effect; the existing conserver has it.")

    @model_validator(mode="after")
    def _is_url(self) -> "Options":
        # Of the whole, not of the one field: what is wrong with a field is told with its value, password and all.
        if not self.url.get_secret_value().startswith(("mongodb://", "mongodb+srv://")):
            raise ValueError("url is no URL of MongoDB: write mongodb://user:password@host:27017/")
        return self


def save(vcon_uuid: str, opts: Options) -> None:
    """Write the vCon over what is there."""
    exact: list[dict[str, Any]] = []
    document = _to_bson(vcons.get(vcon_uuid).document, (), exact)
    document["_id"] = vcon_uuid
    if exact:
        document[_EXACT] = exact
    _run("save", opts, lambda collection: collection.replace_one({"_id": vcon_uuid}, document, upsert=True))


def get(vcon_uuid: str, opts: Options) -> dict[str, Any] | None:
    """Return the stored vCon, or None if there is none."""
    found = _run("read", opts, lambda collection: collection.find_one({"_id": vcon_uuid}))
    if found is None:
        return None
    exact = found.pop(_EXACT, [])
    del found["_id"]
    document = _restored(found, exact if isinstance(exact, list) else [])
    return _to_json(document)


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Delete the stored vCon; False if there was none."""
    return bool(_run("delete", opts, lambda collection: collection.delete_one({"_id": vcon_uuid})).deleted_count)


def list_uuids(opts: Options, after: str = "") -> Iterator[str]:
    """Yield the UUIDs of stored vCons in order, those behind *after*."""
    while page := _run("list", opts, partial(_ids, after)):
        yield from page
        after = page[-1]


def _ids(after: str, collection: Any) -> list[str]:
    found = collection.find({"_id": {"$gt": after}}, {"_id": 1}).sort("_id").limit(_PAGE)
    return [one["_id"] for one in found]


def ping(opts: Options) -> None:
    """Raise StorageError if the collection cannot be asked."""
    _run("read", opts, lambda collection: collection.find_one({"_id": "ping"}, {"_id": 1}))


# JSON as BSON, and back

_Path = tuple[str | int, ...]


def _to_bson(value: Any, path: _Path, exact: list[dict[str, Any]]) -> Any:
    """Return what BSON can hold of a value, and note in *exact* what that changes."""
    if isinstance(value, dict):
        return _object_to_bson(value, path, exact)
    if isinstance(value, list):
        if len(path) >= _MOST_LEVELS:
            return _noted(json.dumps(value), value, path, exact)
        return [_to_bson(item, (*path, index), exact) for index, item in enumerate(value)]
    if isinstance(value, str):
        moment = _moment(value) if _is_date(path) else None
        if moment is not None:
            return _noted(moment, value, path, exact)
        # Surrogates without the other half are no UTF-8.
        text = value if value.isascii() else value.encode("utf-8", "replace").decode()
        return value if text == value else _noted(text, value, path, exact)
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return _noted(str(value), value, path, exact)
    return value


def _object_to_bson(value: dict[str, Any], path: _Path, exact: list[dict[str, Any]]) -> Any:
    if len(path) >= _MOST_LEVELS:
        return _noted(json.dumps(value), value, path, exact)
    names = {name: _plain_name(name) for name in value}
    if not path:
        # These two are ours.
        names |= {name: f"x{name}" for name in ("_id", _EXACT) if name in value}
    if all(name == plain for name, plain in names.items()):
        return {name: _to_bson(item, (*path, name), exact) for name, item in value.items()}
    # With other names, nothing below this can be found by its own.
    renamed = {names[name]: _to_bson(item, (*path, name), []) for name, item in value.items()}
    return _noted(renamed, value, path, exact)


def _plain_name(name: str) -> str:
    if name.startswith("$"):
        name = f"\N{FULLWIDTH DOLLAR SIGN}{name[1:]}"
    name = name.replace(".", "\N{FULLWIDTH FULL STOP}").replace("\0", "\N{REPLACEMENT CHARACTER}")
    return name if name.isascii() else name.encode("utf-8", "replace").decode()


def _is_date(path: _Path) -> bool:
    return path == ("created_at",) or (len(path) == 3 and path[0] == "dialog" and path[2] == "start")


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        utc = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000)


def _noted(stored: T, value: Any, path: _Path, exact: list[dict[str, Any]]) -> T:
    exact.append({"at": list(path), "json": json.dumps(value)})
    return stored


def _restored(found: Any, exact: list[Any]) -> Any:
    """Put what is noted back in its places, but where something else is there by now."""
    for note in exact:
        try:
            path, value = tuple(note["at"]), json.loads(note["json"])
            holder = {"": found} if not path else _at(found, path[:-1])
            last = path[-1] if path else ""
            if _to_bson(value, path, []) == holder[last]:
                holder[last] = value
                found = value if not path else found
        except (KeyError, IndexError, TypeError, ValueError):
            continue  # the place is not there any more
    return found


def _at(value: Any, path: _Path) -> Any:
    for part in path:
        value = value[part]
    return value


def _to_json(value: Any) -> Any:
    """Return the JSON of what MongoDB gives, whoever wrote it."""
    if isinstance(value, dict):
        return {str(name): _to_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)  # one of 64 bits comes in a class of its own
    return value if value is None or isinstance(value, str | float | bool) else str(value)


# The server


def _run(action: str, opts: Options, call: Callable[[Any], T]) -> T:
    """Call with the collection, and repeat what may go better."""
    from pymongo import errors

    where = f"cannot {action} in MongoDB {opts.database}.{opts.collection}"

    def attempt() -> T:
        try:
            collection = _client(opts)[opts.database][opts.collection]
        except (errors.PyMongoError, ValueError, TypeError) as error:
            # Not chained: its text may quote a part of the password.
            advice = "write special characters of the password as %XX, and see whether the database may be called so"
            raise StorageError(f"{where}: url cannot be used ({type(error).__name__}); {advice}") from None
        try:
            return call(collection)
        except errors.DocumentTooLarge as error:
            raise StorageError(f"{where}: the vCon has more than the 16 MB that a document may have") from error
        except (errors.ConnectionFailure, errors.WTimeoutError, errors.DuplicateKeyError) as error:
            reason = str(error).partition(", Timeout:")[0].partition(" (configured timeouts")[0]
            raise Retryable(f"{where}: {type(error).__name__}: {reason[:300]}") from error
        except errors.OperationFailure as error:
            cure = _CURES.get(error.code or 0)
            reason = str(error).partition(", full error:")[0][:300]
            raise StorageError(f"{where}: {reason}{f'; {cure}' if cure else ''}") from error
        except errors.PyMongoError as error:
            raise StorageError(f"{where}: {type(error).__name__}: {str(error)[:300]}") from error

    try:
        return outbound.retrying(f"mongo {_address(opts)}", attempt, _BACKOFF)
    except OutboundError as error:
        raise StorageError(str(error)) from error


_CURES = {
    13: "the user needs the role readWrite on the database",
    18: "check the user and the password in url, and its authSource",
}


def _address(opts: Options) -> str:
    """Return the hosts of the URL, for the breaker."""
    return opts.url.get_secret_value().partition("://")[2].partition("/")[0].rpartition("@")[2]


_making = threading.Lock()


def _client(opts: Options) -> Any:
    with _making:  # not several of them, when many threads begin at once
        return _new_client(opts)


@cache
def _new_client(opts: Options) -> Any:
    """Return a client; it may be used by all threads, and replaces connections that break."""
    import pymongo

    client: Any = pymongo.MongoClient(
        opts.url.get_secret_value(),
        appname="conserver",
        tz_aware=True,
        serverSelectionTimeoutMS=int(opts.timeout * 1000),
        connectTimeoutMS=int(min(opts.timeout, 10.0) * 1000),
        socketTimeoutMS=int(opts.timeout * 1000),
        waitQueueTimeoutMS=int(opts.timeout * 1000),
        # Repeating is left to outbound.retrying.
        retryReads=False,
        retryWrites=False,
    )
    atexit.register(client.close)
    return client
