"""conserver.api.bulk: vCons as lines of a body of any length, each with its result while the body is read."""

from __future__ import annotations

import asyncio
import gzip
import http.client as http_client
import json
import random
import re
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from conserver.api.bulk import lines, unpacked
from conserver.errors import NotAVcon
from tests.api.server import HEADER, TOKEN, ApiServer, pushed, running
from tests.host import store, vcon
from tests.proxy import Proxy, proxied
from tests.waiting import wait_until

MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def proxy(server: str) -> Iterator[Proxy]:
    """What lies between the API and its server."""
    with proxied(server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def api_process(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API behind a proxy; its vCons are small."""
    with running(ApiServer(tmp_path_factory.mktemp("api"), proxy.url, CONSERVER_MAX_VCON_BYTES=MOST_BYTES)) as api:
        yield api


def ndjson(documents: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


def results(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class Stream:
    """A client that sends an import bit by bit, and reads what has come of it; `found` are the results so far."""

    def __init__(self, api: ApiServer, query: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", int(api.address.rpartition(":")[2])), timeout=60)
        self.socket.sendall(
            f"POST /vcons/import{query} HTTP/1.1\r\nHost: localhost\r\n{HEADER}: {TOKEN}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        self._answer = http_client.HTTPResponse(self.socket)
        self.found: list[dict[str, Any]] = []

    def send(self, data: bytes) -> None:
        self.socket.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def results(self, count: int) -> list[dict[str, Any]]:
        """Wait for so many more results, and return them."""
        if self._answer.status == "UNKNOWN":
            self._answer.begin()
        more = [json.loads(self._answer.readline()) for _ in range(count)]
        self.found += more
        return more

    def close(self) -> None:
        self._answer.close()
        self.socket.close()


# Lines


def test_each_line_has_its_result(http: httpx.Client, redis: Redis) -> None:
    """In order, whatever becomes of it; blank lines count, and have none."""
    taken, good, last = vcon("taken"), vcon("good"), vcon("last")
    store(redis, [taken])
    body = b"\n".join(
        [
            json.dumps(good).encode() + b"\r",
            b"",
            json.dumps(taken | {"subject": "other"}).encode(),
            b"{no json",
            b"  ",
            json.dumps(vcon() | {"dialog": {}}).encode(),
            gzip.compress(b"{}"),
            json.dumps(vcon("x" * MOST_BYTES)).encode(),
            json.dumps(last).encode(),
        ]
    )

    answer = http.post("/vcons/import?ingress_lists=in,in2", content=body)

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    found = results(answer.text)
    assert [(result["line"], result["status"]) for result in found] == [
        (1, 201),
        (3, 409),
        (4, 422),
        (6, 422),
        (7, 422),
        (8, 413),
        (9, 201),
    ]
    assert found[0] == {"line": 1, "uuid": good["uuid"], "status": 201}
    assert found[1]["problem"]["detail"] == f"another vCon is stored under {taken['uuid']}"
    assert found[5]["problem"]["detail"] == f"the line has more than {MOST_BYTES:,} bytes"
    assert pushed(redis, "in") == pushed(redis, "in2") == [good["uuid"], last["uuid"]]
    assert redis.smembers("tel:+15550100") == {good["uuid"].encode(), last["uuid"].encode()}


def test_an_import_of_nothing_answers_with_nothing(http: httpx.Client) -> None:
    """Also one of blank lines."""
    assert [http.post("/vcons/import", content=body).content for body in (b"", b"\n\n \n")] == [b"", b""]


def test_an_import_may_be_gzip(http: httpx.Client, redis: Redis) -> None:
    """Of several members; when it is damaged, what came before counts, and the result after it says so."""
    documents = [vcon(str(n)) for n in range(300)]
    packed = gzip.compress(ndjson(documents[:100])) + gzip.compress(ndjson(documents[100:]))
    headers = {"Content-Encoding": "gzip"}

    whole = http.post("/vcons/import?ingress_lists=in", content=packed, headers=headers)
    cut = http.post("/vcons/import", content=gzip.compress(ndjson(documents[:2]))[:-9], headers=headers)
    other = http.post("/vcons/import", content=b"", headers={"Content-Encoding": "br"})

    assert [result["status"] for result in results(whole.text)] == [201] * 300
    assert pushed(redis, "in") == [document["uuid"] for document in documents]
    assert results(cut.text)[-1]["status"] == 422
    assert results(cut.text)[-1]["problem"]["detail"] == "the body cannot be read on: gzip data is cut off"
    assert other.status_code == 415


def test_an_import_is_refused_as_a_whole_before_it_is_read(api: ApiServer) -> None:
    """For a list that no chain reads; the body may be long."""
    answer = api.http.post("/vcons/import?ingress_lists=nowhere", content=ndjson([vcon()]))

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("no chain reads list 'nowhere'")


def test_an_import_is_answered_while_it_is_read(api: ApiServer, redis: Redis) -> None:
    """A client may wait for the result of a line before it sends the next one."""
    with closing(Stream(api, "?ingress_lists=in")) as stream:
        for n in range(1, 6):
            stream.send(ndjson([vcon()]))
            assert stream.results(1)[0]["status"] == 201
            assert redis.llen("in") == n


def test_a_line_may_come_in_bits(api: ApiServer) -> None:
    """A byte at a time even."""
    with closing(Stream(api)) as stream:
        for byte in ndjson([vcon()]):
            stream.send(bytes([byte]))

        assert stream.results(1)[0]["status"] == 201


# Trouble


def test_a_server_that_goes_away_in_the_middle_loses_nothing_that_was_answered(
    api: ApiServer, redis: Redis, server: str, proxy: Proxy
) -> None:
    """The other lines say 503, each; when it is back, so are the lines."""
    with closing(Stream(api, "?ingress_lists=in")) as stream:
        stream.send(ndjson(vcon() for _ in range(100)))
        before = stream.results(100)
        proxy.point_at("redis://127.0.0.1:1")
        try:
            proxy.cut()
            stream.send(ndjson(vcon() for _ in range(500)))
            away = stream.results(500)
        finally:
            proxy.point_at(server)

        def back() -> bool:
            stream.send(ndjson([vcon()]))
            return stream.results(1)[0]["status"] == 201

        wait_until(back, 30, "the server")
        found = stream.found
    assert {result["status"] for result in before} == {201}
    assert {result["status"] for result in away} == {503}
    assert away[0]["problem"]["type"] == "urn:conserver:problem:server-away"
    answered = [result["uuid"] for result in found if result["status"] == 201]
    assert len(answered) == 101
    assert pushed(redis, "in") == answered
    assert all(redis.exists(f"vcon:{uuid}") for uuid in answered)


def test_a_client_that_leaves_is_no_error(api: ApiServer, redis: Redis) -> None:
    """What it has sent is created; the log has no traceback."""
    before = len(api.said())
    with closing(Stream(api, "?ingress_lists=in")) as stream:
        stream.send(ndjson([vcon()]) + b'{"half')
        stream.results(1)

    said = wait_until(lambda: "POST /vcons/import" in (said := api.said()[before:]) and said, 30, "the audit log")
    assert redis.llen("in") == 1
    assert '"created":"1"' in said
    assert "Traceback" not in said


def most_memory(api: ApiServer) -> int:
    """The most memory that the API had at any time, in bytes."""
    assert api.process is not None
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{api.process.pid}/status").read_text())[1]) * 1024


@pytest.mark.parametrize(("piece", "count"), [(b"x" * 1_000_000, 1), (b"\n" * 10_000, 0)])
def test_a_body_that_is_long_takes_no_memory(api: ApiServer, piece: bytes, count: int) -> None:
    """A line of 200 MB, packed, and millions that are blank."""
    body = gzip.compress(piece * 200, 1)
    before = most_memory(api)

    answer = api.http.post("/vcons/import", content=body, headers={"Content-Encoding": "gzip"})

    assert len(answer.content.splitlines()) == count
    assert most_memory(api) - before < 8_000_000


def test_a_reader_that_is_slow_takes_no_memory(api: ApiServer, redis: Redis) -> None:
    """What it has not read lies on disk, and lines are worked on; others are answered meanwhile."""
    # The result of each has more than 2 kB: warnings about members.
    bad = ndjson([vcon() | {"critical": ["unheard-of"], "parties": [{"m" * 300: 1}] * 8}]) * 1000
    api.http.post("/vcons/import", content=bad)
    with closing(Stream(api, "?ingress_lists=in")) as stream:
        before = most_memory(api)
        for _ in range(8):
            stream.send(bad)
        stream.send(ndjson([vcon()]))
        assert api.http.post("/vcon", json=vcon()).status_code == 201
        wait_until(lambda: redis.llen("in") == 1, 60, "the last line")

        assert most_memory(api) - before < 8_000_000
        found = stream.results(8001)
        assert [result["status"] for result in found] == [422] * 8000 + [201]
        assert len(json.dumps(found[0])) > 2000


# Reading lines


async def given(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def read(pieces: Iterable[bytes], *, packed: bool = False, most: int = 100) -> list[tuple[int, bytes | None]]:
    async def all_lines() -> list[tuple[int, bytes | None]]:
        return [line async for line in lines(unpacked(given(pieces), packed), most)]

    return asyncio.run(all_lines())


@pytest.mark.parametrize("packed", [False, True])
def test_lines_are_the_same_however_they_are_cut(packed: bool) -> None:
    """In pieces of any size, packed or not."""
    chance = random.Random(4)
    for _ in range(50):
        text = b"".join(
            chance.choice([b"\n", b"\r\n", b"ab", b"c" * chance.randint(1, 60), b" "])
            for _ in range(chance.randint(0, 60))
        )
        whole = [
            (number, None if len(line) > 100 else line.strip())
            for number, line in enumerate(text.split(b"\n"), 1)
            if line.strip() or len(line) > 100
        ]
        data = gzip.compress(text) if packed else text
        cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.randint(0, 20)))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

        assert read(pieces, packed=packed) == whole


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gzip.compress(b"a\n" * 1000, mtime=0)[:-1], "gzip data is cut off"),
        (gzip.compress(b"a\n", mtime=0)[:5], "gzip data is cut off"),
        (b"plain", "gzip data is damaged: "),
        (gzip.compress(b"a\n", mtime=0) + b"more", "gzip data is damaged: "),
    ],
)
def test_gzip_that_is_damaged_is_told(data: bytes, words: str) -> None:
    """Wherever the damage is."""
    with pytest.raises(NotAVcon, match=words):
        read([data], packed=True)


def test_pieces_of_gzip_are_small_whatever_they_unpack_to() -> None:
    """A megabyte of it may be a gigabyte."""

    async def largest() -> int:
        return max([len(piece) async for piece in unpacked(given([gzip.compress(b"x" * 10_000_000)]), True)])

    began = time.monotonic()
    assert asyncio.run(largest()) <= 64 * 1024
    assert time.monotonic() - began < 30
