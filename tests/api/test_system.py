"""conserver.api.system: probes, version, numbers, the config."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import yaml

from tests.api.server import CONFIG, TOKEN, ApiServer, running
from tests.servers import RealServer
from tests.servers import running as server_running
from tests.waiting import wait_until


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/version"])
@pytest.mark.parametrize("root", ["", "/api"])
def test_probes_and_version_are_for_everybody(api: ApiServer, root: str, path: str) -> None:
    """Balancers have no token."""
    with api.client(None) as nobody:
        answer = nobody.get(root + path)

    assert answer.status_code == 200
    assert answer.headers["x-vcon-server-version"]
    assert answer.headers["x-vcon-server-commit"] == "unknown"


def test_contract_version_and_health(http: httpx.Client) -> None:
    """The shapes that existing clients know."""
    version, health = http.get("/version").json(), http.get("/health").json()

    assert set(version) == {"version", "git_commit", "build_time"}
    assert health == {"status": "healthy", "version": version}


def test_readyz_says_why_not_when_the_server_is_away(tmp_path: Path) -> None:
    """And again ready, by itself, when it is back."""
    with (
        server_running(RealServer(tmp_path / "redis")) as server,
        running(ApiServer(tmp_path / "a", server.url)) as api,
    ):
        before = api.http.get("/readyz")
        server.kill()
        away = api.http.get("/readyz")
        alive = api.http.get("/livez")
        refused = api.http.post(
            "/vcon", json={"uuid": "018f3c5e-0000-8000-8000-00000000000a", "created_at": "2026-01-01T00:00:00Z"}
        )
        server.start()
        back = wait_until(lambda: (r := api.http.get("/readyz")).status_code == 200 and r, 30, "ready again")

    assert before.json()["ready"] is True
    assert away.status_code == 503
    assert away.json()["problems"] == ["the Redis-compatible server does not take writes"]
    assert alive.status_code == 200
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "2"
    assert refused.json()["detail"] == "the Redis-compatible server cannot be used at the moment: try again"
    assert back.json()["problems"] == []


def test_metrics_count_requests_by_route_and_status(http: httpx.Client) -> None:
    """Never by path: a UUID in a label would make a series for each vCon."""
    http.get("/vcon/018f3c5e-0000-8000-8000-00000000000a")

    text = http.get("/metrics").text

    assert 'conserver_api_requests_total{route="/vcon/{vcon_uuid}",status="404"}' in text
    assert "018f3c5e" not in text


# The config


@pytest.fixture
def own(tmp_path: Path, server_url: str) -> ApiServer:
    """An API of the test's own, whose config may be replaced."""
    config = CONFIG | {"ingress_auth": {"in": ["a-secret-key"]}}
    return ApiServer(tmp_path, server_url, config, CONSERVER_API_CONFIG_WRITE="true")


def test_contract_config_is_read_replaced_and_restored(own: ApiServer) -> None:
    """What a load tester does; the new list counts at once, and secrets survive their masks."""
    with running(own) as api:
        saved = api.http.get("/config").json()
        changed = saved | {"chains": {**saved["chains"], "load": {"links": [], "ingress_lists": ["load_in"]}}}
        replaced = api.http.post("/config", json=changed)
        created = api.http.post(
            "/vcon?ingress_lists=load_in",
            json={"uuid": "018f3c5e-0000-8000-8000-00000000000a", "created_at": "2026-01-01T00:00:00Z"},
        )
        restored = api.http.post("/config", json=saved)

    assert "a-secret-key" not in str(saved)
    assert (replaced.status_code, created.status_code, restored.status_code) == (204, 201, 204)
    assert yaml.safe_load(own.config_file.read_text())["ingress_auth"] == {"in": ["a-secret-key"]}
    assert set(yaml.safe_load(own.config_file.read_text())["chains"]) == {"main", "other"}


def test_a_config_with_mistakes_is_refused_with_all_of_them(own: ApiServer) -> None:
    """With JSON pointers; the file stays as it is."""
    before = own.config_file.read_text()
    with running(own) as api:
        answer = api.http.post("/config", json={"chains": {"main": {"links": ["nosuch"], "weight": "heavy"}}})

    assert answer.status_code == 422
    assert {"/chains/main/links/0", "/chains/main/weight"} <= {e["pointer"] for e in answer.json()["errors"]}
    assert own.config_file.read_text() == before


def test_a_config_is_replaced_only_where_that_is_allowed(http: httpx.Client, api: ApiServer) -> None:
    """Off unless switched on."""
    before = api.config_file.read_text()

    answer = http.post("/config", json=http.get("/config").json())

    assert answer.status_code == 403
    assert "CONSERVER_API_CONFIG_WRITE is off" in answer.json()["detail"]
    assert api.config_file.read_text() == before


# What the API is


def test_the_document_is_served_to_those_who_may_read(api: ApiServer, http: httpx.Client) -> None:
    """It is OpenAPI, and every operation but the probes says that it needs a token."""
    with api.client(None) as nobody:
        refused = nobody.get("/openapi.json"), nobody.get("/docs")

    document = http.get("/openapi.json").json()

    open_to_all = {p for p, operations in document["paths"].items() for o in operations.values() if "security" not in o}
    assert [answer.status_code for answer in refused] == [403, 403]
    assert document["openapi"].startswith("3.")
    assert open_to_all <= {"/livez", "/readyz", "/health", "/version", "/vcon", "/vcon/external-ingress"}
    assert http.get("/docs").status_code == 200
    assert TOKEN not in http.get("/docs").text
