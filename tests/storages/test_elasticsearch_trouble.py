"""storages.elasticsearch: what the server (a fake) refuses, and what goes wrong on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conserver import StorageError, Vcon, outbound
from conserver.testing import two_party_call
from storages import elasticsearch
from storages.elasticsearch import Options
from tests.fakes.elasticsearch_index import Index
from tests.fakes.elasticsearch_server import ElasticsearchServer
from tests.fakes.orders import cut, status, with_body
from tests.storages.elasticsearch_saves import DOCUMENTS, UUID, at, before, delete, get, options, save


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every test begins with closed breakers; waits are noted and take no time."""
    noted: list[float] = []
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", noted.append)
    return noted


@pytest.fixture
def server() -> Iterator[ElasticsearchServer]:
    with ElasticsearchServer() as server:
        yield server


# What an index refuses


def summary(body: Any, **more: Any) -> Vcon:
    """A call whose analysis has this body."""
    vcon = two_party_call(UUID)
    vcon.analysis[:] = [{"type": "summary", "vendor": "example", "body": body, "encoding": "json", **more}]
    return vcon


@pytest.mark.parametrize("made_by", ["us", "the existing conserver"])
@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ("words", {"topic": "kettle"}, '{"topic": "kettle"}'),
        ({"topic": "kettle"}, "words", "words"),
        ({"topic": "kettle"}, {"topic": {"a": 1}}, '{"topic": {"a": 1}}'),
        ({"topic": {"a": 1}}, [{"topic": "ž\ud800"}], '[{"topic": "ž?"}]'),
    ],
    ids=["object", "text", "deeper", "flatter"],
)
def test_a_body_that_does_not_fit_is_stored_as_text(
    server: ElasticsearchServer, made_by: str, first: Any, second: Any, text: str
) -> None:
    """The vCon is saved; the other members of the part are found as ever."""
    if made_by == "us":
        save(server, summary(first))
    else:
        server.put("vcon_analysis_summary", "other_0", {"vcon_id": "other", "body": first})
    vcon = summary(second)
    vcon.document["uuid"] = UUID[:-1] + "2"
    save(server, vcon)

    stored = server.stored(str(vcon.uuid))["vcon_analysis_summary/0"]
    assert (stored.get("body"), stored["body_text"], stored["vendor"]) == (None, [text], "example")
    assert get(server, vcon.uuid) == vcon.document


@pytest.mark.parametrize(
    "odd",
    [
        {"": 1},
        {" ": 1},
        {".a": 1},
        {"_id": "x"},
        {"vendor": {"name": "example"}},
        {"x": "1", "x.y": 2},
        {"count": 10**1200},
        {f"m{number}": number for number in range(1200)},
    ],
    ids=["empty", "blank", "dot", "metadata", "object", "dots", "digits", "many"],
)
def test_a_part_that_does_not_fit_is_stored_as_text(server: ElasticsearchServer, odd: dict[str, Any]) -> None:
    """What the server has no place for keeps no vCon away."""
    server.put("vcon_analysis_summary", "other_0", {"vcon_id": "other", "vendor": "example"})
    vcon = summary("words", **odd)
    save(server, vcon)

    stored = server.stored(UUID)["vcon_analysis_summary/0"]
    assert stored.keys() == {"vcon_id", "part_text"}
    assert "words" in stored["part_text"][0]
    assert get(server, UUID) == vcon.document


def test_a_date_that_is_none_keeps_no_vcon_away(server: ElasticsearchServer) -> None:
    """Neither where the index was made by us, nor where it has learned that there are dates."""
    server.put("vcon_dialog", "other_0", {"vcon_id": "other", "started_at": "2026-01-02T03:04:05Z"})
    vcon = two_party_call(UUID)
    vcon.dialog[0]["start"] = "yesterday"
    save(server, vcon)

    stored = server.stored(UUID)
    assert stored["vcon_parties_agent/0"]["started_at"] == "yesterday"
    assert "yesterday" in stored["vcon_dialog/0"]["part_text"][0]


def test_a_number_then_a_text_then_a_truth_fit_a_new_index(server: ElasticsearchServer) -> None:
    """The first value of a member does not decide what later ones may be."""
    uuids = [UUID[:-1] + end for end in "12345"]
    for uuid, value in zip(uuids, [1, "two", True, 2**70, 0.5], strict=True):
        vcon = summary({"score": value, "when": "2026-01-02" if value == 1 else "later", "ok": value})
        vcon.document["uuid"] = uuid
        save(server, vcon)

    assert all("body" in server.stored(uuid)["vcon_analysis_summary/0"] for uuid in uuids)


