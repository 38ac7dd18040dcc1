"""Contents of dialogs in a bucket that speaks S3."""

import functools
import logging
import mimetypes
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from conserver import outbound
from conserver.errors import OutboundError, OutboundStatus
from conserver.outbound import Backoff, Retryable

# It writes signatures into the log, and a URL with its signature is all that it takes to hear the call.
logging.getLogger("botocore").setLevel(logging.WARNING)

# Not those of the machine: another machine would give the same content another key.
_types = mimetypes.MimeTypes()


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket, how to get in, and for how long the URLs hold that we make."""

    name: str
    path: str
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    region: str
    endpoint_url: str
    expires_secs: int


def store(bucket: Bucket, vcon_uuid: str, dialog: dict[str, Any], content: bytes, content_hash: str) -> dict[str, Any]:
    """Store a content unless it is there, and return the members by which a dialog refers to it.

    Raises OutboundError when it is not stored.
    """
    mediatype = dialog.get("mediatype")
    mediatype = mediatype if isinstance(mediatype, str) and re.fullmatch(r"[ -~]+", mediatype) else ""
    key = _key(bucket, vcon_uuid, dialog, content_hash, mediatype)
    client = _client(bucket)
    found = _attempt(bucket, "HEAD", lambda: client.head_object(Bucket=bucket.name, Key=key), missing=(403, 404))
    if found is None:
        stored = {"Bucket": bucket.name, "Key": key, "Body": content}
        stored["ContentType"] = mediatype or "application/octet-stream"
        _attempt(bucket, "PUT", lambda: client.put_object(**stored))
    asked = {"Bucket": bucket.name, "Key": key}
    url = client.generate_presigned_url("get_object", Params=asked, ExpiresIn=bucket.expires_secs)
    return {"url": url, "s3_object": {"bucket": bucket.name, "key": key, "region": bucket.region}}


def _key(bucket: Bucket, vcon_uuid: str, dialog: dict[str, Any], content_hash: str, mediatype: str) -> str:
    given = dialog.get("id")
    # It comes from the vCon, and shall lead nowhere else.
    dialog_id = re.sub(r"[^\w.-]", "_", str(given))[:100] + "_" if given not in (None, "") else ""
    suffix = _types.guess_extension(mediatype.partition(";")[0].strip().lower()) or ""
    path = f"{bucket.path}/" if bucket.path else ""
    return f"{path}{vcon_uuid}/{dialog_id}{content_hash}{suffix}"


def _attempt(bucket: Bucket, what: str, call: Callable[[], Any], *, missing: tuple[int, ...] = ()) -> Any:
    """Make a call to S3, and repeat what may go better; None if it answers with a status in *missing*."""
    from botocore.exceptions import (  # type: ignore[import-untyped]
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
    )

    where = f"{what} s3://{bucket.name}"

    def once() -> Any:
        try:
            return call()
        except ClientError as error:
            said = error.response.get("ResponseMetadata", {})
            status = int(said.get("HTTPStatusCode", 0))
            if status in missing:
                return None
            # Its message is not quoted: it may hold a part of the credentials.
            code = re.sub(r"[^\w.-]", "", str(error.response.get("Error", {}).get("Code", "")))[:80]
            message = f"{where}: answered {status} {code}".rstrip()
            if status == 429 or status >= 500:
                wait = outbound.retry_after(httpx.Headers(said.get("HTTPHeaders") or {}))
                raise Retryable(message, status=status, retry_after_secs=wait) from error
            raise OutboundStatus(message, status) from error
        except (HTTPClientError, ConnectionError) as error:
            raise Retryable(f"{where}: no answer ({type(error).__name__})") from error
        except BotoCoreError as error:
            raise OutboundError(f"{where}: {type(error).__name__}; see the options of the link") from error

    return outbound.retrying(f"s3 {bucket.endpoint_url or bucket.region} {bucket.name}", once, Backoff())


@functools.lru_cache(maxsize=16)
def _client(bucket: Bucket) -> Any:
    """Return a client; it may be used by all threads."""
    import boto3  # type: ignore[import-untyped]
    from botocore.config import Config  # type: ignore[import-untyped]

    config = Config(
        signature_version="s3v4",
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=64,
        # Repeating is left to outbound.retrying, which knows how long it may take.
        retries={"total_max_attempts": 1, "mode": "standard"},
        # Services that only speak S3 do not know the newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client(
        "s3",
        aws_access_key_id=bucket.access_key_id or None,
        aws_secret_access_key=bucket.secret_access_key or None,
        region_name=bucket.region,
        endpoint_url=bucket.endpoint_url or None,
        config=config,
    )
