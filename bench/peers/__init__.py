"""Other task queues, on the same server and in the same run as ours: a no-op task, two workers, a full queue.

The queue is filled first, by a client of the same environment. Then two workers start, and the time goes from the
first tenth of the tasks, when both of them run, to the last. A task counts itself with one byte at the end of a file,
which costs all of them the same.

They do not all promise the same: `app_<name>.py` in `apps/` says when each takes a task off its queue.
"""

from __future__ import annotations

import os
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from bench.family import cpu_secs, end, family
from bench.peers.environments import CannotInstall, environment
from bench.peers.known import APPS, PEERS, Peer, Variant

_RUNS = 3
_MORE = 4
"""How many times as many tasks a full benchmark has."""
_PROBE_SECS = 4
_PATIENCE_SECS = 60.0
"""How long nothing may happen, which includes the start of two workers."""
_FILL_SECS = 120
_POLL_SECS = 0.002


class PeerFailed(Exception):
    """A task queue did not do its tasks; the message says in one line how far it came, and its last words."""


@dataclass(frozen=True)
class Sample:
    """What one run gave; a time is in ms for one task."""

    rate: float
    cpu_ms: float | None
    server_ms: float
    latencies_ms: list[float]


def run_peers(
    server_url: str, *, full: bool, scratch: Path, names: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """Measure task queues, all or those of these *names*: the fastest variant of each, or with *full* all of them.

    The server is emptied before each run. A row has `name`, `variant`, `version` and the number of tasks `n`;
    `tasks_per_sec`, one for each run; `cpu_ms_per_task` of the workers and `server_ms_per_task`, the medians; and
    with *full* `latency_ms`, p50 and p99 of probes while there is nothing else to do. What could not be
    measured is None or empty, and `error` says why.
    """
    known = {peer.name: peer for peer in PEERS}
    wanted = list(known) if names is None else list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"no such task queue: {', '.join(unknown)}; there are {', '.join(known)}")
    return [row for name in wanted for row in measure(known[name], server_url, full=full, scratch=scratch)]


def measure(
    peer: Peer, server_url: str, *, full: bool, scratch: Path, patience_secs: float = _PATIENCE_SECS
) -> Iterator[dict[str, Any]]:
    """Give the rows of one task queue."""
    for variant in peer.variants if full else peer.variants[:1]:
        n = variant.n * (_MORE if full else 1)
        row: dict[str, Any] = {
            "name": peer.name,
            "variant": variant.name,
            "version": peer.pins[0].partition("==")[2] if peer.pins else "",
            "n": n,
            "tasks_per_sec": [],
            "cpu_ms_per_task": None,
            "server_ms_per_task": None,
            "latency_ms": None,
            "error": None,
        }
        try:
            with _Bench(peer, variant, server_url, scratch, patience_secs) as bench:
                samples = [bench.run(n, probe=full and turn == _RUNS - 1) for turn in range(_RUNS)]
        except (CannotInstall, PeerFailed) as error:
            row["error"] = str(error)
        else:
            row["tasks_per_sec"] = [sample.rate for sample in samples]
            costs = [sample.cpu_ms for sample in samples if sample.cpu_ms is not None]
            row["cpu_ms_per_task"] = statistics.median(costs) if costs else None
            row["server_ms_per_task"] = statistics.median(sample.server_ms for sample in samples)
            if full:
                hundredths = statistics.quantiles(samples[-1].latencies_ms, n=100, method="inclusive")
                row["latency_ms"] = {"p50": hundredths[49], "p99": hundredths[98], "a_sec": variant.probes_a_sec}
        yield row


