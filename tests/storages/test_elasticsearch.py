"""storages.elasticsearch: vCons whole and in parts, in Elasticsearch (a fake)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conserver import StorageError, Vcon
from conserver.testing import STORAGE_RULES, storage_contract, two_party_call
from storages import elasticsearch
from tests.fakes.elasticsearch_server import API_KEY, PASSWORD, ElasticsearchServer
from tests.fakes.http_server import Exchange, HttpServer
from tests.fakes.orders import cut, ok, status
from tests.storages.elasticsearch_saves import DOCUMENTS, UUID, at, before, delete, get, options, save


@pytest.fixture(scope="module")
def running() -> Iterator[ElasticsearchServer]:
    with ElasticsearchServer() as server:
        yield server


@pytest.fixture
def server(running: ElasticsearchServer) -> ElasticsearchServer:
    """The server, empty."""
    running.clear()
    return running


@pytest.fixture(scope="module")
def silent() -> Iterator[HttpServer]:
    """A server that takes connections and says nothing."""

    def say_nothing(exchange: Exchange) -> None:
        exchange.pause(30)
        exchange.cut()

    with HttpServer(say_nothing) as silent:
        yield silent


@pytest.mark.parametrize("rule", STORAGE_RULES)
def test_the_contract_of_storages(server: ElasticsearchServer, silent: HttpServer, rule: str) -> None:
    """The rules for every storage hold."""
    checked = storage_contract(
        "storages.elasticsearch",
        options(server),
        rules=[rule],
        unreachable={"url": "http://127.0.0.1:1"},
        denied={"api_key": "wrong-secret"},
        slow={"url": silent.url, "timeout": 0.1},
        backend=server,
        secrets=[API_KEY, PASSWORD, "wrong-secret"],
    )

    assert checked == [rule]


# The layout


@pytest.mark.parametrize("prefix", ["", "calls_"])
def test_the_layout_is_that_of_the_existing_conserver(server: ElasticsearchServer, prefix: str) -> None:
    """A document for each part, in an index by its role or type, with what belongs to the whole."""
    vcon = two_party_call(UUID)
    vcon.dialog[0]["start"] = "2026-01-02T03:04:05Z"
    vcon.add_party({"name": "Cleo"})
    vcon.add_attachment(purpose="tenant", body='{"id": 385}', encoding="json")
    vcon.add_attachment(purpose="Lawful_Basis", body="x", party=0, dialog=0)
    vcon.attachments.append({"body": "nameless", "encoding": "none"})
    save(server, vcon, index_prefix=prefix)

    common = {"vcon_id": UUID, "started_at": "2026-01-02T03:04:05Z", "tenant_id": 385}
    tenant, basis, nameless = vcon.attachments
    assert server.stored(UUID, prefix) == {
        "vcon_analysis_transcript/0": vcon.analysis[0] | common,
        "vcon_attachments_lawful_basis/1": basis | common,
        "vcon_attachments_tenant/0": tenant | common | {"body": {"id": 385}},
        "vcon_attachments_unknown/2": nameless | common,
        "vcon_dialog/0": vcon.dialog[0] | common,
        "vcon_parties/2": vcon.parties[2] | common,
        "vcon_parties_agent/0": vcon.parties[0] | common,
        "vcon_parties_customer/1": vcon.parties[1] | common,
    }
    assert json.loads("".join(server.indexes[f"{prefix}{DOCUMENTS}"].documents[UUID].source["text"])) == vcon.document


@pytest.mark.parametrize("how", ["option", "environment"])
def test_older_consumers_get_the_older_version(
    server: ElasticsearchServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """In the parts; what comes back is the vCon as it was."""
    if how == "environment":
        monkeypatch.setenv("EGRESS_FORMAT_VERSION", "0.0.1")
    vcon = two_party_call(UUID)
    vcon.add_attachment(purpose="Notes", body={"a": 1})
    save(server, vcon, **{"format_version": "0.0.1"} if how == "option" else {})

    stored = server.stored(UUID)
    notes = stored["vcon_attachments_notes/0"]
    assert stored["vcon_dialog/0"]["mimetype"] == "audio/x-wav"
    assert (notes["type"], notes["body"]) == ("Notes", {"a": 1})
    assert get(server, UUID) == vcon.document


def test_a_vcon_without_dialog_or_encoding_is_saved(server: ElasticsearchServer) -> None:
    """The existing conserver passes over the one, and stops at the other."""
    vcon = Vcon({"uuid": UUID, "parties": [{"name": "Ada"}], "analysis": [{"type": "summary", "url": "https://a/b"}]})
    save(server, vcon)

    assert get(server, UUID) == vcon.document
    assert list(server.stored(UUID)) == ["vcon_analysis_summary/0", "vcon_parties/0"]


@pytest.mark.parametrize("body", ["no object", {"id": {"a": 1}}, {"id": True}, {}, None])
def test_a_tenant_that_has_no_id_is_none(server: ElasticsearchServer, body: Any) -> None:
    """Whatever it is instead."""
    vcon = two_party_call(UUID)
    vcon.attachments.append({"purpose": "tenant", "body": body})
    save(server, vcon)

    assert "tenant_id" not in server.stored(UUID)["vcon_dialog/0"]


@pytest.mark.parametrize(
    ("kind", "index"),
    [
        ("*", "vcon_analysis__"),
        ("../x", "vcon_analysis_.._x"),
        ("a,vcon_dialog", "vcon_analysis_a_vcon_dialog"),
        ("<{now/d}>", "vcon_analysis__{now_d}_"),
        ('Follow Up\n\t\0"?#:|\\', "vcon_analysis_follow_up_________"),
        ("\ud800", "vcon_analysis__"),
        ("ŽLUŤ 馬", "vcon_analysis_žluť_馬"),
        ("", "vcon_analysis_unknown"),
        (7, "vcon_analysis_unknown"),
    ],
    ids=["wildcard", "path", "list", "expression", "forbidden", "half a pair", "letters", "empty", "number"],
)
def test_a_type_names_no_index_but_its_own(server: ElasticsearchServer, kind: Any, index: str) -> None:
    """Types come from outside; what the server forbids in names is replaced."""
    vcon = two_party_call(UUID)
    vcon.analysis[0]["type"] = kind
    save(server, vcon)

    assert {name for name in server.indexes if "analysis" in name} == {index}
    assert get(server, UUID) == vcon.document


def test_types_that_are_too_long_stay_apart(server: ElasticsearchServer) -> None:
    """A name has 255 bytes at the most; what two of them have in common does not make them one."""
    vcon = two_party_call()
    vcon.analysis[:] = [{**vcon.analysis[0], "type": "馬" * 100 + end} for end in "ab"]
    save(server, vcon)

    names = [name for name in server.indexes if "analysis" in name]
    assert len(names) == 2
    assert all(len(name.encode()) <= 255 for name in names)


@pytest.mark.parametrize("form", ["signed", "encrypted"])
def test_a_sealed_vcon_has_no_parts(server: ElasticsearchServer, form: str) -> None:
    """It is kept whole."""
    signed = {"payload": "e30", "signatures": [{"header": {"uuid": UUID}, "protected": "e30", "signature": "x"}]}
    encrypted = {"unprotected": {"uuid": UUID}, "recipients": [], "ciphertext": "x", "iv": "x", "tag": "x"}
    vcon = Vcon(signed if form == "signed" else encrypted)
    save(server, vcon)

    assert get(server, UUID) == vcon.document
    assert list(server.indexes) == [DOCUMENTS]


def test_new_indexes_are_searched_as_those_of_the_existing_conserver(server: ElasticsearchServer) -> None:
    """The same members under the same names, also with `.keyword`; numbers stay numbers."""
    save(server, two_party_call(UUID))
    dialog = server.indexes["vcon_dialog"]
    dialog.refresh()

    expected = {"duration": "double", "type": "text", "start": "date", "started_at": "date", "vcon_id": "keyword"}
    assert expected.items() <= dialog.types.items()
    for name in ("vcon_id", "vcon_id.keyword"):
        assert list(dialog.found({"term": {name: UUID}})) == [f"{UUID}_0"]


# Versions


def test_what_a_later_version_lacks_is_removed(server: ElasticsearchServer) -> None:
    """Parts that are gone, and those that went to another index."""
    vcon = two_party_call(UUID)
    vcon.add_dialog(dict(vcon.dialog[0]))
    save(server, vcon)
    vcon.parties[0]["role"] = "supervisor"
    del vcon.dialog[1:], vcon.analysis[:]
    save(server, vcon)

    kept = ["vcon_dialog/0", "vcon_parties_customer/1", "vcon_parties_supervisor/0"]
    assert list(server.stored(UUID)) == kept
    named = server.indexes[DOCUMENTS].documents[UUID].source["parts"]
    assert [f"{one['index']}/{position}" for one in named for position in one["positions"]] == kept


def test_what_the_existing_conserver_wrote_is_replaced(server: ElasticsearchServer) -> None:
    """Also in indexes in which the vCon has no part any more; a vCon with a similar UUID keeps its own."""
    other = UUID[:-1] + "2"
    for uuid in (UUID, other):
        for index, position in (("vcon_parties_clerk", 0), ("vcon_dialog", 0), ("vcon_dialog", 7)):
            server.put(index, f"{uuid}_{position}", {"vcon_id": uuid, "started_at": "2025-01-01T00:00:00Z"})
    save(server, two_party_call(UUID))

    parts = ["vcon_analysis_transcript/0", "vcon_dialog/0", "vcon_parties_agent/0", "vcon_parties_customer/1"]
    assert list(server.stored(UUID)) == parts
    assert list(server.stored(other)) == ["vcon_dialog/0", "vcon_dialog/7", "vcon_parties_clerk/0"]


@pytest.mark.parametrize("busy", [0, 1])
def test_an_index_may_go_under_another_name(server: ElasticsearchServer, busy: int) -> None:
    """A part that a search finds under the real name is not removed as an older one, not even by a late deletion."""
    server.put("vcon_dialog-000001", f"{UUID}_0", {"vcon_id": UUID})
    server.aliases["vcon_dialog"] = "vcon_dialog-000001"
    server.busy_items = busy
    save(server, two_party_call(UUID))

    assert server.stored(UUID)["vcon_dialog-000001/0"]["type"] == "recording"


@pytest.mark.parametrize("path", ["/_mget", "/vcon_documents/_doc", "/_bulk", "/vcon_documents/_update"])
@pytest.mark.parametrize("then", ["save", "delete"])
def test_a_save_that_broke_off_leaves_nothing_for_ever(server: ElasticsearchServer, path: str, then: str) -> None:
    """Wherever a crash meets it: the next save of the vCon, or a delete, finds all that is there."""
    vcon = two_party_call(UUID)
    vcon.add_dialog(dict(vcon.dialog[0]))
    save(server, vcon)
    vcon.parties[0]["role"] = "supervisor"
    del vcon.dialog[1:]
    server.order(*at(path, status(500)))
    with pytest.raises(StorageError, match="answered 500"):
        save(server, vcon)
    server._orders.clear()
    vcon.parties[0]["role"] = "manager"
    if then == "save":
        save(server, vcon)
    else:
        delete(server, UUID)

    parts = ["vcon_analysis_transcript/0", "vcon_dialog/0", "vcon_parties_customer/1", "vcon_parties_manager/0"]
    assert list(server.stored(UUID)) == (parts if then == "save" else [])
    assert get(server, UUID) == (vcon.document if then == "save" else None)


@pytest.mark.parametrize("number", range(7))
def test_an_answer_that_is_lost_changes_nothing(server: ElasticsearchServer, number: int) -> None:
    """What was done already is done again, or known as our own."""
    vcon = two_party_call(UUID)
    save(server, vcon)
    vcon.parties[0]["role"] = "supervisor"
    server.requests.clear()
    server.order(*[ok] * number, cut)
    save(server, vcon)

    assert get(server, UUID) == vcon.document
    assert [name for name in server.stored(UUID) if "agent" in name or "supervisor" in name] == [
        "vcon_parties_supervisor/0"
    ]


def test_the_parts_of_saves_that_meet_are_of_one_version(server: ElasticsearchServer) -> None:
    """Of the one that is left whole, whichever that is."""
    versions = []
    for number in range(8):
        vcon = two_party_call(UUID)
        vcon.document["subject"] = f"{number}"
        vcon.parties[0]["role"] = f"role{number}"
        vcon.dialog[:] = [vcon.dialog[0] | {"duration": number}] * (number + 1)
        versions.append(vcon)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda vcon: save(server, vcon), versions))

    number = int(get(server, UUID)["subject"])
    stored = server.stored(UUID)
    assert [name for name in stored if "role" in name] == [f"vcon_parties_role{number}/0"]
    assert [part["duration"] for name, part in stored.items() if "dialog" in name] == [number] * (number + 1)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("when", ["before the document", "before the parts"])
def test_of_a_save_that_was_overtaken_nothing_is_left(server: ElasticsearchServer, when: str, is_first: bool) -> None:
    """Where its parts come too late they are refused; where all of it does, it is the newer one."""
    early, late = two_party_call(UUID), two_party_call(UUID)
    early.parties[0]["role"] = "early"
    early.add_dialog(dict(early.dialog[0]))
    late.parties[0]["role"] = "late"
    if not is_first:
        save(server, two_party_call(UUID))
    path = "/_bulk" if when == "before the parts" else f"/{DOCUMENTS}/{'_create' if is_first else '_doc'}"
    server.order(*before(path, lambda: save(server, late)))
    save(server, early)

    left = late if path == "/_bulk" else early
    assert get(server, UUID) == left.document
    roles = {f"vcon_parties_{party['role']}/{position}" for position, party in enumerate(left.parties)}
    dialogs = {f"vcon_dialog/{position}" for position in range(len(left.dialog))}
    assert server.stored(UUID).keys() == {"vcon_analysis_transcript/0", *roles, *dialogs}


@pytest.mark.parametrize("secs", [0, 3600])
def test_a_save_that_met_a_delete_leaves_nothing(
    server: ElasticsearchServer, monkeypatch: pytest.MonkeyPatch, secs: int
) -> None:
    """Its parts come after the delete that they are older than, also if its clock was ahead."""
    clocks = iter([time.time_ns() // 1000 + secs * 1_000_000, time.time_ns() // 1000])
    monkeypatch.setattr(elasticsearch, "_now", lambda: next(clocks))
    server.order(*before("/_bulk", lambda: delete(server, UUID)))
    save(server, two_party_call(UUID))

    assert get(server, UUID) is None
    assert server.stored(UUID) == {}


def test_a_clock_that_was_ahead_holds_up_nothing(server: ElasticsearchServer) -> None:
    """A part that was written or deleted with a version of a later time is written over."""
    later = time.time_ns() // 1000 + 3_600_000_000
    save(server, two_party_call())
    server.indexes["vcon_dialog"].write(f"{UUID}_0", {"vcon_id": UUID}, version=later, version_type="external_gte")
    server.indexes["vcon_parties_agent"].remove(f"{UUID}_0", version=later, version_type="external_gte")
    vcon = two_party_call(UUID)
    save(server, vcon)

    stored = server.stored(UUID)
    assert stored["vcon_dialog/0"]["url"] == vcon.dialog[0]["url"]
    assert stored["vcon_parties_agent/0"]["name"] == "Ada Moss"


def test_a_clock_that_goes_back_keeps_nothing_alive(
    server: ElasticsearchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only an earlier version had goes all the same, with a save as with a delete."""
    vcon = two_party_call(UUID)
    save(server, vcon)
    monkeypatch.setattr(elasticsearch, "_now", lambda: 1)
    vcon.parties[0]["role"] = "clerk"
    save(server, vcon)
    left = server.stored(UUID).keys() & {"vcon_parties_agent/0", "vcon_parties_clerk/0"}

    assert left == {"vcon_parties_clerk/0"}
    assert delete(server, UUID) is True
    assert server.stored(UUID) == {}


