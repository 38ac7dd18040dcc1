"""Keep vCons in one SQLite file, and find them again by their words. No server, no package.

    vcons         id, uuid, created_at, updated_at, subject, vcon (the JSON text)
    vcons_words   subject, parties, transcripts: the words of the row with this id, for full-text search

The file is in WAL mode, so that reading and saving do not wait for each other, and must be on a disk of this machine.
Saves that come at the same moment are written together. `search` finds vCons by what is in their subject, in names and
addresses of their parties, in transcripts and in texts.

What cannot be written or read (a full or read-only disk, a file that is something else, one that another program keeps
locked) is a StorageError that says so.

Reads: the row of a vCon. Writes: a row for each vCon, and its words.
"""

import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from conserver import StorageError, Vcon, vcons
from conserver.pools import Pool

_SCHEMA = 1
_CREATE = (
    "CREATE TABLE vcons (id INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, created_at TEXT, updated_at TEXT NOT NULL,"
    " subject TEXT, vcon TEXT NOT NULL)",
    "CREATE VIRTUAL TABLE vcons_words USING fts5(subject, parties, transcripts,"
    " tokenize='unicode61 remove_diacritics 2')",
    f"PRAGMA user_version = {_SCHEMA}",
)
_LIST = "SELECT uuid FROM vcons WHERE uuid > ? ORDER BY uuid LIMIT 1000"
_UPSERT = (
    "INSERT INTO vcons (uuid, created_at, updated_at, subject, vcon) VALUES (?, ?, ?, ?, ?) ON CONFLICT (uuid) DO"
    " UPDATE SET created_at = excluded.created_at, updated_at = excluded.updated_at, subject = excluded.subject,"
    " vcon = excluded.vcon"
)
_SEARCH = (
    "SELECT uuid, created_at, vcons.subject, snippet(vcons_words, -1, '', '', '…', 24) FROM vcons_words"
    " JOIN vcons ON vcons.id = vcons_words.rowid WHERE vcons_words MATCH ? ORDER BY rank LIMIT ?"
)
_MOST_CONNECTIONS = 16


class Options(BaseModel):
    """Where and how."""

    model_config = ConfigDict(frozen=True)

    # Absolute from the start: a link may change the working directory.
    path: Annotated[str, Field(min_length=1), AfterValidator(os.path.abspath)] = Field(
        default="/data/vcons.sqlite", description="The file; it and its folder are made if they are not there."
    )
    timeout: float = Field(default=20.0, gt=0, description="Seconds to wait while another program writes.")
    fsync: bool = Field(
        default=True, description="Whether a save waits for the disk. Without it, a power cut loses the last seconds."
    )


@dataclass(frozen=True)
class Hit:
    """A vCon that `search` has found."""

    uuid: str
    created_at: str | None
    subject: str | None
    excerpt: str
    """Some words around the place."""


def save(vcon_uuid: str, opts: Options) -> None:
    """Write the vCon and its words over what is there, in one transaction."""
    vcon = vcons.get(vcon_uuid)
    subject, now = _plain(vcon.subject), datetime.now(UTC).isoformat(timespec="milliseconds")
    row = (vcon_uuid, _plain(vcon.created_at), now, subject, vcon.to_bytes().decode())
    words = (subject or "", _parties(vcon), _transcripts(vcon))

    def upsert(connection: sqlite3.Connection) -> None:
        connection.execute(_UPSERT, row)
        [number] = connection.execute("SELECT id FROM vcons WHERE uuid = ?", (vcon_uuid,)).fetchone()
        connection.execute("DELETE FROM vcons_words WHERE rowid = ?", (number,))
        sql = "INSERT INTO vcons_words (rowid, subject, parties, transcripts) VALUES (?, ?, ?, ?)"
        connection.execute(sql, (number, *words))

    with _told("save to", opts):
        _file(opts).write(upsert)


