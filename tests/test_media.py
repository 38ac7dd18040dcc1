"""media: the audio of a dialog, inline and behind a URL, against a server that is really there."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tracemalloc
import wave
from collections.abc import Iterator
from typing import Any

import pytest

from conserver import LinkError, media, outbound
from conserver.errors import OutboundError, OutboundRefused, OutboundStatus, OutboundTooLarge
from conserver.outbound import Limits, OutboundPolicy
from tests.fakes.http_server import Exchange, HttpServer
from tests.fakes.speech_server import SpeechServer

SOUND = bytes(range(256)) * 40  # all bytes, so that both alphabets show their last two characters
LOCAL = OutboundPolicy(allow_private=("127.0.0.1",))


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The servers of the tests may be reached by URLs of vCons, and breakers are closed."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", lambda _: None)
    outbound.configure(LOCAL)
    yield
    outbound.configure(OutboundPolicy())


@pytest.fixture
def server() -> Iterator[SpeechServer]:
    """A server that keeps recordings."""
    with SpeechServer() as running:
        yield running


def wav(secs: float = 2.0, *, rate: int = 8000) -> bytes:
    """Silence, as a WAV of 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(bytes(2 * int(secs * rate)))
    return file.getvalue()


def inline(body: Any, **more: Any) -> dict[str, Any]:
    return {"type": "recording", "body": body, **more}


def b64(data: bytes = SOUND) -> str:
    return base64.b64encode(data).decode()


def b64url(data: bytes = SOUND) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def digest(algorithm: str, data: bytes = SOUND) -> str:
    return b64url(hashlib.new(algorithm, data).digest())


def read(dialog: dict[str, Any], **how: Any) -> bytes:
    with media.audio(dialog, **how) as audio:
        return audio.file.read()


# Inline


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b64(), {"encoding": "base64"}),
        (b64(), {}),
        (b64(), {"encoding": None}),
        (b64url(), {"encoding": "base64url"}),
        (b64url(SOUND) + "=" * (-len(b64url()) % 4), {"encoding": "base64url"}),
        ("\n".join(b64url()[at : at + 77] for at in range(0, len(b64url()), 77)) + "\n", {"encoding": "base64url"}),
        ("\r\n".join(b64()[at : at + 76] for at in range(0, len(b64()), 76)), {"encoding": "base64"}),
    ],
    ids=["base64", "no encoding", "encoding null", "base64url", "padded", "lines", "mime"],
)
def test_inline_audio_is_decoded(body: str, encoding: dict[str, Any]) -> None:
    """In both alphabets, with padding or without, in one line or in many."""
    assert read(inline(body, **encoding)) == SOUND


@pytest.mark.parametrize("extra", [0, 1, 2, 3])
def test_a_body_of_several_megabytes_is_decoded_in_pieces(extra: int) -> None:
    """Wherever a piece ends, and however the line breaks fall."""
    data = os.urandom(1_600_000 + extra)

    for encode, encoding in ((b64, "base64"), (b64url, "base64url")):
        text = encode(data)
        lines = "\n".join(text[at : at + 75] for at in range(0, len(text), 75))
        assert read(inline(lines, encoding=encoding)) == data


@pytest.mark.parametrize(
    ("body", "encoding", "said"),
    [
        (b64(), "base64url", "the body of the dialog is no base64url"),
        (b64url(), "base64", "the body of the dialog is no base64"),
        (b64url(), None, "the body of the dialog is no base64"),
        ("QUJD*", "base64", "the body of the dialog is no base64"),
        ("QQ==QUJD", "base64", "the body of the dialog is no base64"),
        ("QUJDR", "base64url", "the body of the dialog is no base64url"),
        ("QQ", "base64", "the body of the dialog is no base64"),
        ("QUJD", "none", "the dialog has encoding 'none', which is no audio; base64url and base64 are"),
        ("QUJD", "hex", "the dialog has encoding 'hex', which is no audio"),
        ({"a": 1}, "json", "the dialog has a body that is dict, which is no audio"),
        ("  ", "base64", "the audio of the dialog is empty"),
    ],
)
def test_what_is_no_audio_is_an_error(body: Any, encoding: str | None, said: str) -> None:
    """It is never half decoded, nor taken for something else."""
    with pytest.raises(LinkError, match=said.replace("(", r"\(")):
        read(inline(body, encoding=encoding))


