"""links.diet: a vCon gets smaller, and no audio is lost on the way."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from conserver import LinkError, Vcon, VconConflict, VconSealed, outbound, telemetry
from conserver.ambient import Work, working
from conserver.components import check, load_link
from conserver.config import LinkConfig
from conserver.errors import ConfigError, VconNotFound
from conserver.store import VconStore
from conserver.testing import run_link, throwaway_store, try_link, two_party_call
from links import diet
from tests.fakes.http_server import Exchange, HttpServer
from tests.fakes.orders import Answer, ok
from tests.fakes.s3_server import KEY_ID, SECRET, S3Gate, S3Process, refuse

MODULE = "links.diet"
Fetch = Callable[[dict[str, Any]], httpx.Response]
AUDIO = bytes(range(256)) * 3
HASH = "sha512-" + base64.urlsafe_b64encode(hashlib.sha512(AUDIO).digest()).decode().rstrip("=")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with closed breakers and empty metrics, and waits that take no time."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", lambda _: None)
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())


@pytest.fixture(scope="module")
def process() -> Iterator[S3Process]:
    with S3Process("media") as server:
        yield server


@pytest.fixture
def bucket(process: S3Process) -> S3Process:
    """The server with an empty bucket."""
    process.clear()
    return process


@pytest.fixture
def s3(bucket: S3Process) -> Iterator[S3Gate]:
    """The way to the bucket, which misbehaves on order."""
    with S3Gate(bucket.url, bucket="media") as gate:
        yield gate


@pytest.fixture
def fetch(s3: S3Gate, bucket: S3Process) -> Fetch:
    """Get what the URL of a dialog gives; the gate knows no presigned URLs."""
    return lambda dialog: httpx.get(dialog["url"].replace(s3.url, bucket.url))


def puts(s3: S3Gate) -> int:
    return sum(call.startswith("PUT ") for call in s3.calls())


def dropped(exchange: Exchange, _: Callable[[], Answer]) -> None:
    """Break off without storing."""
    exchange.cut()


def lost(exchange: Exchange, work: Callable[[], Answer]) -> None:
    """Store, and break off without an answer."""
    work()
    exchange.cut()


def in_s3(s3: S3Gate, **more: Any) -> dict[str, Any]:
    return {
        "remove_dialog_body": True,
        "s3_bucket": "media",
        "aws_access_key_id": KEY_ID,
        "aws_secret_access_key": SECRET,
        "endpoint_url": s3.url,
        **more,
    }


def call_with_audio(*contents: bytes) -> Vcon:
    """A call with one inline recording a content."""
    vcon = two_party_call()
    del vcon.dialog[:]
    for content in contents or (AUDIO,):
        body = base64.urlsafe_b64encode(content).decode().rstrip("=")
        vcon.add_dialog(
            {
                "type": "recording",
                "start": vcon.created_at,
                "parties": [0, 1],
                "mediatype": "audio/x-wav",
                "body": body,
                "encoding": "base64url",
            }
        )
    return vcon


def counters() -> dict[str, float]:
    return {name: value for (name, _), value in telemetry.metrics.snapshot()["counters"].items()}


class Run:
    """The link on a vCon in a store, for what a failed run leaves behind."""

    def __init__(self, vcon: Vcon, given: dict[str, Any]) -> None:
        self.store: VconStore = throwaway_store()
        self.store.create(vcon)
        self.uuid = str(vcon.uuid)
        self.link = load_link(LinkConfig(name="diet", module=MODULE, options=given))

    def __call__(self) -> Vcon:
        with working(Work(self.store.writer())):
            self.link.run(self.uuid, "diet", self.link.options)
        return self.vcon

    @property
    def vcon(self) -> Vcon:
        return self.store.get(self.uuid)


# Media


def test_without_options_nothing_is_taken_out() -> None:
    """An option block that is absent is a link that does nothing."""
    vcon = call_with_audio()

    assert run_link(MODULE, on=vcon).document == vcon.document


def test_a_body_without_a_place_to_go_is_gone() -> None:
    """As the option says; the dialog stays, and so does what points to it."""
    vcon = call_with_audio()

    after = run_link(MODULE, {"remove_dialog_body": True}, on=vcon, times=2)

    assert after.dialog[0]["body"] == ""
    assert after.dialog[0]["type"] == "recording"
    assert after.analysis == vcon.analysis


def test_a_body_goes_to_the_bucket(s3: S3Gate, fetch: Fetch) -> None:
    """The dialog then has the URL and the hash of what the URL gives, and where the object is for when it expires."""
    vcon = call_with_audio()

    dialog = run_link(MODULE, in_s3(s3, s3_path="/calls/2026/"), on=vcon, times=2).dialog[0]
    key = f"calls/2026/{vcon.uuid}/{HASH}.wav"

    assert dialog["s3_object"] == {"bucket": "media", "key": key, "region": "us-east-1"}
    assert dialog["content_hash"] == HASH
    assert dialog.keys().isdisjoint({"body", "encoding"})
    assert fetch(dialog).content == AUDIO
    assert fetch(dialog).headers["content-type"] == "audio/x-wav"
    assert puts(s3) == 1


@pytest.mark.parametrize(("given", "secs"), [({}, "3600"), ({"presigned_url_expiration": 86400}, "86400")])
def test_a_url_expires_when_the_option_says(s3: S3Gate, given: dict[str, Any], secs: str) -> None:
    """After an hour if it says nothing."""
    dialog = run_link(MODULE, in_s3(s3, **given), on=call_with_audio()).dialog[0]

    assert httpx.URL(dialog["url"]).params["X-Amz-Expires"] == secs


def test_the_id_of_a_dialog_is_in_the_key_and_leads_nowhere(s3: S3Gate, bucket: S3Process) -> None:
    """It comes from the vCon."""
    vcon = call_with_audio()
    vcon.dialog[0]["id"] = "../../other/7"

    run_link(MODULE, in_s3(s3), on=vcon)

    assert list(bucket.objects()) == [f"{vcon.uuid}/.._.._other_7_{HASH}.wav"]


@pytest.mark.parametrize(
    ("change", "stored"),
    [
        ({"body": "plain, nothing more: é", "encoding": "none", "mediatype": "text/plain"}, "plain, nothing more: é"),
        ({"body": {"a": [1, "b"]}, "encoding": "json", "mediatype": "application/json"}, '{"a": [1, "b"]}'),
        ({"body": base64.b64encode(b"\xff\xfe\xfd?>").decode(), "encoding": "base64"}, b"\xff\xfe\xfd?>"),
        ({"body": "//79\nPz4=", "encoding": "base64url"}, b"\xff\xfe\xfd?>"),
    ],
)
def test_what_is_stored_is_what_the_body_stands_for(
    s3: S3Gate, change: dict[str, Any], stored: Any, bucket: S3Process
) -> None:
    """Decoded, in either alphabet, with and without padding."""
    vcon = call_with_audio()
    vcon.dialog[0] |= change

    run_link(MODULE, in_s3(s3), on=vcon, times=2)

    assert list(bucket.objects().values()) == [stored.encode() if isinstance(stored, str) else stored]


@pytest.mark.parametrize("order", [refuse(403, "AccessDenied"), refuse(400, "EntityTooLarge")])
def test_a_refused_upload_keeps_the_audio(s3: S3Gate, order: Any, fetch: Fetch) -> None:
    """The link fails and says what S3 says; the others are stored, and the next run stores the rest."""
    run = Run(call_with_audio(AUDIO, b"second"), in_s3(s3, remove_analysis=True))
    s3.order(ok, order)

    with pytest.raises(LinkError, match=r"^dialog 0: PUT s3://media: answered 40[03] \w+; what could not be stored"):
        run()
    left = run.vcon
    after = run()

    assert base64.urlsafe_b64decode(left.dialog[0]["body"]) == AUDIO
    assert "body" not in left.dialog[1]
    assert left.analysis != []
    assert after.analysis == []
    assert [fetch(dialog).content for dialog in after.dialog] == [AUDIO, b"second"]
    assert puts(s3) == 3
    assert counters() == {"conserver.link.diet.media_post_failures": 1}


def test_an_unreliable_bucket_is_asked_again(s3: S3Gate, fetch: Fetch) -> None:
    """503 and cut connections pass."""
    s3.order(ok, refuse(503, "SlowDown", retry_after="1"), dropped, refuse(500, "InternalError"))

    dialog = run_link(MODULE, in_s3(s3), on=call_with_audio()).dialog[0]

    assert fetch(dialog).content == AUDIO
    assert puts(s3) == 4


def test_a_bucket_that_stays_away_keeps_the_audio(s3: S3Gate) -> None:
    """After four attempts."""
    vcon = call_with_audio()
    run = Run(vcon, in_s3(s3, endpoint_url="http://127.0.0.1:9"))

    with pytest.raises(LinkError, match=r"HEAD s3://media: no answer \(EndpointConnectionError\) \(4 attempts\)"):
        run()
    assert run.vcon.dialog == vcon.dialog


def test_what_is_in_the_bucket_is_not_stored_again(
    s3: S3Gate, monkeypatch: pytest.MonkeyPatch, fetch: Fetch, bucket: S3Process
) -> None:
    """A process that dies between storing and saving costs no second upload."""
    run = Run(call_with_audio(), in_s3(s3))
    storing = diet.s3.store

    def store_and_die(*given: Any) -> Any:
        storing(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(diet.s3, "store", store_and_die)
        with pytest.raises(KeyboardInterrupt):
            run()
    after = run()

    assert fetch(after.dialog[0]).content == AUDIO
    assert (puts(s3), len(bucket.objects())) == (1, 1)


def test_an_upload_whose_answer_is_lost_is_one_object(s3: S3Gate, bucket: S3Process) -> None:
    """It is repeated under the same key."""
    s3.order(ok, lost)

    run_link(MODULE, in_s3(s3), on=call_with_audio())

    assert (puts(s3), len(bucket.objects())) == (2, 1)


def test_credentials_that_may_only_write_still_store(s3: S3Gate, bucket: S3Process) -> None:
    """Not being allowed to look whether it is there costs no more than an upload."""
    s3.order(refuse(403, "AccessDenied"))

    run_link(MODULE, in_s3(s3), on=call_with_audio())

    assert list(bucket.objects().values()) == [AUDIO]


def test_a_body_that_cannot_be_decoded_stays(s3: S3Gate) -> None:
    """Half of it would be stored otherwise."""
    vcon = call_with_audio()
    vcon.dialog[0]["body"] = "QUJD*REVG"
    run = Run(vcon, in_s3(s3))

    with pytest.raises(LinkError, match="the body of dialog 0 is no base64, as its encoding 'base64url' says"):
        run()
    assert run.vcon.dialog[0]["body"] == "QUJD*REVG"


@pytest.mark.parametrize("given", [{"remove_dialog_body": True}, {"remove_dialog_body": True, "s3_bucket": "media"}])
def test_dialogs_without_content_stay_as_they_are(s3: S3Gate, given: dict[str, Any], bucket: S3Process) -> None:
    """Also those that the existing conserver has dieted: their body is the only trace of the audio."""
    vcon = call_with_audio()
    vcon.dialog[0] |= {"body": "https://bucket.example/a?sig=x", "body_type": "url", "encoding": "none"}
    vcon.add_dialog({"type": "recording", "start": vcon.created_at, "body": "", "url": "https://a.example/b.wav"})
    vcon.add_dialog({})

    after = run_link(MODULE, in_s3(s3, **given) if "s3_bucket" in given else given, on=vcon)

    assert (after.dialog, s3.requests) == (vcon.dialog, [])


def test_a_body_that_is_changed_meanwhile_is_a_conflict(s3: S3Gate, fetch: Fetch) -> None:
    """The link runs again on the new one; neither is lost."""
    run = Run(call_with_audio(), in_s3(s3))

    def meanwhile(exchange: Exchange, work: Callable[[], Answer]) -> None:
        with run.store.edit(run.uuid) as vcon:
            vcon.dialog[0]["body"] = "bmV3"
        ok(exchange, work)

    s3.order(ok, meanwhile)

    with pytest.raises(VconConflict, match="the body of dialog 0 was changed while it was stored"):
        run()
    assert fetch(run().dialog[0]).content == b"new"


def test_neither_the_vcon_nor_errors_nor_logs_hold_the_secret(s3: S3Gate, caplog: pytest.LogCaptureFixture) -> None:
    """The key's id is a part of every presigned URL; the secret is of none."""
    caplog.set_level(logging.DEBUG)
    diet.s3._client.cache_clear()
    run = Run(call_with_audio(), in_s3(s3))
    s3.order(ok, refuse(403, "AccessDenied"))

    with pytest.raises(LinkError) as caught:
        run()

    assert SECRET not in str(caught.value) + run().dumps() + caplog.text
    assert "signature" not in caplog.text.lower()


