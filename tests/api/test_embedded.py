"""The API on the server that comes with the conserver: it has no `REDIS_URL`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from redis import Redis

from conserver.embedded import EmbeddedServer
from tests.api.server import CONFIG, ApiServer, running
from tests.host import vcon

WITH_REDIS_STORAGE = {**CONFIG, "storages": {"files": {"module": "storages.redis_storage"}}}


@pytest.fixture(scope="module")
def api(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API as `conserver api` starts it where nothing is set up."""
    folder = tmp_path_factory.mktemp("embedded")
    with running(ApiServer(folder, "", WITH_REDIS_STORAGE)) as api:
        yield api
        # It stops its server when it is told to end, but not when it is killed.
        api.stop()


def test_a_storage_without_a_server_of_its_own_is_replayed_on_ours(api: ApiServer) -> None:
    """As in a worker, whose environment names the server."""
    document = vcon("kept")
    api.http.post("/vcon", json=document)
    with contextlib.closing(Redis.from_url(EmbeddedServer(api.folder / "data").url)) as redis:
        redis.rpush("DLQ:storage:files", document["uuid"])

        answer = api.http.post("/dlq/storage/reprocess?storage_name=files&details=true")

        assert answer.json() == {"saved": 1, "failed": "", "missing": [], "left": 0}
        assert redis.exists(f"vcon_storage:{document['uuid']}")


def test_the_status_tells_that_the_server_is_ours(api: ApiServer) -> None:
    """And where its data is, as the command does."""
    server = api.http.get("/status").json()["server"]

    assert server["embedded"] is True
    assert server["what"].startswith("embedded ")
