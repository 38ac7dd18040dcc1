"""A conserver as an operator runs it: real processes on a real server, to be killed in every way.

`Host` writes a config and test links into a folder, starts `conserver worker` there, and knows its processes. The test
links and storages write what they did into an append-only log outside of Redis, which `effects` reads, and
`tests.faults.checker` in full.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid as uuids
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import yaml
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from tests.waiting import wait_until

#: The beginning of each test link and storage: `effect` writes a line of JSON, in one step, to the log of effects.
EFFECT = """
import json, os, time

LOG = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def effect(event, name, vcon_uuid, **more):
    line = {"event": event, "name": name, "vcon": vcon_uuid, "pid": os.getpid(), "at": time.time(), **more}
    os.write(LOG, json.dumps(line).encode() + b"\\n")
"""

#: A link that does what the vCon's subject says, after a line in the log; anything else is a normal vCon.
ACT = (
    EFFECT
    + '''
"""Does what the subject says: exit, segfault, spin, block, hang, raise, stop, or nothing."""
import ctypes
from conserver import vcons

default_options = {"sleep": 0.0, "act": True}

def run(vcon_uuid, link_name, opts):
    effect("began", link_name, vcon_uuid)
    if opts["sleep"]:
        time.sleep(opts["sleep"])
    subject = vcons.get(vcon_uuid).subject if opts["act"] else ""
    if subject == "exit":
        os._exit(1)
    if subject == "segfault":
        ctypes.string_at(0)
    if subject == "spin":
        while True:
            pass
    if subject == "block":
        # Holds the interpreter's lock: no other thread of this process can do anything.
        ctypes.pythonapi.PyErr_CheckSignals
        ctypes.PyDLL(None).sleep(3600)
    if subject == "hang":
        time.sleep(3600)
    if subject == "raise":
        raise ValueError("no good")
    if subject == "stop":
        effect("stopped", link_name, vcon_uuid)
        return None
    effect("ended", link_name, vcon_uuid)
    return vcon_uuid
'''
)


class Host:
    """One supervisor with its workers, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        url: str,
        config: dict[str, Any] | None = None,
        *,
        links: dict[str, str] | None = None,
        **env: object,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "links").mkdir(exist_ok=True)
        for name, source in {"act": ACT, **(links or {})}.items():
            (folder / "links" / f"{name}.py").write_text(source)
        self.config_file = folder / "config.yml"
        if config is not None:
            self.configure(config)
        self.log = folder / "host.log"
        self.effects_file = folder / "effects.log"
        # It looks again after a server was killed under it.
        self.redis = Redis.from_url(url, retry=Retry(ConstantBackoff(0.1), 5))
        settings = {
            "REDIS_URL": url,
            "EFFECTS": self.effects_file,
            "CONSERVER_WORKERS": 2,
            "CONSERVER_VCON_CONCURRENCY": 8,
            "CONSERVER_LEASE_SECS": 2,
            "CONSERVER_METRICS_PORT": 0,
            "CONSERVER_DATA_DIR": folder / "data",
            **env,
        }
        self.env = {**os.environ, **{name: str(value) for name, value in settings.items()}}
        self.process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def configure(self, config: dict[str, Any] | str) -> None:
        """Write the config file in one step."""
        text = config if isinstance(config, str) else yaml.safe_dump(config)
        draft = self.config_file.with_suffix(".new")
        draft.write_text(text)
        draft.rename(self.config_file)

    def start(self, *, wait: bool = True) -> Host:
        """Start the conserver, and wait until its workers claim."""
        before = self.log.stat().st_size if self.log.exists() else 0
        self._port = 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "conserver", "worker"], cwd=self.folder, env=self.env, stdout=log, stderr=log
            )
        if wait:
            wanted = int(self.env["CONSERVER_WORKERS"])
            wait_until(
                lambda: self.process.poll() is not None or len(self.worker_pids()) >= wanted,
                90,
                f"workers of {self.folder.name}",
            )
            assert self.process.poll() is None, self.log.read_bytes()[before:].decode()[-3000:]
        return self

    def status(self) -> dict[str, Any]:
        """What this host says of itself in Redis; empty while it says nothing."""
        for key in self.redis.keys("conserver:host:*"):
            said = json.loads(self.redis.get(key) or b"{}")
            if self.process is not None and said.get("pid") == self.process.pid:
                return said
        return {}

    def get(self, path: str) -> httpx.Response:
        """Ask its own port, which it names in Redis: ask once before the server goes away."""
        self._port = self._port or wait_until(lambda: self.status().get("metrics_port"), 30, "a port")
        return httpx.get(f"http://127.0.0.1:{self._port}{path}", timeout=30)

    def worker_pids(self) -> list[int]:
        """The processes of the regular workers that have joined their lists."""
        members = {m.decode() for key in self.redis.keys("conserver:{*}:workers") for m in self.redis.smembers(key)}
        workers = self.status().get("workers", [])
        return [w["pid"] for w in workers if not w["quarantine"] and w["name"] in members]

    def family(self) -> list[int]:
        """Every process of this host, the supervisor first."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def signal(self, signum: int, pids: list[int]) -> None:
        """Send a signal to each process that is still there."""
        for pid in pids:
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """kill -9 the supervisor; its workers find out by themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_everything(self) -> None:
        """kill -9 the supervisor and all its processes."""
        self.signal(signal.SIGKILL, self.family())
        assert self.process is not None
        self.process.wait()

    def stop(self, timeout: float = 60.0) -> int:
        """SIGTERM, and return the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout)

    def close(self) -> None:
        """End whatever is left."""
        if self.process is not None and self.process.poll() is None:
            self.kill_everything()
        self.redis.close()

    def effects(self) -> Counter[tuple[str, str]]:
        """How often which link began with which vCon."""
        return Counter(self.began())

    def began(self) -> list[tuple[str, str]]:
        """Which links began with which vCons, in this order."""
        if not self.effects_file.exists():
            return []
        lines = (effect_of(line) for line in self.effects_file.read_text().splitlines())
        return [(line["name"], line["vcon"]) for line in lines if line["event"] == "began"]

    def said(self) -> str:
        """Everything that this host has logged."""
        return self.log.read_text(errors="replace")


def effect_of(line: str) -> dict[str, Any]:
    """Read a line of the log of effects; a plain `<link> <uuid>` says that the link began."""
    if line.startswith("{"):
        return json.loads(line)
    name, uuid = line.split(" ", 1)
    return {"event": "began", "name": name, "vcon": uuid}


def vcon(subject: str = "", **more: Any) -> dict[str, Any]:
    """A small valid vCon."""
    document = {
        "vcon": "0.4.0",
        "uuid": str(uuids.uuid4()),
        "created_at": "2026-01-01T00:00:00Z",
        "subject": subject,
        "parties": [{"tel": "+15550100", "name": "Ann"}],
        "dialog": [],
        "analysis": [],
        "attachments": [],
    }
    return document | more


def store(redis: Redis, documents: list[dict[str, Any]]) -> list[str]:
    """Put vCons where any client would, and return their UUIDs."""
    pipe = redis.pipeline(transaction=False)
    for document in documents:
        pipe.set(f"vcon:{document['uuid']}", json.dumps(document))
    pipe.execute()
    return [document["uuid"] for document in documents]


def entries(redis: Redis, name: str) -> list[str]:
    """What a list holds."""
    return [entry.decode("utf-8", "replace") for entry in redis.lrange(name, 0, -1)]


_LEFT = """
local left = 0
for _, name in ipairs(ARGV) do
  left = left + redis.call('LLEN', name) + redis.call('ZCARD', 'conserver:{' .. name .. '}:delayed')
  for _, what in ipairs({'returned', 'suspects'}) do
    left = left + redis.call('LLEN', 'conserver:{' .. name .. '}:' .. what)
  end
end
for _, key in ipairs(redis.call('KEYS', 'conserver:*:held:*')) do left = left + redis.call('HLEN', key) end
return left
"""


def accounted(redis: Redis, lists: list[str]) -> bool:
    """Say whether nothing is waiting, held or put aside any more in *lists*, all seen in the same instant."""
    return redis.eval(_LEFT, 0, *lists) == 0