def test_what_an_index_takes_in_no_form_is_told(server: ElasticsearchServer) -> None:
    """With the index and the kind of the error; its words, which quote the part, are left out."""
    server.indexes["vcon_analysis_summary"] = Index({"mappings": {"dynamic": "strict", "properties": {}}})

    with pytest.raises(StorageError, match="index vcon_analysis_summary refused a part: 400 strict_dynamic") as told:
        save(server, summary("A very private matter"))
    assert "private" not in f"{told.value!r} {told.value.__cause__!r}"


def test_an_index_that_is_blocked_is_told_with_the_cure(server: ElasticsearchServer) -> None:
    """By a save, and for the index of whole vCons also by ping."""
    vcon = two_party_call(UUID)
    save(server, vcon)
    server.indexes["vcon_dialog"].blocked = True

    with pytest.raises(StorageError, match=r"vcon_dialog refused a part: 403 cluster_block_exception; the key or the"):
        save(server, vcon)
    server.indexes[DOCUMENTS].blocked = True
    with pytest.raises(StorageError, match=r"answered 403: .*cluster_block_exception.*; the key or the"):
        elasticsearch.ping(Options(**options(server)))


# Indexes


def test_indexes_are_made_where_the_server_makes_none(server: ElasticsearchServer) -> None:
    """By requests of their own, as some clusters want it; the next save needs none of these."""
    with ElasticsearchServer(auto_create=False) as strict:
        save(strict, two_party_call(UUID))
        made = strict.calls()
        strict.requests.clear()
        save(strict, two_party_call(UUID))

        assert len([call for call in made if call.startswith("PUT /vcon_") and "/_" not in call]) == 5
        assert strict.calls() == ["POST /_mget", f"PUT /{DOCUMENTS}/_doc/{UUID}", "POST /_bulk"]


@pytest.mark.parametrize("auto_create", [True, False])
def test_indexes_that_were_dropped_are_made_again(auto_create: bool) -> None:
    """Before a save, and in the middle of one; until then nothing is found."""
    with ElasticsearchServer(auto_create=auto_create) as server:
        vcon = two_party_call(UUID)
        save(server, vcon)
        server.indexes.clear()
        assert (get(server, UUID), delete(server, UUID)) == (None, False)
        save(server, vcon)
        server.order(*before("/_bulk", lambda: server.indexes.pop("vcon_dialog")))
        save(server, vcon)

        assert get(server, UUID) == vcon.document
        assert "vcon_dialog/0" in server.stored(UUID)


def test_an_index_that_somebody_else_makes_first_is_taken(server: ElasticsearchServer) -> None:
    """Of two processes that make one at the same moment, one gets an error."""
    server.order(*before("/vcon_dialog", lambda: server.indexes.update(vcon_dialog=Index())))
    save(server, two_party_call(UUID))

    assert "vcon_dialog/0" in server.stored(UUID)


def test_a_cluster_without_room_for_an_index_is_told() -> None:
    """With its own words, and the index."""
    with ElasticsearchServer(most_indexes=2) as server:
        save(server, Vcon({"uuid": UUID, "parties": [{}]}))
        with pytest.raises(StorageError, match=r"maximum normal shards open.*; index vcon_dialog cannot be made"):
            save(server, Vcon({"uuid": UUID, "dialog": [{}]}))


# What goes wrong on the way


@pytest.mark.parametrize("code", [429, 502, 503, 504])
@pytest.mark.parametrize("path", ["/_mget", "/vcon_dialog", "/vcon_parties,", f"/{DOCUMENTS}/_create", "/_bulk"])
def test_what_may_go_better_is_tried_again(
    server: ElasticsearchServer, waits: list[float], path: str, code: int
) -> None:
    """Wherever in a save it is met, and as late as the server asks for."""
    [refused] = at(path, status(code, retry_after="3"))[:1]
    times = [1]

    def once(exchange: Any, work: Callable[[], Any]) -> None:
        if times and exchange.request.path.startswith(path):
            times.clear()
            return refused(exchange, work)
        return work().send(exchange)

    server.order(*[once] * 12)
    vcon = two_party_call(UUID)
    save(server, vcon)

    assert get(server, UUID) == vcon.document
    assert (times, waits) == ([], [3.0])


def test_an_index_that_cannot_be_asked_at_the_moment_is_asked_again(server: ElasticsearchServer) -> None:
    """The server tells it of the one document, with a status of success."""
    vcon = two_party_call(UUID)
    save(server, vcon)
    away = {"docs": [{"_index": DOCUMENTS, "_id": UUID, "error": {"type": "no_shard_available_action_exception"}}]}
    server.order(with_body(json.dumps(away).encode()))

    assert get(server, UUID) == vcon.document
    server.order(*[with_body(json.dumps(away).encode())] * 4)
    with pytest.raises(StorageError, match=r"index vcon_documents: no_shard_available_action_exception \(4 attempts\)"):
        get(server, UUID)


