"""storages.mongo: vCons as documents of MongoDB (a fake that speaks its protocol, in a process of its own)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Int64
from pydantic import ValidationError

from conserver import StorageError, Vcon
from conserver.ambient import Work, working
from conserver.testing import DATA_RULES, STORAGE_RULES, difference, storage_contract, throwaway_store, two_party_call
from storages import mongo
from storages.mongo import Options
from tests.fakes.mongo_server import PASSWORD, MongoServer

Save = Callable[..., Vcon]
UUID = "018f0000-0000-8000-8abc-000000000001"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    with MongoServer(tmp_path_factory.mktemp("mongo")) as server:
        yield server


def options(server: MongoServer, **more: Any) -> dict[str, Any]:
    return {"url": server.url(), "timeout": 5, **more}


@pytest.fixture
def opts(server: MongoServer) -> Options:
    return Options(**options(server))


@pytest.fixture
def save(opts: Options) -> Save:
    """Save a vCon, and return it."""
    store = throwaway_store()

    def saved(vcon: Vcon) -> Vcon:
        store.create(vcon, replace=True)
        with working(Work(store.writer())):
            mongo.save(str(vcon.uuid), opts)
        return vcon

    return saved


@pytest.fixture(scope="module")
def silent() -> Iterator[int]:
    """A port where somebody listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


def call(**members: Any) -> Vcon:
    vcon = two_party_call(UUID)
    vcon.document.update(members)
    return vcon


@pytest.mark.parametrize("rule", STORAGE_RULES)
def test_the_contract_of_storages(server: MongoServer, silent: int, rule: str) -> None:
    """The rules for every storage hold."""
    checked = storage_contract(
        "storages.mongo",
        options(server, timeout=5 if rule in DATA_RULES else 1.5),
        rules=[rule],
        unreachable={"url": server.url(port=1), "timeout": 0.3},
        denied={"url": server.url("wrong-secret")},
        slow={"url": server.url(port=silent), "timeout": 0.3},
        backend=server,
        secrets=[PASSWORD, "very%2Fsecret%40password", "wrong-secret"],
    )

    assert checked == [rule]


def test_the_document_is_that_of_the_existing_conserver(server: MongoServer, save: Save) -> None:
    """The members under the UUID, with dates that one can ask for."""
    vcon = call(created_at="2026-01-02T03:04:05.678901+02:00")
    vcon.dialog[0]["start"] = "2026-01-02T03:04:05Z"
    save(vcon)

    document = server.document(UUID)
    assert (document["_id"], document["uuid"], document["subject"]) == (UUID, UUID, "Broken kettle")
    assert document["created_at"].replace(tzinfo=UTC) == datetime(2026, 1, 2, 1, 4, 5, 678000, UTC)
    assert document["dialog"][0]["start"].replace(tzinfo=UTC) == datetime(2026, 1, 2, 3, 4, 5, 0, UTC)
    assert document["analysis"] == vcon.analysis


def test_what_the_existing_conserver_wrote_is_found(server: MongoServer, opts: Options) -> None:
    """Its dates come back in UTC, and it has no notes of ours."""
    start = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    server.put({"_id": UUID, "uuid": UUID, "created_at": start, "dialog": [{"start": start, "duration": Int64(2**40)}]})

    date = "2026-01-02T03:04:05.678000+00:00"
    expected = {"uuid": UUID, "created_at": date, "dialog": [{"start": date, "duration": 2**40}]}
    assert difference(expected, mongo.get(UUID, opts)) == ""


@pytest.mark.parametrize(
    "members",
    [
        {"created_at": "2026-01-02T03:04:05.123456789Z"},
        {"created_at": "0001-01-01T00:00:00+14:00"},
        {"created_at": None},
        {"dialog": [{"type": "text"}, {"type": "text", "start": "yesterday"}, {"start": ["2026-01-02"]}]},
        {"$schema": "x", "_id": 7, "_exact": [{"at": ["subject"], "json": '"other"'}]},
        {"x": {"a.b": {"$gt": 1}, "": {"": [2**64]}, "nul\0": 1, "\ud800": "\udfff", "created_at": "2026-01-02"}},
        {"x": [2**63, -(2**63), -(2**63) - 1, 10**400, 2**31, 1.0, -0.0, True, 1e308]},
        {"x": "nul\0 and half \ud800"},
    ],
)
def test_every_json_value_comes_back_as_it_was(save: Save, opts: Options, members: dict[str, Any]) -> None:
    """Also what BSON cannot hold."""
    vcon = save(call(**members))

    assert difference(vcon.document, mongo.get(UUID, opts)) == ""


