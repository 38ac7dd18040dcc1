"""links.transcribe: recordings become text, once, by services of our own that misbehave on order."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import math
import os
import shutil
import struct
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest

from conserver import LinkError, Vcon, media, outbound, telemetry
from conserver.ambient import Work, working
from conserver.components import check, load_link
from conserver.config import LinkConfig
from conserver.errors import ConfigError, OutboundError, OutboundStatus, VconNotFound
from conserver.outbound import OutboundPolicy
from conserver.store import VconStore
from conserver.testing import run_link, throwaway_store, try_link, two_party_call
from links import transcribe
from links.transcribe import chunks, whisper_vendor
from tests.fakes import ffmpeg as fake_ffmpeg
from tests.fakes import speech_server
from tests.fakes.speech_server import Call, SpeechServer, call, heard

KEY = "sk-very-secret-key"
MODULE = "links.transcribe"
SERVICES = ("openai", "groq", "hugging_face", "deepgram")
NAMES = {"openai": "openai", "groq": "groq_whisper", "hugging_face": "hugging_face_whisper", "deepgram": "deepgram"}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins with closed breakers, empty metrics, no model loaded, and waits that take no time."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", lambda _: None)
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())
    monkeypatch.setattr(whisper_vendor, "_recognisers", {})
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    outbound.configure(OutboundPolicy(allow_private=("127.0.0.1",)))
    yield
    outbound.configure(OutboundPolicy())


@pytest.fixture
def speech() -> Iterator[SpeechServer]:
    """A speech service of our own."""
    with SpeechServer() as running:
        yield running


def sound(secs: float = 2.0, *, silences: tuple[tuple[float, float], ...] = (), tone: int = 30) -> bytes:
    """A tone as a WAV, with nothing at all where the silences are."""
    rate, file = 8000, io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(rate)
        period = [int(12000 * math.sin(2 * math.pi * at / tone)) or 1 for at in range(tone)]
        samples = (period * (int(secs * rate) // tone + 1))[: int(secs * rate)]
        for start, end in silences:
            samples[int(start * rate) : int(end * rate)] = [0] * (int(end * rate) - int(start * rate))
        recording.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return file.getvalue()


SOUND = sound()


def given(vendor: str, speech: SpeechServer, **more: Any) -> dict[str, Any]:
    """Options for a vendor at the fake service; nothing is too short."""
    base: dict[str, dict[str, Any]] = {
        "openai": {"base_url": speech.base_url, "OPENAI_API_KEY": KEY},
        "groq": {"base_url": f"{speech.url}/openai/v1", "API_KEY": KEY},
        "hugging_face": {"API_URL": f"{speech.url}/hugging-face/whisper", "API_KEY": KEY},
        "deepgram": {"base_url": speech.url, "DEEPGRAM_KEY": KEY},
    }
    return {"vendor": vendor, "vendor_options": {"minimum_duration": 0, **base[vendor], **more}}


def recording(audio: bytes = SOUND, **more: Any) -> dict[str, Any]:
    body = base64.urlsafe_b64encode(audio).decode().rstrip("=")
    return {"type": "recording", "parties": [0, 1], "encoding": "base64url", "body": body, **more}


def call_with(*dialogs: dict[str, Any]) -> Vcon:
    """A vCon with these dialogs and no transcript."""
    vcon = two_party_call()
    del vcon.dialog[:], vcon.analysis[:]
    for dialog in dialogs:
        vcon.add_dialog({"start": vcon.created_at, **dialog})
    return vcon


def transcripts(vcon: Vcon) -> list[tuple[Any, Any]]:
    return [(entry["dialog"], said(entry)) for entry in vcon.analysis if entry["type"] == "transcript"]


def said(entry: dict[str, Any]) -> Any:
    return entry["body"].get("text", entry["body"].get("transcript"))


def calls(speech: SpeechServer) -> list[Call]:
    return [call(request) for request in speech.calls]


def counters() -> dict[str, float]:
    return {name: value for (name, _), value in telemetry.metrics.snapshot()["counters"].items()}


class Run:
    """A link on a vCon in a store, for what a failed run leaves behind."""

    def __init__(self, vcon: Vcon, options: dict[str, Any]) -> None:
        self.store: VconStore = throwaway_store()
        self.store.create(vcon)
        self.uuid = str(vcon.uuid)
        self.link = load_link(LinkConfig(name="listen", module=MODULE, options=options))

    def __call__(self) -> Vcon:
        with working(Work(self.store.writer())):
            self.link.run(self.uuid, "listen", self.link.options)
        return self.left

    @property
    def left(self) -> Vcon:
        return self.store.get(self.uuid)


# What every service has in common


@pytest.mark.parametrize("vendor", SERVICES)
def test_each_recording_is_transcribed_once(speech: SpeechServer, vendor: str) -> None:
    """Inline audio arrives as it is, its length unknown or not; a second run sends and adds nothing."""
    one, two = SOUND, sound(3.0)
    vcon = run_link(MODULE, given(vendor, speech), on=call_with(recording(one), recording(two, duration=3)), times=2)

    assert transcripts(vcon) == [(0, heard(one)), (1, heard(two))]
    assert [call.audio for call in calls(speech)] == [one, two]
    assert [entry["vendor"] for entry in vcon.analysis] == [NAMES[vendor]] * 2
    assert {(entry["mediatype"], entry["encoding"]) for entry in vcon.analysis} == {("application/json", "json")}


@pytest.mark.parametrize("vendor", SERVICES)
def test_audio_behind_a_url_is_fetched_and_checked(speech: SpeechServer, vendor: str) -> None:
    """With a hash nobody but us can check, every service gets the bytes; with a wrong one, none gets any."""
    url = speech.keep("/calls/7.wav", SOUND)
    good = base64.urlsafe_b64encode(hashlib.sha512(SOUND).digest()).decode().rstrip("=")
    bad = base64.urlsafe_b64encode(hashlib.sha512(b"x").digest()).decode().rstrip("=")
    dialog = {"type": "recording", "url": url, "duration": 2}

    vcon = run_link(MODULE, given(vendor, speech), on=call_with({**dialog, "content_hash": f"sha512-{good}"}))

    assert transcripts(vcon) == [(0, heard(SOUND))]
    with pytest.raises(LinkError, match="the audio is not what the dialog says: its sha512 differs"):
        run_link(MODULE, given(vendor, speech), on=call_with({**dialog, "content_hash": f"sha512-{bad}"}))
    assert len(speech.calls) == 1


@pytest.mark.parametrize("vendor", SERVICES)
def test_an_unreliable_service_is_asked_again(speech: SpeechServer, vendor: str) -> None:
    """429, 500 and half an answer on the way do not fail the link, and each time all of the audio is sent."""
    speech.order(speech_server.status(429, retry_after="1"), speech_server.status(500), speech_server.cut)

    vcon = run_link(MODULE, given(vendor, speech), on=call_with(recording()))

    assert transcripts(vcon) == [(0, heard(SOUND))]
    assert [call.audio for call in calls(speech)] == [SOUND] * 4


@pytest.mark.parametrize("vendor", SERVICES)
@pytest.mark.parametrize(
    ("order", "said"),
    [
        (speech_server.answering({"error": "the model is overloaded"}), "the answer is no transcript"),
        (speech_server.answering({}), "the answer is no transcript"),
        (speech_server.answering([]), "the answer is no transcript"),
        (speech_server.answering({"text": None, "results": {"channels": []}}), "the answer is no transcript"),
        (speech_server.invalid_json, "the answer is not JSON"),
        (speech_server.status(400, "cannot decode"), 'answered 400: .*"cannot decode"'),
        (speech_server.status(503, retry_after="3600"), "answered 503.*it asks to wait 3600 s"),
    ],
    ids=["error", "empty", "list", "null", "half JSON", "400", "503 for an hour"],
)
def test_an_error_is_never_a_transcript(speech: SpeechServer, vendor: str, order: Any, said: str) -> None:
    """It fails the link, is counted, and leaves nothing behind."""
    run = Run(call_with(recording()), given(vendor, speech))
    speech.order(order)

    with pytest.raises(OutboundError, match=said):
        run()

    assert run.left.analysis == []
    assert len(speech.calls) == 1
    assert counters() == {f"conserver.link.{NAMES[vendor]}.transcription_failures": 1}


@pytest.mark.parametrize("vendor", SERVICES)
def test_a_wrong_key_is_told_without_the_key(speech: SpeechServer, vendor: str) -> None:
    """Services like to repeat it, or its ends."""
    speech.order(speech_server.status(401, f"no such key: {KEY[:5]}...{KEY[-4:]}"))

    with pytest.raises(OutboundStatus, match=r"127\.0\.0\.1: answered 401; check the key in the options") as caught:
        run_link(MODULE, given(vendor, speech), on=call_with(recording()))

    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize("vendor", SERVICES)
def test_a_slow_service_is_not_waited_for(speech: SpeechServer, vendor: str) -> None:
    """Longer than the options say."""
    speech.order(speech_server.slow(20))

    with pytest.raises(OutboundError, match="no answer in time"):
        run_link(MODULE, given(vendor, speech, timeout=0.3, retry_secs=0), on=call_with(recording()))


@pytest.mark.parametrize("vendor", SERVICES)
def test_what_is_known_to_be_too_short_is_left_out(speech: SpeechServer, vendor: str) -> None:
    """As the dialog or the header of a WAV says; what nobody knows is transcribed."""
    unknown = b"ID3" + bytes(5000)
    url = speech.keep("/short.wav", sound(1.0))
    dialogs = [
        recording(duration=9.9),
        recording(sound(1.0)),
        {"type": "recording", "url": url},
        recording(unknown),
        recording(sound(1.5), duration=10),
    ]

    vcon = run_link(MODULE, given(vendor, speech, minimum_duration=10), on=call_with(*dialogs), times=2)

    assert transcripts(vcon) == [(3, heard(unknown)), (4, heard(sound(1.5)))]
    assert [request.headers.get("range") for request in speech.fetches] == ["bytes=0-65535"] * 2


@pytest.mark.parametrize("vendor", SERVICES)
def test_what_stands_in_the_vcon_holds_no_secret(speech: SpeechServer, vendor: str) -> None:
    """Options are kept with the transcript, but no key, and of a URL the host alone."""
    more = {"send_ai_usage_data_to_url": f"{speech.url}/usage", "ai_usage_api_token": "t0ken-of-usage"}
    if vendor == "hugging_face":
        more["API_URL"] = f"{speech.url.replace('//', '//me:pa55word@')}/hugging-face/whisper?token=t1"

    entry = run_link(MODULE, given(vendor, speech, **more), on=call_with(recording())).analysis[0]

    text = json.dumps(entry)
    assert entry["vendor_schema"]["opts"]["minimum_duration"] == 0
    assert [secret for secret in (KEY, "t0ken", "pa55word", "t1", "hugging-face/") if secret in text] == []
    assert speech.url in text


@pytest.mark.parametrize("vendor", SERVICES)
def test_what_a_call_cost_is_reported_and_never_paid_twice(speech: SpeechServer, vendor: str) -> None:
    """A report that fails neither fails the link nor repeats the call."""
    for url in (f"{speech.url}/usage", "http://127.0.0.1:9/usage"):
        options = given(vendor, speech, send_ai_usage_data_to_url=url, ai_usage_api_token="t0ken")
        assert transcripts(run_link(MODULE, options, on=call_with(recording())))

    about = {name: speech.reports[0][name] for name in ("sub_type", "unit_type", "input_units", "ai_model")}
    seconds = {"unit_type": "seconds", "input_units": 2.0}
    assert (
        about
        == {
            "openai": {
                **{"sub_type": "OPENAI_TRANSCRIBE", "ai_model": "gpt-4o-transcribe"},
                **{"unit_type": "tokens", "input_units": len(SOUND) // 1000},
            },
            "groq": {**seconds, "sub_type": "GROQ_TRANSCRIBE", "ai_model": "whisper-large-v3-turbo"},
            "hugging_face": {**seconds, "sub_type": "HUGGING_FACE_TRANSCRIBE", "ai_model": "hugging_face_whisper"},
            "deepgram": {**seconds, "sub_type": "DEEPGRAM_TRANSCRIBE", "ai_model": "nova-3"},
        }[vendor]
    )
    assert (len(speech.reports), len(speech.calls)) == (1, 2)


@pytest.mark.parametrize("vendor", SERVICES)
def test_time_is_measured_without_uuids(speech: SpeechServer, vendor: str) -> None:
    """The series of a link do not grow with the number of vCons."""
    for _ in range(2):
        run_link(MODULE, given(vendor, speech), on=call_with(recording()))

    series = set(telemetry.metrics.snapshot()["histograms"])
    labels = (("link", "link"),)
    more = {("conserver.link.deepgram.confidence", labels)} if vendor == "deepgram" else set()
    assert series == {(f"conserver.link.{NAMES[vendor]}.transcription_time", labels), *more}


def test_only_recordings_with_audio_and_without_transcript_are_sent(speech: SpeechServer) -> None:
    """A transcript counts that is about several dialogs, and whoever made it."""
    vcon = call_with(recording(), recording(), {"type": "text", "body": "hi"}, {"type": "recording"}, recording())
    vcon.add_analysis(type="transcript", dialog=0, vendor="somebody", body={"text": "by hand"})
    vcon.add_analysis(type="transcript", dialog=[1, 2], vendor="somebody", body={"text": "of both"})
    vcon.add_analysis(type="summary", dialog=4, vendor="somebody", body={"text": "short"})

    after = run_link(MODULE, given("groq", speech), on=vcon)

    assert [dialog for dialog, _ in transcripts(after)] == [0, [1, 2], 4]
    assert len(speech.calls) == 1


def test_transcripts_that_are_paid_for_survive_a_later_failure(speech: SpeechServer) -> None:
    """When the second of three calls fails, the first is stored, and the next run makes two calls."""
    run = Run(call_with(recording(), recording(), recording()), given("openai", speech))
    speech.order(speech_server.ok, speech_server.status(400))

    with pytest.raises(OutboundStatus):
        run()
    kept = transcripts(run.left)
    after = run()

    assert kept == [(0, heard(SOUND))]
    assert [dialog for dialog, _ in transcripts(after)] == [0, 1, 2]
    assert len(speech.calls) == 4


def test_bad_audio_does_not_keep_the_other_recordings_back(speech: SpeechServer) -> None:
    """They are transcribed; then the link fails, and says which dialogs have no transcript, and why."""
    run = Run(call_with(recording(encoding="hex"), recording(), recording(b"", body="*")), given("groq", speech))

    with pytest.raises(LinkError) as caught:
        run()

    assert str(caught.value) == (
        "dialog 0: the dialog has encoding 'hex', which is no audio; base64url and base64 are; "
        "dialog 2: the body of the dialog is no base64url"
    )
    assert transcripts(run.left) == [(1, heard(SOUND))]


def test_a_transcript_that_somebody_else_made_meanwhile_is_kept_alone(speech: SpeechServer) -> None:
    """Two runs at the same time do not leave two."""
    run = Run(call_with(recording()), given("groq", speech))

    def meanwhile(exchange: Any) -> None:
        with run.store.edit(run.uuid) as vcon:
            vcon.add_analysis(type="transcript", dialog=0, vendor="other", body={"text": "first"})
        speech_server.ok(exchange)

    speech.order(meanwhile)

    assert transcripts(run()) == [(0, "first")]


def test_silence_is_a_transcript_without_words(speech: SpeechServer) -> None:
    """It is kept, or every run would pay for it again."""
    speech.order(speech_server.answering({"text": ""}))

    vcon = run_link(MODULE, given("openai", speech), on=call_with(recording()), times=2)

    assert transcripts(vcon) == [(0, "")]
    assert len(speech.calls) == 1


def test_filters_hold(speech: SpeechServer) -> None:
    """A vCon that is not selected goes on in the chain as it is."""
    wanted = {"section": "attachments", "purpose": "tags", "includes": "sale:yes"}

    for more in ({"sampling_rate": 0}, {"only_if": wanted}):
        trial = try_link(MODULE, {**given("groq", speech), **more}, on=call_with(recording()))
        assert (trial.result, trial.vcon.analysis) == (trial.vcon.uuid, [])
    assert speech.calls == []


def test_a_sealed_vcon_passes_through(speech: SpeechServer) -> None:
    """It shows no recordings, so there is nothing to do."""
    uuid = "018f3c5e-0000-8000-8000-000000000001"
    payload = base64.urlsafe_b64encode(json.dumps({"uuid": uuid}).encode()).decode()
    signed = Vcon({"payload": payload, "signatures": [{"signature": "x", "header": {"uuid": uuid}}]})

    trial = try_link(MODULE, given("groq", speech), on=signed)

    assert (trial.result, trial.vcon.document, speech.calls) == (uuid, signed.document, [])


def test_a_missing_vcon_is_an_error(speech: SpeechServer) -> None:
    """Not a silent stop."""
    link = load_link(LinkConfig(name="listen", module=MODULE, options=given("groq", speech)))

    with working(Work(throwaway_store().writer())), pytest.raises(VconNotFound):
        link.run("018f3c5e-0000-8000-8000-00000000dead", "listen", link.options)


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"needs the package faster-whisper \(pip install 'conserver\[whisper\]'\)"),
        ({"vendor": "strolid"}, "option 'vendor' must be 'whisper_builtin', 'openai', 'groq', 'hugging_face' or"),
        ({"vendor": "openai"}, "option 'vendor_options' no model service: give OPENAI_API_KEY"),
        ({"vendor": "groq", "vendor_options": None}, "option 'vendor_options' no key: give API_KEY, or GROQ_API_KEY"),
        ({"vendor": "hugging_face", "vendor_options": {"API_KEY": "x"}}, "option 'vendor_options.API_URL' is missing"),
        ({"vendor": "deepgram"}, "no key: give DEEPGRAM_KEY, or LITELLM_PROXY_URL and LITELLM_MASTER_KEY"),
        (
            {"vendor": "deepgram", "vendor_options": {"DEEPGRAM_KEY": "k", "minimum_confidence": 50}},
            "must be less than",
        ),
        ({"vendor": "groq", "vendor_options": ["x"]}, "option 'vendor_options' must be a valid dictionary"),
    ],
)
def test_options_that_cannot_work_are_found_by_the_check(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    """Before the first vCon, in the words of the vendor that is meant, with the cure."""
    monkeypatch.setattr(whisper_vendor.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=said) as caught:
        load_link(LinkConfig(name="listen", module=MODULE, options=options))

    assert str(caught.value).count("link 'listen'") == 1


def test_configs_of_the_existing_conserver_work(tmp_path: Path, speech: SpeechServer) -> None:
    """The four modules that transcribe now do, as they are written there."""
    (tmp_path / "config.yml").write_text(
        f"""
        links:
          openai:
            module: links.openai_transcribe
            options: {{LITELLM_PROXY_URL: "{speech.url}", LITELLM_MASTER_KEY: {KEY}, model: gpt-4o-transcribe,
                       language: en, max_chunk_duration: 480, use_silence_chunking: true, silence_thresh: -40}}
          groq:
            module: links.groq_whisper
            options: {{API_KEY: {KEY}, minimum_duration: 30, Content-Type: audio/flac}}
          hugging_face:
            module: links.hugging_face_whisper
            options: {{API_URL: "{speech.url}/hugging-face/x", API_KEY: "Bearer {KEY}", Content-Type: audio/flac}}
          deepgram:
            module: links.deepgram_link
            options: {{DEEPGRAM_KEY: {KEY}, minimum_confidence: 0.8, api: {{model: nova-2, smart_format: true}}}}
          chosen:
            module: links.transcribe
            options: {{vendor: groq, vendor_options: {{API_KEY: {KEY}}}}}
        chains:
          main: {{links: [openai, groq, hugging_face, deepgram, chosen], ingress_lists: [main_in], storages: [file]}}
        storages:
          file: {{module: storages.file, options: {{path: {tmp_path}}}}}
        """
    )

    config, findings = check(tmp_path / "config.yml", {})

    assert [str(finding) for finding in findings if finding.rule != "deprecated"] == []
    assert config is not None
    bound = {name: load_link(link).options for name, link in config.links.items()}
    assert [options.vendor for options in bound.values()] == ["openai", "groq", "hugging_face", "deepgram", "groq"]
    assert bound["deepgram"].vendor_options.minimum_confidence == 0.8
    assert bound["hugging_face"].vendor_options.API_KEY.get_secret_value() == KEY


def test_a_slip_among_the_options_of_a_vendor_is_told(tmp_path: Path) -> None:
    """At its line; the options of another vendor are unknown, too."""
    (tmp_path / "config.yml").write_text(
        "links:\n  a:\n    module: links.transcribe\n    options:\n      vendor: groq\n      vendor_options:\n"
        "        API_KEY: x\n        minimum_duratoin: 3\n        use_silence_chunking: true\n"
    )

    found = [str(finding) for finding in check(tmp_path / "config.yml", {})[1]]

    assert [line.partition("config.yml:")[2] for line in found if "unknown-option" in line] == [
        "8:9: warning[unknown-option] link 'a': option 'vendor_options' has no 'minimum_duratoin'; "
        "did you mean 'minimum_duration'?",
        "9:9: warning[unknown-option] link 'a': option 'vendor_options' has no 'use_silence_chunking'",
    ]


def test_the_defaults_are_those_of_the_contract() -> None:
    """A config that leaves options out means what it has always meant."""

    def bound(vendor: str, **options: Any) -> Any:
        return transcribe.Options.model_validate({"vendor": vendor, "vendor_options": options}).vendor_options

    openai = bound("openai", OPENAI_API_KEY=KEY)
    assert (openai.model, openai.minimum_duration, openai.max_chunk_duration) == ("gpt-4o-transcribe", 3, 480)
    assert (openai.use_silence_chunking, openai.silence_thresh, openai.silence_len) == (True, -40, 2000)
    assert bound("groq", API_KEY=KEY).minimum_duration == 30
    assert bound("groq", API_KEY=KEY).model == "whisper-large-v3-turbo"
    assert bound("hugging_face", API_URL="http://x").minimum_duration == 30
    deepgram = bound("deepgram", DEEPGRAM_KEY=KEY)
    assert (deepgram.minimum_duration, deepgram.minimum_confidence, deepgram.model) == (60, 0.5, "nova-3")


def test_the_pages_tables_are_those_of_the_code() -> None:
    """Each vendor's options stand on the page as the code has them."""
    from conserver import catalogue
    from conserver.reference import options_table

    page = (Path(__file__).parents[2] / "docs" / "reference" / "links" / "transcribe.md").read_text()

    for vendor, model in transcribe._OPTIONS.items():
        schema = catalogue._schema(SimpleNamespace(Options=model))
        table = options_table(tuple(catalogue._options(schema, schema.get("$defs", {}))))
        assert table in page, f"the table of {vendor} must be:\n{table}"


