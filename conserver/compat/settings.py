"""`settings`: the environment variables of the existing conserver, as its module has them.

Each is read when it is asked for. What this conserver uses as well has the value that it uses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from conserver.settings import Settings

_USED: dict[str, Callable[[Settings], Any]] = {
    "REDIS_URL": lambda s: s.redis_url or "redis://localhost",
    "CONSERVER_CONFIG_FILE": lambda s: str(s.config_file),
    "API_ROOT_PATH": lambda s: s.api_root_path,
    "CONSERVER_API_TOKEN": lambda s: s.api_token,
    "CONSERVER_API_TOKEN_FILE": lambda s: str(s.api_token_file) if s.api_token_file else None,
    "CONSERVER_HEADER_NAME": lambda s: s.api_header_name,
    "CONSERVER_WORKERS": lambda s: s.workers,
    "CONSERVER_VCON_CONCURRENCY": lambda s: s.concurrency,
    "CONSERVER_PARALLEL_STORAGE": lambda s: s.parallel_storage,
    "VCON_REDIS_EXPIRY": lambda s: s.redis_expiry_secs,
    "VCON_INDEX_EXPIRY": lambda s: s.index_expiry_secs,
    "VCON_CONTEXT_EXPIRY": lambda s: s.context_expiry_secs,
    "VCON_DLQ_EXPIRY": lambda s: s.dlq_expiry_secs or 0,
    "VCON_SORTED_SET_NAME": lambda s: s.sorted_set,
    "VCON_STORAGE_FALLBACK_ENABLED": lambda s: s.storage_fallback,
    "EGRESS_FORMAT_VERSION": lambda s: s.egress_format_version,
    "LOGGING_CONFIG_FILE": lambda s: str(s.logging_config_file) if s.logging_config_file else None,
    "LOG_LEVEL": lambda s: s.log_level,
}
_TEXTS: dict[str, str | None] = {
    "CONSERVER_START_METHOD": None,
    "VCON_STORAGE": "",
    "ENV": "dev",
    "SENTRY_DSN": None,
    "OTEL_EXPORTER_OTLP_ENDPOINT": None,
    "OTEL_SERVICE_NAME": "vcon-server",
    "VCON_SERVER_VERSION": "dev",
    "VCON_SERVER_GIT_COMMIT": "unknown",
    "VCON_SERVER_BUILD_TIME": "unknown",
    "UUID8_DOMAIN_NAME": "strolid.com",
    "GROQ_API_KEY": None,
    "OPENAI_API_KEY": None,
    "HOSTNAME": "http://localhost:8000",
    "WEVIATE_HOST": None,
    "WEVIATE_API_KEY": None,
    "DEEPGRAM_KEY": None,
    "SXT_API_KEY": None,
    "SXT_VCON_TABLENAME": None,
    "SXT_VCON_TABLE_WRITE_BISCUI": None,
}
_NUMBERS = {"OTEL_METRIC_EXPORT_INTERVAL": 5000, "TICK_INTERVAL": 5000}
_FLAGS = {"VCON_SORTED_FORCE_RESET": True}

__all__ = [*_USED, *_TEXTS, *_NUMBERS, *_FLAGS]


def __getattr__(name: str) -> Any:
    if name in _USED:
        return _USED[name](Settings.from_env())
    if name in _TEXTS:
        return os.environ.get(name, _TEXTS[name])
    if name in _NUMBERS:
        return int(os.environ.get(name) or _NUMBERS[name])
    if name in _FLAGS:
        return (os.environ.get(name) or str(_FLAGS[name])).lower() in ("true", "1", "yes")
    raise AttributeError(f"settings has no {name!r}; what the conserver reads is in conserver.settings")