# Deletes


def test_a_delete_takes_what_anybody_wrote(server: ElasticsearchServer) -> None:
    """Also a moment ago, when a search does not see it yet; other vCons stay."""
    other = two_party_call(UUID[:-1] + "2")
    save(server, other)
    server.put("vcon_parties_clerk", f"{UUID}_0", {"vcon_id": UUID})
    server.put("vcon_parties_clerk", f"{other.uuid}_5", {"vcon_id": other.uuid})
    server.indexes["vcon_parties_clerk"]._seen.clear()

    assert delete(server, UUID) is True
    assert delete(server, UUID) is False
    assert server.stored(UUID) == {}
    assert server.stored(str(other.uuid)).keys() >= {"vcon_parties_clerk/5", "vcon_dialog/0"}


def test_a_delete_that_meets_a_save_goes_on_until_it_is_alone(server: ElasticsearchServer) -> None:
    """What was saved in the middle of it goes, too."""
    vcon = two_party_call(UUID)
    save(server, vcon)
    server.order(*before("/vcon_documents/_doc", lambda: save(server, vcon)))

    assert delete(server, UUID) is True
    assert (get(server, UUID), server.stored(UUID)) == (None, {})


def test_a_delete_goes_on_where_somebody_else_writes_a_part_meanwhile(server: ElasticsearchServer) -> None:
    """As the existing conserver, which writes no document; the search has seen the part as it was before."""
    server.put("vcon_dialog", f"{UUID}_0", {"vcon_id": UUID})
    skipped = json.dumps({"deleted": 0, "version_conflicts": 1, "timed_out": False, "failures": []}).encode()
    server.order(ok, ok, lambda exchange, _: exchange.answer(200, skipped, content_type="application/json"))

    assert delete(server, UUID) is True
    assert server.stored(UUID) == {}


def test_a_delete_makes_no_index(server: ElasticsearchServer) -> None:
    """Where somebody has dropped one, as the server would."""
    save(server, two_party_call(UUID))
    del server.indexes["vcon_dialog"]

    assert delete(server, UUID) is True
    assert "vcon_dialog" not in server.indexes


def test_a_delete_of_the_existing_conserver_takes_all_of_the_vcon(server: ElasticsearchServer) -> None:
    """And only that one: in its own indexes it takes along all whose UUID has a part in common."""
    other = two_party_call(UUID[:-1] + "2")
    for vcon in (two_party_call(UUID), other):
        save(server, vcon)

    assert server.delete_as_before(UUID) == 5
    assert (get(server, UUID), server.stored(UUID)) == (None, {})
    assert get(server, other.uuid) == other.document
