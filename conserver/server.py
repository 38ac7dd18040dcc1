"""The server that a command works on: the one of `REDIS_URL`, else the embedded one of the data folder."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError
from redis.sentinel import MasterNotFoundError

from conserver import addresses, connection
from conserver.embedded import EmbeddedServer
from conserver.errors import ServerError, SettingsError
from conserver.settings import Settings

log = logging.getLogger(__name__)

_LOADING_PAUSE_SECS = 0.5
_START = "start it, correct REDIS_URL, or unset REDIS_URL to have an embedded server"
#: What is usually behind such words of a server or of OpenSSL, and what to do then: the first that fits.
_CUT = r"reset by peer|closed by server|Broken pipe|EOF occurred"
_REMEDIES_PLAIN = {_CUT: f"{_START}; if it speaks TLS there, write rediss://"}
_REMEDIES_TLS = {
    r"CERTIFICATE_VERIFY_FAILED.*match": "write in REDIS_URL the host that its certificate is for, or add "
    "ssl_check_hostname=false to the options",
    r"CERTIFICATE_VERIFY_FAILED": "add ?ssl_ca_certs=/PATH to REDIS_URL, the file with the authority that its "
    "certificate is from",
    r"UNKNOWN_CA|KEY_VALUES_MISMATCH": "correct ssl_certfile, which has to be from an authority that the server knows, "
    "and ssl_keyfile, its key",
    rf"CERTIFICATE_REQUIRED|{_CUT}": f"{_START}; if it wants a certificate, add ?ssl_certfile=/PATH&ssl_keyfile=/PATH",
    r"WRONG_VERSION_NUMBER|Timeout connecting": f"{_START}; if it speaks no TLS there, write redis://",
}


@dataclass(frozen=True)
class Server:
    """A server that answers; `embedded` is None for the one of `REDIS_URL`."""

    url: str
    embedded: EmbeddedServer | None

    def describe(self, info: dict[str, Any]) -> str:
        """Return one line that says what it is and where; *info* is what its INFO says."""
        if self.embedded is not None:
            return self.embedded.describe()
        version = info.get("valkey_version") or info.get("redis_version") or "of an unknown version"
        return f"{info.get('server_name', 'redis')} {version} at {connection.address(self.url)}"


@contextmanager
def serving(settings: Settings, *, patient: bool = False) -> Iterator[Server]:
    """Yield the server; the embedded one is started if nobody has, and stopped if nobody else uses it.

    Whatever the server refuses while the block runs is a ServerError that names it, without its password. One that
    still loads its data is waited for if *patient*. SettingsError: `REDIS_URL` is no URL of a server.
    """
    if settings.redis_url is None:
        embedded = EmbeddedServer(settings.data_dir)
        url = embedded.start()
        try:
            with _explained(connection.address(url)):
                yield Server(url, embedded)
        finally:
            embedded.stop()
    else:
        _greet(settings.redis_url, patient=patient)
        with _explained(connection.address(settings.redis_url)):
            yield Server(settings.redis_url, None)


@contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except (ServerError, RedisError) as error:
        text = str(error)
        raise ServerError(text if address in text else f"server at {address}: {text}") from error


def _greet(url: str, *, patient: bool) -> None:
    try:
        address = addresses.parse(url)
    except addresses.NotAnAddress as error:
        raise SettingsError(f"REDIS_URL {error}") from None
    if missing := address.missing_file():
        raise SettingsError(f"REDIS_URL: {missing} cannot be read; correct the path, or let this user read the file")
    client = connection.once(url, "cli")
    waited = False
    while True:
        try:
            client.ping()
            return
        except (ServerError, RedisError) as error:
            cause = error.__cause__ if isinstance(error, ServerError) else error
            if not (patient and isinstance(cause, BusyLoadingError)):
                raise ServerError(_advice(address, cause)) from error
        if not waited:
            log.warning("server at %s still loads its data; waiting for it", address.shown)
            waited = True
        time.sleep(_LOADING_PAUSE_SECS)


def _advice(address: addresses.Address, cause: BaseException | None) -> str:
    if isinstance(cause, BusyLoadingError):
        return f"server at {address.shown} still loads its data; try again in a moment"
    if isinstance(cause, AuthenticationError):
        if address.options.get("password"):
            return f"server at {address.shown} refuses the user or the password of REDIS_URL; correct them"
        return f"server at {address.shown} demands a password; write it in REDIS_URL, as redis://:PASSWORD@HOST:PORT"
    words = str(cause).rstrip(".")
    if isinstance(cause, MasterNotFoundError) and "CERTIFICATE" not in words:
        remedy = "start the sentinels, or correct their hosts, their sentinel_password and the service in REDIS_URL"
    else:
        remedies = _REMEDIES_TLS if address.tls else _REMEDIES_PLAIN
        remedy = next((what for sign, what in remedies.items() if re.search(sign, words)), _START)
    return f"server at {address.shown} cannot be used: {words}; {remedy}"
