"""storages.spaceandtime: vCons in a table at Space and Time (a fake)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from conserver import StorageError, Vcon, outbound
from conserver.ambient import Work, working
from conserver.components import check
from conserver.testing import STORAGE_RULES, storage_contract, throwaway_store, two_party_call
from storages import spaceandtime
from storages.spaceandtime import Options
from tests.fakes.http_server import Exchange, HttpServer, say_nothing
from tests.fakes.orders import Answer, cut, ok, slow, status, with_body
from tests.fakes.spaceandtime_server import KEY, READ, TABLE, WRITE, SpaceAndTimeServer

Save = Callable[..., Vcon]
SECRETS = (KEY, WRITE, READ, "wrong-secret")
UUID = "018f0000-0000-8000-8abc-000000000001"
#: More than Space and Time documents: for the rules that need long vCons.
WIDE = 8_000_000
VARIABLES = (
    "SXT_API_KEY",
    "SXT_VCON_TABLENAME",
    "SXT_VCON_TABLE_WRITE_BISCUIT",
    "SXT_VCON_TABLE_WRITE_BISCUI",
)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every test begins with closed breakers and an empty environment; waits are noted and take no time."""
    noted: list[float] = []
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", noted.append)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return noted


@pytest.fixture
def server() -> Iterator[SpaceAndTimeServer]:
    with SpaceAndTimeServer() as server:
        yield server


def options(server: SpaceAndTimeServer, **more: Any) -> dict[str, Any]:
    return {"api_url": server.url, "api_key": KEY, "table_name": TABLE, "write_biscuit": WRITE, **more}


@pytest.fixture
def save() -> Save:
    """Save a vCon, and return it."""
    store = throwaway_store()

    def saved(server: SpaceAndTimeServer, vcon: Vcon | None = None, **more: Any) -> Vcon:
        vcon = vcon or two_party_call()
        store.create(vcon, replace=True)
        with working(Work(store.writer())):
            spaceandtime.save(str(vcon.uuid), Options(**options(server, **more)))
        return vcon

    return saved


def get(server: SpaceAndTimeServer, uuid: str | None, **more: Any) -> dict[str, Any] | None:
    return spaceandtime.get(str(uuid), Options(**options(server, **more)))


@pytest.mark.parametrize("rule", STORAGE_RULES)
def test_the_contract_of_storages(rule: str) -> None:
    """The rules for every storage hold, in a table that is wide enough."""
    with SpaceAndTimeServer(width=WIDE) as server, HttpServer(say_nothing) as silent:
        checked = storage_contract(
            "storages.spaceandtime",
            options(server, max_length=WIDE),
            rules=[rule],
            unreachable={"api_url": "http://127.0.0.1:1"},
            denied={"api_key": "wrong-secret"},
            slow={"api_url": silent.url, "timeout": 0.1},
            backend=server,
            secrets=SECRETS,
        )

    assert checked == [rule]


# The table


def test_a_row_has_the_columns_of_the_existing_conserver(server: SpaceAndTimeServer, save: Save) -> None:
    """And the text of the vCon in one of them."""
    vcon = two_party_call()
    vcon.document.update(created_at="2026-01-02T03:04:05.678+02:00", subject="It's \0 here; -- ?")
    save(server, vcon)

    assert server.rows() == [
        {
            "UUID": vcon.uuid,
            "VCON": vcon.document["vcon"],
            "CREATED_AT": "2026-01-02 01:04:05",
            "SUBJECT": "It's \ufffd here; -- ?",
            "VCON_JSON": vcon.dumps(),
        }
    ]


@pytest.mark.parametrize(
    ("created_at", "column"),
    [("2026-01-02T03:04:05", "2026-01-02 03:04:05"), ("0001-01-01T00:00:00+14:00", None), ("soon", None), (5, None)],
)
def test_a_date_is_in_utc_or_none(server: SpaceAndTimeServer, save: Save, created_at: Any, column: str | None) -> None:
    """One without a zone stays as it is written."""
    vcon = two_party_call()
    vcon.document["created_at"] = created_at
    save(server, vcon)

    assert server.rows()[0]["CREATED_AT"] == column


