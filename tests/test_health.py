"""conserver.health: /livez, /readyz and /metrics on a loopback port."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from conserver.health import Health

Serve = Callable[..., Health]


def all_is_well() -> tuple[bool, dict[str, Any]]:
    return True, {"problems": []}


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start the server; it is closed at the end."""
    started: list[Health] = []

    def serve(port: int = 0, ready: Any = all_is_well, metrics: Any = lambda: b"up 1\n") -> Health:
        started.append(Health(port, ready, metrics))
        return started[-1]

    yield serve
    for health in started:
        health.close()


def get(health: Health, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{health.port}{path}", timeout=10)


def test_it_says_that_it_lives(serve: Serve) -> None:
    """Whatever else is wrong: a process that answers need not be started anew."""
    answer = get(serve(ready=lambda: (False, {})), "/livez")

    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
def test_it_says_whether_it_works_and_why_not(serve: Serve, ready: bool, status: int) -> None:
    """By the status for machines, in words for people."""
    answer = get(serve(ready=lambda: (ready, {"problems": ["no server"]})), "/readyz?verbose")

    assert (answer.status_code, answer.json()) == (status, {"ready": ready, "problems": ["no server"]})


def test_it_gives_the_numbers(serve: Serve) -> None:
    """In the format of Prometheus."""
    answer = get(serve(), "/metrics")

    assert (answer.text, answer.headers["content-type"]) == ("up 1\n", "text/plain; version=0.0.4; charset=utf-8")


def test_other_paths_say_what_there_is(serve: Serve) -> None:
    """Who mistyped one finds the right one."""
    answer = get(serve(), "/metric")

    assert (answer.status_code, answer.json()["detail"]) == (404, "there are /livez, /readyz and /metrics")


def test_numbers_that_fail_are_an_answer_too(serve: Serve) -> None:
    """A probe that gets none takes the process for dead."""

    def fails() -> bytes:
        raise ValueError("odd label")

    health = serve(metrics=fails)

    assert get(health, "/metrics").status_code == 500
    assert get(health, "/livez").status_code == 200


def test_it_listens_on_loopback_only(serve: Serve) -> None:
    """What it says is nobody else's business."""
    health = serve()

    assert health._server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_replaced(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Two conservers on one host both work; the log says where the numbers are."""
    with socket.create_server(("127.0.0.1", 0)) as taken, caplog.at_level(logging.WARNING):
        port = taken.getsockname()[1]
        health = serve(port)

        assert health.port != port
        assert get(health, "/livez").status_code == 200
    assert f"port {port} for /metrics is taken" in caplog.text


def test_slow_clients_keep_nobody_waiting(serve: Serve) -> None:
    """One that connects and says nothing does not stop the next probe."""
    health = serve()

    with socket.create_connection(("127.0.0.1", health.port)):
        assert json.loads(get(health, "/readyz").content)["ready"] is True
