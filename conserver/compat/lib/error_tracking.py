"""`lib.error_tracking`: errors go to the log."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


def init_error_tracker() -> None:
    """Do nothing: no tracker is used yet."""


def init_sentry() -> None:
    """Do nothing: no tracker is used yet."""


def capture_exception(error: BaseException) -> None:
    """Log an exception with its traceback."""
    log.error("%s: %s", type(error).__name__, error, exc_info=error)
