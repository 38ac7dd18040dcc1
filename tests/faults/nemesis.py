"""A nemesis: faults mixed at random from a seed, on two hosts and their server under steady traffic.

    python -m tests.faults.nemesis --minutes 30 --seed 7

The seed gives the same plan again: which fault, after what pause, for how long; what it meets is up to the machine.
After the time everything is brought to rest, and the promises are proven from what links and storages have written
down.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Generator, Iterator
from pathlib import Path

from redis.exceptions import RedisError

from tests.faults.checker import Fault
from tests.faults.scene import LEASE_SECS, Scene
from tests.host import Host

#: What a fault leaves behind may be met for this long after its end.
AFTERMATH_SECS = 2.0
TICK_SECS = 0.02

#: What may happen to a host, how long it lasts at most, and whether the steady host bears it without starting anew.
HOST_FAULTS = {
    "kill a worker": (0.0, False),
    "kill the supervisor": (2 * LEASE_SECS, False),
    "kill everything": (2 * LEASE_SECS, False),
    "drain": (2 * LEASE_SECS, False),
    "end at once": (0.5, False),
    "stop a worker": (3 * LEASE_SECS, True),
    "stop the supervisor": (0.5 * LEASE_SECS, True),
    "stop the supervisor for long": (4 * LEASE_SECS, False),
    "stop everything for long": (6 * LEASE_SECS, False),
    "change the config": (0.0, True),
    "break the config": (2.0, True),
}
#: What may happen to the server, and how long it lasts at most.
SERVER_FAULTS = {
    "kill the server": 3.0,
    "end the server": 3.0,
    "stop the server": 2 * LEASE_SECS,
    "pause the server": 2 * LEASE_SECS,
    "cut all connections": 0.0,
    "forget the scripts": 0.0,
    "fill the server": 3.0,
    "make the server read-only": 3.0,
}

#: Yields how many seconds to wait until it goes on, and returns the processes that it concerned, or None for all.
Course = Generator[float, None, "set[int] | None"]


class Nemesis:
    """Does things to a scene: `run` for some time, then let it `finish` what it has begun."""

    def __init__(self, scene: Scene, seed: int, *, faults: Collection[str] = (*HOST_FAULTS, *SERVER_FAULTS)) -> None:
        self.scene = scene
        self.rng = random.Random(seed)
        self.faults = sorted(faults)
        self.struck: list[Fault] = []
        self._under_way: dict[str, tuple[float, float, Course]] = {}

    def run(self, secs: float) -> None:
        """Let things happen for *secs* seconds, or until all traffic was sent."""
        end, strike_at = time.monotonic() + secs, 0.0
        while time.monotonic() < end and self.scene.traffic.is_alive():
            self._go_on()
            if time.monotonic() > strike_at:
                self._strike()
                strike_at = time.monotonic() + self.rng.uniform(0.2, 2.5)
            time.sleep(TICK_SECS)

    def _strike(self) -> None:
        # Always as many draws, so that a seed gives the same plan whatever the machine does.
        name, which, length, pick = self.rng.choice(self.faults), *(self.rng.random() for _ in range(3))
        if name in SERVER_FAULTS:
            target, course = "server", self._server_course(name, length * SERVER_FAULTS[name])
        else:
            most, bearable = HOST_FAULTS[name]
            target = "steady" if which < 0.5 and (bearable or not self.scene.steady) else "wild"
            course = self._host_course(
                name, self.scene.hosts[target], self.scene.workers.get(target, []), length * most, pick
            )
        # Who has only just begun to start has nothing to lose; now and then that is a case of its own.
        starting = target != "server" and not self.scene.workers.get(target) and pick < 0.8
        busy = target in self._under_way or starting
        self.scene.say(f"{name} ({target}){': not now' if busy else ''}")
        if not busy:
            self._under_way[target] = (0.0, time.time(), course)

    def finish(self) -> list[Fault]:
        """Mend what is still broken, and return all that was done."""
        while self._under_way:
            self._go_on()
            time.sleep(TICK_SECS)
        return self.struck

    def _go_on(self) -> None:
        """Go on with what is under way, and start a host again that has ended by itself."""
        for target, (due, since, course) in list(self._under_way.items()):
            if time.monotonic() < due:
                continue
            try:
                self._under_way[target] = (time.monotonic() + next(course), since, course)
            except StopIteration as end:
                del self._under_way[target]
                self.struck.append((since, time.time() + AFTERMATH_SECS, end.value))
        self.scene.keep_up(but=self._under_way)

    # What happens

    def _host_course(self, name: str, host: Host, workers: list[int], secs: float, pick: float) -> Course:
        if name == "change the config":
            host.configure(self.scene.config(pick * 0.04))
        elif name == "break the config":
            host.configure("chains: [half writ")
            yield secs
            host.configure(self.scene.config(pick * 0.04))
        elif host.process is None or host.process.poll() is not None:
            return None
        elif name in ("kill a worker", "stop a worker"):
            victims = [workers[int(pick * len(workers))]] if workers else []
            if name == "kill a worker":
                host.signal(signal.SIGKILL, victims)
            else:
                yield from _stopped(host, victims, secs)
            return set(victims)
        elif name.startswith("stop"):
            yield from _stopped(host, host.family()[: None if "everything" in name else 1], secs)
        elif name.startswith("kill"):
            if name == "kill everything":
                host.kill_everything()
            else:
                host.kill()
            yield secs
            host.start(wait=False)
        else:
            yield from self._ended(host, secs, twice=name == "end at once")
            host.start(wait=False)
        return None

    def _ended(self, host: Host, secs: float, *, twice: bool) -> Iterator[float]:
        assert host.process is not None
        host.process.terminate()
        if twice:
            yield secs
            host.process.terminate()
        late = time.monotonic() + 60
        while host.process.poll() is None:
            if time.monotonic() > late:
                self.scene.troubles.append(f"{host.folder.name} did not end within 60 s of SIGTERM")
                host.kill_everything()
            yield 0.05
        if not twice:
            yield secs

    def _server_course(self, name: str, secs: float) -> Course:
        if name in ("kill the server", "end the server"):
            os.kill(self.scene.server_pid, signal.SIGKILL if name == "kill the server" else signal.SIGTERM)
            while self.scene.server.is_running():
                yield 0.05
            yield secs
            self.scene.server.restart_if_dead()
            self.scene.server_pid = self.scene.settle_server()
        elif name == "stop the server":
            os.kill(self.scene.server_pid, signal.SIGSTOP)
            yield secs
            os.kill(self.scene.server_pid, signal.SIGCONT)
        elif name == "pause the server":
            yield from self._ask("CLIENT", "PAUSE", int(secs * 1000) + 1, "ALL")
            yield secs
        elif name == "cut all connections":
            yield from self._ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
        elif name == "forget the scripts":
            yield from self._ask("SCRIPT", "FLUSH")
        elif name == "fill the server":
            yield from self._ask("CONFIG", "SET", "maxmemory", "1")
            yield secs
            yield from self._ask("CONFIG", "SET", "maxmemory", "0")
        elif name == "make the server read-only":
            yield from self._ask("REPLICAOF", "127.0.0.1", "1")
            yield secs
            yield from self._ask("REPLICAOF", "NO", "ONE")
        return None

    def _ask(self, *command: object) -> Iterator[float]:
        while True:
            with contextlib.suppress(RedisError):
                self.scene.redis.execute_command(*command)
                return
            if command[:2] == ("CLIENT", "KILL"):
                # It may have cut our own connection.
                return
            yield 0.1


def _stopped(host: Host, pids: list[int], secs: float) -> Iterator[float]:
    host.signal(signal.SIGSTOP, pids)
    yield secs
    host.signal(signal.SIGCONT, pids)


def main() -> int:
    """Run a nemesis from the command line; the exit code is 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description="Mix faults at random, and prove the promises.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--rate", type=float, default=50.0, help="vCons a second")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nemesis-"))
    sys.stdout.write(f"seed {given.seed}, {given.minutes:g} minutes, everything in {folder}\n")
    scene = Scene(folder, given.seed, rate=given.rate)
    nemesis = Nemesis(scene, given.seed)
    try:
        scene.start()
        nemesis.run(given.minutes * 60)
        scene.rest(nemesis.finish())
    except AssertionError as troubles:
        sys.stdout.write(f"\nseed {given.seed} has broken something; all is kept in {folder}\n\n{troubles}\n")
        return 1
    finally:
        scene.close()
    shutil.rmtree(folder)
    sys.stdout.write(f"seed {given.seed}: every promise was kept\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
