"""What `conserver status` shows: server, config, hosts, lists, pauses. Reads only, and works when nothing runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from conserver import connection
from conserver.config import Config, load_config
from conserver.hosts import Hosts
from conserver.queue import Queue
from conserver.server import Server
from conserver.settings import Settings
from conserver.workload import chains_of

_COLUMNS = ("waiting", "returned", "delayed", "suspects", "held", "dead", "parked")


def collect(server: Server, settings: Settings) -> dict[str, Any]:
    """Return everything as plain values; its members are described in docs/reference/cli.md."""
    queue = Queue(server.url, "status")
    config, findings = load_config(settings.config_file)
    errors = [str(finding) for finding in findings if finding.level == "error"]
    hosts = Hosts(server.url, "status").all()
    # With a config that cannot be used, what the hosts go on with counts.
    egress = {name for host in hosts for name in host.get("egress", ())}
    read = {name: chain for host in hosts for name, chain in host.get("lists", {}).items()}
    if config:
        egress = {name for chain in config.chains.values() for name in chain.egress_lists}
        read = dict(config.lists)
    depths = queue.depths([*read, *sorted({*queue.lists(), *egress, *_idle_lists(config)} - read.keys())])
    return {
        "server": {
            "address": connection.address(server.url),
            "embedded": server.embedded is not None,
            "what": server.describe(queue.server_info()),
            "warnings": queue.server_warnings(),
        },
        "config": {
            "file": str(settings.config_file),
            "errors": errors,
            "chains": list(chains_of(config, settings)) if config else [],
        },
        "hosts": hosts,
        "lists": [
            {"list": name, "chain": read.get(name), "egress": name in egress, **asdict(depth)}
            for name, depth in depths.items()
            if name in read or any(asdict(depth).values())
        ],
        "storages": [
            {"storage": name, "dead": queue.dead_count(f"storage:{name}")}
            for name in (config.storages if config else ())
        ],
        "followers": [
            {"follower": name, "waiting": depth.waiting, "dead": depth.dead}
            for name in (config.followers if config else ())
            for depth in queue.depths([f"follower:{name}"]).values()
        ],
        "paused": queue.paused(),
        "server_time": queue.server_time(),
    }


def _idle_lists(config: Config | None) -> set[str]:
    return {name for chain in config.chains.values() for name in chain.ingress_lists} if config else set()


def lines(overview: dict[str, Any], command: str) -> Iterator[str]:
    """Yield what `collect` returned as text; *command* is how a person calls this program."""
    yield f"server  {overview['server']['what']}"
    yield from (f"        warning: {warning}" for warning in overview["server"]["warnings"])
    config = overview["config"]
    errors = config["errors"]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    yield f"config  {config['file']}: {f'{errors[0]}{more}' if errors else 'no errors'}"
    hosts = overview["hosts"]
    if not any(host["alive"] for host in hosts):
        yield f"hosts   no conserver runs; '{command} run' starts one"
    for host in hosts:
        yield from _host_lines(host, errors)
    for chain, why in overview["paused"].items():
        yield from _pause_lines(chain, why, overview["server_time"], command)
    yield from _list_lines(overview["lists"])
    for storage in overview["storages"]:
        if storage["dead"]:
            name = storage["storage"]
            saves = "save" if storage["dead"] == 1 else "saves"
            yield f"storage {name!r} has {storage['dead']:,} failed {saves}; '{command} dlq replay {name}' tries now"
    for follower in overview["followers"]:
        if follower["dead"]:
            name = follower["follower"]
            letters = "dead letter" if follower["dead"] == 1 else "dead letters"
            yield f"follower {name!r} has {follower['dead']:,} {letters}; '{command} dlq list follower:{name}' says why"


def _host_lines(host: dict[str, Any], said: Sequence[str]) -> Iterator[str]:
    if not host["alive"]:
        yield f"host    {host['host']}: no sign of life; what its workers hold is being recovered"
        return
    about = ", ".join(
        text
        for text, shown in (
            (f"pid {host.get('pid')}", "pid" in host),
            (f"metrics on 127.0.0.1:{host.get('metrics_port')}", host.get("metrics_port")),
            (f"API on {_api(host).get('address')}", _api(host).get("address")),
            (f"chains {', '.join(host.get('chains', ()))}", host.get("chains")),
            ("draining", host.get("stopping")),
        )
        if shown
    )
    # A server that refuses writes keeps what the host said last.
    age = time.time() - host.get("at", time.time())
    yield f"host    {host['host']}: {about or 'starting'}{f' ({age:.0f} s ago)' if age > 5 else ''}"
    if error := (host.get("config") or {}).get("error"):
        what = "" if error in said else f": {error}"
        yield f"        its config file cannot be used, the config before stays in force{what}"
    for worker in host.get("workers", ()):
        kind = "quarantine" if worker["quarantine"] else "worker"
        running = worker["running"]
        yield f"        {kind} {worker['name'].rpartition(':')[2]} (pid {worker['pid']}): {len(running)} in hand"
        for run in running:
            left = f", {run['seconds_left']:.0f} s left" if "seconds_left" in run else ""
            yield f"          {run['vcon']} of {run['list']}: {run['what'] or 'starting'}{left}"


def _api(host: dict[str, Any]) -> dict[str, Any]:
    return (host.get("services") or {}).get("api") or {}


def _pause_lines(chain: str, why: dict[str, Any], server_time: float, command: str) -> Iterator[str]:
    since = f" since {why['since']}" if why.get("since") else ""
    yield f"paused  chain {chain!r}{since}: {why.get('reason') or 'no reason given'}"
    if why.get("retry_at"):
        secs = max(0, why["retry_at"] - server_time)
        yield f"        tried again in {secs:.0f} s; '{command} resume {chain}' does it now"
    else:
        yield f"        until '{command} resume {chain}'"


def _list_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    # What is hardly ever there does not take a column away from the rest.
    columns = [c for c in _COLUMNS if c in ("waiting", "held", "dead") or any(row[c] for row in rows)]
    table = [["list", "chain", *columns]]
    for row in rows:
        chain = row["chain"] or ("(egress)" if row["egress"] else "(none)")
        table.append([row["list"], chain, *(f"{row[column]:,}" for column in columns)])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    yield ""
    for line in table:
        names = [text.ljust(width) for text, width in zip(line[:2], widths, strict=False)]
        yield "  ".join([*names, *(t.rjust(w) for t, w in zip(line[2:], widths[2:], strict=True))])
    yield ""
    for row in rows:
        if row["chain"] is None and not row["egress"]:
            yield f"no chain reads list {row['list']!r}: what is in it waits"
