"""What was tried against the API. docs/attacks.md is the list; each row names its tests here and elsewhere."""

from __future__ import annotations

import gzip
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from redis import Redis

from tests.api.server import CONFIG, HEADER, TOKEN, ApiServer, running
from tests.api.test_openapi import document
from tests.fakes.http_server import HttpServer
from tests.host import vcon
from tests.servers import RealServer
from tests.servers import running as server_running
from tests.waiting import wait_until

MOST = 1_000_000
UUID = "018f3c5e-0000-8000-8000-00000000000a"
#: Where each parameter that names a list, or something else that becomes part of a key, is found.
NAMES = ("ingress_list", "ingress_lists", "egress_list", "list", "list_name", "storage_name", "name", "host")
VALUES = {"vcon_uuid": UUID, "name": "main", "host": "nobody", "filter": ".", "path": "$"}
OPERATIONS = [(method.upper(), path, o) for path, ops in document()["paths"].items() for method, o in ops.items()]
WITH_BODY = [pytest.param(m, p, id=f"{m} {p}") for m, p, o in OPERATIONS if "requestBody" in o]
WITH_UUID = [pytest.param(m, p, id=f"{m} {p}") for m, p, o in OPERATIONS if "{vcon_uuid}" in p]
WITH_NAME = [
    pytest.param(method, path, parameter["name"], id=f"{method} {path} {parameter['name']}")
    for method, path, operation in OPERATIONS
    for parameter in operation.get("parameters", [])
    if parameter["name"] in NAMES and not path.startswith("/vcons/search")
]
OTHER_KEYS = [
    f"vcon:{UUID}",
    "vcons",
    "tel:+15550100",
    "DLQ:in",
    "conserver:{in}:held:x",
    "conserver:host:x",
    "conserver:paused",
    "i\nn",
    "in\0",
    "in*",
    "IN",
    "../in",
    "in\u200b",
    "in]",
    "x" * 5000,
]


