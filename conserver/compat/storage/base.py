"""`storage.base`: a storage of the config, by its name."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from conserver.compat.in_force import in_force
from conserver.errors import ConfigError

log = logging.getLogger(__name__)

_F = TypeVar("_F", bound=Callable[..., Any])


def log_metrics(func: _F) -> _F:
    """Log how long a call took, as a message of level DEBUG."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        result = func(*args, **kwargs)
        name = getattr(args[0], "storage_name", "") if args else ""
        log.debug("%s of storage %r took %.3f s", func.__name__, name, time.monotonic() - began)
        return result

    return wrapper  # type: ignore[return-value]


class Storage:
    """A storage of the config; ConfigError if the config has none of that name."""

    def __init__(self, storage_name: str) -> None:
        from conserver import components

        config = in_force()
        if storage_name not in config.storages:
            raise ConfigError(f"the config has no storage {storage_name!r:.80}")
        entry = config.storages[storage_name]
        self._storage = components.load_storage(entry)
        self.storage_name = storage_name
        self.module_name = entry.module
        self.options = self._storage.options

    @log_metrics
    def save(self, vcon_id: str) -> None:
        """Save the vCon as it is for the link at hand."""
        self._storage.save(vcon_id, self.options)

    @log_metrics
    def get(self, vcon_id: str) -> dict[str, Any] | None:
        """Return the document, or None if the storage does not have it or cannot give it back."""
        found: dict[str, Any] | None = self._storage.get(vcon_id, self.options) if self._storage.get else None
        return found

    @log_metrics
    def delete(self, vcon_id: str) -> bool:
        """Delete the vCon from the storage; False if it was not there, or the storage cannot delete."""
        return bool(self._storage.delete(vcon_id, self.options)) if self._storage.delete else False