def test_deep_values_come_back(save: Save, opts: Options) -> None:
    """MongoDB holds no more than a hundred levels."""
    deep: Any = ["the end"]
    for _ in range(60):
        deep = {"a": [deep]}
    vcon = save(call(x=deep))

    assert difference(vcon.document, mongo.get(UUID, opts)) == ""


def test_only_what_differs_is_kept_twice(server: MongoServer, save: Save) -> None:
    """Large bodies are not."""
    vcon = call()
    vcon.dialog[0]["body"] = "QUJD" * 1000
    save(vcon)

    assert [note["at"] for note in server.document(UUID)["_exact"]] == [["created_at"], ["dialog", 0, "start"]]


def test_what_somebody_has_changed_since_counts(server: MongoServer, save: Save, opts: Options) -> None:
    """The existing conserver sets the members and leaves our notes; so may others."""
    save(call(created_at="2026-01-02T03:04:05+02:00"))
    document = server.document(UUID)
    document |= {"created_at": datetime(2027, 1, 1, tzinfo=UTC), "dialog": [], "subject": "Mended"}
    server.put(document)
    found = mongo.get(UUID, opts) or {}

    assert (found["created_at"], found["dialog"]) == ("2027-01-01T00:00:00+00:00", [])
    assert (found["subject"], "_exact" in found, "_id" in found) == ("Mended", False, False)


def test_a_member_that_is_gone_is_gone(server: MongoServer, save: Save) -> None:
    """The existing conserver would leave it there."""
    save(call(x_note="first"))
    save(call())

    assert "x_note" not in server.document(UUID)


def test_a_vcon_over_the_limit_is_told(save: Save) -> None:
    """With the limit."""
    vcon = call()
    vcon.dialog[0]["body"] = "x" * 17_000_000

    with pytest.raises(StorageError, match="more than the 16 MB that a document may have"):
        save(vcon)


def test_a_refused_login_says_what_to_check(server: MongoServer) -> None:
    """And shows no password."""
    with pytest.raises(StorageError, match=r"Authentication failed.; check the user and the password in url"):
        mongo.ping(Options(url=server.url("wrong-secret"), timeout=5))


def test_without_a_login_the_right_is_named(server: MongoServer) -> None:
    """The role that it takes."""
    with pytest.raises(StorageError, match="needs a login; the user needs the role readWrite"):
        mongo.get(UUID, Options(url=f"mongodb://127.0.0.1:{server.port}", timeout=5))


def test_a_server_that_is_not_there_is_named_in_short() -> None:
    """Without the description of what the driver thinks of all servers."""
    with pytest.raises(StorageError) as told:
        mongo.get(UUID, Options(url="mongodb://127.0.0.1:1", timeout=0.3))

    assert str(told.value).startswith(
        "cannot read in MongoDB conserver.vcons: ServerSelectionTimeoutError: 127.0.0.1:1:"
    )
    assert "Topology" not in str(told.value)


@pytest.mark.parametrize("url", ["mongodb://me:s3/cret@host", "mongodb://me:s3@cret@host", "mongodb://host:s3cret"])
def test_a_url_that_cannot_be_used_is_told_without_its_password(url: str) -> None:
    """The driver's own words quote parts of it."""
    with pytest.raises(StorageError, match=r"url cannot be used .*; write special characters") as told:
        mongo.ping(Options(url=url, timeout=0.3))

    assert not any(word in f"{told.value!r}" for word in ("cret", "s3"))
    assert told.value.__suppress_context__


def test_what_is_no_url_is_refused_without_its_password() -> None:
    """By the check of the config."""
    with pytest.raises(ValidationError, match="url is no URL of MongoDB: write mongodb://") as told:
        Options(url="http://me:s3cret@host")

    assert "s3cret" not in str(told.value)


def test_the_password_is_not_in_the_options_text(server: MongoServer) -> None:
    """Options that land in a log show no secret."""
    assert "secret" not in repr(Options(**options(server)))
