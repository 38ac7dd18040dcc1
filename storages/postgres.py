"""Keep each vCon in a row of a PostgreSQL table, as JSON that queries can look into.

    id uuid primary key, uuid uuid, vcon text (the version of the draft), created_at timestamp, updated_at timestamp,
    subject text, vcon_json jsonb, vcon_text text, vcon_text_of bytea

This is the table of the existing conserver and two columns more, which it does not mind: rows of either are read by
both. The table is made, or the columns added, with the first save of a process where they are missing.

jsonb is not all of JSON: it has no `\\u0000` and no half surrogates, and makes the integer 100000 of the number 1e5.
Where it would change a vCon, and where `format_version` does, `vcon_text` holds its exact text, and `vcon_text_of` the
SHA-256 of the `vcon_json` that it belongs to: if another program changes that, the text counts no more. In `vcon_json`
such characters are U+FFFD.

The rights that it needs: SELECT, INSERT, UPDATE and DELETE on the table; CREATE on its schema for the first save, or
ownership of a table that the existing conserver has made.

Reads: the row of a vCon. Writes: a row for each vCon.
Needs: conserver[postgres].
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache, partial
from math import copysign
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from conserver import StorageError, Vcon, vcons
from conserver.pools import Pool

if TYPE_CHECKING:
    from psycopg import Connection

_CREATE = """
CREATE TABLE {table} (id uuid NOT NULL PRIMARY KEY, vcon text NOT NULL, uuid uuid NOT NULL,
    created_at timestamp NOT NULL, updated_at timestamp, subject text, vcon_json jsonb, vcon_text text,
    vcon_text_of bytea)
"""
_ADD = "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS vcon_text text, ADD COLUMN IF NOT EXISTS vcon_text_of bytea"
_STATE = """
SELECT to_regclass(%(table)s) IS NOT NULL, count(*) = 2 FROM pg_attribute
WHERE attrelid = to_regclass(%(table)s) AND attname IN ('vcon_text', 'vcon_text_of') AND NOT attisdropped
"""
# Two processes that make one table at the same moment: without this, one of them gets an error.
_LOCK = "SELECT pg_advisory_xact_lock(hashtext(%(table)s))"
# A date is stored as it is written in the vCon, without its zone, as the existing conserver does.
_UPSERT = """
WITH given AS (SELECT %(json)s::jsonb AS json, %(created_at)s::timestamp AS created_at, %(now)s::timestamp AS now)
INSERT INTO {table} AS old (id, uuid, vcon, created_at, updated_at, subject, vcon_json, vcon_text, vcon_text_of)
SELECT %(uuid)s::uuid, %(uuid)s::uuid, coalesce(json->>'vcon', ''), coalesce(created_at, now), now,
    CASE WHEN jsonb_typeof(json->'subject') = 'string' THEN json->>'subject' END,
    json, %(text)s::text, CASE WHEN %(text)s::text IS NOT NULL THEN sha256(convert_to(json::text, 'UTF8')) END
FROM given
ON CONFLICT (id) DO UPDATE SET
    uuid = excluded.uuid, vcon = excluded.vcon, updated_at = excluded.updated_at, subject = excluded.subject,
    created_at = coalesce(%(created_at)s::timestamp, old.created_at),
    vcon_json = excluded.vcon_json, vcon_text = excluded.vcon_text, vcon_text_of = excluded.vcon_text_of
"""
_SELECT = """
SELECT CASE WHEN vcon_text IS NOT NULL AND vcon_text_of = sha256(convert_to(vcon_json::text, 'UTF8'))
    THEN vcon_text ELSE vcon_json::text END
FROM {table} WHERE id = %(uuid)s
"""
_LIST = """
SELECT id::text FROM {table} WHERE %(after)s::uuid IS NULL OR id > %(after)s::uuid ORDER BY id LIMIT 1000
"""
# Of a table to which only the existing conserver has written.
_SELECT_JSON = "SELECT vcon_json::text FROM {table} WHERE id = %(uuid)s"
_DELETE = "DELETE FROM {table} WHERE id = %(uuid)s"
# Fails where a save would: without the right to write, and on a server that only follows another one.
_TOUCH = "UPDATE {table} SET vcon = vcon WHERE false"


class Options(BaseModel):
    """Which table, and how to get in."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    host: str = Field(default="localhost", min_length=1, description="The server, or the folder of its socket.")
    port: int = Field(default=5432, ge=1, le=65535, description="Its port.")
    database: str = Field(default="vcon_db", min_length=1, description="The database; it must be there, in UTF-8.")
    user: str = Field(default="postgres", min_length=1, description="The role to log in as.")
    password: SecretStr = Field(default=SecretStr(""), description="Its password.")
    table_name: str = Field(default="vcons", min_length=1, max_length=63, description="The table.")
    name: str = Field(default="postgres", description="Of no effect; the existing conserver has it.")
    format_version: Literal["0.0.1"] | None = Field(
        default=None, description="Version of the vCons in `vcon_json`; without it, `EGRESS_FORMAT_VERSION`."
    )
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = Field(
        default="prefer", description="Whether the connection is encrypted, in the words of libpq."
    )
    max_connections: int = Field(default=8, ge=1, description="Most connections of one worker process.")
    timeout: float = Field(default=20.0, gt=0, description="Seconds for a connection, and for one save or read.")