def test_inline_audio_has_a_limit() -> None:
    """As fetched audio has."""
    with pytest.raises(LinkError, match="the audio of the dialog has more than 1000 bytes"):
        read(inline(b64()), limits=Limits(max_bytes=1000))


def test_a_dialog_without_audio_is_an_error() -> None:
    """And `has_audio` tells before."""
    with pytest.raises(LinkError, match="neither a body nor a url"):
        read({"type": "recording", "body": ""})

    assert not media.has_audio({"type": "recording", "body": ""})
    assert not media.has_audio({"type": "text", "body": "hello"})
    assert media.has_audio({"type": "recording", "url": "https://x/y.wav"})


# What it says of itself


@pytest.mark.parametrize(
    ("dialog", "mediatype", "filename"),
    [
        (inline(b64(wav())), "audio/wav", "audio.wav"),
        (inline(b64(b"ID3" + SOUND)), "audio/mpeg", "audio.mp3"),
        (inline(b64(b"OggS" + SOUND), mediatype="Audio/Ogg; codecs=opus"), "audio/ogg", "audio.ogg"),
        (inline(b64(), mediatype="audio/x-wav", filename="call 7.WAV"), "audio/x-wav", "call_7.WAV"),
        (inline(b64(), mediatype="audio/mp4", filename='../../a"b\r\n'), "audio/mp4", "a_b.m4a"),
        (inline(b64(), mediatype="evil\r\nx: y"), "application/octet-stream", "audio"),
    ],
)
def test_mediatype_and_filename_are_fit_for_a_form(dialog: dict[str, Any], mediatype: str, filename: str) -> None:
    """Services go by the ending; what a stranger wrote gets into no header."""
    with media.audio(dialog) as audio:
        assert (audio.mediatype, audio.filename) == (mediatype, filename)


def test_the_file_is_gone_afterwards_and_can_be_given_to_a_child() -> None:
    """It has no name that could be left behind."""
    with media.audio(inline(b64())) as audio:
        file, path, size = audio.file, audio.path, audio.size
        with open(path, "rb") as again:
            found = again.read()

    assert (found, size, file.closed) == (SOUND, len(SOUND), True)


@pytest.mark.parametrize(
    ("dialog", "secs"),
    [
        (inline(b64(wav(2.5))), 2.5),
        (inline(b64(wav(2.5)), duration=99), 2.5),
        (inline(b64(), duration=42.5), 42.5),
        (inline(b64(), duration="42.5"), 42.5),
        (inline(b64(), duration="long"), None),
        (inline(b64(), duration=-1), None),
        (inline(b64(), duration=True), None),
        (inline(b64()), None),
    ],
)
def test_the_duration_is_measured_or_said_or_unknown(dialog: dict[str, Any], secs: float | None) -> None:
    """The header of a WAV knows better than the dialog; a missing duration is no error."""
    with media.audio(dialog) as audio:
        assert audio.duration == secs


def test_a_header_that_was_written_before_the_end_is_no_lie() -> None:
    """Recorders that stream leave 0 or the largest number as the length; one that promises too much is cut short."""
    sound = wav(2.0)
    at = sound.index(b"data") + 4

    for length in (0, 0xFFFFFFFF, 10**9):
        streamed = sound[:at] + length.to_bytes(4, "little") + sound[at + 4 :]
        with media.audio(inline(b64(streamed))) as audio:
            assert audio.duration == 2.0


def test_a_wav_behind_a_url_is_measured_by_its_beginning(server: SpeechServer) -> None:
    """A range of it is enough."""
    url = server.keep("/long.wav", wav(600))

    assert media.seconds({"type": "recording", "url": url}) == 600
    assert server.fetches[0].headers["range"] == "bytes=0-65535"
    assert media.seconds({"type": "recording", "url": url, "duration": 3}) == 3
    assert media.seconds({"type": "recording", "url": f"{server.url}/other.mp3"}) is None
    assert media.seconds({"type": "recording", "url": f"{server.url}/missing.wav"}) is None
    assert len(server.fetches) == 2


