"""Who may do what: tokens on every route, browsers without a token, CORS, and the audit log of all changes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis import Redis

from conserver.api import ROUTERS
from conserver.tokens import digest_of
from tests.api.server import CONFIG, HEADER, TOKEN, ApiServer, running
from tests.host import vcon
from tests.waiting import wait_until

PUBLIC = {"/livez", "/readyz", "/health", "/version"}
TOKENS = {
    "reader": ["read"],
    "writer": ["write"],
    "admin": ["admin"],
    "feeder": ["ingress:in"],
    "both": ["ingress:in", "read"],
}
#: What stands for each parameter of a path or a query.
VALUES = {"ingress_list": "in", "egress_list": "out", "list": "in", "name": "main", "chain": "main", "storage": "files"}


def with_tokens(**api: Any) -> dict[str, Any]:
    """The config of the tests with a token of each kind."""
    tokens = {name: {"digest": digest_of(f"{name}-token"), "scopes": scopes} for name, scopes in TOKENS.items()}
    return CONFIG | {"ingress_auth": {"in2": ["partner-key"]}, "api": {"tokens": tokens, **api}}


@pytest.fixture(scope="module")
def guarded_process(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API with a token of each kind, whose config may be replaced."""
    folder = tmp_path_factory.mktemp("guarded")
    with running(ApiServer(folder, server, with_tokens(), CONSERVER_API_CONFIG_WRITE="true")) as api:
        yield api


@pytest.fixture
def guarded(guarded_process: ApiServer, redis: Redis) -> ApiServer:
    """The same on a server that is empty."""
    return guarded_process


def routes() -> list[tuple[str, str, str]]:
    """Method, path and what the route declares that its callers need, of every route of the app."""
    found = []
    for router in ROUTERS:
        for route in router.routes:
            scope = (getattr(route, "openapi_extra", None) or {}).get("x-scope", "")
            found += [(method, route.path, scope) for method in sorted(route.methods - {"HEAD"})]
    return found


ROUTES = routes()
GUARDED = [route for route in ROUTES if route[1] not in PUBLIC]


