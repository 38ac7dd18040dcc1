"""The audio of a dialog, inline or behind a URL, as a file that is gone when it is closed.

    with audio(dialog, limits=limits) as sound:
        send(sound.file, sound.filename, sound.mediatype)

Authors of links find all of this in `conserver.media`. The audio is on disk, not in memory; the file has no name, so
a process that is killed leaves nothing behind.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import mimetypes
import os
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from conserver import outbound
from conserver.errors import LinkError, OutboundError, OutboundTooLarge
from conserver.outbound import Limits

LIMITS = Limits(read_secs=60.0, total_secs=300.0, max_bytes=512 * 1024 * 1024)
"""What fetching the audio of a dialog may cost, unless a link says otherwise."""

_STEP = 1024 * 1024
_HEAD = 64 * 1024
_STRICT = {"base64": re.compile(r"[A-Za-z0-9+/]*"), "base64url": re.compile(r"[A-Za-z0-9_-]*")}
_DIGESTS = ("sha256", "sha384", "sha512")

#: Services tell the format of a file by the ending of its name; these are the names that they know.
_ENDINGS = {
    **dict.fromkeys(("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"), ".wav"),
    **dict.fromkeys(("audio/mpeg", "audio/mp3", "audio/x-mp3", "audio/x-mpeg-3"), ".mp3"),
    **dict.fromkeys(("audio/mp4", "audio/x-mp4", "audio/m4a", "audio/x-m4a"), ".m4a"),
    **{"video/mp4": ".mp4", "video/x-mp4": ".mp4", "audio/ogg": ".ogg", "audio/opus": ".opus"},
    **{"audio/flac": ".flac", "audio/x-flac": ".flac", "audio/webm": ".webm", "video/webm": ".webm"},
}
_BEGINNINGS = (
    (re.compile(rb"RIFF....WAVE", re.DOTALL), "audio/wav"),
    (re.compile(rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]"), "audio/mpeg"),
    (re.compile(rb"fLaC"), "audio/flac"),
    (re.compile(rb"OggS"), "audio/ogg"),
    (re.compile(rb"....ftyp", re.DOTALL), "audio/mp4"),
    (re.compile(rb"\x1aE\xdf\xa3"), "audio/webm"),
)


@dataclass(frozen=True)
class Audio:
    """The audio of one dialog."""

    file: BinaryIO
    """At its beginning, and closed at the end of the block."""
    size: int
    mediatype: str
    filename: str
    """Without a folder, and with the ending that belongs to the mediatype; fit for a header."""
    duration: float | None
    """In seconds: from the header of a WAV, else as the dialog says, else None."""

    @property
    def path(self) -> str:
        """A path for this process, or for a child that gets `file.fileno()` in its `pass_fds`."""
        return f"/dev/fd/{self.file.fileno()}"


@contextmanager
def audio(dialog: Mapping[str, Any], *, limits: Limits = LIMITS) -> Iterator[Audio]:
    """Yield the audio of a dialog: its inline body, or else what its `url` gives, checked against the `content_hash`.

    The URL is one of a vCon, so it reaches no private address and no file unless the config's `outbound` allows it.
    Raises LinkError when the dialog has no audio, or not what it says; OutboundError when it cannot be fetched.
    """
    with tempfile.TemporaryFile(prefix="conserver-") as opened:
        file = cast(BinaryIO, opened)
        told = None
        if dialog.get("body"):
            _decode(dialog, file, limits.max_bytes)
        elif isinstance(dialog.get("url"), str) and dialog["url"]:
            expected = _hashes(dialog)
            answer = outbound.request("GET", dialog["url"], trusted=False, into=file, limits=limits)
            told = answer.headers.get("content-type")
            _check_hashes(file, expected, answer.source)
        else:
            raise LinkError("the dialog has neither a body nor a url, so there is no audio in it")
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise LinkError("the audio of the dialog is empty")
        file.seek(0)
        head = file.read(_HEAD)
        file.seek(0)
        kind = _mediatype(dialog, told, head)
        measured = wav_seconds(head, size)
        duration = said_seconds(dialog) if measured is None else measured
        yield Audio(file, size, kind, _filename(dialog, kind), duration)


def has_audio(dialog: Mapping[str, Any]) -> bool:
    """True for a recording with a body or a URL."""
    return dialog.get("type") == "recording" and bool(dialog.get("body") or dialog.get("url"))


def seconds(dialog: Mapping[str, Any], *, limits: Limits = LIMITS) -> float | None:
    """Return how long a dialog is, without fetching its audio: as it says, or from the header of a WAV.

    None when neither tells, which includes a URL that does not answer now.
    """
    said = said_seconds(dialog)
    url = dialog.get("url")
    if said is not None:
        return said
    if dialog.get("body"):
        return _inline_seconds(dialog)
    if not isinstance(url, str):
        return None
    if not (urlsplit(url).path.lower().endswith(".wav") or "wav" in str(dialog.get("mediatype")).lower()):
        return None
    begun = io.BytesIO()
    part = Limits(read_secs=limits.read_secs, total_secs=min(30.0, limits.total_secs), max_bytes=_HEAD)
    size = None
    try:
        # Whoever does not know ranges sends it all; then the limit ends it, and what came is enough.
        answer = outbound.request(
            "GET", url, trusted=False, headers={"Range": f"bytes=0-{_HEAD - 1}"}, into=begun, limits=part
        )
        size = int(answer.headers.get("content-range", "").rpartition("/")[2])
    except (OutboundTooLarge, ValueError):
        pass
    except OutboundError:
        return None
    return wav_seconds(begun.getvalue(), size)


def said_seconds(dialog: Mapping[str, Any]) -> float | None:
    """Return the `duration` of a dialog in seconds, or None when it has none that is a number."""
    value = dialog.get("duration")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number < float("inf") else None


def wav_seconds(head: bytes, size: int | None) -> float | None:
    """Return how long a WAV is by its first bytes; *size* is that of the whole file, for headers that leave it open."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    rate, at = 0, 12
    while at + 8 <= len(head):
        name, length = struct.unpack_from("<4sI", head, at)
        at += 8
        if name == b"fmt " and at + 16 <= len(head):
            rate = struct.unpack_from("<I", head, at + 8)[0]
        elif name == b"data":
            # What is recorded while it is sent has 0 or the largest number here.
            held = length if 0 < length < 0xFFFFFF00 else (size or at) - at
            if size is not None:
                held = min(held, size - at)
            return held / rate if rate and held > 0 else None
        at += length + length % 2
    return None


