"""links.scitt: statements about vCons in a transparency log, and receipts that were checked."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from conserver import LinkError, Vcon, VconNotFound, VconSealed, cose, outbound, receipts, telemetry
from conserver.ambient import Work, working
from conserver.components import check, load_link
from conserver.config import LinkConfig
from conserver.errors import ConfigError, OutboundError, OutboundStatus
from conserver.store import VconStore
from conserver.testing import run_link, throwaway_store, try_link, two_party_call
from tests.fakes import scrapi_server
from tests.fakes.http_server import Exchange
from tests.fakes.orders import Answer, Order, changed, cut, ok, slow, status, with_body
from tests.fakes.scrapi_server import ScrapiServer, new_key, other_receipt, receipt_with, receipt_with_proof

PEM = new_key()
KEY = base64.b64encode(PEM).decode()
TELS = ["+12025550143", "+12025550179"]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with closed breakers and empty metrics, and repeats without waiting."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", lambda _: None)
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())


@pytest.fixture
def service() -> Iterator[ScrapiServer]:
    """A transparency service that works."""
    with ScrapiServer() as server:
        yield server


def options(service: ScrapiServer, **more: Any) -> dict[str, Any]:
    return {"scrapi_url": service.url, "signing_key_pem": KEY, "poll_every_secs": 0.01, **more}


def kept(vcon: Vcon) -> list[dict[str, Any]]:
    """The receipts in the vCon, in the order of their analyses."""
    found: list[dict[str, Any]] = []
    for entry in vcon.analysis:
        if entry["type"] == "scitt_receipt":
            body = vcon.decoded_body(entry)
            found += body if isinstance(body, list) else [body]
    return found


def subjects(service: ScrapiServer) -> list[str]:
    return [statement["subject"] for statement in service.statements]


def counters() -> dict[str, float]:
    return {name: value for (name, _), value in telemetry.metrics.snapshot()["counters"].items()}


def without_numbers() -> Vcon:
    vcon = two_party_call()
    for party in vcon.parties:
        del party["tel"]
    return vcon


def test_each_number_gets_a_statement_and_a_receipt(service: ScrapiServer) -> None:
    """The statement is what existing readers of the log expect, header by header."""
    vcon = two_party_call()
    trial = try_link("links.scitt", options(service, vcon_operation="vcon_enhanced"), on=vcon, times=2)
    first = service.statements[0]
    numbers = cose.private_key(PEM).public_key().public_numbers()

    assert trial.result == vcon.uuid
    assert subjects(service) == [f"tel:{tel}" for tel in TELS]
    assert first["payload"] == f"{vcon.hash}:vcon_enhanced:{TELS[0]}".encode()
    assert first["unprotected"] == {}
    assert first["headers"] == {
        1: -7,
        4: b"conserver-key-1",
        13: {
            1: "conserver",
            2: f"tel:{TELS[0]}",
            8: {1: {1: 2, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}},
        },
        -6800: -16,
        -6801: "",
        -6802: "application/vcon+json",
        -6804: {"vcon_operation": "vcon_enhanced", "party_tel": TELS[0]},
    }


def test_the_receipts_are_kept_in_one_analysis(service: ScrapiServer) -> None:
    """With the members that existing readers know, and the hash of the content that makes a second run cheap."""
    before = two_party_call()
    vcon = run_link("links.scitt", options(service), on=before)
    [entry] = [entry for entry in vcon.analysis if entry["type"] == "scitt_receipt"]
    receipt = kept(vcon)[1]
    content = receipt.pop("content_hash")

    assert (entry["vendor"], entry["dialog"], entry["encoding"]) == ("scittles", 0, "json")
    assert [one["subject"] for one in kept(vcon)] == [f"tel:{tel}" for tel in TELS]
    receipts.check(
        base64.b64decode(receipt.pop("cose_receipt")),
        f"{before.hash}:vcon_created:{TELS[1]}".encode(),
        [(None, service.key.public_key())],
    )
    assert receipt == {
        "entry_id": "entry-7",
        "vcon_operation": "vcon_created",
        "subject": f"tel:{TELS[1]}",
        "vcon_hash": before.hash,
        "scrapi_url": service.url,
    }
    assert len(content) == 64


def test_a_vcon_without_numbers_is_its_own_subject(service: ScrapiServer) -> None:
    """One statement, and the analysis holds one object."""
    vcon = without_numbers()
    after = run_link("links.scitt", options(service, issuer="us", key_id="k"), on=vcon, times=2)
    [statement] = service.statements

    assert statement["subject"] == f"vcon://{vcon.uuid}"
    assert statement["payload"] == f"{vcon.hash}:vcon_created".encode()
    assert statement["headers"][-6804] == {"vcon_operation": "vcon_created"}
    assert (statement["issuer"], statement["headers"][4]) == ("us", b"k")
    assert isinstance(after.find_analysis_by_type("scitt_receipt")["body"], dict)


def test_numbers_count_once_and_what_is_none_is_passed_over(service: ScrapiServer) -> None:
    """Two parties on one line are one subject; a tel: URL does not become tel:tel:."""
    vcon = two_party_call()
    vcon.parties[1]["tel"] = TELS[0]
    vcon.add_party({"tel": "tel:+1"})
    vcon.add_party({"tel": None})
    vcon.add_party({"tel": 5})
    run_link("links.scitt", options(service), on=vcon, times=2)

    assert subjects(service) == [f"tel:{TELS[0]}", "tel:+1"]
    assert service.statements[1]["payload"].endswith(b":vcon_created:tel:+1")


def test_a_second_run_registers_nothing(service: ScrapiServer) -> None:
    """It does not even ask; the receipts changed the hash of the vCon, but not its content."""
    vcon = run_link("links.scitt", options(service))
    asked = len(service.requests)
    run_link("links.scitt", options(service), on=vcon)

    assert len(service.requests) == asked


def test_a_changed_vcon_and_another_operation_are_registered(service: ScrapiServer) -> None:
    """Each with the hash of that moment; what was kept before stays."""
    first = run_link("links.scitt", options(service))
    first.add_tag("new", "tag")
    second = run_link("links.scitt", options(service), on=first, times=2)
    third = run_link("links.scitt", options(service, vcon_operation="vcon_enhanced"), on=second, times=2)
    hashes = [receipt["vcon_hash"] for receipt in kept(third)]

    assert len(service.statements) == 6
    assert hashes[2:4] == [first.hash] * 2
    assert hashes[4:] == [second.hash] * 2
    assert kept(third)[:4] == kept(second)


class Run:
    """A link on a vCon in a store, for what a failed run leaves behind."""

    def __init__(self, vcon: Vcon, given: dict[str, Any]) -> None:
        self.link = load_link(LinkConfig(name="link", module="links.scitt", options=given))
        self.store: VconStore = throwaway_store()
        self.store.create(vcon)
        self.uuid = str(vcon.uuid)

    def __call__(self) -> Vcon:
        with working(Work(self.store.writer())):
            self.link.run(self.uuid, "link", self.link.options)
        return self.store.get(self.uuid)


def test_a_run_that_was_broken_off_goes_on_from_there(service: ScrapiServer) -> None:
    """The first receipt is kept, and the second statement speaks of the same hash."""
    vcon = two_party_call()
    run = Run(vcon, options(service))
    service.order(ok, status(400))

    with pytest.raises(OutboundStatus, match="answered 400"):
        run()
    half = run.store.get(run.uuid)
    after = run()

    assert [one["subject"] for one in kept(half)] == [f"tel:{TELS[0]}"]
    assert subjects(service) == [f"tel:{tel}" for tel in TELS]
    assert {one["vcon_hash"] for one in kept(after)} == {vcon.hash}


def test_a_receipt_that_somebody_else_kept_meanwhile_is_kept_alone(service: ScrapiServer) -> None:
    """Two runs at the same time do not leave two receipts for one subject."""
    first = Run(without_numbers(), options(service))
    second: list[Vcon] = []

    def meanwhile(exchange: Exchange, work: Callable[[], Answer]) -> None:
        if not second:
            second.append(first())
        work().send(exchange)

    service.order(meanwhile)
    after = first()

    assert kept(after) == kept(second[0])
    assert len(kept(after)) == 1


def test_what_is_added_meanwhile_stays_and_is_registered_next(service: ScrapiServer) -> None:
    """The receipt is for the content that was read, not for what somebody has made of it since."""
    run = Run(without_numbers(), options(service))

    def meanwhile(exchange: Exchange, work: Callable[[], Answer]) -> None:
        with run.store.edit(run.uuid) as vcon:
            vcon.add_tag("new", "tag")
        work().send(exchange)

    service.order(meanwhile)
    once = run()
    twice = run()

    assert (once.tags, len(kept(once))) == (["new:tag"], 1)
    assert len({one["content_hash"] for one in kept(twice)}) == 2


def test_without_receipts_the_vcon_stays(service: ScrapiServer) -> None:
    """A second run registers again, with the same bytes, which the service can tell."""
    vcon = two_party_call()
    after = run_link("links.scitt", options(service, store_receipt=False), on=vcon, times=2)

    assert after == vcon
    assert service.posts[0].body == service.posts[2].body


def test_a_sealed_vcon_is_registered_only_where_nothing_is_to_be_kept(service: ScrapiServer) -> None:
    """It is refused before anything is registered, and the error says what to do."""
    uuid = "018f3c5e-0000-8000-8000-000000000001"
    signed = Vcon({"payload": "eyJ1dWlkIjogIjEifQ", "signatures": [{"signature": "x", "header": {"uuid": uuid}}]})
    with pytest.raises(VconSealed, match=r"is signed: no receipt can be kept in it \(set store_receipt: false\)"):
        run_link("links.scitt", options(service), on=signed)
    assert service.requests == []

    after = run_link("links.scitt", options(service, store_receipt=False), on=signed)

    assert after == signed
    assert subjects(service) == [f"vcon://{uuid}"]
    assert service.statements[0]["payload"] == f"{signed.hash}:vcon_created".encode()


def test_a_missing_vcon_is_said_to_be_missing(service: ScrapiServer) -> None:
    """The link has nothing to add to that."""
    run = Run(two_party_call(), options(service))
    run.store.delete(run.uuid)

    with pytest.raises(VconNotFound):
        run()
    assert service.requests == []


# Registering later


@pytest.mark.parametrize("running", [202, 302])
def test_a_service_that_registers_later_is_asked_until_it_has(service: ScrapiServer, running: int) -> None:
    """202 is what existing services say while it runs, 302 what the draft says; more often than we follow redirects."""
    service.later, service.running_status = 7, running
    vcon = run_link("links.scitt", options(service), on=without_numbers(), times=2)
    paths = [request.path.split("/")[1] for request in service.requests if request.method == "GET"]

    assert kept(vcon)[0]["entry_id"] == "entry-6"
    assert paths[-9:] == ["operations"] * 8 + ["entries"]


def test_a_poll_may_bring_the_receipt_itself(service: ScrapiServer) -> None:
    """As the draft has it; the entry is what the Location of the answer names."""
    service.later = 0
    receipt = changed(lambda _: service._receipt("entry-6"))
    service.order(receipt, to="poll")
    vcon = run_link("links.scitt", options(service), on=without_numbers())

    assert kept(vcon)[0]["entry_id"] == "entry-6"
    assert [request for request in service.requests if request.path == "/entries/entry-6"] == []


def test_an_answer_without_a_receipt_says_where_it_is(service: ScrapiServer) -> None:
    """It is fetched from the Location; without one there is nothing to go on."""
    service.order(with_body(b""))
    vcon = run_link("links.scitt", options(service), on=without_numbers())
    service.order(changed(lambda _: Answer(201)))
    with pytest.raises(OutboundError, match="answered 201 with neither a receipt nor a Location"):
        run_link("links.scitt", options(service))

    assert kept(vcon)[0]["entry_id"] == "entry-6"


def test_a_poll_that_is_refused_or_lost_is_repeated(service: ScrapiServer) -> None:
    """A busy service has not forgotten the statement."""
    service.later = 0
    service.order(status(429, retry_after="0"), status(500), cut, to="poll")
    run_link("links.scitt", options(service), on=without_numbers())

    assert len(service.posts) == 1


def test_asking_ends_with_its_time(service: ScrapiServer) -> None:
    """No thread waits for ever for a service that never gets there."""
    service.later = 10**6
    with pytest.raises(OutboundError, match=r"was not registered within 0\.1 s: it is still running"):
        run_link("links.scitt", options(service, poll_secs=0.1, poll_every_secs=0.03))

    assert 1 < sum(request.path.startswith("/operations") for request in service.requests) < 10


def test_a_wait_that_ends_after_the_time_is_not_begun(service: ScrapiServer) -> None:
    """With a minute between two questions and half a minute in all there is one question."""
    service.later = 10**6
    with pytest.raises(OutboundError, match="within 30 s"):
        run_link("links.scitt", options(service, poll_secs=30, poll_every_secs=60))

    assert sum(request.path.startswith("/operations") for request in service.requests) == 1


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (status(404), "answered 404"),
        (with_body(b'{"status": "failed"}'), "the service says 'failed'"),
        (with_body(b"{"), "the answer is not JSON"),
    ],
)
def test_an_operation_that_failed_is_not_asked_again(service: ScrapiServer, order: Order, message: str) -> None:
    """What the service does not know, or has refused, will not come."""
    service.later = 0
    service.order(order, to="poll")

    with pytest.raises(OutboundError, match=message):
        run_link("links.scitt", options(service))
    assert sum(request.path.startswith("/operations") for request in service.requests) == 1


# A service that misbehaves


def test_a_busy_service_is_asked_again(service: ScrapiServer) -> None:
    """With what it has refused, and with what may have arrived: the bytes are the same."""
    service.order(status(429, retry_after="1"), status(503), cut)
    vcon = run_link("links.scitt", options(service), on=without_numbers())

    assert len(kept(vcon)) == 1
    assert len({request.body for request in service.posts}) == 1
    assert len(service.posts) == 4


def test_a_slow_service_ends_with_the_timeout(service: ScrapiServer) -> None:
    """No worker waits for ever, and the metric counts it."""
    service.order(*[slow(30)] * 4)
    with pytest.raises(OutboundError, match=r"no answer in time \(ReadTimeout\) \(4 attempts\)"):
        run_link("links.scitt", options(service, timeout=0.1))

    assert counters() == {"conserver.link.scitt.registration_failures": 1}


def test_a_refusal_is_an_error_that_repeats_nothing(service: ScrapiServer, caplog: pytest.LogCaptureFixture) -> None:
    """Neither what was sent nor the key gets into errors and logs."""
    caplog.set_level(logging.DEBUG)
    service.order(status(400, f"no {TELS[0]} here"))

    with pytest.raises(OutboundStatus) as caught:
        run_link("links.scitt", options(service))
    assert str(caught.value) == f"POST {service.url}: answered 400"
    assert TELS[0] not in caplog.text
    assert KEY not in caplog.text


def test_nothing_is_registered_where_receipts_cannot_be_checked(service: ScrapiServer) -> None:
    """The keys come first: an entry without a receipt that can be kept would be made again and again."""
    service.order(*[status(503)] * 4, to="keys")
    with pytest.raises(OutboundStatus, match="answered 503"):
        run_link("links.scitt", options(service))
    service.order(with_body(b'{"keys": [{"kty": "OKP"}, {"kty": "EC", "crv": "P-256"}, 7]}'), to="keys")
    with pytest.raises(OutboundError, match="publishes no P-256 key"):
        run_link("links.scitt", options(service))
    service.order(with_body(b"<html>"), to="config")
    with pytest.raises(OutboundError, match=r"transparency configuration cannot be read: it is not CBOR"):
        run_link("links.scitt", options(service))

    assert service.posts == []


# Receipts


@pytest.mark.parametrize("others", [0, 1, 2, 3, 6, 7, 8, 12])
def test_trees_of_every_shape_are_walked(others: int) -> None:
    """Also a tree of one leaf, and those where a node rises without a partner."""
    with ScrapiServer(others=others) as service:
        vcon = run_link("links.scitt", options(service))

    assert len(kept(vcon)) == 2


def test_every_leaf_of_every_small_tree_has_its_way_to_the_root() -> None:
    """Ours goes up as the standard's proofs of inclusion say, the fake's comes from its definition of the tree."""
    for size in range(1, 34):
        leaves = [hashlib.sha256(bytes([n])).digest() for n in range(size)]
        root = scrapi_server.root(leaves)
        for leaf, value in enumerate(leaves):
            start = hashlib.sha256(b"\0" + value).digest()
            path = scrapi_server.path(leaf, leaves)

            assert receipts._root(start, size, leaf, path) == root
            assert leaf == size - 1 or _other_root(start, size, leaf + 1, path) != root


def _other_root(start: bytes, size: int, leaf: int, path: list[bytes]) -> bytes | None:
    try:
        return receipts._root(start, size, leaf, path)
    except ValueError:
        return None


def padded(answer: Answer) -> Answer:
    """The same two numbers, but the second in 33 bytes."""
    message = list(cbor2.loads(answer.body).value)
    message[3] = message[3][:32] + b"\0" + message[3][32:]
    return Answer(answer.status, cbor2.dumps(cbor2.CBORTag(18, message)), answer.headers)


WRONG: dict[str, tuple[Callable[[ScrapiServer], Order], str]] = {
    "html": (lambda _: with_body(b"<html>busy</html>"), "it is not (CBOR|a COSE_Sign1)"),
    "number": (lambda _: with_body(b"\x07"), "it is not a COSE_Sign1, an array of four"),
    "truncated": (lambda _: changed(lambda a: Answer(a.status, a.body[:-9], a.headers)), "it is not CBOR"),
    "tag": (lambda _: receipt_with(tag=97), "it has the CBOR tag 97, not 18"),
    "types": (lambda _: receipt_with(signature="text"), "its parts have the wrong types"),
    "header": (lambda _: receipt_with(protected=b"\x07"), "its protected header is not a map"),
    "algorithm": (lambda _: receipt_with(protected=b"\xa1\x01\x38\x22"), "not ES256"),
    "tree": (lambda _: receipt_with(protected=b"\xa2\x01\x26\x19\x01\x8b\x02"), "its tree is of the kind 2"),
    "no proof": (lambda _: receipt_with(unprotected={}), "it has no proof of inclusion"),
    "bad proof": (lambda _: receipt_with_proof(6, 5), r"is not \[tree size, leaf index, path\]"),
    "leaf outside": (lambda _: receipt_with_proof(6, 6, []), r"is not \[tree size, leaf index, path\]"),
    "short hash": (lambda _: receipt_with_proof(2, 1, [b"x"]), r"is not \[tree size, leaf index, path\]"),
    "short path": (lambda _: receipt_with_proof(6, 5, []), "too short for the tree"),
    "long path": (lambda _: receipt_with_proof(1, 0, [bytes(32)]), "too long for the tree"),
    "signature": (lambda _: receipt_with(signature=bytes(64)), "its signature does not fit"),
    "short signature": (lambda _: receipt_with(signature=b""), "its signature does not fit"),
    "padded signature": (lambda _: changed(padded), "its signature does not fit"),
    "other leaf": (other_receipt, "its signature does not fit the statement"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_receipt_fails_the_link_and_is_not_kept(service: ScrapiServer, case: str) -> None:
    """Each says what is wrong with it."""
    order, message = WRONG[case]
    run = Run(without_numbers(), options(service))
    service.order(order(service))

    with pytest.raises(OutboundError, match=rf"^the receipt of the transparency service is refused: .*{message}"):
        run()
    assert kept(run.store.get(run.uuid)) == []
    assert counters() == {"conserver.link.scitt.registration_failures": 1}


def test_a_receipt_of_another_service_is_refused(service: ScrapiServer) -> None:
    """A signature by a key that this one does not publish, under the name of one that it does."""
    service.key = ec.generate_private_key(ec.SECP256R1())

    with pytest.raises(OutboundError, match="its signature does not fit"):
        run_link("links.scitt", options(service))


def test_a_key_that_is_not_published_is_said_to_be_unknown(service: ScrapiServer) -> None:
    """And none of the others is tried in its place."""
    service.kid = b"service-key-9"

    with pytest.raises(OutboundError, match="it names a key that the service does not publish"):
        run_link("links.scitt", options(service))


@pytest.mark.parametrize(
    ("kid", "published"),
    [
        (b"\xff\x00", "ff00"),
        (b"\xff\x00", "_wA"),
        (None, "service-key-2"),
        (b"any", None),
    ],
)
def test_the_key_is_found_by_its_name(service: ScrapiServer, kid: bytes | None, published: str | None) -> None:
    """However the service writes it; where either side has no name, all that come into question are tried."""
    service.kid = kid
    service.published = [service.published[0], (published, service.key)]
    vcon = run_link("links.scitt", options(service), on=without_numbers())

    assert len(kept(vcon)) == 1


def test_the_keys_are_where_the_configuration_says_or_at_jwks(service: ScrapiServer) -> None:
    """A service without a configuration, or with one that does not say, has them at /jwks."""
    service.jwks_uri = None
    run_link("links.scitt", options(service), on=without_numbers())
    service.order(status(404), to="config")
    run_link("links.scitt", options(service), on=without_numbers())

    assert sum(request.path == "/jwks" for request in service.requests) == 2


def test_keys_on_another_host_are_fetched_as_a_strangers_url(service: ScrapiServer) -> None:
    """The operator trusts the service, not every address that it names."""
    service.jwks_uri = f"http://localhost:{service.port}/keys"

    with pytest.raises(OutboundError, match="localhost: this host has no public address"):
        run_link("links.scitt", options(service))
    assert service.posts == []


# Options


def test_without_options_the_check_says_what_is_missing() -> None:
    """The default key file is seldom there."""
    with pytest.raises(
        ConfigError, match=r"signing_key_path '/etc/scitt/signing-key.pem' cannot be read .*: make it re"
    ):
        load_link(LinkConfig(name="link", module="links.scitt", options={}))


def test_the_key_may_be_a_file_or_a_pem(service: ScrapiServer, tmp_path: Path) -> None:
    """In the forms that openssl writes; what it writes before the key is no obstacle."""
    curve = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    file = tmp_path / "key.pem"
    file.write_bytes(curve + PEM)
    given = options(service, signing_key_path=str(file))
    del given["signing_key_pem"]
    run_link("links.scitt", given)
    run_link("links.scitt", options(service, signing_key_pem=PEM.decode()))

    assert len(service.statements) == 4


def test_a_key_that_is_none_is_found_by_the_check_and_not_repeated() -> None:
    """Not the key, nor a piece of it; the message says what to do."""
    body = KEY[40:60]
    for pem, message in (
        ("not base64!", "signing_key_pem is neither base64 nor a PEM: write what `base64 -w0 key.pem` prints"),
        (KEY[:120], "signing_key_pem: it is not the PEM of a private key; make one with `openssl ecparam"),
        (base64.b64encode(new_key(ec.SECP384R1())).decode(), "not one for the curve P-256, which ES256 needs"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            load_link(LinkConfig(name="link", module="links.scitt", options={"signing_key_pem": pem}))
        assert body not in str(caught.value)


def test_a_key_file_that_goes_away_fails_the_link(service: ScrapiServer, tmp_path: Path) -> None:
    """Nothing is sent, the metric counts it, and the error says what to do."""
    file = tmp_path / "key.pem"
    file.write_bytes(PEM)
    run = Run(two_party_call(), {"scrapi_url": service.url, "signing_key_path": str(file)})
    file.unlink()

    with pytest.raises(LinkError, match=r"cannot be read \(No such file or directory\): make it readable"):
        run()
    assert service.requests == []
    assert counters() == {"conserver.link.scitt.statement_creation_failures": 1}


def test_missing_packages_are_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback from somewhere inside."""
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)

    with pytest.raises(ConfigError, match=r"statements need packages: .*\(pip install 'conserver\[scitt\]'\)"):
        load_link(LinkConfig(name="link", module="links.scitt", options={"signing_key_pem": KEY}))


