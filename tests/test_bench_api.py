"""The load that is put on the API counts and times what it says, shown with servers whose answers are known."""

from __future__ import annotations

import contextlib
import json
import math
import re
import socketserver
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from bench import load, report
from bench.api import api
from bench.load import Load, drive, put
from bench.plan import BenchError, Plan, Table
from conserver.vcon import validate

#: Gives the pieces of an answer; one with none closes the connection.
Answer = Callable[[], Iterable[bytes]]

if not Path("/proc/self/stat").exists():
    pytest.skip("the benchmark reads /proc", allow_module_level=True)


class Fake(socketserver.ThreadingTCPServer):
    """A server of HTTP whose answers a test writes itself; it keeps what it was asked."""

    request_queue_size = 64

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Talk)
        self.port = self.server_address[1]
        self.answer = answer
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.clients: set[object] = set()


class Talk(socketserver.StreamRequestHandler):
    """One connection, until the client has enough."""

    server: Fake
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while head := b"".join(iter(self.rfile.readline, b"\r\n")) if self.rfile.peek(1) else b"":
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            self.server.heads.append(head)
            self.server.bodies.append(self.rfile.read(int(length[1])))
            self.server.clients.add(self.client_address)
            pieces = 0
            for piece in self.server.answer():
                self.wfile.write(piece)
                pieces += 1
            if not pieces:
                return