# Media to a URL


def receiving(respond: Callable[[Exchange], None] | None = None) -> HttpServer:
    def stores(exchange: Exchange) -> None:
        exchange.answer(200, b'{"url": "https://media.example/7"}', content_type="application/json")

    return HttpServer(respond or stores)


def test_a_body_is_posted_to_the_url() -> None:
    """The answer's url replaces it; the receiver is told how to decode and check it."""
    vcon = call_with_audio()
    vcon.dialog[0]["id"] = "d7"
    with receiving() as server:
        dialog = run_link(
            MODULE, {"remove_dialog_body": True, "post_media_to_url": server.url}, on=vcon, times=2
        ).dialog[0]

    assert [json.loads(request.body) for request in server.requests] == [
        {
            "content": vcon.dialog[0]["body"],
            "vcon_uuid": vcon.uuid,
            "dialog_id": "d7",
            "encoding": "base64url",
            "mediatype": "audio/x-wav",
            "content_hash": HASH,
        }
    ]
    assert (dialog["url"], dialog["content_hash"]) == ("https://media.example/7", HASH)
    assert dialog.keys().isdisjoint({"body", "encoding", "s3_object"})


def test_a_post_that_is_repeated_can_be_told() -> None:
    """A receiver that is busy or breaks off gets it again under the same key."""
    left = [lambda e: e.answer(503), lambda e: e.cut()]

    def respond(exchange: Exchange) -> None:
        if left:
            left.pop(0)(exchange)
        else:
            exchange.answer(201, b'{"url": "https://media.example/7"}')

    with receiving(respond) as server:
        run_link(MODULE, {"remove_dialog_body": True, "post_media_to_url": server.url}, on=call_with_audio())
    keys = {request.headers["idempotency-key"] for request in server.requests}

    assert (len(server.requests), len(keys)) == (3, 1)


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [
        (500, b"", "answered 500"),
        (413, b"", "answered 413"),
        (200, b"<html>", "the answer is not JSON"),
        (200, b"{}", "the answer names no url"),
        (200, b'{"url": "file:///etc/passwd"}', "the answer names no url"),
        (200, b"[]", "the answer names no url"),
    ],
)
def test_an_answer_without_a_url_keeps_the_audio(code: int, body: bytes, said: str) -> None:
    """Whatever it is instead."""
    vcon = call_with_audio()
    with receiving(lambda exchange: exchange.answer(code, body)) as server:
        run = Run(vcon, {"remove_dialog_body": True, "post_media_to_url": server.url})
        with pytest.raises(LinkError, match=f"^dialog 0: POST {server.url}: {said}"):
            run()

    assert run.vcon.dialog == vcon.dialog
    assert counters() == {"conserver.link.diet.media_post_failures": 1}


