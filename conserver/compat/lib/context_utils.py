"""`lib.context_utils`: trace contexts that go with a UUID from list to list."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from conserver.settings import Settings


def get_context_key(ingress_list: str, vcon_uuid: str) -> str:
    """Return the key of the contexts of a UUID in a list."""
    return f"context:{ingress_list}:{vcon_uuid}"


def store_context_sync(redis: Any, ingress_list: str, vcon_uuid: str, context: Mapping[str, Any] | None) -> None:
    """Append a context; without one nothing is done."""
    if context:
        key = get_context_key(ingress_list, vcon_uuid)
        redis.rpush(key, json.dumps(context))
        redis.expire(key, Settings.from_env().context_expiry_secs)


async def store_context_async(redis: Any, ingress_list: str, vcon_uuid: str, context: Mapping[str, Any] | None) -> None:
    """Append a context by an asynchronous client; without one nothing is done."""
    if context:
        key = get_context_key(ingress_list, vcon_uuid)
        await redis.rpush(key, json.dumps(context))
        await redis.expire(key, Settings.from_env().context_expiry_secs)


def retrieve_context(redis: Any, ingress_list: str, vcon_uuid: str) -> dict[str, Any] | None:
    """Take the oldest context; None if there is none that can be read."""
    try:
        context = json.loads(redis.lpop(get_context_key(ingress_list, vcon_uuid)) or "null")
    except ValueError:
        return None
    return context if isinstance(context, dict) else None


def extract_otel_trace_context() -> dict[str, Any] | None:
    """Return the context of the current span; None without OpenTelemetry, and without a span."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    sampled = int(span.trace_flags) & 1
    ids = {"trace_id": format(span.trace_id, "032x"), "span_id": format(span.span_id, "016x")}
    return {**ids, "trace_flags": sampled, "is_sampled": bool(sampled)}
