"""Have a vfun server transcribe each recording, and keep what it says as an analysis `wtf_transcription`.

Every dialog of type `recording` that has none yet is sent as a form: the audio as `file-binary`, `diarize`, and
`language` if it is set. The answer, in the World Transcription Format, becomes the body of the analysis. With several
servers each recording begins with another one, and goes to the next when a server fails.

Each transcript is saved before the next recording is sent. When one fails, the others are transcribed all the same;
then the link fails, and a later run does what is left. A signed or encrypted vCon shows no dialogs and passes through.

Reads: the audio of recordings, inline or by URL. Writes: an analysis `wtf_transcription` for each of them.
"""

import hashlib
import json
import logging
import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from conserver import LinkError, Vcon, media, outbound, vcons
from conserver.errors import OutboundError
from conserver.outbound import Limits

log = logging.getLogger(__name__)

_TYPE = "wtf_transcription"
_NO_SECRET = SecretStr("")


class Options(BaseModel):
    """Which servers to ask, and for what."""

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    vfun_server_url: list[str] = Field(
        alias="vfun-server-url",
        description="The vfun server; several as a list, or with commas.",
        json_schema_extra={"type": ["string", "array"], "x-type": "text or list of text"},
    )
    language: str | None = Field(default=None, description="The language that is spoken; unset, vfun finds out.")
    diarize: bool = Field(default=False, description="Tell the speakers apart.")
    vfun_timeout: float = Field(
        default=300.0, gt=0, alias="vfun-timeout", description="Seconds for one transcription, up to the last byte."
    )
    url_timeout: float = Field(
        default=60.0, gt=0, alias="url-timeout", description="Seconds for fetching the audio of a dialog's `url`."
    )
    api_key: SecretStr = Field(default=_NO_SECRET, alias="api-key", description="Bearer token for the vfun servers.")

    @field_validator("vfun_server_url", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        urls = value.split(",") if isinstance(value, str) else value or []
        return [url.strip() if isinstance(url, str) else url for url in urls] if isinstance(urls, list) else urls

    @field_validator("vfun_server_url")
    @classmethod
    def _are_urls(cls, urls: list[str]) -> list[str]:
        urls = [url for url in urls if url]
        if not urls:
            raise ValueError("names no server: write http://host:4380/wtf")
        for number, url in enumerate(urls, 1):
            if not url.lower().startswith(("http://", "https://")):
                raise ValueError(f"number {number} is not a URL: write http://host:4380/wtf")
        return urls

    @field_validator("api_key", mode="before")
    @classmethod
    def _null_is_no_key(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else _NO_SECRET if value is None else value


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Add the missing transcripts; returns the UUID, raises LinkError that names the dialogs without one."""
    vcon = vcons.get(vcon_uuid)
    failures = []
    for index, dialog in enumerate(vcon.dialog):
        if not media.has_audio(dialog) or _is_transcribed(vcon, index):
            continue
        try:
            transcript = _transcribe(vcon_uuid, index, dialog, opts)
        except (OutboundError, LinkError) as error:
            failures.append((index, error))
            continue
        with vcons.edit(vcon_uuid) as current:
            if _is_transcribed(current, index):  # by somebody else, while we waited for the server
                continue
            current.add_analysis(
                type=_TYPE,
                dialog=index,
                vendor="vfun",
                body=transcript,
                encoding="json",
                extra={"mediatype": "application/json", "schema": "wtf-1.0"},
            )
    if failures:
        said = "; ".join(f"dialog {index}: {error}" for index, error in failures)
        raise LinkError(said) from failures[0][1]
    return vcon_uuid


def _is_transcribed(vcon: Vcon, index: int) -> bool:
    return any(
        index in (dialogs if isinstance(dialogs := entry.get("dialog"), list) else [dialogs])
        for entry in vcon.analysis
        if entry.get("type") == _TYPE
    )


def _transcribe(vcon_uuid: str, index: int, dialog: dict[str, Any], opts: Options) -> dict[str, Any]:
    """Return the transcript of the first server that gives one; raises the error of the last."""
    limits = Limits(
        read_secs=min(media.LIMITS.read_secs, opts.url_timeout),
        total_secs=opts.url_timeout,
        max_bytes=media.LIMITS.max_bytes,
    )
    # The same recording always begins with the same server, and all recordings together with all of them.
    first = hashlib.sha256(f"{vcon_uuid} {index}".encode()).digest()[0] % len(opts.vfun_server_url)
    urls = opts.vfun_server_url[first:] + opts.vfun_server_url[:first]
    with media.audio(dialog, limits=limits) as audio:
        content_type, form = _form(audio, opts)
        for url in urls[:-1]:
            try:
                return _ask(url, content_type, form, opts)
            except OutboundError as error:
                log.warning("dialog %d goes to the next vfun server: %s", index, error)
        return _ask(urls[-1], content_type, form, opts)


def _form(audio: media.Audio, opts: Options) -> tuple[str, outbound.Upload]:
    """Return the content type and the body of a form; the audio in it is read while it is sent."""
    boundary = secrets.token_hex(16)
    fields = {"diarize": str(opts.diarize).lower(), **({"language": opts.language} if opts.language else {})}
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file-binary"; filename="{audio.filename}"\r\n'
        f"Content-Type: {audio.mediatype}\r\n\r\n"
    )
    body = outbound.Upload("".join(parts).encode(), audio.file, f"\r\n--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", body


def _ask(url: str, content_type: str, form: outbound.Upload, opts: Options) -> dict[str, Any]:
    headers = {"Content-Type": content_type}
    if key := opts.api_key.get_secret_value():
        headers["Authorization"] = f"Bearer {key}"
    answer = outbound.request(
        "POST",
        url,
        trusted=True,
        headers=headers,
        body=form,
        limits=Limits(read_secs=opts.vfun_timeout, total_secs=opts.vfun_timeout),
        repeatable=True,
    )
    said = answer.json()
    if isinstance(said, str):  # some versions of vfun encode their answer twice
        try:
            said = json.loads(said)
        except ValueError:
            said = None
    if not isinstance(said, dict) or not isinstance(said.get("transcript"), dict):
        raise OutboundError(f"{answer.source}: the answer is no transcript in the World Transcription Format")
    if opts.language:
        said["transcript"]["language"] = opts.language
    return said
