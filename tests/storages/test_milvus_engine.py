"""storages.milvus: rows of a real Milvus Lite; embeddings are those of a fake service."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conserver import StorageError, Vcon, outbound
from conserver.ambient import Work, working
from conserver.telemetry import metrics
from conserver.testing import (
    ONE_WAY_RULES,
    storage_contract,
    throwaway_store,
    two_party_call,
)
from storages import milvus
from storages.milvus import Options
from tests.conftest import missing
from tests.fakes.http_server import HttpServer, say_nothing
from tests.fakes.model_server import ModelServer, status

pytestmark = pytest.mark.long

NAMES = "conserver.storage.milvus"
KEY, WRONG = "sk-very-secret", "root:wrong-s3cret"
UUID = "0190c0de-1234-8567-8000-000000000001"
# As the existing conserver makes it, without the parameters of its index.
OLD_FIELDS = {
    "vcon_uuid": 100,
    "party_id": 100,
    "text": 65535,
    "created_at": 30,
    "updated_at": 30,
    "subject": 255,
    "metadata_title": 255,
    "embedding_model": 50,
    "embedding_version": 20,
}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes its time."""
    monkeypatch.setattr(outbound, "_sleep", time.sleep)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server, or a skip where there is none."""
    try:
        from tests.milvus_server import MilvusServer
    except ModuleNotFoundError as error:
        missing(f"{error}: pip install 'conserver[milvus]' milvus-lite")
    server = MilvusServer(tmp_path_factory.mktemp("milvus"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def service() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def given(engine: Any, service: ModelServer) -> dict[str, Any]:
    """Options for a collection that is not there."""
    name = f"calls_{random.randrange(10**12)}"
    embeddings = {"base_url": service.base_url, "api_key": KEY, "embedding_dim": 8, "retry_secs": 0}
    return engine.options | embeddings | {"collection_name": name, "milvus_timeout": 5}


@pytest.fixture
def gate(engine: Any) -> Iterator[Any]:
    from tests.milvus_server import Gate

    with Gate(engine) as gate:
        yield gate


def through(gate: Any, given: dict[str, Any], **more: Any) -> dict[str, Any]:
    from tests.milvus_server import TOKEN

    return given | {"port": gate.port, "token": TOKEN, **more}


Save = Callable[..., Vcon]


@pytest.fixture
def save() -> Save:
    """Save a vCon, and return it."""
    store = throwaway_store()

    def saved(options: dict[str, Any], vcon: Vcon | None = None) -> Vcon:
        vcon = vcon or two_party_call()
        store.create(vcon, replace=True)
        with working(Work(store.writer())):
            milvus.save(str(vcon.uuid), Options(**options))
        return vcon

    return saved


def calls_of(service: ModelServer, action: Callable[[], object]) -> int:
    """Return how many embeddings an action asks for."""
    before = len(service.calls)
    action()
    return len(service.calls) - before


@pytest.mark.parametrize("rule", ONE_WAY_RULES)
def test_the_contract_of_storages(engine: Any, gate: Any, given: dict[str, Any], rule: str) -> None:
    """The rules for every storage hold, but for those about `get`, which there is not."""
    with HttpServer(say_nothing) as silent:
        checked = storage_contract(
            "storages.milvus",
            given,
            rules=[rule],
            unreachable={"port": 1, "token": WRONG},
            denied={"port": gate.port, "token": WRONG},
            slow={"port": silent.port, "milvus_timeout": 0.5, "token": WRONG},
            backend=engine,
            secrets=[KEY, WRONG, "wrong-s3cret"],
        )

    assert checked == [rule]


def test_the_collection_is_the_one_of_the_existing_conserver(engine: Any, given: dict[str, Any], save: Save) -> None:
    """Its fields with their limits, and its index."""
    vcon = two_party_call(UUID)
    vcon.document["created_at"] = "2026-01-02T03:04:05.678901+00:00"
    vcon.add_analysis(type="summary", dialog=0, vendor="x", body="A kettle is replaced.", encoding="none")
    save(given, vcon)
    with engine.client() as client:
        fields = client.describe_collection(given["collection_name"])["fields"]
        index = client.describe_index(given["collection_name"], "embedding")
    [row] = engine.rows(given["collection_name"])

    limits = {field["name"]: field["params"].get("max_length") for field in fields}
    assert {name: limit for name, limit in limits.items() if limit} == OLD_FIELDS
    assert limits.keys() - OLD_FIELDS.keys() == {"id", "embedding", "has_transcript", "has_summary", "party_count"}
    assert (index["index_type"], index["metric_type"]) == ("IVF_FLAT", "L2")
    assert len(row.pop("embedding")) == 8
    assert row.pop("updated_at").endswith("Z")
    assert row.pop("id") > 0
    assert row == {
        "vcon_uuid": UUID,
        "party_id": "tel:+12025550143",
        "text": words_of(vcon),
        "created_at": "2026-01-02T03:04:05.678Z",
        "subject": "Broken kettle",
        "metadata_title": "",
        "has_transcript": True,
        "has_summary": True,
        "party_count": 2,
        "embedding_model": "text-embedding-3-small",
        "embedding_version": "1.0",
    }


def words_of(vcon: Vcon) -> str:
    text: str = milvus.words.row_of(vcon, "m")["text"]
    return text


def test_what_is_saved_is_found_by_its_meaning(engine: Any, given: dict[str, Any], save: Save) -> None:
    """A search for the embedding of a text finds the vCon that says it."""
    vcon = save(given)
    save(given, changed(two_party_call(), "Quite another thing."))
    vector = milvus.embedding.embed(words_of(vcon), Options(**given), vcon_uuid=UUID)
    with engine.client() as client:
        [hits] = client.search(given["collection_name"], [vector], limit=1, output_fields=["vcon_uuid"], timeout=10)

    assert [hit["entity"]["vcon_uuid"] for hit in hits] == [vcon.uuid]


def changed(vcon: Vcon, summary: str) -> Vcon:
    vcon.analysis[:] = [entry for entry in vcon.analysis if entry.get("type") != "summary"]
    vcon.add_analysis(type="summary", dialog=0, vendor="x", body=summary, encoding="none")
    return vcon


def test_the_same_vcon_again_changes_nothing(
    engine: Any, service: ModelServer, given: dict[str, Any], save: Save
) -> None:
    """Nothing is embedded, nothing written."""
    vcon = save(given)
    before = engine.rows(given["collection_name"])

    assert calls_of(service, lambda: save(given, vcon)) == 0
    assert engine.rows(given["collection_name"]) == before


def test_a_text_that_is_there_is_embedded_again_where_that_is_wanted(
    engine: Any, service: ModelServer, given: dict[str, Any], save: Save
) -> None:
    """With skip_if_exists off, or by another model."""
    vcon = save(given)

    assert calls_of(service, lambda: save(given | {"skip_if_exists": False}, vcon)) == 1
    assert calls_of(service, lambda: save(given | {"embedding_model": "another"}, vcon)) == 1
    assert [row["embedding_model"] for row in engine.rows(given["collection_name"])] == ["another"]


def test_a_new_text_takes_the_place_of_the_old_one(
    engine: Any, service: ModelServer, given: dict[str, Any], save: Save
) -> None:
    """So what links add later is found as well."""
    vcon = save(given)

    assert calls_of(service, lambda: save(given, changed(vcon, "It boils again."))) == 1
    [row] = engine.rows(given["collection_name"])
    assert ("It boils again." in row["text"], row["has_summary"]) == (True, True)


def test_another_subject_needs_no_new_embedding(
    engine: Any, service: ModelServer, given: dict[str, Any], save: Save
) -> None:
    """The row is replaced, with the embedding that it has."""
    vcon = save(given)
    [before] = engine.rows(given["collection_name"])
    vcon.document["subject"] = "Boiling again"

    assert calls_of(service, lambda: save(given, vcon)) == 0
    [row] = engine.rows(given["collection_name"])
    assert (row["subject"], row["embedding"]) == ("Boiling again", before["embedding"])
    assert row["updated_at"] > before["updated_at"]


def old_row(vcon: Vcon, **more: Any) -> dict[str, Any]:
    """A row as the existing conserver writes it."""
    row = milvus.words.row_of(vcon, "text-embedding-3-small") | {"created_at": "", "updated_at": ""}
    return row | {"vcon_uuid": vcon.uuid, "embedding": [0.5] * 8, **more}


@pytest.mark.parametrize(
    ("old", "embedded"),
    [({}, 0), ({"embedding": [0.0] * 8}, 1), ({"text": "older"}, 1), ({"updated_at": "tomorrow"}, 0)],
    ids=["same", "zeros", "other-text", "no-date"],
)
def test_rows_of_the_existing_conserver_are_replaced(
    engine: Any, service: ModelServer, given: dict[str, Any], save: Save, old: dict[str, Any], embedded: int
) -> None:
    """Its embedding of the same text is used again, unless it is the zeros that it stores when it has none."""
    save(given)
    vcon = two_party_call()
    with engine.client() as client:
        client.insert(given["collection_name"], [old_row(vcon, **old), old_row(vcon, **old)], timeout=10)

    assert calls_of(service, lambda: save(given, vcon)) == embedded
    [row] = engine.rows(given["collection_name"], f'vcon_uuid == "{vcon.uuid}"')
    assert (row["text"], row["embedding"] == [0.5] * 8) == (words_of(vcon), not embedded)
    assert row["created_at"].endswith("Z")


def test_a_vcon_that_says_nothing_any_more_has_no_row(
    engine: Any, service: ModelServer, given: dict[str, Any], save: Save
) -> None:
    """Nothing is embedded for it."""
    vcon = save(given)
    silent = Vcon({"vcon": "0.4.0", "uuid": vcon.uuid, "parties": []})

    assert calls_of(service, lambda: save(given, silent)) == 0
    assert engine.rows(given["collection_name"]) == []


def test_without_an_embedding_nothing_is_stored(
    engine: Any, service: ModelServer, given: dict[str, Any], save: Save
) -> None:
    """And what was there stays."""
    vcon = save(given)
    before = engine.rows(given["collection_name"])
    service.order(status(500))
    with pytest.raises(StorageError, match=r"cannot save to collection .*: no embedding: .*answered 500"):
        save(given, changed(vcon, "It boils again."))

    assert engine.rows(given["collection_name"]) == before


def test_a_delete_takes_all_of_one_vcon(engine: Any, given: dict[str, Any], save: Save) -> None:
    """And nothing else."""
    vcon, other = save(given), save(given)
    with engine.client() as client:
        client.insert(given["collection_name"], [old_row(vcon)], timeout=10)
    opts = Options(**given)

    assert (milvus.delete(str(vcon.uuid), opts), milvus.delete(str(vcon.uuid), opts)) == (True, False)
    assert [row["vcon_uuid"] for row in engine.rows(given["collection_name"])] == [other.uuid]


def test_a_collection_that_is_missing_is_told(engine: Any, given: dict[str, Any], save: Save) -> None:
    """Unless it may be made; there is nothing in it to be deleted."""
    given |= {"create_collection_if_missing": False}
    with pytest.raises(StorageError, match="it is not there; make it, or set create_collection_if_missing: true"):
        save(given)

    assert milvus.delete(UUID, Options(**given)) is False


@pytest.mark.parametrize("gone", ["drop_collection", "release_collection"])
def test_a_collection_that_goes_away_is_made_or_loaded_again(
    engine: Any, given: dict[str, Any], save: Save, gone: str
) -> None:
    """By the next save."""
    save(given)
    with engine.client() as client:
        getattr(client, gone)(given["collection_name"], timeout=10)
    vcon = save(given)

    assert vcon.uuid in [row["vcon_uuid"] for row in engine.rows(given["collection_name"])]


def test_saves_of_one_vcon_that_meet_leave_one_row(engine: Any, given: dict[str, Any], save: Save) -> None:
    """A whole one, of any of them."""
    versions = [changed(two_party_call(UUID), f"Version {number}.") for number in range(16)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda vcon: save(given, vcon), versions))
    [row] = engine.rows(given["collection_name"])

    assert row["text"] in map(words_of, versions)


def test_what_was_saved_is_there_after_a_kill(engine: Any, given: dict[str, Any], save: Save) -> None:
    """Though nothing was flushed; and deletions are."""
    vcon = save(given)
    others = [save(given).uuid for _ in range(5)]
    save(given, changed(vcon, "It boils again."))
    engine.stop()
    engine.start()
    rows = engine.rows(given["collection_name"])

    assert sorted(row["vcon_uuid"] for row in rows) == sorted([vcon.uuid, *others])
    assert words_of(vcon) in [row["text"] for row in rows]


def test_only_what_is_written_is_counted(given: dict[str, Any], save: Save) -> None:
    """And how long its parts took is measured."""

    def counted() -> float:
        return metrics.snapshot()["counters"].get((f"{NAMES}.vcons_stored", ()), 0)

    before = counted()
    vcon = save(given)
    save(given, vcon)
    measured = {name for name, _ in metrics.snapshot()["histograms"]}

    assert counted() == before + 1
    assert {f"{NAMES}.embedding_time", f"{NAMES}.text_extraction_time"} <= measured


def test_a_later_save_stays_whatever_the_clocks_say(engine: Any, given: dict[str, Any], save: Save) -> None:
    """The row of a host whose clock is ahead is replaced as well."""
    vcon = save(given)
    ahead = "2999-01-01T00:00:00.000000Z"
    with engine.client() as client:
        client.insert(given["collection_name"], [old_row(vcon, updated_at=ahead, text="ahead")], timeout=10)
    save(given, vcon)
    [row] = engine.rows(given["collection_name"])

    assert (row["text"], row["updated_at"]) == (words_of(vcon), "2999-01-01T00:00:00.000001Z")


def test_what_a_save_left_behind_goes_with_the_next(engine: Any, gate: Any, given: dict[str, Any], save: Save) -> None:
    """One that broke off after its insert: then the new row is there, and the old one still."""
    from tests.milvus_server import grpc, refused

    options = through(gate, given)
    vcon = save(options)
    gate.order("Delete", refused(grpc.StatusCode.PERMISSION_DENIED))
    with pytest.raises(StorageError, match="refused: on order; check token"):
        save(options, changed(vcon, "It boils again."))
    left = [row["text"] for row in engine.rows(given["collection_name"])]
    save(options, vcon)

    assert len(left) == 2
    assert [row["text"] for row in engine.rows(given["collection_name"])] == [words_of(vcon)]


@pytest.mark.parametrize("name", ["Query", "Insert", "Delete"])
@pytest.mark.parametrize("how", ["refused", "lost"])
def test_what_may_go_better_is_tried_again(
    engine: Any, gate: Any, given: dict[str, Any], save: Save, name: str, how: str
) -> None:
    """Also an insert whose answer was lost: it is not there twice."""
    from tests.milvus_server import grpc, lost, refused

    options = through(gate, given)
    vcon = save(options)
    gate.order(name, lost if how == "lost" else refused(grpc.StatusCode.UNAVAILABLE))
    save(options, changed(vcon, "It boils again."))

    assert [row["text"] for row in engine.rows(given["collection_name"])] == [words_of(vcon)]


def test_what_milvus_refuses_is_told_in_its_words(given: dict[str, Any], save: Save) -> None:
    """Without anything of the vCon."""
    save(given)
    with pytest.raises(StorageError, match=r"cannot save to collection calls_\d+ at 127.0.0.1:\d+: .*dim") as told:
        save(given | {"embedding_dim": 7, "base_url": given["base_url"], "model": "seven"}, two_party_call())

    assert "kettle" not in str(told.value)


FORKED = """
import os, sys
from storages.milvus import Options, ping
opts = Options(host="127.0.0.1", port=int(sys.argv[1]), collection_name=sys.argv[2], api_key="x", milvus_timeout=5)
ping(opts)
child = os.fork()
ping(opts)
if not child:
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) - 7)
"""


def test_it_works_after_a_fork(engine: Any, given: dict[str, Any], save: Save) -> None:
    """In the child with a connection of its own, in the parent with the one that it has."""
    save(given)
    words = [sys.executable, "-W", "ignore", "-c", FORKED, str(engine.port), given["collection_name"]]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr.decode()[-2000:]
