"""The package `server`: the same modules once more, under the name that older links know."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return importlib.import_module("links" if name == "links" else f"conserver.compat.{name}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"the existing conserver's package 'server' has no {name!r} here") from error
