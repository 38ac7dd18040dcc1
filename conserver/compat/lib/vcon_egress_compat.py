"""`lib.vcon_egress_compat`: vCons for consumers that know an older version."""

from __future__ import annotations

from typing import Any

from conserver.settings import Settings
from conserver.vcon import to_version

SUPPORTED_VERSIONS = ("0.0.1",)


def to_legacy(vcon_dict: dict[str, Any], version: str) -> dict[str, Any]:
    """Return a copy in an older version; ValueError for one that nobody can write."""
    return to_version(vcon_dict, version)


def to_configured_legacy(vcon_dict: dict[str, Any]) -> dict[str, Any]:
    """Return what `EGRESS_FORMAT_VERSION` asks for: a copy in that version, or the document itself."""
    version = Settings.from_env().egress_format_version
    return to_version(vcon_dict, version) if version else vcon_dict
