"""The API in trouble: what it has answered with success is never lost, and it works again by itself."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.api.server import ApiServer
from tests.api.server import running as api_running
from tests.host import Host, accounted, entries, vcon
from tests.server_moods import denied, full, read_only
from tests.servers import RealServer, running
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

CONFIG: dict[str, Any] = {
    "links": {"act": {"module": "links.act"}},
    "chains": {"main": {"links": ["act"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
}
CLIENTS = 50


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RealServer]:
    """A server of this test alone."""
    with running(RealServer(tmp_path / "own")) as server:
        yield server


class Clients:
    """Clients who create *n* vCons, and repeat whatever is not answered with success, by whichever API answers."""

    def __init__(self, apis: list[ApiServer], n: int) -> None:
        self._apis = apis
        self._todo = iter([vcon(f"{number}") for number in range(n)])
        self._lock = threading.Lock()
        self.created: list[str] = []
        self.told: Counter[str] = Counter()
        """How often a request was not answered with success: by status, or by the error of its connection."""

    def work(self, number: int) -> None:
        """Be one client until nothing is left to create."""
        with httpx.Client(
            headers={"x-conserver-api-token": str(self._apis[0].token)}, timeout=60, verify=False
        ) as http:
            for turn in itertools.count(number):
                with self._lock:
                    document = next(self._todo, None)
                if document is None:
                    return
                self._create(http, document, turn)

    def _create(self, http: httpx.Client, document: dict[str, Any], turn: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            api = self._apis[turn % len(self._apis)]
            try:
                answer = http.post(f"{api.address}/vcon?ingress_lists=in", json=document)
                told = str(answer.status_code)
            except httpx.TransportError as error:
                told = type(error).__name__
            with self._lock:
                if told == "201":
                    self.created.append(document["uuid"])
                    return
                self.told[told] += 1
            # What a client does that is told to try again, by another way if there is one.
            turn += 1
            time.sleep(0.1)
        raise AssertionError(f"not created within 120 s: {document['uuid']}")


@contextmanager
def serving(tmp_path: Path, url: str) -> Iterator[tuple[list[ApiServer], Host]]:
    """Two API processes, and a host with two workers."""
    with ExitStack() as stack:
        apis = [stack.enter_context(api_running(ApiServer(tmp_path / f"api{n}", url, CONFIG))) for n in range(2)]
        host = Host(tmp_path / "host", url, CONFIG)
        stack.callback(host.close)
        host.start()
        yield apis, host


@pytest.mark.parametrize("n", [1000, pytest.param(10_000, marks=pytest.mark.long)])
def test_each_create_that_was_answered_is_delivered_whoever_is_killed(tmp_path: Path, own: RealServer, n: int):
    """50 clients, while workers, the server and one API are killed and come back; all others were told."""
    with serving(tmp_path, own.url) as (apis, host), ThreadPoolExecutor(CLIENTS) as pool:
        clients = Clients(apis, n)
        working = [pool.submit(clients.work, number) for number in range(CLIENTS)]

        def restart_server() -> None:
            own.kill()
            wait_until(lambda: clients.told["503"], 30, "somebody is told")
            own.start()

        def restart_api() -> None:
            apis[0].kill()
            apis[0].start()

        def kill_a_worker() -> None:
            host.signal(signal.SIGKILL, host.worker_pids()[:1])

        faults = [kill_a_worker, restart_server, restart_api, kill_a_worker, restart_server]
        for number, fault in enumerate(faults, 1):
            due = n * number // (len(faults) + 1)
            wait_until(lambda due=due: len(clients.created) >= due, 240, f"{due} created")
            fault()
        for one in working:
            one.result(300)
        wait_until(lambda: accounted(own.client, ["in"]), 240, "everything settled")
        out = set(entries(own.client, "out"))
        with apis[1].client(apis[1].token) as http:
            read = Counter(http.get(f"/vcon/{uuid}").status_code for uuid in clients.created[:: max(1, n // 200)])
        by_phone = {uuid.decode() for uuid in own.client.smembers("tel:+15550100")}
        by_time = {member.decode() for member in own.client.zrange("vcons", 0, -1)}
        stored = own.client.exists(*(f"vcon:{uuid}" for uuid in clients.created))

        created = set(clients.created)
        assert len(created) == n
        assert created - out == set()
        assert created - by_phone == set()
        assert created - by_time == set()
        assert stored == n
        assert set(read) == {200}
        # Nobody was told anything but "try again"; the connections were those of the API that was killed.
        assert set(clients.told) - {"503"} <= {"ConnectError", "ReadError", "RemoteProtocolError", "WriteError"}
        assert clients.told["503"] > 0
        assert "Traceback" not in apis[0].said() + apis[1].said()


# A server in trouble


@pytest.fixture
def api(tmp_path: Path, own: RealServer) -> Iterator[ApiServer]:
    """An API on the server of this test alone."""
    with api_running(ApiServer(tmp_path / "api", own.url, CONFIG)) as api:
        yield api


def create(api: ApiServer, document: dict[str, Any]) -> httpx.Response:
    return api.http.post("/vcon?ingress_lists=in", json=document)


def well(api: ApiServer, redis: Redis, document: dict[str, Any]) -> None:
    """Create what was refused before: it is there, and in its list, once more if it had come so far before."""
    before = entries(redis, "in").count(document["uuid"])
    answer = wait_until(lambda: (a := create(api, document)).status_code == 201 and a, 30, "a create")
    assert answer.json() == document
    assert entries(redis, "in").count(document["uuid"]) == before + 1
    assert redis.zscore("vcons", document["uuid"])
    assert api.http.get("/readyz").status_code == 200
    assert "Traceback" not in api.said()


def test_a_full_server_is_507_and_reads_go_on(api: ApiServer, own: RealServer):
    """Nothing was stored then, and nothing is left when it has room again."""
    before = vcon("before")
    create(api, before).raise_for_status()
    own.client.delete("in")
    documents = [vcon(str(n)) for n in range(20)]
    with full(own.client):
        answers = [create(api, document) for document in documents]
        keys = own.client.keys("vcon:*")
        read = api.http.get(f"/vcon/{before['uuid']}")
        ready = api.http.get("/readyz")

    assert {answer.status_code for answer in answers} == {507}
    assert answers[0].json()["detail"] == "the Redis-compatible server is full: make room there, and repeat this"
    assert keys == [f"vcon:{before['uuid']}".encode()]
    assert read.json() == before
    assert ready.status_code == 503
    well(api, own.client, documents[0])


@pytest.mark.thorough
def test_a_server_that_takes_no_writes_is_503_and_reads_go_on(api: ApiServer, own: RealServer):
    """A replica whose primary is gone."""
    before, document = vcon("before"), vcon()
    create(api, before).raise_for_status()
    with read_only(own.client):
        refused = create(api, document)
        read = api.http.get(f"/vcon/{before['uuid']}")

    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "2"
    assert read.status_code == 200
    assert not own.client.exists(f"vcon:{document['uuid']}")
    well(api, own.client, document)


@pytest.mark.thorough
@pytest.mark.parametrize("rule", ["-rpush", "-evalsha", "-set", "-zadd", "-@all"])
def test_a_command_that_is_denied_is_503_until_it_is_allowed(api: ApiServer, own: RealServer, rule: str):
    """What was done of the request before is no harm: to repeat it completes it."""
    document = vcon()
    # The connection of a client is told by its own user, so the operator needs another one.
    own.client.execute_command("ACL", "SETUSER", "operator", "on", ">x", "allkeys", "allchannels", "+@all")
    with own.connect(username="operator", password="x") as operator, denied(operator, rule):
        refused = create(api, document)

    # It may not need the command at all.
    assert refused.status_code in (201, 503)
    if refused.status_code == 503:
        assert "permission" not in refused.text
        well(api, own.client, document)


@pytest.mark.thorough
def test_keys_that_are_denied_are_refused_and_come_back(api: ApiServer, own: RealServer):
    """An operator has allowed other keys only."""
    document = vcon()
    own.client.execute_command("ACL", "SETUSER", "operator", "on", ">x", "allkeys", "allchannels", "+@all")
    with own.connect(username="operator", password="x") as operator, denied(operator, "resetkeys", "~other:*"):
        refused = create(api, document)
        alive = api.http.get("/livez")

    assert refused.status_code in (409, 503)
    assert alive.status_code == 200
    well(api, own.client, document)


@pytest.mark.thorough
def test_a_server_that_says_nothing_is_503_in_time_and_the_api_lives(api: ApiServer, own: RealServer):
    """Many who wait for it keep nobody from /livez, and all go on when it does."""
    documents = [vcon(str(n)) for n in range(30)]
    create(api, vcon()).raise_for_status()
    own.freeze()
    try:
        with ThreadPoolExecutor(len(documents)) as pool:
            began = time.monotonic()
            asked = [pool.submit(create, api, document) for document in documents]
            slowest = 0.0
            while not all(one.done() for one in asked):
                before = time.monotonic()
                assert api.http.get("/livez").status_code == 200
                slowest = max(slowest, time.monotonic() - before)
            took = time.monotonic() - began
            answers = [one.result() for one in asked]
            again = [create(api, document) for document in documents[:1]]
    finally:
        assert own.process is not None
        own.process.send_signal(signal.SIGCONT)

    assert {answer.status_code for answer in [*answers, *again]} == {503}
    # They wait for 10 s; not one after the other.
    assert took < 25
    assert slowest < 5
    answer = wait_until(lambda: (a := create(api, documents[0])).status_code == 201 and a, 60, "a create")
    assert answer.json() == documents[0]


@pytest.mark.thorough
def test_an_api_that_is_killed_in_the_middle_has_lost_nothing_that_it_answered(tmp_path: Path, own: RealServer):
    """kill -9 with requests under way; the other one takes what is repeated."""
    with ExitStack() as stack:
        apis = [stack.enter_context(api_running(ApiServer(tmp_path / f"api{n}", own.url, CONFIG))) for n in range(2)]
        pool = stack.enter_context(ThreadPoolExecutor(20))
        clients = Clients(apis, 400)
        working = [pool.submit(clients.work, number) for number in range(20)]
        wait_until(lambda: len(clients.created) > 100, 60, "some created")
        apis[0].kill()
        for one in working:
            one.result(120)

    pushed = Counter(entries(own.client, "in"))
    assert len(set(clients.created)) == 400
    assert set(clients.created) - set(pushed) == set()
    assert clients.told["ConnectError"] > 0


@pytest.mark.thorough
def test_sigterm_finishes_what_is_under_way(tmp_path: Path, own: RealServer):
    """Each request is answered, or its connection refused: none is cut in the middle."""
    with (
        api_running(ApiServer(tmp_path / "one", own.url, CONFIG)) as first,
        api_running(ApiServer(tmp_path / "two", own.url, CONFIG)) as second,
        ThreadPoolExecutor(20) as pool,
    ):
        clients = Clients([first, second], 400)
        working = [pool.submit(clients.work, number) for number in range(20)]
        wait_until(lambda: len(clients.created) > 100, 60, "some created")
        code = first.stop()
        for one in working:
            one.result(120)

        assert code == 0
        assert sorted(entries(own.client, "in")) == sorted(clients.created)
        assert "Traceback" not in first.said()