def request(path: str, method: str, document: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a URL of the route that has all it needs, and the body."""
    url = re.sub(r"{(\w+)(:\w+)?}", lambda m: VALUES.get(m[1], str(uuid4())), path)
    operation = document["paths"].get(re.sub(r":\w+}", "}", path), {}).get(method.lower(), {})
    query = {
        p["name"]: VALUES.get(p["name"], "1")
        for p in operation.get("parameters", [])
        if p["in"] == "query" and p.get("required")
    }
    body = {"json": {}} if "requestBody" in operation else {}
    return str(httpx.URL(url, params=query)), body


@pytest.fixture(scope="module")
def document(guarded_process: ApiServer) -> dict[str, Any]:
    """The OpenAPI document."""
    return guarded_process.http.get("/openapi.json").json()


def test_every_route_says_what_its_callers_need() -> None:
    """A route that somebody adds without `needs` is found here; four are for everybody."""
    without = {path for _, path, scope in ROUTES if not scope}

    assert without <= PUBLIC
    assert len(ROUTES) > 25


@pytest.mark.parametrize("root", ["", "/api"])
@pytest.mark.parametrize(("method", "path"), [route[:2] for route in GUARDED])
def test_every_route_refuses_those_without_a_token_and_with_a_wrong_one(
    guarded: ApiServer, redis: Redis, document: dict[str, Any], method: str, path: str, root: str
) -> None:
    """In whichever header, at both roots, and nothing has changed."""
    url, body = request(path, method, document)
    wrong = [
        {},
        {HEADER: ""},
        {HEADER: "wrong"},
        {HEADER: digest_of(TOKEN)},
        {HEADER: f"{TOKEN}x"},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"cookie": f"{HEADER}={TOKEN}"},
        {"x-other-token": TOKEN},
    ]
    with guarded.client(None) as nobody:
        answers = [nobody.request(method, root + url, headers=headers, **body) for headers in wrong]

    assert {answer.status_code for answer in answers} == {403}, [answer.text for answer in answers]
    assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
    details = {answer.json()["detail"] for answer in answers}
    if path != "/vcon/external-ingress":
        assert details == {"Invalid API Key"}
    assert redis.dbsize() == 0


def narrow(scope: str) -> list[str]:
    """Return the tokens that must not be enough."""
    if scope == "read":
        return ["feeder"]
    if scope == "write":
        return ["reader", "feeder", "both"]
    if scope == "admin":
        return ["reader", "feeder", "both", "writer"]
    # What a feeder may do for its own list.
    return ["reader"]


@pytest.mark.parametrize(("method", "path", "scope"), GUARDED)
def test_every_route_refuses_a_token_that_is_too_narrow(
    guarded: ApiServer, redis: Redis, document: dict[str, Any], method: str, path: str, scope: str
) -> None:
    """And the next wider one comes through, to whatever else is wrong with the request."""
    url, body = request(path, method, document)
    refused = []
    for name in narrow(scope):
        with guarded.client(f"{name}-token") as http:
            refused.append(http.request(method, url, **body))
    keys = redis.dbsize()
    enough = scope if scope in ("read", "write", "admin") else "write"
    if path == "/vcon/external-ingress":
        enough = "feeder"
    name = {"read": "reader", "write": "writer"}.get(enough, enough)
    with guarded.client(f"{name}-token") as http:
        let_in = http.request(method, url, **body)

    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert keys == 0
    assert let_in.status_code != 403, let_in.text


def test_a_token_comes_in_either_header(guarded: ApiServer) -> None:
    """In ours, or as a bearer's, in whatever case that word is; never in the URL."""
    with guarded.client(None) as http:
        ours = http.get("/metrics", headers={HEADER.upper(): TOKEN})
        bearer = [
            http.get("/metrics", headers={"Authorization": f"{w} {TOKEN}"}) for w in ("Bearer", "bearer", "BEARER")
        ]
        in_url = [
            http.get("/metrics", params={name: TOKEN})
            for name in (HEADER, "token", "access_token", "api_key", "authorization")
        ]
        as_user = http.get(guarded.address.replace("://", f"://{TOKEN}:{TOKEN}@") + "/metrics")

    assert ours.status_code == 200
    assert [answer.status_code for answer in bearer] == [200] * 3
    assert [answer.status_code for answer in [*in_url, as_user]] == [403] * 6
    assert TOKEN not in guarded.said()


def test_a_feeder_creates_for_its_list_alone(guarded: ApiServer, redis: Redis) -> None:
    """Not for another, not for both, not for none, and it reads nothing."""
    with guarded.client("feeder-token") as http:
        statuses = {
            query: http.post(f"/vcon{query}", json=vcon()).status_code
            for query in ("?ingress_lists=in", "?ingress_lists=in2", "?ingress_lists=in,in2", "", "?ingress_lists=,")
        }
        read = http.get(f"/vcon/{uuid4()}")

    assert statuses == dict.fromkeys(statuses, 403) | {"?ingress_lists=in": 201}
    assert read.status_code == 403
    assert redis.llen("in") == 1
    assert redis.llen("in2") == 0


def test_the_key_of_a_partner_opens_nothing_else(guarded: ApiServer) -> None:
    """Not even another list."""
    with guarded.client("partner-key") as http:
        sent = http.post("/vcon/external-ingress?ingress_list=in2", json=vcon())
        others = [
            http.post("/vcon/external-ingress?ingress_list=in", json=vcon()),
            http.post("/vcon?ingress_lists=in2", json=vcon()),
            http.get("/config"),
        ]

    assert sent.status_code == 204
    assert [answer.status_code for answer in others] == [403] * 3


def test_another_name_of_the_header_counts_alone(tmp_path: Path, server_url: str) -> None:
    """CONSERVER_HEADER_NAME, which the document names too; tokens of any characters come through."""
    token = "gehéim-✓"
    with (
        running(
            ApiServer(tmp_path, server_url, token=None, CONSERVER_API_TOKEN=token, CONSERVER_HEADER_NAME="X-Our-Key")
        ) as api,
        api.client(None) as http,
    ):
        answers = [
            http.get("/openapi.json", headers={"x-our-key": token.encode()}),
            http.get("/openapi.json", headers={"authorization": f"Bearer {token}".encode()}),
            http.get("/openapi.json", headers={HEADER: token.encode()}),
        ]

    assert [answer.status_code for answer in answers] == [200, 200, 403]
    assert answers[0].json()["components"]["securitySchemes"]["token"]["name"] == "x-our-key"


def test_tokens_change_without_a_restart(tmp_path: Path, server_url: str) -> None:
    """One is added, one is revoked; a broken file changes nothing, and readyz and the log say so."""
    file = tmp_path / "tokens"

    def write(text: str) -> None:
        draft = file.with_suffix(".new")
        draft.write_text(text)
        draft.rename(file)

    def status(token: str) -> int:
        return api.http.get("/config", headers={HEADER: token}).status_code

    write("first-geheim\n")
    with running(ApiServer(tmp_path / "api", server_url, token=None, CONSERVER_API_TOKEN_FILE=file)) as api:
        write("second-geheim\n")
        wait_until(lambda: status("second-geheim") == 200, 30, "the new token")
        revoked = status("first-geheim")
        write("two geheime words\n")
        broken = wait_until(lambda: api.http.get("/readyz").json()["config_error"], 30, "the error")
        still = status("second-geheim")
        write("third-geheim\n")
        wait_until(lambda: status("third-geheim") == 200, 30, "the third token")
        well = api.http.get("/readyz").json()["config_error"]

    assert (revoked, still, well) == (403, 200, "")
    assert broken == "config or tokens cannot be used as they are now: the log says why"
    assert f"the last tokens stay in force: {file}:1: write a token alone" in api.said()
    assert "geheim" not in api.said()


# Browsers


@pytest.fixture(scope="module")
def tokenless_process(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API on loopback without a token, for pages of one origin."""
    config = CONFIG | {"api": {"cors_origins": ["https://ui.example.com"]}}
    with running(ApiServer(tmp_path_factory.mktemp("tokenless"), server, config, token=None)) as api:
        yield api


@pytest.fixture
def tokenless(tokenless_process: ApiServer, redis: Redis) -> ApiServer:
    """The same on a server that is empty."""
    return tokenless_process


def test_without_a_token_programs_of_this_machine_may_do_everything(tokenless: ApiServer) -> None:
    """By whatever name they reach it."""
    port = tokenless.address.rpartition(":")[2]
    hosts = [f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST", f"[::1]:{port}", "127.1.2.3"]
    answers = [tokenless.http.post("/vcon?ingress_lists=in", json=vcon(), headers={"host": host}) for host in hosts]

    assert [answer.status_code for answer in answers] == [201] * len(hosts)
    assert tokenless.http.get("/config").status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example.com", "evil.example.com:8000", "localhost.example.com", "127.0.0.1.example.com", "", "0.0.0.0"),
        *("localhost:8000:x", "x@localhost", "192.168.0.1", "[::]", "localhost, evil.example.com"),
    ],
)
def test_without_a_token_it_answers_to_no_other_name(tokenless: ApiServer, redis: Redis, host: str) -> None:
    """A page may have its own name resolve to this machine; then its Origin is right, and its Host is not."""
    answer = tokenless.http.post("/vcon?ingress_lists=in", json=vcon(), headers={"host": host})

    assert answer.status_code in (400, 403)
    assert redis.dbsize() == 0
    if answer.status_code == 403:
        assert answer.json()["detail"] == "without a token the API answers to localhost only"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example.com"},
        {"origin": "null"},
        {"origin": "http://localhost"},
        {"origin": "https://ui.example.com.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_without_a_token_it_does_not_answer_to_pages(
    tokenless: ApiServer, redis: Redis, headers: dict[str, str]
) -> None:
    """Not by scripts and forms, which send an Origin, and not by images and links, for a GET may take from a list."""
    redis.rpush("out", "x")
    answers = [
        tokenless.http.post(
            "/vcon?ingress_lists=in", content=json.dumps(vcon()), headers={"content-type": "text/plain", **headers}
        ),
        tokenless.http.get("/vcon/egress?egress_list=out&limit=1", headers=headers),
    ]

    assert [answer.status_code for answer in answers] == [403, 403]
    assert {answer.json()["detail"] for answer in answers} == {
        "without a token the API does not answer to pages of other origins"
    }
    assert redis.keys() == [b"out"]


def test_without_a_token_pages_of_its_own_and_of_known_origins_come_in(tokenless: ApiServer) -> None:
    """`/docs` is one of its own."""
    own = {"origin": tokenless.address, "sec-fetch-site": "same-origin"}
    known = {"origin": "https://ui.example.com", "sec-fetch-site": "cross-site"}

    assert [tokenless.http.get("/config", headers=h).status_code for h in (own, known, {"sec-fetch-site": "none"})] == [
        200
    ] * 3


def test_cors_is_closed_unless_configured(guarded: ApiServer) -> None:
    """No header lets a page in."""
    asked = {"origin": "https://ui.example.com", "access-control-request-method": "POST"}
    answers = [guarded.http.options("/vcon", headers=asked), guarded.http.get("/livez", headers=asked)]

    assert [answer.status_code for answer in answers] == [405, 200]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


def test_cors_is_open_for_the_configured_origins_only(tokenless: ApiServer) -> None:
    """And never with credentials of a browser's own, such as cookies."""
    answers = {}
    for origin in ("https://ui.example.com", "https://evil.example.com", "null"):
        asked = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": HEADER}
        for method in ("OPTIONS", "GET"):
            answers[origin, method] = tokenless.http.request(method, "/livez", headers=asked)

    known = "https://ui.example.com"
    assert answers[known, "OPTIONS"].status_code == 200
    assert HEADER in answers[known, "OPTIONS"].headers["access-control-allow-headers"]
    assert [answers[known, m].headers["access-control-allow-origin"] for m in ("OPTIONS", "GET")] == [known] * 2
    assert "ETag" in answers[known, "GET"].headers["access-control-expose-headers"]
    for (origin, _), answer in answers.items():
        assert "access-control-allow-credentials" not in answer.headers
        if origin != known:
            assert "access-control-allow-origin" not in answer.headers
            assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/livez", "/nothing", "/vcon/x", "/config"])
def test_every_answer_has_the_headers_that_keep_browsers_safe(guarded: ApiServer, path: str) -> None:
    """Refusals, too."""
    headers = guarded.http.get(path).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"


# The audit log


def audited(api: ApiServer, request_id: str) -> list[dict[str, Any]]:
    """Return the lines of the audit log for one request; every line of the log is one JSON object."""
    lines = [json.loads(line) for line in api.said().splitlines() if not line.startswith("the API listens on ")]
    return [line for line in lines if line["name"] == "conserver.audit" and line["request_id"] == request_id]


def line_of(api: ApiServer, request_id: str) -> dict[str, Any]:
    """Return the one line that a request has."""
    [line] = wait_until(lambda: audited(api, request_id), 10, f"a line for {request_id}")
    return line


def test_a_change_has_one_line_that_says_who_what_and_from_where(guarded: ApiServer) -> None:
    """With the id that the answer has, and the id of what was changed."""
    document = vcon()
    with guarded.client("writer-token") as http:
        created = http.post("/api/vcon?ingress_lists=in", json=document)
        deleted = http.delete(f"/vcon/{document['uuid']}", headers={"x-request-id": "my-own-id.1"})

    line = line_of(guarded, created.headers["x-request-id"])
    assert (line["levelname"], line["message"]) == ("INFO", "POST /api/vcon")
    assert (line["who"], line["from"], line["status"], line["vcon"]) == ("writer", "127.0.0.1", 201, document["uuid"])
    assert deleted.headers["x-request-id"] == "my-own-id.1"
    assert line_of(guarded, "my-own-id.1")["message"] == f"DELETE /vcon/{document['uuid']}"
    assert line_of(guarded, "my-own-id.1")["status"] == 204


def test_refused_attempts_are_in_the_log_too(guarded: ApiServer) -> None:
    """With the name of the token, if it is one."""
    uuid = str(uuid4())
    ids = []
    for token in (None, "wrong", "reader-token"):
        with guarded.client(token) as http:
            ids.append(http.delete(f"/vcon/{uuid}").headers["x-request-id"])
    lines = [line_of(guarded, request_id) for request_id in ids]

    assert [line["who"] for line in lines] == ["nobody", "nobody", "reader"]
    assert {line["status"] for line in lines} == {403}
    assert {line["message"] for line in lines} == {f"DELETE /vcon/{uuid}"}


def test_what_changes_nothing_is_not_in_the_log(guarded: ApiServer) -> None:
    """Also when it is a POST."""
    read = guarded.http.get("/config")
    judged = guarded.http.post("/vcon/validate", json=vcon())
    created = guarded.http.post("/vcon", json=vcon())

    line_of(guarded, created.headers["x-request-id"])
    assert judged.status_code == 200
    assert audited(guarded, read.headers["x-request-id"]) == []
    assert audited(guarded, judged.headers["x-request-id"]) == []


def test_the_log_has_no_token_and_no_body(guarded: ApiServer) -> None:
    """Neither of those that were right nor of those that were wrong."""
    secret = "geheim-4711"
    with guarded.client(secret, authorization=f"Bearer {secret}") as http:
        http.post(f"/vcon?token={secret}", json=vcon(secret))
    made = guarded.http.post("/vcon", json=vcon(secret), headers={"idempotency-key": secret})
    broken = guarded.http.post("/vcon", content=json.dumps(vcon(secret, parties=secret)))
    wrong = guarded.http.post("/config", json={"links": {"x": {"module": "links.tag", "options": {"api_key": secret}}}})

    assert (made.status_code, broken.status_code, wrong.status_code) == (201, 422, 422)
    line_of(guarded, wrong.headers["x-request-id"])
    assert secret not in guarded.said()
    assert TOKEN not in guarded.said()


@pytest.mark.parametrize(
    "text",
    [
        '%0a{"name":"conserver.audit","who":"admin"}',
        "%0d%0aPOST /vcon  who=admin status=201",
        "%00%1b[2J%7f",
        "%e2%80%a8%c2%85%0b%0c",
        "x%20who=admin%20status=201",
        "%ed%a0%80%ff%fe",
        "%22,%22who%22:%22admin",
    ],
)
def test_nothing_that_a_client_sends_makes_or_breaks_a_line(guarded: ApiServer, text: str) -> None:
    """In the path, in parameters, and in the id of the request."""
    path = text.replace(" ", "%20").replace('"', "%22").replace("{", "%7b").replace("}", "%7d")
    before = len(guarded.said().splitlines())
    with guarded.client("wrong") as http:
        answers = [
            http.delete(f"/vcon/{path}"),
            http.post(f"/links/{path}/run", json={}),
            http.post(f"/vcon/external-ingress?ingress_list={path}", json={}),
            http.post(f"/{path}"),
        ]
    lines = [line_of(guarded, answer.headers["x-request-id"]) for answer in answers]

    assert {line["who"] for line in lines} == {"nobody"}
    assert {line["from"] for line in lines} == {"127.0.0.1"}
    assert all(re.fullmatch(r"(POST|DELETE) [!-~…]+", line["message"]) for line in lines)
    assert len(guarded.said().splitlines()) == before + len(answers)


@pytest.mark.parametrize("wrong", ["with space", "a" * 65, "<script>", 'x","who":"admin', "é", "", "a;b"])
def test_a_request_id_that_is_none_is_replaced(guarded: ApiServer, wrong: str) -> None:
    """It goes into logs and headers."""
    answer = guarded.http.post("/nothing", headers={"x-request-id": wrong.encode()})

    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_names_in_lines_for_people_are_one_word(guarded: ApiServer) -> None:
    """On a terminal a field is name=value: a value with a space would look like more of them."""
    from conserver.api.guard import _word

    assert _word("main") == "main"
    assert _word("a who=admin") == "'a who=admin'"
    assert _word("a\nb\x1b[2J\u2028c") == "'a b?[2J c'"
    assert _word("x" * 300) == "x" * 199 + "…"
