"""`lib.vcon_compat`: the names that members have in the current draft."""

from __future__ import annotations

from typing import Any

_TOP = {"appended": "amended", "must_support": "critical"}
_ENTRY = {"schema_version": "schema", "mimetype": "mediatype", "must_support": "critical"}


def normalize_legacy_fields(vcon_dict: dict[str, Any]) -> dict[str, Any]:
    """Rename what had another name in older drafts, in place, and return it; of two names the new one counts."""
    _rename(vcon_dict, _TOP)
    for name in ("dialog", "analysis", "attachments"):
        for entry in vcon_dict.get(name) or []:
            if isinstance(entry, dict):
                _rename(entry, _ENTRY | ({"type": "purpose"} if name == "attachments" else {}))
    return vcon_dict


def _rename(holder: dict[str, Any], names: dict[str, str]) -> None:
    for old, new in names.items():
        if old in holder:
            value = holder.pop(old)
            holder.setdefault(new, value)