@pytest.fixture(scope="module")
def target_process(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API that takes vCons of a megabyte at most."""
    folder = tmp_path_factory.mktemp("target")
    with running(ApiServer(folder, server, CONSERVER_MAX_VCON_BYTES=MOST, CONSERVER_API_CONFIG_WRITE="true")) as api:
        yield api


@pytest.fixture
def target(target_process: ApiServer, redis: Redis) -> Iterator[ApiServer]:
    """The same on a server with one vCon; it must be well afterwards."""
    target_process.http.post("/vcon?ingress_lists=in", json=vcon(uuid=UUID)).raise_for_status()
    yield target_process
    assert target_process.http.get("/readyz").json()["ready"] is True
    assert "could not be answered" not in target_process.said()


def keys_of(redis: Redis) -> dict[bytes, bytes]:
    """Everything that the server holds, but what the API notes of itself."""
    return {key: redis.dump(key) for key in redis.scan_iter() if not key.startswith(b"conserver:idempotency")}


def url_of(path: str, operation: dict[str, Any], **values: str) -> str:
    """Return a URL of the operation with all that it needs."""
    known = {"ingress_list": "in", "egress_list": "out", "list_name": "in", "storage_name": "files"} | VALUES | values
    if path.startswith("/links"):
        known = {"name": "tag", **values}
    url = re.sub(r"{(\w+)}", lambda m: quote(known.get(m[1], "1"), safe=""), path)
    query = {
        p["name"]: known.get(p["name"], "1")
        for p in operation.get("parameters", [])
        if p["in"] == "query" and (p.get("required") or p["name"] in values)
    }
    return f"{url}?{httpx.QueryParams(query)}" if query else url


def operation_of(method: str, path: str) -> dict[str, Any]:
    return document()["paths"][path][method.lower()]


def raw(api: ApiServer, data: bytes, *, more: bytes = b"", secs: float = 20) -> bytes:
    """Send bytes as they are, and return all that comes until the other side closes or says nothing more."""
    host, port = api.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=secs) as connection:
        said = b""
        try:
            connection.sendall(data)
            if more:
                connection.sendall(more)
            while part := connection.recv(65536):
                said += part
        except (TimeoutError, ConnectionError):
            pass
        return said


def head(method: str, path: str, *lines: str, token: str = TOKEN) -> bytes:
    """Return the head of a request that ends with its connection."""
    own = ["host: localhost", f"{HEADER}: {token}"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *own, *lines, "", ""]).encode("latin-1")


def status_of(said: bytes) -> int:
    """Return the status of the first answer."""
    return int(said.split(b" ", 2)[1])


# Lists that are other keys

_DEAD_TOO = ("/stats/queue", "/dlq", "/dlq/reprocess")


@pytest.mark.parametrize(("method", "path", "name"), WITH_NAME)
def test_a_list_that_is_another_key_is_refused(
    target: ApiServer, redis: Redis, method: str, path: str, name: str
) -> None:
    """In every parameter that names one: nothing is read from it, pushed to it, or taken away."""
    redis.hset("conserver:{in}:held:x", "1", "x")
    redis.rpush("DLQ:in", UUID)
    before = keys_of(redis)
    operation = operation_of(method, path)
    answers = {}
    # The lists of dead letters are what these are about.
    for value in [key for key in OTHER_KEYS if not (path in _DEAD_TOO and key == "DLQ:in")]:
        body = (
            {"json": [UUID] if "entries" in path or path == "/vcon/ingress" else vcon()}
            if "requestBody" in operation
            else {}
        )
        answers[value] = target.http.request(method, url_of(path, operation, **{name: value}), **body)

    let_in = {value: answer.text for value, answer in answers.items() if not 400 <= answer.status_code < 500}
    if (method, path) == ("GET", "/claims"):
        # It only leaves out those of other lists.
        assert set(let_in.values()) == {"[]"}
        let_in = {}
    assert let_in == {}
    assert keys_of(redis) == before


def test_lists_in_bodies_are_checked_too(target: ApiServer, redis: Redis) -> None:
    """Of leases and of claims."""
    before = keys_of(redis)
    for value in OTHER_KEYS:
        for path in ("/egress/acknowledge", "/egress/return", "/egress/extend"):
            body = {"egress_list": value, "lease": "1", "uuids": [UUID], "secs": 10}
            assert target.http.post(path, json=body).status_code in (404, 422)
        for path in ("/claims/return", "/claims/drop"):
            assert target.http.post(path, json={"list": value, "worker": "x", "seq": 1}).status_code in (404, 409, 422)

    assert keys_of(redis) == before


# Traversal


@pytest.mark.parametrize(("method", "path"), WITH_UUID)
def test_what_is_no_uuid_is_no_key_and_no_path(target: ApiServer, redis: Redis, method: str, path: str) -> None:
    """However it is packed: refused before anything is asked, stored or deleted."""
    before, files = keys_of(redis), sorted(target.folder.rglob("*"))
    wrong = [
        *(
            "../../etc/passwd",
            "..",
            ".",
            "%2e%2e%2fx",
            "..%2f..%2fx",
            "%252e%252e%252fx",
            "..%5cx",
            "x%00",
            f"{UUID}%00",
        ),
        *(
            f"{UUID}%0a",
            f"{UUID}%20",
            f"%20{UUID}",
            f"../vcon/{UUID}%2f..",
            f"{UUID}/..%2f{UUID}",
            "*",
            "vcon:*",
            "%c0%ae",
        ),
        *(
            f"{UUID[:-1]}%ef%bc%91",
            f"%7b{UUID}%7d",
            UUID.replace("-", ""),
            f"urn:uuid:{UUID}",
            "%ff",
            "0",
            "null",
            "a" * 3000,
        ),
    ]
    body = json.dumps(vcon(uuid=UUID)).encode() if "requestBody" in operation_of(method, path) else b""
    answers = {}
    for value in wrong:
        target_path = path.replace("{vcon_uuid}", value) + "?filter=.&path=$"
        lines = ["content-type: application/json", f"content-length: {len(body)}", "connection: close"]
        answers[value] = status_of(raw(target, head(method, target_path, *lines) + body))

    if path == "/vcon/{vcon_uuid}" and method == "GET":
        # Its pattern leaves the line end out, so that this is the UUID and nothing else.
        assert answers.pop(f"{UUID}%0a") == 200
    assert {value: status for value, status in answers.items() if status not in (400, 404, 405, 422)} == {}
    assert keys_of(redis) == before
    assert sorted(target.folder.rglob("*")) == files


# Bodies


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_deep_json_is_refused(target: ApiServer, redis: Redis, method: str, path: str) -> None:
    """100,000 levels, of arrays, of objects, and inside of a vCon: neither a crash nor a long wait."""
    before, depth = keys_of(redis), 100_000
    url = url_of(path, operation_of(method, path))
    inside = json.dumps(vcon())[:-1]
    bodies = [
        b"[" * depth,
        b"[" * depth + b"]" * depth,
        b'{"a":' * depth + b"1" + b"}" * depth,
        f'{inside},"x":{"[" * depth}{"]" * depth}}}'.encode(),
        f'[{inside},"x":{"[" * depth}{"]" * depth}}}]'.encode(),
        f'{{"vcon":{inside},"x":{"[" * depth}{"]" * depth}}}}}'.encode(),
    ]
    began = time.monotonic()
    for body in bodies:
        answer = target.http.request(method, url, content=body, headers={"content-type": "application/json"})
        results = answer.json() if answer.status_code == 200 and path != "/vcon/validate" else []
        if path == "/vcons/import":
            results = [json.loads(line) for line in answer.text.splitlines()]
        refused = [r for r in results if isinstance(r, dict) and r.get("status", 422) >= 400]
        assert 400 <= answer.status_code < 500 or refused or "E0" in answer.text, (
            answer.status_code,
            answer.text[:200],
        )
    took = time.monotonic() - began

    assert took < 30
    assert keys_of(redis) == before


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_packed_bomb_is_refused(target: ApiServer, redis: Redis, method: str, path: str) -> None:
    """200 MB in 200 kB, with and without a header that says so, packed twice: it is never unpacked as a whole."""
    before = keys_of(redis)
    bomb = gzip.compress(b" " * 200_000_000, 9) if not _bombs else _bombs[0]
    _bombs[:] = [bomb]
    url = url_of(path, operation_of(method, path))
    for body, headers in (
        (bomb, {"content-encoding": "gzip"}),
        (bomb, {}),
        (gzip.compress(bomb), {"content-encoding": "gzip"}),
        (bomb, {"content-encoding": "deflate"}),
        (bomb, {"content-encoding": "gzip, gzip"}),
    ):
        answer = target.http.request(method, url, content=body, headers=headers)
        if path in ("/vcon/validate", "/vcons/import") and answer.status_code == 200:
            assert "E0" in answer.text or '"status":4' in answer.text.replace(" ", ""), answer.text[:300]
        else:
            assert 400 <= answer.status_code < 500, answer.text[:300]

    assert keys_of(redis) == before
    assert peak_of(target) < 400_000_000


_bombs: list[bytes] = []


def peak_of(api: ApiServer) -> int:
    """Return the most memory that the process has had, in bytes."""
    assert api.process is not None
    status = Path(f"/proc/{api.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


ODD = [
    b'{"uuid":"x","uuid":"' + UUID.encode() + b'"}',
    b'{"x":NaN}',
    b'{"x":Infinity}',
    b'{"x":-Infinity}',
    b'{"x":1E400}',
    b'{"x":' + b"9" * 10_000 + b"}",
    b'{"x":"\\ud800"}',
    b'{"\\ud800":1}',
    b'{"x":"\xed\xa0\x80"}',
    b'{"x":"\xff"}',
    b'\xef\xbb\xbf{"x":1}',
    '{"x":1}'.encode("utf-16"),
    b'{"x":"\x00"}',
    b'{"x":"\\u0000"}',
    b"{'x':1}",
    b"{}{}",
    b"[1,]",
    b"",
    b" ",
    b"null",
    b"0",
    b'"x"',
    b'{"__proto__":{"x":1},"constructor":1}',
]


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_odd_json_is_answered_by_json(target: ApiServer, method: str, path: str) -> None:
    """Alone and inside of a vCon; the answer is an answer of JSON, whatever it repeats."""
    url = url_of(path, operation_of(method, path))
    inside = json.dumps(vcon())[:-1].encode()
    for odd in ODD:
        for body in (odd, b"[" + odd + b"]", inside + b',"attachments":[' + odd + b"]}", b'{"vcon":' + odd + b"}"):
            answer = target.http.request(method, url, content=body, headers={"content-type": "application/json"})
            assert answer.status_code < 500, (body[:100], answer.text)
            for line in answer.content.splitlines() if path == "/vcons/import" else [answer.content]:
                if line:
                    json.loads(line.decode("utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_body_that_is_declared_too_large_is_refused_before_it_comes(target: ApiServer) -> None:
    """Nobody has to send it for that."""
    said = raw(target, head("POST", "/vcon", f"content-length: {MOST + 1}"), secs=10)

    assert status_of(said) == 413
    assert b"the body has more than 1,000,000 bytes" in said


def test_a_body_without_an_end_is_cut_off(target: ApiServer, redis: Redis) -> None:
    """In chunks that never end, at the limit."""
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

    said = raw(target, head("POST", "/vcon", "transfer-encoding: chunked"), more=chunk * 40, secs=10)

    assert status_of(said) == 413
    assert redis.dbsize() < 10


@pytest.mark.parametrize("path", ["/vcon", "/vcon/ingress?ingress_list=in", "/config", "/links/tag/run"])
def test_a_client_that_is_told_in_the_middle_of_a_large_body_hears_it(target: ApiServer, path: str) -> None:
    """An ordinary client, which sends all before it listens, gets the 413."""
    answer = target.http.post(path, content=b" " * 30_000_000)

    assert answer.status_code == 413


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "0x10", "5, 6", "99999999999999999999999", "", "+5", "1_0"])
def test_a_length_that_is_none_is_refused(target: ApiServer, redis: Redis, length: str) -> None:
    """And what comes behind it is no request."""
    before = keys_of(redis)
    smuggled = head("DELETE", f"/vcon/{UUID}", "connection: close")

    said = raw(target, head("POST", "/vcon", f"content-length: {length}") + b"{}" + smuggled, secs=5)

    assert re.findall(rb"HTTP/1.1 (\d+)", said) in ([b"400"], [b"413"], [b"422", b"400"], [])
    assert keys_of(redis) == before


def test_a_body_that_ends_too_soon_changes_nothing(target: ApiServer, redis: Redis) -> None:
    """The client has gone; nobody gets a 500, and no half is stored."""
    before = keys_of(redis)
    body = json.dumps(vcon()).encode()
    for cut in (0, 10, len(body) - 1):
        host, port = target.address.removeprefix("http://").split(":")
        with closing(socket.create_connection((host, int(port)))) as connection:
            connection.sendall(head("POST", "/vcon?ingress_lists=in", f"content-length: {len(body)}") + body[:cut])

    wait_until(lambda: target.said().count('"status":499') >= 3, 10, "three lines")
    assert keys_of(redis) == before
    assert "Traceback" not in target.said()


# Clients that are slow, and many

HASTY = """
import sys
from conserver.api import bodies, connections
connections.HEAD_SECS = bodies.PATIENCE_SECS = 1.0
{more}
from conserver.cli import main
sys.argv = ["conserver", "api"]
main()
"""


def protocols() -> list[str]:
    """Return what may stand before the app is imported: with h11 alone, and with httptools where they are installed."""
    return ["sys.modules['httptools'] = None", ""]


@pytest.fixture(scope="module", params=protocols(), ids=["h11", "auto"])
def hasty(request: pytest.FixtureRequest, server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API that waits for a second, by each parser of HTTP."""
    api = ApiServer(tmp_path_factory.mktemp("hasty"), server)
    more = request.param
    api.command = [sys.executable, "-c", f"import sys\n{more}\n" + HASTY.format(more="")]
    with running(api):
        yield api


def test_a_body_that_drips_is_cut_off(hasty: ApiServer, redis: Redis) -> None:
    """With an answer that says why; nothing of it is stored."""
    host, port = hasty.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head("POST", "/vcon?ingress_lists=in", "content-length: 100000"))
        connection.settimeout(0.1)
        said = b""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and b"}" not in said:
            try:
                said += connection.recv(65536)
                connection.sendall(b"" if said else b" ")
            except TimeoutError:
                connection.sendall(b" ")
            except ConnectionError:
                break

    assert status_of(said) == 408
    assert b"urn:conserver:problem:slow-body" in said
    assert redis.dbsize() == 0