def test_a_signed_vcon_has_empty_columns(server: SpaceAndTimeServer, save: Save) -> None:
    """Nobody can look into it but for its text."""
    signature = {"header": {"uuid": UUID}, "protected": "e30", "signature": "x"}
    save(server, Vcon({"payload": "e30", "signatures": [signature]}))
    [row] = server.rows()

    assert (row["UUID"], row["VCON"], row["CREATED_AT"], row["SUBJECT"]) == (UUID, "", None, None)


def test_a_row_of_the_existing_conserver_is_read_and_replaced(server: SpaceAndTimeServer, save: Save) -> None:
    """It stays one row."""
    vcon = two_party_call(UUID)
    old = json.dumps({"uuid": UUID, "vcon": "0.0.1", "x": "it's"}, indent=1).replace("'", "''")
    server.run(f"INSERT INTO VCONS VALUES ('{UUID}', '0.0.1', '2024-01-02 03:04:05', 'test', '{old}')")
    before = get(server, UUID)
    save(server, vcon)

    assert before == {"uuid": UUID, "vcon": "0.0.1", "x": "it's"}
    assert [row["VCON_JSON"] for row in server.rows()] == [vcon.dumps()]


@pytest.mark.parametrize("uuid", ["' OR '1' = '1", "'; DELETE FROM VCONS; --", "\\", "\0\ud800"])
def test_no_value_is_taken_for_sql(server: SpaceAndTimeServer, save: Save, uuid: str) -> None:
    """Not in any place."""
    vcon = save(server)
    opts = Options(**options(server))
    other = two_party_call()
    other.document["subject"] = f"', NULL, NULL) {uuid}"
    save(server, other)

    assert (spaceandtime.get(uuid, opts), spaceandtime.delete(uuid, opts)) == (None, False)
    assert [get(server, one.uuid) for one in (vcon, other)] == [vcon.document, other.document]


def test_a_second_save_is_one_update(server: SpaceAndTimeServer, save: Save) -> None:
    """Only the first one needs two statements."""
    save(server, save(server))

    assert server.calls() == ["UPDATE", "INSERT", "UPDATE"]


@pytest.mark.parametrize("length", [65_536, 65_537])
def test_a_vcon_that_is_too_long_is_refused(server: SpaceAndTimeServer, save: Save, length: int) -> None:
    """Before anything is sent, so that nothing is cut off; a character that Java writes as two counts as two."""
    vcon = two_party_call()
    vcon.document["x"] = "🐎"
    vcon.document["x"] += "x" * (length - len(vcon.dumps()) - 1)
    if length <= 65_536:
        assert get(server, save(server, vcon).uuid) == vcon.document
        return

    with pytest.raises(StorageError, match=r"has 65537 characters and VCON_JSON holds 65536: take the recordings out"):
        save(server, vcon)
    assert server.requests == []


def test_a_column_that_is_narrower_than_the_options_say_is_told(save: Save) -> None:
    """With what to look at."""
    with SpaceAndTimeServer(width=100) as server:
        with pytest.raises(StorageError, match=r"answered 400; is the table there, not immutable, with wide en"):
            save(server)

        assert server.rows() == []


# Trouble


@pytest.mark.parametrize("order", [cut, status(429, retry_after="1"), status(502), status(503), status(504)])
@pytest.mark.parametrize("before", [0, 1])
def test_what_may_go_better_is_tried_again(server: SpaceAndTimeServer, save: Save, order: Any, before: int) -> None:
    """Also an UPDATE, or an INSERT, whose answer was lost: there is one row."""
    server.order(*[ok] * before, order)
    vcon = save(server)

    assert get(server, vcon.uuid) == vcon.document
    assert len(server.rows()) == 1


def test_a_service_that_asks_for_time_gets_it(server: SpaceAndTimeServer, save: Save, waits: list[float]) -> None:
    """As long as Retry-After says."""
    server.order(status(429, retry_after="3"))
    save(server)

    assert waits == [3.0]


