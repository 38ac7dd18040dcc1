"""links.webhook: the vCon to each URL, with an id by which a repeated delivery is known."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from conserver import LinkError, Vcon, outbound, telemetry
from conserver.components import load_link
from conserver.config import LinkConfig
from conserver.errors import ConfigError
from conserver.testing import run_link, try_link, two_party_call
from tests.fakes.http_server import Exchange, HttpServer

SECRET = "s3cr3t-value"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with closed breakers and empty metrics, and waits that take no time."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", lambda _: None)
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())


def accept(exchange: Exchange) -> None:
    exchange.answer(204)


def answering(*codes: int) -> HttpServer:
    """A receiver that answers with these codes in turn, and then with 204."""
    left = list(codes)
    return HttpServer(lambda exchange: exchange.answer(left.pop(0) if left else 204))


def counters() -> dict[str, float]:
    return {name: value for (name, _), value in telemetry.metrics.snapshot()["counters"].items()}


def test_the_vcon_is_posted_to_each_url_in_order() -> None:
    """As JSON, with the configured headers, and the chain goes on with it."""
    order: list[str] = []

    def receive(exchange: Exchange) -> None:
        order.append(exchange.request.path)
        accept(exchange)

    vcon = two_party_call()
    with HttpServer(receive) as server:
        urls = [f"{server.url}/b", f"{server.url}/a"]
        trial = try_link("links.webhook", {"webhook-urls": urls, "headers": {"X-Team": "blue"}}, on=vcon)
    request = server.requests[0]

    assert (order, trial.result) == (["/b", "/a"], vcon.uuid)
    assert json.loads(request.body) == trial.vcon.document
    assert (request.method, request.headers["x-team"]) == ("POST", "blue")
    assert request.headers["content-type"] == "application/json"


def test_a_configured_content_type_wins() -> None:
    """Receivers that want application/vcon get it."""
    with HttpServer(accept) as server:
        run_link("links.webhook", {"webhook-urls": [server.url], "headers": {"content-type": "application/vcon"}})

    assert server.requests[0].headers["content-type"] == "application/vcon"


def test_a_delivery_has_an_id_that_stays() -> None:
    """The same vCon to the same URL has the same id in every run; another URL or content has another."""
    vcon = two_party_call()
    with HttpServer(accept) as server:
        given = {"webhook-urls": [f"{server.url}/a", f"{server.url}/b"]}
        run_link("links.webhook", given, on=vcon, times=2)
        vcon.add_tag("new", "tag")
        run_link("links.webhook", given, on=vcon)
    first, second, again, _, changed, _ = (request.headers["webhook-id"] for request in server.requests)

    assert first == again
    assert len({first, second, changed}) == 3


def test_a_connection_that_dies_before_the_answer_is_tried_again_with_the_same_id() -> None:
    """The receiver may have accepted it, and can tell by the id."""

    def receive(exchange: Exchange) -> None:
        if len(server.requests) == 1:
            exchange.cut()
        else:
            accept(exchange)

    with HttpServer(receive) as server:
        run_link("links.webhook", {"webhook-urls": [server.url]})

    assert len(server.requests) == 2
    assert server.requests[0] == server.requests[1]


def test_a_busy_receiver_is_asked_again() -> None:
    """503 and 429 pass."""
    with answering(503, 429) as server:
        run_link("links.webhook", {"webhook-urls": [server.url]})

    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [301, 302, 400, 401, 404, 410, 500])
def test_an_answer_that_is_no_success_fails_the_link(status: int) -> None:
    """The error names host and status, so a dead letter says what happened."""
    with answering(status) as server, pytest.raises(LinkError, match=rf"POST {server.url}: answered {status}$"):
        run_link("links.webhook", {"webhook-urls": [server.url]})

    assert counters() == {"conserver.link.webhook.post_failures": 1}


def test_one_dead_receiver_does_not_keep_the_others_waiting() -> None:
    """All URLs are tried, and the error names all that failed."""
    with answering(404) as bad, HttpServer(accept) as good:
        urls = [bad.url, "http://127.0.0.1:9/x", good.url]
        with pytest.raises(LinkError, match=rf"^POST {bad.url}: answered 404; POST http://127.0.0.1:9: no answer"):
            run_link("links.webhook", {"webhook-urls": urls})

    assert len(good.requests) == 1
    assert counters() == {"conserver.link.webhook.post_failures": 2}


def test_a_receiver_that_hangs_ends_with_the_timeout() -> None:
    """No worker waits for ever."""
    with (
        HttpServer(lambda exchange: exchange.pause(30) or None) as server,
        pytest.raises(LinkError, match=r"no answer in time \(ReadTimeout\) \(4 attempts\)"),
    ):
        run_link("links.webhook", {"webhook-urls": [server.url], "timeout": 0.2})

    assert len(server.requests) == 4


def test_neither_errors_nor_logs_hold_secrets_or_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    """Not the URL's path, query or password, not a header, not what the receiver repeats of the vCon."""
    caplog.set_level(logging.DEBUG)

    def echo(exchange: Exchange) -> None:
        exchange.answer(400, exchange.request.body, content_type="application/json")

    with HttpServer(echo) as server:
        url = f"http://me:{SECRET}@127.0.0.1:{server.port}/{SECRET}?token={SECRET}"
        with pytest.raises(LinkError) as caught:
            run_link("links.webhook", {"webhook-urls": [url], "headers": {"X-Auth": SECRET}})

    assert str(caught.value) == f"POST http://127.0.0.1:{server.port}: answered 400"
    assert SECRET not in caplog.text
    assert "kettle" not in caplog.text