class _Bench:
    """One variant of a task queue, with its environment, its log and the file that its tasks count in."""

    def __init__(self, peer: Peer, variant: Variant, url: str, scratch: Path, patience_secs: float) -> None:
        self._variant, self._patience_secs = variant, patience_secs
        self._programs = environment(peer.name, peer.pins)
        self._client = (
            f"import sys, counted, app_{peer.name} as app; app.enqueue(counted.tasks(*map(int, sys.argv[1:])))"
        )
        self._redis = Redis.from_url(url)
        scratch.mkdir(parents=True, exist_ok=True)
        self._folder = scratch
        self._log = scratch / f"{peer.name}.log"
        # Memory, where there is some in the file system, so that no disk is measured.
        memory = Path("/dev/shm")
        self._counts = tempfile.TemporaryDirectory(prefix="bench-", dir=memory if memory.is_dir() else scratch)
        self._done = Path(self._counts.name) / "done"
        self._env = os.environ | {
            "PYTHONPATH": f"{peer.apps}{os.pathsep}{APPS}",
            "BENCH_URL": url,
            "BENCH_DONE": str(self._done),
            "BENCH_VARIANT": variant.name,
        }
        self._command = [word.format(url=url) for word in variant.command]

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *raised: object) -> None:
        self._counts.cleanup()
        self._redis.close()

    def run(self, n: int, *, probe: bool) -> Sample:
        """Fill the queue, start two workers, and measure; then send probes, one by one, if asked to."""
        self._redis.flushall()
        self._done.write_bytes(b"")
        self._log.write_bytes(b"")
        self._enqueue(n, 0)
        workers = []
        try:
            for _ in range(self._variant.processes):
                workers.append(self._start(self._command))
            pids = [process.pid for process in workers]
            self._wait(n // 10, workers)
            first, began, cpu, server = self._count(), time.monotonic(), self._cpu(pids), self._server_secs()
            self._wait(n, workers)
            secs, used, served = time.monotonic() - began, self._cpu(pids), self._server_secs()
            latencies = self._probe(workers) if probe else []
        finally:
            end(workers)
        measured = n - first
        if measured < n / 2:
            raise PeerFailed(f"too few tasks to measure: {first} of {n} were done before the first look")
        return Sample(
            rate=measured / secs,
            cpu_ms=None if cpu is None or used is None else (used - cpu) * 1000 / measured,
            server_ms=(served - server) * 1000 / measured,
            latencies_ms=latencies,
        )

    def _probe(self, workers: list[subprocess.Popen[bytes]]) -> list[float]:
        self._done.write_bytes(b"")
        n = self._variant.probes_a_sec * _PROBE_SECS
        self._enqueue(n, self._variant.probes_a_sec)
        self._wait(n * 8, workers)
        return [secs * 1000 for (secs,) in struct.iter_unpack("d", self._done.read_bytes()[: n * 8])]

    def _enqueue(self, n: int, a_sec: int) -> None:
        client = self._start(["python", "-c", self._client, str(n), str(a_sec)])
        try:
            status = client.wait(_FILL_SECS)
        except subprocess.TimeoutExpired:
            status = f"no end after {_FILL_SECS} s"
        finally:
            end([client])
        if status != 0:
            raise PeerFailed(f"the client could not fill the queue ({status}): {self._last_words()}")

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [str(self._programs / command[0]), *command[1:]],
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self, size: int, workers: list[subprocess.Popen[bytes]]) -> None:
        seen, heard = -1, time.monotonic()
        while (count := self._count()) < size:
            if count != seen:
                seen, heard = count, time.monotonic()
            ended = [process.args[0] for process in workers if process.poll() is not None]
            if ended or time.monotonic() - heard > self._patience_secs:
                trouble = "a worker ended" if ended else f"nothing happened for {self._patience_secs:g} s"
                raise PeerFailed(f"{trouble} at {count} of {size} bytes counted: {self._last_words()}")
            time.sleep(_POLL_SECS)

    def _count(self) -> int:
        return self._done.stat().st_size

    def _cpu(self, pids: list[int]) -> float | None:
        return cpu_secs([member for pid in pids for member in family(pid)])

    def _server_secs(self) -> float:
        info = self._redis.info("cpu")
        return info["used_cpu_user"] + info["used_cpu_sys"]

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][-300:] if lines else "it said nothing"
