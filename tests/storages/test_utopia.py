"""storages.utopia: vCons told to a knowledge base (a fake)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from conserver import StorageError, Vcon
from conserver.ambient import Work, working
from conserver.testing import (
    ONE_WAY_RULES,
    storage_contract,
    throwaway_store,
    two_party_call,
)
from storages import utopia
from storages.utopia import Options, prose
from tests.fakes.http_server import HttpServer, say_nothing
from tests.fakes.orders import cut, status, with_body
from tests.fakes.utopia_server import EMAIL, KB, PASSWORD, UtopiaServer

Save = Callable[..., Vcon]
SECRETS = (PASSWORD, "wrong-secret", "very-secret-token-1")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins without a session."""
    monkeypatch.setattr(utopia, "_tokens", {})


@pytest.fixture
def server() -> Iterator[UtopiaServer]:
    with UtopiaServer() as server:
        yield server


def options(server: UtopiaServer, **more: Any) -> dict[str, Any]:
    return {"base_url": server.base_url, "kb_id": KB, "email": EMAIL, "password": PASSWORD, **more}


@pytest.fixture
def save() -> Save:
    """Save a vCon, and return it."""
    store = throwaway_store()

    def saved(server: UtopiaServer, vcon: Vcon | None = None, **more: Any) -> Vcon:
        vcon = vcon or two_party_call()
        store.create(vcon, replace=True)
        with working(Work(store.writer())):
            utopia.save(str(vcon.uuid), Options(**options(server, **more)))
        return vcon

    return saved


def granted(*purposes: str, expiration: str | None = None) -> Vcon:
    vcon = two_party_call()
    grants = [{"purpose": purpose, "granted": True} for purpose in purposes]
    body = {"lawful_basis": "consent", "purpose_grants": grants, "expiration": expiration}
    vcon.add_attachment(purpose="lawful_basis", body=body)
    return vcon


@pytest.mark.parametrize("rule", ONE_WAY_RULES)
def test_the_contract_of_storages(server: UtopiaServer, rule: str) -> None:
    """The rules for every storage hold, but for those about `get`, which there is not."""
    with HttpServer(say_nothing) as silent:
        checked = storage_contract(
            "storages.utopia",
            options(server),
            rules=[rule],
            unreachable={"base_url": "http://127.0.0.1:1/api/v1"},
            denied={"password": "wrong-secret"},
            slow={"base_url": silent.url, "timeout": 0.2},
            backend=server,
            secrets=SECRETS,
        )

    assert checked == [rule]


def test_the_document_is_what_the_vcon_says(server: UtopiaServer, save: Save) -> None:
    """Under the UUID, with the date in its first line."""
    vcon = two_party_call()
    vcon.document["created_at"] = vcon.dialog[0]["start"] = "2026-01-02T03:04:05Z"
    vcon.document["redacted"] = {"uuid": "018f0000-0000-8000-8abc-000000000001"}
    vcon.parties[0]["mailto"] = "ada@example.com"
    segments = [{"speaker": 0, "text": "Good\nmorning"}, {"text": ""}, {"speaker": "Ben", "text": "Hello"}]
    vcon.add_analysis(type="wtf_transcription", dialog=0, vendor="x", body={"segments": segments})
    vcon.add_analysis(type="summary", dialog=0, vendor="x", body="A kettle is replaced.", encoding="none")
    vcon.add_tag("shop", "Leeds")
    save(server, vcon)

    assert server.texts(str(vcon.uuid)) == [
        f"""2026-01-02

# Conversation {vcon.uuid}

The subject is: Broken kettle

Ada Moss took part as agent (telephone +12025550143, e-mail ada@example.com).
Ben Reyes took part as customer (telephone +12025550179).

On 2026-01-02 at 03:04, there was a recorded call of 42 seconds with Ada Moss and Ben Reyes.

In summary: A kettle is replaced.

On 2026-01-02 at 03:04, this was said:

Good morning, how can I help? -- My kettle does not boil any more. -- I will send you a new one.

On 2026-01-02 at 03:04, this was said:

Speaker 0: Good morning
Speaker Ben: Hello

It is tagged shop:Leeds.

No lawful basis is recorded.

This is from vCon {vcon.uuid}, created at 2026-01-02T03:04:05Z, redacted from vCon 018f0000-0000-8000-8abc-000000000001.
"""
    ]


@pytest.mark.parametrize(
    "nothing", [{}, {"dialog": [{"parties": [[0], 5, True, -1]}], "analysis": [{"type": "summary"}]}]
)
def test_a_vcon_that_says_little_is_told(nothing: dict[str, Any]) -> None:
    """Whatever is missing or odd in it."""
    text = prose.tell(Vcon({"uuid": "018f0000-0000-8000-8abc-000000000001", **nothing}))

    assert text.startswith("# Conversation 018f0000")
    assert ("There was a conversation with party 0 and party 5." in text) == bool(nothing)


def test_the_same_vcon_again_changes_nothing(server: UtopiaServer, save: Save) -> None:
    """Nothing is uploaded, nothing deleted."""
    vcon = save(server)
    save(server, vcon)

    assert server.calls() == ["GET", "POST", "GET"]


@pytest.mark.parametrize("tells_digests", [True, False])
def test_a_new_version_takes_the_place_of_the_old_one(save: Save, tells_digests: bool) -> None:
    """It is uploaded first: a save that fails leaves the old one."""
    with UtopiaServer(tells_digests=tells_digests) as server:
        vcon = save(server)
        vcon.document["subject"] = "Boiling again"
        server.order(*[lambda exchange, work: work().send(exchange)], status(500))
        with pytest.raises(StorageError, match="answered 500"):
            save(server, vcon)
        left = server.texts(str(vcon.uuid))
        save(server, vcon)

        assert ["Broken kettle" in text for text in left] == [True]
        assert ["Boiling again" in text for text in server.texts(str(vcon.uuid))] == [True]


