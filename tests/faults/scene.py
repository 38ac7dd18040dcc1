"""Two hosts on one server under steady traffic, for a nemesis; what they use is watched, and the end is checked.

Of the two hosts the *steady* one is never killed, so that what grows is seen to grow.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Collection
from pathlib import Path

import httpx
from redis.exceptions import RedisError

from conserver.embedded import EmbeddedServer
from conserver.supervisor import MAX_QUARANTINES
from tests.faults.checker import Fault, History, Samples, samples
from tests.faults.doubles import EDIT, KEEP
from tests.faults.footprint import Footprint
from tests.faults.traffic import Traffic, client
from tests.host import Host, accounted
from tests.waiting import wait_until

LEASE_SECS = 2.0
LISTS = ["in", "rough"]
SECRET = "sesame-0c7b1d"
#: After the last fault everything has to come to an end: no longer than this without a sign that it does, and at most
#: so long altogether. Who is poisonous dies four times, and a slow machine takes its time to start processes.
QUIET_SECS, REST_SECS = 120.0, 600.0
SAMPLE_SECS = 1.0
#: Nothing is said about the growth of a process that was seen less often.
LEAST_SAMPLES = 480
#: Keys of the conserver beside vCons: those of two lists, two hosts and their workers.
MOST_KEYS = 60


class Scene:
    """A server, two hosts and their traffic: `start` it, do what you like to it, let it come to `rest`, `close` it."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        rate: float = 50.0,
        most: int | None = None,
        steady: bool = True,
        **env: object,
    ) -> None:
        """With *steady* the host of that name takes no poison; *most* vCons are sent, *rate* a second."""
        self.steady = steady
        self.troubles: list[str] = []
        self.footprint = Footprint()
        self.most_connections = self.most_keys = 0
        self.began = time.monotonic()
        self.workers: dict[str, list[int]] = {}
        """The regular workers of each host that claim, as far as is known."""
        self.seen_up: set[int] = set()
        """The supervisors that have had workers."""
        self._over = threading.Event()
        self.keep = folder / "keep"
        self.effects = folder / "effects.log"
        self.server = EmbeddedServer(folder / "data")
        self.server.start()
        self.redis = client(self.server.url)
        self.server_pid = self.settle_server()
        self.hosts = {name: self._host(folder / name, **env) for name in ("steady", "wild")}
        if steady:
            # The vCons of the other chain kill the processes that take them. It has too few threads for all the
            # traffic, so that the other host has vCons in hand when something happens to it.
            self.hosts["steady"].env |= {"CONSERVER_CHAINS": "main", "CONSERVER_VCON_CONCURRENCY": "4"}
        self.traffic = Traffic(self.server.url, random.Random(seed), rate, most=most)
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)

    def _host(self, folder: Path, **env: object) -> Host:
        env = {
            "EFFECTS": self.effects,
            "CONSERVER_VCON_CONCURRENCY": 16,
            "CONSERVER_LEASE_SECS": LEASE_SECS,
            "CONSERVER_DRAIN_SECS": 2,
            "CONSERVER_PAUSE_SECS": 0.5,
            "VCON_REDIS_EXPIRY": 0,
            **env,
        }
        host = Host(folder, self.server.url, self.config(0.02), links={"edit": EDIT}, **env)
        (folder / "storages").mkdir()
        (folder / "storages" / "keep.py").write_text(KEEP)
        return host

    def config(self, sleep: float) -> dict[str, object]:
        """Return the config of both hosts, with links that sleep about so long, the last one ten times."""
        retry = {"attempts": 8, "backoff_secs": 0.1, "max_backoff_secs": 0.5}
        edit = {"module": "links.edit", "options": {"sleep": sleep, "spread": True, "api_key": SECRET}, "retry": retry}
        ends = {"storages": ["keep"], "egress_lists": ["out"]}
        return {
            "links": {
                "wait": {"module": "links.act", "options": {"act": False, "sleep": 10 * sleep}},
                "first": edit,
                "second": edit,
                "third": edit,
            },
            "storages": {"keep": {"module": "storages.keep", "options": {"name": "keep", "path": str(self.keep)}}},
            "chains": {
                "main": {"links": ["first", "second", "wait"], "ingress_lists": ["in"], **ends},
                "rough": {"links": ["third"], "ingress_lists": ["rough"], **ends},
            },
        }

    def start(self) -> None:
        """Start both hosts, the traffic and the watch."""
        for host in self.hosts.values():
            host.start(wait=False)
        wait_until(self._all_up, 120, "both hosts at work")
        self.began = time.monotonic()
        self.traffic.start()
        self._watcher.start()

    def say(self, words: str) -> None:
        """Print a line with the time since the start."""
        print(f"{time.monotonic() - self.began:7.1f} s  {words}", flush=True)  # noqa: T201

    def keep_up(self, *, but: Collection[str] = ()) -> None:
        """Start a host again that has ended by itself, unless it is one of *but*."""
        for name, host in self.hosts.items():
            process = host.process
            if name not in but and process is not None and process.poll() is not None:
                # One that has found no server to start with may end.
                if process.pid in self.seen_up:
                    self.troubles.append(f"host {name} has ended by itself with exit code {process.returncode}")
                host.start(wait=False)

    def settle_server(self) -> int:
        """Set up the server that was started, and return its pid."""
        # Processes die here and the machine does not, so what was written is there, whether it has reached the disk
        # or not. With `everysec` a server whose disk is slow may answer before it writes.
        self.redis.config_set("appendfsync", "no")
        return int(self.redis.info("server")["process_id"])

    # What is seen meanwhile

    def _watch(self) -> None:
        look_for_keys = 0
        while not self._over.wait(SAMPLE_SECS):
            with contextlib.suppress(RedisError, ValueError):
                self._find_workers()
                self.most_connections = max(self.most_connections, len(self.redis.client_list()))
                look_for_keys += 1
                if look_for_keys % 10 == 1:
                    self.most_keys = max(self.most_keys, len(self._own_keys()))
            steady = self.hosts["steady"]
            if self.steady and steady.process is not None:
                self.footprint.look("supervisor", steady.process.pid)
                for pid in self.workers.get("steady", ()):
                    self.footprint.look("worker", pid)

    def _find_workers(self) -> None:
        keys = [b"conserver:host:" + host for host in self.redis.smembers("conserver:hosts")]
        said = [json.loads(text) for text in self.redis.mget(keys) if text and text != b"{}"] if keys else []
        members = {m.decode() for name in LISTS for m in self.redis.smembers(f"conserver:{{{name}}}:workers")}
        for name, host in self.hosts.items():
            mine = [status for status in said if host.process is not None and status.get("pid") == host.process.pid]
            self.workers[name] = [
                worker["pid"]
                for status in mine
                for worker in status["workers"]
                if not worker["quarantine"] and worker["name"] in members
            ]
            self.seen_up.update(status["pid"] for status in mine if self.workers[name])

    def _all_up(self) -> bool:
        self._find_workers()
        return all(len(self.workers[name]) >= int(host.env["CONSERVER_WORKERS"]) for name, host in self.hosts.items())

    def _own_keys(self) -> list[bytes]:
        shared = {b"out", *(prefix + name.encode() for name in LISTS for prefix in (b"", b"DLQ:"))}
        return [key for key in self.redis.scan_iter(count=5000) if not key.startswith(b"vcon:") and key not in shared]

    # The end

    def rest(self, faults: list[Fault]) -> None:
        """Let everything come to an end after *faults*, and raise AssertionError that says all that is wrong."""
        self.traffic.end()
        self.say(f"{len(faults)} faults, {self.traffic.sent} vCons sent; now everything may come to an end")
        numbers: list[Samples] = []
        try:
            self._wait_for_rest()
            numbers = [self._numbers(host) for host in self.hosts.values()]
        except (AssertionError, RedisError, httpx.HTTPError) as error:
            self.troubles.append(str(error))
            for name, host in self.hosts.items():
                lines = [line[:300] for line in host.said().splitlines() if '"levelname":"INFO"' not in line]
                self.troubles.append("\n".join([f"the last that host {name} said:", *lines[-20:]]))
        self._over.set()
        self._watcher.join(30)
        for name, host in self.hosts.items():
            if (code := host.stop()) != 0:
                self.troubles.append(f"host {name} was told to end, and did with exit code {code}")
        self.traffic.resolve()
        self._check(numbers, faults)
        if self.troubles:
            raise AssertionError("\n".join(self.troubles))

    def _wait_for_rest(self) -> None:
        began = changed = time.monotonic()
        size = -1
        while not self._at_rest():
            now, last, size = time.monotonic(), size, self.effects.stat().st_size
            if size != last:
                changed = now
            if now - changed > QUIET_SECS or now - began > REST_SECS:
                raise AssertionError(f"{now - began:.0f} s after the last fault not everything has come to an end")
            self._over.wait(0.1)

    def _at_rest(self) -> bool:
        """Say whether nothing waits, and whoever is gone is forgotten."""
        self.keep_up()
        with contextlib.suppress(RedisError):
            return accounted(self.redis, LISTS) and all(
                self.redis.exists(f"conserver:host:{host.decode()}") for host in self.redis.smembers("conserver:hosts")
            )
        return False

    def _numbers(self, host: Host) -> Samples:
        port = wait_until(lambda: host.status().get("metrics_port"), 10, f"the port of {host.folder.name}")
        return samples(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text)

    def _check(self, numbers: list[Samples], faults: list[Fault]) -> None:
        pushed, poison = self.traffic.pushed["in"] + self.traffic.pushed["rough"], self.traffic.poison()
        history = History(self.effects)
        try:
            history.check(
                self.redis,
                pushed,
                lists=LISTS,
                dead=poison,
                storages={"keep": self.keep},
                faults=[*faults, *history.deaths(poison)],
                given=self.traffic.given,
                metrics=numbers,
                logs=[host.log for host in self.hosts.values()],
                secrets=[SECRET],
                gone=True,
            )
        except AssertionError as violations:
            self.troubles.append(str(violations))
        for name, host in self.hosts.items():
            for line in host.said().splitlines():
                if line.startswith("Traceback") or '"exc_info"' in line:
                    self.troubles.append(f"host {name} has logged an error of its own: {line[:2000]}")
        if self.most_keys > MOST_KEYS:
            self.troubles.append(f"{self.most_keys} keys of our own: {sorted(self._own_keys())[: MOST_KEYS + 20]}")
        if self.most_connections > (most := sum(map(_most_connections, self.hosts.values())) + 10):
            self.troubles.append(f"{self.most_connections} connections at one time, and {most} would be many")
        self.troubles += self.footprint.growth(LEAST_SAMPLES)
        repeated = sum(n - pushed[uuid] for (_, uuid), n in history.began.items() if n > pushed[uuid])
        self.say(
            f"{pushed.total()} accepted, {len(poison)} of them poison; links began {history.began.total()} times, "
            f"{repeated} of them again; at most {self.most_connections} connections and {self.most_keys} keys"
        )
        for line in self.footprint.table(8):
            self.say(line)

    def close(self) -> None:
        """End whatever is left."""
        self._over.set()
        self.traffic.end()
        for host in self.hosts.values():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                host.signal(signal.SIGCONT, host.family() if host.process else [])
            host.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server_pid, signal.SIGCONT)
        self.server.stop()


def _most_connections(host: Host) -> int:
    """Return how many connections a host may have: two for each thread of a worker, and a few for each process."""
    workers, threads = (int(host.env[name]) for name in ("CONSERVER_WORKERS", "CONSERVER_VCON_CONCURRENCY"))
    return workers * (2 * threads + 8) + MAX_QUARANTINES * 10 + 10
