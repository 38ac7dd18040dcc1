"""The physical limit: what one Python process can do over one connection, with no links, threads, logs or metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import msgspec
from redis import Redis

from bench.host import Server, server
from bench.plan import Plan, Table
from conserver.claims import Settlement
from conserver.session import Session

COLUMNS = {"rate": "vCons/s", "cpu_ms": "client CPU, ms", "server_ms": "server CPU, ms"}
_BATCH = 16

#: As little as a claim can be and still lose nothing: what is taken is written down, and forgotten when it is done.
_TAKE = """
local ids = redis.call('LPOP', KEYS[1], ARGV[1])
if not ids then return {} end
redis.call('RPUSH', KEYS[2], unpack(ids))
return ids
"""


def limit(plan: Plan) -> list[Table]:
    """Measure loops that take UUIDs, read and parse 5 kB vCons, and push to egress, in this very process."""
    table = Table("limit", "bare loops in one process, 5 kB vCons", COLUMNS)
    loops: Sequence[tuple[str, Callable[[Server, int], None]]] = (
        ("bare, one by one: BLPOP, GET, json.loads, RPUSH", _one_by_one),
        (f"bare, {_BATCH} at once: claim, MGET, msgspec, RPUSH, ack", _bare_batches),
        (f"our protocol, {_BATCH} at once: Session.trip, found, msgspec", _protocol),
    )
    with server() as one:
        uuids = one.store(5000, plan.count(10_000, least=32))
        for name, loop in plan.turns(loops):
            n = plan.count(256, least=32)
            sample = _sample(one, loop, uuids, n)
            while sample["secs"] < plan.secs / 3:
                n = max(2 * n, round(n / sample["secs"] * plan.secs))
                sample = _sample(one, loop, uuids, n)
            table.row(name).add(**sample)
            plan.say(f"  limit, {name}: {sample['rate']:,.0f}/s")
    return [table]


def _sample(one: Server, loop: Callable[[Server, int], None], uuids: list[str], n: int) -> dict[str, float]:
    one.redis.delete("limit", "limit:out", "limit:held")
    one.push("limit", (uuids * (n // len(uuids) + 1))[:n])
    before, cpu, began = one.costs(), time.process_time(), time.perf_counter()
    loop(one, n)
    secs = time.perf_counter() - began
    cpu_ms = (time.process_time() - cpu) * 1000 / n
    assert one.redis.llen("limit:out") == n
    server_ms = (one.costs()["server_secs"] - before["server_secs"]) * 1000 / n
    return {"rate": n / secs, "cpu_ms": cpu_ms, "server_ms": server_ms, "secs": secs, "n": float(n)}


def _one_by_one(one: Server, n: int) -> None:
    redis = Redis.from_url(one.url)
    for _ in range(n):
        _, uuid = redis.blpop(["limit"])
        json.loads(redis.get(f"vcon:{uuid.decode()}"))
        redis.rpush("limit:out", uuid)
    redis.close()


def _bare_batches(one: Server, n: int) -> None:
    redis = Redis.from_url(one.url)
    take, decode = redis.register_script(_TAKE), msgspec.json.Decoder().decode
    done: list[bytes] = []
    left = n
    while left or done:
        pipe = redis.pipeline(transaction=False)
        if done:
            pipe.rpush("limit:out", *done)
            pipe.ltrim("limit:held", len(done), -1)
        take(["limit", "limit:held"], [_BATCH], client=pipe)
        done = pipe.execute()[-1]
        if done:
            for text in redis.mget([b"vcon:" + uuid for uuid in done]):
                decode(text)
        left -= len(done)
    redis.close()


def _protocol(one: Server, n: int) -> None:
    session, decode = Session(one.url, "bench"), msgspec.json.Decoder().decode
    session.join(["limit"])
    settlements: list[Settlement] = []
    left = n
    while left or settlements:
        trip = session.trip(settlements, {"limit": _BATCH} if left else {})
        if trip.trouble is not None:
            raise trip.trouble
        for found in session.found(trip.claims, [1_000_000] * len(trip.claims)):
            decode(found.text)
        settlements = [Settlement(claim).push("limit:out", claim.entry) for claim in trip.claims]
        left -= len(trip.claims)
    session.leave()
