"""Where the API listens. Without a token that is loopback only."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from dataclasses import replace

from conserver.config import load_config
from conserver.errors import SettingsError
from conserver.settings import Settings
from conserver.tokens import read_tokens

log = logging.getLogger(__name__)


def check(settings: Settings) -> None:
    """Raise SettingsError if the API may not listen where it is told to: without a token on loopback only."""
    if not is_loopback(settings.api_host) and not read_tokens(settings, load_config(settings.config_file)[0]):
        raise SettingsError(
            f"CONSERVER_API_HOST={settings.api_host!r}: without a token the API listens on loopback only; set "
            "CONSERVER_API_TOKEN or CONSERVER_API_TOKEN_FILE, or api.tokens in the config ('conserver token' makes one)"
        )


def is_loopback(host: str) -> bool:
    """Say whether *host* is an address that only this machine reaches."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def listen(settings: Settings, *, elsewhere: bool = False) -> socket.socket:
    """Return a socket that listens where the settings say, or on a free port if they may be met *elsewhere*.

    SettingsError if that cannot be.
    """
    host, port = settings.api_host.strip("[]"), settings.api_port or 0
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        if elsewhere and port and error.errno == errno.EADDRINUSE:
            log.warning("port %d for the API is taken: a free one is used instead", port)
            return listen(replace(settings, api_port=0))
        raise SettingsError(
            f"the API cannot listen on {host}:{port}: {error.strerror or error}; set "
            "CONSERVER_API_HOST and CONSERVER_API_PORT to where it can"
        ) from error
    return listening


def address_of(listening: socket.socket) -> str:
    """Return the URL of the API that listens there."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
