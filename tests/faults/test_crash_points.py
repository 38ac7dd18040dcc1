"""Wherever a process dies: at each named point of `conserver.crashpoints` one of them does, once; and F1 to F9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from conserver.crashpoints import POINTS
from conserver.egress import Egress
from conserver.embedded import EmbeddedServer
from conserver.settings import Settings
from conserver.store import VconStore
from tests.faults.checker import History
from tests.faults.doubles import KEEP
from tests.host import EFFECT, Host, accounted, store, vcon
from tests.proxy import proxied
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

#: For whatever is waited for; a machine with better things to do takes long to start so many processes.
PATIENT_SECS = 100

#: Adds an analysis and a party, once; then what the subject says: `slow:b dies:c` makes b slow, and c end its process.
WORK = (
    EFFECT
    + """
import signal
from conserver import vcons

def first_time(mark):
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def run(vcon_uuid, link_name, opts):
    effect("began", link_name, vcon_uuid, adds=link_name)
    with vcons.edit(vcon_uuid) as vcon:
        if vcon.find_analysis_by_type(link_name) is None:
            vcon.add_analysis(type=link_name, dialog=0, vendor="test", body=link_name)
            vcon.add_party({"name": link_name})
    wants = vcon.subject.split()
    if f"slow:{link_name}" in wants:
        time.sleep(1.1)
    if f"fails:{link_name}" in wants and first_time(f"failed-{vcon_uuid}"):
        raise ConnectionError("no answer")
    if f"down:{link_name}" in wants and os.path.exists("down"):
        raise ConnectionError("down")
    if f"dies:{link_name}" in wants and first_time(f"died-{vcon_uuid}"):
        os.kill(os.getpid(), signal.SIGKILL)
    effect("ended", link_name, vcon_uuid, adds=link_name)
    return vcon_uuid
