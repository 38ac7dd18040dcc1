"""Creates and reads a second of one API process, beside FastAPI with nothing behind it under the same load."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from bench.family import cpu_secs, end, family
from bench.host import NOOP, Server, server
from bench.load import Load, put
from bench.plan import BenchError, Plan, Table

COLUMNS = {
    "rate": "a second",
    "p99_ms": "p99, ms",
    "cpu_ms": "API CPU, ms",
    "server_ms": "server CPU, ms",
    "load_share": "the load, % of a core",
    "of_bare": "part of the bare rate",
}
_ROOT = Path(__file__).parent.parent
_START_SECS = 60.0
_HEADERS = {"x-conserver-api-token": "bench"}
_LIST = "in"
#: Settings that may stand in the environment of the person who measures.
_SETTINGS = ("CONSERVER_", "VCON_", "API_", "LOG_", "LOGGING_")
#: Ours, as `conserver api` is started; a test puts something else in its place.
COMMAND = (sys.executable, "-m", "conserver", "api")


@dataclass(frozen=True)
class Case:
    """A request to ours, and the bare one that is as large."""

    name: str
    ours: Load
    bare: Load


def api(plan: Plan, sizes: Sequence[int] = (5_000, 50_000), command: Sequence[str] = COMMAND) -> list[Table]:
    """Measure creates with an ingress list, and reads, each right after the bare one of the same size."""
    table = Table("api", "the HTTP API: one process, 16 connections", COLUMNS)
    table.notes.append("bare is FastAPI in the same HTTP server, that answers bytes which are there, or the body")
    table.notes.append("the existing conserver, measured on another day: 750 creates, 2,050 reads of 5 kB a second")
    port, bare_port = _free_port(), _free_port()
    with (
        server() as one,
        Api(plan.scratch / "bare", bare_port, (sys.executable, "-m", "bench.bare_api", str(bare_port)), {}) as bare,
        Api(plan.scratch / "api", port, command, _env(plan.scratch / "api", one.url, port)) as ours,
    ):
        cases = [case for size in sizes for case in _cases(plan, one, port, bare_port, size)]
        for case in plan.turns(cases):
            # A minute later the machine may be another, so neighbours are compared.
            beside = measure(one, bare, case.bare)
            found = measure(one, ours, case.ours, queued=case.ours.method == "POST")
            table.row(case.name).add(**found, of_bare=found["rate"] / beside["rate"])
            table.row(f"{case.name}, bare").add(**beside, of_bare=1.0)
            plan.say(f"  api, {case.name}: {found['rate']:,.0f}/s, bare {beside['rate']:,.0f}/s")
    return [table]


def _cases(plan: Plan, one: Server, port: int, bare_port: int, size: int) -> list[Case]:
    kb = f"{size / 1000:g} kB"
    create = Load(
        port,
        "POST",
        [f"/vcon?ingress_lists={_LIST}"],
        _HEADERS,
        size=size,
        expected=201,
        secs=plan.secs / 3,
        warm_up=plan.count(512 if size < 20_000 else 128, least=16),
    )
    stored = plan.count(1000, least=16)
    one.redis.delete(_LIST)
    # Read is what the API has stored itself, with all that it keeps beside a vCon.
    put(replace(create, warm_up=1, most=stored, secs=60.0), lambda: None)
    uuids = [uuid.decode() for uuid in one.redis.lrange(_LIST, 0, -1)]
    read = replace(create, method="GET", targets=[f"/vcon/{uuid}" for uuid in uuids], size=0, expected=200)
    return [
        Case(f"create, {kb}", create, replace(create, port=bare_port, targets=["/bare"], headers={})),
        Case(f"read, {kb}", read, replace(read, port=bare_port, targets=[f"/{size}/bare"], headers={})),
    ]


def measure(one: Server, api: Api, load: Load, *, queued: bool = False) -> dict[str, float]:
    """Put *load* on an API and return what it did and what it cost; BenchError if what is *queued* is not there."""
    one.redis.delete(_LIST)
    found, before, after = put(load, lambda: (api.cpu_secs(), one.costs()["server_secs"]))
    n = found["n"]
    if queued:
        _all_there(one, load.warm_up + int(n))
    ours, servers = ((later - sooner) * 1000 / n for sooner, later in zip(before, after, strict=True))
    return {**found, "cpu_ms": ours, "server_ms": servers}


def _all_there(one: Server, created: int) -> None:
    uuids = set(one.redis.lrange(_LIST, 0, -1))
    stored = sum(one.redis.exists(b"vcon:" + uuid) for uuid in uuids)
    if not created == len(uuids) == stored:
        raise BenchError(
            f"{created} creates were answered 201, but {len(uuids)} are queued and {stored} of them stored"
        )


class Api:
    """One process that listens on *port* and is gone afterwards."""

    def __init__(self, folder: Path, port: int, command: Sequence[str], env: Mapping[str, object]) -> None:
        self._log = folder / "api.log"
        self._port, self._command = port, command
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
        self._env = kept | {name: str(value) for name, value in env.items()}

    def __enter__(self) -> Api:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, cwd=_ROOT, env=self._env, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECS
        while not _listens(self._port):
            if time.monotonic() > deadline or self._process.poll() is not None:
                end([self._process])
                said = self._log.read_text(errors="replace")[-2000:]
                raise BenchError(f"{' '.join(self._command[1:])} does not listen on port {self._port}: {said}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        end([self._process])

    def cpu_secs(self) -> float:
        """Return the processor time so far, in user code and in the kernel."""
        return cpu_secs(family(self._process.pid)) or 0.0


def _env(folder: Path, url: str, port: int) -> dict[str, object]:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "links").mkdir(parents=True)
    (folder / "links" / "noop.py").write_text(NOOP)
    chain = {"links": ["noop"], "ingress_lists": [_LIST], "egress_lists": ["out"], "enabled": 1}
    config = {"links": {"noop": {"module": "links.noop"}}, "chains": {"main": chain}}
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    return {
        "REDIS_URL": url,
        "CONSERVER_API_PORT": port,
        "CONSERVER_API_TOKEN": _HEADERS["x-conserver-api-token"],
        "CONSERVER_CONFIG_FILE": folder / "config.yml",
        "CONSERVER_DATA_DIR": folder / "data",
        "CONSERVER_METRICS_PORT": 0,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
