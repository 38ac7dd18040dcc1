"""A real PostgreSQL server of the tests' own, to be killed and starved."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests.conftest import missing
from tests.servers import free_port
from tests.waiting import wait_until

PASSWORD = "s3cret-of-postgres"


class PostgresServer:
    """One server with a data folder of its own, on a port that it keeps; it asks for a password."""

    def __init__(self, folder: Path) -> None:
        # The server refuses to be root.
        self._as: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(folder, **self._as)
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._call(
            *("initdb", "-D", str(folder / "data"), "-U", "postgres", "--no-sync", "--no-locale", "-E", "UTF8"),
            *("-A", "scram-sha-256", f"--pwfile={password}"),
        )

    @property
    def options(self) -> dict[str, Any]:
        """The options of the storage for this server."""
        return {"host": "127.0.0.1", "port": self.port, "database": "postgres", "password": PASSWORD}

    def start(self) -> PostgresServer:
        """Start it, and wait until it answers."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "fsync": "off",  # it is killed, not the machine
            "max_connections": 60,
        }
        words = [_binary("postgres"), "-D", str(self._folder / "data")]
        words += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._as)
        wait_until(self._answers, 60, (self._folder / "log").read_text()[-2000:])
        return self

    def stop(self) -> None:
        """End it at once, with all that is under way; the next start recovers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)
            self._process = None

    def connect(self, **how: Any) -> psycopg.Connection[Any]:
        """Return a connection of the superuser that commits by itself."""
        login = {"host": "127.0.0.1", "port": self.port, "dbname": "postgres", "user": "postgres"}
        return psycopg.connect(autocommit=True, password=PASSWORD, connect_timeout=10, **(login | how))

    def run(self, statement: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        """Run a statement and return its rows."""
        with contextlib.closing(self.connect()) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            self.connect().close()
            return True
        return False

    def _call(self, name: str, *words: str) -> None:
        done = subprocess.run(
            [_binary(name), *words], capture_output=True, text=True, cwd=self._folder, check=False, **self._as
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _binary(name: str) -> str:
    # Debian keeps them off the PATH.
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    found = shutil.which(name, path=os.pathsep.join([*map(str, reversed(folders)), os.environ.get("PATH", "")]))
    if found is None:
        missing(f"no {name} of PostgreSQL: install postgresql")
    return found


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server while the block runs, in a folder of its own."""
    # Not in the folder of a test, which nobody else may enter.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        server = PostgresServer(folder)
        try:
            yield server.start()
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
