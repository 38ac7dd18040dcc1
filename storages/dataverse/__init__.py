"""Keep each vCon in a row of a Microsoft Dataverse table, by its Web API.

    {url}/api/data/v{api_version}/{entity_name}: the columns uuid_field, data_field (the JSON), subject_field and
    created_at_field, in a table that somebody has made

These are the columns of the existing conserver, which makes a new row with each save. Such rows are found: the latest
counts, and the next save writes it anew and deletes the others. The rows of our own have the UUID of the vCon as their
primary key, so that there can be but one, however many saves meet; one PATCH makes or replaces it.

A text column holds at most 1,048,576 characters. A vCon that takes more, as one with a recording inside, is refused.

The rights that it needs: the application is an application user of the environment, with a role that may create, read,
write and delete rows of the table.

Reads: the row of a vCon. Writes: a row for each vCon.
Needs: conserver[dataverse].
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import Field

from conserver import StorageError, Vcon, vcons
from conserver.errors import NotAVcon, OutboundError

from . import web_api
from .web_api import Environment, Refused

_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
# The most that Dataverse allows for a text column, in units of UTF-16.
_MOST_CHARACTERS = 1_048_576
_TOO_LONG = "0x80044331"
# Where Dataverse does not say how long a subject may be: as long as in a new text column.
_SHORT = 100
# What XML cannot say, in which parts of Dataverse hand rows on.
_UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# So often somebody else may make or delete a row between our look and our write.
_ATTEMPTS = 3
_PAGE = 1000


class Options(Environment):
    """Which table, and how to get in."""

    entity_name: str = Field(
        default="vcon_storage", pattern=_NAME, description="The table, by the name that it has in URLs."
    )
    entity_set_name: str | None = Field(
        default=None, pattern=_NAME, description="That name, where `entity_name` is the logical name of the table."
    )
    uuid_field: str = Field(default="vcon_uuid", pattern=_NAME, description="The text column with the UUID.")
    data_field: str = Field(
        default="vcon_data",
        pattern=_NAME,
        description="The column of multiline text with the JSON; 1,048,576 should be its maximum.",
    )
    subject_field: str = Field(default="vcon_subject", pattern=_NAME, description="The text column with the subject.")
    created_at_field: str = Field(
        default="vcon_created_at", pattern=_NAME, description="The column with `created_at`: date and time, or text."
    )
    name: str = Field(default="dataverse", description="Of no effect; the existing conserver has it.")

    @property
    def entity_set(self) -> str:
        """The table in URLs."""
        return self.entity_set_name or self.entity_name

    @property
    def columns(self) -> tuple[str, str, str, str]:
        """All columns that are used."""
        return (self.uuid_field, self.data_field, self.subject_field, self.created_at_field)


def save(vcon_uuid: str, opts: Options) -> None:
    """Write the row of the vCon in one request, then delete what else there is of it."""
    vcon = vcons.get(vcon_uuid)
    text = _UNFIT.sub(lambda found: f"\\u{ord(found[0]):04x}", vcon.to_bytes().decode())
    if (size := _length(text)) > _MOST_CHARACTERS:
        raise StorageError(
            f"cannot save to {opts.entity_set} at {opts.url}: vCon {vcon_uuid} has {size} characters, and a text "
            f"column holds at most {_MOST_CHARACTERS}; leave recordings out of it, with a url in their place, or save "
            "it to another storage"
        )
    subject = _UNFIT.sub("\ufffd", vcon.subject) if isinstance(vcon.subject, str) else None
    row = {
        opts.uuid_field: vcon_uuid,
        opts.data_field: text,
        opts.subject_field: subject,
        opts.created_at_field: _date(vcon.created_at),
    }
    with _told("save to", opts):
        _replace(vcon_uuid, row, opts)


def get(vcon_uuid: str, opts: Options) -> dict[str, Any] | None:
    """Return the vCon of the latest row, or None if there is none."""
    with _told("read from", opts):
        rows = _query(vcon_uuid, opts, (opts.uuid_field, opts.data_field), "&$orderby=modifiedon%20desc&$top=1")
        text = rows[0].get(opts.data_field) if rows else None
        if not text:
            return None
        try:
            return Vcon.parse(text, migrate=False).document
        except (NotAVcon, TypeError):
            # Not chained: that may quote what is there.
            raise StorageError(f"{opts.data_field} of {vcon_uuid} holds no vCon: has somebody changed it?") from None


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Delete all rows of the vCon; False if there was none."""
    with _told("delete from", opts):
        ids = _ids(vcon_uuid, opts)
        for one in ids:
            _delete(one, opts)
    return bool(ids)


def list_uuids(opts: Options, after: str = "") -> Iterator[str]:
    """Yield the UUIDs of stored vCons in order, those behind *after*, each once.

    StorageError where capitals put them into another order than that of their text: Dataverse knows no case.
    """
    with _told("list", opts):
        last = after
        while page := _page(after, opts):
            if page[-1] == after:
                raise OutboundError(f"the answer begins anew behind {after!r}")
            after = page[-1]
            for one in filter(_UUID.fullmatch, page):
                if one.lower() == last.lower():
                    continue
                if one < last:
                    raise StorageError(
                        f"{last} comes before {one}, but not as text: UUIDs with capitals and without cannot be listed "
                        "together; name them (conserver storage copy --uuids)"
                    )
                last = one
                yield one


def ping(opts: Options) -> None:
    """Raise StorageError if the table or one of its columns cannot be read."""
    with _told("read from", opts):
        _query("", opts, opts.columns, "&$top=1")


# The rows


