"""`list_uuids` of the storages that have it: what is there, in order, from any place on."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conserver import StorageError, outbound_wire
from conserver.ambient import Work, working
from conserver.components import load_storage
from conserver.config import StorageConfig
from conserver.testing import LIST_RULES, storage_contract, throwaway_store, two_party_call
from storages import dataverse, file, mongo, redis_storage, sftp
from storages.dataverse import web_api
from storages.elasticsearch import server as elasticsearch_server
from tests.fakes.dataverse_server import DataverseServer, trust
from tests.fakes.elasticsearch_server import API_KEY, ElasticsearchServer
from tests.fakes.mongo_server import MongoServer
from tests.fakes.orders import with_body
from tests.fakes.s3_server import KEY_ID, SECRET, S3Process
from tests.fakes.sftp_server import SftpServer
from tests.postgresql import postgres_server
from tests.storages.elasticsearch_saves import at

#: Two days apart, so that they lie in folders of their own.
FIRST, SECOND = "018f0000-0000-8000-8abc-000000000001", "018f8000-0000-8000-8abc-000000000002"
Saving = Callable[..., Any]


#: Of those that have to be asked more often for each vCon fewer are saved.
SLOW = ("s3", "sftp", "elasticsearch", "dataverse")


@pytest.fixture
def sftp_server(tmp_path: Path) -> Iterator[SftpServer]:
    with SftpServer(tmp_path / "sftp") as server:
        yield server


@pytest.fixture
def search_server() -> Iterator[ElasticsearchServer]:
    with ElasticsearchServer() as server:
        yield server


@pytest.fixture
def table_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[DataverseServer]:
    """A fake of Dataverse, which is trusted."""
    trusting = trust()
    monkeypatch.setattr(outbound_wire, "_tls", lambda: trusting)
    monkeypatch.setattr(web_api, "_apps", {})
    outbound_wire.close_connections()
    with DataverseServer() as server:
        yield server
    outbound_wire.close_connections()


@pytest.fixture(params=["file", "sqlite", "postgres", "redis_storage", "mongo", *SLOW])
def storage(request: pytest.FixtureRequest, tmp_path: Path, server_url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of a storage, and the options of one that is empty."""
    if request.param == "sftp":
        yield "sftp", request.getfixturevalue("sftp_server").options(path="kept/here")
    elif request.param == "elasticsearch":
        yield "elasticsearch", {"url": request.getfixturevalue("search_server").url, "api_key": API_KEY}
    elif request.param == "dataverse":
        yield "dataverse", request.getfixturevalue("table_server").options()
    elif request.param == "file":
        yield "file", {"path": str(tmp_path), "fsync": False}
    elif request.param == "sqlite":
        yield "sqlite", {"path": str(tmp_path / "vcons.sqlite"), "fsync": False}
    elif request.param == "redis_storage":
        # Signs that mean something to a scan.
        yield "redis_storage", {"redis_url": server_url, "prefix": "kept[1]*\\x"}
    elif request.param == "mongo":
        with MongoServer(tmp_path) as server:
            yield "mongo", {"url": server.url()}
    elif request.param == "postgres":
        with postgres_server() as server:
            yield "postgres", server.options
    else:
        with S3Process() as process:
            login = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET}
            yield "s3", {"aws_bucket": "calls", "endpoint_url": process.url, "s3_path": "a/b", **login}


@pytest.fixture
def save() -> Saving:
    """Save new vCons, and return the storage."""
    store = throwaway_store()

    def saved(name: str, options: dict[str, Any], *uuids: str) -> Any:
        storage = load_storage(StorageConfig(name=name, module=f"storages.{name}", options=options))
        for uuid in uuids:
            store.create(two_party_call(uuid), replace=True)
            with working(Work(store.writer())):
                storage.save(uuid, storage.options)
        return storage

    return saved


def test_the_rules(storage: tuple[str, dict[str, Any]]) -> None:
    """Those about lists hold, beginning with a storage to which nothing was ever saved."""
    name, options = storage
    bound = load_storage(StorageConfig(name=name, module=f"storages.{name}", options=options))
    assert bound.list_uuids is not None
    empty = list(bound.list_uuids(bound.options, ""))
    checked = storage_contract(f"storages.{name}", options, rules=LIST_RULES)

    assert empty == []
    assert checked == list(LIST_RULES)