def test_a_row_that_somebody_else_was_faster_with_is_updated(server: SpaceAndTimeServer, save: Save) -> None:
    """Between our UPDATE and our INSERT."""

    def meanwhile(exchange: Exchange, work: Callable[[], Answer]) -> None:
        answer = work()
        server.run(f"INSERT INTO VCONS (UUID, VCON_JSON) VALUES ('{UUID}', '{{}}')")
        answer.send(exchange)

    server.order(meanwhile)
    vcon = save(server, two_party_call(UUID))

    assert get(server, UUID) == vcon.document
    assert server.calls()[:3] == ["UPDATE", "INSERT", "UPDATE"]


def not_done(exchange: Exchange, work: Callable[[], Answer]) -> None:
    exchange.answer(200, b'[{"UPDATED": 0}]', content_type="application/json")


@pytest.mark.parametrize("body", [b"[]", b'[{"UPDATED": 0}]'])
def test_an_insert_that_does_not_say_whether_is_made_sure_of(
    server: SpaceAndTimeServer, save: Save, body: bytes
) -> None:
    """By an UPDATE."""
    server.order(ok, with_body(body))
    vcon = save(server)

    assert get(server, vcon.uuid) == vcon.document
    assert server.calls()[:3] == ["UPDATE", "INSERT", "UPDATE"]


def test_an_insert_that_was_not_done_is_told(server: SpaceAndTimeServer, save: Save) -> None:
    """Though the service calls it a success."""
    server.order(ok, not_done)

    with pytest.raises(StorageError, match=r"cannot save to table .*: neither UPDATE nor INSERT has changed a row"):
        save(server)


@pytest.mark.parametrize("orders", [[status(500)], [ok, status(500)], [ok, *[status(503)] * 4]])
def test_a_save_that_fails_says_so(server: SpaceAndTimeServer, save: Save, orders: list[Any]) -> None:
    """With the first refusal; and there is no row by halves."""
    server.order(*orders)

    with pytest.raises(StorageError, match=rf"cannot save to table {TABLE}: POST http://127.0.0.1:\d+: answered 50"):
        save(server)
    assert server.rows() == []


def test_a_slow_service_is_given_up(server: SpaceAndTimeServer, save: Save) -> None:
    """Each attempt has the time that the options give."""
    server.order(*[slow(30)] * 4)

    with pytest.raises(StorageError, match=r"no answer in time .* \(4 attempts\)"):
        save(server, timeout=0.2)


def test_errors_tell_nothing_of_the_vcon(server: SpaceAndTimeServer, save: Save) -> None:
    """The service repeats the whole statement; and neither the key nor a biscuit is told."""
    with pytest.raises(StorageError) as told:
        save(server, table_name="CALLS.OTHERS")
    texts = f"{told.value!r} {told.value.__cause__!r}"

    assert str(told.value).startswith("cannot save to table CALLS.OTHERS: POST http://127.0.0.1")
    assert not any(secret in texts for secret in (*SECRETS, "Broken kettle", "+12025550143"))


@pytest.mark.parametrize(
    "body", [b"<html>", b"{}", b"[]", b'["UPDATED"]', b'[{"UPDATED": true}]', b'[{"A": 1, "B": 1}]', b'[{"A": "1"}]']
)
def test_a_save_without_a_count_has_failed(server: SpaceAndTimeServer, save: Save, body: bytes) -> None:
    """It is not taken for saved."""
    server.order(with_body(body))

    with pytest.raises(StorageError, match=r"(is not JSON|is no list of rows|does not say how many rows)"):
        save(server)


@pytest.mark.parametrize(
    "body", [b"<html>", b"{}", b"[5]", b'[{"UUID": "a"}]', b'[{"VCON_JSON": null}]', b'[{"VCON_JSON": "["}]']
)
def test_an_answer_that_is_no_vcon_is_an_error(server: SpaceAndTimeServer, save: Save, body: bytes) -> None:
    """It is not taken for a vCon that is not there."""
    vcon = save(server)
    server.order(with_body(body))

    with pytest.raises(StorageError, match=rf"cannot read from table {TABLE}: "):
        get(server, vcon.uuid)


# Rights


