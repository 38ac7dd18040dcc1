"""storages.scitt: vCons registered in a transparency log (a fake with real cryptography)."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from conserver import StorageError, Vcon, deadline
from conserver.ambient import Work, working
from conserver.components import check, load_storage
from conserver.config import StorageConfig
from conserver.erasure import erase
from conserver.errors import ConfigError
from conserver.testing import (
    ONE_WAY_RULES,
    storage_contract,
    throwaway_store,
    two_party_call,
)
from storages import scitt
from storages.scitt import Options
from tests.fakes.http_server import Exchange, HttpServer, say_nothing
from tests.fakes.orders import cut, ok, slow, status, with_body
from tests.fakes.scrapi_server import ScrapiServer, new_key, other_receipt, receipt_with, receipt_with_proof

PEM = new_key()
KEY = base64.b64encode(PEM).decode()
TELS = ["+12025550143", "+12025550179"]
LOGIN = "conserver:very-secret-password"
Save = Callable[..., Vcon]


class Service(ScrapiServer):
    """The service behind a login; `stop` and `start` make it go away, and come back with its log."""

    down = False
    login = base64.b64encode(LOGIN.encode()).decode()

    @property
    def login_url(self) -> str:
        """Its URL, with who logs in."""
        return self.url.replace("//", f"//{LOGIN}@")

    def stop(self) -> None:
        """Cut every connection instead of answering."""
        self.down = True

    def start(self) -> None:
        """Answer again."""
        self.down = False

    def _respond(self, exchange: Exchange) -> None:
        if self.down:
            return exchange.cut()
        if exchange.request.headers.get("authorization") != f"Basic {self.login}":
            return exchange.answer(401, b"no such login", content_type="text/plain")
        return super()._respond(exchange)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered of other tests."""
    scitt._registered.clear()


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        yield service


def options(service: Service, **more: Any) -> dict[str, Any]:
    return {"scrapi_url": service.login_url, "signing_key_pem": KEY, "poll_every_secs": 0.01, **more}


@pytest.fixture
def save() -> Save:
    """Save a vCon, and return it."""
    store = throwaway_store()

    def saved(service: Service, vcon: Vcon | None = None, **more: Any) -> Vcon:
        vcon = vcon or two_party_call()
        store.create(vcon, replace=True)
        with working(Work(store.writer())):
            scitt.save(str(vcon.uuid), Options(**options(service, **more)))
        assert store.get(str(vcon.uuid)).document == vcon.document
        return vcon

    return saved


def without_numbers() -> Vcon:
    vcon = two_party_call()
    for party in vcon.parties:
        del party["tel"]
    return vcon


@pytest.mark.parametrize("rule", ONE_WAY_RULES)
def test_the_contract_of_storages(service: Service, rule: str) -> None:
    """The rules for every storage hold, but for those about `get`, which there is not."""
    with HttpServer(say_nothing) as silent:
        checked = storage_contract(
            "storages.scitt",
            options(service),
            rules=[rule],
            unreachable={"scrapi_url": "http://127.0.0.1:1"},
            denied={"scrapi_url": service.url.replace("//", "//conserver:wrong-secret@")},
            slow={"scrapi_url": silent.url, "timeout": 0.1},
            backend=service,
            secrets=["very-secret-password", "wrong-secret", KEY, PEM.decode()],
        )

    assert checked == [rule]


def test_each_operation_and_number_gets_a_statement(service: Service, save: Save) -> None:
    """With what the statements of the link say; the vCon stays as it is."""
    vcon = save(service, operations=["vcon_created", "vcon_enhanced"], issuer="us", key_id="k")
    told = [(one["subject"], one["payload"].decode(), one["headers"][-6804]) for one in service.statements]

    assert told == [
        (f"tel:{tel}", f"{vcon.hash}:{operation}:{tel}", {"vcon_operation": operation, "party_tel": tel})
        for operation in ("vcon_created", "vcon_enhanced")
        for tel in TELS
    ]
    assert {(one["issuer"], one["headers"][4]) for one in service.statements} == {("us", b"k")}


def test_by_default_the_operation_is_that_of_the_existing_conserver(service: Service, save: Save) -> None:
    """A vCon that shows no number is its own subject."""
    vcon = save(service, without_numbers())
    [statement] = service.statements

    assert statement["subject"] == f"vcon://{vcon.uuid}"
    assert statement["payload"] == f"{vcon.hash}:vcon_enhanced".encode()


