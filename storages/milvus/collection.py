"""The collection in Milvus, and the connection of this process to it."""

import atexit
import importlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from conserver import StorageError, outbound, telemetry
from conserver.errors import OutboundError
from conserver.outbound import Backoff, Retryable

from .options import Options

T = TypeVar("T")
Row = dict[str, Any]

# What can stand in a filter as it is.
_PLAIN = re.compile(r"[A-Za-z0-9._:-]{1,100}")
# Codes of Milvus.
_PASSING, _NO_COLLECTION, _NOT_LOADED = (2, 4, 8), 100, 101  # unavailable, too many requests, rate limit


@contextmanager
def told(action: str, opts: Options) -> Iterator[None]:
    """Say in a StorageError what was to be done, and where."""
    try:
        yield
    except StorageError as error:
        where = f"collection {opts.collection_name} at {opts.host}:{opts.port}"
        raise StorageError(f"cannot {action} {where}: {error}") from error


def rows_of(opts: Options) -> "Rows":
    """Return the rows of a collection, by the connection of this process."""
    with _making:
        # A connection does not live through a fork.
        return _rows_of(opts, os.getpid())


_making = threading.Lock()


@cache
def _rows_of(opts: Options, pid: int) -> "Rows":
    return Rows(opts)


class Rows:
    """The rows of one collection. All threads may use it; each call is one request, with the time limit of one."""

    def __init__(self, opts: Options) -> None:
        self._opts = opts
        self._making = threading.Lock()
        self._kept: Any = None
        self._made = 0

    def find(self, vcon_uuid: str, *, names: list[str], make: bool = True) -> list[Row]:
        """Return these fields of all rows of a vCon, also of those that were written a moment ago by others.

        A collection that is missing is made if *make* and the options say so; without *make* it has no rows.
        """
        if not _PLAIN.fullmatch(vcon_uuid):
            raise StorageError(f"{vcon_uuid[:80]!r} is no UUID, so it cannot be asked for")

        def query(client: Any) -> list[Row]:
            found = client.query(
                self._opts.collection_name,
                filter=f'vcon_uuid == "{vcon_uuid}"',
                output_fields=names,
                consistency_level="Strong",
                timeout=self._opts.milvus_timeout,
            )
            return [_plain(row) for row in found]

        if not make and not self._ask(self._exists):
            return []
        return self._loaded(query)

    def insert(self, row: Row) -> int:
        """Write a row and return its id."""

        def insert(client: Any) -> int:
            done = client.insert(self._opts.collection_name, [row], timeout=self._opts.milvus_timeout)
            return int(done["ids"][0])

        return self._loaded(insert)

    def delete(self, rows: Iterable[Row]) -> None:
        """Delete these rows."""
        ids = [row["id"] for row in rows]
        if ids:
            name, limit = self._opts.collection_name, self._opts.milvus_timeout
            self._loaded(lambda client: client.delete(name, ids=ids, timeout=limit))

    def _exists(self, client: Any) -> bool:
        return bool(client.has_collection(self._opts.collection_name, timeout=self._opts.milvus_timeout))

    def _loaded(self, call: Callable[[Any], T]) -> T:
        """Call, and once more if the collection had to be made or loaded first."""
        made = self._made or self._make(0)
        try:
            return self._ask(call)
        except _NotReady:
            self._make(made)
            return self._ask(call)

    def _make(self, made: int) -> int:
        """See that the collection is there, has an index and is loaded, since it cannot be asked otherwise.

        Nothing is done if another thread has done it since it was *made*. Returns how often that was by now.
        """
        name, limit = self._opts.collection_name, self._opts.milvus_timeout
        with _alone(self._making, limit):
            if self._made != made:
                return self._made
            if not self._ask(self._exists):
                if not self._opts.create_collection_if_missing:
                    raise StorageError("it is not there; make it, or set create_collection_if_missing: true")
                self._ask(self._create)
            if not self._ask(lambda client: client.list_indexes(name, field_name="embedding", timeout=limit)):
                self._ask(self._create_index)
            self._ask(lambda client: client.load_collection(name, timeout=limit))
            self._made += 1
            return self._made

    def _create(self, client: Any) -> None:
        pymilvus, _ = _library()
        types = pymilvus.DataType
        schema = client.create_schema(auto_id=True, description="What vCons say, to be searched by its meaning")
        schema.add_field("id", types.INT64, is_primary=True)
        for name, most_bytes in {"vcon_uuid": 100, "party_id": 100, "text": 65535}.items():
            schema.add_field(name, types.VARCHAR, max_length=most_bytes)
        schema.add_field("embedding", types.FLOAT_VECTOR, dim=self._opts.embedding_dim)
        for name, most_bytes in {"created_at": 30, "updated_at": 30, "subject": 255, "metadata_title": 255}.items():
            schema.add_field(name, types.VARCHAR, max_length=most_bytes)
        schema.add_field("has_transcript", types.BOOL)
        schema.add_field("has_summary", types.BOOL)
        schema.add_field("party_count", types.INT16)
        schema.add_field("embedding_model", types.VARCHAR, max_length=50)
        schema.add_field("embedding_version", types.VARCHAR, max_length=20)
        try:
            client.create_collection(self._opts.collection_name, schema=schema, timeout=self._opts.milvus_timeout)
        except pymilvus.MilvusException:
            if not self._exists(client):  # else another process was faster
                raise

    def _create_index(self, client: Any) -> None:
        params = client.prepare_index_params()
        params.add_index("embedding", **self._opts.index)
        # It is not waited for: that has no time limit, and a collection can be loaded without.
        client.create_index(self._opts.collection_name, params, timeout=self._opts.milvus_timeout, sync=False)

    def _ask(self, call: Callable[[Any], T]) -> T:
        """Call with the client, and repeat what may go better; pymilvus does so, too, within the time of a request."""
        pymilvus, grpc = _library()

        def attempt() -> T:
            try:
                return call(self._client(pymilvus))
            except (pymilvus.MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
                raise _failure(error, grpc) from None

        backoff = Backoff(attempts=3, wait_secs=0.2, total_secs=min(5.0, self._opts.milvus_timeout))
        try:
            return outbound.retrying(f"milvus {self._opts.host}:{self._opts.port}", attempt, backoff)
        except OutboundError as error:
            raise StorageError(str(error)) from error

    def _client(self, pymilvus: Any) -> Any:
        """Return the client: one for all threads, which connects again by itself."""
        if self._kept is None:
            with _alone(_connecting, self._opts.milvus_timeout):
                if self._kept is None:
                    self._kept = self._connect(pymilvus)
        return self._kept

    def _connect(self, pymilvus: Any) -> Any:
        # It writes every failure to stderr, with a traceback; we say it in our own words.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)
        opts = self._opts
        client = pymilvus.MilvusClient(
            f"http://{opts.host}:{opts.port}",
            token=opts.token.get_secret_value(),
            db_name=opts.database,
            secure=opts.secure,
            timeout=opts.milvus_timeout,
            dedicated=True,  # a shared one may be that of the parent process
            grpc_options={
                "grpc.initial_reconnect_backoff_ms": 100,
                "grpc.min_reconnect_backoff_ms": 100,
                "grpc.max_reconnect_backoff_ms": 1000,
            },
        )
        # It would connect anew for each call that fails, one call after the other, while the channel does so by itself.
        client._handler._on_rpc_error = lambda _: False
        atexit.register(client.close)
        return client


# pymilvus itself makes one connection at a time.
_connecting = threading.Lock()


@contextmanager
def _alone(lock: threading.Lock, most_secs: float) -> Iterator[None]:
    """Hold a lock; not all threads shall wait for a server that does not answer, one after the other."""
    if not lock.acquire(timeout=most_secs):
        raise StorageError(f"no answer within {most_secs:g} s to what another thread has asked")
    try:
        yield
    finally:
        lock.release()


def _library() -> tuple[Any, Any]:
    """Import pymilvus and its gRPC, which take a second."""
    try:
        return importlib.import_module("pymilvus"), importlib.import_module("grpc")
    except ModuleNotFoundError as error:
        raise StorageError(f"{error} (pip install 'conserver[milvus]')") from error


class _NotReady(StorageError):
    """The collection is not there any more, or not loaded."""


def _plain(found: Any) -> Row:
    row = dict(found)
    if "embedding" in row:
        row["embedding"] = [float(number) for number in row["embedding"]]
    return row


def _failure(error: Any, grpc: Any) -> Exception:
    """Tell what failed: Retryable, _NotReady or StorageError."""
    if isinstance(error, grpc.FutureTimeoutError):
        return Retryable("no answer in time")
    answered = next((one for one in (error, error.__cause__) if isinstance(one, grpc.RpcError)), None)
    code, message = (answered.code(), answered.details() or "") if answered else (error.code, error.message)
    reason = telemetry.shorten(message.partition(", channel_state=")[0], 300)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return StorageError(f"refused: {reason}; check token")
    if isinstance(code, grpc.StatusCode):
        return Retryable(f"no answer ({code.name}: {reason})")
    if code in (_NO_COLLECTION, _NOT_LOADED) or "not loaded" in reason:
        return _NotReady(reason)
    return Retryable(reason) if code in _PASSING else StorageError(reason)
