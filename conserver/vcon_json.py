"""JSON in and out without changing a value.

The fast parser and encoder do the work; what they cannot say or would quietly change is caught here: numbers that
do not fit, lone surrogates, documents nested too deep, Python values that are no JSON.
"""

from __future__ import annotations

import copy
import json
import re
import zlib
from collections.abc import Iterator
from math import isfinite
from typing import Any, NoReturn

import msgspec

from conserver.errors import NotAVcon

MAX_DEPTH = 200
"""Levels of arrays and objects. The same for reading and writing, on every Python version and at every stack depth."""
MAX_BYTES = 64 * 1024 * 1024
"""The default limit of one document, also of what a compressed one unpacks to."""
MAX_DIGITS = 4300
"""Digits of an integer. Python refuses longer ones, since converting them takes quadratic time."""

_LARGE_BYTES = 1_000_000
_BOM = b"\xef\xbb\xbf"
# The closing quote is optional, so that text full of unclosed strings is still scanned in one pass.
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"?'
_TOKEN = re.compile(_STRING + r"|[\[\]{}]|-?[A-Za-z0-9][-+.\w]*", re.DOTALL)
_UNLIKE: Any = object()
_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()
_sorting_encoder = msgspec.json.Encoder(order="deterministic")


def load(data: bytes | str) -> Any:
    """Parse JSON so that `dump` gives back an equal value.

    Integers are exact up to MAX_DIGITS digits; numbers with a fraction or exponent are doubles. Of two members with
    one name the last counts. A UTF-8 byte order mark is skipped. Raises NotAVcon that says what is wrong and where:
    malformed JSON, invalid UTF-8, NaN, Infinity, numbers that are too large, more than MAX_DEPTH levels.
    """
    try:
        value = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        # Its messages can mislead (a lone surrogate is "truncated"), so the slow parser decides and explains.
        return _load_slowly(data)
    if _may_be_deep(data) and _is_deeper(value, MAX_DEPTH):
        return _load_slowly(data)
    return value


def dump(value: Any) -> bytes:
    """Encode as compact UTF-8 JSON that `load` reads back as the same value.

    Raises NotAVcon that names the JSON pointer of what is no JSON: NaN, a set, a date, a key that is no string.
    Tuples become arrays. Lone surrogates are written as \\u escapes.
    """
    data = _dump_fast(value)
    if data is not None:
        return data
    for pointer, problem in _problems(value, "", 0):
        raise NotAVcon(f"cannot be written as JSON: {pointer or 'the document'} {problem}")
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def dump_loaded(value: Any) -> bytes:
    """Encode what `load` has given, and what was changed of it to JSON values: as `dump`, without reading it back."""
    return _encoded(value) or dump(value)


def _dump_fast(value: Any) -> bytes | None:
    data = _encoded(value)
    if len(data) > _LARGE_BYTES:
        # A second copy of all its values would take several times its size.
        return data if next(_problems(value, "", 0), None) is None else None
    again = _read_back(value, data)
    return data if again is not _UNLIKE and not (_may_be_deep(data) and _is_deeper(value, MAX_DEPTH)) else None


def _encoded(value: Any) -> bytes:
    """Return the value as bytes, or b"" for what the encoder refuses."""
    try:
        return _encoder.encode(value)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, TypeError, ValueError):
        return b""


def _read_back(value: Any, data: bytes) -> Any:
    """Return the value as it is read back from its bytes; _UNLIKE if that is another one.

    The encoder writes NaN as null and a set, a date, a number as key in some way of its own. Comparing with what will
    be read costs less than looking at every value, and holds for whatever else it may convert.
    """
    try:
        again = _decoder.decode(data)
        return again if again == value else _UNLIKE
    except (msgspec.MsgspecError, UnicodeError, RecursionError, TypeError, ValueError):
        return _UNLIKE


def copied(value: Any) -> Any:
    """Return a deep copy of a JSON value, several times faster than copy.deepcopy."""
    again = _read_back(value, _encoded(value))
    return copy.deepcopy(value) if again is _UNLIKE else again


