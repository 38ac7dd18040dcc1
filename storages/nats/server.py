"""The servers of NATS, and what is asked of JetStream there."""

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from conserver import StorageError, outbound
from conserver.errors import OutboundError
from conserver.outbound import Backoff, Retryable

if TYPE_CHECKING:
    from .connection import Connection

T = TypeVar("T")

_BACKOFF = Backoff(attempts=3, total_secs=15.0)


class Server(BaseModel):
    """Which servers, and how to get in."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    servers: tuple[str, ...] = Field(
        default=("nats://localhost:4222",),
        min_length=1,
        description="The servers of one cluster, as `nats://host:4222`, or `tls://` where the connection must be "
        "encrypted. One that answers is enough.",
    )
    user: str | None = Field(default=None, description="Who logs in.")
    password: SecretStr | None = Field(default=None, description="The user's password.")
    token: SecretStr | None = Field(default=None, description="A token, to log in with instead.")
    nkey_seed: SecretStr | None = Field(default=None, description="The seed of a user's NKey, to log in with instead.")
    credentials: SecretStr | None = Field(
        default=None, description="The text of a credentials file (JWT and seed), to log in with instead."
    )
    credentials_path: str | None = Field(default=None, description="Such a file; it is read anew for every connection.")
    tls_ca: str | None = Field(
        default=None,
        description="The file with the certificates of the authority that the server's is signed by; without it, those "
        "of the system. With any of the three, the connection must be encrypted.",
    )
    tls_cert: str | None = Field(default=None, description="The file with a certificate of the conserver's own.")
    tls_key: str | None = Field(default=None, description="The file with its key, unless that is in `tls_cert`.")
    inbox_prefix: str = Field(
        default="_INBOX",
        pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$",
        description="What the subjects of answers begin with.",
    )
    timeout: float = Field(default=20.0, gt=0, description="Seconds for a connection, and for one answer.")

    @field_validator(
        *("user", "password", "token", "nkey_seed", "credentials", "credentials_path", "tls_ca", "tls_cert", "tls_key"),
        mode="before",
    )
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("servers")
    @classmethod
    def _are_servers(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for number, url in enumerate(servers, 1):
            if not _is_server(url):
                raise ValueError(
                    f"number {number} is no server: write it as nats://host:4222 or tls://host:4222; "
                    "user, password and token have their own options"
                )
        return servers

    @field_validator("nkey_seed")
    @classmethod
    def _is_a_seed(cls, seed: SecretStr | None) -> SecretStr | None:
        if seed is not None and not re.fullmatch("SU[A-Z2-7]{56}", seed.get_secret_value().strip()):
            raise ValueError("is no seed of a user: those begin with SU and have 58 characters")
        return seed

    @model_validator(mode="after")
    def _can_log_in(self) -> "Server":
        logins = (self.user, self.token, self.nkey_seed, self.credentials, self.credentials_path)
        if sum(login is not None for login in logins) > 1:
            raise ValueError("give one of user, token, nkey_seed, credentials and credentials_path, not several")
        if (self.user is None) != (self.password is None):
            raise ValueError("give user and password, both or neither")
        if self.tls_key and not self.tls_cert:
            raise ValueError("give tls_cert as well: tls_key belongs to it")
        return self

    @property
    def must_be_encrypted(self) -> bool:
        """Whether nothing is said to a server that does not encrypt."""
        return bool(self.tls_ca or self.tls_cert) or any(url.lower().startswith("tls:") for url in self.servers)

    @property
    def address(self) -> str:
        """The servers as messages show them."""
        return ", ".join(self.servers)


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in ("nats", "tls") or not parts.hostname or port == 0 or "@" in parts.netloc:
        return False
    return parts.path in ("", "/") and not parts.query and not parts.fragment and not re.search(r"\s", url)


class Away(Exception):
    """There was no answer; the message says why. Another attempt may get one."""


class NoStream(Away):
    """No stream takes the subject, or none that has a leader at the moment."""


class Refusal(Exception):
    """JetStream does not do what was asked of it."""

    def __init__(self, error: Any) -> None:
        found = error if isinstance(error, dict) else {}
        self.number = found.get("err_code")
        """What is the matter, in the numbers of JetStream."""
        self.may_pass = found.get("code") == 503
        cure = _CURES.get(self.number or 0)
        super().__init__(f"{str(found.get('description') or 'refused')[:300]}{f'; {cure}' if cure else ''}")


_CURES = {
    10023: "JetStream needs more room",
    10039: "let the account have JetStream",
    10047: "JetStream needs more room",
    10054: "raise max_msg_size of the stream",
    10060: "set stream to the one that takes the subject",
    10076: "start the server with JetStream",
    10077: "let the stream have more messages or bytes, or discard old ones",
    10074: "there are not so many servers: lower replicas",
}


class JetStream:
    """What is asked of JetStream, over the connection of this process."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    @property
    def has_stream(self) -> bool:
        """Whether the stream was seen over this connection."""
        return self._connection.has_stream

    @has_stream.setter
    def has_stream(self, has_stream: bool) -> None:
        self._connection.has_stream = has_stream

    def publish(self, subject: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
        """Publish a message; return what the stream acknowledges it with."""
        return self._ask(subject, body, headers)

    def ask(self, function: str, given: dict[str, Any]) -> dict[str, Any]:
        """Call a function of the API, such as STREAM.NAMES."""
        try:
            return self._ask(f"$JS.API.{function}", json.dumps(given).encode())
        except NoStream:
            raise Away("JetStream does not answer; is it enabled, and does it have a leader?") from None

    def _ask(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
        if outbound.secs_left() <= 0:
            # Nobody waits for it any more, and a newer version may have been published meanwhile.
            raise Away("the time of the whole call is over")
        try:
            answer = self._connection.ask(subject, body, headers)
        except Away:
            self.has_stream = False
            raise
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StorageError(f"what answers on subject {subject} is not JetStream")
        if "error" in found:
            raise Refusal(found["error"])
        return found


def run(action: str, opts: Server, work: Callable[[JetStream], T]) -> T:
    """Call *work* with JetStream, and repeat what may go better."""
    try:
        from .connection import connection
    except ModuleNotFoundError as error:
        raise StorageError(f"cannot {action}: {error} (pip install 'conserver[nats]')") from error

    def attempt() -> T:
        try:
            return work(JetStream(connection(opts)))
        except StorageError as error:
            raise StorageError(f"cannot {action}: {error}") from error
        except Refusal as error:
            if error.may_pass:
                raise Retryable(f"cannot {action}: {error}") from error
            raise StorageError(f"cannot {action}: {error}") from error
        except Away as error:
            raise Retryable(f"cannot {action}: {error}") from error

    try:
        return outbound.retrying(f"nats {opts.address}", attempt, _BACKOFF)
    except OutboundError as error:
        raise StorageError(str(error)) from error