def test_more_than_a_page(storage: tuple[str, dict[str, Any]], save: Saving, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next page begins where the one before ended."""
    for module in (file, mongo, redis_storage):
        monkeypatch.setattr(module, "_PAGE", 300)
    for module in (sftp, elasticsearch_server, dataverse):
        monkeypatch.setattr(module, "_PAGE", 3)
    name, options = storage
    uuids = sorted(str(two_party_call().uuid) for _ in range(9 if name in SLOW else 1010))
    saved = save(name, options, *reversed(uuids))

    assert list(saved.list_uuids(saved.options, "")) == uuids
    assert list(saved.list_uuids(saved.options, uuids[5])) == uuids[6:]


def test_files_that_are_there_twice_and_files_of_others(tmp_path: Path, save: Saving) -> None:
    """Each vCon comes once, whatever lies beside it."""
    saved = save("file", {"path": str(tmp_path)}, FIRST, SECOND)
    [first] = tmp_path.rglob(f"{FIRST}.json")
    (tmp_path / f"{FIRST}.json.gz").write_bytes(first.read_bytes())
    (tmp_path / "2024").mkdir(exist_ok=True)
    (tmp_path / "2024" / "notes.json").write_text("{}")

    assert list(saved.list_uuids(saved.options, "")) == [FIRST, SECOND]


def test_a_folder_that_cannot_be_looked_into_is_told(
    tmp_path: Path, save: Saving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in it would be left out of a copy."""
    saved = save("file", {"path": str(tmp_path)}, FIRST)
    [first] = tmp_path.rglob(f"{FIRST}.json")
    scandir = os.scandir

    def forbidden(folder: str) -> Any:
        if folder == str(first.parent):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    # By hand: nothing is forbidden to root.
    monkeypatch.setattr(os, "scandir", forbidden)

    with pytest.raises(StorageError, match=r"cannot list .*let the user of the conserver"):
        list(saved.list_uuids(saved.options, ""))


def test_a_path_that_is_no_folder_is_told(tmp_path: Path) -> None:
    """It is not taken for an empty one."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match=r"cannot list .*a part of the path is no folder"):
        list(file.list_uuids(file.Options(path=str(tmp_path / "file"))))


def test_lookup_files_in_other_places_and_files_of_others(sftp_server: SftpServer, save: Saving) -> None:
    """A file that no save would look for is none."""
    saved = save("sftp", sftp_server.options(), FIRST, SECOND)
    lookups = sftp_server.files / ".lookup"
    for other in (f"01/{FIRST}", f"00/.{SECOND}.0123.tmp", "00/notes", f"more/{FIRST}"):
        (lookups / other).parent.mkdir(exist_ok=True)
        (lookups / other).write_text("")
    (lookups / "notes").write_text("")

    assert list(saved.list_uuids(saved.options, "")) == [FIRST, SECOND]


@pytest.mark.parametrize("taken", ["kept", "kept/here", "kept/here/.lookup", "kept/here/.lookup/00"])
def test_an_sftp_path_that_is_no_folder_is_told(sftp_server: SftpServer, save: Saving, taken: str) -> None:
    """The server says that nothing is there, but there can be nothing."""
    (sftp_server.files / taken).parent.mkdir(parents=True, exist_ok=True)
    (sftp_server.files / taken).write_text("")
    saved = save("sftp", sftp_server.options(path="kept/here"))

    with pytest.raises(StorageError, match=f"cannot list sftp://127.0.0.1:.*: {taken} is no folder"):
        list(saved.list_uuids(saved.options, ""))


def test_an_index_that_the_server_has_made_is_listed(search_server: ElasticsearchServer, save: Saving) -> None:
    """In it `vcon_id` is a text; documents of others are left out."""
    others = [("notes", {"text": "x"}), (SECOND, {"vcon_id": FIRST}), ("a", {"vcon_id": "a" * 300})]
    for key, document in others:
        search_server.put("vcon_documents", key, document)
    saved = save("elasticsearch", {"url": search_server.url, "api_key": API_KEY}, FIRST)

    assert list(saved.list_uuids(saved.options, "")) == [FIRST]


def test_an_index_that_was_not_refreshed_is_told(search_server: ElasticsearchServer, save: Saving) -> None:
    """What was saved a moment ago would be left out."""
    saved = save("elasticsearch", {"url": search_server.url, "api_key": API_KEY}, FIRST)
    path = "/vcon_documents/_refresh"
    failed = with_body(json.dumps({"_shards": {"total": 2, "successful": 1, "failed": 1}}).encode())
    search_server.order(*at(path, failed))

    with pytest.raises(StorageError, match="index vcon_documents could not be refreshed"):
        list(saved.list_uuids(saved.options, ""))


@pytest.mark.parametrize(
    "hits", [[{"_id": FIRST}], [{"_id": FIRST, "sort": [1]}], [{"_id": one, "sort": [one]} for one in (SECOND, FIRST)]]
)
def test_hits_that_are_not_sorted_are_told(
    search_server: ElasticsearchServer, save: Saving, hits: list[dict[str, Any]]
) -> None:
    """They are no answer to what was asked."""
    saved = save("elasticsearch", {"url": search_server.url, "api_key": API_KEY}, FIRST)
    search_server.order(*at("/vcon_documents/_search", with_body(json.dumps({"hits": {"hits": hits}}).encode())))

    with pytest.raises(StorageError, match=r"cannot list .*the answer is none of Elasticsearch or OpenSearch"):
        list(saved.list_uuids(saved.options, ""))


def test_rows_of_the_existing_conserver_come_once(
    table_server: DataverseServer, save: Saving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which makes a row with each save; also where they are more than a page, and among rows of others."""
    monkeypatch.setattr(dataverse, "_PAGE", 2)
    for uuid in (*[FIRST] * 5, "it's none", SECOND, SECOND.upper()):
        table_server.put(uuid, "{}")
    table_server.rows["none"] = {"vcon_uuid": None, "modifiedon": ""}
    saved = save("dataverse", table_server.options())

    assert [one.lower() for one in saved.list_uuids(saved.options, "")] == [FIRST, SECOND]
    assert list(saved.list_uuids(saved.options, SECOND.upper())) == []


def test_capitals_that_change_the_order_are_told(table_server: DataverseServer, save: Saving) -> None:
    """Dataverse sorts without regard to them, and the order is that of the text."""
    small, large = f"{FIRST[:-2]}ab", f"{FIRST[:-2]}AC"
    for uuid in (small, large):
        table_server.put(uuid, "{}")
    saved = save("dataverse", table_server.options())

    with pytest.raises(StorageError, match=f"cannot list .*{small} comes before {large}, but not as text"):
        list(saved.list_uuids(saved.options, ""))


def test_a_table_that_begins_anew_is_told(table_server: DataverseServer, save: Saving) -> None:
    """Asked for what comes behind a UUID, it names that one: there would be no end."""
    saved = save("dataverse", table_server.options(), FIRST)
    again = json.dumps({"value": [{"vcon_uuid": FIRST}]}).encode()
    table_server.order(*[with_body(again)] * 2)

    with pytest.raises(StorageError, match=f"the answer begins anew behind '{FIRST}'"):
        list(saved.list_uuids(saved.options, ""))


LISTING = """\
from conserver import vcons

default_options = {"mistake": ""}
held = {}


def save(vcon_uuid, opts):
    held[vcon_uuid] = vcons.get(vcon_uuid).document


def delete(vcon_uuid, opts):
    return held.pop(vcon_uuid, None) is not None if opts["mistake"] != "keeps" else True


def list_uuids(opts, after):
    uuids = sorted(held)
    if opts["mistake"] == "order":
        uuids.reverse()
    if opts["mistake"] == "some":
        uuids = uuids[1:]
    return [uuid for uuid in uuids if uuid > after or opts["mistake"] == "after"]
"""


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("order", "list_uuids must name each vCon once, in the order of the UUIDs as text"),
        ("some", "list_uuids named 4 of 5 vCons that were saved"),
        ("after", "list_uuids must go on behind *after*"),
        ("keeps", "list_uuids named a vCon that was deleted"),
    ],
)
def test_a_mistake_is_told_with_its_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str, told: str
) -> None:
    """The rule finds the storage that breaks it."""
    module = f"listing_{mistake}"
    (tmp_path / f"{module}.py").write_text(LISTING)
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(AssertionError) as raised:
        storage_contract(module, {"mistake": mistake}, rules=LIST_RULES)
    assert str(raised.value) == f"{module}: {LIST_RULES[0]}: {told}"
