"""Terms: what a vCon is found by, and the keys of the index that stand for it.

The sets of the parties are those of the existing conserver; tags and words of subjects have keys of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from conserver.errors import NotAVcon
from conserver.vcon import Vcon, load, payload_of
from conserver.vcon_forms import MAX_SIGNATURES_DEEP, form_of

PARTY_TERMS = ("tel", "mailto", "name")
TERMS = (*PARTY_TERMS, "tag", "subject")
#: Of one vCon; one that has more is found by these.
_MOST_TAGS = 100
_MOST_WORDS = 40
_WORD = re.compile(r"[^\W_]+")

Terms = Mapping[str, str | Sequence[str]]
"""What is looked for: `tel`, `mailto`, `name`, `tag` (`name:value`) and `subject`, each one text or several."""


class BadTerm(ValueError):
    """A term that nothing can be found by."""


def keys_of(document: dict[str, Any]) -> set[str]:
    """Return the index keys of a document: its parties (`tel:`, `mailto:`, `name:`), tags, and words of its subject.

    Of a signed vCon its payload counts; an encrypted one has none.
    """
    keys: set[str] = set()
    document = _unsigned(document)
    parties = document.get("parties")
    for party in parties if isinstance(parties, list) else ():
        for kind in PARTY_TERMS if isinstance(party, dict) else ():
            value = party.get(kind)
            if isinstance(value, str) and value:
                keys.add(party_key(kind, value))
    attachments = document.get("attachments")
    if isinstance(attachments, list) and all(isinstance(attachment, dict) for attachment in attachments):
        keys.update(map(_tag_key, Vcon(document).tags[:_MOST_TAGS]))
    subject = document.get("subject")
    if isinstance(subject, str):
        keys.update(map(_word_key, words_of(subject)[:_MOST_WORDS]))
    return keys


def keys_of_text(text: bytes) -> set[str]:
    """Return the index keys of a stored text; what is no vCon stands in no index."""
    try:
        document = load(text)
    except NotAVcon:
        return set()
    return keys_of(document) if isinstance(document, dict) else set()


def _unsigned(document: dict[str, Any]) -> dict[str, Any]:
    """Return what a signed vCon says, or the document itself; nothing if the payload cannot be read."""
    for _ in range(MAX_SIGNATURES_DEEP):
        if form_of(document) != "signed":
            return document
        try:
            inner = payload_of(document)
        except NotAVcon:
            return {}
        if not isinstance(inner, dict):
            return {}
        document = inner
    return {}


def party_key(kind: str, value: str) -> str:
    """Return the set of the vCons with a party whose *kind* (`tel`, `mailto`, `name`) is *value*."""
    # The draft lets "tel:" stand in front of a number or not: both are the same number.
    return _text(f"{kind}:{value.removeprefix(kind + ':')}")


def words_of(subject: str) -> list[str]:
    """Return the words that a subject is found by, in lower case, each once."""
    return list(_words(subject[:2000]))


@lru_cache(maxsize=256)
def _words(subject: str) -> tuple[str, ...]:
    # Whoever edits a vCon asks twice, and mostly nothing has changed. (What is no UTF-8 is no letter.)
    return tuple(dict.fromkeys(_WORD.findall(subject.casefold())))


def _tag_key(tag: str) -> str:
    return _text(f"conserver:tag:{tag[:200]}")


def _word_key(word: str) -> str:
    return f"conserver:subject:{word}"


def _text(key: str) -> str:
    return key if key.isascii() else key.encode("utf-8", "replace").decode()


def term_keys(terms: Terms) -> list[str]:
    """Return the sets whose intersection is what *terms* ask for; a subject means all of its words.

    Raises BadTerm for one that means nothing, and for none.
    """
    keys: list[str] = []
    for kind, values in terms.items():
        for value in (values,) if isinstance(values, str) else values:
            if kind in PARTY_TERMS:
                keys.append(party_key(kind, value))
            elif kind == "tag":
                keys.append(_tag_key(value))
            else:
                words = words_of(value)
                if not words:
                    raise BadTerm(f"{kind}: it needs at least one word of letters or digits")
                keys += map(_word_key, words)
    if not keys:
        raise BadTerm(f"find needs at least one of {', '.join(TERMS)}")
    return list(dict.fromkeys(keys))


def created_at_of(document: dict[str, Any]) -> int | None:
    """Return when a vCon was created, in seconds since 1970; None if it does not say so."""
    created_at = _unsigned(document).get("created_at")
    if not isinstance(created_at, str):
        return None
    try:
        when = datetime.fromisoformat(created_at)
        return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return None