"""
)
LINKS, STORAGES = ("a", "b", "c", "d"), ("x", "y", "z")
#: Of the one worker: so many vCons run when it dies.
THREADS = 4
#: What lies ahead of the point of a death.
BEFORE_ANY_LINK = ("claim.sent", "claim.replied", "touch.sent", "touch.replied")
OF_A_DRAIN = ("worker.draining", "leave.sent", "leave.replied", "supervisor.draining")
OF_THE_SUPERVISOR = (
    *("supervisor.draining", "recover.sent", "recover.replied", "due.sent", "due.replied"),
    *("lapse.sent", "lapse.replied"),
)
OF_A_COMMAND = ("retry.sent", "retry.replied")
#: Of an operator who returns claims, and of one who reads what was delivered.
OF_AN_OPERATOR = ("withdraw.sent", "withdraw.replied")
OF_A_READER = ("lease.sent", "lease.replied", "unlease.sent", "unlease.replied")


class House:
    """A host with four links that add to a vCon and three storages, and what has to be true at the end."""

    def __init__(self, folder: Path, redis: Redis, url: str, **env: object) -> None:
        self.redis, self.url, self.folder = redis, url, folder
        self.storages = {name: folder / name for name in STORAGES}
        retry = {"attempts": 3, "backoff_secs": 0.1}
        config = {
            "links": {name: {"module": "links.work"} for name in LINKS}
            | {"b": {"module": "links.work", "retry": retry}},
            "storages": {
                name: {"module": "storages.keep", "options": {"path": str(path), "name": name}}
                for name, path in self.storages.items()
            },
            "chains": {
                "main": {
                    "links": list(LINKS),
                    "storages": list(STORAGES),
                    "ingress_lists": ["in"],
                    "egress_lists": ["out"],
                    "pause_after": 0,
                }
            },
        }
        env = {"CONSERVER_WORKERS": 1, "CONSERVER_VCON_CONCURRENCY": THREADS, "CONSERVER_DRAIN_SECS": 5, **env}
        self.host = Host(folder / "host", url, config, links={"work": WORK}, **env)
        (self.host.folder / "storages").mkdir()
        (self.host.folder / "storages" / "keep.py").write_text(KEEP)
        self.given: dict[str, bytes] = {}

    def push(self, *subjects: str) -> list[str]:
        """Store a vCon for each subject and push them all."""
        uuids = store(self.redis, [vcon(subject) for subject in subjects])
        self.given |= {uuid: self.redis.get(f"vcon:{uuid}") or b"" for uuid in uuids}
        self.redis.rpush("in", *uuids)
        return uuids

    def at_work(self, source: str) -> int:
        """Run Python while there is always a vCon in hand, and return the exit code."""
        command = [sys.executable, "-c", source, self.url]
        with subprocess.Popen(command, cwd=self.host.folder, env=self.host.env) as process:
            while process.poll() is None:
                self.push("slow:b")
                wait_until(
                    lambda: process.poll() is not None or accounted(self.redis, ["in"]), PATIENT_SECS, "it is settled"
                )
        return process.returncode

    def restart(self) -> None:
        """Start the conserver again, and wait until nothing is left of the one before."""
        self.host.start(wait=False)
        wait_until(self.host.worker_pids, PATIENT_SECS, "workers claim")
        wait_until(
            lambda: self.redis.scard("conserver:hosts") == 1, PATIENT_SECS, "what the last host left is recovered"
        )

    def finish(self, *, repeats: int) -> None:
        """Wait until all is settled, end the host, and prove that each vCon was delivered once and is saved well."""
        wait_until(lambda: accounted(self.redis, ["in"]), PATIENT_SECS, "everything settled")
        index = VconStore(self.url, Settings())
        found = {name: index.find(name=name) for name in LINKS}
        assert self.host.stop() == 0
        History(self.host.effects_file).check(
            self.redis, list(self.given), storages=self.storages, repeats=repeats, given=self.given.get, gone=True
        )
        assert found == {name: set(self.given) for name in LINKS}


@pytest.fixture
def build(tmp_path: Path, redis: Redis, server_url: str) -> Iterator[Callable[..., House]]:
    """Make a house on the server of the test, to be torn down in the end."""
    houses: list[House] = []

    def make(url: str = server_url, **env: object) -> House:
        houses.append(House(tmp_path, redis, url, **env))
        return houses[-1]

    yield make
    for house in houses:
        house.host.close()


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=[] if point in ("settle.sent", "recover.replied") else pytest.mark.thorough)
        for point in POINTS
        # A follower dies in test_followers_processes.py, the API in test_idempotency.py.
        if not point.startswith(("follow.", "once."))
    ],
)
def test_a_death_at_any_point_loses_and_repeats_nothing(build: Callable[..., House], tmp_path: Path, point: str):
    """Each vCon is delivered once, is the same in all storages, and has each analysis once.

    F1 claim.sent; F2 claim.replied and touch; F4 save.replied and link.done; F5 storage.saved; F6 chain.ended;
    F7 settle; F8 recover, due, retry, withdraw, lease, unlease and lapse.
    """
    died = tmp_path / "died"
    house = build(CONSERVER_TESTING=1, CONSERVER_CRASHPOINT=point, CONSERVER_CRASHPOINT_ONCE=died)
    host = house.host
    more = {"recover": "dies:c", "retry": "down:c"}.get(point.partition(".")[0], "")
    (host.folder / "down").touch()
    # The plain ones first: then the first settlement is one that delivers.
    house.push(*[""] * 16, "slow:b", "fails:b", *[more] * 2)
    host.start(wait=False)
    assert host.process is not None
    if point in OF_A_DRAIN:
        wait_until(lambda: house.redis.llen("out") > 2, PATIENT_SECS)
        host.process.terminate()
    if point in OF_A_COMMAND:
        wait_until(lambda: house.redis.llen("DLQ:in") == 2, PATIENT_SECS)
        (host.folder / "down").unlink()
        codes = [subprocess.run(retry, cwd=host.folder, env=host.env).returncode for retry in [RETRY] * 2]
        assert codes == [-signal.SIGKILL, 0]
    if point in OF_AN_OPERATOR:
        assert [house.at_work(TAKE) for _ in range(2)] == [-signal.SIGKILL, 0]
    if point in OF_A_READER:
        wait_until(lambda: house.redis.llen("out") > 8, PATIENT_SECS)
        assert [house.at_work(READ) for _ in range(2)] == [-signal.SIGKILL, 0]
    if point.startswith("lapse"):
        wait_until(lambda: Egress(house.url).lease("out", 5, 0.3).entries, PATIENT_SECS)
    wait_until(died.exists, PATIENT_SECS, f"somebody dies at {point}")
    if point in OF_A_DRAIN + OF_THE_SUPERVISOR:
        assert host.process.wait(PATIENT_SECS) == (-signal.SIGKILL if point in OF_THE_SUPERVISOR else 0)
        house.restart()

    wait_until(lambda: not house.redis.exists("conserver:{out}:leases"), PATIENT_SECS, "what was leased is back")

    # What the dead process had in hand runs again; what waited for a retry does in any case.
    deaths = 3 if more == "dies:c" else 1
    again = 0 if point in BEFORE_ANY_LINK else deaths * THREADS * len(LINKS)
    house.finish(repeats=1 + 2 * bool(more) + again)


@pytest.mark.thorough
def test_replies_that_are_lost_on_the_wire_cost_nothing(build: Callable[..., House], server_url: str):
    """F1: the connection is cut in place of a reply, again and again, and the worker lives: no link runs twice."""
    with proxied(server_url) as proxy:
        house = build(proxy.url)
        house.push(*[""] * 200)
        house.host.start(wait=False)
        for done in range(10, 190, 20):
            wait_until(lambda done=done: house.redis.llen("out") > done, PATIENT_SECS)
            proxy.lose_next_reply()

        house.finish(repeats=0)
    assert "was ended by" not in house.host.said()


@pytest.mark.thorough
def test_a_death_in_the_third_link_costs_the_first_two_nothing(build: Callable[..., House]):
    """F3: what was noted as done is not done again."""
    house = build()
    (uuid,) = house.push("slow:b dies:c")
    house.host.start(wait=False)
    house.finish(repeats=1)

    assert house.host.effects() == {("a", uuid): 1, ("b", uuid): 1, ("c", uuid): 2, ("d", uuid): 1}


@pytest.mark.thorough
def test_an_end_in_the_middle_of_recovery_loses_nothing(build: Callable[..., House]):
    """F8: kill -9 of a worker and SIGTERM of its supervisor in the same moment, and another start."""
    house = build()
    host = house.host
    house.push(*["slow:b"] * 8)
    host.start(wait=False)
    wait_until(lambda: len(host.effects()) >= THREADS, PATIENT_SECS)
    host.signal(signal.SIGKILL, host.worker_pids())
    assert host.process is not None
    host.process.terminate()
    assert host.process.wait(PATIENT_SECS) == 0
    host.start(wait=False)

    house.finish(repeats=THREADS * len(LINKS))


@pytest.mark.thorough
@pytest.mark.parametrize("size", [1, 3000])
def test_a_torn_end_of_the_append_only_file_costs_repetition_at_most(tmp_path: Path, size: int):
    """F9: all is killed, and the last bytes never reached the disk: the server starts, what they said happens again."""
    with a_server(tmp_path) as server:
        house = House(tmp_path, Redis.from_url(server.url, retry=Retry(ConstantBackoff(0.1), 5)), server.url)
        house.push(*[""] * 60)
        house.host.start(wait=False)
        try:
            wait_until(lambda: house.redis.llen("out") > 20, PATIENT_SECS)
            os.kill(wait_until(lambda: server.pid), signal.SIGKILL)
            house.host.kill_everything()
            tear(server, tmp_path, size)
            house.restart()

            house.finish(repeats=(2 * THREADS + size // 100) * len(LINKS))
        finally:
            house.host.close()


@pytest.mark.thorough
@pytest.mark.parametrize("size", [1, 3000])
def test_a_host_goes_on_with_a_server_that_has_lost_its_last_bytes(tmp_path: Path, size: int):
    """F9: only the server is killed. What it has forgotten of claims and settlements, its workers find out."""
    with a_server(tmp_path) as server:
        house = House(tmp_path, Redis.from_url(server.url, retry=Retry(ConstantBackoff(0.1), 5)), server.url)
        uuids = house.push(*[""] * 60)
        house.host.start(wait=False)
        try:
            wait_until(lambda: house.redis.llen("out") > 20, PATIENT_SECS)
            os.kill(wait_until(lambda: server.pid), signal.SIGKILL)
            tear(server, tmp_path, size)
            wait_until(lambda: accounted(house.redis, ["in"]), PATIENT_SECS, "everything settled")
            assert house.host.stop() == 0

            # An update that the server has taken and lost is lost: that is as durable as the server is.
            History().check(house.redis, uuids, given=house.given.get, gone=True)
        finally:
            house.host.close()


@contextmanager
def a_server(folder: Path) -> Iterator[EmbeddedServer]:
    """A server of its own, to be killed."""
    server = EmbeddedServer(folder / "data")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def tear(server: EmbeddedServer, folder: Path, size: int) -> None:
    """Cut the last *size* bytes off the file of a server that has been killed, and start it again."""
    wait_until(lambda: not server.is_running(), 10)
    (file,) = (folder / "data" / "redis").rglob("*.incr.aof")
    os.truncate(file, file.stat().st_size - size)
    server.restart_if_dead()


#: Returns a claim as soon as there is one.
TAKE = """
import sys
from conserver.records import Records

records = Records(sys.argv[1])
while not any(records.return_claim("in", held.worker, held.seq) for held in records.claims(["in"])):
    pass
"""
#: Leases entries, acknowledges none, gives some back, and ends.
READ = """
import sys
from conserver.egress import Egress

egress = Egress(sys.argv[1])
leased = egress.lease("out", 5, 1.0)
egress.give_back("out", leased.id, leased.entries[1:3])
"""
RETRY = [sys.executable, "-m", "conserver", "dlq", "retry", "in"]