# Everything else


def test_analyses_are_taken_out() -> None:
    """All of them."""
    after = run_link(MODULE, {"remove_analysis": True}, on=two_party_call(), times=2)

    assert after.analysis == []
    assert after.dialog != []


def test_attachments_are_taken_out_by_kind() -> None:
    """By media type, in the old and new spelling and with parameters, by purpose and by type; no others."""
    vcon = two_party_call()
    for number, members in enumerate(
        [
            {"mediatype": "image/jpeg"},
            {"mime_type": "IMAGE/JPEG"},
            {"mediatype": "audio/ogg;codecs=opus"},
            {"purpose": "contract"},
            {"mediatype": "image/png", "purpose": "logo"},
        ]
    ):
        vcon.attachments.append({**members, "body": str(number), "encoding": "none"})
    vcon.add_tag("a", "b")

    after = run_link(MODULE, {"remove_attachment_types": ["image/jpeg", "audio/ogg", "contract"]}, on=vcon, times=2)

    assert [entry["body"] for entry in after.attachments] == ["4", ["a:b"]]


def test_what_points_to_attachments_stays_right() -> None:
    """An analysis of an attachment that moves up moves with it; one of an attachment that is gone points nowhere."""
    vcon = two_party_call()
    for purpose in ("a", "gone", "b", "gone", "c"):
        vcon.add_attachment(purpose=purpose, body=purpose)
    for attachment in (0, 1, 4, [1, 2, 4], [1, 3]):
        vcon.add_analysis(type="x", dialog=0, vendor="v", body="y", extra={"attachment": attachment})

    after = run_link(MODULE, {"remove_attachment_types": ["gone"]}, on=vcon)

    assert [entry.get("attachment", "none") for entry in after.analysis[1:]] == [0, "none", 2, [1, 2], "none"]
    assert [entry["dialog"] for entry in after.analysis[1:]] == [0] * 5


