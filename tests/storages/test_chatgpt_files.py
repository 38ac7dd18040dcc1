"""storages.chatgpt_files: vCons in a vector store of OpenAI (a fake)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from conserver import StorageError, Vcon
from conserver.ambient import Work, working
from conserver.testing import (
    ONE_WAY_RULES,
    storage_contract,
    throwaway_store,
    two_party_call,
)
from storages import chatgpt_files
from storages.chatgpt_files import Options, service
from tests.fakes.http_server import Exchange, HttpServer, say_nothing
from tests.fakes.openai_files_server import KEY, ORGANIZATION, PROJECT, OpenAIFilesServer
from tests.fakes.orders import Answer, cut, ok, status, with_body

Save = Callable[..., Vcon]
WRONG = "sk-proj-wrong-secret-key-9fKe"
#: With the ends of the keys, which OpenAI repeats.
SECRETS = (KEY, WRONG, KEY[:10], WRONG[:10], KEY[-4:], WRONG[-4:])
#: The requests of a first save.
FIRST = ["POST STORE/search", "GET /files", "POST /files", "POST STORE/files", "GET STORE/files/FILE"]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for the service take no time either."""
    monkeypatch.setattr(chatgpt_files, "_FIRST_PAUSE_SECS", 0.001)
    monkeypatch.setattr(chatgpt_files, "_TICK_SECS", 0.001)


@pytest.fixture(scope="module")
def same_server() -> Iterator[OpenAIFilesServer]:
    with OpenAIFilesServer() as server:
        yield server


@pytest.fixture
def server(same_server: OpenAIFilesServer) -> OpenAIFilesServer:
    """A server with nothing in it."""
    same_server.forget()
    return same_server


def options(server: OpenAIFilesServer, **more: Any) -> dict[str, Any]:
    keys = {"organization_key": ORGANIZATION, "project_key": PROJECT, "api_key": KEY}
    return {**keys, "vector_store_id": "vs_calls", "base_url": server.base_url, **more}


def name_of(vcon: Vcon) -> str:
    return f"{vcon.uuid}.vcon.json"


@pytest.fixture
def save(server: OpenAIFilesServer) -> Save:
    """Save a vCon, and return it."""
    store = throwaway_store()

    def saved(vcon: Vcon | None = None, **more: Any) -> Vcon:
        vcon = vcon or two_party_call()
        store.create(vcon, replace=True)
        with working(Work(store.writer())):
            chatgpt_files.save(str(vcon.uuid), Options(**options(server, **more)))
        return vcon

    return saved


@pytest.mark.parametrize("rule", ONE_WAY_RULES)
def test_the_contract_of_storages(server: OpenAIFilesServer, rule: str) -> None:
    """The rules for every storage hold, but for those about `get`, which there is not."""
    with HttpServer(say_nothing) as silent:
        checked = storage_contract(
            "storages.chatgpt_files",
            options(server),
            rules=[rule],
            unreachable={"base_url": "http://127.0.0.1:1/v1"},
            denied={"api_key": WRONG},
            slow={"base_url": silent.url, "timeout": 0.2},
            backend=server,
            secrets=SECRETS,
        )

    assert checked == [rule]


# What a save does


def test_a_vcon_is_a_file_in_the_vector_store(server: OpenAIFilesServer, save: Save) -> None:
    """Its very bytes, under its UUID, with the attributes by which it is found."""
    vcon = save()

    [file] = server.files.values()
    [entry] = server.stores["vs_calls"].entries.values()
    assert (file.name, file.purpose, file.content) == (name_of(vcon), "assistants", vcon.to_bytes())
    assert entry["attributes"] == {
        "vcon_uuid": vcon.uuid,
        "sha256": hashlib.sha256(vcon.to_bytes()).hexdigest(),
        "file_id": file.id,
        "uploaded_at": file.created_at,
    }
    assert server.calls() == [*FIRST, "POST STORE/search", "POST STORE/search", "GET /files"]


