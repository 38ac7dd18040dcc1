"""Environment variables -> one frozen Settings.

Everything that describes the deployment (where Redis is, how many workers) comes from the environment;
everything that describes the work (links, storages, chains) comes from config.yml.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conserver import crashpoints
from conserver.errors import SettingsError

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_TEN_YEARS = 10 * 365 * 86400
_START_METHODS = ("fork", "spawn", "forkserver")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment says. Durations are in seconds, sizes in bytes."""

    redis_url: str | None = None
    """`REDIS_URL`; None means the embedded server in `data_dir`."""
    config_file: Path = Path("config.yml")
    """`CONSERVER_CONFIG_FILE`."""
    data_dir: Path = Path("data")
    """`CONSERVER_DATA_DIR`: the embedded server's files, locks; the `file` storage has a path of its own."""
    workers: int = 1
    """`CONSERVER_WORKERS`: processes of this host."""
    concurrency: int = 1
    """`CONSERVER_VCON_CONCURRENCY`: threads a worker, which is vCons in hand at the same time."""
    chains: tuple[str, ...] = ()
    """`CONSERVER_CHAINS`: the chains this host works on, joined with commas; empty means all."""
    parallel_storage: bool = True
    """`CONSERVER_PARALLEL_STORAGE`: save to the storages of a chain at the same time."""
    storage_fallback: bool = True
    """`VCON_STORAGE_FALLBACK_ENABLED`: read a vCon that is not in Redis from the storages."""
    link_timeout_secs: float = 600.0
    """`CONSERVER_LINK_TIMEOUT_SECS`: for links that set no `timeout`."""
    storage_timeout_secs: float = 60.0
    """`CONSERVER_STORAGE_TIMEOUT_SECS`: for storages that set no `timeout`."""
    lease_secs: float = 10.0
    """`CONSERVER_LEASE_SECS`: after this long without a sign of life, others take a host's claims over."""
    drain_secs: float = 30.0
    """`CONSERVER_DRAIN_SECS`: how long running chains may go on after SIGTERM."""
    pause_secs: float = 30.0
    """`CONSERVER_PAUSE_SECS`: the first pause of a chain that fails the same way again and again; it doubles."""
    redis_format: str = "string"
    """`VCON_REDIS_FORMAT`: `string`, or `json` for values of a JSON module."""
    redis_expiry_secs: int = 3600
    """`VCON_REDIS_EXPIRY`: life of a copy in Redis once storages hold this version; 0 means for ever."""
    index_expiry_secs: int = 86400
    """`VCON_INDEX_EXPIRY`: how long search finds a vCon after its copy in Redis was due to expire."""
    context_expiry_secs: int = 86400
    """`VCON_CONTEXT_EXPIRY`: life of trace contexts."""
    dlq_expiry_secs: int | None = None
    """`VCON_DLQ_EXPIRY`: life of the vCon of a dead letter; unset or 0 means for ever."""
    sorted_set: str = "vcons"
    """`VCON_SORTED_SET_NAME`."""
    egress_format_version: str | None = None
    """`EGRESS_FORMAT_VERSION`: unset, or `0.0.1` for consumers that know only that."""
    max_vcon_bytes: int = 64 * 1024 * 1024
    """`CONSERVER_MAX_VCON_BYTES`: a larger vCon is refused, or dead-lettered when it comes by a list."""
    metrics_port: int = 9464
    """`CONSERVER_METRICS_PORT`: /metrics, /livez and /readyz of the supervisor, on loopback; 0 picks a free one."""
    api_host: str = "127.0.0.1"
    """`CONSERVER_API_HOST`: the address that the API listens on; any but loopback needs a token."""
    api_port: int | None = 8000
    """`CONSERVER_API_PORT`: 0 picks a free one; None (`off`): `conserver run` serves no API."""
    api_root_path: str = "/api"
    """`API_ROOT_PATH`: every endpoint is found at the root and under this path."""
    api_header_name: str = "x-conserver-api-token"
    """`CONSERVER_HEADER_NAME`: the header with a token or an ingress key; followers send theirs in it too."""
    api_token: str | None = field(default=None, repr=False)
    """`CONSERVER_API_TOKEN`: a token that may do everything, or the digest of one (`sha256:...`)."""
    api_token_file: Path | None = None
    """`CONSERVER_API_TOKEN_FILE`: one token a line, or `NAME SCOPES DIGEST`."""
    api_config_write: bool = False
    """`CONSERVER_API_CONFIG_WRITE`: let an admin replace the config file by `POST /config`."""
    log_level: str = "INFO"
    """`LOG_LEVEL`."""
    logging_config_file: Path | None = None
    """`LOGGING_CONFIG_FILE`: a logging.config.fileConfig file that replaces our logging."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Things to tell the operator about the environment, one sentence each."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Read the environment.

        Raises SettingsError that names the variable, its value and what it may be. Variables that the
        existing conserver reads and never uses are ignored, except `LOG_LEVEL`.
        """
        env = os.environ if env is None else env
        read = _Reader(env)
        notes = [note] if (note := crashpoints.check(env)) else []
        start_method = read.choice("CONSERVER_START_METHOD", "", ("", *_START_METHODS))
        if start_method not in ("", "spawn"):
            notes.append(f"CONSERVER_START_METHOD={start_method}: workers are always spawned, never forked")
        egress = read.choice("EGRESS_FORMAT_VERSION", "", ("", "0.0.1"))
        logging_config = read.text("LOGGING_CONFIG_FILE")
        return cls(
            redis_url=read.text("REDIS_URL") or None,
            config_file=Path(read.text("CONSERVER_CONFIG_FILE") or "config.yml"),
            data_dir=Path(read.text("CONSERVER_DATA_DIR") or "data"),
            workers=read.integer("CONSERVER_WORKERS", 1, least=1),
            concurrency=read.integer("CONSERVER_VCON_CONCURRENCY", 1, least=1),
            chains=read.names("CONSERVER_CHAINS"),
            parallel_storage=read.flag("CONSERVER_PARALLEL_STORAGE", True),
            storage_fallback=read.flag("VCON_STORAGE_FALLBACK_ENABLED", True),
            link_timeout_secs=read.number("CONSERVER_LINK_TIMEOUT_SECS", 600.0, least=0.01),
            storage_timeout_secs=read.number("CONSERVER_STORAGE_TIMEOUT_SECS", 60.0, least=0.01),
            lease_secs=read.number("CONSERVER_LEASE_SECS", 10.0, least=0.5),
            drain_secs=read.number("CONSERVER_DRAIN_SECS", 30.0, least=0.0),
            pause_secs=read.number("CONSERVER_PAUSE_SECS", 30.0, least=0.01),
            redis_format=read.choice("VCON_REDIS_FORMAT", "string", ("string", "json")),
            redis_expiry_secs=read.integer("VCON_REDIS_EXPIRY", 3600, least=0, most=_TEN_YEARS),
            index_expiry_secs=read.integer("VCON_INDEX_EXPIRY", 86400, least=0, most=_TEN_YEARS),
            context_expiry_secs=read.integer("VCON_CONTEXT_EXPIRY", 86400, least=0),
            dlq_expiry_secs=read.integer("VCON_DLQ_EXPIRY", 0, least=0, most=_TEN_YEARS) or None,
            sorted_set=read.text("VCON_SORTED_SET_NAME") or "vcons",
            egress_format_version=egress or None,
            max_vcon_bytes=read.integer("CONSERVER_MAX_VCON_BYTES", 64 * 1024 * 1024, least=1024),
            metrics_port=read.integer("CONSERVER_METRICS_PORT", 9464, least=0, most=65535),
            api_host=read.text("CONSERVER_API_HOST") or "127.0.0.1",
            api_port=read.port("CONSERVER_API_PORT", 8000),
            api_root_path=read.path("API_ROOT_PATH", "/api"),
            api_header_name=read.header("CONSERVER_HEADER_NAME", "x-conserver-api-token"),
            api_token=read.text("CONSERVER_API_TOKEN") or None,
            api_token_file=Path(token_file) if (token_file := read.text("CONSERVER_API_TOKEN_FILE")) else None,
            api_config_write=read.flag("CONSERVER_API_CONFIG_WRITE", False),
            log_level=read.choice("LOG_LEVEL", "INFO", _LEVELS, upper=True),
            logging_config_file=Path(logging_config) if logging_config else None,
            notes=tuple(notes),
        )


