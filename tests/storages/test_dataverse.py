"""storages.dataverse: vCons in rows of a Dataverse table (a fake)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from conserver import StorageError, Vcon, outbound_wire
from conserver.ambient import Work, working
from conserver.testing import STORAGE_RULES, storage_contract, throwaway_store, two_party_call
from storages import dataverse
from storages.dataverse import Options, web_api
from tests.fakes.dataverse_server import SECRET, TOKEN, DataverseServer, TlsServer, refused, trust
from tests.fakes.http_server import Exchange, say_nothing
from tests.fakes.orders import Answer, Order, ok, with_body

Save = Callable[..., Vcon]
UUID = "0190c0de-1234-8567-8000-000000000001"
SECRETS = (SECRET, TOKEN, "wrong-secret")
#: A row holds no more than a million characters; its page says so.
RULES = [rule for rule in STORAGE_RULES if rule != "5 MB come back"]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins without tokens, and trusts the server of the tests."""
    trusting = trust()
    monkeypatch.setattr(outbound_wire, "_tls", lambda: trusting)
    monkeypatch.setattr(web_api, "_apps", {})
    outbound_wire.close_connections()
    yield
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


@pytest.fixture
def save() -> Save:
    """Save a vCon, and return it."""
    store = throwaway_store()

    def saved(server: DataverseServer, vcon: Vcon | None = None, **more: Any) -> Vcon:
        vcon = vcon or two_party_call(UUID)
        store.create(vcon, replace=True)
        with working(Work(store.writer())):
            dataverse.save(str(vcon.uuid), Options(**server.options(**more)))
        return vcon

    return saved


def as_before(vcon: Vcon, subject: str) -> str:
    """The JSON of a vCon as the existing conserver writes it."""
    return json.dumps({**vcon.document, "subject": subject})


def after(change: Callable[[], object]) -> Order:
    """Answer as one should, after something else has happened."""

    def changed(exchange: Exchange, work: Callable[[], Answer]) -> None:
        change()
        work().send(exchange)

    return changed


# What every storage must do, and the row


@pytest.mark.parametrize("rule", RULES)
def test_the_contract_of_storages(server: DataverseServer, rule: str) -> None:
    """The rules for every storage hold, but for the one about large vCons."""
    nobody = "https://127.0.0.1:1"
    with TlsServer(say_nothing) as silent:
        checked = storage_contract(
            "storages.dataverse",
            server.options(),
            rules=[rule],
            unreachable={"url": nobody, "authority": nobody},
            denied={"client_secret": "wrong-secret"},
            slow={"url": silent.url, "authority": silent.url, "timeout": 0.2, "transient_retries": 1},
            backend=server,
            secrets=SECRETS,
        )

    assert checked == [rule]


def test_the_row_has_the_columns_of_the_existing_conserver(server: DataverseServer, save: Save) -> None:
    """And the UUID as its primary key."""
    vcon = two_party_call(UUID)
    vcon.document["created_at"] = "2024-05-06T23:30:00.250-07:00"
    save(server, vcon)

    assert list(server.rows) == [UUID]
    row = server.rows[UUID]
    assert json.loads(row["vcon_data"]) == vcon.document
    assert (row["vcon_uuid"], row["vcon_subject"]) == (UUID, "Broken kettle")
    assert row["vcon_created_at"] == "2024-05-07T06:30:00Z"


@pytest.mark.parametrize(
    ("created_at", "kept"),
    [
        ("2024-05-06T07:08:09", "2024-05-06T07:08:09Z"),
        ("2024-05-06", "2024-05-06T00:00:00Z"),
        ("1700-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+05:00", None),
        ("yesterday", None),
        (7, None),
        (None, None),
    ],
)
def test_a_date_that_dataverse_cannot_hold_is_left_out(
    server: DataverseServer, save: Save, created_at: Any, kept: str | None
) -> None:
    """Others are in UTC."""
    vcon = two_party_call(UUID)
    vcon.document["created_at"] = created_at
    save(server, vcon)

    assert server.rows[UUID]["vcon_created_at"] == kept


