"""The names that people type for lists, chains and storages: what is meant, and what was probably meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conserver import workload
from conserver.components import Storage
from conserver.config import Config, load_config
from conserver.errors import ConfigError
from conserver.findings import did_you_mean
from conserver.queue import Queue
from conserver.settings import Settings

_PAGE = 1000


def nobody_reads(config: Config, list_name: str) -> str | None:
    """Say why what is pushed to *list_name* will wait there, or return None if a chain reads it."""
    if config.chain_of(list_name) is not None:
        return None
    for chain in config.chains.values():
        if list_name in chain.ingress_lists:
            why = config.waiting.get(chain.name) or "it is not enabled"
            return f"chain {chain.name!r} reads list {list_name!r}, but is not worked on ({why}): what is in it waits"
    hint = did_you_mean(list_name, config.lists)
    return f"no chain of {config.file} reads list {list_name!r}: what is in it waits{hint}"


def check_chain(settings: Settings, chain: str) -> None:
    """Raise ConfigError if the config does not have *chain*; one that cannot be read is no reason to refuse."""
    config = load_config(settings.config_file)[0]
    if config is not None and chain not in config.chains:
        raise ConfigError(f"{config.file} has no chain {chain!r}{did_you_mean(chain, config.chains)}")


def dead_letters_of(name: str) -> str:
    """Return whose dead letters are meant: `DLQ:<list>` is the same as `<list>`."""
    return name.removeprefix("DLQ:")


def no_dead_letters(queue: Queue, settings: Settings, name: str) -> str:
    """Say that *name* has no dead letters, and which name might have been meant."""
    config = load_config(settings.config_file)[0]
    storages = [f"storage:{storage}" for storage in config.storages] if config else []
    known = [*queue.lists(), *(config.lists if config else ()), *storages]
    return f"{name!r} has no dead letters{did_you_mean(name, known) if name not in known else ''}"


def dead_letters(queue: Queue, name: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield all dead letters of *name* with their reasons, oldest first."""
    start = 0
    while page := queue.dead(name, start, _PAGE):
        yield from page
        start += len(page)


def load_storages(settings: Settings, name: str) -> tuple[Storage, list[Storage], list[str]]:
    """Return the storage *name* of the config, all that can be used, and the names of those that cannot.

    ConfigError with the cure if *name* is one of these.
    """
    config, findings = load_config(settings.config_file)
    if config is None:
        errors = [finding for finding in findings if finding.level == "error"]
        raise ConfigError(f"the storage cannot be looked up: {errors[0]}")
    if name not in config.storages:
        raise ConfigError(f"{config.file} has no storage {name!r}{did_you_mean(name, config.storages)}")
    usable, broken = workload.load_storages(config)
    if name in broken:
        raise broken[name]
    # One of the others that is broken cannot give vCons back; the one that is wanted can be saved to all the same.
    return usable[name], list(usable.values()), list(broken)
