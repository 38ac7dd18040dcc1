"""A real `conserver api` of a test's own, in a folder of its own, called over HTTP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from redis import Redis

from tests.waiting import wait_until

TOKEN = "a-token-of-the-tests"
HEADER = "x-conserver-api-token"

#: Two chains, a storage that can give back, and a list that only goes out.
CONFIG: dict[str, Any] = {
    "links": {"tag": {"module": "links.tag", "options": {"tags": ["seen"]}}},
    "storages": {"files": {"module": "storages.file", "options": {"path": "vcons"}}},
    "chains": {
        "main": {"links": ["tag"], "storages": ["files"], "ingress_lists": ["in"], "egress_lists": ["out"]},
        "other": {"links": [], "ingress_lists": ["in2", "in3"], "egress_lists": ["out2"]},
    },
}


class ApiServer:
    """One API process; `http` calls it with a token that may do everything."""

    def __init__(
        self,
        folder: Path,
        url: str,
        config: dict[str, Any] | None = None,
        *,
        token: str | None = TOKEN,
        **env: object,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.config_file = folder / "config.yml"
        self.configure(CONFIG if config is None else config)
        self.log = folder / "api.log"
        self.command = [sys.executable, "-m", "conserver", "api"]
        settings = {"REDIS_URL": url, "CONSERVER_API_PORT": 0, "CONSERVER_DATA_DIR": folder / "data", **env}
        if token:
            settings["CONSERVER_API_TOKEN"] = token
        self.env = {**os.environ, **{name: str(value) for name, value in settings.items()}}
        self.token = token
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client()
        self.address = ""

    def configure(self, config: dict[str, Any]) -> None:
        """Write the config file in one step."""
        draft = self.config_file.with_suffix(".new")
        draft.write_text(yaml.safe_dump(config))
        draft.rename(self.config_file)

    def start(self) -> ApiServer:
        """Start it, and wait until it answers."""
        before = len(self.said())
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=self.folder, env=self.env, stdout=log, stderr=log)
        found = wait_until(
            lambda: self.process.poll() is not None or re.search(r"listens on (http://\S+)", self.said()[before:]),
            60,
            "the API",
        )
        assert self.process.poll() is None, self.said()[before:]
        self.address = found[1]
        self.http.close()
        self.http = self.client(self.token)
        wait_until(self._answers, 60, "an answer of the API")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        try:
            return bool(self.http.get("/nothing")) or True
        except httpx.TransportError:
            return False

    def client(self, token: str | None, **headers: str) -> httpx.Client:
        """Return a client of somebody else."""
        auth = {HEADER: token} if token else {}
        # It speaks no TLS, and to load the certificates of all authorities costs more than a request.
        return httpx.Client(base_url=self.address, headers={**auth, **headers}, timeout=60, verify=False)

    def stop(self) -> int:
        """SIGTERM, and return the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def close(self) -> None:
        """End whatever is left."""
        self.http.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def said(self) -> str:
        """Everything that it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@contextmanager
def running(server: ApiServer) -> Iterator[ApiServer]:
    """Start *server* for the block."""
    try:
        yield server.start()
    finally:
        server.close()


def pushed(redis: Redis, name: str) -> list[str]:
    """What a list holds."""
    return [entry.decode() for entry in redis.lrange(name, 0, -1)]
