"""From a config to what a host works on: its chains, with the links and storages that they name imported."""

from __future__ import annotations

import logging
from typing import Any

from conserver import compat, components, outbound_policy
from conserver.chain import Chain
from conserver.config import Config
from conserver.errors import ConfigError, StorageError
from conserver.reasons import describe
from conserver.settings import Settings
from conserver.storage_calls import StorageCall

log = logging.getLogger(__name__)


def chains_of(config: Config, settings: Settings) -> dict[str, list[str]]:
    """Return the chains that this host works on, each with the lists that it claims from.

    Of two chains with the same ingress list the last one has it, as in the existing conserver.
    """
    chains: dict[str, list[str]] = {}
    for name, chain in config.chains.items():
        if not chain.enabled or name in config.waiting or (settings.chains and name not in settings.chains):
            continue
        chains[name] = [ingress for ingress in chain.ingress_lists if config.chain_of(ingress) == name]
    return chains


def load(config: Config, settings: Settings) -> tuple[dict[str, Chain], list[components.Storage]]:
    """Import what the chains of this host need; a chain that cannot be imported is reported and left out.

    Storages that no chain here uses are read from as well, so they are imported if they can be.
    """
    storages, broken = load_storages(config)
    chains: dict[str, Chain] = {}
    for name in chains_of(config, settings):
        chain = config.chains[name]
        try:
            links = [components.load_link(config.links[link]) for link in chain.links]
            for storage_name in chain.storages:
                if storage_name in broken:
                    raise broken[storage_name]
            chains[name] = Chain(chain, links, [storages[storage] for storage in chain.storages], settings)
        except ConfigError as error:
            log.error("chain %r is not worked on, its lists wait: %s", name, error)
    return chains, list(storages.values())


def load_storages(config: Config) -> tuple[dict[str, components.Storage], dict[str, ConfigError]]:
    """Import `imports` and all storages; return the storages that can be used, and why the others cannot."""
    components.use_folder(config.folder)
    compat.use(config)
    try:
        components.load_imports(config)
    except ConfigError as error:
        log.error("%s; what needs it will fail", error)
    # Not by way of `outbound`: its HTTP client costs a worker a third of its start, and not every config uses it.
    outbound_policy.configure(config.outbound)
    storages: dict[str, components.Storage] = {}
    broken: dict[str, ConfigError] = {}
    for name, storage in config.storages.items():
        try:
            storages[name] = components.load_storage(storage)
        except ConfigError as error:
            broken[name] = error
    return storages, broken


def read_through(
    storages: list[components.Storage], uuid: str, *, timeout_secs: float | None = None
) -> dict[str, Any] | None:
    """Return the vCon from the first of *storages*, in the order of the config, that gives it back.

    StorageError if none does and one could not be asked: it may be there. With *timeout_secs* one that takes longer
    than its own timeout, or else this, is left behind.
    """
    silent: list[str] = []
    for storage in storages:
        if storage.get is None:
            continue
        try:
            document: dict[str, Any] | None = (
                storage.get(uuid, storage.options)
                if timeout_secs is None
                else StorageCall(storage, storage.get, uuid, timeout_secs).result()
            )
        except Exception as error:  # noqa: BLE001  storages are other people's code
            why = describe(error, storage.secrets)
            log.warning("storage %r could not read vCon %s: %s", storage.name, uuid, why)
            silent.append(f"storage {storage.name!r} could not be asked: {why}")
            continue
        if document is not None:
            return document
    if silent:
        raise StorageError(f"vCon {uuid} is not in Redis, and {silent[0]}")
    return None
