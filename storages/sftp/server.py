"""Logging in to an SFTP server that is known, and the connections that are kept."""

import contextlib
import io
import logging
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from conserver import StorageError, outbound
from conserver.errors import OutboundError
from conserver.outbound import Backoff, Retryable
from conserver.pools import Pool

# What it logs as an error also comes as an exception, and that is told.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

T = TypeVar("T")

_BACKOFF = Backoff(attempts=3, total_secs=15.0)
# OpenSSH turns some away when more than ten log in at the same time.
_MOST_CONNECTIONS = 4


class Server(BaseModel):
    """A server, and how to get in."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    url: str = Field(default="sftp://localhost", description="The server: a name, or `sftp://name`.")
    port: int = Field(default=22, ge=1, le=65535, description="Its port.")
    username: str = Field(min_length=1, description="Who logs in.")
    password: SecretStr | None = Field(default=None, description="The password; with a key, that of the key.")
    private_key: SecretStr | None = Field(
        default=None, description="The text of a private key, to log in with instead of the password."
    )
    private_key_path: str | None = Field(default=None, description="The file of such a key.")
    known_hosts: str = Field(
        default="~/.ssh/known_hosts", description="The file with the keys of known servers, as OpenSSH writes it."
    )
    fingerprint: str | None = Field(
        default=None,
        description="The fingerprint of the server's key, as `SHA256:...`; then `known_hosts` is not looked at.",
    )
    check_host_key: bool = Field(
        default=True, description="Whether the server must be known. Without it, anybody in between can read along."
    )
    timeout: float = Field(default=30.0, gt=0, description="Seconds that one answer of the server may take.")

    @field_validator("password", "private_key", "private_key_path", "fingerprint", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("url")
    @classmethod
    def _is_a_server(cls, url: str) -> str:
        parts = urlsplit(url if "://" in url else f"sftp://{url}")
        if parts.scheme != "sftp" or not parts.hostname or parts.username or parts.path not in ("", "/"):
            raise ValueError(
                "is no server: write its name, or sftp://name; port, username and path have their own options"
            )
        return url

    @field_validator("fingerprint")
    @classmethod
    def _is_a_fingerprint(cls, text: str | None) -> str | None:
        if text is not None and not re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}=?", text):
            raise ValueError("must be as ssh-keygen -lf shows it: SHA256: and 43 characters")
        return text

    @model_validator(mode="after")
    def _can_log_in(self) -> "Server":
        if self.private_key and self.private_key_path:
            raise ValueError("give private_key or private_key_path, not both")
        if not (self.password or self.private_key or self.private_key_path):
            raise ValueError("give password, private_key or private_key_path")
        return self

    @property
    def host(self) -> str:
        """The name of the server."""
        return urlsplit(self.url if "://" in self.url else f"sftp://{self.url}").hostname or ""

    @property
    def server_port(self) -> int:
        """Its port: that of the URL, if it has one."""
        return urlsplit(self.url if "://" in self.url else f"sftp://{self.url}").port or self.port

    @property
    def where(self) -> str:
        """The server as messages show it."""
        return f"sftp://{self.host}:{self.server_port}"


@dataclass(frozen=True)
class _Connection:
    client: Any
    sftp: Any

    def close(self) -> None:
        self.client.close()


class _Unknown(Exception):
    """The server is not the one that is known; the message says what to do."""


def run(action: str, opts: Server, work: Callable[[Any], T]) -> T:
    """Call *work* with a connection, and repeat what may go better."""
    import paramiko  # type: ignore[import-untyped]

    where = f"cannot {action} {opts.where}"

    def attempt() -> T:
        try:
            return _pool(opts).run(lambda connection: work(connection.sftp))
        except _Unknown as error:
            raise StorageError(f"{where}: {error}") from error
        except paramiko.AuthenticationException as error:
            cure = "check username, and password or private key"
            raise StorageError(f"{where}: the server refuses the login of {opts.username!r}; {cure}") from error
        except (paramiko.SSHException, EOFError, ConnectionError, TimeoutError) as error:
            raise Retryable(f"{where}: no answer ({type(error).__name__}: {str(error)[:200]})") from error
        except PermissionError as error:
            raise StorageError(f"{where}: permission denied; let {opts.username!r} write there") from error
        except OSError as error:
            raise Retryable(f"{where}: {error.strerror or error}"[:400]) from error

    try:
        return outbound.retrying(opts.where, attempt, _BACKOFF)
    except OutboundError as error:
        raise StorageError(str(error)) from error


_making = threading.Lock()


def _pool(opts: Server) -> Pool[_Connection]:
    with _making:  # not several of them, when many threads begin at once
        return _new_pool(opts)


@cache
def _new_pool(opts: Server) -> Pool[_Connection]:
    return Pool(
        lambda: _connect(opts), _Connection.close, _is_broken, most=_MOST_CONNECTIONS, wait_secs=2 * opts.timeout
    )


def _is_broken(connection: _Connection, error: Exception | None) -> bool:
    import paramiko

    if isinstance(error, EOFError | ConnectionError | TimeoutError | paramiko.SSHException):
        return True
    transport = connection.client.get_transport()
    return transport is None or not transport.is_active() or connection.sftp.get_channel().closed


def _connect(opts: Server) -> _Connection:
    import paramiko

    client = paramiko.SSHClient()
    key = _key(opts)
    try:
        _know(client, opts)
        client.connect(
            opts.host,
            port=opts.server_port,
            username=opts.username,
            password=opts.password.get_secret_value() if opts.password and not key else None,
            pkey=key,
            timeout=min(opts.timeout, 10.0),
            banner_timeout=opts.timeout,
            auth_timeout=opts.timeout,
            channel_timeout=opts.timeout,
            allow_agent=False,
            look_for_keys=False,
        )
        sftp = client.open_sftp()
        sftp.get_channel().settimeout(opts.timeout)
    except paramiko.BadHostKeyException as error:
        client.close()
        raise _Unknown(f"the server has another key than known_hosts says ({_fingerprint(error.key)})") from error
    except BaseException:
        client.close()
        raise
    return _Connection(client, sftp)


def _know(client: Any, opts: Server) -> None:
    import paramiko

    class Policy(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            found = _fingerprint(key)
            if not opts.check_host_key or (opts.fingerprint and found.rstrip("=") == opts.fingerprint.rstrip("=")):
                return
            if opts.fingerprint:
                raise _Unknown(f"the server's key is {found}, not that of the option fingerprint")
            raise _Unknown(f"the server is not in known_hosts; if its key is {found}, set fingerprint to that")

    client.set_missing_host_key_policy(Policy())
    file = os.path.expanduser(opts.known_hosts)
    if opts.check_host_key and not opts.fingerprint and os.path.exists(file):
        client.load_system_host_keys(file)


def _fingerprint(key: Any) -> str:
    return str(key.fingerprint)


def _key(opts: Server) -> Any:
    """Return the private key to log in with; None if it is the password."""
    import paramiko

    if opts.private_key is None and opts.private_key_path is None:
        return None
    option = "private_key" if opts.private_key else "private_key_path"
    try:
        text = opts.private_key.get_secret_value() if opts.private_key else _text_of(opts.private_key_path or "")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{option}: cannot read {opts.private_key_path}: {error}") from error
    password = opts.password.get_secret_value() if opts.password else None
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        with contextlib.suppress(paramiko.SSHException, ValueError, IndexError):
            return kind.from_private_key(io.StringIO(text), password=password)
    raise StorageError(f"{option}: this is no private key of Ed25519, ECDSA or RSA, or its password is not `password`")


def _text_of(path: str) -> str:
    with open(os.path.expanduser(path), encoding="utf-8") as file:
        return file.read()