def test_a_save_is_one_look_and_one_write(server: DataverseServer, save: Save) -> None:
    """And one token serves all."""
    save(server)
    save(server)

    assert server.calls() == ["GET", "PATCH"] * 2
    assert server.sign_ins() == 1


def test_a_uuid_that_is_none_has_a_row_too(server: DataverseServer, opts: Options) -> None:
    """Quotes in it are no part of the question."""
    text = two_party_call(UUID).to_bytes().decode()
    server.put("o'brien' or vcon_uuid ne '", text)

    assert dataverse.get("o'brien' or vcon_uuid ne '", opts) == json.loads(text)
    assert dataverse.get("o'brien", opts) is None
    assert dataverse._row_id("o'brien") == dataverse._row_id("o'brien") != dataverse._row_id("O'Brien")
    assert dataverse._row_id(f"urn:uuid:{UUID}") != UUID == dataverse._row_id(UUID.upper())


# The rows of the existing conserver


def test_the_latest_row_of_the_existing_conserver_counts(server: DataverseServer, opts: Options) -> None:
    """It makes one with each save."""
    vcon = two_party_call(UUID)
    server.put(UUID, as_before(vcon, "first"), "f0000000-0000-4000-8000-000000000001")
    server.put(UUID, as_before(vcon, "second"), "a0000000-0000-4000-8000-000000000001")

    assert dataverse.get(UUID, opts) == {**vcon.document, "subject": "second"}


def test_a_save_leaves_one_row(server: DataverseServer, opts: Options, save: Save) -> None:
    """Of those that the existing conserver has made."""
    vcon = two_party_call(UUID)
    other = server.put("another-vcon", "stays")
    rows = sorted(server.put(UUID, as_before(vcon, "old")) for _ in range(3))
    save(server, vcon)

    assert set(server.rows) == {other, rows[0]}
    assert dataverse.get(UUID, opts) == vcon.document


def test_the_row_of_our_own_is_the_one_that_stays(server: DataverseServer, opts: Options, save: Save) -> None:
    """Others may be writing to it at this moment, and nobody can make a second one."""
    vcon = save(server)
    server.put(UUID, as_before(vcon, "late"), "00000000-0000-4000-8000-000000000001")
    save(server, vcon)

    assert list(server.rows) == [UUID]
    assert dataverse.get(UUID, opts) == vcon.document


def test_a_row_that_somebody_else_deletes_first_is_no_error(server: DataverseServer, save: Save) -> None:
    """Two saves that meet both delete what is left of earlier ones."""
    vcon = two_party_call(UUID)
    kept, other = sorted(server.put(UUID, as_before(vcon, "old")) for _ in range(2))
    server.order(ok, ok, after(lambda: server.rows.pop(other)))
    save(server, vcon)

    assert list(server.rows) == [kept]


def test_a_save_that_breaks_off_is_found_and_finished(server: DataverseServer, opts: Options, save: Save) -> None:
    """The new version is there before the older ones go."""
    vcon = two_party_call(UUID)
    for _ in range(2):
        server.put(UUID, as_before(vcon, "old"))
    server.order(ok, ok, refused(500, "0x80040216", "An unexpected error occurred."))
    with pytest.raises(StorageError, match=r'DELETE https://.*: answered 500 0x80040216: "An unexpected error'):
        save(server, vcon)
    left = len(server.rows), dataverse.get(UUID, opts)
    save(server, vcon)

    assert left == (2, vcon.document)
    assert len(server.rows) == 1


def test_delete_takes_all_rows_of_one_vcon(server: DataverseServer, opts: Options, save: Save) -> None:
    """And nothing else."""
    vcon = save(server)
    server.put(UUID, as_before(vcon, "late"))
    server.put("another-vcon", "stays")

    assert (dataverse.delete(UUID, opts), dataverse.delete(UUID, opts)) == (True, False)
    assert [row["vcon_uuid"] for row in server.rows.values()] == ["another-vcon"]


