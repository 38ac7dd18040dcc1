"""Keep each vCon as an object in a bucket of Amazon S3, or of a service that speaks its protocol.

    [s3_path/]YYYY/MM/DD/{uuid}.vcon     the vCon
    [s3_path/]lookup/{uuid}.txt          the date above: where to find it

The date is the one that `created_at` says, as it is written there; a vCon without a date lies beside the folders of the
years, and its pointer is empty. The existing conserver has the same layout: objects of either are read by both.

The object is written first, then the pointer. Where the date of a vCon has changed, the pointer names both places in
its metadata until the older object is removed, so that whatever a crash leaves is found by the next save or delete.
Objects without a pointer, as older versions of the existing conserver wrote them, are looked for without a folder, and
in that of the day with which a UUID of version 7 or 8 begins.

The rights that it needs: s3:GetObject, s3:PutObject and s3:DeleteObject for the objects, s3:ListBucket for the bucket;
without the last one, S3 does not tell a vCon that is not there from one that may not be read.

Reads: the object of a vCon, and its pointer. Writes: two objects for each vCon.
Needs: conserver[s3].
"""

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from conserver import StorageError, Vcon, outbound, vcons
from conserver.errors import OutboundError
from conserver.outbound import Backoff, Retryable

# It writes whole requests into the log, signatures and all.
logging.getLogger("botocore").setLevel(logging.WARNING)

_ALSO = "also"
_BACKOFF = Backoff(attempts=4, total_secs=20.0)


class Options(BaseModel):
    """Which bucket, and how to get in."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    aws_bucket: str = Field(min_length=1, description="The bucket; it must be there.")
    s3_path: str = Field(default="", description="What all keys begin with, without the slash at its end.")
    aws_access_key_id: SecretStr | None = Field(
        default=None,
        description="The access key; without it, the SDK finds one as it does everywhere: `AWS_ACCESS_KEY_ID`, "
        "`~/.aws`, the role of the machine or the pod.",
    )
    aws_secret_access_key: SecretStr | None = Field(default=None, description="The secret that belongs to it.")
    aws_region: str | None = Field(
        default=None,
        description="The region of the bucket; without it, that of `AWS_REGION` or `~/.aws`, or us-east-1.",
    )
    endpoint_url: str | None = Field(
        default=None, description="The URL of a service other than Amazon's; its buckets are then parts of the path."
    )
    format_version: Literal["0.0.1"] | None = Field(
        default=None, description="Version of the vCons as they are stored; without it, `EGRESS_FORMAT_VERSION`."
    )
    timeout: float = Field(default=30.0, gt=0, description="Seconds that one answer of the service may take.")

    @field_validator("aws_access_key_id", "aws_secret_access_key", "aws_region", "endpoint_url", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("endpoint_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise ValueError("is no URL of a service: write it as https://host:port")
        if url is not None and "@" in urlsplit(url).netloc:
            raise ValueError("must hold no login: give aws_access_key_id and aws_secret_access_key")
        return url

    @model_validator(mode="after")
    def _both_or_none(self) -> "Options":
        if (self.aws_access_key_id is None) != (self.aws_secret_access_key is None):
            raise ValueError("give aws_access_key_id and aws_secret_access_key, or neither of them")
        return self


@dataclass(frozen=True)
class _Pointer:
    """The folder of a vCon's object, and others in which there may be one, left by a save that was broken off."""

    day: str
    also: frozenset[str] = frozenset()


def save(vcon_uuid: str, opts: Options) -> None:
    """Write the vCon; one that is there already is replaced."""
    vcon = vcons.get(vcon_uuid)
    text = vcons.egress(vcon, opts.format_version)
    day = _day(vcon.created_at)
    before = _pointer(vcon_uuid, opts)
    stale = ({before.day, *before.also} if before else set()) - {day}
    if before and before.day != day:
        _point(vcon_uuid, _Pointer(before.day, frozenset({day, *stale} - {before.day})), opts)
    _call("save", "put_object", opts, Key=_key(vcon_uuid, day, opts), Body=text, ContentType="application/vcon+json")
    if before != _Pointer(day):
        _point(vcon_uuid, _Pointer(day, frozenset(stale)), opts)
    if stale:
        _delete([_key(vcon_uuid, other, opts) for other in stale], opts)
        _point(vcon_uuid, _Pointer(day), opts)


