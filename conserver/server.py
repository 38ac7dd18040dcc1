"""The server that a command works on: the one of `REDIS_URL`, else the embedded one of the data folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError

from conserver import connection
from conserver.embedded import EmbeddedServer
from conserver.errors import ServerError, SettingsError
from conserver.settings import Settings

log = logging.getLogger(__name__)

_LOADING_PAUSE_SECS = 0.5


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
        client, address = connection.once(url, "cli"), connection.address(url)
    except (ValueError, RedisError):
        # What is wrong with it is not said, since the password may be a part of that.
        raise SettingsError(
            "REDIS_URL is no URL of a server: write redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], rediss://... or "
            "unix:///PATH, with special characters of the password percent-encoded"
        ) from None
    waited = False
    while True:
        try:
            client.ping()
            return
        except (ServerError, RedisError) as error:
            cause = error.__cause__ if isinstance(error, ServerError) else error
            if not (patient and isinstance(cause, BusyLoadingError)):
                raise ServerError(_advice(url, address, cause)) from error
        if not waited:
            log.warning("server at %s still loads its data; waiting for it", address)
            waited = True
        time.sleep(_LOADING_PAUSE_SECS)


def _advice(url: str, address: str, cause: BaseException | None) -> str:
    if isinstance(cause, BusyLoadingError):
        return f"server at {address} still loads its data; try again in a moment"
    if isinstance(cause, AuthenticationError):
        if urlsplit(url).password:
            return f"server at {address} refuses the user or the password of REDIS_URL; correct them"
        return f"server at {address} demands a password; write it in REDIS_URL, as redis://:PASSWORD@HOST:PORT"
    return (
        f"server at {address} cannot be used: {str(cause).rstrip('.')}; start it, correct REDIS_URL, or unset REDIS_URL"
        " to have an embedded server"
    )