class _Reader:
    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str) -> str:
        return self._env.get(name, "").strip()

    def names(self, name: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.text(name).split(",") if part.strip())

    def choice(self, name: str, default: str, allowed: tuple[str, ...], *, upper: bool = False) -> str:
        value = self.text(name)
        value = value.upper() if upper else value
        if not value:
            return default
        if value not in allowed:
            raise SettingsError(f"{name}={value!r}: must be one of {', '.join(a for a in allowed if a)}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.text(name).lower()
        if name not in self._env or (not value and default):
            return default
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
        raise SettingsError(f"{name}={value!r}: must be true or false")

    def port(self, name: str, default: int) -> int | None:
        return None if self.text(name).lower() == "off" else self.integer(name, default, least=0, most=65535)

    def path(self, name: str, default: str) -> str:
        value = self.text(name) if name in self._env else default
        value = value.rstrip("/")
        if value and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", value):
            raise SettingsError(f"{name}={value!r}: must be a path such as /api, or empty")
        return value

    def header(self, name: str, default: str) -> str:
        value = self.text(name).lower() or default
        if not re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]+", value):
            raise SettingsError(f"{name}={value!r}: must be the name of an HTTP header")
        return value

    def number(self, name: str, default: float, *, least: float) -> float:
        value = self.text(name)
        if not value:
            return default
        try:
            number = float(value)
        except ValueError:
            raise SettingsError(f"{name}={value!r}: must be a number") from None
        if not least <= number < float("inf"):
            raise SettingsError(f"{name}={value!r}: must be at least {least:g}")
        return number

    def integer(self, name: str, default: int, *, least: int, most: int | None = None) -> int:
        value = self.text(name)
        if not value:
            return default
        try:
            number = int(value)
        except ValueError:
            raise SettingsError(f"{name}={value!r}: must be a whole number") from None
        if number < least:
            raise SettingsError(f"{name}={value!r}: must be at least {least}")
        if most is not None and number > most:
            raise SettingsError(f"{name}={value!r}: must be at most {most}")
        return number
