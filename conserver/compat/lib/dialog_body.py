"""`lib.dialog_body`: the bytes of a dialog that has its content inline."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any


def decode_inline_dialog_body(dialog: Mapping[str, Any]) -> bytes:
    """Return the bytes of `body`: base64url, with or without padding, or base64, which is also what no encoding means.

    ValueError for any other encoding, and for what is none.
    """
    encoding = dialog.get("encoding") or "base64"
    if encoding not in ("base64url", "base64"):
        raise ValueError(f"a body with encoding {encoding!r:.40} holds no bytes")
    body = dialog.get("body")
    if not isinstance(body, str):
        raise ValueError(f"the body must be text, not {type(body).__name__}")
    text = "".join(body.split())
    try:
        if encoding == "base64":
            return base64.b64decode(text, validate=True)
        text = text.rstrip("=")
        if "+" in text or "/" in text:
            # Python takes the other alphabet's characters for those of this one.
            raise ValueError("it has characters of base64")
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the body is no {encoding}: {error}") from error