def test_credentials_of_the_url_stay_out_of_the_vcon(service: ScrapiServer) -> None:
    """The receipt names the service, not how to log in."""
    url = service.url.replace("//", "//me:s3cr3t@")
    vcon = run_link("links.scitt", options(service, scrapi_url=f"{url}/"), times=2)

    assert kept(vcon)[0]["scrapi_url"] == service.url
    assert "s3cr3t" not in json.dumps(vcon.document)


def test_a_config_of_the_existing_conserver_is_understood(tmp_path: Path) -> None:
    """With two links on one key, before and after the transcription."""
    config = tmp_path / "config.yml"
    config.write_text(
        """
links:
  scitt_created:
    module: links.scitt
    options:
      scrapi_url: "http://scittles:8000"
      signing_key_pem: ${SCITT_SIGNING_KEY_PEM}
      issuer: "conserver"
      key_id: "conserver-key-1"
      vcon_operation: "vcon_created"
      store_receipt: true
  scitt_enhanced:
    module: links.scitt
    options:
      scrapi_url: "http://scittles:8000"
      signing_key_pem: ${SCITT_SIGNING_KEY_PEM}
      vcon_operation: "vcon_enhanced"
storages:
  files: {module: storages.file, options: {path: data}}
chains:
  main:
    links: [scitt_created, scitt_enhanced]
    storages: [files]
    ingress_lists: [main]
    enabled: 1
"""
    )
    loaded, findings = check(config, {"SCITT_SIGNING_KEY_PEM": KEY})

    assert findings == []
    assert loaded is not None