# OpenAI and what is compatible


def test_openai_is_told_model_and_format_and_little_else(speech: SpeechServer) -> None:
    """By default nothing that a model could refuse; what is set is sent."""
    dialog = recording(filename="call.wav")
    run_link(MODULE, given("openai", speech, organization="org-1", project="p-1"), on=call_with(dialog))
    more = {"language": "de", "temperature": 0.2, "response_format": "verbose_json", "model": "whisper-1"}
    entry = run_link(MODULE, given("openai", speech, **more), on=call_with(dialog)).analysis[0]

    first, second = calls(speech)
    assert first == Call(
        {"model": "gpt-4o-transcribe", "response_format": "json"}, SOUND, filename="call.wav", mediatype="audio/wav"
    )
    assert second.fields == {**more, "temperature": "0.2"}
    assert entry["body"]["segments"][0]["text"] == heard(SOUND)
    headers = speech.calls[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (headers["openai-organization"], headers["openai-project"]) == ("org-1", "p-1")


def test_azure_and_litellm_are_asked_in_their_own_way(speech: SpeechServer) -> None:
    """The first complete group of options is used, as for chats."""
    litellm = {"LITELLM_PROXY_URL": f"{speech.url}/proxy/", "LITELLM_MASTER_KEY": "lite"}
    azure = {"AZURE_OPENAI_ENDPOINT": speech.url, "AZURE_OPENAI_API_KEY": "az", "model": "my deployment"}
    for more in ({**litellm, **azure}, azure):
        assert transcripts(run_link(MODULE, given("openai", speech, **more), on=call_with(recording())))

    proxied, direct = speech.calls
    assert (proxied.path, proxied.headers["authorization"]) == ("/proxy/audio/transcriptions", "Bearer lite")
    assert direct.path == "/openai/deployments/my%20deployment/audio/transcriptions?api-version=2024-10-21"
    assert direct.headers["api-key"] == "az"


def test_tokens_of_transcriptions_are_counted(speech: SpeechServer) -> None:
    """Like those of chats."""
    run_link(MODULE, given("openai", speech), on=call_with(recording()))

    counted = counters()
    assert counted == {"conserver.model.input_tokens": len(SOUND) // 1000, "conserver.model.output_tokens": 5}


# Long audio


@pytest.fixture(params=["fake", "real"])
def ffmpeg(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An ffmpeg on PATH: one of our own, and the real one where it is installed."""
    if request.param == "fake":
        fake_ffmpeg.install(tmp_path)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    elif shutil.which("ffmpeg") is None:
        imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="no ffmpeg on PATH, and no imageio-ffmpeg")
        (tmp_path / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return str(request.param)


LONG = sound(7.0, silences=((1.5, 2.1), (3.0, 3.4), (5.9, 6.0)))


def test_long_audio_is_cut_in_its_silences_and_joined(speech: SpeechServer, ffmpeg: str) -> None:
    """One transcript with the text of all pieces, what they cost together, and what each of them said."""
    options = given("openai", speech, max_chunk_duration=2, silence_len=300)

    vcon = run_link(MODULE, options, on=call_with(recording(LONG)), times=2)

    pieces = [call.audio for call in calls(speech)]
    body = vcon.analysis[0]["body"]
    assert len(vcon.analysis) == 1
    assert body["text"] == " ".join(heard(piece) for piece in pieces)
    spent = [max(1, len(piece) // 1000) for piece in pieces]
    assert body["usage"] == {
        **{"type": "tokens", "input_tokens": sum(spent), "output_tokens": 20, "total_tokens": sum(spent) + 20},
        "input_token_details": {"audio_tokens": sum(spent), "text_tokens": 0},
    }
    assert body["chunked_transcription"]["total_chunks"] == 4
    assert [part["text"] for part in body["chunked_transcription"]["chunk_results"]] == [heard(p) for p in pieces]
    assert {(call.filename, call.mediatype) for call in calls(speech)} == {("audio.mp3", "audio/mpeg")}
    if ffmpeg == "fake":
        seconds = [media.audio(recording(piece)).__enter__().duration for piece in pieces]
        assert seconds == pytest.approx([1.8, 2.2, 2.0, 1.0], abs=0.02)


def test_audio_of_unknown_length_is_listened_to_first(speech: SpeechServer, ffmpeg: str) -> None:
    """What turns out to be short is sent as it is."""
    sent = {}
    with media.audio(recording(LONG)) as audio:
        unknown = replace(audio, duration=None)
        for longest in (30, 4):
            cutting = chunks.Cutting(longest, at_silences=True, noise_dbfs=-40, silence_secs=2)
            sent[longest] = [piece.filename for piece in chunks.pieces(unknown, cutting)]

    assert sent == {30: ["audio.wav"], 4: ["audio.mp3", "audio.mp3"]}


def test_what_ffmpeg_does_not_know_is_sent_if_it_may_be_short(speech: SpeechServer, ffmpeg: str) -> None:
    """The service may know it."""
    odd = b"a format of its own"

    assert transcripts(run_link(MODULE, given("openai", speech), on=call_with(recording(odd, mediatype="audio/mp3"))))
    assert [call.audio for call in calls(speech)] == [odd]


def test_what_ffmpeg_cannot_read_fails_the_link(speech: SpeechServer, ffmpeg: str) -> None:
    """Nothing is sent that would be refused."""
    with pytest.raises(LinkError, match=r"ffmpeg cannot read the audio of the dialog: .*Invalid data found"):
        run_link(
            MODULE, given("openai", speech), on=call_with(recording(b"#EXTM3U\nfile:///etc/passwd\n", duration=999))
        )

    assert speech.calls == []


def test_without_ffmpeg_long_audio_goes_whole(
    speech: SpeechServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That is said once, not for each vCon."""
    monkeypatch.setenv("PATH", "")
    chunks._missed.clear()
    options = given("openai", speech, max_chunk_duration=1)

    with caplog.at_level(logging.WARNING):
        vcon = run_link(MODULE, options, on=call_with(recording(), recording()))

    assert transcripts(vcon) == [(0, heard(SOUND)), (1, heard(SOUND))]
    assert [r.message for r in caplog.records] == [
        "ffmpeg is not on PATH, so long audio is sent whole, which services may refuse"
    ]


@pytest.mark.parametrize(
    ("duration", "silences", "expected"),
    [
        (25.0, [], [10.0, 20.0]),
        (25.0, [(8.0, 10.0), (17.0, 18.0)], [9.0, 17.5]),
        (25.0, [(7.0, 7.9), (12.6, 13.0)], [7.45 + 2.55, 20.0]),
        (25.0, [(7.4, 7.6), (12.4, 12.6)], [7.5, 20.0]),
        (25.0, [(9.0, 9.2), (10.4, 10.6)], [10.5, 20.0]),
        (10.0, [], []),
        (10.4, [(9.0, 9.2)], []),
        (10.6, [], [10.0]),
    ],
)
def test_cuts_are_at_the_silence_that_is_nearest(
    duration: float, silences: list[tuple[float, float]], expected: list[float]
) -> None:
    """Within a quarter of a piece around each multiple of the longest, else at the multiple."""
    assert chunks.cuts(duration, silences, 10.0) == pytest.approx(expected)


def test_a_chunk_that_fails_fails_all_of_it(speech: SpeechServer, ffmpeg: str) -> None:
    """No transcript with a hole in it is kept."""
    run = Run(call_with(recording(LONG)), given("openai", speech, max_chunk_duration=2))
    speech.order(speech_server.ok, speech_server.status(400))

    with pytest.raises(OutboundStatus):
        run()

    assert run.left.analysis == []


# Groq, Hugging Face


def test_the_key_of_groq_may_come_from_the_environment(speech: SpeechServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it always could; the rest of the environment stays as it is."""
    monkeypatch.setenv("GROQ_API_KEY", f"{KEY}\n")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    options = given("groq", speech)
    del options["vendor_options"]["API_KEY"]

    run_link(MODULE, options, on=call_with(recording()))

    assert speech.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert speech.calls[0].path == "/openai/v1/audio/transcriptions"
    assert calls(speech)[0].fields == {"model": "whisper-large-v3-turbo", "response_format": "verbose_json"}
    assert os.environ["HTTPS_PROXY"] == "http://proxy.example"


def test_hugging_face_gets_one_bearer_and_the_kind_of_audio(speech: SpeechServer) -> None:
    """However the key is written; the option for the kind is obeyed where it is given."""
    for key, more in ((KEY, {}), (f"Bearer {KEY}", {"Content-Type": "audio/flac"}), ("", {})):
        run_link(MODULE, given("hugging_face", speech, API_KEY=key, **more), on=call_with(recording()))

    headers = [request.headers for request in speech.calls]
    assert [one.get("authorization") for one in headers] == [f"Bearer {KEY}", f"Bearer {KEY}", None]
    assert [one["content-type"] for one in headers] == ["audio/wav", "audio/flac", "audio/wav"]


# Deepgram


def test_deepgram_fetches_what_it_may(speech: SpeechServer) -> None:
    """A URL without a hash is given to it; what it answers to is measured without a download."""
    url = speech.keep("/calls/7.wav", SOUND)
    dialog = {"type": "recording", "url": f"{url}?sig=s3cret", "duration": 100}

    entry = run_link(MODULE, given("deepgram", speech), on=call_with(dialog)).analysis[0]
    run_link(MODULE, given("deepgram", speech, by_url=False), on=call_with(dialog))

    assert entry["body"]["transcript"] == heard(dialog["url"].encode())
    assert (entry["body"]["confidence"], entry["body"]["detected_language"]) == (0.98, "en")
    assert [(one.url, one.audio) for one in calls(speech)] == [(dialog["url"], b""), ("", SOUND)]
    assert len(speech.fetches) == 1
    assert speech.calls[0].path == "/v1/listen?model=nova-3&smart_format=true&detect_language=true"
    assert speech.calls[0].headers["authorization"] == f"Token {KEY}"


def test_deepgram_errors_do_not_repeat_the_url(speech: SpeechServer) -> None:
    """Its query often is a signature."""
    dialog = {"type": "recording", "url": "https://audio.example/a.wav?sig=s3cret", "duration": 100}
    speech.order(speech_server.status(400, f"cannot fetch {dialog['url']}"))

    with pytest.raises(OutboundStatus, match=r"answered 400$") as caught:
        run_link(MODULE, given("deepgram", speech), on=call_with(dialog))

    assert "s3cret" not in str(caught.value)


def test_deepgram_gets_the_parameters_of_the_config(speech: SpeechServer) -> None:
    """And the report names the model that was really used."""
    usage = {"send_ai_usage_data_to_url": f"{speech.url}/usage"}
    api = {"model": "nova-2", "diarize": True, "keyterm": ["kettle", "tea"], "language": None}
    for given_api in (api, {"punctuate": True}):
        run_link(MODULE, given("deepgram", speech, api=given_api, **usage), on=call_with(recording()))

    paths = [request.path for request in speech.calls]
    assert paths == ["/v1/listen?model=nova-2&diarize=true&keyterm=kettle&keyterm=tea", "/v1/listen?punctuate=true"]
    assert [report["ai_model"] for report in speech.reports] == ["nova-2", "base"]


def test_what_deepgram_is_not_sure_of_is_dropped(speech: SpeechServer) -> None:
    """The option draws the line; the number goes into the metrics."""
    speech.order(speech_server.unsure(0.69), speech_server.unsure(0.71))
    dialogs = call_with(recording(), recording())

    vcon = run_link(MODULE, given("deepgram", speech, minimum_confidence=0.7), on=dialogs)

    assert [dialog for dialog, _ in transcripts(vcon)] == [1]
    row = telemetry.metrics.snapshot()["histograms"]["conserver.link.deepgram.confidence", (("link", "link"),)]
    assert row[-1] == pytest.approx(1.4)


def test_deepgram_behind_a_proxy(speech: SpeechServer) -> None:
    """LiteLLM is asked as OpenAI would be; the transcript has the shape of Deepgram's."""
    more = {"LITELLM_PROXY_URL": speech.url, "LITELLM_MASTER_KEY": "lite", "model": "deepgram/nova-3"}

    entry = run_link(MODULE, given("deepgram", speech, **more), on=call_with(recording())).analysis[0]

    assert (entry["vendor"], entry["body"]) == ("deepgram", {"transcript": heard(SOUND)})
    assert speech.calls[0].path == "/audio/transcriptions"
    assert speech.calls[0].headers["authorization"] == "Bearer lite"
    assert calls(speech)[0].fields == {"model": "deepgram/nova-3"}


# A model in the worker


class Ears:
    """A recogniser that hears what the fake service hears, in two segments."""

    def __init__(self, *, fails: bool = False) -> None:
        self.loaded: list[str] = []
        self.asked: list[str | None] = []
        self._fails = fails

    def load(self, model_size: str) -> Ears:
        self.loaded.append(model_size)
        return self

    def transcribe(self, audio: BinaryIO, *, language: str | None, word_timestamps: bool) -> tuple[Any, Any]:
        self.asked.append(language)
        data = audio.read()
        if self._fails:
            raise RuntimeError("the codec is not known")
        return (self._segment(number, text) for number, text in enumerate(self._halves(data))), SimpleNamespace(
            language="en", duration=2.0
        )

    @staticmethod
    def _halves(data: bytes) -> list[str]:
        words = heard(data).split()
        return [" " + " ".join(words[:2]), " " + " ".join(words[2:])]

    @staticmethod
    def _segment(number: int, text: str) -> Any:
        words = [
            SimpleNamespace(word=f" {word}", start=3661.5 + at, end=3662.0 + at, probability=0.9)
            for at, word in enumerate(text.split())
        ]
        return SimpleNamespace(id=number, start=0.0, end=1.0, text=text, words=words)


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> Ears:
    """A recogniser in the place of a model."""
    made = Ears()
    monkeypatch.setattr(whisper_vendor, "load", made.load)
    return made


def test_a_model_in_the_worker_is_loaded_once(ears: Ears) -> None:
    """With no option at all: the size is `base`, and every recording is transcribed, once."""
    vcon = run_link(MODULE, on=call_with(recording(), recording(sound(3))), times=2)
    run_link(MODULE, {"vendor_options": {"model_size": "base", "language": "de"}}, on=call_with(recording()))

    assert transcripts(vcon) == [(0, heard(SOUND)), (1, heard(sound(3)))]
    assert vcon.analysis[0]["vendor"] == "whisper_builtin"
    assert vcon.analysis[0]["body"]["segments"][1]["words"][0]["word"] == " " + heard(SOUND).split()[2]
    assert (ears.loaded, ears.asked) == (["base"], [None, None, "de"])


def test_the_old_name_of_the_options_will_do(ears: Ears) -> None:
    """Configs from before there were vendors say `transcribe_options`."""
    run_link(
        MODULE, {"transcribe_options": {"model_size": "tiny", "output_options": ["vendor"]}}, on=call_with(recording())
    )

    assert ears.loaded == ["tiny"]


def test_subtitles_are_further_transcripts(ears: Ears) -> None:
    """Word by word, in the formats that are asked for."""
    options = {"vendor_options": {"output_options": ["vendor", "word_srt", "word_ass"]}}

    entries = run_link(MODULE, options, on=call_with(recording()), times=2).analysis

    first = heard(SOUND).split()[0]
    assert [entry.get("schema") for entry in entries] == [None, "whisper_word_srt", "whisper_word_ass"]
    assert entries[1]["body"].startswith(f"1\n01:01:01,500 --> 01:01:02,000\n{first}\n\n2\n01:01:02,500")
    assert f"\nDialogue: 0,1:01:01.50,1:01:02.00,Default,{first}\n" in entries[2]["body"]
    assert ears.loaded == ["base"]


def test_a_model_that_fails_fails_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises; the count says it."""
    monkeypatch.setattr(whisper_vendor, "load", Ears(fails=True).load)

    with pytest.raises(LinkError, match="whisper cannot transcribe the dialog: RuntimeError: the codec is not known"):
        run_link(MODULE, on=call_with(recording()))

    assert counters() == {"conserver.link.whisper_builtin.transcription_failures": 1}


def test_a_package_that_went_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that brings it back."""
    monkeypatch.setitem(__import__("sys").modules, "faster_whisper", None)

    with pytest.raises(LinkError, match=r"needs the package faster-whisper \(pip install 'conserver\[whisper\]'\)"):
        whisper_vendor._faster_whisper("base")
