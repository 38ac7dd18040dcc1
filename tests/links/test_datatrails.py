"""links.datatrails: an event for each vCon, its hash and its operation, once."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conserver import Vcon, VconNotFound, outbound, telemetry
from conserver.ambient import Work, working
from conserver.components import check, load_link
from conserver.config import LinkConfig
from conserver.errors import ConfigError, OutboundError, OutboundStatus
from conserver.testing import run_link, throwaway_store, try_link, two_party_call
from links import datatrails
from tests.fakes.datatrails_server import CLIENT, SECRET, DatatrailsServer
from tests.fakes.orders import Order, cut, ok, slow, status, with_body


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins without tokens and assets, with closed breakers, and repeats without waiting."""
    datatrails._tokens.cache_clear()
    monkeypatch.setattr(datatrails, "_assets", {})
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", lambda _: None)
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())


@pytest.fixture
def trails() -> Iterator[DatatrailsServer]:
    """A DataTrails that works."""
    with DatatrailsServer() as server:
        yield server


def options(trails: DatatrailsServer, **more: Any) -> dict[str, Any]:
    return {"api_url": trails.api_url, "auth": trails.auth, "vcon_operation": "vcon_created", **more}


def failures() -> dict[str, float]:
    """How often an event could not be made, by its kind."""
    counters = telemetry.metrics.snapshot()["counters"].items()
    name = "conserver.link.datatrails.event_creation_failures"
    return {dict(labels)["event_type"]: value for (counted, labels), value in counters if counted == name}


def test_an_event_is_recorded_with_the_asset_of_the_day_and_without() -> None:
    """Attribute by attribute what readers of the existing events expect; the vCon stays as it is."""
    vcon = two_party_call()
    with DatatrailsServer() as trails:
        trial = try_link("links.datatrails", options(trails, partner_id="us"), on=vcon, name="created", times=2)
    [event] = trails.asset_events
    [asset] = trails.assets
    [free] = trails.events
    today = datetime.now(UTC).date().isoformat()

    assert (trial.result, trial.vcon) == (vcon.uuid, vcon)
    assert event["event_attributes"] == free["attributes"]
    assert event["event_attributes"] == {
        "arc_display_type": "vcon_created",
        "arc_event_type": "vcon_created",
        "conserver_link": "DataTrails",
        "conserver_link_name": "created",
        "conserver_link_version": "0.3.0",
        "payload": vcon.hash,
        "payload_hash_alg": "SHA-256",
        "payload_preimage_content_type": "application/vcon+json",
        "subject": f"vcon://{vcon.uuid}",
        "timestamp_declared": vcon.created_at,
        "vcon_draft_version": "01",
        "vcon_operation": "vcon_created",
    }
    assert (event["operation"], event["behaviour"]) == ("Record", "RecordEvidence")
    assert free["trails"] == [f"vcon://{vcon.uuid}"]
    assert asset["attributes"] == {
        "arc_display_type": "vcon_droid",
        "conserver_link_version": "0.3.0",
        "droid_id": today,
    }
    assert (asset["behaviours"], asset["public"]) == (["RecordEvidence"], False)
    assert trails.calls("POST", "/v1/events")[0].headers["datatrails-partner-id"] == "us"
    assert trails.requests[-1].headers["datatrails-user-agent"] == "oss/conserverlink/0.3.0"


@pytest.mark.parametrize("operation", ["created", "vcon_created", "VCON-Created"])
def test_the_operation_has_its_prefix_once(trails: DatatrailsServer, operation: str) -> None:
    """So that readers need to look for one spelling only."""
    run_link("links.datatrails", options(trails, vcon_operation=operation))

    assert trails.asset_events[0]["event_attributes"]["vcon_operation"] == "vcon_created"


def test_a_second_run_posts_nothing(trails: DatatrailsServer) -> None:
    """Not even when this process remembers nothing of the first."""
    vcon = two_party_call()
    run_link("links.datatrails", options(trails), on=vcon)
    datatrails._tokens.cache_clear()
    datatrails._assets.clear()
    run_link("links.datatrails", options(trails), on=vcon)

    assert (len(trails.assets), len(trails.asset_events), len(trails.events)) == (1, 1, 1)


