"""A real Milvus Lite of the tests' own, to be killed, and a gate before it that asks for a token and misbehaves.

Only imported where pymilvus and milvus-lite are installed.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
from pymilvus import MilvusClient

from tests.conftest import missing
from tests.servers import free_port
from tests.waiting import wait_until

TOKEN = "root:s3cret-of-milvus"


class MilvusServer:
    """One engine with a data folder of its own, on a port that it keeps. It asks nobody for a token."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options of the storage for this server, but for those of the embeddings."""
        return {"host": "127.0.0.1", "port": str(self.port), "create_collection_if_missing": True}

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        binary = shutil.which("milvus-lite", path=str(Path(sys.executable).parent)) or missing("no milvus-lite")
        words = [binary, "server", "--data-dir", str(self._folder / "data")]
        words += ["--host", "127.0.0.1", "--port", str(self.port)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, 60, f"milvus-lite in {self._folder}")
        return self

    def stop(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None

    def rows(self, collection: str, expression: str = "id >= 0") -> list[dict[str, Any]]:
        """Return all rows, without their embeddings being turned into something else."""
        with self.client() as client:
            client.load_collection(collection, timeout=10)
            return [dict(row) for row in client.query(collection, filter=expression, output_fields=["*"], timeout=10)]

    @contextmanager
    def client(self) -> Iterator[MilvusClient]:
        """Give a client of the tests' own."""
        client = MilvusClient(f"http://127.0.0.1:{self.port}", timeout=10, dedicated=True)
        with contextlib.closing(client):
            yield client

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
        with contextlib.suppress(Exception), self.client():
            return True
        return False


#: What is to become of a request: gets what does it, and the context in which it may be refused.
Order = Callable[[Callable[[], bytes], grpc.ServicerContext], bytes]


def refused(code: grpc.StatusCode) -> Order:
    """Do nothing, and say so."""
    return lambda work, context: context.abort(code, "on order")


def lost(work: Callable[[], bytes], context: grpc.ServicerContext) -> bytes:
    """Do what is asked, and lose the answer."""
    work()
    context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
    raise AssertionError


class Gate(grpc.GenericRpcHandler):
    """Hands requests on to an engine, if they have the token, which it is not for the engine to ask for.

    gate.order("Insert", lost) is for the next request of that kind; after the last order all is well again.
    """

    def __init__(self, server: MilvusServer) -> None:
        self.calls: list[str] = []
        self._orders: defaultdict[str, deque[Order]] = defaultdict(deque)
        self._engine = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        self._server = grpc.server(ThreadPoolExecutor(16))
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def order(self, name: str, *orders: Order) -> None:
        """Queue what is to happen to the next requests of that name."""
        self._orders[name].extend(orders)

    def service(self, details: Any) -> Any:
        """Return what answers a request."""
        expected = base64.b64encode(TOKEN.encode())
        given = dict(details.invocation_metadata).get("authorization", "")
        given = given.encode() if isinstance(given, str) else given
        name = details.method.rpartition("/")[2]

        def respond(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.calls.append(name)
            if given != expected:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure, please check username and password")
            work = self._engine.unary_unary(details.method)
            orders = self._orders[name]
            order = orders.popleft() if orders else lambda work, _: work()

            def hand_on() -> bytes:
                try:
                    return work(request, timeout=10)
                except grpc.RpcError as error:
                    context.abort(error.code(), error.details())
                    raise

            return order(hand_on, context)

        return grpc.unary_unary_rpc_method_handler(respond)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait(10)
        self._engine.close()
