"""A fake speech service that speaks the protocols of OpenAI, Azure, LiteLLM, Groq, Deepgram and Hugging Face.

    python -m tests.fakes.speech_server --port 9002

What it hears depends on the bytes of the audio alone, see `heard`. It misbehaves on order, one order a call:

    with SpeechServer() as speech:
        speech.order(status(429, retry_after="1"), cut, unsure(0.2), ok)

It also keeps recordings, for dialogs with a URL: `speech.keep("/calls/7.wav", audio)`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conserver.recordings import wav_seconds
from tests.fakes.http_server import Exchange, HttpServer, Request

Order = Callable[[Exchange], None]

_WORDS = "kettle train window paper music garden winter bread river candle letter pocket bridge silver morning coffee"


@dataclass(frozen=True)
class Call:
    """One call as a service understands it."""

    fields: dict[str, str]
    audio: bytes
    filename: str = ""
    mediatype: str = ""
    url: str = ""
    """What Deepgram is to fetch by itself, instead of audio."""


class SpeechServer(HttpServer):
    """Answers transcriptions at every path of the services, and takes reports of usage at /usage."""

    def __init__(self, *, port: int = 0) -> None:
        super().__init__(self._respond, port=port)
        self._orders: deque[Order] = deque()
        self._recordings: dict[str, bytes] = {}

    @property
    def base_url(self) -> str:
        """What goes into the option `base_url` of OpenAI's vendor."""
        return f"{self.url}/v1"

    @property
    def calls(self) -> list[Request]:
        """The requests for a transcription so far."""
        return [request for request in self.requests if request.method == "POST" and _protocol(request)]

    @property
    def fetches(self) -> list[Request]:
        """The requests for a recording so far."""
        return [request for request in self.requests if request.method == "GET"]

    @property
    def reports(self) -> list[dict[str, Any]]:
        """The reports of usage so far."""
        return [json.loads(request.body) for request in self.requests if request.path == "/usage"]

    def order(self, *orders: Order) -> None:
        """Queue what is to happen to the next calls; after that, all is well again."""
        self._orders.extend(orders)

    def keep(self, path: str, audio: bytes) -> str:
        """Serve a recording, whole or a range of it, and return its URL."""
        self._recordings[path] = audio
        return self.url + path

    def _respond(self, exchange: Exchange) -> None:
        request = exchange.request
        path = request.path.partition("?")[0]
        if path == "/usage":
            exchange.answer(200, b"{}", content_type="application/json")
        elif request.method == "GET" and path in self._recordings:
            self._give(exchange, self._recordings[path])
        elif request.method == "POST" and _protocol(request):
            try:
                order = self._orders.popleft()
            except IndexError:
                order = ok
            order(exchange)
        else:
            _json(exchange, 404, {"error": {"message": f"no such path: {path}"}})

    def _give(self, exchange: Exchange, audio: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", exchange.request.headers.get("range", ""))
        if wanted is None:
            exchange.answer(200, audio, content_type="application/octet-stream")
            return
        start, end = int(wanted[1]), min(int(wanted[2]), len(audio) - 1)
        exchange.answer(206, audio[start : end + 1], content_range=f"bytes {start}-{end}/{len(audio)}")


def heard(audio: bytes) -> str:
    """Return the five words that this audio says."""
    words = _WORDS.split()
    return " ".join(words[byte % len(words)] for byte in hashlib.sha256(audio).digest()[:5])


def call(request: Request) -> Call:
    """Read a request: a form with a file, the URL of a recording, or the audio itself."""
    kind = request.headers.get("content-type", "")
    boundary = re.search(r"multipart/form-data; boundary=(\S+)", kind)
    if boundary is None:
        url = json.loads(request.body)["url"] if kind == "application/json" else ""
        return Call({}, b"" if url else request.body, mediatype=kind, url=url)
    fields: dict[str, str] = {}
    audio, filename, mediatype = b"", "", ""
    for part in request.body.split(f"--{boundary[1]}".encode())[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").removesuffix(b"\r\n").partition(b"\r\n\r\n")
        described = head.decode()
        name = re.search(r' name="([^"]+)"', described)
        file = re.search(r'filename="([^"]*)"', described)
        if file is not None:
            audio, filename = content, file[1]
            mediatype = described.partition("Content-Type: ")[2].strip()
        elif name is not None:
            fields[name[1]] = content.decode()
    return Call(fields, audio, filename, mediatype)


def transcription(request: Request) -> dict[str, Any]:
    """Return the answer to a request, in the protocol of its path."""
    given = call(request)
    said = heard(given.url.encode() or given.audio)
    seconds = wav_seconds(given.audio, len(given.audio)) or 61.5
    if _protocol(request) == "deepgram":
        return _deepgram(said, seconds, 0.98)
    if _protocol(request) == "hugging_face":
        return {"text": said}
    if given.fields.get("response_format") == "verbose_json":
        segment = {"id": 0, "start": 0.0, "end": seconds, "text": said}
        return {"task": "transcribe", "language": "english", "duration": seconds, "text": said, "segments": [segment]}
    spent = max(1, len(given.audio) // 1000)
    details = {"audio_tokens": spent, "text_tokens": 0}
    tokens = {"input_tokens": spent, "output_tokens": 5, "total_tokens": spent + 5, "input_token_details": details}
    return {"text": said, "usage": {"type": "tokens", **tokens}}


def ok(exchange: Exchange) -> None:
    """Answer as one should; to what is no call as one should, 400."""
    given = call(exchange.request)
    if not given.audio and not given.url:
        _json(exchange, 400, {"error": {"message": "no audio"}})
    elif _protocol(exchange.request) == "openai" and "." not in given.filename:
        _json(exchange, 400, {"error": {"message": f"unknown format: {given.filename}"}})
    else:
        _json(exchange, 200, transcription(exchange.request))


def status(code: int, message: str = "on order", **headers: str) -> Order:
    """Answer with an error status."""
    return lambda exchange: _json(exchange, code, {"error": {"message": message}}, **headers)


def answering(value: object) -> Order:
    """Answer 200 with this JSON, whatever was asked."""
    return lambda exchange: _json(exchange, 200, value)


def unsure(confidence: float) -> Order:
    """Answer as Deepgram, and say how sure the answer is."""
    return lambda exchange: _json(exchange, 200, _deepgram(heard(call(exchange.request).audio), 61.5, confidence))


def slow(secs: float) -> Order:
    """Answer well, but late."""

    def late(exchange: Exchange) -> None:
        if exchange.pause(secs):
            ok(exchange)

    return late


def cut(exchange: Exchange) -> None:
    """Break off in the middle of the body."""
    body = json.dumps(transcription(exchange.request)).encode()
    exchange.begin(200, len(body), content_type="application/json")
    exchange.write(body[: len(body) // 2])
    exchange.cut()


def invalid_json(exchange: Exchange) -> None:
    """Answer 200 with something that only begins like JSON."""
    exchange.answer(200, b'{"text": ', content_type="application/json")


def _protocol(request: Request) -> str:
    path = request.path.partition("?")[0]
    if path.endswith("/audio/transcriptions"):
        return "openai"
    if path.endswith("/v1/listen"):
        return "deepgram"
    return "hugging_face" if path.startswith("/hugging-face/") else ""


def _deepgram(said: str, seconds: float, confidence: float) -> dict[str, Any]:
    words = [{"word": word, "start": float(at), "end": at + 0.5} for at, word in enumerate(said.split())]
    best = {"transcript": said, "confidence": confidence, "words": words}
    model = "00000000-0000-4000-8000-000000000001"
    about = {"request_id": "fake", "duration": seconds, "channels": 1, "models": [model]}
    infos = {model: {"name": "general", "version": "fake", "arch": "base"}}
    channel = {"alternatives": [best, {"transcript": "something else"}], "detected_language": "en"}
    return {"metadata": {**about, "model_info": infos}, "results": {"channels": [channel]}}


def _json(exchange: Exchange, code: int, value: object, **headers: str) -> None:
    exchange.answer(code, json.dumps(value).encode(), content_type="application/json", **headers)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="a fake speech service on 127.0.0.1")
    parser.add_argument("--port", type=int, default=9002)
    with SpeechServer(port=parser.parse_args().port) as server:
        sys.stdout.write(f"listening: base_url {server.base_url}\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            sys.stdout.write("bye\n")


if __name__ == "__main__":
    main()