def get(vcon_uuid: str, opts: Options) -> dict[str, Any] | None:
    """Return the stored vCon, or None if there is none."""
    with _told("read from", opts):
        rows = _file(opts).read("SELECT vcon FROM vcons WHERE uuid = ?", (vcon_uuid,))
    return Vcon.parse(rows[0][0], migrate=False).document if rows else None


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Delete the stored vCon and its words; False if there was none."""

    def remove(connection: sqlite3.Connection) -> bool:
        row = connection.execute("SELECT id FROM vcons WHERE uuid = ?", (vcon_uuid,)).fetchone()
        if row is None:
            return False
        connection.execute("DELETE FROM vcons_words WHERE rowid = ?", row)
        connection.execute("DELETE FROM vcons WHERE id = ?", row)
        return True

    with _told("delete from", opts):
        return bool(_file(opts).write(remove))


def list_uuids(opts: Options, after: str = "") -> Iterator[str]:
    """Yield the UUIDs of stored vCons in order, those behind *after*."""
    while True:
        with _told("read from", opts):
            rows = _file(opts).read(_LIST, (after,))
        if not rows:
            return
        yield from (uuid for (uuid,) in rows)
        after = rows[-1][0]


def ping(opts: Options) -> None:
    """Raise StorageError if the file cannot be written."""
    with _told("write", opts):
        _file(opts).write(lambda connection: None)


def search(query: str, opts: Options, limit: int = 20) -> list[Hit]:
    """Return the vCons that have all words of *query*, the best first.

    `"two words"` in quotes stand side by side, and `kett*` is every word that begins so. Case and accents do not count.
    """
    terms = [(term.strip('"*'), "*" * term.endswith("*")) for term in re.findall(r'"[^"]*"\*?|\S+', query)]
    # Quoted, a term is looked for as it is: FTS5 has operators, and a telephone number begins with one.
    expression = " ".join('"' + text.replace('"', '""') + '"' + star for text, star in terms if re.search(r"\w", text))
    if not expression:
        return []
    with _told("search", opts):
        return [Hit(*row) for row in _file(opts).read(_SEARCH, (_plain(expression), limit))]


# The words


_PARTY_FIELDS = ("name", "tel", "mailto", "sip", "did", "org", "organization", "role", "title")
_TRANSCRIPTS = ("transcript", "wtf_transcription")
#: Where transcripts of the usual services have their text; the first that is there, since the others repeat it.
_TEXT_FIELDS = (
    *("transcript", "text", "paragraphs", "segments", "utterances", "sentences", "results", "channels"),
    *("alternatives", "messages", "message", "content"),
)


def _parties(vcon: Vcon) -> str:
    values = (party.get(name) for party in vcon.parties for name in _PARTY_FIELDS)
    return "\n".join(plain for value in values if (plain := _plain(value)))


def _transcripts(vcon: Vcon) -> str:
    entries = [entry for entry in vcon.analysis if entry.get("type") in _TRANSCRIPTS]
    entries += [entry for entry in vcon.dialog if entry.get("type") == "text"]
    texts = (text for entry in entries for text in _said(vcon.with_decoded_body(entry).get("body")))
    return "\n".join(plain for text in texts if (plain := _plain(text)))


def _said(body: Any) -> Iterator[str]:
    if isinstance(body, str) and body.strip():
        yield body
    elif isinstance(body, list):
        for part in body:
            yield from _said(part)
    elif isinstance(body, dict):
        yield from next((said for name in _TEXT_FIELDS if (said := list(_said(body.get(name))))), [])


def _plain(text: Any) -> str | None:
    """Return text without what SQLite's text cannot hold; None for what is no text."""
    return text.encode(errors="replace").decode().replace("\0", " ") if isinstance(text, str) else None


# The file


class _Connection(sqlite3.Connection):
    file: tuple[int, int] = (0, 0)


