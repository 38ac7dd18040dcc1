"""`config`: the config in force, as the mapping that the file has."""

from __future__ import annotations

import os
from typing import Any

from conserver.compat.in_force import in_force
from conserver.settings import Settings

_SECTIONS = ("links", "storages", "tracers", "imports", "followers", "chains")


def get_config() -> dict[str, Any]:
    """Return links, storages, chains and so on, each with the keys that differ from their defaults."""
    config = in_force()
    found: dict[str, Any] = {}
    for section in _SECTIONS:
        entries = getattr(config, section)
        dumped = {name: entry.model_dump(mode="json", exclude_defaults=True) for name, entry in entries.items()}
        found[section] = {name: {k: v for k, v in entry.items() if k != "name"} for name, entry in dumped.items()}
    found["ingress_auth"] = {name: list(keys) for name, keys in config.ingress_auth.items()}
    return found


def get_worker_count() -> int:
    """Return how many worker processes a host has."""
    return Settings.from_env().workers


def is_parallel_storage_enabled() -> bool:
    """Say whether the storages of a chain save at the same time."""
    return Settings.from_env().parallel_storage


def get_vcon_concurrency() -> int:
    """Return how many vCons a worker has in hand at the same time."""
    return Settings.from_env().concurrency


def get_start_method() -> str | None:
    """Return `CONSERVER_START_METHOD`, which has no effect: workers are always spawned."""
    return os.environ.get("CONSERVER_START_METHOD") or None


class Configuration:
    """The sections of the config in force."""

    @classmethod
    def get_config(cls) -> dict[str, Any]:
        """Return all of it."""
        return get_config()

    @classmethod
    def get_storages(cls) -> dict[str, Any]:
        """Return the storages."""
        return dict(get_config()["storages"])

    @classmethod
    def get_followers(cls) -> dict[str, Any]:
        """Return the followers."""
        return dict(get_config()["followers"])

    @classmethod
    def get_imports(cls) -> dict[str, Any]:
        """Return the modules that are imported at the start."""
        return dict(get_config()["imports"])

    @classmethod
    def get_ingress_auth(cls) -> dict[str, Any]:
        """Return the keys of each list of the external ingress."""
        return dict(get_config()["ingress_auth"])
