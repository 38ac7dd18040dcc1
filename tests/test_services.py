"""conserver.services and conserver.listening: the API beside the workers of `conserver run`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from conserver import services
from conserver.config import load_config
from conserver.services import Services
from conserver.settings import Settings
from tests.commands import Folder
from tests.host import vcon
from tests.waiting import wait_until

TOKEN = {"x-conserver-api-token": "secret"}


class Run:
    """A `conserver run` that serves the API."""

    def __init__(self, folder: Folder, **env: str) -> None:
        self.log = folder.path / "run.log"
        environment = folder.env | {"CONSERVER_API_PORT": "0", "CONSERVER_API_TOKEN": "secret"} | env
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                folder.argv("run"), cwd=folder.path, env=environment, stdout=log, stderr=log
            )
        self.redis = Redis.from_url(folder.env["REDIS_URL"])
        wait_until(lambda: self.process.poll() is not None or self.address(), 60, "the address of the API")
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def address(self) -> str:
        found = re.search(r"^api: +(http\S+)$", self.said(), re.MULTILINE)
        return found[1] if found else ""

    def service(self) -> dict[str, Any]:
        """What the host says of its API."""
        for key in self.redis.keys("conserver:host:*"):
            if said := json.loads(self.redis.get(key) or b"{}").get("services", {}).get("api"):
                return said
        return {}

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.address()}/vcons/none", headers=TOKEN, timeout=30).status_code == 404
        except httpx.TransportError:
            return False


@pytest.fixture
def start(tmp_path: Path, server_url: str) -> Iterator[Callable[..., Run]]:
    started: list[Run] = []

    def begin(**env: str) -> Run:
        started.append(Run(Folder(tmp_path, url=server_url), **env))
        return started[-1]

    yield begin
    for one in started:
        one.redis.close()
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_run_serves_the_api_beside_the_workers(start: Callable[..., Run]) -> None:
    """A vCon that is posted comes out of the chain; SIGTERM ends both, and nothing is left."""
    run, document = start(), vcon("hello")
    wait_until(run.answers, 60, "an answer")

    created = httpx.post(f"{run.address()}/vcon?ingress_lists=default", json=document, headers=TOKEN, timeout=30)
    delivered = wait_until(lambda: run.redis.lrange("done", 0, -1), 60, "a delivery")
    pid = wait_until(run.service, 30, "the status")["pid"]
    run.process.terminate()
    code = run.process.wait(60)

    assert created.status_code == 201
    assert delivered == [document["uuid"].encode()]
    assert code == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_api_that_dies_is_started_again_and_no_connection_is_refused(start: Callable[..., Run]) -> None:
    """The supervisor holds the port: who comes meanwhile waits."""
    run = start()
    wait_until(run.answers, 60, "an answer")
    before = wait_until(run.service, 30, "the status")["pid"]

    os.kill(before, signal.SIGKILL)
    answer = httpx.get(f"{run.address()}/vcons/none", headers=TOKEN, timeout=60)
    after = wait_until(lambda: (s := run.service()) and s["pid"] != before and s, 30, "the new one")

    assert answer.status_code == 404
    assert after["address"] == run.address()


def test_a_port_that_was_asked_for_and_is_taken_ends_the_start(tmp_path: Path, server_url: str) -> None:
    """Clients would look for the API there in vain."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = Folder(tmp_path, url=server_url).run("run", CONSERVER_API_PORT=str(port))

    assert done.returncode == 2
    assert f"the API cannot listen on 127.0.0.1:{port}: Address already in use; set CONSERVER_API_HOST" in done.stderr


@pytest.mark.parametrize("command", ["run", "api"])
def test_without_a_token_the_api_does_not_listen_where_others_are(
    command: str, tmp_path: Path, server_url: str
) -> None:
    """Closed unless opened."""
    done = Folder(tmp_path, url=server_url).run(command, CONSERVER_API_PORT="0", CONSERVER_API_HOST="0.0.0.0")

    assert done.returncode == 2
    assert "CONSERVER_API_HOST='0.0.0.0': without a token the API listens on loopback only" in done.stderr


def test_a_worker_serves_no_api(tmp_path: Path, server_url: str) -> None:
    """Hosts that only work open no port for others."""
    folder = Folder(tmp_path, url=server_url)
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            folder.argv("worker"), cwd=tmp_path, env=folder.env | {"CONSERVER_API_PORT": "0"}, stdout=log, stderr=log
        )
    try:
        with Redis.from_url(server_url) as redis:
            key = wait_until(lambda: redis.keys("conserver:host:*"), 60, "a host")[0]
            said = wait_until(lambda: (s := json.loads(redis.get(key) or b"{}")) and s.get("workers") and s, 60, "it")
    finally:
        process.terminate()
        process.wait(60)

    assert said["services"] == {}


STUBBORN = {
    "a thread that is waited for": "threading.Thread(target=threading.Event().wait).start()",
    "SIGTERM ignored": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
}


@pytest.mark.parametrize("what", STUBBORN)
def test_a_service_that_does_not_end_makes_room_all_the_same(
    what: str, tmp_path: Path, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What storages have started may keep its process; a changed config would wait for it for ever."""
    # The one ends by itself, the other has to be killed.
    monkeypatch.setattr(services, "END_SECS", 0.2 if what == "SIGTERM ignored" else 600.0)
    (tmp_path / "storages").mkdir()
    module = tmp_path / "storages" / "stubborn.py"
    module.write_text(
        f"import os, pathlib, signal, threading\n{STUBBORN[what]}\n"
        "pathlib.Path(__file__).with_name(f'{os.getpid()}.loaded').touch()\n"
        "def save(vcon_uuid, opts): ...\n"
    )
    all_of_them = Services(server_url, Settings())
    configs = []
    for option in (1, 2):
        (tmp_path / "config.yml").write_text(
            "chains: {main: {links: [], storages: [kept], ingress_lists: [in]}}\n"
            f"storages: {{kept: {{module: storages.stubborn, options: {{a: {option}}}}}}}\n"
        )
        config, _ = load_config(tmp_path / "config.yml")
        assert config is not None
        configs.append(config)

    def pid(config: Any) -> int:
        all_of_them.replay()
        all_of_them.look_after(config)
        found = all_of_them.status().get("replayer", {}).get("pid", 0)
        return found if (tmp_path / "storages" / f"{found}.loaded").exists() else 0

    try:
        first = wait_until(lambda: pid(configs[0]), 60)
        second = wait_until(lambda: (found := pid(configs[1])) != first and found, 60)
    finally:
        all_of_them.kill()

    assert second
