"""Masks: a config as its readers may see it, and the secrets put back where a mask comes back.

    shown = masked(values)
    assert unmasked(shown, values) == values

`values` is the file as it is written: `${VAR}` is no secret, since it says nothing but where the secret is. Keys and
the structure stay visible; booleans, nothing and empty texts do, too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from math import isfinite
from typing import Any

from conserver.findings import ConfigRefused, Path, Remark, Substituted, is_secret, pointer

MASK = "***hidden***"
"""Stands for a secret, or for the part of a text that is one."""

#: In these sections the second part of a path is a name that somebody gave.
_NAMED = {"links", "storages", "tracers", "chains", "imports", "followers"}
_SECRET_NAME = re.compile(
    r"auth(?!ors?(?![a-z])|ored)|bearer|cookie|signature|digest|passphrase|pwd|connection_?string"
    r"|(?<![a-z])(pass|pin|sas|sig|salt|dsn)(?![a-z])",
    re.IGNORECASE,
)
_HARMLESS = re.compile(r"keyword|tokeni[sz]", re.IGNORECASE)
#: Numbers that limit something: `max_tokens` counts, it opens nothing.
_LIMIT = re.compile(r"(?:max|min|num)_", re.IGNORECASE)
_PUBLIC_HEADERS = {"accept", "accept-encoding", "accept-language", "content-type", "content-encoding", "user-agent"}
_ONLY_VARIABLES = re.compile(r"[:\s]*(?:\$\{[A-Za-z_][A-Za-z0-9_]*\}[:\s]*)+\Z")

# Each repetition that may fail has a bound, so that no text takes long.
_VALUE = r"""\s{0,3}=(?!=)\s{0,3}('[^']{0,1000}'|"[^"]{0,1000}"|\{[^}]{0,1000}\}|(?:\$\{[^}]{0,1000}\}|[^&;\s'"])+)"""
_WORD = r"(?:passw|passphrase|pwd|secret|token|key|credential|signature)"
#: Where a secret stands inside a text, as the one group of each alternative.
_INSIDE = re.compile(
    rf"{_WORD}[\w-]{{0,20}}{_VALUE}"
    rf"|(?<![a-z])(?:pass|sig|sas|code|auth){_VALUE}"
    rf"""|["'][\w-]{{0,40}}{_WORD}[\w-]{{0,20}}["']\s{{0,3}}:\s{{0,3}}["']((?:[^"'\\]|\\.)+)"""
    r"|\b(?:bearer|basic)\s{1,3}((?=\S{0,1000}[0-9=])[A-Za-z0-9._~+/=-]{8,})"
    r"|authorization\s{0,3}:\s{0,3}(?:[A-Za-z]{1,20}\s{1,3})?([^\s'\"]+)"
    r"|PRIVATE KEY-----((?s:.)*?)(?=-----END|\Z)"
    r"|hooks\.slack\.com/[a-z]{1,20}/(\S+)"
    r"|(?<![\w-])(sk-[\w-]{16,}|xox[a-z]-[\w-]{10,}|gh[a-z]_\w{20,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{10,}\.[\w-]+(?:\.[\w-]*)?)",
    re.IGNORECASE,
)
_WORDS = re.compile(r"\S+")
_SLASH = re.compile(r"[/?#]")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://[^\n]*\Z", re.IGNORECASE)


def masked(value: Any, path: Path = ()) -> Any:
    """Give the values as JSON has them, with a mask for each secret; what JSON lacks becomes text."""
    if isinstance(value, dict):
        return {key: masked(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item, (*path, index)) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if _is_hidden(path, value):
        return MASK
    if isinstance(value, str):
        return _put_in(value, _secrets_in(value), MASK)
    if isinstance(value, float) and not isfinite(value):
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    return value


def unmasked(posted: Any, stored: Any) -> Any:
    """Give what was posted, with the stored secret where a mask is: the one at the same place.

    What is posted as it is shown stays as it is stored. Items of a list that has changed are told apart by what is
    visible of them. Raises ConfigRefused with one remark for each mask that stands for nothing that is known.
    """
    putting = _Putting()
    values = putting.value(posted, stored, masked(stored), ())
    if putting.remarks:
        raise ConfigRefused(putting.remarks)
    return values


def hidden_in(value: Any, path: Path = ()) -> set[str]:
    """Collect the texts that `masked` hides, for messages that must not repeat them."""
    if isinstance(value, dict):
        return set().union(*(hidden_in(item, (*path, key)) for key, item in value.items()))
    if isinstance(value, list):
        return set().union(*(hidden_in(item, (*path, index)) for index, item in enumerate(value)))
    if value is None or isinstance(value, bool):
        return set()
    if _is_hidden(path, value):
        return {str(value)}
    return {value[start:end] for start, end in _secrets_in(value)} if isinstance(value, str) else set()


def same(one: Any, other: Any) -> bool:
    """Say whether two values mean the same in a config, the order of keys included: of two chains the last one wins."""
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Substituted) and isinstance(other, Substituted) and one.whole != other.whole:
        return False
    return bool(one == other) or (one != one and other != other)


