"""The package `storage` of the existing conserver; its storages are those in `storages`."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return importlib.import_module(f"storages.{name}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"there is no storage {name!r}") from error
