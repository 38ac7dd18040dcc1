"""The three forms of a vCon (unsigned, signed, encrypted), and where each keeps its UUID."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any, Literal

from conserver.errors import NotAVcon
from conserver.vcon_json import MAX_BYTES, gunzip, load

Form = Literal["unsigned", "signed", "encrypted"]

ARRAYS = ("parties", "dialog", "analysis", "attachments")
MAX_SIGNATURES_DEEP = 8
"""How often a signed vCon may be signed again (an archive signs what is already signed)."""

_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_GZIP = b"\x1f\x8b"


def is_uuid(value: object) -> bool:
    """Tell whether the value is text in the form of a UUID, of whatever version."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def form_of(document: dict[str, Any]) -> Form:
    """Tell the form by the members that JWE and JWS prescribe; whatever has neither is unsigned."""
    if "ciphertext" in document and "recipients" in document:
        return "encrypted"
    if "payload" in document and "signatures" in document:
        return "signed"
    return "unsigned"


def uuid_of(document: object) -> str | None:
    """Return the UUID of a vCon in any form, or None when it has none in the form of a UUID.

    A signed one is asked for its `header.uuid` first, then its payload is decoded; an encrypted one says it
    in `unprotected.uuid`.
    """
    for _ in range(MAX_SIGNATURES_DEEP):
        if not isinstance(document, dict):
            return None
        form = form_of(document)
        found = _own_uuid(document, form)
        if found is not None or form != "signed":
            return found
        try:
            document = payload_of(document)
        except NotAVcon:
            return None
    return None


def _own_uuid(document: dict[str, Any], form: Form) -> str | None:
    if form == "unsigned":
        places: list[Any] = [document]
    elif form == "encrypted":
        places = [document.get("unprotected")]
    else:
        signatures = document["signatures"]
        entries = signatures if isinstance(signatures, list) else []
        places = [entry.get("header") for entry in entries if isinstance(entry, dict)]
    for place in places:
        if isinstance(place, dict) and is_uuid(place.get("uuid")):
            return str(place["uuid"])
    return None


def payload_of(document: dict[str, Any], max_bytes: int = MAX_BYTES) -> Any:
    """Decode the payload of a signed vCon (gzip included) into a new document; the signature is not checked."""
    payload = document["payload"]
    if not isinstance(payload, str):
        raise NotAVcon(f"the payload of a signed vCon must be a base64url string, not {type(payload).__name__}")
    data = base64url(payload)
    if data is None:
        raise NotAVcon("the payload of a signed vCon is no base64url")
    return load(gunzip(data, max_bytes) if data.startswith(_GZIP) else data)


def base64url(text: str) -> bytes | None:
    """Decode base64url with or without padding; None when it is something else."""
    text = text.rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None


def check_shape(document: object) -> str:
    """Return the UUID of what is a vCon; NotAVcon for what no link could work with."""
    if not isinstance(document, dict):
        raise NotAVcon(f"a vCon is a JSON object, not {_json_type(document)}")
    uuid = uuid_of(document)
    if uuid is None:
        raise NotAVcon(_why_no_uuid(document))
    if form_of(document) == "unsigned":
        for name in ARRAYS:
            entries = document.get(name)
            if entries is None:
                continue
            if not isinstance(entries, list):
                raise NotAVcon(f"vCon {uuid}: /{name} must be an array, not {_json_type(entries)}")
            for index, entry in enumerate(entries):
                if not isinstance(entry, dict):
                    raise NotAVcon(f"vCon {uuid}: /{name}/{index} must be an object, not {_json_type(entry)}")
    return uuid


def _why_no_uuid(document: dict[str, Any]) -> str:
    form = form_of(document)
    if form == "encrypted":
        return "an encrypted vCon needs a UUID in /unprotected/uuid"
    if form == "signed":
        return "a signed vCon needs a UUID in /signatures/0/header/uuid or in its payload"
    if "uuid" not in document:
        return "no vCon: the member uuid is missing"
    return f"no vCon: uuid is {str(document['uuid'])[:60]!r}, which is no UUID"


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def uncompressed(data: bytes | str, max_bytes: int) -> bytes | str:
    """Return the JSON text, decompressed when it is gzip; NotAVcon when it has more than `max_bytes`."""
    size = len(data)
    if isinstance(data, str) and size > max_bytes // 4:  # a character has at most 4 bytes
        size = len(data.encode("utf-8", "surrogatepass"))
    if size > max_bytes:
        raise NotAVcon(f"too large: {size} bytes, at most {max_bytes} are allowed")
    return gunzip(data, max_bytes) if isinstance(data, bytes) and data.startswith(_GZIP) else data


def derived_uuid(uuid: str, purpose: str) -> str:
    """Return the UUID of a vCon that is made from another one for this purpose: the same each time.

    It is a UUIDv8 that keeps the time of the first one, so both sort together.
    """
    if not is_uuid(uuid):
        raise ValueError(f"{uuid!r} is no UUID")
    seed = int(uuid.replace("-", ""), 16)
    digest = int.from_bytes(hashlib.sha256(f"{uuid.lower()}\n{purpose}".encode("utf-8", "surrogatepass")).digest()[:16])
    return uuid8((seed >> 80 << 80) | (digest & ((1 << 80) - 1)))


def uuid8(bits: int) -> str:
    """Return 128 bits as a UUID, with the version 8 and the variant of RFC 9562 set."""
    bits = bits & ~(0xF << 76) & ~(0x3 << 62) | (8 << 76) | (2 << 62)
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