def test_parts_that_a_busy_server_refuses_are_sent_again(server: ElasticsearchServer, waits: list[float]) -> None:
    """Those alone, and after a while."""
    server.busy_items = 2
    save(server, two_party_call(UUID))

    bulks = [request for request in server.requests if request.path == "/_bulk"]
    assert [request.body.count(b'"external_gte"') for request in bulks] == [4, 2]
    assert (len(waits), len(server.stored(UUID))) == (1, 4)


def test_a_server_that_stays_busy_is_told(server: ElasticsearchServer) -> None:
    """The save is not counted as done."""
    server.busy_items = 1000

    with pytest.raises(StorageError, match=r"busy, and has not taken all parts \(4 attempts\); the server has more"):
        save(server, two_party_call(UUID))


def test_many_parts_go_in_several_requests(server: ElasticsearchServer) -> None:
    """None of them is larger than hosts of servers allow, but for a part that is larger itself."""
    vcon = two_party_call(UUID)
    vcon.dialog[:] = [
        vcon.dialog[0] | {"body": "QUJD" * size, "encoding": "base64url"}
        for size in (1_000_000, 1_000_000, 2_000_000, 1)
    ]
    save(server, vcon)

    sizes = [len(request.body) for request in server.requests if request.path == "/_bulk"]
    assert [round(size / 1_000_000) for size in sizes] == [4, 4, 8, 0]
    assert get(server, UUID) == vcon.document


def test_a_vcon_that_is_too_large_for_the_server_is_told() -> None:
    """With the setting."""
    with ElasticsearchServer(most_bytes=10_000) as server:
        vcon = two_party_call(UUID)
        vcon.dialog[0]["body"] = "QUJD" * 5000
        with pytest.raises(StorageError, match=r"answered 413; let the server take more \(http.max_content_length\)"):
            save(server, vcon)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"docs": [], "items": []}',
        b'{"docs": [1], "items": [{"index": {}}], "hits": 1}',
        json.dumps({"docs": [{"_id": "another", "found": True, "_source": {}}], "items": [{}]}).encode(),
        json.dumps({"docs": [{"_id": UUID, "found": True, "_source": {}}]}).encode(),
        json.dumps({"docs": [{}]}).encode(),
        json.dumps({"docs": [{"_id": "another", "found": False}]}).encode(),
    ],
    ids=["html", "list", "empty", "none", "numbers", "another", "no version", "nothing", "another is not there"],
)
@pytest.mark.parametrize("call", [get, delete], ids=["get", "delete"])
def test_an_answer_of_something_else_is_an_error(
    server: ElasticsearchServer, body: bytes, call: Callable[..., Any]
) -> None:
    """It is not taken for a vCon, nor for none."""
    save(server, two_party_call(UUID))
    server.order(with_body(body))

    with pytest.raises(StorageError, match=r"the answer is (not JSON|none of Elasticsearch or OpenSearch)"):
        call(server, UUID)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        *((path, {"took": 1}) for path in ("/vcon_parties,", f"/{DOCUMENTS}/_create", "/_bulk")),
        *(("/_bulk", {"items": [item] * 4}) for item in ({"index": 1}, {"index": {"status": "201"}}, {})),
    ],
)
def test_an_answer_to_a_save_of_something_else_is_an_error(
    server: ElasticsearchServer, path: str, said: dict[str, Any]
) -> None:
    """The save is not counted as done."""
    server.order(*at(path, with_body(json.dumps(said).encode())))

    with pytest.raises(StorageError, match="the answer is none of Elasticsearch or OpenSearch"):
        save(server, two_party_call(UUID))


@pytest.mark.parametrize("text", [None, [], ["{}"], ["{"], "{}", [1]])
def test_a_document_that_is_no_vcon_is_an_error(server: ElasticsearchServer, text: Any) -> None:
    """Whatever somebody else has put there; the next save writes over it."""
    source = {"generation": "x", "save": 7, "parts": [{"index": "payroll", "positions": [0]}, 1, {}], "text": text}
    elasticsearch.ping(Options(**options(server)))
    server.put(DOCUMENTS, UUID, source)
    server.put("payroll", f"{UUID}_0", {"salary": 1})

    with pytest.raises(StorageError, match=f"document {UUID} of index vcon_documents at .* is no vCon"):
        get(server, UUID)
    save(server, two_party_call(UUID))
    assert f"{UUID}_0" in server.indexes["payroll"].documents


def test_a_delete_whose_answer_is_lost_says_that_there_was_one(server: ElasticsearchServer) -> None:
    """The second time there is none any more."""
    save(server, two_party_call(UUID))
    server.order(*[lambda exchange, work: work().send(exchange)] * 5, cut)

    assert delete(server, UUID) is True