def get(vcon_uuid: str, opts: Options) -> dict[str, Any] | None:
    """Return the stored vCon, or None if there is none."""
    pointer = _pointer(vcon_uuid, opts)
    for day in (pointer.day, *pointer.also) if pointer else _guesses(vcon_uuid):
        key = _key(vcon_uuid, day, opts)
        found = _call("read", "get_object", opts, Key=key)
        if found is not None:
            try:
                return Vcon.parse(found["text"], migrate=False).document
            except ValueError as error:
                raise StorageError(f"s3://{opts.aws_bucket}/{key} is no vCon: {error}") from error
    return None


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Delete the vCon and its pointer; False if there was none. Older versions in a versioned bucket stay."""
    pointer = _pointer(vcon_uuid, opts)
    days = dict.fromkeys((*((pointer.day, *pointer.also) if pointer else ()), *_guesses(vcon_uuid)))
    keys = [_key(vcon_uuid, day, opts) for day in days]
    found = [key for key in keys if _call("delete", "head_object", opts, Key=key) is not None]
    _delete(found, opts)
    if pointer:
        # Last: as long as it is there, what is left is found again.
        _delete([_lookup_key(vcon_uuid, opts)], opts)
    return bool(found)


def list_uuids(opts: Options, after: str = "") -> Iterator[str]:
    """Yield the UUIDs of stored vCons in order, those behind *after*: of all that have a pointer."""
    begin = _lookup_key("", opts).removesuffix(".txt")
    last = _lookup_key(after, opts) if after else begin
    while True:
        page = _call("list", "list_objects_v2", opts, Prefix=begin, StartAfter=last) or {}
        keys = [one["Key"] for one in page.get("Contents", ())]
        yield from (key.removeprefix(begin).removesuffix(".txt") for key in keys)
        if not keys or not page.get("IsTruncated"):
            return
        last = keys[-1]


def ping(opts: Options) -> None:
    """Raise StorageError if the bucket cannot be listed."""
    _call("list", "list_objects_v2", opts, MaxKeys=1)


# Where things are


def _day(created_at: Any) -> str:
    try:
        created = datetime.fromisoformat(created_at or "")
    except (TypeError, ValueError):
        return ""
    return f"{created.year:04}/{created.month:02}/{created.day:02}"


def _guesses(vcon_uuid: str) -> tuple[str, ...]:
    if vcon_uuid[14:15] in ("7", "8"):
        with contextlib.suppress(ValueError, OverflowError):
            begun = datetime.fromtimestamp(int(vcon_uuid[:8] + vcon_uuid[9:13], 16) / 1000, UTC)
            return "", f"{begun:%Y/%m/%d}"
    return ("",)


def _key(vcon_uuid: str, day: str, opts: Options) -> str:
    return _prefixed(f"{day}/{vcon_uuid}.vcon" if day else f"{vcon_uuid}.vcon", opts)


def _lookup_key(vcon_uuid: str, opts: Options) -> str:
    return _prefixed(f"lookup/{vcon_uuid}.txt", opts)


def _prefixed(key: str, opts: Options) -> str:
    return f"{opts.s3_path.rstrip('/')}/{key}" if opts.s3_path else key


def _pointer(vcon_uuid: str, opts: Options) -> _Pointer | None:
    found = _call("read", "get_object", opts, Key=_lookup_key(vcon_uuid, opts))
    if found is None:
        return None
    return _Pointer(found["text"].decode("utf-8", "replace").strip(), _split(found["Metadata"].get(_ALSO, "")))


def _split(days: str) -> frozenset[str]:
    # The folder that has no name is written as a dot.
    return frozenset("" if day == "." else day for day in days.split())


def _point(vcon_uuid: str, pointer: _Pointer, opts: Options) -> None:
    also = {_ALSO: " ".join(sorted(day or "." for day in pointer.also))} if pointer.also else {}
    text = pointer.day.encode()
    _call(
        "save", "put_object", opts, Key=_lookup_key(vcon_uuid, opts), Body=text, ContentType="text/plain", Metadata=also
    )


def _delete(keys: list[str], opts: Options) -> None:
    for key in keys:
        _call("delete", "delete_object", opts, Key=key)


# Asking the service


_KEYS = "check aws_access_key_id and aws_secret_access_key"
_CURES = {
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"), _KEYS),
    "AccessDenied": "the key needs the rights s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket",
    "NoSuchBucket": "make it, or correct aws_bucket",
    "RequestTimeTooSkewed": "set the clock of this machine",
}


def _call(action: str, operation: str, opts: Options, **asked: Any) -> dict[str, Any] | None:
    """Make a call, repeat what may go better; None where the object is not there. Bodies come as `text`."""
    from botocore.exceptions import (  # type: ignore[import-untyped]
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        IncompleteReadError,
    )

    where = f"cannot {action} s3://{opts.aws_bucket}/{asked.get('Key', '')}"

    def attempt() -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = getattr(_client(opts), operation)(Bucket=opts.aws_bucket, **asked)
            return {**answer, "text": answer["Body"].read()} if operation == "get_object" else answer
        except ClientError as error:
            refusal = _refusal(where, error.response)
        except (HTTPClientError, ConnectionError, IncompleteReadError) as error:
            host = f" from {urlsplit(opts.endpoint_url).netloc}" if opts.endpoint_url else ""
            raise Retryable(f"{where}: no answer{host} ({type(error).__name__})") from error
        except BotoCoreError as error:
            name = type(error).__name__
            cure = _KEYS if "Credentials" in name else "check the options of the storage"
            raise StorageError(f"{where}: {name}; {cure}") from error
        if refusal is not None:
            raise refusal  # not from the error of the SDK, which quotes the answer
        return None

    try:
        return outbound.retrying(f"s3 {opts.endpoint_url or opts.aws_region} {opts.aws_bucket}", attempt, _BACKOFF)
    except OutboundError as error:
        raise StorageError(str(error)) from error


def _refusal(where: str, response: dict[str, Any]) -> Exception | None:
    """Return what an answer of S3 means; None if an object is not there. Its message may hold credentials."""
    said = response.get("ResponseMetadata", {})
    status = int(said.get("HTTPStatusCode", 0))
    code = re.sub(r"[^\w.-]", "", str(response.get("Error", {}).get("Code", "")))[:80]
    if status == 404 and code != "NoSuchBucket":
        return None
    message = f"{where}: answered {status} {code}".rstrip()
    if status == 429 or status >= 500 or code == "RequestTimeout":
        wait = outbound.retry_after(httpx.Headers(said.get("HTTPHeaders") or {}))
        return Retryable(message, status=status, retry_after_secs=wait)
    cure = _CURES.get("AccessDenied" if code == "403" else code)
    return StorageError(f"{message}; {cure}" if cure else message)


_making = threading.Lock()


def _client(opts: Options) -> Any:
    with _making:  # not several of them, when many threads begin at once
        return _new_client(opts)


@cache
def _new_client(opts: Options) -> Any:
    """Return a client; it may be used by all threads, and makes its connections anew where they break."""
    import boto3  # type: ignore[import-untyped]
    from botocore.config import Config  # type: ignore[import-untyped]

    # Services that only speak S3 may not know the newer checksums.
    checksums = "when_required" if opts.endpoint_url else "when_supported"
    config = Config(
        connect_timeout=5,
        read_timeout=opts.timeout,
        max_pool_connections=64,
        # Repeating is left to outbound.retrying, which knows how long it may take.
        retries={"total_max_attempts": 1, "mode": "standard"},
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
    )
    session = boto3.session.Session()
    return session.client(
        "s3",
        aws_access_key_id=opts.aws_access_key_id and opts.aws_access_key_id.get_secret_value(),
        aws_secret_access_key=opts.aws_secret_access_key and opts.aws_secret_access_key.get_secret_value(),
        region_name=opts.aws_region or session.region_name or "us-east-1",
        endpoint_url=opts.endpoint_url,
        config=config,
    )