def test_a_row_that_goes_meanwhile_is_made(server: DataverseServer, save: Save) -> None:
    """Somebody deletes it between our look and our write."""
    server.put(UUID, as_before(two_party_call(UUID), "old"))
    server.order(ok, after(server.rows.clear))
    save(server)

    assert list(server.rows) == [UUID]


def test_a_row_that_comes_meanwhile_is_written(save: Save) -> None:
    """The existing conserver makes it between our look and our write, and the table has a key."""
    with DataverseServer(has_key=True) as server:
        vcon = two_party_call(UUID)
        server.order(ok, after(lambda: server.put(UUID, as_before(vcon, "old"))))
        save(server, vcon)

        [row] = server.rows.values()
        assert json.loads(row["vcon_data"]) == vcon.document


def test_a_row_that_never_stays_is_an_error(server: DataverseServer, save: Save) -> None:
    """After three attempts."""
    server.order(*[ok, refused(412, "0x80040237", "A record with matching key values already exists.")] * 3)

    with pytest.raises(StorageError, match=r"PATCH https://.*: answered 412 0x80040237"):
        save(server)
    assert server.calls() == ["GET", "PATCH"] * 3


@pytest.mark.parametrize("data", ["", None])
def test_a_row_without_json_is_no_vcon(server: DataverseServer, opts: Options, data: str | None) -> None:
    """It is there, but holds none."""
    server.put(UUID, data)

    assert dataverse.get(UUID, opts) is None


@pytest.mark.parametrize("data", ["{", "[]", "{}", "private"])
def test_what_is_no_vcon_is_not_given_out(server: DataverseServer, opts: Options, data: str) -> None:
    """Nor quoted."""
    server.put(UUID, data)

    with pytest.raises(StorageError, match=f"cannot read .*: vcon_data of {UUID} holds no vCon") as told:
        dataverse.get(UUID, opts)
    assert "private" not in str(told.value)


# What does not fit


def test_a_vcon_that_is_too_long_is_refused(server: DataverseServer, save: Save) -> None:
    """Before anything is sent."""
    vcon = two_party_call(UUID)
    vcon.dialog[0].update(body="🐎" * 530_000, encoding="none")

    with pytest.raises(StorageError, match=r"has 10\d{5} characters, and a text column holds at most 1048576; leave"):
        save(server, vcon)
    assert server.requests == []


def test_a_column_that_is_too_short_is_named(save: Save) -> None:
    """New columns of multiline text hold 2000 characters."""
    with DataverseServer(lengths={"vcon_data": 200}) as server, pytest.raises(StorageError) as told:
        save(server)

    assert "PATCH" in str(told.value)
    assert "column vcon_data is too short: let it have up to 1048576 characters" in str(told.value)


@pytest.mark.parametrize(("most", "kept"), [(11, "🐎" * 5), (4000, "🐎" * 90)], ids=["cut", "whole"])
def test_a_subject_that_is_too_long_is_cut(save: Save, most: int, kept: str) -> None:
    """The whole of it is in the JSON."""
    vcon = two_party_call(UUID)
    vcon.document["subject"] = "🐎" * 90
    with DataverseServer(lengths={"vcon_subject": most}) as server:
        save(server, vcon)

        assert server.rows[UUID]["vcon_subject"] == kept
        assert dataverse.get(UUID, Options(**server.options())) == vcon.document


def test_what_the_vcon_says_is_in_no_error(server: DataverseServer, save: Save) -> None:
    """Though Dataverse quotes what it does not like."""
    server.order(ok, refused(400, "0x80048d19", "Cannot convert the literal 'Broken kettle' of 'vcon_subject'."))

    with pytest.raises(StorageError, match=r"answered 400 0x80048d19; check column vcon_subject$") as told:
        save(server)
    assert "kettle" not in f"{told.value!r} {told.value.__cause__!r}"


# Names that are not there, and rights


