"""conserver.api.runs: a link or a chain, now, on a vCon that is stored or sent."""

from __future__ import annotations

import httpx
import pytest
from redis import Redis

from tests.api.server import ApiServer, pushed
from tests.host import vcon


@pytest.fixture
def stored(http: httpx.Client) -> str:
    """A stored vCon."""
    document = vcon("hello")
    assert http.post("/vcon", json=document).status_code == 201
    return document["uuid"]


def test_a_link_runs_on_a_stored_vcon_and_saves_nothing(http: httpx.Client, stored: str) -> None:
    """What it changed is told."""
    answer = http.post("/links/tag/run", json={"vcon_uuid": stored})

    result = answer.json()
    assert answer.status_code == 200
    assert result["ending"] == "delivered"
    assert [step["link"] for step in result["steps"]] == ["tag"]
    assert any("seen:seen" in line for line in result["steps"][0]["changes"])
    assert "seen:seen" in str(result["vcons"][stored])
    assert result["saved"] == {}
    assert "seen" not in http.get(f"/vcon/{stored}").text


def test_a_chain_runs_and_saves_when_asked(http: httpx.Client, redis: Redis, stored: str) -> None:
    """And delivers only when asked for that."""
    answers = [
        http.post("/chains/main/run", json={"vcon_uuid": stored, "save": True, "deliver": deliver}).json()
        for deliver in (False, True)
    ]

    assert answers[0]["saved"] == {stored: "changed"}
    assert answers[0]["pushes"] == [["out", stored]]
    assert [a["pushed"] for a in answers] == [[], [["out", stored]]]
    assert pushed(redis, "out") == [stored]
    assert "seen:seen" in http.get(f"/vcon/{stored}").text


def test_a_vcon_of_the_body_need_not_be_stored(http: httpx.Client, redis: Redis) -> None:
    """And is not, unless asked."""
    document = vcon("sent")

    answer = http.post("/links/tag/run", json={"vcon": document})

    assert answer.json()["vcons"][document["uuid"]]["subject"] == "sent"
    assert not redis.exists(f"vcon:{document['uuid']}")


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/links/nosuch/run", {"vcon": {}}, 404, "the config has no link 'nosuch'"),
        ("/chains/nosuch/run", {"vcon": {}}, 404, "the config has no chain 'nosuch'"),
        ("/links/tag/run", {}, 422, "either vcon_uuid or vcon"),
        ("/links/tag/run", {"vcon_uuid": "x"}, 422, "'x' is no UUID"),
        ("/links/tag/run", {"vcon": {"uuid": "x"}}, 422, "uuid"),
        ("/links/tag/run", {"vcon": {}, "limit_secs": 601}, 422, "/limit_secs"),
        ("/links/tag/run", {"vcon": {}, "module": "os"}, 422, "/module"),
        ("/links/tag/run", {"vcon_uuid": "018f3c5e-0000-8000-8000-00000000000a"}, 404, "there is no vCon"),
    ],
)
def test_what_cannot_be_run_is_refused(
    http: httpx.Client, path: str, body: dict[str, object], status: int, words: str
) -> None:
    """By name, before anything starts."""
    answer = http.post(path, json=body)

    assert answer.status_code == status
    assert words in answer.text


def test_options_are_an_admins(api: ApiServer, http: httpx.Client, stored: str) -> None:
    """They could lead the credentials of the config elsewhere."""
    body = {"vcon_uuid": stored, "options": {"tags": ["other"]}}

    answer = http.post("/links/tag/run", json=body)
    wrong = http.post("/links/tag/run", json=body | {"options": {"tag": ["other"]}})

    assert "other:other" in str(answer.json()["steps"])
    assert wrong.status_code == 422
    assert "did you mean 'tags'" in wrong.json()["detail"]
