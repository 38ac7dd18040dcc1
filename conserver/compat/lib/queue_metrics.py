"""`lib.queue_metrics`: nothing to register, since supervisors show the length of each list and the memory."""

from __future__ import annotations

from typing import Any


def register_ingress_list_length_gauge(client: Any) -> None:
    """Do nothing: the supervisor has these numbers."""


def register_redis_memory_gauge(client: Any) -> None:
    """Do nothing: the server's own exporter has it."""
