"""Keep each vCon in a row of a table at Space and Time, through the gateway of its SQL API.

    UUID primary key, VCON (the version of the draft), CREATED_AT, SUBJECT, VCON_JSON

The table must be there, with UUID as its primary key and not immutable; the existing conserver has the same columns.
VCON_JSON is the text of the vCon, so it comes back as it was. A vCon that is longer than this column is refused.

A save is an UPDATE, or an INSERT where there is no row to update; if somebody else was faster with that, it is an
UPDATE after all. Each is one statement on one row: whenever it breaks off, there is one whole version, or none yet. The
API takes no parameters, so all values are written as literals of SQL.

The rights that it needs: SELECT, INSERT, UPDATE and DELETE on the table, by the biscuits given here or by those that
the gateway keeps for the API key.

Reads: the row of a vCon. Writes: a row for each vCon.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from conserver import StorageError, Vcon, outbound, vcons
from conserver.errors import OutboundError, OutboundStatus
from conserver.outbound import Limits
from conserver.usage import plain_key

_COLUMNS = ("UUID", "VCON", "CREATED_AT", "SUBJECT", "VCON_JSON")
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?", re.ASCII)


def _biscuit_of_environment() -> SecretStr:
    # The second is what the existing conserver reads, the first what its documentation says.
    given = os.environ.get("SXT_VCON_TABLE_WRITE_BISCUIT", "") or os.environ.get("SXT_VCON_TABLE_WRITE_BISCUI", "")
    return SecretStr(given.strip())


class Options(BaseModel):
    """Which table, and how to get in."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    api_key: SecretStr = Field(
        default_factory=lambda: SecretStr(os.environ.get("SXT_API_KEY", "").strip()),
        validate_default=True,
        description="The API key; by default the environment's `SXT_API_KEY`.",
    )
    table_name: str = Field(
        default_factory=lambda: os.environ.get("SXT_VCON_TABLENAME", "").strip(),
        validate_default=True,
        description="The table, as `SCHEMA.TABLE`; by default the environment's `SXT_VCON_TABLENAME`.",
    )
    write_biscuit: SecretStr = Field(
        default_factory=_biscuit_of_environment,
        description="A biscuit for the table, which each statement is sent with; by default the environment's "
        "`SXT_VCON_TABLE_WRITE_BISCUIT`.",
    )
    read_biscuit: SecretStr = Field(default=SecretStr(""), description="A second one, where reading takes another.")
    api_url: str = Field(default="https://proxy.api.makeinfinite.dev", description="The gateway.")
    max_length: int = Field(
        default=65_536, ge=1, description="Most characters that `VCON_JSON` holds; a longer vCon is refused."
    )
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one attempt, up to the last byte.")
    name: str = Field(default="spaceandtime", description="Of no effect; the existing conserver has it.")
    authenticate: bool = Field(default=True, description="Of no effect; the existing conserver documents it.")
    auto_reconnect: bool = Field(default=True, description="Of no effect; the existing conserver documents it.")

    @field_validator("api_key", "write_biscuit", "read_biscuit", mode="before")
    @classmethod
    def _without_line_breaks(cls, value: Any) -> Any:
        return plain_key(value)

    @field_validator("api_key")
    @classmethod
    def _is_given(cls, key: SecretStr) -> SecretStr:
        if not key.get_secret_value():
            raise ValueError("no key: give api_key, or SXT_API_KEY in the environment")
        return key

    @field_validator("table_name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        if not name:
            raise ValueError("no table: give table_name, or SXT_VCON_TABLENAME in the environment")
        if not _NAME.fullmatch(name):
            raise ValueError("is no name of a table: write it as SCHEMA.TABLE, of letters, digits and underscores")
        return name

    @field_validator("api_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if not url.lower().startswith(("http://", "https://")):
            raise ValueError("is no URL: write it as https://proxy.api.makeinfinite.dev")
        return url.rstrip("/")


def save(vcon_uuid: str, opts: Options) -> None:
    """Write the row of the vCon, over the one that is there."""
    vcon = vcons.get(vcon_uuid)
    text = vcon.dumps()
    # As the service counts them: those beyond 65,535 are two.
    length = len(text.encode("utf-16-le")) // 2
    if length > opts.max_length:
        raise StorageError(
            f"vCon {vcon_uuid} has {length} characters and VCON_JSON holds {opts.max_length}: take the recordings out "
            "of it (links.diet), keep it elsewhere, or raise max_length if the column is wider"
        )
    version, subject = (vcon.document.get(name) for name in ("vcon", "subject"))
    row = (
        _literal(vcon_uuid),
        _literal(version if isinstance(version, str) else ""),
        _literal(_timestamp(vcon.created_at)),
        _literal(subject if isinstance(subject, str) else None),
        _literal(text),
    )
    members = ", ".join(f"{column} = {value}" for column, value in zip(_COLUMNS[1:], row[1:], strict=True))
    update = f"UPDATE {opts.table_name} SET {members} WHERE UUID = {row[0]}"  # noqa: S608 - literals, a checked name
    insert = f"INSERT INTO {opts.table_name} ({', '.join(_COLUMNS)}) VALUES ({', '.join(row)})"  # noqa: S608
    with _told("save to", opts):
        if _change(update, opts):
            return
        refusal: OutboundError = OutboundError("neither UPDATE nor INSERT has changed a row")
        try:
            if _change(insert, opts):
                return
        except (OutboundStatus, _NoCount) as error:
            refusal = error
        # Perhaps the row is there by now: of somebody else, or of an attempt whose answer was lost.
        if not _change(update, opts):
            raise refusal


def get(vcon_uuid: str, opts: Options) -> dict[str, Any] | None:
    """Return the stored vCon, or None if there is none."""
    statement = f"SELECT VCON_JSON FROM {opts.table_name} WHERE UUID = {_literal(vcon_uuid)}"  # noqa: S608
    with _told("read from", opts):
        rows = _rows(statement, opts)
        text = rows[0].get("VCON_JSON") if rows else None
        if not rows:
            return None
        try:
            if isinstance(text, str):
                return Vcon.parse(text, migrate=False).document
        except ValueError as error:
            raise StorageError(f"the VCON_JSON of {vcon_uuid[:80]} is no vCon: {error}") from error
        raise StorageError(f"the VCON_JSON of {vcon_uuid[:80]} is no text")


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Delete the row of the vCon; False if there was none."""
    with _told("delete from", opts):
        return _change(f"DELETE FROM {opts.table_name} WHERE UUID = {_literal(vcon_uuid)}", opts) > 0  # noqa: S608


def ping(opts: Options) -> None:
    """Raise StorageError if the table cannot be read, or not be written to."""
    with _told("use", opts):
        _rows(f"SELECT {', '.join(_COLUMNS)} FROM {opts.table_name} WHERE UUID = ''", opts)  # noqa: S608
        _change(f"UPDATE {opts.table_name} SET VCON = '' WHERE UUID = ''", opts)  # noqa: S608


# SQL


_REFUSED = re.compile("[\0\ud800-\udfff]")


def _literal(value: str | None) -> str:
    """Return the text as a literal of SQL, with U+FFFD for what is no character of a text."""
    return "NULL" if value is None else "'" + _REFUSED.sub("\ufffd", value).replace("'", "''") + "'"


def _timestamp(text: Any) -> str | None:
    try:
        moment = datetime.fromisoformat(text)
        # One without a zone stays as it is written.
        moment = moment.astimezone(UTC) if moment.tzinfo else moment
    except (TypeError, ValueError, OverflowError):
        return None
    return moment.replace(tzinfo=None).isoformat(sep=" ", timespec="seconds")


class _NoCount(OutboundError):
    """The answer does not say how many rows were changed."""


def _change(statement: str, opts: Options) -> int:
    """Run a statement that changes rows, and return how many it has changed."""
    rows = _rows(statement, opts)
    counts = list(rows[0].values()) if len(rows) == 1 else []
    if len(counts) != 1 or type(counts[0]) is not int:
        raise _NoCount("the answer does not say how many rows were changed; is api_url the gateway's?")
    return counts[0]


def _rows(statement: str, opts: Options) -> list[dict[str, Any]]:
    biscuits = [one.get_secret_value() for one in (opts.write_biscuit, opts.read_biscuit)]
    asked: dict[str, Any] = {"sqlText": statement}
    if any(biscuits):
        asked["biscuits"] = [one for one in dict.fromkeys(biscuits) if one]
    answer = outbound.request(
        "POST",
        f"{opts.api_url}/v1/sql",
        trusted=True,
        headers={
            "Content-Type": "application/json",
            "Accept": "application/json",
            "apikey": opts.api_key.get_secret_value(),
        },
        body=json.dumps(asked).encode(),
        limits=Limits.within(opts.timeout),
        repeatable=True,  # a second UPDATE or DELETE changes nothing more, and a second INSERT is refused
        quote_answer=False,  # it may repeat the statement, and with it the vCon
    )
    rows = answer.json()
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise OutboundError(f"{answer.source}: the answer is no list of rows; is api_url the gateway's?")
    return rows


_RIGHTS = "check api_key and the biscuits: they must allow SELECT, INSERT, UPDATE and DELETE on the table"
_CURES = {
    400: f"is the table there, not immutable, with wide enough columns {', '.join(_COLUMNS)}, UUID its primary key?",
    401: _RIGHTS,
    403: _RIGHTS,
    404: "is api_url the gateway's?",
    413: "the vCon is too large for the gateway",
}


@contextmanager
def _told(action: str, opts: Options) -> Iterator[None]:
    where = f"cannot {action} table {opts.table_name}"
    try:
        yield
    except OutboundError as error:
        cure = _CURES.get(error.status) if isinstance(error, OutboundStatus) else None
        raise StorageError(f"{where}: {error}{f'; {cure}' if cure else ''}") from error
    except StorageError as error:
        raise StorageError(f"{where}: {error}") from error