@pytest.mark.parametrize("how", ["environment", "option"])
def test_older_consumers_get_the_older_version(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """EGRESS_FORMAT_VERSION holds for what leaves by a webhook as well; the stored vCon stays as it is."""
    if how == "environment":
        monkeypatch.setenv("EGRESS_FORMAT_VERSION", "0.0.1")
    with HttpServer(accept) as server:
        given = {"webhook-urls": [server.url]} | ({"format_version": "0.0.1"} if how == "option" else {})
        vcon = run_link("links.webhook", given)
    sent = json.loads(server.requests[0].body)

    assert (sent["vcon"], sent["group"]) == ("0.0.1", [])
    assert "mimetype" in sent["dialog"][0]
    assert "mediatype" in vcon.dialog[0]


def test_a_sealed_vcon_is_sent_as_it_is() -> None:
    """Sending changes nothing, so signed vCons can be sent."""
    document: dict[str, Any] = {
        "payload": "eyJ1dWlkIjogIjAxOGYzYzVlLTAwMDAtODAwMC04MDAwLTAwMDAwMDAwMDAwMSJ9",
        "signatures": [{"signature": "x", "header": {"uuid": "018f3c5e-0000-8000-8000-000000000001"}}],
    }
    with HttpServer(accept) as server:
        run_link("links.webhook", {"webhook-urls": [server.url]}, on=Vcon(document))

    assert json.loads(server.requests[0].body) == document


def test_without_urls_the_chain_goes_on() -> None:
    """It is counted, since nobody configures a webhook to do nothing."""
    trial = try_link("links.webhook")

    assert trial.result == trial.vcon.uuid
    assert counters() == {"conserver.link.webhook.no_urls_configured": 1}


def test_a_url_that_is_none_is_found_by_the_check() -> None:
    """And is not repeated, since URLs hold secrets."""
    with pytest.raises(ConfigError, match="number 2 is not a URL: write https://host/path") as caught:
        load_link(
            LinkConfig(name="hook", module="links.webhook", options={"webhook-urls": ["https://a.example", SECRET]})
        )

    assert SECRET not in str(caught.value)
