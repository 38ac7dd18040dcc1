"""S3 for tests: moto's server as a process of its own, and a gate in front of it that misbehaves on order.

moto takes any credentials, so it is the gate that refuses a key that it does not know. moto keeps everything in memory,
so it is the gate that is killed, as a process of its own (`S3Front`), where what was stored must still be there.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections import deque
from typing import Any, Self

import httpx

from tests.fakes.http_server import Exchange, HttpServer
from tests.fakes.orders import Answer, Order, ok
from tests.servers import free_port
from tests.waiting import wait_until

KEY_ID, SECRET = "AKIAFAKEFAKEFAKEFAKE", "very/secret+access+key"


class S3Process:
    """moto's server, on a port that it keeps, with one bucket."""

    def __init__(self, bucket: str = "calls") -> None:
        self.bucket = bucket
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, and wait until it has its bucket."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._has_bucket, 60, "moto's server")
        return self

    def kill(self) -> None:
        """kill -9; what was in it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def objects(self) -> dict[str, bytes]:
        """All keys of the bucket with what is in them."""
        listing = httpx.get(f"{self.url}/{self.bucket}?list-type=2", headers=_SIGNED, timeout=30).text
        keys = [part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]]
        return {key: self._request("GET", key).content for key in keys}

    def put(self, key: str, body: bytes) -> None:
        """Write an object as another program would."""
        self._request("PUT", key, body).raise_for_status()

    def clear(self) -> None:
        """Remove all objects."""
        httpx.post(f"{self.url}/moto-api/reset", timeout=30).raise_for_status()
        wait_until(self._has_bucket)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _request(self, method: str, key: str, body: bytes = b"") -> httpx.Response:
        return httpx.request(method, f"{self.url}/{self.bucket}/{key}", headers=_SIGNED, content=body, timeout=30)

    def _has_bucket(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "moto's server has ended"
        with contextlib.suppress(httpx.TransportError):
            return httpx.put(f"{self.url}/{self.bucket}", headers=_SIGNED, timeout=30).status_code == 200
        return False


#: By this moto knows which of its services is meant.
_SIGNED = {"authorization": f"AWS4-HMAC-SHA256 Credential={KEY_ID}/20260101/us-east-1/s3/aws4_request"}


class S3Gate(HttpServer):
    """Passes requests on to a server, obeys orders (see `orders`), and knows one access key."""

    def __init__(self, url: str, *, bucket: str = "calls", port: int = 0) -> None:
        super().__init__(self._respond, port=port)
        self._behind = url
        self._bucket = bucket
        self._orders: deque[Order] = deque()

    def forget(self) -> None:
        """Forget all requests and orders."""
        self.requests.clear()
        self._orders.clear()

    def order(self, *orders: Order) -> None:
        """Queue what is to happen to the next requests; after that, all is well again."""
        self._orders.extend(orders)

    def calls(self) -> list[str]:
        """What was asked so far, as `PUT lookup/x.txt`."""
        start = len(self._bucket) + 2
        return [f"{request.method} {request.path[start:].partition('?')[0]}" for request in self.requests]

    def _respond(self, exchange: Exchange) -> None:
        if f"Credential={KEY_ID}/" not in exchange.request.headers.get("authorization", ""):
            return exchange.answer(403, error_body("InvalidAccessKeyId"), content_type="application/xml")
        return (self._orders.popleft() if self._orders else ok)(exchange, lambda: self._forward(exchange))

    def _forward(self, exchange: Exchange) -> Answer:
        request = exchange.request
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "expect")}
        answer = httpx.request(
            request.method, self._behind + request.path, headers=headers, content=request.body, timeout=30
        )
        kept: dict[str, Any] = {
            name: value for name, value in answer.headers.items() if name.startswith("x-amz") or name in _KEPT
        }
        return Answer(answer.status_code, answer.content, kept)


_KEPT = ("etag", "content-type", "last-modified")


class S3Front:
    """A gate as a process of its own, on a port that it keeps; what is stored lies behind it."""

    def __init__(self, behind: S3Process) -> None:
        self._behind = behind
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "tests.fakes.s3_server", self._behind.url, str(self._port)]
        self._process = subprocess.Popen(command)
        wait_until(self._answers, 60, "the gate of S3")
        return self

    def stop(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url, timeout=30).status_code == 403
        return False


def error_body(code: str) -> bytes:
    """Return an error as S3 says it; its message repeats the key, as Amazon's does for some errors."""
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{KEY_ID} {SECRET}</Message></Error>".encode()


def refuse(code: int, name: str, **headers: str) -> Order:
    """Refuse with an error of S3; nothing is done."""
    return lambda exchange, _: exchange.answer(code, error_body(name), content_type="application/xml", **headers)


if __name__ == "__main__":
    with S3Gate(sys.argv[1], port=int(sys.argv[2])):
        threading.Event().wait()
