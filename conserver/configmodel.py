"""What config.yml says, as frozen models; `conserver.config` makes them from the file.

The fields are the keys of the file, and docs/reference/config.md describes each.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WrapValidator

from conserver.filters import When
from conserver.findings import Places
from conserver.outbound_policy import OutboundPolicy


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


_Whole = Annotated[int, BeforeValidator(_no_bool)]
_Secs = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False)]


# Existing configs write 0 for "no limit of its own".
_Timeout = Annotated[_Secs | None, AfterValidator(lambda secs: secs or None)]


def _as_it_is(value: Any, check: Any) -> Any:
    check(value)
    return value


# Text that came from the environment stays marked as such: a URL of a private repository has a token in it.
_Package = Annotated[str, WrapValidator(_as_it_is)]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Retry(Model):
    """Run again, after a pause that doubles each time, instead of making a dead letter at once."""

    attempts: _Whole = Field(ge=1)
    """Runs in all, the first included."""
    backoff_secs: _Secs = 10.0
    max_backoff_secs: _Secs = 600.0


class Named(Model):
    name: str


class Component(Named):
    module: str = Field(min_length=1)
    options: dict[str, Any] = Field(default_factory=dict, repr=False)
    pip_name: _Package | None = None
    """What the finding `missing-package` tells to install."""


class LinkConfig(Component):
    timeout: _Timeout = None
    retry: Retry | None = None
    when: When | None = None


class StorageConfig(Component):
    timeout: _Timeout = None
    required: bool = False
    """A failed save fails the chain, instead of going to `DLQ:storage:<name>` beside it."""
    replay: bool = True
    """What it could not save is saved again by itself."""


class TracerConfig(Component):
    pass


class ImportConfig(Named):
    """A module that is imported before the first vCon."""

    module: str = Field(min_length=1)
    pip_name: _Package | None = None


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        fits = fits and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits:
        # It may have a password.
        raise ValueError("must be the URL of an HTTP API, as in https://other.example/api")
    return value


class FollowerConfig(Named):
    """Another conserver whose egress list is pulled."""

    url: Annotated[str, AfterValidator(_http_url)]
    egress_list: str = Field(min_length=1)
    follower_ingress_list: str
    auth_token: str = Field(repr=False)
    pulling_interval: _Secs
    fetch_vcon_limit: _Whole = Field(ge=1)


def _scope(value: str) -> str:
    if value in ("read", "write", "admin") or (value.startswith("ingress:") and len(value) > 8):
        return value
    raise ValueError(f"must be read, write, admin or ingress:LIST, not {value[:60]!r}")


def _digest(value: str) -> str:
    if re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        return value
    # What stands there may be the token itself.
    raise ValueError("must be sha256: and 64 hexadecimal digits; 'conserver token' makes one")


class TokenConfig(Model):
    """A token of the API: what it may do, and the digest that it is known by."""

    digest: Annotated[str, AfterValidator(_digest)] = Field(repr=False)
    scopes: tuple[Annotated[str, AfterValidator(_scope)], ...] = Field(min_length=1)


class ApiConfig(Model):
    """What the API lets in."""

    tokens: dict[str, TokenConfig] = {}
    on_existing: Literal["refuse", "replace"] = "refuse"
    """What a create does when another version is stored under the UUID."""
    validation: Literal["lenient", "strict"] = "lenient"
    """Whether only those errors refuse a vCon that make it unusable, or all."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API from a browser."""


class ChainConfig(Named):
    links: tuple[str, ...] = ()
    ingress_lists: tuple[str, ...] = ()
    egress_lists: tuple[str, ...] = ()
    storages: tuple[str, ...] = ()
    tracers: tuple[str, ...] | None = None
    """None: every tracer of the file."""
    enabled: bool = True
    timeout: _Timeout = None
    weight: _Whole = Field(default=1, ge=1)
    concurrency: _Whole | None = Field(default=None, ge=1)
    retry: Retry | None = None
    pause_after: _Whole = Field(default=10, ge=0)
    """Equal failures in a row after which the chain pauses; 0: never."""
    schedule: str | None = None


class Config(Model):
    """What the file says, checked. Frozen and pickle-able: a supervisor hands it to its workers."""

    file: str
    folder: Path
    """Of the file; components are imported from here too."""
    links: dict[str, LinkConfig] = {}
    storages: dict[str, StorageConfig] = {}
    tracers: dict[str, TracerConfig] = {}
    chains: dict[str, ChainConfig] = {}
    imports: dict[str, ImportConfig] = {}
    followers: dict[str, FollowerConfig] = {}
    ingress_auth: dict[str, tuple[str, ...]] = Field(default={}, repr=False)
    """List -> the keys that `POST /vcon/external-ingress` takes for it."""
    api: ApiConfig = Field(default_factory=ApiConfig)
    hooks: dict[str, Any] = Field(default={}, repr=False)
    outbound: OutboundPolicy = Field(default_factory=OutboundPolicy)
    """What URLs that come from vCons and API clients may reach."""
    waiting: dict[str, str] = {}
    """Chain -> what it needs that this version lacks. Nobody works on it, and its lists wait."""
    places: Places = Field(default_factory=Places, repr=False, exclude=True)

    def __getstate__(self) -> dict[Any, Any]:
        """Return a copy: while one thread of a supervisor hands the config to a worker, others may fill its caches."""
        state = super().__getstate__()
        return state | {"__dict__": dict(state["__dict__"])}

    @cached_property
    def lists(self) -> dict[str, str]:
        """Ingress list -> the chain that is worked on when a UUID is in it."""
        owners = {name: chain.name for chain in self.chains.values() if chain.enabled for name in chain.ingress_lists}
        return {name: chain for name, chain in owners.items() if chain not in self.waiting}

    def chain_of(self, list_name: str) -> str | None:
        """Name the chain that is worked on when a UUID is in this list.

        None where no chain reads it, and where the chain is switched off or waits for something that is not built.
        """
        return self.lists.get(list_name)

    @cached_property
    def digest(self) -> str:
        """Hash what the file means: a new comment does not change it, a new value of a `${VAR}` does."""
        content = self.model_dump(mode="json", exclude={"file", "folder"})
        return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()
