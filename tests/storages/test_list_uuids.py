"""`list_uuids` of the storages that have it: what is there, in order, from any place on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conserver import StorageError
from conserver.ambient import Work, working
from conserver.components import load_storage
from conserver.config import StorageConfig
from conserver.testing import LIST_RULES, storage_contract, throwaway_store, two_party_call
from storages import file, mongo, redis_storage
from tests.fakes.mongo_server import MongoServer
from tests.fakes.s3_server import KEY_ID, SECRET, S3Process
from tests.postgresql import postgres_server

#: Two days apart, so that they lie in folders of their own.
FIRST, SECOND = "018f0000-0000-8000-8abc-000000000001", "018f8000-0000-8000-8abc-000000000002"
Saving = Callable[..., Any]


@pytest.fixture(params=["file", "sqlite", "postgres", "redis_storage", "mongo", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, server_url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of a storage, and the options of one that is empty."""
    if request.param == "file":
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
    name, options = storage
    # S3 is asked a thousand times less often; its pages are those of the service.
    uuids = sorted(str(two_party_call().uuid) for _ in range(8 if name == "s3" else 1010))
    saved = save(name, options, *uuids)

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