@contextlib.contextmanager
def served(answer: Answer) -> Iterator[Fake]:
    """Run a fake server in threads; it has ended when its clients have."""
    with Fake(answer) as fake:
        thread = threading.Thread(target=fake.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield fake
        finally:
            fake.shutdown()
            thread.join(10)


def whole(status: bytes = b"200 OK", body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 %b\r\ndate: today\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def fine() -> list[bytes]:
    return [whole()]


def test_each_request_is_sent_once_and_whole() -> None:
    """Valid vCons with UUIDs of their own, over all the connections, however large; and each answer counts once."""
    with served(fine) as fake:
        sent = Load(fake.port, "POST", ["/a?b=c"], {"x-token": "t"}, size=50_000, connections=4)

        answers = drive(sent, sent.requests(40), math.inf)

    documents = [json.loads(body) for body in fake.bodies]
    assert (len(answers.waits_ms), answers.errors) == (40, 0)
    assert len({document["uuid"] for document in documents}) == 40
    assert validate(documents[0]) == []
    assert len(fake.clients) == 4
    for head in fake.heads:
        assert head.startswith(b"POST /a?b=c HTTP/1.1\r\n")
        assert b"\r\nx-token: t\r\n" in head


def test_a_request_that_fits_no_buffer_is_sent_whole() -> None:
    """In as many pieces as it takes."""
    body = b"x" * 30_000_000
    request = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    with served(fine) as fake:
        answers = drive(Load(fake.port, "POST", ["/"], connections=2), deque([request] * 3), math.inf)

    assert (len(answers.waits_ms), answers.errors) == (3, 0)
    assert [len(body) for body in fake.bodies] == [30_000_000] * 3


def test_targets_are_chosen_at_random() -> None:
    """So that what was read just before helps nobody."""
    targets = [f"/vcon/{n}" for n in range(50)]

    lines = [request.split(b" ")[1].decode() for request in Load(1, "GET", targets).requests(500)]

    assert len(set(lines)) > 40
    assert set(lines) <= set(targets)
    assert lines[:50] != targets


def test_an_answer_that_comes_in_pieces_is_one_answer() -> None:
    """Cut in the head, and in the body."""

    def in_pieces() -> Iterator[bytes]:
        text = whole(body=b"x" * 100_000)
        for piece in (text[:5], text[5:30], text[30:60_000], text[60_000:]):
            yield piece
            time.sleep(0.001)  # or they would come as one

    with served(in_pieces) as fake:
        sent = Load(fake.port, "GET", ["/"], connections=2)

        answers = drive(sent, sent.requests(20), math.inf)

    assert (len(answers.waits_ms), answers.errors, answers.first_error) == (20, 0, "")


def test_the_waits_are_those_of_a_slow_server() -> None:
    """Two of a hundred answers come 300 ms late: the 99th percentile says so, and the median does not."""
    count = iter(range(10_000))

    def sometimes_late() -> list[bytes]:
        if next(count) % 50 == 49:
            time.sleep(0.3)
        return [whole()]

    with served(sometimes_late) as fake:
        sent = Load(fake.port, "GET", ["/"], connections=2)
        measures = drive(sent, sent.requests(400), math.inf).measures()

    assert measures["n"] == 400
    assert measures["p50_ms"] < 150
    assert 300 <= measures["p99_ms"] <= measures["worst_ms"]
    # Eight late ones on two connections.
    assert measures["secs"] >= 1.2
    assert measures["rate"] == pytest.approx(400 / measures["secs"])
    assert 0 < measures["load_share"] < 100


def test_the_load_ends_with_its_time() -> None:
    """What was under way then is answered and counts; what was not sent does not."""

    def slow() -> list[bytes]:
        time.sleep(0.1)
        return [whole()]

    with served(slow) as fake:
        sent = Load(fake.port, "GET", ["/"], connections=3)
        answers = drive(sent, sent.requests(1000), 0.25)

    assert len(answers.waits_ms) == len(fake.heads) <= 9
    assert answers.secs >= 0.25
    assert min(answers.waits_ms) >= 99


def refused() -> list[bytes]:
    return [whole(b"422 Unprocessable", b'{"detail":"no"}')]


def closed() -> list[bytes]:
    return []


def cut_off() -> list[bytes]:
    return [b"HTTP/1.1 200 OK\r\n\r\n"]


def too_much() -> list[bytes]:
    return [whole() + whole()]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refused, 'HTTP/1.1 422 Unprocessable.*{"detail":"no"}'),
        (closed, "the connection was closed after b''"),
        (cut_off, "an answer without content-length: b'http/1.1 200 ok'"),
        (too_much, "HTTP/1.1 200 OK.*HTTP/1.1 200 OK"),
    ],
)
def test_a_wrong_answer_is_an_error_and_no_result(answer: Answer, said: str) -> None:
    """It is told what came, and how often; a wrong answer that is quick makes no better rate."""
    with served(answer) as fake:
        sent = Load(fake.port, "GET", ["/"], connections=2, warm_up=4)

        with pytest.raises(BenchError, match=rf"(?s)GET /: 2 of 2 answers were not 200; the first: {said}"):
            put(sent, lambda: None)


def test_one_wrong_answer_among_many_is_an_error() -> None:
    """The good ones are told beside it; the other connections go on."""
    count = iter(range(1000))

    def once_wrong() -> list[bytes]:
        return [whole(b"500 Oops" if next(count) == 10 else b"200 OK")]

    with served(once_wrong) as fake:
        sent = Load(fake.port, "GET", ["/"], connections=2)
        answers = drive(sent, sent.requests(30), math.inf)

    assert (answers.errors, len(answers.waits_ms)) == (1, 29)
    assert answers.first_error.startswith("HTTP/1.1 500 Oops")


