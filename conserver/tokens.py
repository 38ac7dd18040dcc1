"""The tokens of the API: where they come from, and what they allow.

A token has a name and scopes: `read`, `write` (which includes `read`), `admin` (which includes both), and
`ingress:<list>`, which creates vCons for that list and nothing else. What is kept of a token is its SHA-256 digest.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from conserver.config import Config
from conserver.errors import SettingsError
from conserver.settings import Settings

_INCLUDED = {"admin": {"admin", "write", "read"}, "write": {"write", "read"}, "read": {"read"}}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LINE = re.compile(r"(\S+)\s+(\S+)\s+(sha256:[0-9a-f]{64})")
_SCOPE = re.compile(r"read|write|admin|ingress:.+")


def digest_of(token: str) -> str:
    """Return what is kept of a token."""
    return f"sha256:{hashlib.sha256(token.encode('utf-8', 'surrogateescape')).hexdigest()}"


def new_token() -> tuple[str, str]:
    """Return a new token and its digest."""
    token = secrets.token_urlsafe(32)
    return token, digest_of(token)


@dataclass(frozen=True)
class Caller:
    """Who has sent a request, and what they may do."""

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Say whether *scope* is granted."""
        return scope in self.scopes

    def may_feed(self, list_name: str) -> bool:
        """Say whether vCons may be created for the ingress list."""
        return "write" in self.scopes or f"ingress:{list_name}" in self.scopes


def is_scope(text: str) -> bool:
    """Say whether *text* is a scope."""
    return _SCOPE.fullmatch(text) is not None


def granted(scopes: Iterable[str]) -> frozenset[str]:
    """Return *scopes* with what they include."""
    return frozenset().union(*(_INCLUDED.get(scope, {scope}) for scope in scopes))


ANYBODY = Caller("loopback", granted(["admin"]))


@dataclass(frozen=True)
class Tokens:
    """All tokens that count now."""

    by_digest: dict[str, Caller]

    def __bool__(self) -> bool:
        return bool(self.by_digest)

    def caller(self, token: str) -> Caller | None:
        """Return whose token that is; how long it takes says nothing about the tokens."""
        given, found = digest_of(token), None
        for known, caller in self.by_digest.items():
            if hmac.compare_digest(given, known):
                found = caller
        return found


def read_tokens(settings: Settings, config: Config | None) -> Tokens:
    """Return the tokens of environment, file and config; SettingsError names what cannot be used, never a token."""
    found: dict[str, Caller] = {}
    if settings.api_token:
        digest = _digest_in(settings.api_token, "CONSERVER_API_TOKEN")
        found[digest] = Caller("CONSERVER_API_TOKEN", granted(["admin"]))
    if settings.api_token_file:
        found |= _of_file(settings.api_token_file)
    for name, token in (config.api.tokens if config else {}).items():
        found[token.digest] = Caller(name, granted(token.scopes))
    return Tokens(found)


def _of_file(path: Path) -> dict[str, Caller]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SettingsError(f"CONSERVER_API_TOKEN_FILE={str(path)!r} cannot be read: {why}") from None
    found: dict[str, Caller] = {}
    for number, line in enumerate((line.strip() for line in lines), 1):
        if not line or line.startswith("#"):
            continue
        # What is wrong in a line may be a token, so it is not shown.
        if match := _LINE.fullmatch(line):
            name, scopes, digest = match[1], match[2].split(","), match[3]
        elif len(line.split()) > 1:
            raise SettingsError(
                f"{path}:{number}: write a token alone, or NAME SCOPES DIGEST as 'conserver token' prints it"
            )
        else:
            name, scopes, digest = f"line-{number}", ["admin"], _digest_in(line, f"{path}:{number}")
        if not all(map(is_scope, scopes)):
            raise SettingsError(f"{path}:{number}: a scope is read, write, admin or ingress:LIST, joined with commas")
        found[digest] = Caller(name, granted(scopes))
    return found


def _digest_in(text: str, where: str) -> str:
    """Return the digest that *text* is, or of the token that it is."""
    if text.startswith("sha256:") and not _DIGEST.fullmatch(text):
        raise SettingsError(f"{where}: a digest is sha256: and 64 hexadecimal digits in lower case")
    return text if _DIGEST.fullmatch(text) else digest_of(text)