class _File:
    """One SQLite file: many may read at once, and who writes at once writes together."""

    def __init__(self, opts: Options) -> None:
        self._opts = opts
        self._pool = Pool(
            self._connect, _Connection.close, self._broken, most=_MOST_CONNECTIONS, wait_secs=opts.timeout
        )
        self._writing = threading.Lock()
        self._queueing = threading.Lock()
        self._waiting: list[tuple[Callable[[sqlite3.Connection], Any], Future[Any]]] = []

    def read(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        """Return the rows of a query."""
        return self._pool.run(lambda connection: connection.execute(sql, values).fetchall())

    def write(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """Return what *work* returns, once it is in the file for good."""
        result: Future[Any] = Future()
        with self._queueing:
            self._waiting.append((work, result))
            is_first = len(self._waiting) == 1
        if is_first:
            with self._writing:
                # Those that have come meanwhile share one wait for the disk.
                with self._queueing:
                    batch, self._waiting = self._waiting, []
                self._write_all(batch)
        # The others wait for nothing but this: not for those who are next to write.
        return result.result()

    def _write_all(self, batch: list[tuple[Callable[[sqlite3.Connection], Any], Future[Any]]]) -> None:
        try:
            values = self._pool.run(partial(_in_transaction, [work for work, _ in batch]))
        except BaseException as error:  # noqa: BLE001  each of them raises it to its own caller
            if len(batch) > 1 and not isinstance(error, (sqlite3.OperationalError, StorageError, OSError)):
                for one in batch:  # what is wrong with one of them is not wrong with the others
                    self._write_all([one])
                return
            for _, result in batch:
                result.set_exception(error)
            return
        for (_, result), value in zip(batch, values, strict=True):
            result.set_result(value)

    def _connect(self) -> _Connection:
        os.makedirs(os.path.dirname(self._opts.path), exist_ok=True)
        connection = sqlite3.connect(
            self._opts.path,
            timeout=self._opts.timeout,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        try:
            self._prepare(connection)
            connection.file = _identity(self._opts.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + self._opts.timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # For this, SQLite does not wait by itself.
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._opts.fsync else 'NORMAL'}")
        if _version(connection) != _SCHEMA:
            _in_transaction([_create], connection)

    def _broken(self, connection: _Connection, error: Exception | None) -> bool:
        if error is None:
            # One that was deleted or replaced would take saves and lose them.
            return connection.file != _identity(self._opts.path)
        return isinstance(error, sqlite3.Error) and _code(error) in _BROKEN


def _in_transaction(works: list[Callable[[sqlite3.Connection], Any]], connection: sqlite3.Connection) -> list[Any]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        values = [work(connection) for work in works]
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return values


def _create(connection: sqlite3.Connection) -> None:
    version = _version(connection)
    if version == _SCHEMA:
        return  # somebody was quicker
    if version or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        cure = "update the conserver" if version > _SCHEMA else "give a path of its own"
        raise StorageError(f"its schema is none that is known here ({version}): {cure}")
    for statement in _CREATE:
        connection.execute(statement)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return (status.st_dev, status.st_ino)


@cache
def _file(opts: Options) -> _File:
    return _File(opts)


_BROKEN = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN}
_CURES = {
    sqlite3.SQLITE_FULL: "make room on that disk",
    sqlite3.SQLITE_READONLY: "let the user of the conserver write there, or give another path",
    sqlite3.SQLITE_CANTOPEN: "let the user of the conserver write in its folder, or give another path",
    sqlite3.SQLITE_BUSY: "another program keeps it locked for longer than the timeout",
    sqlite3.SQLITE_NOTADB: "give a path of its own",
    sqlite3.SQLITE_CORRUPT: "bring back a copy of it",
}


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


@contextmanager
def _told(action: str, opts: Options) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        cure = _CURES.get(_code(error))
        raise StorageError(f"cannot {action} {opts.path}: {error}{f'; {cure}' if cure else ''}") from error
    except OSError as error:
        raise StorageError(f"cannot {action} {opts.path}: {error.strerror}; give another path") from error
    except StorageError as error:
        raise StorageError(f"cannot {action} {opts.path}: {error}") from error
