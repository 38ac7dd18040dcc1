"""storages.s3: vCons as objects in a bucket (moto's server in a process of its own)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from conserver import StorageError, Vcon
from conserver.ambient import Work, working
from conserver.testing import DATA_RULES, STORAGE_RULES, storage_contract, throwaway_store, two_party_call
from storages import s3
from storages.s3 import Options
from tests.fakes.orders import cut, slow
from tests.fakes.s3_server import KEY_ID, SECRET, S3Front, S3Gate, S3Process, refuse

Save = Callable[..., tuple[Vcon, Options]]


@pytest.fixture(scope="module")
def process() -> Iterator[S3Process]:
    with S3Process() as server:
        yield server


@pytest.fixture
def bucket(process: S3Process) -> S3Process:
    """The server with an empty bucket."""
    process.clear()
    return process


@pytest.fixture(scope="module")
def same_gate(process: S3Process) -> Iterator[S3Gate]:
    with S3Gate(process.url) as gate:
        yield gate


@pytest.fixture
def gate(same_gate: S3Gate, bucket: S3Process) -> S3Gate:
    """A gate before the empty bucket, that passes everything on unless it has orders."""
    same_gate.forget()
    return same_gate


@pytest.fixture(scope="module")
def front(process: S3Process) -> Iterator[S3Front]:
    with S3Front(process) as front:
        yield front


def options(url: str, **more: Any) -> dict[str, Any]:
    login = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET}
    return {"aws_bucket": "calls", "endpoint_url": url, **login, **more}


@pytest.fixture
def save() -> Save:
    """Save a vCon with the given options, and return both."""
    store = throwaway_store()

    def saved(url: str, vcon: Vcon | None = None, **more: Any) -> tuple[Vcon, Options]:
        vcon, opts = vcon or two_party_call(), Options(**options(url, **more))
        store.create(vcon, replace=True)
        with working(Work(store.writer())):
            s3.save(str(vcon.uuid), opts)
        return vcon, opts

    return saved


def call_of(day: str, uuid: str | None = None) -> Vcon:
    vcon = two_party_call(uuid)
    vcon.document["created_at"] = f"{day}T23:30:00-05:00"
    return vcon


@pytest.mark.parametrize("rule", STORAGE_RULES)
def test_the_contract_of_storages(process: S3Process, front: S3Front, gate: S3Gate, rule: str) -> None:
    """The rules for every storage hold."""
    gate.order(*[slow(30)] * 20)
    checked = storage_contract(
        "storages.s3",
        options(process.url if rule in DATA_RULES else front.url),
        rules=[rule],
        unreachable={"endpoint_url": "http://127.0.0.1:1"},
        denied={"aws_access_key_id": "AKIAWRONG"},
        slow={"endpoint_url": gate.url, "timeout": 0.2},
        backend=front,
        secrets=[KEY_ID, "AKIAWRONG", SECRET],
    )

    assert checked == [rule]


@pytest.mark.parametrize(("path", "prefix"), [("", ""), ("archive/", "archive/"), ("a/b", "a/b/")])
def test_the_keys_are_those_of_the_existing_conserver(bucket: S3Process, save: Save, path: str, prefix: str) -> None:
    """The day of created_at, as it is written there, and a pointer that holds it."""
    vcon, _ = save(bucket.url, call_of("2024-02-29"), s3_path=path)

    objects = bucket.objects()
    assert set(objects) == {f"{prefix}2024/02/29/{vcon.uuid}.vcon", f"{prefix}lookup/{vcon.uuid}.txt"}
    assert json.loads(objects[f"{prefix}2024/02/29/{vcon.uuid}.vcon"]) == vcon.document
    assert objects[f"{prefix}lookup/{vcon.uuid}.txt"] == b"2024/02/29"


def test_what_the_existing_conserver_wrote_is_found_and_deleted(bucket: S3Process) -> None:
    """By its pointer, and with JSON as it writes it."""
    vcon, opts = two_party_call(), Options(**options(bucket.url))
    bucket.put(f"2023/05/06/{vcon.uuid}.vcon", json.dumps(vcon.document, indent=1).encode())
    bucket.put(f"lookup/{vcon.uuid}.txt", b"2023/05/06\n")

    assert s3.get(str(vcon.uuid), opts) == vcon.document
    assert s3.delete(str(vcon.uuid), opts) is True
    assert bucket.objects() == {}


@pytest.mark.parametrize(
    ("uuid", "key"),
    [
        ("018f0000-0000-8000-8000-000000000001", "018f0000-0000-8000-8000-000000000001.vcon"),
        ("018f0000-0000-8000-8000-000000000001", "2024/04/21/018f0000-0000-8000-8000-000000000001.vcon"),
        ("018f0000-0000-4000-8000-000000000001", "018f0000-0000-4000-8000-000000000001.vcon"),
    ],
)
def test_objects_without_a_pointer_are_found(bucket: S3Process, uuid: str, key: str) -> None:
    """Older versions of the existing conserver wrote none, and for a time no folders."""
    vcon, opts = two_party_call(uuid), Options(**options(bucket.url))
    bucket.put(key, vcon.to_bytes())

    assert s3.get(uuid, opts) == vcon.document
    assert (s3.delete(uuid, opts), s3.delete(uuid, opts)) == (True, False)
    assert bucket.objects() == {}


def test_a_save_again_is_one_request_more_than_the_look_at_the_pointer(gate: S3Gate, save: Save) -> None:
    """The object first, then the pointer, and the pointer only once."""
    vcon, _ = save(gate.url, call_of("2024-01-02"))
    save(gate.url, vcon)

    pointer, stored = f"lookup/{vcon.uuid}.txt", f"2024/01/02/{vcon.uuid}.vcon"
    first = [f"GET {pointer}", f"PUT {stored}", f"PUT {pointer}"]
    assert gate.calls() == [*first, f"GET {pointer}", f"PUT {stored}"]


def test_a_new_date_leaves_nothing_at_the_old_one(bucket: S3Process, save: Save) -> None:
    """There is one object, and a pointer to it that says nothing else."""
    vcon, _ = save(bucket.url, call_of("2024-01-02"))
    _, opts = save(bucket.url, call_of("2025-03-04", vcon.uuid))

    assert set(bucket.objects()) == {f"2025/03/04/{vcon.uuid}.vcon", f"lookup/{vcon.uuid}.txt"}
    assert s3._pointer(str(vcon.uuid), opts) == s3._Pointer("2025/03/04")


@pytest.mark.parametrize("done", range(6))
def test_a_save_that_breaks_off_anywhere_leaves_a_vcon_and_no_orphans(
    bucket: S3Process, gate: S3Gate, save: Save, done: int
) -> None:
    """After each of its requests: a vCon is found, and a delete finds all."""
    vcon, opts = save(bucket.url, call_of("2024-01-02"))
    later = call_of("2025-03-04", vcon.uuid)
    gate.order(*[lambda exchange, work: work().send(exchange)] * done, *[refuse(403, "AccessDenied")] * 9)
    with pytest.raises(StorageError, match="AccessDenied"):
        save(gate.url, later)

    assert s3.get(str(vcon.uuid), opts) in (vcon.document, later.document)
    assert s3.delete(str(vcon.uuid), opts) is True
    assert bucket.objects() == {}


@pytest.mark.parametrize("done", range(6))
def test_the_save_after_one_that_broke_off_tidies_up(bucket: S3Process, gate: S3Gate, save: Save, done: int) -> None:
    """Also where the vCon has yet another date by then."""
    vcon, opts = save(bucket.url, call_of("2024-01-02"))
    gate.order(*[lambda exchange, work: work().send(exchange)] * done, *[refuse(403, "AccessDenied")] * 9)
    with pytest.raises(StorageError, match="AccessDenied"):
        save(gate.url, call_of("2025-03-04", vcon.uuid))
    last, _ = save(bucket.url, call_of("2026-05-06", vcon.uuid))

    assert s3.get(str(vcon.uuid), opts) == last.document
    assert set(bucket.objects()) == {f"2026/05/06/{vcon.uuid}.vcon", f"lookup/{vcon.uuid}.txt"}


def test_a_vcon_without_a_date_has_an_empty_pointer(bucket: S3Process, save: Save) -> None:
    """It lies beside the folders, where the existing conserver looks with such a pointer."""
    vcon = two_party_call()
    del vcon.document["created_at"]
    _, opts = save(bucket.url, vcon)

    assert bucket.objects()[f"lookup/{vcon.uuid}.txt"] == b""
    assert (s3.get(str(vcon.uuid), opts) or {})["uuid"] == vcon.uuid


@pytest.mark.parametrize(("option", "variable"), [("0.0.1", ""), (None, "0.0.1")])
def test_an_older_version_may_be_stored(
    bucket: S3Process, save: Save, monkeypatch: pytest.MonkeyPatch, option: str | None, variable: str
) -> None:
    """By the option, or else by EGRESS_FORMAT_VERSION."""
    monkeypatch.setenv("EGRESS_FORMAT_VERSION", variable)
    vcon, opts = save(bucket.url, format_version=option)

    assert (s3.get(str(vcon.uuid), opts) or {})["vcon"] == "0.0.1"


@pytest.mark.parametrize("order", [refuse(503, "SlowDown", retry_after="1"), refuse(500, "InternalError"), cut])
def test_what_may_go_better_is_tried_again(gate: S3Gate, save: Save, order: Any) -> None:
    """A busy service, a broken one, a cut answer."""
    gate.order(order, order, order)
    vcon, opts = save(gate.url)

    assert s3.get(str(vcon.uuid), opts) == vcon.document


def test_a_service_that_stays_down_is_told(gate: S3Gate, save: Save) -> None:
    """After four attempts."""
    gate.order(*[refuse(503, "SlowDown")] * 9)

    with pytest.raises(StorageError, match=r"cannot read s3://calls/lookup/.*: answered 503 SlowDown \(4 attempts\)"):
        save(gate.url)


def test_wrong_credentials_are_named_and_not_shown(gate: S3Gate, save: Save) -> None:
    """The message says which options to check."""
    with pytest.raises(StorageError, match="InvalidAccessKeyId; check aws_access_key_id") as told:
        save(gate.url, aws_access_key_id="AKIAWRONG", aws_secret_access_key=SECRET)

    assert not any(secret in f"{told.value!r}" for secret in ("AKIAWRONG", KEY_ID, SECRET))


@pytest.mark.parametrize(
    ("order", "cure"),
    [
        (refuse(403, "AccessDenied"), "needs the rights s3:GetObject"),
        (refuse(403, "RequestTimeTooSkewed"), "set the clock"),
        (refuse(404, "NoSuchBucket"), "make it, or correct aws_bucket"),
    ],
)
def test_a_refusal_comes_with_its_cure(gate: S3Gate, order: Any, cure: str) -> None:
    """And is not taken for a vCon that is not there."""
    gate.order(*[order] * 3)

    with pytest.raises(StorageError, match=cure):
        s3.get(str(two_party_call().uuid), Options(**options(gate.url)))


def test_no_credentials_anywhere_is_told(bucket: S3Process, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Neither in the options nor where the SDK looks."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    with pytest.raises(StorageError, match="NoCredentialsError; check aws_access_key_id and aws_secret_access_key"):
        s3.ping(Options(aws_bucket="calls", endpoint_url=bucket.url, timeout=31))


def test_an_object_that_is_no_vcon_is_told(bucket: S3Process) -> None:
    """It is not taken for one, and not for a missing one."""
    uuid, opts = str(two_party_call().uuid), Options(**options(bucket.url))
    bucket.put(f"{uuid}.vcon", b"[]")

    with pytest.raises(StorageError, match=f"s3://calls/{uuid}.vcon is no vCon"):
        s3.get(uuid, opts)


def test_a_missing_bucket_is_named(bucket: S3Process) -> None:
    """ping says what to do."""
    with pytest.raises(StorageError, match=r"cannot list s3://other/: answered 404 NoSuchBucket; make it, or correct"):
        s3.ping(Options(**options(bucket.url, aws_bucket="other")))


def test_a_service_that_does_not_answer_is_named() -> None:
    """With its port, where it is not Amazon's own."""
    options = Options(
        aws_bucket="calls", endpoint_url="http://127.0.0.1:1", aws_access_key_id="x", aws_secret_access_key="y"
    )

    with pytest.raises(StorageError, match=r"cannot list s3://calls/: no answer from 127\.0\.0\.1:1 \("):
        s3.ping(options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"aws_access_key_id": "a"}, "or neither of them"),
        ({"endpoint_url": "minio:9000"}, "write it as https://host:port"),
        ({"endpoint_url": "http://user:s3cret@minio"}, "must hold no login"),
        ({"format_version": "0.3.0"}, "0.0.1"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    """With what to write, and without secrets."""
    with pytest.raises(ValidationError, match=message) as told:
        Options(aws_bucket="calls", **given)

    assert "s3cret" not in str(told.value)


def test_an_empty_option_is_one_that_is_not_given() -> None:
    """As `${AWS_ACCESS_KEY_ID:-}` makes it."""
    opts = Options(aws_bucket="calls", aws_access_key_id="", aws_secret_access_key="", endpoint_url="", aws_region="")

    assert opts == Options(aws_bucket="calls")


def test_the_secret_is_not_in_the_options_text() -> None:
    """Options that land in a log show no secret."""
    assert SECRET not in repr(Options(**options("http://127.0.0.1")))
