"""The command line as a person uses it: each command in a process of its own, in a folder with a config file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid as uuids
from pathlib import Path
from typing import Any

from tests.host import Host

ROOT = Path(__file__).resolve().parent.parent

CONFIG = """\
links:
  tag:
    module: links.tag
    options: {tags: [seen]}
storages:
  file:
    module: storages.file
    options: {path: data/vcons}
chains:
  main:
    links: [tag]
    storages: [file]
    ingress_lists: [default]
    egress_lists: [done]
"""


class Folder:
    """A folder with a config file, and the commands that are given there."""

    def __init__(self, path: Path, *, url: str | None = None, config: str = CONFIG) -> None:
        self.path = path
        (path / "config.yml").write_text(config)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONSERVER_", "VCON_"))}
        for name in ("REDIS_URL", "NO_COLOR", "LOG_LEVEL"):
            kept.pop(name, None)
        self.env = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "CONSERVER_METRICS_PORT": "0",
            # Those that are about the API say where it listens.
            "CONSERVER_API_PORT": "off",
            **({"REDIS_URL": url} if url else {}),
        }

    def argv(self, *args: object) -> list[str]:
        """Return the command as the list that a process is started with."""
        return [sys.executable, "-m", "conserver", *map(str, args)]

    def run(self, *args: object, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        environment = self.env | env
        return subprocess.run(
            self.argv(*args), cwd=self.path, env=environment, input=stdin, capture_output=True, text=True, timeout=60
        )

    def start(self, *args: object, **env: str) -> subprocess.Popen[str]:
        """Start a command; what it says goes to the files `out` and `err`."""
        with (self.path / "out").open("a") as out, (self.path / "err").open("a") as err:
            command = self.argv(*args)
            return subprocess.Popen(command, cwd=self.path, env=self.env | env, stdout=out, stderr=err, text=True)

    def said(self) -> str:
        """What started commands have said."""
        return (self.path / "out").read_text() + (self.path / "err").read_text()

    def vcon(self, name: str, **members: Any) -> str:
        """Write a small vCon to a file, and return its UUID."""
        uuid = str(uuids.uuid4())
        document = {"vcon": "0.4.0", "uuid": uuid, "created_at": "2026-01-01T00:00:00Z", "parties": []} | members
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
        return str(document["uuid"])


def start_beside(host: Host, *args: object) -> subprocess.Popen[str]:
    """Start a command in the folder and the environment of *host*."""
    command = [sys.executable, "-m", "conserver", *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=host.folder, env=host.env, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def run_beside(host: Host, *args: object) -> str:
    """Run a command there to its end, which must be a good one, and return what it said."""
    with start_beside(host, *args) as process:
        said, _ = process.communicate(timeout=110)
    assert process.returncode == 0, said
    return said
