"""HTTP requests over a few connections as fast as they are answered, from a process of its own: `python -m bench.load`.

It reads a Load as a line of JSON and warms up; then, and again after each line it reads, it says what it has measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import select
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bench import vcons
from bench.plan import BenchError

Cost = TypeVar("Cost")

_PATIENCE_SECS = 30.0
_ROOM = 1 << 18


@dataclasses.dataclass(frozen=True)
class Load:
    """What to send to a *port* of the loopback for how long, and what is to be answered."""

    port: int
    method: str
    targets: Sequence[str]
    """Each request is for one of them, at random."""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    size: int = 0
    """Bytes of the vCon that is sent, each with a UUID of its own; 0 sends none."""
    expected: int = 200
    connections: int = 16
    secs: float = 1.0
    warm_up: int = 512
    """Requests that are sent before and count for nothing."""
    most: int | None = None
    """Requests at most; None means as many as `secs` allow."""

    def requests(self, n: int) -> deque[bytes]:
        """Write *n* requests, ready to be sent."""
        targets = random.choices(self.targets, k=n)
        bodies = (body for _, body in vcons.documents(self.size, n)) if self.size else iter([b""] * n)
        fields = "".join(f"{name}: {value}\r\n" for name, value in {"host": "localhost", **self.headers}.items())
        if self.size:
            fields += "content-type: application/json\r\n"
        return deque(
            f"{self.method} {target} HTTP/1.1\r\n{fields}content-length: {len(body)}\r\n\r\n".encode() + body
            for target, body in zip(targets, bodies, strict=True)
        )


@dataclasses.dataclass
class Answers:
    """What came back: how long each took in ms, and of those that were not as expected how many and the first."""

    waits_ms: list[float] = dataclasses.field(default_factory=list)
    secs: float = 0.0
    own_cpu_secs: float = 0.0
    errors: int = 0
    first_error: str = ""

    def measures(self) -> dict[str, float]:
        """Return the rate, the waits, and how much of a core this very load took."""
        cuts = statistics.quantiles(self.waits_ms, n=100, method="inclusive") if len(self.waits_ms) > 1 else []
        return {
            "rate": len(self.waits_ms) / self.secs,
            "p50_ms": cuts[49] if cuts else math.nan,
            "p99_ms": cuts[98] if cuts else math.nan,
            "worst_ms": max(self.waits_ms, default=math.nan),
            "load_share": self.own_cpu_secs / self.secs * 100,
            "n": float(len(self.waits_ms)),
            "secs": self.secs,
        }


def put(load: Load, costs: Callable[[], Cost]) -> tuple[dict[str, float], Cost, Cost]:
    """Put *load* on a port from a new process; return what it measured, and *costs* after the warm-up and at the end.

    Raises BenchError if an answer is not the expected one or does not come, the warm-up's included.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.load"],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            _ask(process, load, json.dumps(dataclasses.asdict(load)))
            before = costs()
            measures = _ask(process, load, "go")
            return measures, before, costs()
        finally:
            process.kill()


def _ask(process: subprocess.Popen[str], load: Load, line: str) -> dict[str, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    said = process.stdout.readline()
    if not said:
        raise BenchError(f"{load.method} {load.targets[0]}: the load has ended: {process.stderr.read()[-2000:]}")
    told: dict[str, Any] = json.loads(said)
    if told["errors"]:
        raise BenchError(
            f"{load.method} {load.targets[0]}: {told['errors']} of {told['errors'] + told['good']} answers were not "
            f"{load.expected}; the first: {told['first_error']}"
        )
    return told["measures"]


class _Connection:
    """One connection that has a request under way, or none."""

    def __init__(self, port: int, expected: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECS)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = 0.0
        self.unsent = b""
        self._expected = b"%d" % expected
        self._read = b""
        self._whole = 0

    def send(self, request: bytes) -> None:
        """Begin a request; what does not fit at once stays in `unsent`."""
        self.unsent, self._read, self._whole = request, b"", 0
        self.began = time.monotonic()
        self.send_on()

    def send_on(self) -> None:
        """Send as much of what is left as fits."""
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            # To read tells what has happened, and maybe holds the answer that explains it.
            self.unsent = b""

    def read(self) -> str | None:
        """Read what is there: None while the answer is not whole, then "" or what is wrong with it."""
        try:
            part = self.socket.recv(_ROOM)
        except BlockingIOError:
            return None
        except OSError as error:
            return f"{error} after {self._read[:200]!r}"
        if not part:
            return f"the connection was closed after {self._read[:200]!r}"
        self._read = self._read + part if self._read else part
        if not self._whole:
            end = self._read.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = self._read[:end].lower()
            _, named, length = head.partition(b"\r\ncontent-length:")
            if not named:
                return f"an answer without content-length: {head[:200]!r}"
            self._whole = end + 4 + int(length.partition(b"\r\n")[0])
        if len(self._read) < self._whole:
            return None
        if self._read[9:12] != self._expected or len(self._read) > self._whole:
            return self._read[:500].decode("utf-8", "replace")
        return ""


def drive(load: Load, requests: deque[bytes], secs: float) -> Answers:
    """Send *requests* until they are all answered, or until *secs* are over and those under way are answered."""
    answers = Answers()
    poll = select.epoll()
    by_number: dict[int, _Connection] = {}
    for _ in range(min(load.connections, len(requests))):
        connection = _Connection(load.port, load.expected)
        by_number[connection.socket.fileno()] = connection
    began, cpu = time.monotonic(), time.process_time()
    over = began + secs
    for number, connection in by_number.items():
        connection.send(requests.popleft())
        poll.register(number, select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0))
    while by_number:
        ready = poll.poll(_PATIENCE_SECS)
        if not ready:
            answers.errors += len(by_number)
            answers.first_error = answers.first_error or f"no answer within {_PATIENCE_SECS:g} s"
            break
        for number, _ in ready:
            connection = by_number[number]
            if connection.unsent:
                connection.send_on()
                if not connection.unsent:
                    poll.modify(number, select.EPOLLIN)
            trouble = connection.read()
            if trouble is None:
                continue
            now = time.monotonic()
            if trouble:
                answers.errors += 1
                answers.first_error = answers.first_error or trouble
            else:
                answers.waits_ms.append((now - connection.began) * 1000)
            if trouble or now > over or not requests:
                # Whatever was wrong with an answer, what follows it on the connection cannot be trusted.
                poll.unregister(number)
                connection.socket.close()
                del by_number[number]
                continue
            connection.send(requests.popleft())
            if connection.unsent:
                poll.modify(number, select.EPOLLIN | select.EPOLLOUT)
    answers.secs = time.monotonic() - began
    answers.own_cpu_secs = time.process_time() - cpu
    for connection in by_number.values():
        connection.socket.close()
    poll.close()
    return answers


def _tell(answers: Answers) -> None:
    told = {"errors": answers.errors, "first_error": answers.first_error, "good": len(answers.waits_ms)}
    print(json.dumps(told | {"measures": answers.measures()}), flush=True)


def main() -> None:
    """Warm up, and measure when told to."""
    load = Load(**json.loads(sys.stdin.readline()))
    warm = drive(load, load.requests(load.warm_up), math.inf)
    # Written before the clock starts, and half as many again as the warm-up promises.
    n = load.most or math.ceil(len(warm.waits_ms) / warm.secs * load.secs * 1.5) + load.connections
    requests = load.requests(n)
    _tell(warm)
    if sys.stdin.readline():
        _tell(drive(load, requests, load.secs))


if __name__ == "__main__":
    main()
