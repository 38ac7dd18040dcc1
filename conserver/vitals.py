"""What a host says of itself: its status, whether it is ready, and its numbers."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from conserver import telemetry
from conserver.errors import ServerError
from conserver.workload import chains_of

if TYPE_CHECKING:
    from conserver.supervisor import Supervisor

log = logging.getLogger(__name__)


class Vitals:
    """Reads from a supervisor what others may know; asked by its own loop and by the threads of its HTTP port."""

    def __init__(self, host: Supervisor) -> None:
        self._host = host

    def status(self) -> dict[str, Any]:
        """Return what the host does, as plain values."""
        host, clock = self._host, time.monotonic()
        return {
            "host": host.host,
            "pid": os.getpid(),
            "metrics_port": host.health.port if host.health else None,
            "config": {"file": str(host.settings.config_file), "error": host.reload.error},
            "chains": list(chains_of(host.config, host.settings)),
            "lists": host.config.lists,
            "egress": sorted({name for chain in host.config.chains.values() for name in chain.egress_lists}),
            "at": round(time.time(), 1),
            "stopping": host.stopping,
            "services": host.services.status(),
            "workers": [
                {
                    "name": process.name,
                    "pid": process.process.pid,
                    "quarantine": process.quarantine,
                    "running": [
                        {"vcon": e.uuid, "list": e.list, "what": e.what, "seconds_left": round(e.deadline - clock, 1)}
                        if e.deadline != float("inf")
                        else {"vcon": e.uuid, "list": e.list, "what": e.what}
                        for e in process.board.read()[:50]
                    ],
                }
                for process in host.processes
            ],
        }

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Say whether the host works, and why not."""
        host = self._host
        workers = sum(p.process.is_alive() and p.snapshot is not None for p in host.processes if not p.quarantine)
        problems = list(host.troubles.values())[:1]
        if not problems:
            try:
                host.queue.probe()
            except ServerError as error:
                problems.append(str(error))
        if workers < 1:
            problems.append("no worker is running yet")
        if host.stopping:
            problems.append("draining")
        details = {"problems": problems, "workers": workers, "config_error": host.reload.error, "host": host.host}
        return not problems, details

    def metrics(self) -> bytes:
        """Return all numbers of the host in Prometheus' text format."""
        host = self._host
        with host.metrics_lock:
            ended = host.ended.snapshot()
        snapshots = [process.snapshot for process in list(host.processes) if process.snapshot is not None]
        gauges: list[tuple[telemetry.Key, float]] = [
            (telemetry.key("conserver.workers"), float(len(host.processes))),
            (telemetry.key("conserver.config.broken"), float(host.reload.error is not None)),
        ]
        try:
            gauges += self._server_gauges()
        except ServerError as error:
            log.debug("no numbers of the server: %s", error)
        inflight: dict[str, int] = {}
        for process in list(host.processes):
            for entry in process.board.read():
                chain = host.config.chain_of(entry.list) or ""
                inflight[chain] = inflight.get(chain, 0) + 1
        gauges += [(telemetry.key("conserver.vcons.inflight", chain_name=c), float(n)) for c, n in inflight.items()]
        return telemetry.exposition(
            [ended, telemetry.metrics.snapshot(), *host.services.snapshots(), *snapshots], gauges
        )

    def _server_gauges(self) -> Iterable[tuple[telemetry.Key, float]]:
        host, length = self._host, "conserver.ingress_list.length"
        for name, depth in host.queue.depths(list(host.config.lists)).items():
            for kind in ("waiting", "returned", "delayed", "suspects", "held", "dead"):
                shown = {"waiting": "ingress", "dead": "dlq"}.get(kind, kind)
                yield telemetry.key(length, ingress_list=name, kind=shown), float(getattr(depth, kind))
        for storage in host.config.storages:
            yield (
                telemetry.key(length, ingress_list=f"storage:{storage}", kind="dlq"),
                float(host.queue.dead_count(f"storage:{storage}")),
            )
        for follower in host.config.followers:
            name = f"follower:{follower}"
            yield telemetry.key(length, ingress_list=name, kind="dlq"), float(host.queue.dead_count(name))
        for chain in host.queue.paused():
            yield telemetry.key("conserver.chain.paused", chain_name=chain), 1.0
        yield telemetry.key("conserver.redis.memory_used_bytes"), float(host.queue.server_info()["used_memory"])