def _decode(dialog: Mapping[str, Any], file: BinaryIO, max_bytes: int) -> None:
    """Write the inline body as bytes, a piece at a time."""
    body, encoding = dialog["body"], dialog.get("encoding") or "base64"
    if encoding not in _STRICT or not isinstance(body, str):
        what = f"encoding {encoding!r:.40}" if isinstance(body, str) else f"a body that is {type(body).__name__}"
        raise LinkError(f"the dialog has {what}, which is no audio; base64url and base64 are")
    if len(body) // 4 * 3 > max_bytes * 2:
        raise LinkError(f"the audio of the dialog has more than {max_bytes} bytes")
    not_that = LinkError(f"the body of the dialog is no {encoding}")
    rest = ""
    for start in range(0, len(body), _STEP):
        text = rest + "".join(body[start : start + _STEP].split())
        plain = text.rstrip("=")
        if not _STRICT[encoding].fullmatch(plain):
            raise not_that
        cut = len(plain) - len(plain) % 4
        file.write(_bytes(text[:cut], encoding, not_that))
        rest = text[cut:]
    file.write(_bytes(rest, encoding, not_that))
    if file.tell() > max_bytes:
        raise LinkError(f"the audio of the dialog has more than {max_bytes} bytes")


def _inline_seconds(dialog: Mapping[str, Any]) -> float | None:
    body, encoding = dialog["body"], dialog.get("encoding") or "base64"
    if encoding not in _STRICT or not isinstance(body, str):
        return None
    text = "".join(body[:_HEAD].split()).rstrip("=")
    try:
        head = _bytes(text[: len(text) - len(text) % 4], encoding, LinkError("no base64"))
    except LinkError:
        return None
    return wav_seconds(head, len(body) * 3 // 4)


def _bytes(text: str, encoding: str, not_that: LinkError) -> bytes:
    if encoding == "base64url":
        text = text.rstrip("=")
        text += "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text, altchars=b"-_" if encoding == "base64url" else None, validate=True)
    except (binascii.Error, ValueError):
        raise not_that from None


def _hashes(dialog: Mapping[str, Any]) -> dict[str, set[bytes]]:
    """Return what the audio must hash to, by algorithm; LinkError when nothing of what is given can be checked."""
    given = dialog.get("content_hash")
    texts = list(given) if isinstance(given, list) else [given] if given is not None else []
    alg, signature = dialog.get("alg"), dialog.get("signature")
    if alg is not None and signature is not None:  # how drafts before 0.0.2 said it
        legacy = re.fullmatch(r"sha-?(\d+)", str(alg).lower())
        texts.append(f"{'sha' + legacy[1] if legacy else alg}-{signature}")
    expected: dict[str, set[bytes]] = {}
    unknown = []
    for text in texts:
        algorithm, _, digest = str(text).partition("-")
        if algorithm.lower() not in _DIGESTS:
            unknown.append(algorithm)
            continue
        expected.setdefault(algorithm.lower(), set()).add(_digest(algorithm.lower(), digest))
    if unknown and not expected:
        names = ", ".join(f"{name:.40}" for name in unknown)
        raise LinkError(f"the hash of the audio is {names}, which is not known; known are {', '.join(_DIGESTS)}")
    return expected


def _digest(algorithm: str, text: str) -> bytes:
    text = text.rstrip("=").replace("+", "-").replace("/", "_")
    try:
        digest = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != hashlib.new(algorithm).digest_size:
        raise LinkError(f"the {algorithm} of the dialog's audio is no {algorithm} in base64url")
    return digest


def _check_hashes(file: BinaryIO, expected: dict[str, set[bytes]], source: str) -> None:
    for algorithm, digests in expected.items():
        file.seek(0)
        if digests != {hashlib.file_digest(cast(Any, file), algorithm).digest()}:
            raise LinkError(f"{source}: the audio is not what the dialog says: its {algorithm} differs")


def _mediatype(dialog: Mapping[str, Any], told: str | None, head: bytes) -> str:
    """Return what the dialog says, or else what the bytes look like, or else what the server says."""
    looks_like = next((kind for beginning, kind in _BEGINNINGS if beginning.match(head)), None)
    for kind in (dialog.get("mediatype"), looks_like, told):
        plain = str(kind or "").partition(";")[0].strip().lower()
        if re.fullmatch(r"[a-z]+/[\w.+-]+", plain, re.ASCII):
            return plain
    return "application/octet-stream"


def _filename(dialog: Mapping[str, Any], mediatype: str) -> str:
    given = dialog.get("filename") or unquote(urlsplit(str(dialog.get("url") or "")).path)
    name = re.sub(r"[^\w.+-]", "_", str(given).replace("\\", "/").rpartition("/")[2], flags=re.ASCII)[-100:]
    ending = _ENDINGS.get(mediatype) or mimetypes.guess_extension(mediatype) or ""
    known = {*_ENDINGS.values(), ".mpga", ".mpeg", ".oga"}
    if os.path.splitext(name)[1].lower() not in known and mediatype != "application/octet-stream":
        name = (name.strip("._") or "audio") + ending
    return name or "audio"