def test_a_sealed_vcon_is_registered_as_itself(service: Service, save: Save) -> None:
    """Nothing has to be written to it."""
    uuid = "018f3c5e-0000-8000-8000-000000000001"
    signed = Vcon({"payload": "e30", "signatures": [{"signature": "x", "header": {"uuid": uuid}}]})
    save(service, signed)

    assert [one["subject"] for one in service.statements] == [f"vcon://{uuid}"]
    assert service.statements[0]["payload"] == f"{signed.hash}:vcon_enhanced".encode()


def test_a_second_save_registers_the_same_bytes(service: Service, save: Save) -> None:
    """A service can tell; an operation that is named twice is registered once."""
    vcon = save(service, without_numbers(), operations=["vcon_created"] * 2)
    save(service, vcon, operations=["vcon_created"])

    assert [post.body for post in service.posts] == [service.posts[0].body] * 2


def test_a_save_that_was_broken_off_goes_on_behind_what_is_registered(service: Service, save: Save) -> None:
    """What no save has the time for is not registered again and again; a log keeps everything."""
    vcon = two_party_call()
    service.order(ok, status(400))
    with pytest.raises(StorageError, match=r"cannot register: POST http://127.0.0.1:\d+: answered 400"):
        save(service, vcon)
    save(service, vcon)
    between = [one["subject"] for one in service.statements]
    save(service, vcon)

    assert between == [f"tel:{tel}" for tel in TELS]
    assert [one["subject"] for one in service.statements] == between * 2


def test_a_statement_whose_receipt_was_wrong_is_registered_again(service: Service, save: Save) -> None:
    """It counts only with its receipt."""
    vcon = without_numbers()
    service.order(with_body(b"no receipt"))
    with pytest.raises(StorageError, match="receipt"):
        save(service, vcon)
    save(service, vcon)

    assert len(service.posts) == 2


