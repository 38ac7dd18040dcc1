"""The OpenAPI document against the running API: no 500, and no answer that it does not describe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema_rs
import pytest
import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis import Redis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from conserver.api import create_app
from conserver.settings import Settings
from tests.api.server import CONFIG, HEADER, TOKEN, ApiServer, running
from tests.host import vcon

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
QUICK, MANY = 6, 150
#: What is there, in place of what would be drawn: else nearly every answer were 404 or 422.
UUIDS = [f"018f3c5e-0000-8000-8000-00000000000{n}" for n in "0123"]
KNOWN = {
    "vcon_uuid": UUIDS,
    "vcon_uuids": UUIDS,
    "ingress_list": ["in", "in2"],
    "ingress_lists": ["in", "in2"],
    "egress_list": ["out", "out2"],
    "list": ["in"],
    "list_name": ["in", "out", "DLQ:in", "DLQ:storage:files"],
    "storage_name": ["files"],
    "filter": [".subject", ".parties[].tel", "error", "1/0", ".x.y"],
    "path": ["$.subject", "$..tel", "$["],
    "tel": ["+15550100"],
    "uuid": UUIDS,
}
NAMES = {"/links": ["tag"], "/chains": ["main", "other"], "/lists": ["in", "out"], "/hosts": ["nobody"]}


@schemathesis.serializer("application/x-ndjson")
def lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """Return a body of lines, whatever was drawn."""
    if isinstance(value, bytes | str):
        return value if isinstance(value, bytes) else value.encode("utf-8", "replace")
    return b"\n".join(json.dumps(line).encode() for line in (value if isinstance(value, list) else [value]))


@cache
def document() -> dict[str, Any]:
    """The document, as an API on our config has it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yml"
        path.write_text(yaml.safe_dump(CONFIG))
        app: Any = create_app(Settings(config_file=path), "redis://127.0.0.1:1")
        return json.loads(json.dumps(app._app.openapi()))


OPERATIONS = [
    pytest.param(method.upper(), path, id=f"{method.upper()} {path}")
    for path, operations in document()["paths"].items()
    for method in operations
]


def known_for(path: str, name: str) -> list[str]:
    """Return values that mean something for a parameter."""
    if name == "name":
        return next((names for prefix, names in NAMES.items() if path.startswith(prefix)), [])
    return KNOWN.get(name, [])


@pytest.fixture(scope="module")
def process(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API of this module's own."""
    with running(ApiServer(tmp_path_factory.mktemp("api"), server)) as api:
        yield api


@pytest.fixture
def api(process: ApiServer, redis: Redis) -> ApiServer:
    """The API with some vCons, of which one is in lists and one is dead."""
    for uuid in UUIDS[:3]:
        process.http.post("/vcon?ingress_lists=in", json=vcon("hello") | {"uuid": uuid}).raise_for_status()
    redis.rpush("out", *UUIDS)
    redis.rpush("DLQ:in", UUIDS[0])
    return process


def try_out(api: ApiServer, method: str, path: str, headers: dict[str, str], examples: int) -> set[int]:
    """Send *examples* requests, valid and wrong ones, check each answer, and return their statuses."""
    schema = schemathesis.openapi.from_dict(document())
    operation = schema[path][method]
    statuses = set()
    strategy = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))
    with requests.Session() as session:

        @given(case=strategy, data=st.data())
        @settings(
            max_examples=examples,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Any, data: st.DataObject) -> None:
            for parameters in (case.path_parameters, case.query):
                for name in list(parameters or ()):
                    if (values := known_for(path, name)) and data.draw(st.booleans()):
                        parameters[name] = data.draw(st.sampled_from(values))
            response = case.call(base_url=api.address, headers=headers, session=session, timeout=60)
            if response.status_code == 400 and b"Invalid HTTP request" in response.content:
                # A URL or header that no server takes: the API has not seen it.
                assert len(response.request.url) + len(str(response.request.headers)) > 15_000
                return
            statuses.add(response.status_code)
            case.validate_response(response, checks=CHECKS)

        check()
    return statuses


def test_the_document_is_valid_openapi() -> None:
    """3.1, by its own schema; every operation has words for people, a name of its own, and says who may call it."""
    operations = [o for ops in document()["paths"].values() for o in ops.values()]
    names = [operation["operationId"] for operation in operations]

    assert document()["openapi"].startswith("3.1")
    assert schemathesis.openapi.from_dict(document()).validate() is None
    assert len(names) == len(set(names))
    assert [operation["operationId"] for operation in operations if not operation.get("summary")] == []
    assert [operation["operationId"] for operation in operations if not operation.get("description")] == []


def test_examples_of_the_document_are_as_it_describes_them() -> None:
    """Those of bodies, of parameters, and of the schemas."""
    wrong = []
    parts = document().get("components", {})
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            described = [(p["name"], p) for p in operation.get("parameters", [])]
            described += list(operation.get("requestBody", {}).get("content", {}).items())
            for name, one in described:
                schema = {**one["schema"], "components": parts}
                examples = [one[key] for key in ("example",) if key in one]
                examples += [one["schema"][key] for key in ("example",) if key in one["schema"]]
                examples += one["schema"].get("examples", [])
                wrong += [
                    (method, path, name, example) for example in examples if not jsonschema_rs.is_valid(schema, example)
                ]

    assert wrong == []


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_each_answer_is_one_that_the_document_describes(api: ApiServer, method: str, path: str) -> None:
    """Its status, its content type, its headers and its body."""
    statuses = try_out(api, method, path, {HEADER: TOKEN}, QUICK)

    assert statuses


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_each_answer_without_a_token_is_described_too(api: ApiServer, method: str, path: str) -> None:
    """It is 403, or 422 for parameters that cannot be, unless it is for everybody."""
    statuses = try_out(api, method, path, {}, 2)

    if path not in ("/livez", "/readyz", "/health", "/version"):
        assert statuses <= {403, 422}


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_each_of_many_answers_is_one_that_the_document_describes(api: ApiServer, method: str, path: str) -> None:
    """The same with many examples; those that run links and chains take a process each."""
    statuses = try_out(api, method, path, {HEADER: TOKEN}, MANY if "/run" not in path else MANY // 3)

    assert statuses


@pytest.mark.long
@pytest.mark.timeout(600)
def test_many_configs_are_answered_as_described(tmp_path: Path, server_url: str) -> None:
    """Where a config may be replaced."""
    with running(ApiServer(tmp_path, server_url, CONSERVER_API_CONFIG_WRITE="true")) as api:
        statuses = try_out(api, "POST", "/config", {HEADER: TOKEN}, MANY)

    assert 422 in statuses