def test_a_changed_vcon_another_operation_and_another_vcon_get_events(trails: DatatrailsServer) -> None:
    """All with the one asset of the day."""
    vcon = two_party_call()
    run_link("links.datatrails", options(trails), on=vcon)
    vcon.add_tag("new", "tag")
    run_link("links.datatrails", options(trails), on=vcon)
    run_link("links.datatrails", options(trails, vcon_operation="vcon_enhanced"), on=vcon)
    run_link("links.datatrails", options(trails))

    assert (len(trails.assets), len(trails.asset_events), len(trails.events)) == (1, 4, 4)


def test_an_asset_of_today_is_found_again(trails: DatatrailsServer) -> None:
    """By all its attributes: one with others is another."""
    own = {"arc_display_type": "calls", "team": 7}
    for attributes in (own, {**own, "team": 8}, own):
        datatrails._assets.clear()
        run_link("links.datatrails", options(trails, asset_attributes=attributes))
    used = [event["identity"].partition("/events")[0] for event in trails.asset_events]

    assert [asset["attributes"]["team"] for asset in trails.assets] == [7, 8]
    assert used == ["assets/asset-1", "assets/asset-2", "assets/asset-1"]


def test_an_asset_that_is_gone_is_looked_for_in_the_next_run(trails: DatatrailsServer) -> None:
    """What this process remembers may be wrong; the run that finds out fails."""
    run_link("links.datatrails", options(trails))
    trails.assets.clear()

    with pytest.raises(OutboundStatus, match="answered 404"):
        run_link("links.datatrails", options(trails))
    run_link("links.datatrails", options(trails))
    assert len(trails.assets) == 1


def test_many_threads_make_one_asset_and_get_one_token(trails: DatatrailsServer) -> None:
    """Also when the first vCons of the day come all at once."""
    store = throwaway_store()
    link = load_link(LinkConfig(name="link", module="links.datatrails", options=options(trails)))
    uuids = []
    for _ in range(8):
        vcon = two_party_call()
        store.create(vcon)
        uuids.append(str(vcon.uuid))
    together = threading.Barrier(8)

    def one(uuid: str) -> None:
        together.wait(30)
        with working(Work(store.writer())):
            link.run(uuid, "link", link.options)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, uuids))

    assert (len(trails.assets), len(trails.asset_events), len(trails.tokens)) == (1, 8, 1)


def test_a_sealed_vcon_is_recorded(trails: DatatrailsServer) -> None:
    """Recording changes nothing; when it was made is not seen from outside, so it is now."""
    uuid = "018f3c5e-0000-8000-8000-000000000001"
    signed = Vcon({"payload": "eyJ1dWlkIjogIjEifQ", "signatures": [{"signature": "x", "header": {"uuid": uuid}}]})
    after = run_link("links.datatrails", options(trails), on=signed, times=2)
    [event] = trails.asset_events

    assert after == signed
    assert (event["event_attributes"]["payload"], event["event_attributes"]["subject"]) == (
        signed.hash,
        f"vcon://{uuid}",
    )
    assert datetime.fromisoformat(event["event_attributes"]["timestamp_declared"]).tzinfo == UTC


def test_a_missing_vcon_is_said_to_be_missing(trails: DatatrailsServer) -> None:
    """Before anything is asked of DataTrails."""
    link = load_link(LinkConfig(name="link", module="links.datatrails", options=options(trails)))

    with working(Work(throwaway_store().writer())), pytest.raises(VconNotFound):
        link.run(str(two_party_call().uuid), "link", link.options)
    assert trails.requests == []


# Tokens


def test_a_token_serves_many_runs(trails: DatatrailsServer) -> None:
    """One process asks once for one client."""
    run_link("links.datatrails", options(trails))
    run_link("links.datatrails", options(trails, vcon_operation="other"))

    assert trails.tokens == ["t0ken-1"]


