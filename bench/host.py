"""A server and a conserver as an operator runs them: real processes, with what they cost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from bench import vcons
from bench.family import cpu_secs, end, family
from bench.plan import BenchError
from conserver.embedded import temporary_server

_START_SECS = 60.0

NOOP = '''"""Does nothing."""

def run(vcon_uuid, link_name, opts):
    return vcon_uuid
'''


class Server:
    """A server of its own, with an append-only file; `url` is a socket file, `tcp_url` loopback."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis = Redis.from_url(url, socket_timeout=60)
        # A rewrite in the middle of one run, and not of the next, would be noise.
        self.redis.config_set("auto-aof-rewrite-percentage", 0)

    def tcp_url(self) -> str:
        """Open a port on loopback, for clients that know no socket files."""
        port = int(self.redis.config_get("port")["port"])
        if not port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            self.redis.config_set("port", port)
        return f"redis://127.0.0.1:{port}/0"

    def costs(self) -> dict[str, float]:
        """Return the counters whose growth is the cost of a run: processor seconds and bytes."""
        info = self.redis.info("everything")
        return {
            "server_secs": info["used_cpu_user"] + info["used_cpu_sys"],
            "server_main_secs": info.get("used_cpu_user_main_thread", 0) + info.get("used_cpu_sys_main_thread", 0),
            "aof_bytes": float(info["aof_current_size"]),
            "net_bytes": float(info["total_net_input_bytes"] + info["total_net_output_bytes"]),
            "commands": float(info["total_commands_processed"]),
        }

    def version(self) -> str:
        """Return name and version."""
        info = self.redis.info("server")
        return f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info['redis_version']}"

    def store(self, size: int, n: int) -> list[str]:
        """Put *n* vCons of about *size* bytes where any client would; return their UUIDs."""
        stored: list[str] = []
        pipe = self.redis.pipeline(transaction=False)
        waiting = 0
        for uuid, text in vcons.documents(size, n):
            pipe.set(f"vcon:{uuid}", text)
            stored.append(uuid)
            waiting += len(text)
            if waiting > 4_000_000:
                pipe.execute()
                waiting = 0
        pipe.execute()
        # What was written now is not to be flushed to the disk while something is measured.
        with contextlib.suppress(ResponseError):  # servers before 7.2 do not know it
            self.redis.execute_command("WAITAOF", 1, 0, 30_000)
        return stored

    def push(self, name: str, uuids: Sequence[str]) -> None:
        """Push UUIDs to a list, at once."""
        for at in range(0, len(uuids), 10_000):
            self.redis.rpush(name, *uuids[at : at + 10_000])


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Run a server that is gone afterwards, with all that is in it."""
    with temporary_server(append_only=True) as url:
        one = Server(url)
        try:
            yield one
        finally:
            one.redis.close()


class Host:
    """One `conserver worker` in a folder of its own, ready to claim from *ready_lists*."""

    def __init__(
        self,
        folder: Path,
        url: str,
        config: dict[str, Any],
        *,
        links: dict[str, str] | None = None,
        workers: int = 1,
        threads: int = 16,
        ready_lists: Sequence[str] = ("in",),
        **env: object,
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "links").mkdir(parents=True)
        for name, source in (links or {}).items():
            (folder / "links" / f"{name}.py").write_text(source)
        (folder / "config.yml").write_text(yaml.safe_dump(config))
        settings = {
            "REDIS_URL": url,
            "CONSERVER_WORKERS": workers,
            "CONSERVER_VCON_CONCURRENCY": threads,
            "CONSERVER_METRICS_PORT": 0,
            "CONSERVER_DATA_DIR": folder / "data",
            "CONSERVER_CONFIG_FILE": folder / "config.yml",
            "LOG_LEVEL": "WARNING",
            **env,
        }
        self.folder = folder
        self.log = folder / "host.log"
        self._env = {**os.environ, **{name: str(value) for name, value in settings.items()}}
        self._url, self._workers, self._ready_lists = url, workers, ready_lists
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Host:
        self.launch()
        with contextlib.closing(Redis.from_url(self._url)) as redis:
            self.wait(
                lambda: all(
                    redis.scard(f"conserver:{{{name}}}:workers") >= self._workers for name in self._ready_lists
                ),
                _START_SECS,
                "no workers",
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            end([self._process])

    def launch(self) -> None:
        """Start the process, without waiting for its workers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "conserver", "worker"], cwd=self.folder, env=self._env, stdout=log, stderr=log
            )

    def wait(self, condition: Callable[[], Any], secs: float, trouble: str, every: float = 0.005) -> float:
        """Wait until *condition* holds and return the moment; BenchError with the log's end if it does not come."""
        assert self._process is not None
        deadline = time.monotonic() + secs
        while not condition():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise BenchError(f"{self.folder.name}: {trouble}: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(every)
        return time.monotonic()

    def pids(self) -> list[int]:
        """Return the processes of this host, the supervisor first."""
        assert self._process is not None
        return family(self._process.pid)

    def worker_pids(self) -> list[int]:
        """Return the processes that run links: those that the supervisor's report names."""
        with contextlib.closing(Redis.from_url(self._url)) as redis:
            mine = {int(w["pid"]) for key in redis.keys("conserver:host:*") for w in _workers(redis.get(key))}
        return [pid for pid in self.pids() if pid in mine]

    def cpu_secs(self) -> float:
        """Return the processor time of all processes of this host, in user code and in the kernel."""
        return cpu_secs(self.pids()) or 0.0


def _workers(report: bytes | None) -> list[dict[str, Any]]:
    # The key may have expired since it was listed.
    return json.loads(report or b"{}").get("workers", [])


def dead_letters(redis: Redis, name: str) -> str:
    """Return the first reason why something on *name* is dead, or nothing."""
    with contextlib.suppress(RedisError):
        for why in redis.hvals(f"conserver:{{{name}}}:dead")[:1]:
            return why.decode("utf-8", "replace")
    return ""
