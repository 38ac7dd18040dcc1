"""conserver.api.queries: jq and JSONPath over a stored vCon."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.api.server import ApiServer, running
from tests.host import store, vcon
from tests.waiting import wait_until

pytest.importorskip("jq")
pytest.importorskip("jsonpath")


@pytest.fixture
def one(http: httpx.Client, redis: Redis) -> str:
    """The path of a stored vCon."""
    document = vcon("hello", **{"x-big": 12345678901234567890123})
    store(redis, [document])
    return f"/vcon/{document['uuid']}"


@pytest.mark.parametrize(
    ("query", "results"),
    [
        ("/jq?filter=.parties[].tel", ["+15550100"]),
        ("/jq?jq_transform=.subject,.none", ["hello", None]),
        ("/jq?filter=empty", []),
        ("/jq?filter=.%22x-big%22", [12345678901234567890123]),
        ("/jsonpath?path=$.parties[*].tel", ["+15550100"]),
        ("/jsonpath?path_string=$..name", ["Ann"]),
        ("/jsonpath?path=$.none", []),
        ("/jsonpath?path=$['x-big']", [12345678901234567890123]),
    ],
)
def test_all_results_come_as_an_array(http: httpx.Client, one: str, query: str, results: list[Any]) -> None:
    """Under our name of the parameter, and under that of the other system."""
    answer = http.get(one + query)

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == results


@pytest.mark.parametrize(
    ("query", "parameter", "words"),
    [
        ("/jq?filter=.a[", "filter", "syntax error"),
        ("/jq?jq_transform=.subject.x", "jq_transform", "Cannot index string"),
        ("/jq", "filter", "filter or jq_transform is missing"),
        ("/jq?filter=" + "." * 4001, "filter", "at most 4000 characters"),
        ("/jsonpath?path=subject", "path", "expected 'TOKEN_ROOT'"),
        ("/jsonpath?path=", "path", "path or path_string is missing"),
    ],
)
def test_a_bad_program_is_named(http: httpx.Client, one: str, query: str, parameter: str, words: str) -> None:
    """In the words of its language."""
    answer = http.get(one + query)

    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["parameter"] == parameter
    assert words in error["detail"]


@pytest.mark.parametrize("query", ["/jq?filter=.", "/jsonpath?path=$"])
def test_a_vcon_that_is_missing_is_not_found(http: httpx.Client, query: str) -> None:
    """And what is no UUID is refused."""
    assert http.get(f"/vcon/018f3c5e-0000-8000-8000-000000000009{query}").status_code == 404
    assert http.get(f"/vcon/x{query}").status_code == 422


def test_a_signed_vcon_is_seen_as_its_envelope(http: httpx.Client, redis: Redis) -> None:
    """As it is stored."""
    uuid = "018f3c5e-0000-8000-8000-000000000001"
    store(redis, [{"uuid": uuid} | {"payload": "e30", "signatures": [{"header": {"uuid": uuid}, "signature": "x"}]}])

    assert http.get(f"/vcon/{uuid}/jq?filter=.payload").json() == ["e30"]
    assert http.get(f"/vcon/{uuid}/jsonpath?path=$.signatures[0].header.uuid").json() == [uuid]


def test_a_package_that_is_missing_is_named(server: str, redis: Redis, tmp_path: Path) -> None:
    """With what brings it."""
    document = vcon("hello")
    store(redis, [document])
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules.update(jq=None, jsonpath=None)\n")

    with running(ApiServer(tmp_path / "api", server, PYTHONPATH=tmp_path)) as api:
        answers = [api.http.get(f"/vcon/{document['uuid']}/{query}") for query in ("jq?filter=.", "jsonpath?path=$")]

    assert [answer.status_code for answer in answers] == [501, 501]
    assert [answer.json()["detail"] for answer in answers] == [
        f"the server needs a package for this: pip install 'conserver[{name}]'" for name in ("jq", "jsonpath")
    ]


def test_programs_that_take_too_long_hold_up_no_others(http: httpx.Client, one: str) -> None:
    """They are ended; while as many run as may, the next is told to try again, and other requests are answered."""
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(http.get(f"{one}/jq?filter=def f: f; f"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()

    busy = wait_until(lambda: (a := http.get(f"{one}/jq?filter=.")).status_code == 503 and a, 30)
    assert http.get(one).status_code == 200
    for thread in threads:
        thread.join()

    assert busy.json()["detail"] == "4 filters are running, which is as many as may: try again"
    assert busy.headers["retry-after"] == "1"
    assert [answer.status_code for answer in answers] == [422] * 4
    assert {answer.json()["type"] for answer in answers} == {"urn:conserver:problem:too-slow"}
    assert answers[0].json()["detail"] == "it takes longer than 5 s: ask for less"
    assert http.get(f"{one}/jq?filter=.subject").json() == ["hello"]


def test_a_program_that_asks_for_too_much_ends_alone(http: httpx.Client, one: str) -> None:
    """The API goes on."""
    answer = http.get(f"{one}/jq?filter=repeat(.)")

    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:conserver:problem:too-large"
    assert http.get(f"{one}/jq?filter=.subject").json() == ["hello"]