def canonical(value: Any) -> bytes:
    """Return bytes that are equal for equal JSON values only: 1, 1.0 and true differ, the order of members does not."""
    try:
        return _sorting_encoder.encode(value)
    except UnicodeError:
        return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def gunzip(data: bytes, max_bytes: int = MAX_BYTES) -> bytes:
    """Decompress gzip data that unpacks to at most `max_bytes`; anything else is NotAVcon."""
    parts: list[bytes] = []
    left = max_bytes
    try:
        while data:
            member = zlib.decompressobj(wbits=31)
            part = member.decompress(data, left + 1)
            left -= len(part)
            if left < 0:
                raise NotAVcon(f"gzip data unpacks to more than {max_bytes} bytes")
            if not member.eof:
                raise NotAVcon("gzip data is cut off")
            parts.append(part)
            data = member.unused_data
    except zlib.error as error:
        raise NotAVcon(f"gzip data is damaged: {error}") from error
    return b"".join(parts)


def _may_be_deep(data: bytes | str) -> bool:
    if isinstance(data, str):
        return data.count("[") + data.count("{") > MAX_DEPTH
    return data.count(b"[") + data.count(b"{") > MAX_DEPTH


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        if not level:
            return False
        children: list[Any] = []
        for container in level:
            children += container.values() if isinstance(container, dict) else container
        level = [child for child in children if isinstance(child, (dict, list))]
    return bool(level)


def _load_slowly(data: bytes | str) -> Any:
    if isinstance(data, str):
        text = data.removeprefix("\ufeff")
    else:
        try:
            text = bytes(data).removeprefix(_BOM).decode()
        except UnicodeDecodeError as error:
            raise NotAVcon(f"not UTF-8: invalid byte 0x{error.object[error.start]:02x} at {error.start}") from None
    if not text.strip():
        raise NotAVcon("not JSON: it is empty")
    _refuse_deep(text)
    try:
        return json.loads(
            text,
            parse_constant=lambda literal: _refuse(text, literal, "is no JSON number"),
            parse_float=lambda literal: _finite(text, literal),
            parse_int=lambda literal: _integer(text, literal),
        )
    except json.JSONDecodeError as error:
        # Some of these messages end with "at".
        said = error.msg.removesuffix(" at")
        raise NotAVcon(f"not JSON: {said} at line {error.lineno} column {error.colno}") from None


def _finite(text: str, literal: str) -> float:
    number = float(literal)
    return number if isfinite(number) else _refuse(text, literal, "is too large for a number")


def _integer(text: str, literal: str) -> int:
    if len(literal.lstrip("-")) > MAX_DIGITS:
        _refuse(text, literal, f"has more than {MAX_DIGITS} digits")
    return int(literal)


def _refuse(text: str, literal: str, problem: str) -> NoReturn:
    shown = literal if len(literal) <= 40 else literal[:40] + "..."
    start = next((token.start() for token in _TOKEN.finditer(text) if token.group() == literal), 0)
    raise NotAVcon(f"not usable JSON: {shown} {problem}, at {_position(text, start)}")


def _refuse_deep(text: str) -> None:
    if not _may_be_deep(text):
        return
    depth = 0
    for token in _TOKEN.finditer(text):
        if token.group() in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                where = _position(text, token.start())
                raise NotAVcon(f"not usable JSON: nested deeper than {MAX_DEPTH} levels, at {where}")
        elif token.group() in ("]", "}"):
            depth -= 1


def _position(text: str, start: int) -> str:
    line_start = text.rfind("\n", 0, start) + 1
    return f"line {text.count(chr(10), 0, start) + 1} column {start - line_start + 1}"


def _problems(value: Any, pointer: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth >= MAX_DEPTH and isinstance(value, (dict, list, tuple)):
        yield pointer[:80] + "...", f"is nested deeper than {MAX_DEPTH} levels (or contains itself)"
    elif isinstance(value, dict):
        for key, child in value.items():
            if not isinstance(key, str):
                yield pointer, f"has the key {key!r}, which is no string"
            else:
                yield from _problems(child, f"{pointer}/{pointer_part(key)}", depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from _problems(child, f"{pointer}/{index}", depth + 1)
    elif isinstance(value, float):
        if not isfinite(value):
            yield pointer, f"is {value}, which JSON cannot hold; use null or leave it out"
    elif isinstance(value, int):
        if not isinstance(value, bool) and abs(value) >= _TOO_LONG:
            yield pointer, f"is an integer of more than {MAX_DIGITS} digits"
    elif not isinstance(value, str) and value is not None:
        yield pointer, f"is a {type(value).__name__}, which is no JSON value; convert it first"


def pointer_part(key: str | int) -> str:
    """Return the key as one part of a JSON pointer."""
    return str(key).replace("~", "~0").replace("/", "~1")


_TOO_LONG: int = 10**MAX_DIGITS
