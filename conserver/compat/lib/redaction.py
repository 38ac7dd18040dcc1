"""`lib.redaction`: options that may be logged or stored in a vCon."""

from __future__ import annotations

from conserver.outbound import is_sensitive as is_sensitive_name
from conserver.usage import safe_options as safe_opts

__all__ = ["is_sensitive_name", "safe_opts"]
