"""One API process a test module: it costs a second to start. Each test begins with an empty server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from tests.api.server import ApiServer, running


@pytest.fixture(scope="module")
def api_process(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API on `tests.api.server.CONFIG`; what is in the Redis-compatible server is anybody's."""
    with running(ApiServer(tmp_path_factory.mktemp("api"), server)) as api:
        yield api


@pytest.fixture
def api(api_process: ApiServer, redis: Redis) -> ApiServer:
    """The API on a server that is empty."""
    return api_process


@pytest.fixture
def http(api: ApiServer) -> httpx.Client:
    """A client that may do everything."""
    return api.http