def test_an_answer_that_never_comes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than waited for."""
    monkeypatch.setattr(load, "_PATIENCE_SECS", 0.2)
    told = threading.Event()

    def never() -> list[bytes]:
        told.wait(60)
        return []

    with served(never) as fake:
        sent = Load(fake.port, "GET", ["/"], connections=2)
        answers = drive(sent, sent.requests(2), math.inf)
        told.set()

    assert (answers.errors, answers.first_error) == (2, "no answer within 0.2 s")


def test_a_load_on_nothing_is_told() -> None:
    """With what has happened."""
    with served(fine) as fake:
        sent = Load(fake.port, "GET", ["/"])

    with pytest.raises(BenchError, match=r"(?s)GET /: the load has ended: .*ConnectionRefusedError"):
        put(sent, lambda: None)


def test_the_warm_up_is_left_out() -> None:
    """Costs are read between it and what is measured."""
    seen = []
    with served(fine) as fake:
        sent = Load(fake.port, "GET", ["/"], connections=2, warm_up=30, most=50, secs=60)

        measures, before, after = put(sent, lambda: seen.append(len(fake.heads)) or len(fake.heads))

    assert seen == [before, after] == [30, 80]
    assert measures["n"] == 50


#: Does what the API does, as far as the benchmark sees it, but queues only so many.
FORGETS = """
import itertools, json, os, sys
import uvicorn
from fastapi import FastAPI, Request, Response
from redis.asyncio import Redis

app, redis, count = FastAPI(), Redis.from_url(os.environ["REDIS_URL"]), itertools.count()

@app.post("/vcon")
async def create(request: Request, ingress_lists: str):
    body = await request.body()
    uuid = json.loads(body)["uuid"]
    await redis.set(f"vcon:{uuid}", body)
    if next(count) < int(sys.argv[1]):
        await redis.rpush(ingress_lists, uuid)
    return Response(body, 201)

uvicorn.run(app, port=int(os.environ["CONSERVER_API_PORT"]), log_level="warning")
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """As little as can be measured."""
    return Plan(tmp_path, secs=0.1, repeats=1, scale=0.03, say=lambda words: None)


def test_creates_and_reads_are_measured_beside_the_bare_ones(plan: Plan) -> None:
    """Those of `conserver api` itself; each row has all that a table shows."""
    [table] = api(plan, [5_000])

    assert [row.name for row in table.rows] == ["create, 5 kB", "create, 5 kB, bare", "read, 5 kB", "read, 5 kB, bare"]
    for row in table.rows:
        assert set(table.columns) <= set(row.runs)
        assert all(math.isfinite(value) and value >= 0 for values in row.runs.values() for value in values)
    for name in ("create, 5 kB", "read, 5 kB"):
        ratio = table.row(name).median("rate") / table.row(f"{name}, bare").median("rate")
        assert table.row(name).runs["of_bare"] == [pytest.approx(ratio)]


def test_a_create_that_is_not_queued_is_no_measurement(plan: Plan, tmp_path: Path) -> None:
    """What was answered 201 is counted in the list afterwards."""
    forgets = tmp_path / "forgets.py"
    forgets.write_text(FORGETS)

    with pytest.raises(BenchError, match=r"creates were answered 201, but 30 are queued and 30 of them stored"):
        # As many are stored to be read, before creates are measured.
        api(plan, [5_000], [sys.executable, str(forgets), "61"])


def test_an_api_that_does_not_start_is_told(plan: Plan, tmp_path: Path) -> None:
    """With what it said last."""
    with pytest.raises(BenchError, match=r"-c .* does not listen on port \d+: .*no such luck"):
        api(plan, [5_000], [sys.executable, "-c", "raise SystemExit('no such luck')"])


def test_goals_and_plot_of_the_api(tmp_path: Path) -> None:
    """Beside what the existing conserver did."""
    table = Table("api", "t", {"rate": "a second"})
    table.row("create, 5 kB").add(rate=1500.0)
    table.row("create, 5 kB, bare").add(rate=6000.0)
    table.row("read, 5 kB").add(rate=4100.0)

    text = report.goals_table({"api": table})
    [file] = report.plot(tmp_path, {"api": table})

    assert "NOT YET  API, creates of 5 kB: times the existing conserver: 2 (at least 2.5)" in text
    assert "reached  API, reads of 5 kB: times the existing conserver: 2 (at least 2)" in text
    assert file.name == "api.svg"
    drawn = "".join(ElementTree.parse(file).getroot().itertext())
    assert "the existing conserver, create" in drawn
    assert "create, 5 kB, bare" in drawn