def save(vcon_uuid: str, opts: Options) -> None:
    """Write the row of the vCon over the one that is there, in one statement."""
    _check_uuid(vcon_uuid)
    vcon = vcons.get(vcon_uuid)
    exact = vcon.to_bytes()
    held = _held(vcons.egress(vcon, opts.format_version))
    row = {
        "uuid": vcon_uuid,
        "created_at": _timestamp(vcon.created_at),
        "now": datetime.now().isoformat(),
        "json": held.decode(),
        "text": exact.decode() if held != exact or _has_odd_numbers(vcon.document) else None,
    }
    with _told("save to", opts):
        _table(opts).save(row)


def get(vcon_uuid: str, opts: Options) -> dict[str, Any] | None:
    """Return the stored vCon, or None if there is none."""
    _check_uuid(vcon_uuid)
    with _told("read from", opts):
        text = _table(opts).text(vcon_uuid)
    return None if text is None else Vcon.parse(text, migrate=False).document


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Delete the row of the vCon; False if there was none."""
    _check_uuid(vcon_uuid)
    with _told("delete from", opts):
        return _table(opts).delete(vcon_uuid)


def list_uuids(opts: Options, after: str = "") -> Iterator[str]:
    """Yield the UUIDs of stored vCons in order, those behind *after*."""
    while True:
        with _told("read from", opts):
            uuids = _table(opts).uuids(after)
        if not uuids:
            return
        yield from uuids
        after = uuids[-1]


def ping(opts: Options) -> None:
    """Raise StorageError if the table cannot be written to."""
    with _told("write to", opts):
        _table(opts).touch()


# What jsonb can hold


_REFUSED = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_REFUSED_TEXT = re.compile("[\0\ud800-\udfff]")


def _held(text: bytes) -> bytes:
    """Return the JSON text, with U+FFFD for the characters that jsonb refuses."""
    return Vcon(_clean(Vcon.parse(text, migrate=False).document)).to_bytes() if _REFUSED.search(text) else text


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {_clean(key): _clean(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_clean(each) for each in value]
    return _REFUSED_TEXT.sub("\ufffd", value) if isinstance(value, str) else value


def _has_odd_numbers(value: Any) -> bool:
    """Say whether there is a number that comes back as an integer, or without its sign."""
    if isinstance(value, dict):
        return any(map(_has_odd_numbers, value.values()))
    if isinstance(value, list):
        return any(map(_has_odd_numbers, value))
    return isinstance(value, float) and (abs(value) >= 1e15 or (value == 0 and copysign(1, value) < 0))


def _timestamp(text: Any) -> str | None:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None).isoformat()
    except (TypeError, ValueError):
        return None


def _check_uuid(vcon_uuid: str) -> None:
    try:
        UUID(vcon_uuid)
    except ValueError as error:
        raise StorageError(f"{vcon_uuid[:80]!r} is no UUID, so it can be no id of a row") from error


# The table


class _Table:
    """The table, and the connections of this process to it."""

    def __init__(self, opts: Options) -> None:
        import psycopg
        from psycopg.sql import SQL, Identifier

        self._errors = psycopg.errors
        self._timeout = opts.timeout
        self._quoted = Identifier(opts.table_name).as_string()
        self._sql = lambda text: SQL(text).format(table=Identifier(opts.table_name))
        connect = partial(
            _limited(psycopg.Connection).connect,
            host=opts.host,
            port=opts.port,
            dbname=opts.database,
            user=opts.user,
            password=opts.password.get_secret_value() or None,
            sslmode=opts.sslmode,
            connect_timeout=max(2, round(opts.timeout)),
            tcp_user_timeout=round(opts.timeout * 1000),
            client_encoding="utf8",
            application_name="conserver",
            # So that a statement which nobody waits for any more does not take effect at some later time.
            options=f"-c statement_timeout={round(opts.timeout * 1000)}",
            autocommit=True,
            prepare_threshold=None,  # a pooler in between may hand the next statement to another connection
        )
        self._pool: Pool[Connection[Any]] = Pool(
            connect, psycopg.Connection.close, self._broken, most=opts.max_connections, wait_secs=opts.timeout
        )
        self._is_made = False

    def save(self, row: dict[str, Any]) -> None:
        """Insert or replace a row; the table is made if it is not there."""
        if not self._is_made:
            self._make()
        try:
            self._run(_UPSERT, row)
        except (self._errors.UndefinedTable, self._errors.UndefinedColumn):
            self._make()  # somebody has dropped it
            self._run(_UPSERT, row)

    def text(self, uuid: str) -> str | None:
        """Return the JSON text of a vCon."""
        try:
            rows, _ = self._run(_SELECT, {"uuid": uuid})
        except self._errors.UndefinedColumn:
            rows, _ = self._run(_SELECT_JSON, {"uuid": uuid})
        except self._errors.UndefinedTable:
            return None
        return rows[0][0] if rows else None

    def uuids(self, after: str) -> list[str]:
        """Return the next UUIDs in order."""
        try:
            rows, _ = self._run(_LIST, {"after": after or None})
        except self._errors.UndefinedTable:
            return []
        return [uuid for (uuid,) in rows]

    def delete(self, uuid: str) -> bool:
        """Delete a row; False if there is none."""
        try:
            return self._run(_DELETE, {"uuid": uuid})[1] > 0
        except self._errors.UndefinedTable:
            return False

    def touch(self) -> None:
        """Do what a save needs, without a row."""
        self._make()
        self._run(_TOUCH, {})

    def _make(self) -> None:
        [(_, whole)], _ = self._run(_STATE, {"table": self._quoted})
        if not whole:
            self._work(self._make_with)
        self._is_made = True

    def _make_with(self, connection: "Connection[Any]") -> None:
        with connection.transaction():
            connection.execute(_LOCK, {"table": self._quoted})
            [(exists, whole)] = connection.execute(_STATE, {"table": self._quoted}).fetchall()
            if not whole:
                connection.execute(self._sql(_ADD if exists else _CREATE))

    def _run(self, statement: str, values: dict[str, Any]) -> tuple[list[Any], int]:
        """Run a statement; return its rows, and how many there were."""

        def run(connection: "Connection[Any]") -> tuple[list[Any], int]:
            cursor = connection.execute(self._sql(statement), values)
            return (cursor.fetchall() if cursor.description else []), cursor.rowcount

        return self._work(run)

    def _work(self, work: Callable[["Connection[Any]"], Any]) -> Any:
        def limited(connection: Any) -> Any:
            connection.deadline = time.monotonic() + self._timeout
            try:
                return work(connection)
            except TimeoutError:
                connection.close()
                raise StorageError(f"no answer within {self._timeout:g} s") from None

        return self._pool.run(limited)

    def _broken(self, connection: "Connection[Any]", error: Exception | None) -> bool:
        if error is None:
            return connection.closed
        if not isinstance(error, self._errors.Error):
            return False
        # The server is going down, or it follows another one since this connection was made.
        return connection.closed or (error.sqlstate or "").startswith(("57P", "08", "25006"))


def _limited(base: type) -> Any:
    """Return a class of connections that wait until their deadline; psycopg's wait for the server for ever."""

    class Limited(base):  # type: ignore[misc]
        deadline = float("inf")

        def wait(self, steps: Any, *more: Any, **named: Any) -> Any:
            return super().wait(_until(self.deadline, steps), *more, **named)

    return Limited


