"""Conserver: a worker daemon for conversations.

These are the names for authors of links and storages; everything else belongs to the engine.
"""

from typing import TYPE_CHECKING, Any

from conserver.errors import LinkError, StorageError, VconConflict, VconNotFound, VconSealed

if TYPE_CHECKING:
    __version__: str
    from conserver.ambient import derived_uuid, push, vcons
    from conserver.vcon import Vcon

_LAZY = {"vcons": "ambient", "push": "ambient", "derived_uuid": "ambient", "Vcon": "vcon"}

__all__ = [
    "LinkError",
    "StorageError",
    "Vcon",
    "VconConflict",
    "VconNotFound",
    "VconSealed",
    "__version__",
    "derived_uuid",
    "push",
    "vcons",
]


def __getattr__(name: str) -> Any:
    # Lazy, so that `conserver --help` need not import the redis client.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"conserver.{_LAZY[name]}"), name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("conserver")
        except PackageNotFoundError:
            return "0.0.0"
    raise AttributeError(f"module 'conserver' has no attribute {name!r}")