@pytest.mark.parametrize("option", ["uuid_field", "data_field", "subject_field", "created_at_field"])
def test_ping_finds_a_column_that_is_not_there(server: DataverseServer, option: str) -> None:
    """Each of them."""
    with pytest.raises(StorageError, match=r"cannot read .* property named 'gone_too' .*; check column gone_too"):
        dataverse.ping(Options(**server.options(**{option: "gone_too"})))


def test_a_table_whose_set_has_another_name(save: Save) -> None:
    """The error says what to do, and then it works."""
    with DataverseServer(entity="vcon_storages") as server:
        with pytest.raises(StorageError, match=r"most are in the plural, as vcon_storages; give .* as entity_set_name"):
            save(server)
        calls = server.calls()
        vcon = save(server, entity_set_name="vcon_storages")
        opts = Options(**server.options(entity_name="vcon_storages"))

        assert calls == ["GET"]
        assert dataverse.get(UUID, opts) == vcon.document
        assert dataverse.delete(UUID, opts) is True


def test_an_application_without_rights_is_told_what_to_do(server: DataverseServer, save: Save) -> None:
    """In Dataverse's words, and ours."""
    server.order(refused(403, "0x80072560", "The user is not a member of the organization."))

    with pytest.raises(StorageError, match=r"not a member of the organization.*; make the application an application"):
        save(server)


@pytest.mark.parametrize("row", [{}, {"vcon_storageid": "x"}, {"a": UUID, "b": UUID}, {"a": None}])
def test_a_row_that_does_not_say_which_it_is(server: DataverseServer, save: Save, row: dict[str, Any]) -> None:
    """Nothing is written or deleted then."""
    server.order(with_body(json.dumps({"value": [{"vcon_uuid": UUID, **row}]}).encode()))

    with pytest.raises(StorageError, match="the answer does not say which row it is"):
        save(server)


def test_rows_of_others_are_left_alone(server: DataverseServer, opts: Options) -> None:
    """Also when the answer has more than was asked for."""
    row_id = server.put("another-vcon", "stays")
    more = {"value": [{"vcon_uuid": "another-vcon", "vcon_storageid": row_id}]}
    server.order(with_body(json.dumps(more).encode()))

    assert dataverse.delete(UUID, opts) is False
    assert list(server.rows) == [row_id]


# Options


def test_options_of_the_existing_conserver(server: DataverseServer) -> None:
    """With its defaults, and the version as YAML reads it."""
    opts = Options(**server.options(name="dataverse", api_version=9.2, url=f"{server.url}/"))

    assert (opts.url, opts.api_version) == (server.url, "9.2")
    assert opts.entity_set == "vcon_storage"
    assert opts.columns == ("vcon_uuid", "vcon_data", "vcon_subject", "vcon_created_at")


def test_the_public_cloud_is_the_default() -> None:
    """Where nothing else is said."""
    opts = Options(url="https://org.crm.dynamics.com", tenant_id="t", client_id="c", client_secret=SECRET)

    assert opts.authority == "https://login.microsoftonline.com"
    assert SECRET not in repr(opts)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("url", "http://org.crm.dynamics.com"),
        ("url", "https://me:very~secret~value@org.crm.dynamics.com"),
        ("url", "https://org.crm.dynamics.com/api/data/v9.2"),
        ("authority", "login.microsoftonline.com"),
        ("tenant_id", "a/b"),
        ("entity_name", "a b"),
        ("uuid_field", "a,b"),
        ("client_secret", ""),
    ],
)
def test_options_that_make_no_sense_are_refused(server: DataverseServer, option: str, value: str) -> None:
    """Without a secret in the message."""
    with pytest.raises(ValidationError, match=option) as told:
        Options(**server.options(**{option: value}))

    assert SECRET not in str(told.value)


@pytest.mark.parametrize("missing", ["url", "tenant_id", "client_id", "client_secret"])
def test_what_it_cannot_do_without_is_asked_for(server: DataverseServer, missing: str) -> None:
    """It has no default that could work."""
    given = server.options()
    del given[missing]

    with pytest.raises(ValidationError, match=f"{missing}\n  Field required"):
        Options(**given)
