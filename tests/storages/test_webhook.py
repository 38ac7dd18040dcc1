"""storages.webhook: the vCon to each URL."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from conserver import StorageError, Vcon, outbound, telemetry
from conserver.ambient import Work, working
from conserver.components import load_storage
from conserver.config import StorageConfig
from conserver.errors import ConfigError
from conserver.testing import ONE_WAY_RULES, storage_contract, throwaway_store, two_party_call
from tests.fakes.http_server import Exchange, HttpServer

SECRET = "s3cr3t-value"
#: Nothing can be pinged either.
RULES = [rule for rule in ONE_WAY_RULES if "ping" not in rule]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with empty metrics."""
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())


def accept(exchange: Exchange) -> None:
    exchange.answer(204)


def save(urls: list[str], call: Vcon | None = None, **options: Any) -> Vcon:
    """Save a call with these options, and return it."""
    call = call or two_party_call()
    config = StorageConfig(name="hook", module="storages.webhook", options={"webhook-urls": urls, **options})
    storage, store = load_storage(config), throwaway_store()
    store.create(call, replace=True)
    with working(Work(store.writer())):
        storage.save(call.uuid, storage.options)
    return call


class Receiver:
    """A receiver that can be stopped and started, and remembers by `webhook-id` what it has."""

    def __init__(self) -> None:
        self.has: dict[str, bytes] = {}
        self.start()
        self.port, self.url = self._server.port, self._server.url

    def _take(self, exchange: Exchange) -> None:
        self.has[exchange.request.headers["webhook-id"]] = exchange.request.body
        exchange.answer(204)

    def start(self) -> None:
        self._server = HttpServer(self._take, port=getattr(self, "port", 0))
        self._server.__enter__()

    def stop(self) -> None:
        self._server.__exit__()
        outbound.close_connections()


@pytest.mark.parametrize("rule", RULES)
def test_the_contract_of_storages(rule: str) -> None:
    """The rules for every storage hold, as far as it can do what they are about."""
    receiver = Receiver()
    try:
        with (
            HttpServer(
                lambda exchange: exchange.answer(401, b"no " + SECRET.encode(), content_type="text/plain")
            ) as no,
            HttpServer(lambda exchange: exchange.pause(30) or None) as slow,
        ):
            headers = {"Authorization": f"Bearer {SECRET}"}
            checked = storage_contract(
                "storages.webhook",
                {"webhook-urls": [receiver.url], "headers": headers},
                rules=[rule],
                unreachable={"webhook-urls": [f"http://me:{SECRET}@127.0.0.1:1/{SECRET}?key={SECRET}"]},
                denied={"webhook-urls": [f"{no.url}/{SECRET}"]},
                slow={"webhook-urls": [f"{slow.url}/{SECRET}"], "timeout": 0.2},
                backend=receiver,
                secrets=[SECRET],
            )
    finally:
        receiver.stop()

    assert [rule] == checked


def test_the_vcon_is_posted_to_each_url_in_order() -> None:
    """As JSON, with the configured headers."""
    with HttpServer(accept) as server:
        call = save([f"{server.url}/b", f"{server.url}/a"], headers={"X-Team": "blue"})
    first, second = server.requests

    assert (first.method, first.path, second.path) == ("POST", "/b", "/a")
    assert json.loads(first.body) == call.document
    assert (first.headers["x-team"], first.headers["content-type"]) == ("blue", "application/json")


def test_a_delivery_has_an_id_that_stays() -> None:
    """A save that is replayed has the same id for each URL; another content has another."""
    call = two_party_call()
    with HttpServer(accept) as server:
        for _ in range(2):
            save([f"{server.url}/a", f"{server.url}/b"], call)
        call.document["subject"] = "changed"
        save([f"{server.url}/a"], call)
    first, second, again, _, changed = (request.headers["webhook-id"] for request in server.requests)

    assert first == again
    assert len({first, second, changed}) == 3


@pytest.mark.parametrize("status", [301, 400, 404, 500])
def test_an_answer_that_is_no_success_fails_the_save(status: int) -> None:
    """The error names host and status, nothing else; the others get it all the same."""
    with (
        HttpServer(lambda exchange: exchange.answer(status)) as bad,
        HttpServer(accept) as good,
        pytest.raises(StorageError) as told,
    ):
        save([f"{bad.url}/{SECRET}", good.url])

    assert str(told.value) == f"POST {bad.url}: answered {status}"
    assert len(good.requests) == 1


def test_all_that_failed_are_named() -> None:
    """One message for each of them."""
    with (
        HttpServer(lambda exchange: exchange.answer(404)) as bad,
        pytest.raises(StorageError, match=rf"^POST {bad.url}: answered 404; POST http://127.0.0.1:9: no answer"),
    ):
        save([bad.url, "http://127.0.0.1:9/x"])


def test_a_receiver_that_hangs_ends_with_the_timeout() -> None:
    """No thread waits for ever."""
    with (
        HttpServer(lambda exchange: exchange.pause(30) or None) as server,
        pytest.raises(StorageError, match=r"no answer in time \(ReadTimeout\) \(4 attempts\)"),
    ):
        save([server.url], timeout=0.2)


def test_neither_errors_nor_logs_hold_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    """Receivers may repeat in their answer what they were sent."""
    caplog.set_level(logging.DEBUG)

    def echo(exchange: Exchange) -> None:
        exchange.answer(400, exchange.request.body, content_type="application/json")

    with HttpServer(echo) as server, pytest.raises(StorageError) as told:
        save([server.url])

    assert "kettle" not in f"{told.value} {caplog.text}"


def test_the_version_is_the_current_one_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """`format_version` counts, EGRESS_FORMAT_VERSION does not, and none goes out under another number."""
    monkeypatch.setenv("EGRESS_FORMAT_VERSION", "0.0.1")
    old = Vcon({"vcon": "0.0.1", "uuid": two_party_call().uuid, "dialog": [{"type": "text", "mimetype": "text/plain"}]})

    with HttpServer(accept) as server:
        save([server.url], old)
        save([server.url], old, format_version="0.0.1")
    current, older = (json.loads(request.body) for request in server.requests)

    assert (current["vcon"], current["dialog"][0]["mediatype"]) == ("0.4.0", "text/plain")
    assert (older["vcon"], older["dialog"][0]["mimetype"]) == ("0.0.1", "text/plain")


def test_each_post_is_measured_with_its_status() -> None:
    """Also those that failed, and those without any answer."""
    with (
        HttpServer(accept) as good,
        HttpServer(lambda exchange: exchange.answer(404)) as bad,
        pytest.raises(StorageError),
    ):
        save([good.url, bad.url, "http://127.0.0.1:9"])

    histograms = telemetry.metrics.snapshot()["histograms"]
    measured = [dict(labels)["status_code"] for name, labels in histograms if name == "conserver.webhook.duration"]
    assert sorted(measured) == ["204", "404", "none"]


@pytest.mark.parametrize("options", [{}, {"webhook-urls": []}])
def test_a_storage_without_receivers_is_refused(options: dict[str, Any]) -> None:
    """It would lose every vCon and say nothing."""
    with pytest.raises(ConfigError, match="webhook-urls names no receiver, so every vCon would be lost"):
        load_storage(StorageConfig(name="hook", module="storages.webhook", options=options))


def test_a_url_that_is_none_is_found_by_the_check() -> None:
    """And is not repeated, since URLs hold secrets."""
    with pytest.raises(ConfigError, match="number 2 is not a URL: write https://host/path") as caught:
        save(["https://a.example", SECRET])

    assert SECRET not in str(caught.value)