def test_system_prompts_are_taken_out_at_any_depth() -> None:
    """Of objects, lists, and bodies that are the text of JSON; a text that speaks of them stays."""
    vcon = two_party_call()
    vcon.document["meta"] = [{"deep": {"system_prompt": "obey", "left": 1}}]
    vcon.add_analysis(
        type="x",
        dialog=0,
        vendor="v",
        body={"system_prompt": "obey", "answer": 1.5},
        extra={"vendor_schema": {"model": "m", "system_prompt": "obey"}},
    )
    as_text = '{"system_prompt": "obey", "n": 12345678901234567890}'
    vcon.add_analysis(type="y", dialog=0, vendor="v", body=as_text, encoding="json")
    vcon.add_analysis(type="z", dialog=0, vendor="v", body='{ "a": "system_prompt" }', encoding="json")
    vcon.add_analysis(type="z", dialog=0, vendor="v", body="it has a system_prompt", encoding="none")

    after = run_link(MODULE, {"remove_system_prompts": True}, on=vcon, times=2)

    assert after.document["meta"] == [{"deep": {"left": 1}}]
    assert after.analysis[1]["body"] == {"answer": 1.5}
    assert after.analysis[1]["vendor_schema"] == {"model": "m"}
    assert [entry["body"] for entry in after.analysis[2:]] == [
        '{"n": 12345678901234567890}',
        '{ "a": "system_prompt" }',
        "it has a system_prompt",
    ]