def test_a_server_without_ranges_is_not_read_to_the_end() -> None:
    """What came before the limit tells the length."""
    sound = wav(60)
    sent = 0

    def give(exchange: Exchange) -> None:
        nonlocal sent
        exchange.begin(200, 10**12)
        exchange.write(sound)
        sent += len(sound)
        while exchange.pause(0.01):
            exchange.write(bytes(65536))
            sent += 65536

    with HttpServer(give) as server:
        found = media.seconds({"type": "recording", "url": f"{server.url}/a.wav"})

    assert found == 60
    assert sent < 50_000_000


def test_an_inline_wav_is_measured_without_decoding_it_all() -> None:
    """Before anything is written to disk."""
    assert media.seconds(inline(b64url(wav(30)), encoding="base64url")) == 30
    assert media.seconds(inline("***")) is None


# Behind a URL


def test_audio_is_fetched(server: SpeechServer) -> None:
    """A hash is not demanded, since drafts before had none."""
    url = server.keep("/calls/a%20b.mp3", b"ID3" + SOUND)

    with media.audio({"type": "recording", "url": f"{url}?token=x"}) as audio:
        assert (audio.file.read(), audio.filename, audio.mediatype) == (b"ID3" + SOUND, "a_b.mp3", "audio/mpeg")


def hashes() -> Iterator[Any]:
    for algorithm in ("sha256", "sha384", "sha512"):
        yield pytest.param({"content_hash": f"{algorithm}-{digest(algorithm)}"}, id=algorithm)
    both = [f"sha256-{digest('sha256')}", f"sha512-{digest('sha512')}"]
    yield pytest.param({"content_hash": both}, id="two")
    yield pytest.param({"content_hash": [*both, "blake3-abc"]}, id="two that are known")
    yield pytest.param({"content_hash": []}, id="none in a list")
    yield pytest.param({"content_hash": f"sha512-{digest('sha512')}=="}, id="padded")
    plain = b64(hashlib.sha512(SOUND).digest())
    for alg, signature in (("SHA-512", plain), ("SHA512", digest("sha512")), ("SHA-256", digest("sha256"))):
        yield pytest.param({"alg": alg, "signature": signature}, id=f"{alg}, {signature[-2:]}")


@pytest.mark.parametrize("given", list(hashes()))
def test_audio_that_has_its_hash_is_taken(server: SpeechServer, given: dict[str, Any]) -> None:
    """By each algorithm of the draft, and as older drafts wrote it, in both alphabets."""
    assert read({"type": "recording", "url": server.keep("/a", SOUND), **given}) == SOUND


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"content_hash": f"sha512-{digest('sha512', b'other')}"},
            "/a: the audio is not what the dialog says: its sha512",
        ),
        ({"content_hash": [f"sha256-{digest('sha256')}", f"sha512-{digest('sha512', b'x')}"]}, "its sha512 differs"),
        ({"content_hash": [f"sha256-{digest('sha256')}", f"sha256-{digest('sha256', b'x')}"]}, "its sha256 differs"),
        ({"alg": "SHA-512", "signature": digest("sha512", b"x")}, "its sha512 differs"),
        (
            {"content_hash": "md5-rL0Y20zC-Fzt72VPzMSk2A"},
            "the hash of the audio is md5, which is not known; known are sha",
        ),
        ({"alg": "lm-ots", "signature": "abc"}, "the hash of the audio is lm, which is not known"),
        ({"content_hash": "sha512-abc"}, "the sha512 of the dialog's audio is no sha512 in base64url"),
        ({"content_hash": "sha512-***"}, "the sha512 of the dialog's audio is no sha512 in base64url"),
        ({"content_hash": 7}, "the hash of the audio is 7, which is not known"),
    ],
)
def test_audio_with_another_hash_is_refused(server: SpeechServer, given: dict[str, Any], said: str) -> None:
    """Also where one of several does not fit, and where nothing of it can be checked."""
    with pytest.raises(LinkError, match=said):
        read({"type": "recording", "url": server.keep("/a", SOUND), **given})


def test_what_cannot_be_checked_is_not_fetched(server: SpeechServer) -> None:
    """The refusal costs no download."""
    with pytest.raises(LinkError):
        read({"type": "recording", "url": server.keep("/a", SOUND), "content_hash": "md5-abc"})

    assert server.requests == []