@pytest.mark.parametrize(
    ("biscuits", "sent"),
    [
        ({"read_biscuit": READ}, [WRITE, READ]),
        ({"read_biscuit": WRITE}, [WRITE]),
        ({"write_biscuit": f"{WRITE}\n"}, [WRITE]),
    ],
)
def test_biscuits_go_with_each_statement(
    server: SpaceAndTimeServer, save: Save, biscuits: dict[str, str], sent: list[str]
) -> None:
    """Each of them once."""
    save(server, **biscuits)

    assert [json.loads(request.body)["biscuits"] for request in server.requests] == [sent] * 2


@pytest.mark.parametrize("biscuits", [{"write_biscuit": ""}, {"write_biscuit": READ}])
def test_a_right_that_is_missing_is_found_by_the_ping(server: SpaceAndTimeServer, biscuits: dict[str, str]) -> None:
    """Also where the table may be read."""
    with pytest.raises(
        StorageError, match=r"cannot use table CALLS\.VCONS: .* answered 403; check api_key and the bis"
    ):
        spaceandtime.ping(Options(**options(server, **biscuits)))


@pytest.mark.parametrize("column", ["UUID", "VCON", "CREATED_AT", "SUBJECT", "VCON_JSON"])
def test_a_column_that_is_missing_is_found_by_the_ping(server: SpaceAndTimeServer, column: str) -> None:
    """Whichever it is."""
    server.run(f"ALTER TABLE VCONS RENAME COLUMN {column} TO ANOTHER")

    with pytest.raises(StorageError, match=r"answered 400; is the table there, .* with wide enough columns UUID, VCON"):
        spaceandtime.ping(Options(**options(server)))


def test_without_biscuits_none_are_sent(server: SpaceAndTimeServer) -> None:
    """The gateway may have its own for the key."""
    with pytest.raises(StorageError):
        get(server, UUID, write_biscuit="")

    assert "biscuits" not in json.loads(server.requests[0].body)


# Options


def test_the_environment_of_the_existing_conserver_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With its options as well as those that it documents, and the variable whose name it has misspelt."""
    monkeypatch.setenv("SXT_API_KEY", f"{KEY}\n")
    monkeypatch.setenv("SXT_VCON_TABLENAME", TABLE)
    monkeypatch.setenv("SXT_VCON_TABLE_WRITE_BISCUI", WRITE)
    given = {"name": "spaceandtime", "authenticate": True, "auto_reconnect": True}
    storages = {
        "one": {"module": "storages.spaceandtime"},
        "two": {"module": "storages.spaceandtime", "options": given},
    }
    chain = {"links": [], "storages": ["one", "two"], "ingress_lists": ["in"]}
    (tmp_path / "config.yml").write_text(yaml.safe_dump({"storages": storages, "chains": {"main": chain}}))
    config, findings = check(tmp_path / "config.yml", {})
    opts = Options()

    assert (config is not None, findings) == (True, [])
    assert (opts.api_key.get_secret_value(), opts.table_name) == (KEY, TABLE)
    assert opts.write_biscuit.get_secret_value() == WRITE
    assert opts.api_url == "https://proxy.api.makeinfinite.dev"


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of two variables the one that is spelt right."""
    for name in VARIABLES:
        monkeypatch.setenv(name, name)
    opts = Options(api_key="mine", table_name="MY.OWN")

    assert (opts.api_key.get_secret_value(), opts.table_name) == ("mine", "MY.OWN")
    assert opts.write_biscuit.get_secret_value() == "SXT_VCON_TABLE_WRITE_BISCUIT"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"api_key": ""}, "no key: give api_key, or SXT_API_KEY in the environment"),
        ({"table_name": ""}, "no table: give table_name, or SXT_VCON_TABLENAME in the environment"),
        ({"table_name": "A.B; DROP TABLE A.B"}, "is no name of a table: write it as SCHEMA.TABLE"),
        ({"table_name": "A.B.C"}, "is no name of a table"),
        ({"table_name": "vcons\n"}, "is no name of a table"),
        ({"api_url": "proxy.example"}, "is no URL: write it as https://"),
        ({"max_length": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    """With what to write."""
    with pytest.raises(ValidationError, match=message) as told:
        Options(**{"api_key": "very-secret", "table_name": TABLE, **given})

    assert "very-secret" not in str(told.value)