@pytest.mark.parametrize("given", [{"remove_dialog_body": True}, {"remove_analysis": True}])
def test_a_sealed_vcon_is_refused(given: dict[str, Any]) -> None:
    """Nobody believes that something was taken out."""
    signed = Vcon(
        {
            "payload": "eyJ1dWlkIjogIjAxOGYzYzVlLTAwMDAtODAwMC04MDAwLTAwMDAwMDAwMDAwMSJ9",
            "signatures": [{"signature": "x", "header": {"uuid": "018f3c5e-0000-8000-8000-000000000001"}}],
        }
    )

    with pytest.raises(VconSealed, match="is signed: nothing can be taken out"):
        run_link(MODULE, given, on=signed)
    assert try_link(MODULE, on=signed).result == signed.uuid


def test_a_missing_vcon_is_an_error() -> None:
    """Not a silent success."""
    link = load_link(LinkConfig(name="diet", module=MODULE))

    with working(Work(throwaway_store().writer())), pytest.raises(VconNotFound):
        link.run("018f3c5e-0000-8000-8000-00000000dead", "diet", link.options)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"s3_bucket": "b", "aws_access_key_id": "AKIA"},
            "give aws_access_key_id and aws_secret_access_key, or neither",
        ),
        ({"post_media_to_url": "media.example"}, "post_media_to_url is not a URL: write https://host/path"),
        ({"endpoint_url": "https://me:pw@minio.example"}, "endpoint_url is not a URL: .* without a login"),
        ({"presigned_url_expiration": 604_801}, "presigned_url_expiration"),
    ],
)
def test_options_that_cannot_work_are_found_by_the_check(given: dict[str, Any], said: str) -> None:
    """Before the first vCon, with the cure."""
    with pytest.raises(ConfigError, match=said):
        load_link(LinkConfig(name="diet", module=MODULE, options=given))


def test_a_missing_package_is_found_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where a bucket is named."""
    monkeypatch.setattr(diet.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(ConfigError, match=r"boto3: pip install 'conserver\[s3\]'"):
        load_link(LinkConfig(name="diet", module=MODULE, options={"s3_bucket": "b"}))
    assert load_link(LinkConfig(name="diet", module=MODULE, options={"remove_analysis": True}))


def test_a_config_of_the_existing_conserver_is_understood(tmp_path: Path) -> None:
    """With all that its documentation shows, and not a word of complaint about the link."""
    (tmp_path / "config.yml").write_text(
        """
links:
  diet:
    module: links.diet
    options:
      remove_dialog_body: true
      post_media_to_url: ""
      remove_analysis: true
      remove_attachment_types: ["image/jpeg", "audio/mp3"]
      remove_system_prompts: true
      s3_bucket: vcon-media
      s3_path: dialogs/processed
      aws_access_key_id: ${AWS_KEY}
      aws_secret_access_key: ${AWS_SECRET}
      aws_region: us-west-2
      presigned_url_expiration: null
storages:
  disk:
    module: storages.file
    options:
      path: vcons
chains:
  main:
    links: [diet]
    storages: [disk]
    ingress_lists: [main_in]
    enabled: 1
"""
    )

    _, findings = check(tmp_path / "config.yml", {"AWS_KEY": KEY_ID, "AWS_SECRET": SECRET})

    assert [str(finding) for finding in findings if "diet" in str(finding)] == []