def test_strangers_do_not_choose_what_the_worker_reads(server: SpeechServer, tmp_path: Any) -> None:
    """No private address and no file, unless the config's `outbound` has them."""
    outbound.configure(OutboundPolicy())
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav())

    with pytest.raises(OutboundRefused, match=r"127\.0\.0\.1: this host has no public address"):
        read({"type": "recording", "url": server.keep("/a", SOUND)})
    with pytest.raises(OutboundRefused, match="file URLs are not allowed"):
        read({"type": "recording", "url": secret.as_uri()})
    assert media.seconds({"type": "recording", "url": secret.as_uri()}) is None
    assert server.requests == []

    outbound.configure(OutboundPolicy(allow_file=True))
    assert read({"type": "recording", "url": secret.as_uri()}) == wav()


def test_a_redirect_is_checked_like_the_url() -> None:
    """A public server cannot send the worker to a private one."""
    outbound.configure(OutboundPolicy(allow_private=("127.0.0.1",)))
    with (
        HttpServer(lambda exchange: exchange.answer(302, location="http://10.0.0.1/a")) as server,
        pytest.raises(OutboundRefused, match=r"10\.0\.0\.1: this host has no public address"),
    ):
        read({"type": "recording", "url": server.url})


def test_an_error_page_is_no_audio() -> None:
    """Statuses are errors, and audio that is too large or too slow is one, too."""

    def missing(exchange: Exchange) -> None:
        exchange.answer(404, b"no such call", content_type="text/plain")

    def drip(exchange: Exchange) -> None:
        exchange.begin(200, 1000)
        while exchange.pause(0.05):
            exchange.write(b"x")

    cases: list[tuple[Any, Limits, type[Exception], str]] = [
        (missing, Limits(), OutboundStatus, 'answered 404: "no such call"'),
        (lambda exchange: exchange.answer(200, SOUND), Limits(max_bytes=99), OutboundTooLarge, "larger than 99 bytes"),
        (drip, Limits(total_secs=0.3), OutboundError, "no answer in time"),
        (lambda exchange: exchange.answer(200), Limits(), LinkError, "the audio of the dialog is empty"),
    ]
    for respond, limits, error, said in cases:
        with HttpServer(respond) as server, pytest.raises(error, match=said):
            read({"type": "recording", "url": server.url}, limits=limits)


def test_a_download_that_breaks_off_begins_again() -> None:
    """What came of the first attempt is not in front of the second."""
    attempts = iter([True, False])

    def respond(exchange: Exchange) -> None:
        if next(attempts):
            exchange.begin(200, 10**6)
            exchange.write(b"more than the whole audio" * 1000)
            exchange.cut()
        else:
            exchange.answer(200, SOUND)

    with HttpServer(respond) as server:
        assert read({"type": "recording", "url": server.url, "content_hash": f"sha256-{digest('sha256')}"}) == SOUND


def test_large_audio_is_not_kept_in_memory() -> None:
    """Not when it is decoded, nor when it is fetched, nor when it is sent on."""
    data = bytes(8_000_000)
    body = b64(data)
    received = []

    def respond(exchange: Exchange) -> None:
        received.append(len(exchange.request.body))
        exchange.begin(200, len(data))
        for _ in range(100):
            exchange.write(bytes(80_000))

    with HttpServer(respond) as server:
        for dialog in (inline(body), {"type": "recording", "url": server.url}):
            tracemalloc.start()
            with media.audio(dialog) as audio:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                size = audio.size
            assert (size, peak < 6_000_000) == (len(data), True), f"{peak:,} bytes"


# Sending it on


def test_an_upload_is_sent_whole_each_time() -> None:
    """A repetition begins at the first byte again, with the length said beforehand."""
    bodies = []

    def respond(exchange: Exchange) -> None:
        bodies.append((exchange.request.body, exchange.request.headers.get("content-length")))
        exchange.answer(503 if len(bodies) == 1 else 200, b"ok")

    with HttpServer(respond) as server, media.audio(inline(b64())) as audio:
        body = outbound.Upload(b"<", audio.file, b">")
        answer = outbound.request("POST", server.url, trusted=True, body=body, repeatable=True)

    assert answer.body == b"ok"
    assert bodies == [(b"<" + SOUND + b">", str(len(SOUND) + 2))] * 2
