"""`lib.logging_utils`: loggers whose extras become fields of the log line."""

from __future__ import annotations

import logging

from conserver import telemetry
from conserver.settings import Settings

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "fields", "taskName"}

if not logging.getLogger().handlers:
    # A script of its own; a worker has set it up already.
    telemetry.configure(Settings.from_env())


class _Extras(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, with what it was given as `extra` where our formatters look for it."""
        extras = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if extras:
            record.fields = extras | (getattr(record, "fields", None) or {})
        return True


_extras = _Extras()


def init_logger(name: str) -> logging.Logger:
    """Return the logger of that name."""
    logger = logging.getLogger(name)
    logger.addFilter(_extras)
    return logger
