"""The URL of a server: what it may say, and what of it may be shown.

    redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]
    rediss://...                                          the same by TLS
    unix://[[USER]:PASSWORD@]/PATH[?db=DB]
    redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/SERVICE[/DB]
    rediss+sentinel://...                                 the same by TLS, with server and sentinels

redis-py has no URL for Sentinel; this is the one that most Python projects agree on. User and password are those of the
server; sentinels that want some of their own have them as `sentinel_username` and `sentinel_password`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from redis.connection import parse_url

FORMS = (
    "redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], rediss://... for TLS, unix:///PATH or "
    "redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/SERVICE[/DB], with special characters of the "
    "password percent-encoded"
)
_SENTINEL_PORT = 26379
_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
#: Timeouts, retries and the protocol are our own business (see connection.py), so a URL has no say in them.
_OPTIONS = ("db", "username", "password")
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS = (*_FILES, "ssl_ca_data", "ssl_password", "ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_CERT_REQS = ("none", "optional", "required")


class NotAnAddress(ValueError):
    """Not the URL of a server; its words show nothing that may be a part of a password."""


@dataclass(frozen=True)
class Address:
    """Where a server is, and how to get in."""

    shown: str
    """The URL without user, password and options."""
    options: Mapping[str, Any] = field(repr=False)
    """What redis-py wants to know for a connection to the server."""
    service: str = ""
    """What the sentinels call the server; empty if there are none."""
    sentinels: tuple[tuple[str, int], ...] = ()
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What redis-py wants to know for a connection to a sentinel."""
    tls: bool = False

    def missing_file(self) -> str:
        """Return the option whose file cannot be read, with its path; empty if there is none."""
        paths = [(name, str(self.options[name])) for name in _FILES if name in self.options]
        return next((f"{name}={path}" for name, path in paths if not os.access(path, os.R_OK)), "")


def parse(url: str) -> Address:
    """Take a URL apart; NotAnAddress says what is wrong with it."""
    scheme, userinfo, place, path, query = _split(url)
    _check_options(scheme, query)
    tls = scheme.startswith("rediss")
    if "+" in scheme:
        service, _, db = path.strip("/").partition("/")
        if not service:
            raise NotAnAddress(f"names no service: write {scheme}://HOST[:PORT]/SERVICE[/DB], as in .../mymaster/0")
        # The rest is read by redis-py, from a URL of a kind that it knows.
        url = f"{scheme.partition('+')[0]}://{userinfo and userinfo + '@'}/{db}?{query}"
    elif "," in place:
        raise NotAnAddress("has several hosts, which only redis+sentinel:// may have")
    else:
        service, db = "", path.strip("/") if scheme != "unix" else ""
    if not re.fullmatch(r"[0-9]*", db):
        raise NotAnAddress("names a database that is no number: write /DB at the end of the path, as in /0")
    options = _secured(_read(url)) if tls else _read(url)
    theirs = {name.removeprefix("sentinel_"): options.pop(name) for name in _SENTINEL_OPTIONS if name in options}
    if not service:
        return Address(_shown(scheme, place, path), options, tls=tls)
    options.pop("connection_class", None)
    if tls:
        theirs |= {"ssl": True} | {name: options[name] for name in options if name.startswith("ssl_")}
    sentinels = tuple(_member(member) for member in place.split(","))
    return Address(_shown(scheme, place, path), options, service, sentinels, theirs, tls)


def shown(url: str) -> str:
    """Return *url* without user, password and options, for messages."""
    scheme, _, place, path, _ = _split(url)
    return _shown(scheme, place, path)


def _shown(scheme: str, place: str, path: str) -> str:
    return f"{scheme}://{path}" if scheme == "unix" else f"{scheme}://{place or 'localhost'}{path}"


def _split(url: str) -> tuple[str, str, str, str, str]:
    """Return scheme, user and password, hosts, path, query. By hand: urlsplit stumbles over several hosts."""
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES or re.search(r"[\s#]", url):
        raise NotAnAddress(f"is no URL of a server: write {FORMS}")
    rest, _, query = rest.partition("?")
    place, slash, path = rest.partition("/")
    userinfo, _, place = place.rpartition("@")
    if scheme != "unix":
        for member in place.split(","):
            _member(member)
    return scheme, userinfo, place, slash + path, query


def _member(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "localhost", parts.port
    except ValueError:
        port, host = 0, ""
    if port == 0 or "/" in text:
        raise NotAnAddress(f"is no URL of a server: write {FORMS}")
    return host, port or _SENTINEL_PORT


def _check_options(scheme: str, query: str) -> None:
    """Refuse options that do not belong. What is unknown is not named, since it may be the rest of a password."""
    names = [part.partition("=")[0] for part in query.split("&") if part]
    known = (*_OPTIONS, *_TLS_OPTIONS, *_SENTINEL_OPTIONS)
    for name in names:
        if name not in known:
            meant = get_close_matches(name, known, 1)
            hint = f"did you mean {meant[0]}? " if meant else ""
            raise NotAnAddress(f"has an option that does not exist: {hint}there are {', '.join(known)}")
        if name in _TLS_OPTIONS and not scheme.startswith("rediss"):
            raise NotAnAddress(f"has the option {name}, which is for TLS: write {'rediss' + scheme[5:]}://...")
        if name in _SENTINEL_OPTIONS and "+" not in scheme:
            raise NotAnAddress(f"has the option {name}, which is for redis+sentinel:// only")


def _read(url: str) -> dict[str, Any]:
    try:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        # Its words may have a part of the password.
        raise NotAnAddress(f"is no URL of a server: write {FORMS}") from None
    return options


def _secured(options: dict[str, Any]) -> dict[str, Any]:
    """Have the name in the certificate checked, which not every version of redis-py does by itself."""
    reqs = options.get("ssl_cert_reqs", "required")
    if reqs not in _CERT_REQS:
        raise NotAnAddress(f"has an ssl_cert_reqs that does not exist: write one of {', '.join(_CERT_REQS)}")
    return {"ssl_check_hostname": reqs != "none"} | options
