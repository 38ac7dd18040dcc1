"""conserver.settings: what the environment may say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from conserver.errors import SettingsError
from conserver.settings import Settings


def test_an_empty_environment_means_the_defaults() -> None:
    """What a fresh installation runs with; an empty value is no value."""
    assert Settings.from_env({}) == Settings()
    names = ["REDIS_URL", "CONSERVER_WORKERS", "VCON_STORAGE_FALLBACK_ENABLED", "LOG_LEVEL", "VCON_REDIS_FORMAT"]
    assert Settings.from_env(dict.fromkeys(names, "")) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("REDIS_URL", " redis://r:1/2 ", "redis_url", "redis://r:1/2"),
        ("CONSERVER_CONFIG_FILE", "/etc/c.yml", "config_file", Path("/etc/c.yml")),
        ("CONSERVER_DATA_DIR", "/data", "data_dir", Path("/data")),
        ("CONSERVER_WORKERS", "4", "workers", 4),
        ("CONSERVER_VCON_CONCURRENCY", "512", "concurrency", 512),
        ("CONSERVER_CHAINS", " a, b ,,", "chains", ("a", "b")),
        ("CONSERVER_PARALLEL_STORAGE", "false", "parallel_storage", False),
        ("VCON_STORAGE_FALLBACK_ENABLED", "0", "storage_fallback", False),
        ("CONSERVER_LINK_TIMEOUT_SECS", "1.5", "link_timeout_secs", 1.5),
        ("CONSERVER_STORAGE_TIMEOUT_SECS", "2", "storage_timeout_secs", 2.0),
        ("CONSERVER_LEASE_SECS", "3", "lease_secs", 3.0),
        ("CONSERVER_DRAIN_SECS", "0", "drain_secs", 0.0),
        ("CONSERVER_PAUSE_SECS", "5", "pause_secs", 5.0),
        ("VCON_REDIS_FORMAT", "json", "redis_format", "json"),
        ("VCON_REDIS_EXPIRY", "0", "redis_expiry_secs", 0),
        ("VCON_INDEX_EXPIRY", "7", "index_expiry_secs", 7),
        ("VCON_CONTEXT_EXPIRY", "8", "context_expiry_secs", 8),
        ("VCON_DLQ_EXPIRY", "9", "dlq_expiry_secs", 9),
        ("VCON_DLQ_EXPIRY", "0", "dlq_expiry_secs", None),
        ("VCON_SORTED_SET_NAME", "mine", "sorted_set", "mine"),
        ("EGRESS_FORMAT_VERSION", "0.0.1", "egress_format_version", "0.0.1"),
        ("CONSERVER_MAX_VCON_BYTES", "2048", "max_vcon_bytes", 2048),
        ("CONSERVER_METRICS_PORT", "0", "metrics_port", 0),
        ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("LOGGING_CONFIG_FILE", "l.ini", "logging_config_file", Path("l.ini")),
    ],
)
def test_each_variable_sets_one_field(name: str, value: str, field: str, expected: object) -> None:
    """And nothing else."""
    assert Settings.from_env({name: value}) == dataclasses.replace(Settings(), **{field: expected})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CONSERVER_WORKERS", "0", "must be at least 1"),
        ("CONSERVER_WORKERS", "two", "must be a whole number"),
        ("CONSERVER_VCON_CONCURRENCY", "1.5", "must be a whole number"),
        ("CONSERVER_LEASE_SECS", "0.1", "must be at least 0.5"),
        ("CONSERVER_LEASE_SECS", "nan", "must be at least 0.5"),
        ("CONSERVER_DRAIN_SECS", "-1", "must be at least 0"),
        ("CONSERVER_DRAIN_SECS", "soon", "must be a number"),
        ("VCON_REDIS_EXPIRY", "-1", "must be at least 0"),
        ("CONSERVER_PARALLEL_STORAGE", "maybe", "must be true or false"),
        ("VCON_REDIS_FORMAT", "xml", "must be one of string, json"),
        ("EGRESS_FORMAT_VERSION", "0.1", "must be one of 0.0.1"),
        ("LOG_LEVEL", "loud", "must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("CONSERVER_METRICS_PORT", "70000", "must be at most 65535"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name: str, value: str, words: str) -> None:
    """The variable, its value, and what it may be."""
    with pytest.raises(SettingsError) as refused:
        Settings.from_env({name: value})

    assert str(refused.value).lower() == f"{name}='{value}': {words}".lower()


def test_forking_is_told_not_to_be_done() -> None:
    """The variable of the existing conserver is accepted, with a word about it."""
    assert Settings.from_env({"CONSERVER_START_METHOD": "spawn"}).notes == ()
    assert Settings.from_env({"CONSERVER_START_METHOD": "fork"}).notes == (
        "CONSERVER_START_METHOD=fork: workers are always spawned, never forked",
    )


def test_settings_do_not_change() -> None:
    """What a worker was started with is what it has."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().workers = 2  # type: ignore[misc]
