"""What is lost when something dies in the middle: by a loop around a blocking pop, and by a conserver."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from bench.family import end
from bench.host import Host, Server
from bench.plan import BenchError
from conserver.claims import dead_list
from conserver.embedded import EmbeddedServer

_WORKERS, _THREADS = 2, 8
_REST_SECS = 60.0

#: The usual worker: pop, work, push, and the dead-letter queue for what goes wrong.
PLAIN = """
import os, threading, time
from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

RETRY = Retry(ExponentialWithJitterBackoff(base=0.1, cap=5), int(os.environ["BENCH_RETRIES"]))

def work():
    redis = Redis.from_url(os.environ["BENCH_URL"], retry=RETRY)
    while True:
        uuid = None
        try:
            uuid = redis.blpop(["in"])[1]
            time.sleep(0.02)
            redis.rpush("out", uuid)
        except RedisError as error:
            print(uuid, error, flush=True)
            try:
                if uuid:
                    redis.rpush("DLQ:in", uuid)
            except RedisError as error:
                print("not even a dead letter", uuid, error, flush=True)
            time.sleep(0.05)

for _ in range(int(os.environ["BENCH_THREADS"])):
    threading.Thread(target=work).start()
"""

SLEEPER = '''"""Takes 20 ms."""
import time

def run(vcon_uuid, link_name, opts):
    time.sleep(0.02)
    return vcon_uuid
'''
CONFIG = {
    "links": {"sleeper": {"module": "links.sleeper"}},
    "chains": {"main": {"links": ["sleeper"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
}


class _Plain:
    """Processes that run the loop."""

    def __init__(self, folder: Path, url: str, *, retries: int) -> None:
        self._url = url
        env = os.environ | {"BENCH_URL": url, "BENCH_THREADS": str(_THREADS), "BENCH_RETRIES": str(retries)}
        with (folder / "plain.log").open("ab") as log:
            command = [sys.executable, "-c", PLAIN]
            self._processes = [subprocess.Popen(command, env=env, stdout=log, stderr=log) for _ in range(_WORKERS)]

    def worker_pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def at_rest(self, redis: Redis, n: int) -> bool:
        """Say whether every thread of the living waits for more, which is when nothing is in flight."""
        living = [process for process in self._processes if process.poll() is None]
        return bool(redis.info("clients")["blocked_clients"] == len(living) * _THREADS and not redis.llen("in"))

    def close(self) -> None:
        end(self._processes)


class _Conserver:
    """A conserver with as many workers and threads."""

    def __init__(self, folder: Path, url: str) -> None:
        self._host = Host(folder / "host", url, CONFIG, links={"sleeper": SLEEPER}, workers=_WORKERS, threads=_THREADS)
        self._host.__enter__()
        self.worker_pids = self._host.worker_pids

    def at_rest(self, redis: Redis, n: int) -> bool:
        """Say whether each of *n* vCons has come out; one that is lost keeps it waiting."""
        return len({*redis.lrange("out", 0, -1), *redis.lrange(dead_list("in"), 0, -1)}) == n

    def close(self) -> None:
        self._host.__exit__()


_KINDS: dict[str, Callable[[Path, str], _Plain | _Conserver]] = {
    "blocking pop": lambda folder, url: _Plain(folder, url, retries=0),
    "blocking pop, by a client that tries ten times more": lambda folder, url: _Plain(folder, url, retries=10),
    "conserver": _Conserver,
}


def losses(scratch: Path, full: bool) -> list[dict[str, Any]]:
    """Run each kind of worker into each kind of trouble, with 800 vCons, or with *full* three times with 5,000.

    A row has the `fault` and the `worker`, `n`, how many were `in_flight` at most, and for each run how many were
    `lost`: in no list any more. `twice` counts what was delivered more than once, `dead` what is a dead letter.
    """
    n, runs = (5000, 3) if full else (800, 1)
    rows = []
    for fault, strike in _FAULTS.items():
        for kind, start in _KINDS.items():
            samples = [_run(scratch / "losses", start, strike, n) for _ in range(runs)]
            row = {
                "fault": fault,
                "worker": kind,
                "n": n,
                "in_flight": _THREADS * (1 if "worker" in fault else _WORKERS),
            }
            rows.append(row | {measure: [sample[measure] for sample in samples] for measure in samples[0]})
    return rows


def _kill_worker(server: EmbeddedServer, worker: _Plain | _Conserver) -> None:
    os.kill(worker.worker_pids()[0], signal.SIGKILL)


def _restart(how: int) -> Callable[[EmbeddedServer, _Plain | _Conserver], None]:
    def strike(server: EmbeddedServer, worker: _Plain | _Conserver) -> None:
        os.kill(server.pid or 0, how)
        _wait(lambda: not server.is_running(), "the server does not end")
        server.start()

    return strike


_FAULTS = {
    "kill -9 of a worker": _kill_worker,
    "SIGTERM of the server, started at once": _restart(signal.SIGTERM),
    "kill -9 of the server, started at once": _restart(signal.SIGKILL),
}


def _run(
    folder: Path,
    start: Callable[[Path, str], _Plain | _Conserver],
    strike: Callable[[EmbeddedServer, _Plain | _Conserver], None],
    n: int,
) -> dict[str, int]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with _server(folder / "data") as server:
        one = Server(server.url)
        redis = one.redis
        uuids = [uuid.encode() for uuid in one.store(1000, n)]
        worker = start(folder, server.url)
        try:
            if isinstance(worker, _Plain):
                _wait(lambda: worker.at_rest(redis, 0), "the workers do not start")
            redis.rpush("in", *uuids)
            _wait(lambda: redis.llen("out") > n * 0.3, "nothing is delivered")
            strike(server, worker)
            try:
                _wait(lambda: worker.at_rest(redis, n), "not at rest")
            except BenchError:
                # Something that a conserver has lost would keep it waiting; it is counted below.
                if isinstance(worker, _Plain):
                    raise
        finally:
            worker.close()
        delivered, dead, waiting = (redis.lrange(name, 0, -1) for name in ("out", dead_list("in"), "in"))
        redis.close()
    return {
        "lost": len(set(uuids) - {*delivered, *dead, *waiting}),
        "dead": len(dead),
        "twice": sum(count - 1 for count in Counter(delivered).values()),
    }


@contextlib.contextmanager
def _server(data: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(data)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _wait(condition: Callable[[], bool], trouble: str) -> None:
    deadline = time.monotonic() + _REST_SECS
    while True:
        with contextlib.suppress(RedisError):  # the server may just be away
            if condition():
                return
        if time.monotonic() > deadline:
            raise BenchError(trouble)
        time.sleep(0.01)