def test_a_body_that_is_large_may_take_its_time(hasty: ApiServer) -> None:
    """As long as it comes: 4 kB give a second."""
    body = json.dumps(vcon("x" * 100_000)).encode()

    def parts() -> Iterator[bytes]:
        for at in range(0, len(body), 10_000):
            yield body[at : at + 10_000]
            time.sleep(0.25)  # a slow line

    with hasty.client(TOKEN) as http:
        assert http.post("/vcon", content=parts()).status_code == 201


@pytest.mark.parametrize(
    "begin", [b"", b"G", b"GET /livez HTTP/1.1\r\n", b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: "]
)
def test_a_head_that_does_not_come_is_not_waited_for(hasty: ApiServer, begin: bytes) -> None:
    """Whether nothing comes, or a byte now and then."""
    host, port = hasty.address.removeprefix("http://").split(":")
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=0.1) as connection:
        connection.sendall(begin)
        ended = False
        while not ended and time.monotonic() < began + 20:
            try:
                if begin:
                    connection.sendall(b"x")
                ended = connection.recv(65536) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True

    assert ended
    assert time.monotonic() - began < 15


def test_who_does_not_read_his_answer_is_cut_off(hasty: ApiServer) -> None:
    """It is kept in memory as long as he does not."""
    document = vcon("x" * 6_000_000)
    hasty.http.post("/vcon", json=document).raise_for_status()
    host, port = hasty.address.removeprefix("http://").split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(head("GET", f"/vcon/{document['uuid']}"))
        connection.settimeout(20)
        port_of_ours = connection.getsockname()[1]
        wait_until(lambda: not _established(hasty, port_of_ours), 30, "the end of the connection")