def _until(deadline: float, steps: Any) -> Any:
    try:
        state = next(steps)
        while True:
            ready = yield state  # psycopg comes back here every tenth of a second
            if time.monotonic() > deadline:
                raise TimeoutError
            state = steps.send(ready)
    except StopIteration as end:
        return end.value


@cache
def _table(opts: Options) -> _Table:
    return _Table(opts)


_CURES = {
    "28P01": "check user and password",
    "3D000": "make it, or give another name",
    "42501": "let the role of the conserver do that, or do it for it",
    "53100": "make room on its disk",
    "53300": "lower max_connections, or let the server have more",
    "25006": "give the host of the server that can be written to",
    "22P05": "the database must be in UTF-8",
}


@contextmanager
def _told(action: str, opts: Options) -> Iterator[None]:
    where = f"{action} table {opts.table_name} at {opts.host}:{opts.port}/{opts.database}"
    try:
        import psycopg
    except ModuleNotFoundError as error:
        raise StorageError(f"cannot {where}: {error} (pip install 'conserver[postgres]')") from error
    try:
        yield
    except psycopg.Error as error:
        # Only its first words: the others may hold what is in the vCon.
        reason = error.diag.message_primary or " ".join(str(error).split())[:300]
        cure = _CURES.get(error.sqlstate or "")
        raise StorageError(f"cannot {where}: {reason}{f'; {cure}' if cure else ''}") from None
    except StorageError as error:
        raise StorageError(f"cannot {where}: {error}") from error
