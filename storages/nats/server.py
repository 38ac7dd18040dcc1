"""The servers of NATS, and how to get in there."""

import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator


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
