"""Make each vCon searchable by its meaning: a row of a Milvus collection, with its text and the embedding of that.

    id int64 (auto), vcon_uuid varchar(100), party_id varchar(100), text varchar(65535), embedding float vector,
    created_at varchar(30), updated_at varchar(30), subject varchar(255), metadata_title varchar(255),
    has_transcript bool, has_summary bool, party_count int16, embedding_model varchar(50), embedding_version varchar(20)

This is the collection of the existing conserver, and rows of either are replaced by both. The text is what transcripts,
summaries, parties and text dialogs say, up to 65,535 bytes. The vCon cannot be had back from that, so there is no
`get`. A vCon that says nothing has no row. Signed and encrypted vCons cannot be embedded.

The new row is inserted first, then the older ones of the vCon are deleted, also what an earlier save left behind that
broke off. Of rows whose saves have met, the one with the latest `updated_at` stays, which is the time of the save.

With `skip_if_exists` a text that is there already is not embedded again: the row stays, or is replaced by one with the
same embedding where something else in it has changed.

Reads: nothing that could be had back. Writes: a row for each vCon that says something.
Needs: conserver[milvus].
"""

import contextlib
import re
import time
from datetime import UTC, datetime, timedelta

from conserver import StorageError, Vcon, telemetry, vcons
from conserver.errors import OutboundError

from . import embedding, words
from .collection import Row, rows_of, told
from .options import Options

__all__ = ["Options", "delete", "ping", "save"]


def save(vcon_uuid: str, opts: Options) -> None:
    """Insert a row for what the vCon says, then delete what that takes the place of."""
    vcon = vcons.get(vcon_uuid)
    try:
        with told("save to", opts):
            is_new = _save(vcon_uuid, vcon, opts)
    except StorageError:
        telemetry.count("conserver.storage.milvus.storage_failures")
        raise
    if is_new:
        telemetry.count("conserver.storage.milvus.vcons_stored")


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Delete all rows of the vCon; False if there was none."""
    with told("delete from", opts):
        rows = rows_of(opts)
        found = rows.find(vcon_uuid, names=["id"], make=False)
        rows.delete(found)
    return bool(found)


def ping(opts: Options) -> None:
    """Raise StorageError if the collection cannot be asked. The embedding service is not: that would cost money."""
    with told("read from", opts):
        rows_of(opts).find("ping", names=["id"])


def _save(vcon_uuid: str, vcon: Vcon, opts: Options) -> bool:
    """Return whether a row was written."""
    if vcon.sealed:
        raise StorageError(f"vCon {vcon_uuid} is {vcon.form}: there is nothing in it that could be embedded")
    started = time.monotonic()
    row = words.row_of(vcon, opts.model) | {"vcon_uuid": vcon_uuid}
    telemetry.observe("conserver.storage.milvus.text_extraction_time", time.monotonic() - started)
    rows = rows_of(opts)
    found = rows.find(vcon_uuid, names=["id", "updated_at", "embedding", *row])
    if not row["text"]:
        rows.delete(found)
        return False
    newest = max(found, key=_order, default=None)
    vector = _embedding_in(newest, row, opts) if newest and opts.skip_if_exists else None
    if vector and newest and all(newest[name] == value for name, value in row.items()):
        rows.delete(one for one in found if one["id"] != newest["id"])
        return False
    row["embedding"] = vector or _embed(row["text"], vcon_uuid, opts)
    row["updated_at"] = _later_than(found)
    written = rows.insert(row)
    # Every save looks after its insert, and all agree on which row is the newest: so one of them stays, and only one.
    found = [*rows.find(vcon_uuid, names=["id", "updated_at"]), row | {"id": written}]
    newest = max(found, key=_order)
    rows.delete(one for one in found if one["id"] != newest["id"])
    return True


def _embedding_in(found: Row, row: Row, opts: Options) -> list[float] | None:
    """Return the embedding of a row that is there, if it is one of the same text by the same model."""
    vector: list[float] = found["embedding"]
    same = all(found[name] == row[name] for name in ("text", "embedding_model"))
    # The existing conserver stores zeros where the embedding failed.
    return vector if same and len(vector) == opts.embedding_dim and any(vector) else None


def _embed(text: str, vcon_uuid: str, opts: Options) -> list[float]:
    started = time.monotonic()
    try:
        vector = embedding.embed(text, opts, vcon_uuid=vcon_uuid)
    except OutboundError as error:
        telemetry.count("conserver.storage.milvus.embedding_failures")
        raise StorageError(f"no embedding: {error}") from error
    telemetry.observe("conserver.storage.milvus.embedding_time", time.monotonic() - started)
    return vector


_SAVED_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def _saved_at(row: Row) -> str:
    # The existing conserver leaves it empty, or writes what it finds in the vCon.
    return row["updated_at"] if _SAVED_AT.fullmatch(row["updated_at"]) else ""


def _order(row: Row) -> tuple[str, int]:
    return _saved_at(row), row["id"]


def _later_than(found: list[Row]) -> str:
    """Return the time of now, or a moment after the latest of the rows: clocks of hosts differ."""
    now = datetime.now(UTC)
    with contextlib.suppress(ValueError):  # there is none
        now = max(now, datetime.fromisoformat(max(map(_saved_at, found), default="")) + timedelta(microseconds=1))
    return now.isoformat(timespec="microseconds").replace("+00:00", "Z")
