"""Saves a second of each storage whose backend can run on this machine, beside the bare loop of its client library."""

from __future__ import annotations

import contextlib
import math
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from bench import vcons
from bench.backends import BACKENDS, Backend, NotHere, Puts
from bench.plan import BenchError, Plan, Table
from conserver.ambient import Work, bind
from conserver.components import load_storage
from conserver.config import StorageConfig
from conserver.settings import Settings
from conserver.store import VconStore

THREADS = 16
SIZE = 5000
COLUMNS = {
    "one": "1 thread, saves/s",
    "one_bare": "bare loop",
    "one_of_bare": "part of bare",
    "many": f"{THREADS} threads, saves/s",
    "many_bare": "bare loop",
    "many_of_bare": "part of bare",
}
#: What one loop gets of the seconds of a run: there are four of them for each of many backends.
_SHARE = 1 / 8
#: What each thread keeps before: it makes its connections, and the client prepares its statements.
_WARM_UP = 8


def storages(plan: Plan, names: Sequence[str] = tuple(BACKENDS)) -> list[Table]:
    """Measure `save` of each storage right after the bare loop that keeps the same vCons, in this very process."""
    table = Table("storages", f"saves of vCons of {SIZE / 1000:g} kB in one process", COLUMNS)
    table.notes.append("a bare loop writes the same text by the client library alone; ours is all that `save` does")
    # Never asked: each vCon comes along.
    store = VconStore("redis://127.0.0.1", Settings())
    for name in names:
        row = table.row(name)
        module, start = BACKENDS[name]
        # Nothing is removed in between: for a while after that, some file systems make new files slowly.
        plan.scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{module}-", dir=plan.scratch))
        try:
            with start(folder) as backend:
                ours = _ours(store, module, backend)
                for kind, threads in plan.turns([("one", 1), ("many", THREADS)]):
                    warm_up, secs = plan.count(_WARM_UP), plan.secs * _SHARE
                    bare_rate, rate = (measure(puts, threads, secs, warm_up) for puts in (backend.bare, ours))
                    row.add(**{kind: rate, f"{kind}_bare": bare_rate, f"{kind}_of_bare": rate / bare_rate})
        except NotHere as why:
            row.note = f"not measured: {why}"
            plan.say(f"  storages, {name}: {row.note}")
            continue
        plan.say(f"  storages, {name}: {row.median('one'):,.0f}/s and {row.median('many'):,.0f}/s")
    return [table]


def _ours(store: VconStore, module: str, backend: Backend) -> Puts:
    storage = load_storage(StorageConfig(name=module, module=module, options=dict(backend.options)))

    def put(uuid: str, text: bytes) -> None:
        # As a chain has it: the text came with the claim (here it never gets old), and all storages get this version.
        writer = store.writer(found=(uuid, text, math.inf))
        writer.freeze(uuid)
        bind(Work(writer))
        storage.save(uuid, storage.options)

    return lambda: nullcontext(put)


def measure(puts: Puts, threads: int, secs: float, warm_up: int = _WARM_UP) -> float:
    """Return how many vCons a second *threads* keep, each with the next one as soon as it has kept the last."""
    ready = threading.Barrier(threads + 1)
    counts = [0] * threads
    errors: list[BaseException] = []
    until = float("inf")

    def work(at: int) -> None:
        try:
            with puts() as put:
                for uuid, text in vcons.documents(SIZE, warm_up):
                    put(uuid, text)
                ready.wait(60)
                for uuid, text in vcons.documents(SIZE, 1_000_000):
                    if time.perf_counter() > until:
                        break
                    put(uuid, text)
                    counts[at] += 1
        except BaseException as error:  # noqa: BLE001  whatever it is, it is told by the thread that waits
            errors.append(error)
            ready.abort()

    workers = [threading.Thread(target=work, args=(at,)) for at in range(threads)]
    for worker in workers:
        worker.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait(60)
    began = time.perf_counter()
    until = began + secs
    for worker in workers:
        worker.join()
    took = time.perf_counter() - began
    if errors:
        raise BenchError(f"a save failed: {type(errors[0]).__name__}: {errors[0]}") from errors[0]
    return sum(counts) / took