def _replace(vcon_uuid: str, row: dict[str, Any], opts: Options) -> None:
    own = _row_id(vcon_uuid)
    for attempt in range(1, _ATTEMPTS + 1):
        ids = _ids(vcon_uuid, opts)
        # One that the existing conserver has made stays, since the table may have a key that forbids a second one.
        kept = own if own in ids or not ids else ids[0]
        try:
            _write(kept, row, opts, must_exist=kept != own)
            break
        except Refused as error:
            # The row that was there has gone, or there is one now that was not there.
            if error.status not in (404, 412) or attempt == _ATTEMPTS:
                raise
    for other in ids:
        if other != kept:
            _delete(other, opts)


def _row_id(vcon_uuid: str) -> str:
    """Return the primary key of our row: the UUID itself, if it is one as it should be."""
    try:
        plain = str(UUID(vcon_uuid))
    except ValueError:
        plain = ""
    return plain if plain == vcon_uuid.lower() else str(uuid5(NAMESPACE_URL, f"vcon:{vcon_uuid}"))


def _write(row_id: str, row: dict[str, Any], opts: Options, *, must_exist: bool) -> None:
    path = f"{opts.entity_set}({row_id})"
    try:
        web_api.request("PATCH", path, opts, row=row, must_exist=must_exist)
    except Refused as error:
        most = _most(error)
        subject = row[opts.subject_field] or ""
        if error.code != _TOO_LONG or f"'{opts.subject_field}'" not in error.text or _length(subject) <= most:
            raise
        # The whole of it is in the JSON.
        cut = subject.encode("utf-16-le")[: 2 * most].decode("utf-16-le", "ignore")
        web_api.request("PATCH", path, opts, row={**row, opts.subject_field: cut}, must_exist=must_exist)


def _delete(row_id: str, opts: Options) -> None:
    try:
        web_api.request("DELETE", f"{opts.entity_set}({row_id})", opts)
    except Refused as error:
        if error.status != 404:  # somebody else was faster
            raise


def _ids(vcon_uuid: str, opts: Options) -> list[str]:
    """Return the primary keys of the rows of a vCon, always in the same order."""
    asked = (opts.uuid_field, opts.subject_field)
    return sorted(_id(row, asked, opts) for row in _query(vcon_uuid, opts, asked, ""))


def _id(row: dict[str, Any], asked: tuple[str, ...], opts: Options) -> str:
    # Its name follows from the logical name of the table, which is not that of the set; but it comes unasked.
    own = f"{opts.entity_name}id"
    names = [own] if own in row else [name for name in row if "@" not in name and name not in asked]
    try:
        [row_id] = [str(UUID(row[name])) for name in names]
    except (ValueError, TypeError, AttributeError):
        raise OutboundError(f"the answer does not say which row it is, but has {', '.join(names)[:200]}") from None
    return row_id


def _query(vcon_uuid: str, opts: Options, asked: tuple[str, ...], more: str) -> list[dict[str, Any]]:
    condition = f"{opts.uuid_field} eq {_quoted(vcon_uuid)}"
    rows = _rows(asked, condition, opts, more)
    # What is deleted and written depends on it, so the filter is not taken on trust.
    return [row for row in rows if str(row.get(opts.uuid_field)).lower() == vcon_uuid.lower()]


def _page(after: str, opts: Options) -> list[str]:
    """Return what the next rows have as UUID; some may have the same, or what is none."""
    condition = f"{opts.uuid_field} gt {_quoted(after)}" if after else f"{opts.uuid_field} ne null"
    more = f"&$orderby={opts.uuid_field}%20asc&$top={_PAGE}"
    return [str(row.get(opts.uuid_field)) for row in _rows((opts.uuid_field,), condition, opts, more)]


def _rows(asked: tuple[str, ...], condition: str, opts: Options, more: str) -> list[dict[str, Any]]:
    path = f"{opts.entity_set}?$select={','.join(asked)}&$filter={quote(condition, safe='')}{more}"
    rows = web_api.request("GET", path, opts).get("value")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise OutboundError("the answer has no list of rows in 'value'; is url that of an environment?")
    return rows


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# What Dataverse takes, and what it says


def _length(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _date(text: Any) -> str | None:
    """Return a date in UTC, or None for what is none or before those of Dataverse."""
    try:
        moment = datetime.fromisoformat(text)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if moment.year < 1753 else f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def _most(error: Refused) -> int:
    found = re.search(r"'(\d{1,9})'", error.text)
    return int(found[1]) if found else _SHORT


def _cure(error: Refused, opts: Options) -> str:
    columns = ", ".join(name for name in opts.columns if f"'{name}'" in error.text)
    if error.status == 401:
        return "; it does not take the token: check that url and tenant_id belong together"
    if error.status == 403:
        return "; make the application an application user of the environment, with a role that may do that"
    if error.status == 404:
        return (
            f"; there is no set {opts.entity_set}: most are in the plural, as {opts.entity_set}s; "
            "give the one of the table as entity_set_name"
        )
    if error.code == _TOO_LONG:
        return f"; column {columns} is too short: let it have up to {_MOST_CHARACTERS} characters"
    return f"; check column {columns or 'names and types'}" if error.status == 400 else ""


@contextmanager
def _told(action: str, opts: Options) -> Iterator[None]:
    where = f"cannot {action} {opts.entity_set} at {opts.url}"
    try:
        yield
    except ModuleNotFoundError as error:
        raise StorageError(f"{where}: {error} (pip install 'conserver[dataverse]')") from error
    except Refused as error:
        raise StorageError(f"{where}: {error}{_cure(error, opts)}") from error
    except OutboundError as error:
        raise StorageError(f"{where}: {error}") from error
    except StorageError as error:
        raise StorageError(f"{where}: {error}") from None
