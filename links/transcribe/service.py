"""What the speech services have in common: options, one request, and what may be told of the options."""

import secrets
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from conserver import media, outbound, usage
from conserver.errors import OutboundError, OutboundStatus


class AudioOptions(BaseModel):
    """Which recordings are taken, and what fetching them may cost."""

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    minimum_duration: float = Field(default=0.0, ge=0, description="Seconds; what is known to be shorter is left out.")
    audio_timeout: float = Field(default=media.LIMITS.total_secs, gt=0, description="Seconds to fetch one recording.")
    max_audio_bytes: int = Field(default=media.LIMITS.max_bytes, gt=0, description="What one recording may have.")

    def limits(self) -> outbound.Limits:
        """Return what fetching one recording may cost."""
        return outbound.Limits(
            read_secs=min(media.LIMITS.read_secs, self.audio_timeout),
            total_secs=self.audio_timeout,
            max_bytes=self.max_audio_bytes,
        )


class ServiceOptions(AudioOptions, usage.UsageOptions):
    """How a service is called that is not OpenAI's."""

    timeout: float = Field(default=300.0, gt=0, description="Seconds for one call, up to the last byte.")
    retry_secs: float = Field(
        default=120.0,
        ge=0,
        description="Seconds in which a failed call is repeated, up to 6 calls; 0 leaves it to the chain's `retry`.",
    )


@dataclass(frozen=True)
class Transcript:
    """What becomes one analysis; `extra` are further members of it."""

    body: Any
    extra: dict[str, Any] = field(default_factory=lambda: {"mediatype": "application/json"})


class Patience(Protocol):
    """The options that say how long a service is waited for."""

    timeout: float
    retry_secs: float


def ask(
    opts: Patience, url: str, headers: dict[str, str], body: bytes | outbound.Upload, *, quote_answer: bool = True
) -> dict[str, Any]:
    """POST to a service and return its answer, a JSON object.

    A transcription changes nothing there, so it is repeated whenever it is not known what became of it.
    """
    try:
        answer = outbound.request(
            "POST",
            url,
            trusted=True,
            headers=headers,
            body=body,
            limits=outbound.Limits(read_secs=opts.timeout, total_secs=opts.timeout),
            backoff=outbound.Backoff(
                attempts=6,
                wait_secs=2.0,
                max_wait_secs=65.0,
                total_secs=opts.retry_secs,
                statuses=frozenset({408, 409, 429, 500, 502, 503, 504}),
            ),
            repeatable=True,
            quote_answer=quote_answer,
        )
    except OutboundStatus as error:
        if error.status in (401, 403):
            # Not quoted: services like to repeat the beginning and the end of the key.
            host = urlsplit(url).hostname
            raise OutboundStatus(
                f"{host}: answered {error.status}; check the key in the options", error.status
            ) from None
        raise
    found = answer.json()
    if not isinstance(found, dict):
        raise OutboundError(f"{answer.source}: the answer is no transcript but {type(found).__name__}")
    return found


def text_of(answer: dict[str, Any], url: str) -> str:
    """Return the text of an answer; it is empty where nothing is said, and OutboundError where it is no transcript."""
    text = answer.get("text")
    if not isinstance(text, str):
        raise OutboundError(f"{urlsplit(url).hostname}: the answer is no transcript: it has no text")
    return text


def multipart(fields: dict[str, str], file: BinaryIO, filename: str, mediatype: str) -> tuple[str, outbound.Upload]:
    """Return the content type and the body of a form that has a file, which is read while it is sent."""
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        f"Content-Type: {mediatype}\r\n\r\n"
    )
    body = outbound.Upload("".join(parts).encode(), file, f"\r\n--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", body


def shown(options: Any) -> dict[str, Any]:
    """Return the options that may stand in a vCon: those that are set, and of URLs the host alone."""
    return _shown(usage.safe_options(options))


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    told = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = _shown(value)
        elif isinstance(value, str) and "://" in value:
            parts = urlsplit(value)
            value = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        if value not in (None, "", {}):
            told[name] = value
    return told