@pytest.mark.parametrize(
    ("expires_in", "lasts_secs"), [(3600, 3300), ("900", 600), (400, 200), (None, 300), ("soon", 300), (0, 0)]
)
def test_a_token_is_got_anew_five_minutes_before_it_ends(
    trails: DatatrailsServer, monkeypatch: pytest.MonkeyPatch, expires_in: Any, lasts_secs: float
) -> None:
    """Or after half of its time, where that is short; one that says nothing of its end serves five minutes."""
    trails.expires_in = expires_in
    now = 1000.0
    monkeypatch.setattr(datatrails, "time", SimpleNamespace(monotonic=lambda: now))
    tokens = datatrails._tokens(trails.auth["token_endpoint"], CLIENT, SECRET, 5.0)
    first = tokens.get()
    now += lasts_secs - 0.1
    before = tokens.get() if lasts_secs else first
    now += 0.2

    assert (first, before, tokens.get()) == ("t0ken-1", "t0ken-1", "t0ken-2")


def test_a_token_that_is_refused_is_replaced_once(trails: DatatrailsServer) -> None:
    """It was withdrawn before its time; nothing is posted twice for that."""
    run_link("links.datatrails", options(trails))
    trails.withdraw_tokens()
    run_link("links.datatrails", options(trails))

    assert len(trails.tokens) == 2
    assert len(trails.asset_events) == 2


def test_tokens_that_are_all_refused_fail_the_link(trails: DatatrailsServer) -> None:
    """There is one try with a new one, not more."""
    trails.order(*[with_body(b'{"access_token": "stale", "expires_in": 3600}')] * 9, to="token")

    with pytest.raises(OutboundStatus, match="answered 401"):
        run_link("links.datatrails", options(trails))
    assert len(trails.tokens) == 2


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"access_token": ""}', b'{"access_token": 5}'])
def test_an_answer_without_a_token_says_so(trails: DatatrailsServer, body: bytes) -> None:
    """It names what to look at."""
    trails.order(with_body(body), to="token")

    with pytest.raises(OutboundError, match="answered without an access_token; check auth in the options"):
        run_link("links.datatrails", options(trails))


def test_neither_errors_nor_logs_hold_secrets(trails: DatatrailsServer, caplog: pytest.LogCaptureFixture) -> None:
    """Not the client's secret, which the service repeats, and not the token."""
    caplog.set_level(logging.DEBUG)
    wrong = {**trails.auth, "client_secret": "wr0ng-s3cr3t"}
    with pytest.raises(OutboundStatus) as caught:
        run_link("links.datatrails", options(trails, auth=wrong))
    trails.order(status(400, "the token t0ken-1 may not"), to="event")
    run_link("links.datatrails", options(trails))

    assert str(caught.value) == f"POST {trails.url}: answered 401"
    assert "answered 400" in caplog.text
    assert "wr0ng-s3cr3t" not in caplog.text
    assert "t0ken-1" not in caplog.text
    assert SECRET not in caplog.text


# A service that misbehaves


@pytest.mark.parametrize("order", [status(429, retry_after="1"), status(502), cut])
@pytest.mark.parametrize("route", ["token", "assets", "search", "asset_event"])
def test_what_may_pass_is_tried_again(trails: DatatrailsServer, route: str, order: Order) -> None:
    """And an event whose answer was lost is found, not posted again."""
    trails.order(order, order, to=route)
    run_link("links.datatrails", options(trails), times=2)

    assert (len(trails.assets), len(trails.asset_events)) == (1, 1)
    assert failures() == {}


def test_an_event_that_arrived_is_not_posted_again(trails: DatatrailsServer) -> None:
    """Its answer was lost, so the search before the next attempt finds it."""
    trails.order(cut, to="asset_event")
    run_link("links.datatrails", options(trails))

    assert len(trails.calls("POST", "/v2/assets/asset-1/events")) == 1
    assert len(trails.calls("GET", "/v2/assets/-/events")) == 2


def test_an_asset_that_was_made_is_not_made_again(trails: DatatrailsServer) -> None:
    """Its answer was lost, too."""
    trails.assets.append({"identity": "assets/other", "attributes": {}})
    trails.order(ok, cut, to="assets")
    run_link("links.datatrails", options(trails))

    assert len(trails.assets) == 2


