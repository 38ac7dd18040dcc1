"""The config that this process works with, for those who ask for it by the old names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conserver.errors import ConfigError
from conserver.settings import Settings

if TYPE_CHECKING:
    from conserver.configmodel import Config

_config: Config | None = None


def use(config: Config) -> None:
    """Take *config* for the one in force."""
    global _config
    _config = config


def in_force() -> Config:
    """Return the config in force; outside of a conserver, that of `CONSERVER_CONFIG_FILE`. Raises ConfigError."""
    if _config is not None:
        return _config
    from conserver.config import load_config

    config, findings = load_config(Settings.from_env().config_file)
    if config is None:
        raise ConfigError(str(next(finding for finding in findings if finding.level == "error")))
    return config