@pytest.mark.parametrize("tells_digests", [True, False])
def test_what_a_save_left_behind_goes_with_the_next(save: Save, tells_digests: bool) -> None:
    """One that broke off after its upload: then the new one is there, and the old one still."""
    with UtopiaServer(tells_digests=tells_digests) as server:
        vcon = save(server)
        server.put(str(vcon.uuid), "an older one")
        server.put("another-vcon", "stays")
        save(server, vcon)

        assert server.texts(str(vcon.uuid)) == [prose.tell(vcon)]
        assert server.texts("another-vcon") == ["stays"]


@pytest.mark.parametrize("order", [cut, status(429, retry_after="1"), status(502), status(503), status(504)])
@pytest.mark.parametrize("before", [0, 1])
def test_what_may_go_better_is_tried_again(server: UtopiaServer, save: Save, order: Any, before: int) -> None:
    """Also an upload whose answer was lost: it is not there twice."""
    server.order(*[lambda exchange, work: work().send(exchange)] * before, order)
    vcon = save(server)

    assert len(server.texts(str(vcon.uuid))) == 1


def test_a_session_is_kept(server: UtopiaServer, save: Save) -> None:
    """One login for all."""
    save(server)
    save(server)

    assert server.logins == 1


def test_a_session_that_has_ended_is_begun_anew(server: UtopiaServer, save: Save) -> None:
    """The save that meets it does not fail."""
    save(server)
    server.tokens.clear()
    vcon = save(server)

    assert (server.logins, len(server.texts(str(vcon.uuid)))) == (2, 1)


def test_a_refused_login_is_told_without_the_password(server: UtopiaServer, save: Save) -> None:
    """With what to check; it is not tried again."""
    with pytest.raises(StorageError, match=r"POST http://.*: answered 401; check email and password") as told:
        save(server, password="wrong-secret")

    assert "wrong-secret" not in f"{told.value!r} {told.value.__cause__!r}"
    assert len(server.requests) == 1


@pytest.mark.parametrize("vcon", [two_party_call(), granted("recording"), granted("analysis", expiration="2020-01-01")])
def test_without_a_grant_nothing_is_told(server: UtopiaServer, save: Save, vcon: Vcon) -> None:
    """Where it is required; and what was told before is deleted."""
    server.put(str(vcon.uuid), "told while it was granted")
    save(server, vcon, require_analysis_grant=True)

    assert server.documents == []


@pytest.mark.parametrize("expiration", [None, "2999-01-01T00:00:00Z", "2999-01-01"])
def test_with_a_grant_it_is_told(server: UtopiaServer, save: Save, expiration: str | None) -> None:
    """As long as it holds."""
    vcon = save(server, granted("recording", "analysis", expiration=expiration), require_analysis_grant=True)

    until = " until 2999-01-01" if expiration else ""
    assert f"The lawful basis is consent; it grants recording, analysis{until}." in server.texts(str(vcon.uuid))[0]


@pytest.mark.parametrize(("when", "grants"), [(2026, True), (2028, False)])
def test_a_grant_ends_when_it_expires(when: int, grants: bool) -> None:
    """By the clock."""
    vcon = granted("analysis", expiration="2027-01-01T00:00:00Z")

    assert prose.grants_analysis(vcon, datetime(when, 1, 1, tzinfo=UTC)) is grants


@pytest.mark.parametrize("expiration", ["tomorrow", 7, "2027"])
def test_an_expiration_that_cannot_be_read_grants_nothing(expiration: Any) -> None:
    """It is not taken for none."""
    assert prose.grants_analysis(granted("analysis", expiration=expiration)) is False


def test_a_delete_takes_all_of_one_vcon(server: UtopiaServer, save: Save) -> None:
    """And nothing else."""
    vcon = save(server)
    server.put(str(vcon.uuid), "an older one")
    server.put("another-vcon", "stays")
    opts = Options(**options(server))

    assert (utopia.delete(str(vcon.uuid), opts), utopia.delete(str(vcon.uuid), opts)) == (True, False)
    assert [one["filename"] for one in server.documents] == ["another-vcon.md"]


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"docs": [{}]}', b"<html>"])
def test_an_answer_that_is_not_utopias_is_an_error(server: UtopiaServer, save: Save, body: bytes) -> None:
    """It is not taken for an empty list."""
    server.order(with_body(body))

    with pytest.raises(StorageError, match=r"the answer (is not JSON|has no list of documents in 'docs')"):
        save(server)


def test_a_signed_vcon_is_refused(server: UtopiaServer, save: Save) -> None:
    """There is nothing to tell."""
    uuid = "018f0000-0000-8000-8abc-000000000001"
    signed = Vcon({"payload": "e30", "signatures": [{"header": {"uuid": uuid}, "protected": "e30", "signature": "x"}]})

    with pytest.raises(StorageError, match="is signed: there is nothing in it that could be told to Utopia"):
        save(server, signed)


@pytest.mark.parametrize("missing", ["kb_id", "email", "password"])
def test_what_it_cannot_do_without_is_asked_for(server: UtopiaServer, missing: str) -> None:
    """Left out, or empty."""
    given = options(server)
    del given[missing]

    with pytest.raises(ValidationError, match=f"{missing}\n  Field required"):
        Options(**given)
    with pytest.raises(ValidationError, match=missing):
        Options(**given, **{missing: ""})
