"""Where the server is, and how to get in."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

_PREFIX = re.compile(r"(?:[a-z0-9][a-z0-9_.+-]{0,99})?")


class Options(BaseModel):
    """Which server, and how to get in."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    url: str | None = Field(default=None, description="The server, as `https://host:9200`.")
    cloud_id: str | None = Field(
        default=None, description="The id of a deployment of Elastic Cloud, which says its `url`."
    )
    api_key: SecretStr | None = Field(default=None, description="An API key, as the server has encoded it.")
    username: str | None = Field(default=None, description="Who logs in, where there is no `api_key`.")
    password: SecretStr | None = Field(default=None, description="The password that belongs to it.")
    ca_certs: str | None = Field(
        default=None,
        description="The file with the authorities that may have signed the server's certificate; without it, those "
        "that the system trusts.",
    )
    index_prefix: str = Field(default="", description="What the names of all indexes begin with.")
    format_version: Literal["0.0.1"] | None = Field(
        default=None, description="Version of the vCons whose parts are stored; without it, `EGRESS_FORMAT_VERSION`."
    )
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one request, up to the last byte.")
    name: str = Field(default="elasticsearch", description="Of no effect; the existing conserver has it.")
    index: str | None = Field(default=None, description="Of no effect; the existing conserver has it.")

    @field_validator("url", "cloud_id", "api_key", "username", "password", "ca_certs", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("is no URL of a server: write it as https://host:9200")
        if "@" in parts.netloc:
            raise ValueError("must hold no login: give username and password, or api_key")
        return url.rstrip("/")

    @field_validator("cloud_id")
    @classmethod
    def _is_cloud_id(cls, cloud_id: str | None) -> str | None:
        if cloud_id is not None and not _url_of(cloud_id):
            raise ValueError("is no id of a deployment: copy it from its page in Elastic Cloud, as name:a1b2c3==")
        return cloud_id

    @field_validator("index_prefix", mode="before")
    @classmethod
    def _is_prefix(cls, prefix: Any) -> Any:
        if not isinstance(prefix, str):
            return "" if prefix is None else prefix
        if not _PREFIX.fullmatch(prefix.strip()):
            raise ValueError(
                "is nothing that names of indexes can begin with: up to 100 small letters, digits and _.+-, and first "
                "a letter or a digit"
            )
        return prefix.strip()

    @model_validator(mode="after")
    def _says_where(self) -> Options:
        if self.url is None and self.cloud_id is None:
            raise ValueError("give the url of the server, or a cloud_id")
        if (self.username is None) != (self.password is None):
            raise ValueError("give username and password, or neither of them")
        return self

    @property
    def address(self) -> str:
        """The URL of the server, without a slash at its end."""
        return _url_of(self.cloud_id) if self.cloud_id else self.url or ""

    @property
    def authorization(self) -> str:
        """The header of this name; '' where no login is given."""
        if self.api_key is not None:
            # A line break at its end is what a key gets on its way through a file.
            return f"ApiKey {self.api_key.get_secret_value().strip()}"
        if self.username is None or self.password is None:
            return ""
        login = f"{self.username}:{self.password.get_secret_value()}".encode()
        return "Basic " + base64.b64encode(login).decode()


def _url_of(cloud_id: str) -> str:
    """Return the URL that a cloud id says; '' if it says none."""
    try:
        said = base64.b64decode(cloud_id.rpartition(":")[2], validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return ""
    host, _, rest = said.partition("$")
    name, colon, port = host.partition(":")
    server = rest.partition("$")[0].partition(":")[0]
    host = f"{server}.{name}{colon}{port}"
    return f"https://{host}" if re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d{1,5})?", host, re.ASCII) else ""