def test_what_broken_saves_have_registered_is_not_remembered_for_ever(
    service: Service, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the latest of it."""
    monkeypatch.setattr(scitt, "_MOST_REMEMBERED", 2)
    for _ in range(3):
        service.order(ok, status(400))
        with pytest.raises(StorageError, match="answered 400"):
            save(service)

    assert len(scitt._registered) == 2


# The service


@pytest.mark.parametrize("order", [cut, status(429, retry_after="1"), status(502), status(503), status(504)])
def test_what_may_go_better_is_tried_again(service: Service, save: Save, order: Any) -> None:
    """With the same bytes, since it may have arrived."""
    service.order(order)
    save(service, without_numbers())

    assert [post.body for post in service.posts] == [service.posts[0].body] * 2


def test_a_service_that_registers_later_is_waited_for(service: Service, save: Save) -> None:
    """Until it has; the receipt is checked then."""
    service.later = 3
    save(service, without_numbers())

    assert sum(request.path.startswith("/operations") for request in service.requests) == 4
    assert service.requests[-1].path == "/entries/entry-6"


def test_what_is_not_registered_in_time_is_not_saved(service: Service, save: Save) -> None:
    """No thread waits for ever."""
    service.later = 10**6

    with pytest.raises(StorageError, match=r"cannot register: the statement was not registered within 0\.1 s"):
        save(service, poll_secs=0.1, poll_every_secs=0.03)


def test_what_is_not_registered_when_the_whole_call_ends_is_not_saved(service: Service, save: Save) -> None:
    """However long it may otherwise take."""
    service.later = 10**6

    with deadline.until(time.monotonic() + 0.5), pytest.raises(StorageError, match="the statement was not registered"):
        save(service, poll_secs=60, poll_every_secs=0.03)


def test_a_slow_service_is_given_up(service: Service, save: Save) -> None:
    """Each attempt has the time that the options give."""
    service.order(*[slow(30)] * 4)

    with pytest.raises(StorageError, match=r"cannot register: .* no answer in time .* \(4 attempts\)"):
        save(service, timeout=0.2)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (lambda _: with_body(b"<html>"), "it is not CBOR|not a COSE_Sign1"),
        (other_receipt, "its signature does not fit the statement"),
        (lambda _: receipt_with(signature=bytes(64)), "its signature does not fit"),
        (lambda _: receipt_with(protected=cbor2.dumps({1: -35})), "not ES256"),
        (lambda _: receipt_with_proof(6, 5, []), "too short for the tree"),
    ],
    ids=["html", "of another statement", "signature", "algorithm", "proof"],
)
def test_a_wrong_receipt_fails_the_save(service: Service, save: Save, order: Any, message: str) -> None:
    """The existing conserver takes any."""
    service.order(order(service))

    with pytest.raises(StorageError, match=rf"the receipt of the transparency service is refused: .*({message})"):
        save(service, without_numbers())


def test_a_receipt_by_a_key_that_is_not_published_is_refused(service: Service, save: Save) -> None:
    """Under the name of one that is."""
    service.key = ec.generate_private_key(ec.SECP256R1())

    with pytest.raises(StorageError, match="its signature does not fit"):
        save(service)


def test_nothing_is_registered_where_receipts_cannot_be_checked(service: Service, save: Save) -> None:
    """The keys of the service come first; the ping misses them, too."""
    service.published = []
    with pytest.raises(StorageError, match="publishes no P-256 key, so no receipt can be checked"):
        save(service)
    with pytest.raises(StorageError, match="publishes no P-256 key"):
        scitt.ping(Options(**options(service)))

    assert service.posts == []


def test_a_refusal_is_told_without_what_was_sent(service: Service, save: Save) -> None:
    """Neither the number of a party nor the login."""
    service.order(status(400, f"no {TELS[0]} here"))
    with pytest.raises(StorageError) as told:
        save(service)

    assert str(told.value) == f"cannot register: POST {service.url}: answered 400"
    assert not any(text in repr(told.value.__cause__) for text in (TELS[0], LOGIN))


# The key, and options


def test_a_key_file_that_goes_away_fails_the_save(service: Service, save: Save, tmp_path: Path) -> None:
    """Nothing is sent, and the error says what to do; the ping says it as well."""
    file = tmp_path / "key.pem"
    file.write_bytes(PEM)
    opts = Options(scrapi_url=service.login_url, signing_key_path=str(file))
    scitt.ping(opts)
    asked = len(service.requests)
    file.unlink()
    store = throwaway_store()
    vcon = two_party_call()
    store.create(vcon)

    with pytest.raises(StorageError, match=r"cannot register: signing_key_path .* cannot be read .*: make it readable"):
        scitt.ping(opts)
    with pytest.raises(StorageError, match=r"signing_key_path .* cannot be read"), working(Work(store.writer())):
        scitt.save(str(vcon.uuid), opts)
    assert len(service.requests) == asked


@pytest.mark.parametrize("operations", [[], [""], "vcon_created", [5]])
def test_operations_that_say_nothing_are_refused(service: Service, operations: Any) -> None:
    """A vCon for which nothing is registered would count as saved."""
    with pytest.raises(ValidationError, match="operations"):
        Options(**options(service, operations=operations))


def test_missing_packages_are_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first vCon."""
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)

    with pytest.raises(ConfigError, match=r"statements need packages: .*\(pip install 'conserver\[scitt\]'\)"):
        load_storage(StorageConfig(name="it", module="storages.scitt", options={"signing_key_pem": KEY}))


def test_an_erasure_says_that_the_log_keeps_what_it_has(service: Service) -> None:
    """What was registered can be withdrawn by nobody."""
    store = throwaway_store()
    vcon = two_party_call()
    store.create(vcon)
    storage = load_storage(StorageConfig(name="log", module="storages.scitt", options=options(service)))
    erased = erase(store, [storage], {}, str(vcon.uuid), 10.0)

    assert erased.left["log"].startswith("storages.scitt has no delete(vcon_uuid, opts)")


def test_a_config_of_the_existing_conserver_is_understood(tmp_path: Path) -> None:
    """Beside a storage that can give the vCon back."""
    given = {
        "scrapi_url": "http://scittles:8000",
        "signing_key_pem": "${SCITT_SIGNING_KEY_PEM}",
        "issuer": "conserver",
        "key_id": "conserver-key-1",
        "operations": ["vcon_enhanced"],
    }
    storages = {
        "log": {"module": "storages.scitt", "options": given},
        "files": {"module": "storages.file", "options": {"path": "data"}},
    }
    chain = {"links": [], "storages": ["log", "files"], "ingress_lists": ["in"]}
    (tmp_path / "config.yml").write_text(yaml.safe_dump({"storages": storages, "chains": {"main": chain}}))
    config, findings = check(tmp_path / "config.yml", {"SCITT_SIGNING_KEY_PEM": KEY})

    assert (config is not None, findings) == (True, [])