def _established(api: ApiServer, remote_port: int) -> bool:
    assert api.process is not None
    for line in Path(f"/proc/{api.process.pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[2].rpartition(":")[2], 16) == remote_port and fields[1] != fields[2]:
            ours = int(fields[1].rpartition(":")[2], 16)
            if ours == int(api.address.rpartition(":")[2]) and fields[3] == "01":
                return True
    return False


def test_many_idle_connections_keep_nobody_out(hasty: ApiServer, redis: Redis) -> None:
    """500 that say nothing; they are closed after a while."""
    host, port = hasty.address.removeprefix("http://").split(":")
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(500)]
        with hasty.client(TOKEN) as http:
            statuses = [http.post("/vcon?ingress_lists=in", json=vcon()).status_code for _ in range(20)]
        for connection in idle:
            connection.settimeout(30)
            try:
                assert connection.recv(1) == b""
            except ConnectionError:
                continue

    assert statuses == [201] * 20
    assert redis.llen("in") == 20


# HTTP itself


@pytest.mark.parametrize(
    "request_",
    [
        head("POST", "/vcon", "content-length: 2", "transfer-encoding: chunked") + b"0\r\n\r\n",
        head("POST", "/vcon", "transfer-encoding: chunked", "content-length: 200") + b"0\r\n\r\n",
        head("POST", "/vcon", "transfer-encoding: xchunked") + b"0\r\n\r\n",
        head("POST", "/vcon", "transfer-encoding: chunked, identity") + b"0\r\n\r\n",
        head("POST", "/vcon", "content-length: 2", "content-length: 3") + b"{}",
        head("POST", "/vcon", "transfer-encoding : chunked") + b"0\r\n\r\n",
        head("POST", "/vcon", "x: y\n transfer-encoding: chunked") + b"0\r\n\r\n",
        head("POST", "/vcon", "transfer-encoding: chunked") + b"fffffffffffffffff1\r\n",
        head("POST", "/vcon", "transfer-encoding: chunked") + b"-1\r\n\r\n",
        head("POST", "/vcon", "x: a\rb"),
        head("POST", "/vcon", "x: a\0b"),
        b"POST /vcon\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_a_request_of_which_two_programs_may_read_two_is_refused(
    hasty: ApiServer, redis: Redis, request_: bytes
) -> None:
    """Else one behind a proxy could be hidden in the body of another."""
    redis.set(f"vcon:{UUID}", json.dumps(vcon(uuid=UUID)))
    hidden = head("DELETE", f"/vcon/{UUID}", "connection: close")

    said = raw(hasty, request_ + hidden, secs=10)

    statuses = {int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", said)}
    assert statuses <= {400, 403, 408, 422}, said
    assert redis.exists(f"vcon:{UUID}")


@pytest.mark.parametrize("more", [b"x-y: z\r\n" * 4_000_000, b"x: " + b"y" * 30_000_000], ids=["many", "long"])
def test_a_head_without_an_end_is_refused(hasty: ApiServer, more: bytes) -> None:
    """Of many headers, or of one: it is not even taken in."""
    host, port = hasty.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n")
        with pytest.raises(ConnectionError):
            connection.sendall(more)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-http-method-override": "DELETE"},
        {"x-method-override": "DELETE"},
        {"x-http-method": "DELETE"},
        {"x-original-url": "/config"},
        {"x-rewrite-url": "/config"},
        {"x-forwarded-prefix": "/config"},
        {"x-forwarded-for": "10.0.0.1", "x-real-ip": "10.0.0.1", "forwarded": "for=10.0.0.1"},
        {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-key": "eA==", "sec-websocket-version": "13"},
        {"connection": "upgrade, http2-settings", "upgrade": "h2c", "http2-settings": ""},
    ],
)
def test_no_header_makes_another_request_of_it(target: ApiServer, redis: Redis, headers: dict[str, str]) -> None:
    """Not another method, path or client."""
    before = keys_of(redis)

    read = target.http.get(f"/vcon/{UUID}?_method=DELETE", headers=headers)
    posted = target.http.post(f"/vcon/{UUID}?_method=DELETE", headers=headers | {"x-request-id": "override"})

    assert (read.status_code, posted.status_code) == (200, 405)
    assert read.json()["uuid"] == UUID
    assert keys_of(redis) == before
    assert '"from":"10.' not in target.said()


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PURGE", "delete", "Post", "OPTIONS", "PROPFIND", "X" * 1000])
def test_other_methods_are_refused(target: ApiServer, redis: Redis, method: str) -> None:
    """They echo nothing and change nothing."""
    before = keys_of(redis)

    said = raw(target, head(method, f"/vcon/{UUID}", "x-echo: geheim", "connection: close"), secs=10)

    assert status_of(said) in (400, 405)
    assert b"geheim" not in said
    assert keys_of(redis) == before


@pytest.mark.parametrize("header", ["x-request-id", "idempotency-key", "if-match", "content-type", "origin", "accept"])
@pytest.mark.parametrize(
    "text", ["a\r\nx-injected: 1", "a%0d%0ax-injected: 1", "a\nx-injected: 1", "a\u560d\u560ax-injected"]
)
def test_no_header_comes_back_as_another_one(target: ApiServer, header: str, text: str) -> None:
    """Not by line ends, nor by what some programs make of them."""
    value = text.encode("utf-8").decode("latin-1")
    said = raw(
        target,
        head("PATCH", f"/vcon/{UUID}", f"{header}: {value}", "content-length: 2", "connection: close") + b"{}",
        secs=10,
    )

    answered, _, _ = said.partition(b"\r\n\r\n")
    assert b"x-injected" not in answered.lower()
    assert status_of(said) < 500


@pytest.mark.parametrize("text", ["a%0d%0ax-injected:%201", "a%0ax-injected:1", "%e5%98%8d%e5%98%8ax-injected:1"])
def test_no_parameter_comes_back_as_a_header(target: ApiServer, text: str) -> None:
    """Links to the next page repeat parameters."""
    urls = [
        f"/vcons/search?name={text}&subject={text}&size=1&tag={text}",
        f"/vcon?size=1&page=1&after={text}",
        f"/lists/{text}/entries?what={text}",
        f"/{text}",
    ]
    for url in urls:
        answered, _, _ = raw(target, head("GET", url, "connection: close"), secs=10).partition(b"\r\n\r\n")
        assert b"\nx-injected" not in answered.lower()
        assert status_of(answered) < 500


# Requests into the network


def urls_to(trap: HttpServer) -> dict[str, Any]:
    """Return a vCon that has the address of *trap* wherever one may stand."""
    dialog = {"type": "recording", "start": "2026-01-01T00:00:00Z", "parties": [0], "mediatype": "audio/wav"}
    hashed = {"url": f"{trap.url}/dialog", "content_hash": "sha512-x", "signature": "x", "alg": "SHA-512"}
    return vcon(
        dialog=[dialog | hashed, dialog | {"type": "text", "url": f"{trap.url}/text"}],
        attachments=[{"type": "x", "url": f"{trap.url}/attachment", "content_hash": "sha512-x"}],
        analysis=[{"type": "x", "dialog": 0, "vendor": "x", "url": f"{trap.url}/analysis"}],
        redacted={"uuid": UUID, "url": f"{trap.url}/redacted"},
        group=[{"uuid": UUID, "url": f"{trap.url}/group"}],
    ) | {"$schema": f"{trap.url}/schema", "$ref": f"{trap.url}/ref", "@context": f"{trap.url}/context"}


def test_the_api_itself_asks_no_url_of_a_client(target: ApiServer) -> None:
    """Not those of a vCon, of a signature, or of a header, in whatever is done with it."""
    with HttpServer(lambda exchange: exchange.answer(200, b"{}")) as trap:
        document = urls_to(trap)
        url = f"/vcon/{document['uuid']}"
        headers = {
            "referer": trap.url,
            "x-forwarded-host": trap.url[7:],
            "x-callback-url": trap.url,
            "link": f"<{trap.url}>",
        }
        http = target.http
        answers = [
            http.post("/vcon/validate", json=document, headers=headers),
            http.post("/vcon", json=document, headers=headers),
            http.put(url, json=document, headers=headers),
            http.patch(url, json={"group": [{"url": trap.url}]}, headers=headers),
            http.post("/vcons", json=[document]),
            http.post("/vcons/import", content=json.dumps(document)),
            http.get(url, headers=headers),
            http.get(f"{url}/findings"),
            http.get(f"{url}/jq", params={"filter": f'import "{trap.url}" as x; .'}),
            http.get(f"{url}/jsonpath", params={"path": "$.dialog[*].url"}),
            http.post("/links/tag/run", json={"vcon": document}),
        ]
        reached = list(trap.requests)

    assert reached == []
    assert max(answer.status_code for answer in answers) < 500


FETCH = '''
"""Fetches what a vCon names."""
from conserver import outbound, vcons

def run(vcon_uuid, link_name, opts):
    vcon = vcons.get(vcon_uuid)
    url = vcon.dialog[0]["url"]
    got = outbound.request("GET", url, trusted=False).body.decode()
    vcon.add_analysis(type="got", vendor="x", body=got, encoding="none")
    vcons.save(vcon)
    return vcon_uuid
'''


def test_a_link_that_is_run_now_is_held_to_the_policy_of_the_config(tmp_path: Path, server_url: str) -> None:
    """What a client's vCon names is not fetched from this network, in whatever way its address is written."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "fetch.py").write_text(FETCH)
    config = CONFIG | {"links": CONFIG["links"] | {"fetch": {"module": "links.fetch"}}}
    dialog = {"type": "recording", "start": "2026-01-01T00:00:00Z", "parties": [0], "mediatype": "audio/wav"}
    with (
        HttpServer(lambda exchange: exchange.answer(200, b"geheim")) as trap,
        running(ApiServer(tmp_path, server_url, config)) as api,
    ):
        port = trap.port
        urls = [
            trap.url,
            f"http://localhost:{port}",
            f"http://2130706433:{port}",
            "http://169.254.169.254/latest",
            "file:///etc/passwd",
        ]
        results = [
            api.http.post("/links/fetch/run", json={"vcon": vcon(dialog=[dialog | {"url": url}])}).json()
            for url in urls
        ]

    assert trap.requests == []
    assert [result["ending"] for result in results] == ["dead"] * len(urls)
    assert "geheim" not in str(results)
    assert "root:" not in str(results)


def test_only_an_admin_leads_a_link_elsewhere(tmp_path: Path, server_url: str) -> None:
    """A web hook of the config with another URL would bring its credentials to whoever asks for it."""
    from conserver.tokens import digest_of

    config = CONFIG | {
        "links": {
            "hook": {"module": "links.webhook", "options": {"webhook-urls": ["http://127.0.0.1:1/"]}},
            **CONFIG["links"],
        },
        "api": {"tokens": {"writer": {"digest": digest_of("w"), "scopes": ["write"]}}},
    }
    with (
        HttpServer(lambda exchange: exchange.answer(204)) as trap,
        running(ApiServer(tmp_path, server_url, config)) as api,
        api.client("w") as writer,
    ):
        body = {"vcon": vcon(), "options": {"webhook-urls": [trap.url]}}
        refused = writer.post("/links/hook/run", json=body)
        reached = list(trap.requests)
        allowed = api.http.post("/links/hook/run", json=body)

    assert (refused.status_code, reached) == (403, [])
    assert allowed.status_code == 200
    assert len(trap.requests) == 1


# Secrets


def test_no_answer_and_no_line_has_a_secret(tmp_path: Path) -> None:
    """Of the server, of storages and links, of partners and clients: while all is well, and when the server is away."""
    secrets = [f"geheim-{name}" for name in ("redis", "storage", "link", "partner")]
    hook = {"module": "links.webhook", "options": {"webhook-urls": ["https://u:geheim-link@example.com/"]}}
    gone = {"module": "storages.gone", "options": {"password": "geheim-storage"}}
    config = CONFIG | {
        "links": CONFIG["links"] | {"hook": hook},
        "storages": CONFIG["storages"] | {"gone": gone},
        "ingress_auth": {"in2": ["geheim-partner"]},
    }
    with (
        server_running(
            RealServer(tmp_path / "redis", login={"password": "geheim-redis"}, requirepass="geheim-redis")
        ) as server,
        running(ApiServer(tmp_path / "api", f"redis://:geheim-redis@127.0.0.1:{server.port}", config)) as api,
    ):
        said = []
        for method, path, operation in OPERATIONS:
            url = url_of(path, operation)
            body = {"content": b"{"} if "requestBody" in operation else {}
            answers = [api.http.request(method, url, **body), api.http.request(method, f"{url}/../x", **body)]
            said += [f"{answer.status_code} {answer.headers} {answer.text}" for answer in answers]
        server.kill()
        for url in (f"/vcon/{UUID}", "/readyz", "/vcons/search?tag=a:b", "/config", "/metrics"):
            answer = api.http.get(url)
            said.append(f"{answer.status_code} {answer.headers} {answer.text}")
        answer = api.http.post("/vcon?ingress_lists=in", json=vcon())
        said.append(f"{answer.status_code} {answer.headers} {answer.text}")
        text = "\n".join(said) + api.said()

    assert not [line for line in said if line.startswith("500")]
    assert [secret for secret in [*secrets, TOKEN] if secret in text] == []
    # Who may read may see the address, in `/status`; no error tells it.
    assert [line for line in said if f"127.0.0.1:{server.port}" in line and not line.startswith("200")] == []


# Filters


def test_a_filter_reads_no_file_and_does_not_tell_which_there_are(target: ApiServer, tmp_path: Path) -> None:
    """jq could import data and modules from anywhere, and see the environment."""
    (tmp_path / "secret.json").write_text('{"a": "geheim"}')
    (tmp_path / "secret.jq").write_text('def f: "geheim";')
    programs = [
        *('import "{}" as $x {{search: "%s"}}; $x', 'include "{}" {{search: "%s"}}; f', '"{}" | modulemeta'),
        *('import "%s/{}" as $x; $x', 'include "%s/{}"; f', 'import "../{}" as $x {{search: "%s"}}; $x'),
    ]

    def told(program: str) -> tuple[int, str]:
        answer = target.http.get(f"/vcon/{UUID}/jq", params={"filter": program})
        return answer.status_code, answer.json()["detail"]

    programs = [program % tmp_path if "%s" in program else program for program in programs]
    there = [told(program.format("secret")) for program in programs]
    gone = [told(program.format("nothing")) for program in programs]
    environment = target.http.get(f"/vcon/{UUID}/jq", params={"filter": "env, $ENV"})

    assert there == gone == [(422, "a filter has no modules: leave out import and include")] * len(programs)
    assert environment.json() == [{}, {}]


@pytest.mark.parametrize(
    ("kind", "program"),
    [
        ("jq", "[range(1e12)]"),
        pytest.param("jq", "def f: f; f", marks=pytest.mark.long),
        pytest.param("jq", "[limit(1e9; repeat(1))] | length", marks=pytest.mark.long),
        ("jq", '"a" * 1e10'),
        ("jq", 'reduce range(60) as $i ("a"; . + .)'),
        ("jq", '"' + "a" * 40 + '!" | test("(a+)+$")'),
        ("jq", "input, env, $ENV, input_filename"),
        ("jq", "[.." + ",.." * 2000 + "]"),
        ("jsonpath", "$" + "..*" * 12),
        ("jsonpath", "$..[?search(@, '(a+)+$')]"),
    ],
)
def test_a_filter_that_never_ends_is_ended(target: ApiServer, kind: str, program: str) -> None:
    """Within seconds, while others are answered; it sees neither files nor environment."""
    target.http.put(f"/vcon/{UUID}", json=vcon("a" * 60 + "!", uuid=UUID)).raise_for_status()
    with ThreadPoolExecutor(1) as pool, target.client(TOKEN) as other:
        began = time.monotonic()
        name = "filter" if kind == "jq" else "path"
        asked = pool.submit(other.get, f"/vcon/{UUID}/{kind}", params={name: program})
        slowest = 0.0
        while not asked.done():
            before = time.monotonic()
            assert target.http.get("/livez").status_code == 200
            slowest = max(slowest, time.monotonic() - before)
        took = time.monotonic() - began
        answer = asked.result()

    assert answer.status_code in (200, 413, 422, 503), answer.text
    assert took < 30
    assert slowest < 5
    assert TOKEN not in answer.text
    assert peak_of(target) < 1_000_000_000