@pytest.mark.parametrize(
    ("route", "order", "message"),
    [
        ("asset_event", status(400, "no"), 'answered 400: "no"$'),
        ("asset_event", status(500), "answered 500"),
        ("assets", status(403), "answered 403"),
        ("search", with_body(b"{"), "the answer is not JSON"),
        ("search", with_body(b"[]"), "the answer to a search has no list of events"),
        ("assets", with_body(b"{}"), "the answer to a search has no list of assets"),
        ("assets", with_body(b'{"assets": [{"identity": "../x"}]}'), "an asset that has no identity"),
        ("assets", with_body(b'{"assets": [7]}'), "an asset that has no identity"),
    ],
)
def test_what_will_not_pass_fails_at_once(trails: DatatrailsServer, route: str, order: Order, message: str) -> None:
    """And is counted; no event without an asset is posted in its place."""
    trails.order(order, to=route)

    with pytest.raises(OutboundError, match=message):
        run_link("links.datatrails", options(trails))
    assert (trails.asset_events, trails.events) == ([], [])
    assert failures() == {"asset_event": 1}


def test_a_slow_service_ends_with_the_timeout(trails: DatatrailsServer) -> None:
    """No worker waits for ever; what DataTrails has taken is found by the next run."""
    trails.order(*[slow(30)] * 4, to="search")
    with pytest.raises(OutboundError, match=r"no answer in time \(ReadTimeout\) \(4 attempts\)"):
        run_link("links.datatrails", options(trails, timeout=0.1))

    assert failures() == {"asset_event": 1}


@pytest.mark.parametrize("order", [status(500), status(429, retry_after="3600"), cut])
def test_the_event_without_an_asset_may_fail(
    trails: DatatrailsServer, caplog: pytest.LogCaptureFixture, order: Order
) -> None:
    """It is a preview: logged and counted, and the chain goes on."""
    trails.order(order, to="event")
    trial = try_link("links.datatrails", options(trails))

    assert trial.result == trial.vcon.uuid
    assert failures() == {"event": 1}
    assert "the event without an asset is not recorded, the one with an asset is: POST http" in caplog.text


# Options


def test_without_options_the_check_says_what_is_missing(trails: DatatrailsServer) -> None:
    """The client and the operation have no defaults."""
    with pytest.raises(ConfigError) as caught:
        load_link(LinkConfig(name="trail", module="links.datatrails", options={}))
    for name in ("auth", "vcon_operation"):
        assert f"'{name}'" in str(caught.value)
    for wrong, message in (
        ({"type": "basic"}, "write oidc-client-credentials"),
        ({"token_endpoint": "datatrails"}, "not a URL: write https://host/path"),
    ):
        given = options(trails, auth={**trails.auth, **wrong})
        with pytest.raises(ConfigError, match=message) as caught:
            load_link(LinkConfig(name="trail", module="links.datatrails", options=given))
        assert SECRET not in str(caught.value)


def test_a_config_of_the_existing_conserver_is_understood(tmp_path: Path, trails: DatatrailsServer) -> None:
    """As its page shows it: with a /v2 at the API's URL, which belongs to the paths, and its spelling of the type."""
    config = tmp_path / "config.yml"
    config.write_text(
        f"""
links:
  datatrails_created:
    module: links.datatrails
    options:
      api_url: "{trails.api_url}/v2"
      auth_url: "{trails.api_url}/iam/v1/appidp/token"
      vcon_operation: "vcon_created"
      partner_id: "your-company-name"
      auth:
        type: "OIDC-client-credentials"
        token_endpoint: "{trails.auth["token_endpoint"]}"
        client_id: "{CLIENT}"
        client_secret: ${{SECRET}}
storages:
  files: {{module: storages.file, options: {{path: data}}}}
chains:
  create_chain:
    links: [datatrails_created]
    storages: [files]
    ingress_lists: [create_ingress]
    egress_lists: [default_egress]
    enabled: 1
followers: {{}}
"""
    )
    loaded, findings = check(config, {"SECRET": SECRET})
    assert loaded is not None
    link = load_link(loaded.links["datatrails_created"])
    run_link("links.datatrails", json.loads(json.dumps(loaded.links["datatrails_created"].options)))

    assert [finding for finding in findings if finding.rule != "egress-without-consumer"] == []
    assert link.options.api_url == trails.api_url
    assert len(trails.asset_events) == 1
