"""Each row of the existing conserver's REST API, as its clients call it, at the root and under `/api`.

What ours does better or differently than it (docs/reference/api.md, "What differs") has tests beside each router.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import yaml
from redis import Redis

from tests.api.server import CONFIG, HEADER, TOKEN, ApiServer, pushed, running
from tests.host import vcon
from tests.waiting import wait_until


@pytest.fixture(params=["", "/api"], ids=["root", "under /api"])
def at(request: pytest.FixtureRequest) -> str:
    """Where the client calls."""
    return str(request.param)


@pytest.fixture
def stored(http: httpx.Client) -> dict[str, Any]:
    """A vCon that was created."""
    document = vcon("hello")
    assert http.post("/vcon", json=document).status_code == 201
    return document


def test_version_and_health(http: httpx.Client, at: str) -> None:
    """GET /version, GET /health."""
    assert set(http.get(f"{at}/version").json()) == {"version", "git_commit", "build_time"}
    assert http.get(f"{at}/health").json()["status"] == "healthy"


def test_stats_queue(http: httpx.Client, redis: Redis, at: str) -> None:
    """GET /stats/queue."""
    redis.rpush("in", "a", "b")

    assert http.get(f"{at}/stats/queue?list_name=in").json() == {"list_name": "in", "depth": 2}


def test_list(http: httpx.Client, at: str) -> None:
    """GET /vcon: newest first, by page and size, since and until."""
    documents = [vcon(created_at=f"2026-01-0{day}T00:00:00Z") for day in (1, 2, 3)]
    for document in documents:
        http.post("/vcon", json=document)
    oldest, middle, newest = [document["uuid"] for document in documents]

    assert http.get(f"{at}/vcon").json() == [newest, middle, oldest]
    assert http.get(f"{at}/vcon?page=2&size=2").json() == [oldest]
    assert http.get(f"{at}/vcon?since=2026-01-02T00:00:00Z&until=2026-01-02T12:00:00Z").json() == [middle]


def test_egress(http: httpx.Client, redis: Redis, at: str, stored: dict[str, Any]) -> None:
    """GET /vcon/egress takes from the list, GET /vcon/count counts it."""
    redis.rpush("out", stored["uuid"])

    counted = http.get(f"{at}/vcon/count?egress_list=out")
    taken = http.get(f"{at}/vcon/egress?egress_list=out&limit=5")

    assert (counted.status_code, counted.json()) == (200, 1)
    assert (taken.status_code, taken.json()) == (200, [stored["uuid"]])
    assert pushed(redis, "out") == []


def test_read(http: httpx.Client, at: str, stored: dict[str, Any]) -> None:
    """GET /vcon/{uuid}, GET /vcons with null for what is missing, in the order asked for."""
    nobody = "018f3c5e-0000-8000-8000-00000000dead"

    one = http.get(f"{at}/vcon/{stored['uuid']}")
    many = http.get(f"{at}/vcons", params={"vcon_uuids": [nobody, stored["uuid"]]})

    assert (one.status_code, one.json()["uuid"]) == (200, stored["uuid"])
    assert (many.json()[0], many.json()[1]["uuid"]) == (None, stored["uuid"])
    assert http.get(f"{at}/vcon/{nobody}").status_code == 404
    assert http.get(f"{at}/vcon/nonsense").status_code == 422


@pytest.mark.parametrize("term", [{"tel": "+15550100"}, {"name": "Ann"}, {"mailto": "ann@example.com"}])
def test_search(http: httpx.Client, at: str, term: dict[str, str]) -> None:
    """GET /vcons/search: exact, by what a party has; 400 without a term."""
    document = vcon(parties=[{"tel": "+15550100", "name": "Ann", "mailto": "ann@example.com"}])
    http.post("/vcon", json=document)

    assert http.get(f"{at}/vcons/search", params=term).json() == [document["uuid"]]
    assert http.get(f"{at}/vcons/search").status_code == 400


def test_create(http: httpx.Client, redis: Redis, at: str) -> None:
    """POST /vcon as the telephony adapters send it: lists joined with commas, the token in its header."""
    document = vcon("hello")

    with httpx.Client(base_url=http.base_url, headers={HEADER: TOKEN}, timeout=30) as adapter:
        answer = adapter.post(f"{at}/vcon?ingress_lists=in,in2", json=document)

    assert (answer.status_code, answer.json()["uuid"]) == (201, document["uuid"])
    assert [pushed(redis, name) for name in ("in", "in2")] == [[document["uuid"]]] * 2


def test_external_ingress(tmp_path: Any, server_url: str, at: str) -> None:
    """POST /vcon/external-ingress with the key of the list."""
    own = ApiServer(tmp_path, server_url, CONFIG | {"ingress_auth": {"in": "partner-key"}})
    with running(own) as api, api.client("partner-key") as partner:
        answers = [partner.post(f"{at}/vcon/external-ingress?ingress_list={n}", json=vcon()) for n in ("in", "in2")]

    assert [answer.status_code for answer in answers] == [204, 403]


def test_delete(http: httpx.Client, at: str, stored: dict[str, Any]) -> None:
    """DELETE /vcon/{uuid}."""
    assert http.delete(f"{at}/vcon/{stored['uuid']}").status_code == 204
    assert http.get(f"/vcon/{stored['uuid']}").status_code == 404


def test_ingress(http: httpx.Client, redis: Redis, at: str, stored: dict[str, Any]) -> None:
    """POST /vcon/ingress, as a load tester does it."""
    assert http.post(f"{at}/vcon/ingress?ingress_list=in", json=[stored["uuid"]]).status_code == 204
    assert pushed(redis, "in") == [stored["uuid"]]


def test_config(tmp_path: Any, server_url: str, at: str) -> None:
    """GET /config gives the whole file; a load tester replaces it and restores what it has read."""
    with running(ApiServer(tmp_path, server_url, CONFIG, CONSERVER_API_CONFIG_WRITE="true")) as api:
        backup = api.http.get(f"{at}/config").json()
        replaced = api.http.post(
            f"{at}/config", json={**backup, "chains": {"load": {"links": [], "ingress_lists": ["l"]}}}
        )
        restored = api.http.post(f"{at}/config", json=backup)

    assert set(backup["chains"]) == {"main", "other"}
    assert (replaced.status_code, restored.status_code) == (204, 204)
    assert yaml.safe_load(api.config_file.read_text()) == CONFIG


def test_dead_letters(http: httpx.Client, redis: Redis, at: str, stored: dict[str, Any]) -> None:
    """GET /dlq, POST /dlq/reprocess with the bare number of those that were moved."""
    redis.rpush("DLQ:in", stored["uuid"])

    assert http.get(f"{at}/dlq?ingress_list=in").json() == [stored["uuid"]]
    assert http.post(f"{at}/dlq/reprocess?ingress_list=in&count=10").json() == 1
    assert pushed(redis, "in") == [stored["uuid"]]


def test_storage_dead_letters(http: httpx.Client, redis: Redis, at: str, stored: dict[str, Any]) -> None:
    """GET /dlq/storage, POST /dlq/storage/reprocess; 404 for a storage that the config lacks."""
    redis.rpush("DLQ:storage:files", stored["uuid"])

    assert http.get(f"{at}/dlq/storage?storage_name=files").json() == [stored["uuid"]]
    assert http.post(f"{at}/dlq/storage/reprocess?storage_name=files").json() == 1
    assert pushed(redis, "DLQ:storage:files") == []
    assert http.post(f"{at}/dlq/storage/reprocess?storage_name=nosuch").status_code == 404


def test_index(http: httpx.Client, at: str, stored: dict[str, Any]) -> None:
    """GET /index_vcons gives the number of vCons."""
    assert wait_until(lambda: http.get(f"{at}/index_vcons").json() == 1, 30, "the index")


def test_documents(http: httpx.Client, at: str) -> None:
    """GET /docs, GET /openapi.json."""
    assert http.get(f"{at}/docs").status_code == 200
    assert "/vcon/{vcon_uuid}" in http.get(f"{at}/openapi.json").json()["paths"]


def test_a_wrong_token_is_403_with_the_words_that_clients_know(api: ApiServer, at: str) -> None:
    """`{"detail": "Invalid API Key"}`, and every answer names the version of the server."""
    with api.client("wrong") as client:
        answer = client.get(f"{at}/vcon")

    assert (answer.status_code, answer.json()["detail"]) == (403, "Invalid API Key")
    assert {"x-vcon-server-version", "x-vcon-server-commit"} <= set(answer.headers)