UUID = "018f0000-0000-8000-8abc-000000000001"
ODD: dict[str, dict[str, Any]] = {
    "odd text": {"uuid": UUID, "subject": '\0 \ud800 馬 \r\n--; filename="'},
    "signed": {"payload": "e30", "signatures": [{"header": {"uuid": UUID}, "protected": "e30", "signature": "x"}]},
    "encrypted": {"unprotected": {"uuid": UUID}, "recipients": [{}], "iv": "x", "ciphertext": "x", "tag": "x"},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_every_vcon_is_kept_as_it_is(server: OpenAIFilesServer, save: Save, odd: dict[str, Any]) -> None:
    """Nothing in it ends the part of the upload that it is in; in a sealed one, the search finds little."""
    vcon = save(Vcon(odd))

    assert server.texts(UUID) == [vcon.to_bytes()]


def test_the_purpose_is_an_option(server: OpenAIFilesServer, save: Save) -> None:
    """For accounts without assistants."""
    vcon = save(purpose="user_data")
    vcon.add_tag("said", "twice")
    save(vcon, purpose="user_data")

    assert [one.purpose for one in server.files.values()] == ["user_data"]


def test_the_same_vcon_again_changes_nothing(server: OpenAIFilesServer, save: Save) -> None:
    """Nothing is uploaded, nothing deleted."""
    vcon = save()
    before = len(server.requests)
    save(vcon)

    assert [call for call in server.calls()[before:] if call == "POST /files" or "DELETE" in call] == []


def test_a_new_version_takes_the_place_of_the_old_one(server: OpenAIFilesServer, save: Save) -> None:
    """Which is deleted last, when the new one is taken in."""
    vcon = save()
    vcon.document["subject"] = "Boiling again"
    save(vcon)

    assert server.texts(str(vcon.uuid)) == [vcon.to_bytes()]
    assert len(server.files) == len(server.stores["vs_calls"].entries) == 1
    assert server.calls()[-2:] == ["DELETE /files/FILE", "DELETE STORE/files/FILE"]


def test_an_old_version_is_found_however_many_files_there_are(
    server: OpenAIFilesServer, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the search, a page at a time; no save lists the whole account."""
    monkeypatch.setattr(chatgpt_files, "_NEWEST", 2)
    vcon = two_party_call()
    for number in range(3):
        text = f"version {number}".encode()
        old = server.put(name_of(vcon), text, store="vs_calls")
        entry = server.stores["vs_calls"].entries[old]
        entry["attributes"] = {"vcon_uuid": vcon.uuid, "sha256": "x", "file_id": old, "uploaded_at": 1 + number}
    for number in range(10):
        server.put(f"other-{number}.pdf", b"x")
    server.pieces = 60
    save(vcon)

    lists = [parse_qs(urlsplit(one.path).query) for one in server.requests if one.path.startswith("/v1/files?")]
    assert server.texts(str(vcon.uuid)) == [vcon.to_bytes()]
    assert lists == [{"limit": ["2"], "order": ["desc"], "purpose": ["assistants"]}] * 2


def test_what_another_program_uploaded_lately_is_replaced(server: OpenAIFilesServer, save: Save) -> None:
    """As the existing conserver: under the same name, in the same vector store, without attributes."""
    vcon = two_party_call()
    server.put(name_of(vcon), b"null", store="vs_calls")
    save(vcon)

    assert [one.content for one in server.files.values()] == [vcon.to_bytes()]


def test_a_save_leaves_alone_what_is_not_its_own(server: OpenAIFilesServer, save: Save) -> None:
    """Copies in other vector stores, other files with the same attribute, other vCons."""
    vcon = two_party_call()
    others = [
        server.put(name_of(vcon), b"{}", store="vs_other", vcon_uuid=vcon.uuid),
        server.put(name_of(vcon), b"{}"),
        server.put("notes.txt", b"x", store="vs_calls", vcon_uuid=vcon.uuid),
        server.put(name_of(two_party_call()), b"{}", store="vs_calls"),
    ]
    save(vcon)

    assert set(others) < set(server.files)


def test_a_search_that_ignores_its_conditions_harms_nothing(server: OpenAIFilesServer, save: Save) -> None:
    """As that of a service which is like OpenAI's, but not in all."""
    other = save()
    vcon = two_party_call()
    entry = next(iter(server.stores["vs_calls"].entries.values()))
    server.stale = [{"file_id": entry["id"], "filename": name_of(other), "attributes": entry["attributes"]}]
    found = json.dumps({"data": server.stale}).encode()
    server.order(with_body(found), *[ok] * 4, with_body(found))
    save(vcon)

    assert server.texts(str(other.uuid)) == [other.to_bytes()]


def test_what_was_deleted_is_uploaded_again_though_it_is_still_found(server: OpenAIFilesServer, save: Save) -> None:
    """The search takes a while to forget."""
    vcon = save()
    [entry] = server.stores["vs_calls"].entries.values()
    server.stale = [{"file_id": entry["id"], "filename": name_of(vcon), "attributes": entry["attributes"]}]
    opts = Options(**options(server))
    deleted = chatgpt_files.delete(str(vcon.uuid), opts), chatgpt_files.delete(str(vcon.uuid), opts)
    save(vcon)

    assert deleted == (True, False)
    assert server.texts(str(vcon.uuid)) == [vcon.to_bytes()]


@pytest.mark.parametrize("half", ["file", "entry"])
def test_what_is_only_half_there_is_uploaded_again(server: OpenAIFilesServer, save: Save, half: str) -> None:
    """The file without its entry in the vector store, which the search still finds, or the entry without the file."""
    vcon = save()
    [entry] = server.stores["vs_calls"].entries.values()
    if half == "file":
        server.stale = [{"file_id": entry["id"], "filename": name_of(vcon), "attributes": entry["attributes"]}]
        del server.stores["vs_calls"].entries[entry["id"]]
    else:
        del server.files[entry["id"]]
    save(vcon)

    assert server.texts(str(vcon.uuid)) == [vcon.to_bytes()]


def test_a_wrong_vector_store_is_told_before_anything_is_uploaded(server: OpenAIFilesServer, save: Save) -> None:
    """So that nothing is left behind."""
    with pytest.raises(StorageError, match=r"cannot save: POST http://.*: answered 404: .*'vs_none' not found"):
        save(vector_store_id="vs_none")

    assert server.files == {}


# Saves that meet, and saves that break off


def overtake(server: OpenAIFilesServer, vcon: Vcon) -> Callable[[Exchange, Callable[[], Answer]], None]:
    """Do what a later save does: put its file there, and delete the older ones."""

    def order(exchange: Exchange, work: Callable[[], Answer]) -> None:
        for file in [one for one in server.files.values() if one.name == name_of(vcon)]:
            del server.files[file.id]
            server.stores["vs_calls"].entries.pop(file.id, None)
        server.put(name_of(vcon), b"newer", store="vs_calls")
        work().send(exchange)

    return order


@pytest.mark.parametrize("requests", [3, 4, 5])
def test_a_later_save_that_comes_in_between_stays(server: OpenAIFilesServer, save: Save, requests: int) -> None:
    """Before the file is in the vector store, while it is taken in, and after."""
    vcon = two_party_call()
    server.order(*[ok] * requests, overtake(server, vcon))
    save(vcon)

    assert [one.content for one in server.files.values()] == [b"newer"]


def test_a_file_that_comes_late_goes(server: OpenAIFilesServer, save: Save) -> None:
    """The later save has not seen it in the vector store, and so could not delete it."""
    vcon = two_party_call()

    def order(exchange: Exchange, work: Callable[[], Answer]) -> None:
        server.put(name_of(vcon), b"newer", store="vs_calls")
        work().send(exchange)

    server.order(ok, ok, ok, order)
    save(vcon)

    assert [one.content for one in server.files.values()] == [b"newer"]


@pytest.mark.parametrize("newer", ["refused", "gone"])
def test_a_later_file_that_is_not_there_takes_no_place(server: OpenAIFilesServer, save: Save, newer: str) -> None:
    """One that the vector store has refused, or that the search still finds when it is deleted."""
    vcon = two_party_call()

    def order(exchange: Exchange, work: Callable[[], Answer]) -> None:
        late = server.put(name_of(vcon), b"newer", store="vs_calls")
        attributes = {"vcon_uuid": vcon.uuid, "sha256": "x", "file_id": late, "uploaded_at": 2_000_000_000}
        server.stale = [{"file_id": late, "filename": name_of(vcon), "attributes": attributes}]
        if newer == "gone":
            del server.files[late], server.stores["vs_calls"].entries[late]
        else:
            server.stores["vs_calls"].entries[late]["status"] = "failed"
        work().send(exchange)

    server.order(ok, ok, ok, order)
    save(vcon)

    assert server.texts(str(vcon.uuid)) == [vcon.to_bytes()]


def test_saves_of_one_vcon_that_meet_leave_one_version(server: OpenAIFilesServer, save: Save) -> None:
    """Also where OpenAI says that they are of the same second."""
    server.uploads_a_second = 4
    versions = []
    for number in range(12):
        vcon = two_party_call("0190c0de-1234-8567-8000-00000000abcd")
        vcon.document["subject"] = f"version {number}"
        versions.append(vcon)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(save, versions))

    assert len(server.files) == len(server.texts(str(versions[0].uuid))) == 1


def test_two_versions_of_one_second_are_in_order(
    server: OpenAIFilesServer, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one is uploaded until OpenAI says that it is the later one, each time after a second."""
    waits: list[float] = []
    clock = SimpleNamespace(sleep=waits.append, monotonic=time.monotonic)
    monkeypatch.setattr(chatgpt_files, "time", clock)
    monkeypatch.setattr(chatgpt_files, "_TICK_SECS", 1.0)
    server.uploads_a_second = 3
    vcon = two_party_call()
    kept = []
    for number in range(6):
        vcon.document["subject"] = f"version {number}"
        save(vcon)
        kept.append(server.texts(str(vcon.uuid)) == [vcon.to_bytes()])

    assert kept == [True] * 6
    assert waits.count(1.0) == server.calls().count("POST /files") - 6 > 0


def test_a_clock_that_stands_still_is_told(server: OpenAIFilesServer, save: Save) -> None:
    """The version that is there stays."""
    vcon = save()
    server.put("x", b"x")
    server.uploads_a_second = 1_000_000
    vcon.add_tag("said", "twice")

    with pytest.raises(StorageError, match=r"a new file gets no later time than file-\w+, which is there; try later"):
        save(vcon)
    assert len(server.texts(str(vcon.uuid))) == 1


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_a_file_that_is_not_taken_in_is_an_error(server: OpenAIFilesServer, save: Save, outcome: str) -> None:
    """With the reason; it is deleted, and the version that was there stays."""
    vcon = save()
    before = vcon.to_bytes()
    server.outcome = outcome
    vcon.add_tag("said", "twice")

    reason = ": invalid_file The file has too many tokens." if outcome == "failed" else ""
    with pytest.raises(StorageError, match=rf"vector store vs_calls: file file-\w+ is {outcome}{reason}$"):
        save(vcon)
    assert [one.content for one in server.files.values()] == [before]


def test_a_file_that_cannot_be_attached_is_deleted(server: OpenAIFilesServer, save: Save) -> None:
    """And the reason told."""
    with pytest.raises(StorageError, match=r"File purpose 'batch' is not supported for vector stores"):
        save(purpose="batch")

    assert server.files == {}


def test_a_file_that_takes_too_long_is_an_error_and_found_later(server: OpenAIFilesServer, save: Save) -> None:
    """The save that is repeated waits for the same file, and deletes the older one."""
    vcon = save()
    vcon.add_tag("said", "twice")
    server.polls = 1_000_000
    with pytest.raises(StorageError, match=r"file-\w+ is not taken in after 0.05 s; try later \(processing_secs\)"):
        save(vcon, processing_secs=0.05)
    left = len(server.files)
    server.polls = 1
    save(vcon)

    assert left == 2
    assert [one.content for one in server.files.values()] == [vcon.to_bytes()]
    assert server.calls().count("POST /files") == 2


def test_a_file_that_is_refused_late_is_an_error_also_for_the_next_save(server: OpenAIFilesServer, save: Save) -> None:
    """It waits for what becomes of the file that it finds."""
    vcon = two_party_call()
    server.polls = 1_000_000
    with pytest.raises(StorageError, match=r"is not taken in after 0\.05 s"):
        save(vcon, processing_secs=0.05)
    server.polls, server.outcome = 2, "failed"

    with pytest.raises(StorageError, match=r"is failed: invalid_file"):
        save(vcon)


def test_a_vector_store_that_takes_its_time_is_asked_less_and_less(
    server: OpenAIFilesServer, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question counts for the limits of the account."""
    waits: list[float] = []
    monkeypatch.setattr(chatgpt_files, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    server.polls = 6
    save()

    assert waits == [0.001 * 2**number for number in range(6)]


@pytest.mark.parametrize("before", range(6))
def test_an_answer_that_is_lost_is_asked_for_again(server: OpenAIFilesServer, save: Save, before: int) -> None:
    """Also that of an upload: the file is not twice in the vector store."""
    server.order(*[ok] * before, cut)
    vcon = save()

    assert server.texts(str(vcon.uuid)) == [vcon.to_bytes()]


@pytest.mark.parametrize("answered", range(8))
def test_a_save_that_broke_off_is_made_good_by_the_next(server: OpenAIFilesServer, save: Save, answered: int) -> None:
    """Wherever that was: at any time one whole version is there, and then the new one alone."""
    vcon = save()
    vcon.add_tag("said", "twice")
    server.order(*[ok] * answered, *[status(503)] * 30)
    with pytest.raises(StorageError, match="answered 503"):
        save(vcon)
    server._orders.clear()
    between = server.texts(str(vcon.uuid))
    save(vcon)

    assert between
    assert server.texts(str(vcon.uuid)) == [vcon.to_bytes()]


# Deleting


def test_a_delete_finds_every_file_of_the_vcon(
    server: OpenAIFilesServer, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are in the account, whatever their purpose, and in a vector store or not."""
    monkeypatch.setattr(service, "_LARGEST_PAGE", 3)
    vcon, other = save(), save()
    server.put(name_of(vcon), b"null", store="vs_calls")
    server.put(name_of(vcon), b"null", purpose="user_data")
    for number in range(9):
        server.put(f"other-{number}.pdf", b"x")
    server.put(name_of(vcon), b"null")
    opts = Options(**options(server))

    assert (chatgpt_files.delete(str(vcon.uuid), opts), chatgpt_files.delete(str(vcon.uuid), opts)) == (True, False)
    assert name_of(vcon) not in {one.name for one in server.files.values()}
    assert len(server.files) == 10
    assert server.texts(str(other.uuid)) == [other.to_bytes()]


def test_a_delete_that_broke_off_is_taken_up_again(server: OpenAIFilesServer, save: Save) -> None:
    """When the file is deleted, but still in the vector store."""
    vcon = save()
    server.detaches = False
    server.order(ok, ok, ok, ok, *[status(503)] * 4)
    opts = Options(**options(server))
    with pytest.raises(StorageError, match=r"cannot delete: DELETE http://.*: answered 503"):
        chatgpt_files.delete(str(vcon.uuid), opts)

    assert (len(server.files), len(server.stores["vs_calls"].entries)) == (0, 1)
    assert chatgpt_files.delete(str(vcon.uuid), opts) is True
    assert server.stores["vs_calls"].entries == {}


def test_a_delete_whose_answer_is_lost_says_that_it_has_deleted(server: OpenAIFilesServer, save: Save) -> None:
    """Though there is nothing any more when it asks again."""
    vcon = save()
    server.order(ok, ok, ok, cut)

    assert chatgpt_files.delete(str(vcon.uuid), Options(**options(server))) is True
    assert server.files == {}


def test_a_name_that_is_no_uuid_is_refused(server: OpenAIFilesServer) -> None:
    """It would stand in a header."""
    with pytest.raises(StorageError, match="is no UUID, so it can be no name of a file"):
        chatgpt_files.delete('x"\r\n', Options(**options(server)))

    assert server.requests == []
