"""links.wtf_transcribe: each recording goes to vfun once, and no transcript is lost."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conserver import LinkError, Vcon, outbound
from conserver.ambient import Work, working
from conserver.components import check, load_link
from conserver.config import LinkConfig
from conserver.errors import ConfigError, VconNotFound
from conserver.outbound import OutboundPolicy
from conserver.store import VconStore
from conserver.testing import run_link, throwaway_store, try_link, two_party_call
from tests.fakes.http_server import Exchange, HttpServer
from tests.fakes.vfun_server import VfunServer, cut, double_encoded, empty, invalid_json, ok, says, slow, status

MODULE = "links.wtf_transcribe"
KEY = "very-secret-key"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with closed breakers, and waits that take no time."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", lambda _: None)


@pytest.fixture
def vfun() -> Iterator[VfunServer]:
    """A vfun of our own."""
    with VfunServer() as running:
        yield running


@pytest.fixture
def may_fetch_here() -> Iterator[None]:
    """Lets URLs of vCons reach servers of the test."""
    outbound.configure(OutboundPolicy(allow_private=("127.0.0.1/32",)))
    yield
    outbound.configure(OutboundPolicy())


def options(vfun: VfunServer, **more: Any) -> dict[str, Any]:
    return {"vfun-server-url": vfun.wtf_url, **{name.replace("_", "-"): value for name, value in more.items()}}


def call_of(*contents: bytes) -> Vcon:
    """A call with one inline recording a content, and no analyses."""
    vcon = two_party_call()
    del vcon.dialog[:], vcon.analysis[:]
    for content in contents:
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


def transcripts(vcon: Vcon) -> list[tuple[Any, str]]:
    found = [entry for entry in vcon.analysis if entry["type"] == "wtf_transcription"]
    return [(entry["dialog"], entry["body"]["transcript"]["text"]) for entry in found]


class Run:
    """The link on a vCon in a store, for what a failed run leaves behind."""

    def __init__(self, vcon: Vcon, given: dict[str, Any]) -> None:
        self.store: VconStore = throwaway_store()
        self.store.create(vcon)
        self.uuid = str(vcon.uuid)
        self.link = load_link(LinkConfig(name="wtf", module=MODULE, options=given))

    def __call__(self) -> Vcon:
        with working(Work(self.store.writer())):
            self.link.run(self.uuid, "wtf", self.link.options)
        return self.vcon

    @property
    def vcon(self) -> Vcon:
        return self.store.get(self.uuid)


def test_each_recording_is_transcribed_once(vfun: VfunServer) -> None:
    """A second run sends and adds nothing."""
    vcon = run_link(MODULE, options(vfun), on=call_of(b"abc", b"defgh"), times=2)

    assert transcripts(vcon) == [(0, "3 bytes were said"), (1, "5 bytes were said")]
    assert len(vfun.requests) == 2


def test_what_is_written_is_what_vfun_says(vfun: VfunServer) -> None:
    """As JSON, with vendor and schema."""
    entry = run_link(MODULE, options(vfun), on=call_of(b"abc")).analysis[0]

    assert entry == {
        "type": "wtf_transcription",
        "dialog": 0,
        "vendor": "vfun",
        "schema": "wtf-1.0",
        "mediatype": "application/json",
        "encoding": "json",
        "body": {
            "transcript": {"text": "3 bytes were said", "language": "en", "duration": 1.0, "confidence": 0.9},
            "segments": [{"id": 0, "start": 0.0, "end": 1.0, "text": "3 bytes were said", "confidence": 0.9}],
            "metadata": {"provider": "vfun", "model": "fake"},
        },
    }


def test_the_form_is_the_one_that_vfun_knows(vfun: VfunServer) -> None:
    """Audio as file-binary, diarize and language as fields, the key as bearer."""
    vcon = call_of(b"\r\n--abc--\r\n\x00\xff")
    vcon.dialog[0]["filename"] = 'my "best" call.wav'

    run_link(MODULE, options(vfun, language="es", diarize=True, api_key=KEY), on=vcon)
    form = vfun.forms[0]

    assert form.fields == {"diarize": "true", "language": "es"}
    assert (form.content, form.mediatype, form.filename) == (
        b"\r\n--abc--\r\n\x00\xff",
        "audio/x-wav",
        "my__best__call.wav",
    )
    assert vfun.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_without_options_there_is_no_language_and_no_key(vfun: VfunServer) -> None:
    """vfun then finds out what is spoken."""
    run_link(MODULE, options(vfun), on=call_of(b"abc"))

    assert vfun.forms[0].fields == {"diarize": "false"}
    assert "authorization" not in vfun.requests[0].headers


def test_the_configured_language_stands_in_the_transcript(vfun: VfunServer) -> None:
    """Whatever vfun says."""
    vcon = run_link(MODULE, options(vfun, language="es"), on=call_of(b"abc"))

    assert vcon.analysis[0]["body"]["transcript"]["language"] == "es"


def test_an_answer_that_is_encoded_twice_is_understood(vfun: VfunServer) -> None:
    """The transcript is stored as JSON, not as its text."""
    vfun.order(double_encoded)

    assert transcripts(run_link(MODULE, options(vfun), on=call_of(b"abc"))) == [(0, "3 bytes were said")]


def test_only_recordings_with_audio_and_without_a_transcript_are_sent(vfun: VfunServer) -> None:
    """Also one that an earlier transcript covers with others."""
    vcon = call_of(b"done", b"done too", b"to do")
    vcon.add_dialog({"type": "text", "start": vcon.created_at, "body": "hi", "encoding": "none"})
    vcon.add_dialog({"type": "recording", "start": vcon.created_at})
    vcon.add_analysis(type="wtf_transcription", dialog=[0, 1], vendor="vfun", body={"transcript": {"text": "old"}})
    vcon.add_analysis(type="transcript", dialog=2, vendor="other", body="another kind")

    after = run_link(MODULE, options(vfun), on=vcon)

    assert transcripts(after) == [([0, 1], "old"), (2, "5 bytes were said")]


def test_audio_behind_a_url_is_fetched_and_checked(vfun: VfunServer, may_fetch_here: None) -> None:
    """What is not what the vCon says is not transcribed."""
    digest = base64.urlsafe_b64encode(hashlib.sha512(b"abcd").digest()).decode().rstrip("=")
    with HttpServer(lambda exchange: exchange.answer(200, b"abcd", content_type="audio/x-wav")) as recordings:
        vcon = call_of(b"x", b"x")
        for dialog, said in zip(vcon.dialog, (digest, "A" * 86), strict=True):
            del dialog["body"], dialog["encoding"]
            dialog |= {"url": f"{recordings.url}/call.wav", "content_hash": f"sha512-{said}"}
        run = Run(vcon, options(vfun))
        with pytest.raises(LinkError, match=r"^dialog 1: .* is not what the dialog says: its sha512 differs"):
            run()

    assert transcripts(run.vcon) == [(0, "4 bytes were said")]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://127.0.0.1:9/x.wav", "http://169.254.169.254/latest"])
def test_files_and_private_addresses_are_not_read(vfun: VfunServer, url: str) -> None:
    """A vCon cannot make a worker send its own secrets to a transcription server."""
    vcon = call_of(b"x")
    del vcon.dialog[0]["body"]
    vcon.dialog[0]["url"] = url

    with pytest.raises(LinkError, match=r"^dialog 0: .*(not allowed|no public address)"):
        run_link(MODULE, options(vfun), on=vcon)

    assert vfun.requests == []


def test_one_that_fails_does_not_keep_the_others_waiting(vfun: VfunServer) -> None:
    """They are transcribed and saved; then the link fails, and the next run sends the rest."""
    run = Run(call_of(b"1", b"22", b"333"), options(vfun))
    vfun.order(ok, status(400), ok)

    with pytest.raises(LinkError, match=rf"^dialog 1: POST {vfun.url}: answered 400"):
        run()
    kept = transcripts(run.vcon)
    after = run()

    assert kept == [(0, "1 bytes were said"), (2, "3 bytes were said")]
    assert sorted(transcripts(after)) == [(0, "1 bytes were said"), (1, "2 bytes were said"), (2, "3 bytes were said")]
    assert len(vfun.requests) == 4


def test_all_that_fail_are_named(vfun: VfunServer) -> None:
    """The dead letter says what is wrong with each."""
    vcon = call_of(b"1", b"22")
    vcon.dialog[1]["body"] = "*"
    vfun.order(status(413))

    with pytest.raises(LinkError, match=r"^dialog 0: .* answered 413.*; dialog 1: .* no base64url$"):
        run_link(MODULE, options(vfun), on=vcon)


def test_an_unreliable_server_is_asked_again(vfun: VfunServer) -> None:
    """429, 503 and half an answer on the way do not fail the link."""
    vfun.order(status(429, retry_after="1"), status(503), cut)

    assert transcripts(run_link(MODULE, options(vfun), on=call_of(b"abc"))) == [(0, "3 bytes were said")]
    assert [form.content for form in vfun.forms] == [b"abc"] * 4


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (status(500), "answered 500"),
        (invalid_json, "the answer is not JSON"),
        (empty, "the answer is not JSON"),
        (says({"error": "out of memory"}), "the answer is no transcript"),
        (says("not JSON in JSON"), "the answer is no transcript"),
        (says([]), "the answer is no transcript"),
        (says({"transcript": "text"}), "the answer is no transcript"),
    ],
)
def test_what_is_no_transcript_is_not_stored(vfun: VfunServer, order: Callable[[Exchange], None], said: str) -> None:
    """Not even when the status is a good one."""
    run = Run(call_of(b"abc"), options(vfun))
    vfun.order(order)

    with pytest.raises(LinkError, match=f"^dialog 0: POST {vfun.url}: {said}"):
        run()
    assert run.vcon.analysis == []


def test_a_server_that_hangs_ends_with_the_timeout(vfun: VfunServer) -> None:
    """No worker waits for ever."""
    vfun.order(*[slow(30)] * 4)

    with pytest.raises(LinkError, match="no answer in time"):
        run_link(MODULE, options(vfun, vfun_timeout=0.2), on=call_of(b"abc"))


@pytest.mark.parametrize("as_list", [False, True])
def test_the_next_server_is_asked_when_one_fails(vfun: VfunServer, as_list: bool) -> None:
    """In whatever order they stand."""
    for urls in ([f"{vfun.url}/wtf", "http://127.0.0.1:9/wtf"], ["http://127.0.0.1:9/wtf", f"{vfun.url}/wtf"]):
        given = urls if as_list else ", ".join(urls)
        vcon = run_link(MODULE, options(vfun) | {"vfun-server-url": given}, on=call_of(b"abc"))

        assert transcripts(vcon) == [(0, "3 bytes were said")]


def test_recordings_are_spread_over_the_servers(vfun: VfunServer) -> None:
    """All of them work, and one recording always goes to the same first."""
    with VfunServer() as other:
        given = options(vfun) | {"vfun-server-url": [vfun.wtf_url, other.wtf_url]}
        run_link(MODULE, given, on=call_of(*[b"abc"] * 20))

        assert vfun.requests
        assert other.requests
        assert len(vfun.requests) + len(other.requests) == 20


def test_a_transcript_that_somebody_else_added_meanwhile_is_kept_alone(vfun: VfunServer) -> None:
    """Two runs at the same time do not leave two analyses."""
    run = Run(call_of(b"abc"), options(vfun))

    def meanwhile(exchange: Exchange) -> None:
        with run.store.edit(run.uuid) as vcon:
            vcon.add_analysis(type="wtf_transcription", dialog=0, vendor="x", body={"transcript": {"text": "first"}})
        ok(exchange)

    vfun.order(meanwhile)

    assert transcripts(run()) == [(0, "first")]


def test_neither_the_vcon_nor_errors_nor_logs_hold_the_key(vfun: VfunServer, caplog: pytest.LogCaptureFixture) -> None:
    """Even if vfun repeats it."""
    caplog.set_level(logging.DEBUG)
    run = Run(call_of(b"abc"), options(vfun, api_key=KEY))
    vfun.order(status(401, message=f"no such key {KEY}"))

    with pytest.raises(LinkError, match="answered 401") as caught:
        run()

    assert KEY not in str(caught.value) + run().dumps() + caplog.text


def test_a_sealed_vcon_passes_through(vfun: VfunServer) -> None:
    """It shows no dialogs."""
    signed = Vcon(
        {
            "payload": "eyJ1dWlkIjogIjAxOGYzYzVlLTAwMDAtODAwMC04MDAwLTAwMDAwMDAwMDAwMSJ9",
            "signatures": [{"signature": "x", "header": {"uuid": "018f3c5e-0000-8000-8000-000000000001"}}],
        }
    )

    trial = try_link(MODULE, options(vfun), on=signed)

    assert (trial.result, trial.vcon.document, vfun.requests) == (signed.uuid, signed.document, [])


def test_a_missing_vcon_is_an_error(vfun: VfunServer) -> None:
    """Not a silent stop."""
    link = load_link(LinkConfig(name="wtf", module=MODULE, options=options(vfun)))

    with working(Work(throwaway_store().writer())), pytest.raises(VconNotFound):
        link.run("018f3c5e-0000-8000-8000-00000000dead", "wtf", link.options)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "option 'vfun-server-url' is missing"),
        ({"vfun-server-url": None}, "names no server: write http://host:4380/wtf"),
        ({"vfun-server-url": " , "}, "names no server"),
        ({"vfun-server-url": "http://a/wtf, b"}, "number 2 is not a URL"),
        ({"vfun-server-url": "http://a/wtf", "vfun-timeout": 0}, "vfun-timeout"),
    ],
)
def test_options_that_cannot_work_are_found_by_the_check(given: dict[str, Any], said: str) -> None:
    """Before the first vCon, with the cure."""
    with pytest.raises(ConfigError, match=said):
        load_link(LinkConfig(name="wtf", module=MODULE, options=given))


def test_a_config_of_the_existing_conserver_is_understood(tmp_path: Path) -> None:
    """With all that its documentation shows, and not a word of complaint about the link."""
    (tmp_path / "config.yml").write_text(
        """
links:
  wtf_transcribe:
    module: links.wtf_transcribe
    options:
      vfun-server-url: http://localhost:4380/wtf
      language: en
      diarize: true
      vfun-timeout: 300
      url-timeout: 300
      api-key: ${VFUN_KEY}
storages:
  disk:
    module: storages.file
    options:
      path: vcons
chains:
  main:
    links: [wtf_transcribe]
    storages: [disk]
    ingress_lists: [main_in]
    enabled: 1
"""
    )

    _, findings = check(tmp_path / "config.yml", {"VFUN_KEY": "k"})

    assert [str(finding) for finding in findings if "wtf" in str(finding)] == []
