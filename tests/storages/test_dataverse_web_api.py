"""storages.dataverse.web_api: tokens, and requests that fail (a fake)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from conserver import StorageError, outbound, outbound_wire
from storages import dataverse
from storages.dataverse import Options, web_api
from tests.fakes.dataverse_server import DataverseServer, lost, trust
from tests.fakes.orders import Order, cut, ok, slow, status, with_body


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Every test begins with closed breakers and without tokens; waits are noted and take no time."""
    noted: list[float] = []
    trusting = trust()
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", noted.append)
    monkeypatch.setattr(outbound_wire, "_tls", lambda: trusting)
    monkeypatch.setattr(web_api, "_apps", {})
    outbound_wire.close_connections()
    yield noted
    outbound_wire.close_connections()


@pytest.fixture(scope="module")
def same_server() -> Iterator[DataverseServer]:
    with DataverseServer() as server:
        yield server


@pytest.fixture
def server(same_server: DataverseServer) -> DataverseServer:
    """A server with an empty table."""
    same_server.forget()
    return same_server


@pytest.fixture
def opts(server: DataverseServer) -> Options:
    return Options(**server.options())


def write(opts: Options) -> None:
    """Write a row."""
    row = {"vcon_uuid": "one", "vcon_data": "{}"}
    web_api.request("PATCH", "vcon_storage(0190c0de-1234-8567-8000-000000000001)", opts, row=row)


# Signing in


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("tenant_id", "it does not know tenant another, or is no sign-in service; check tenant_id and authority"),
        ("client_id", r"AADSTS700016: Application with identifier 'another' was not found\.; check tenant_id, client"),
        ("client_secret", r"AADSTS7000215: Invalid client secret provided\.; check tenant_id, client_id, client_sec"),
        ("url", "AADSTS500011: The resource principal was not found.*; check tenant_id, .* and url"),
    ],
)
def test_a_refused_login_says_what_to_check(server: DataverseServer, option: str, told: str) -> None:
    """It is not tried again."""
    wrong = "https://another.example" if option == "url" else "another"

    with pytest.raises(StorageError, match=f"cannot read .*: sign-in at https://.*: {told}"):
        dataverse.ping(Options(**server.options(**{option: wrong})))
    assert server.sign_ins() == (0 if option == "tenant_id" else 1)


def test_a_secret_with_a_line_break_behind_it_is_taken(server: DataverseServer) -> None:
    """As those have that come from a file."""
    options = server.options()
    write(Options(**{**options, "client_secret": f"{options['client_secret']}\n"}))

    assert len(server.rows) == 1


def test_a_token_that_has_ended_is_replaced(server: DataverseServer, opts: Options) -> None:
    """The request that meets it does not fail."""
    write(opts)
    server.tokens.clear()
    write(opts)
    write(opts)

    assert server.sign_ins() == 2
    assert server.calls() == ["PATCH"] * 4


def test_a_token_that_is_never_taken_is_an_error(server: DataverseServer, opts: Options) -> None:
    """After one more."""
    server.order(status(401), status(401))

    with pytest.raises(StorageError, match="answered 401; it does not take the token: check that url and tenant_id"):
        dataverse.ping(opts)
    assert server.sign_ins() == 2


def test_a_child_process_has_a_token_of_its_own(
    server: DataverseServer, opts: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The locks of its parent may be held for ever."""
    dataverse.ping(opts)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    dataverse.ping(opts)

    assert server.sign_ins() == 2


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"access_token": 7}', b'{"token_endpoint": 7}'])
@pytest.mark.parametrize("before", [0, 1])
def test_a_sign_in_that_is_none_is_an_error(server: DataverseServer, opts: Options, body: bytes, before: int) -> None:
    """Also with 200."""
    server.order_sign_in(*[ok] * before, with_body(body))

    with pytest.raises(StorageError, match=r"; check (authority|tenant_id)"):
        dataverse.ping(opts)


# Trouble on the way


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(lost, id="lost"),
        *(pytest.param(status(code, retry_after="3"), id=str(code)) for code in (429, 502, 503, 504)),
    ],
)
def test_what_may_go_better_is_tried_again(server: DataverseServer, opts: Options, order: Order) -> None:
    """Also a write whose answer was lost."""
    server.order(order)
    write(opts)

    assert len(server.rows) == 1
    assert server.calls() == ["PATCH"] * 2


@pytest.mark.parametrize("before", [0, 1])
def test_a_sign_in_is_tried_again(server: DataverseServer, opts: Options, waits: list[float], before: int) -> None:
    """And gets the time that it asks for."""
    server.order_sign_in(*[ok] * before, status(429, retry_after="3"), cut)
    dataverse.ping(opts)

    assert waits[0] == 3.0
    assert len(waits) == 2


def test_limits_of_dataverse_are_obeyed(server: DataverseServer, opts: Options, waits: list[float]) -> None:
    """Up to ten seconds; what asks for more has failed."""
    server.order(status(429, retry_after="7"), status(429, retry_after="300"))

    with pytest.raises(StorageError, match=r"answered 429 \(2 attempts\); it asks to wait 300 s"):
        dataverse.ping(opts)
    assert waits == [7.0]


def test_a_slow_server_is_given_up(server: DataverseServer, opts: Options) -> None:
    """Each attempt has the time that the options give."""
    dataverse.ping(opts)
    server.order(*[slow(30)] * 2)

    with pytest.raises(StorageError, match=r"GET https://.*: no answer in time .* \(2 attempts\)"):
        dataverse.ping(Options(**server.options(timeout=0.3, transient_retries=1)))


@pytest.mark.parametrize("body", [b"[]", b"<html>", b'{"value": 7}', b'{"value": [7]}'])
def test_an_answer_that_is_none_is_an_error(server: DataverseServer, opts: Options, body: bytes) -> None:
    """It is not taken for an empty table."""
    server.order(with_body(body))

    with pytest.raises(StorageError, match=r"the answer .*; is url that of an environment\?"):
        dataverse.delete("one", opts)


def test_a_library_that_is_missing_is_named(opts: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """With how to get it."""
    monkeypatch.setitem(sys.modules, "msal", None)

    with pytest.raises(StorageError, match=r"\(pip install 'conserver\[dataverse\]'\)"):
        dataverse.ping(opts)
