"""storages.vcon_mcp: vCons in a vcon-mcp server (a fake)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from conserver import StorageError, Vcon, outbound
from conserver.ambient import Work, working
from conserver.testing import STORAGE_RULES, storage_contract, throwaway_store, two_party_call
from storages import vcon_mcp
from storages.vcon_mcp import Options
from tests.fakes.http_server import HttpServer, say_nothing
from tests.fakes.orders import cut, slow, status, with_body
from tests.fakes.vcon_mcp_server import KEY, VconMcpServer

Save = Callable[..., Vcon]


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every test begins with closed breakers; waits are noted and take no time."""
    noted: list[float] = []
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", noted.append)
    return noted


@pytest.fixture
def server() -> Iterator[VconMcpServer]:
    with VconMcpServer() as server:
        yield server


def options(server: VconMcpServer, **more: Any) -> dict[str, Any]:
    return {"base_url": server.base_url, "api_key": KEY, **more}


@pytest.fixture
def save(server: VconMcpServer) -> Save:
    """Save a vCon, and return it."""
    store = throwaway_store()

    def saved(vcon: Vcon | None = None, **more: Any) -> Vcon:
        vcon = vcon or two_party_call()
        store.create(vcon, replace=True)
        with working(Work(store.writer())):
            vcon_mcp.save(str(vcon.uuid), Options(**options(server, **more)))
        return vcon

    return saved


#: Without a PUT, two saves of one vCon get in each other's way; its page says so.
RULES = [rule for rule in STORAGE_RULES if rule != "16 threads may save one vCon at once"]


@pytest.mark.parametrize("rule", RULES)
def test_the_contract_of_storages(server: VconMcpServer, rule: str) -> None:
    """The rules for every storage hold, as far as the API lets them."""
    with HttpServer(say_nothing) as silent:
        checked = storage_contract(
            "storages.vcon_mcp",
            options(server),
            rules=[rule],
            unreachable={"base_url": "http://127.0.0.1:1/api/v1"},
            denied={"api_key": "wrong-secret"},
            slow={"base_url": silent.url, "timeout": 0.2},
            backend=server,
            secrets=[KEY, "wrong-secret"],
        )

    assert checked == [rule]


def test_a_vcon_that_is_there_is_replaced(server: VconMcpServer, save: Save) -> None:
    """A second POST alone would add its parts once more."""
    vcon = save()
    save(vcon)

    assert server.vcons == {vcon.uuid: vcon.document}
    assert server.calls() == ["DELETE", "POST"] * 2


@pytest.mark.parametrize(
    "orders", [[cut], [status(200), cut], [status(429, retry_after="3")], [status(502)], [status(503)], [status(504)]]
)
def test_what_may_go_better_is_tried_again_from_the_start(server: VconMcpServer, save: Save, orders: list[Any]) -> None:
    """Also when the answer to the POST is lost: then the vCon is there, and must not be there twice."""
    vcon = save()
    server.order(*orders)
    save(vcon)

    assert server.vcons == {vcon.uuid: vcon.document}


def test_a_service_that_asks_for_time_gets_it(server: VconMcpServer, save: Save, waits: list[float]) -> None:
    """As long as Retry-After says."""
    server.order(status(429, retry_after="3"))
    save()

    assert waits == [3.0]


@pytest.mark.parametrize(("retries", "calls"), [(0, 1), (2, 3)])
def test_the_options_say_how_often(server: VconMcpServer, save: Save, retries: int, calls: int) -> None:
    """transient_retries come after the first."""
    server.order(*[status(503)] * 9)
    with pytest.raises(StorageError, match=r"cannot save: DELETE http://127.0.0.1:\d+: answered 503"):
        save(transient_retries=retries)

    assert len(server.requests) == calls


def test_a_decision_of_the_server_is_not_asked_for_again(server: VconMcpServer, save: Save) -> None:
    """Its reason is told."""
    server.order(status(404), status(400, "Missing required field: parties"))

    with pytest.raises(StorageError, match='answered 400: "Missing required field: parties"'):
        save()
    assert server.calls() == ["DELETE", "POST"]


@pytest.mark.parametrize("body", [b"[]", b'{"vcon": null}', b'{"vcon": {"uuid": "another"}}', b"<html>"])
def test_an_answer_that_is_not_the_vcon_is_an_error(server: VconMcpServer, save: Save, body: bytes) -> None:
    """It is not handed out as one."""
    vcon = save()
    server.order(with_body(body))

    with pytest.raises(StorageError, match="cannot read: "):
        vcon_mcp.get(str(vcon.uuid), Options(**options(server)))


def test_a_slow_server_is_given_up(server: VconMcpServer, save: Save) -> None:
    """Each attempt has the time that the options give."""
    server.order(*[slow(30)] * 4)

    with pytest.raises(StorageError, match=r"no answer in time .* \(4 attempts\)"):
        save(timeout=0.2)


def test_without_a_key_none_is_sent(server: VconMcpServer) -> None:
    """As where the server asks for none."""
    with pytest.raises(StorageError, match="answered 401"):
        vcon_mcp.ping(Options(**options(server, api_key="")))

    assert "authorization" not in server.requests[0].headers


def test_options_that_make_no_sense_are_refused() -> None:
    """With what to write."""
    with pytest.raises(ValidationError, match="is no URL: write it as http://host:3000/api/v1"):
        Options(base_url="localhost:3000")


def test_the_defaults_are_those_of_the_existing_conserver() -> None:
    """A config without options is a config."""
    opts = Options()

    assert opts.base_url == "http://127.0.0.1:3000/api/v1"
    assert (opts.api_key.get_secret_value(), opts.timeout) == ("", 30)
    assert (opts.transient_retries, opts.transient_backoff_base_s) == (3, 0.5)