def _is_hidden(path: Path, value: Any) -> bool:
    text = str(value)
    if not text or _ONLY_VARIABLES.match(text):
        return False
    if path[:2] == ("api", "tokens") and len(path) > 3:
        return path[3] != "scopes"
    fields = [str(part) for part in (path[:1] + path[2:] if path[:1] and path[0] in _NAMED else path)]
    if fields and _LIMIT.match(fields[-1]) and isinstance(value, int | float):
        return False
    names = [_HARMLESS.sub("", field) for field in fields]
    if any(is_secret((name,)) or _SECRET_NAME.search(name) for name in names):
        return True
    header = next((index for index, field in enumerate(fields) if field.lower().endswith("headers")), len(fields))
    return bool(fields[header + 1 :]) and fields[-1].lower() not in _PUBLIC_HEADERS


def _secrets_in(text: str) -> list[tuple[int, int]]:
    """Find the parts of a text that are secrets, in order; none of them touches another."""
    spans = [match.span(match.lastindex or 0) for match in _INSIDE.finditer(text)] + list(_userinfos(text))
    apart: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if start == end or _ONLY_VARIABLES.match(text[start:end]):
            continue
        if apart and start <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
        else:
            apart.append((start, end))
    return apart


def _userinfos(text: str) -> Iterator[tuple[int, int]]:
    """Find what stands before the host in each URL: a token may stand where the name of a user is expected."""
    words = [(0, text)] if _SCHEME.match(text) else [(word.start(), word[0]) for word in _WORDS.finditer(text)]
    for begin, word in words:
        at, last = 0, word.rfind("@")
        while 0 <= (slashes := word.find("://", at)) < last:
            start = slashes + 3
            slash = _SLASH.search(word, start)
            path = slash.start() if slash else len(word)
            end = word.rfind("@", start, path)
            if end < 0 and ":" in word[start:path]:
                end = last  # a password with a slash in it, which some readers of URLs accept
            if end >= 0:
                yield begin + start, begin + end
            at = end if end >= 0 else path - 1  # a second URL may begin at this very slash


def _put_in(text: str, spans: list[tuple[int, int]], mask: str) -> str:
    pieces, at = [], 0
    for start, end in spans:
        pieces += [text[at:start], mask]
        at = end
    return "".join([*pieces, text[at:]])


_NOTHING = object()


class _Putting:
    """Puts secrets back, and collects what cannot be."""

    def __init__(self) -> None:
        self.remarks: list[Remark] = []

    def value(self, posted: Any, stored: Any, shown: Any, path: Path) -> Any:
        if isinstance(posted, dict):
            known = stored if isinstance(stored, dict) else {}
            return {
                key: self.value(item, known.get(key, _NOTHING), shown[key] if key in known else _NOTHING, (*path, key))
                for key, item in posted.items()
            }
        if isinstance(posted, list):
            if not isinstance(stored, list):
                stored, shown = [], []
            return self._items(posted, stored, shown, path)
        if stored is not _NOTHING and same(posted, shown):
            return stored
        if not _has_mask(posted):
            return posted
        text = self._filled(posted, stored, path) if isinstance(stored, str) else None
        if text is None:
            self._refuse(path, "is hidden, and there is no such secret at this place of the file")
        return text

    def _filled(self, posted: str, stored: str, path: Path) -> str | None:
        """Put the hidden parts of a text into the places of the masks in another one."""
        parts = [stored[start:end] for start, end in _secrets_in(stored)]
        pieces = posted.split(MASK)
        if _is_hidden(path, stored) or len(pieces) != len(parts) + 1:
            return None
        text = "".join(one + other for one, other in zip(pieces, [*parts, ""], strict=True))
        # Whoever moves a mask to where nothing is hidden would be shown the secret the next time.
        return text if masked(text, path) == posted else None

    def _items(self, posted: list[Any], stored: list[Any], shown: list[Any], path: Path) -> list[Any]:
        in_file = _by_text(shown) if any(map(_has_mask, posted)) else {}
        wanted = [_text(item) if in_file or _has_mask(item) else "" for item in posted]
        times = Counter(wanted)
        pairs = list(zip(wanted, map(_text, shown), strict=False)) if in_file else []
        in_place = len(posted) == len(stored) or (len(posted) > len(stored) and all(a == b for a, b in pairs))
        changed = [index for index, (a, b) in enumerate(pairs) if a != b]
        plain = {text: all(same(stored[i], stored[at[0]]) for i in at) for text, at in in_file.items() if text in times}

        values = []
        for index, item in enumerate(posted):
            where, own = (*path, index), index < len(stored)
            at = in_file.get(wanted[index], [])
            if not _has_mask(item):
                old, seen = (stored[index], shown[index]) if own else (_NOTHING, _NOTHING)
                values.append(self.value(item, old, seen, where))
            elif own and in_place and _text(shown[index]) == wanted[index]:
                values.append(stored[index])
            elif at and plain[wanted[index]] and times[wanted[index]] <= len(at):
                values.append(stored[at[0]])
            elif own and not at and len(posted) == len(stored) and changed == [index]:
                values.append(self.value(item, stored[index], shown[index], where))
            else:
                message = (
                    "is hidden, and the list has changed so that nobody can tell which secret of the file is meant"
                )
                self._refuse(where, message)
                values.append(None)
        return values

    def _refuse(self, path: Path, message: str) -> None:
        cure = "write the secret itself, or ${VAR} for an environment variable"
        self.remarks.append(Remark(pointer(path), "error", "masked", f"{message}; {cure}"))


def _has_mask(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_mask, value.values()))
    if isinstance(value, list):
        return any(map(_has_mask, value))
    return isinstance(value, str) and MASK in value


def _text(value: Any) -> str:
    return json.dumps(value)


def _by_text(items: list[Any]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        places.setdefault(_text(item), []).append(index)
    return places
