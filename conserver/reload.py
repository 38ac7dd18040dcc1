"""Reload: notices that the config file has changed, checks it, and keeps the last good one if it is broken."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from conserver import components
from conserver.config import Config

log = logging.getLogger(__name__)

#: A file that cannot be used is checked again now and then: a module that it names may have come meanwhile.
CHECK_AGAIN_SECS = 10.0


class Reload:
    """Watches one config file by its contents: a mounted file that is swapped underneath is noticed too."""

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self._config = config
        self._stamp = _stamp(path)
        self._check_again = 0.0
        self.error: str | None = None
        """Why the file as it is now is not in force, or None if it is."""

    def look(self) -> Config | None:
        """Return a config that is to come into force, or None if there is nothing new or it cannot be used."""
        stamp = _stamp(self._path)
        if stamp == self._stamp and (self.error is None or time.monotonic() < self._check_again):
            return None
        config, findings = components.check(self._path)
        if _stamp(self._path) != stamp:
            # It is being written: look again when it has come to rest.
            return None
        before, self._stamp = self._stamp, stamp
        said = self.error if stamp == before else None
        self._check_again = time.monotonic() + CHECK_AGAIN_SECS
        if config is not None and not config.chains and self._config.chains:
            # Somebody's editor empties the file before it writes it, or it is a mistake: not all work is to stop.
            self.error = f"{self._path} has no chains any more"
            if self.error != said:
                log.error("%s; the config before stays in force", self.error)
            return None
        if config is None:
            errors = [finding for finding in findings if finding.level == "error"]
            self.error = str(errors[0]) if errors else "it cannot be read"
            if self.error != said:
                log.error("%s was changed and cannot be used; the config before stays in force", self._path)
                for finding in errors:
                    log.error("%s", finding)
            return None
        if self.error is not None:
            log.info("%s can be used again", self._path)
        self.error = None
        if config.digest == self._config.digest:
            return None
        self._config = config
        for finding in findings:
            log.warning("%s", finding)
        log.info("%s was changed; it is in force for what is claimed from now on", self._path)
        return config


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
