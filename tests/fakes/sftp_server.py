"""A real OpenSSH server of a test's own, on a port of the loopback, that keeps its files in a folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, Self

from tests.conftest import missing
from tests.servers import free_port
from tests.waiting import wait_until


class SftpServer:
    """sshd with nothing but its SFTP; who runs the tests logs in, with one of two keys."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if binary is None:
            missing("no sshd (apt-get install openssh-server)")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.files = folder / "files"
        self.files.mkdir(exist_ok=True)
        self.port = free_port()
        self.user = getpass.getuser()
        self.host_key = make_key(folder / "host_key")
        self.key = make_key(folder / "key")
        self.locked_key = make_key(folder / "locked_key", "opensesame")
        self.known_hosts = folder / "known_hosts"
        self.know(self.host_key)
        authorized = folder / "authorized_keys"
        authorized.write_text("".join(Path(f"{key}.pub").read_text() for key in (self.key, self.locked_key)))
        config = folder / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.host_key}\nAuthorizedKeysFile {authorized}\n"
            "UsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
            f"Subsystem sftp internal-sftp -d {self.files}\n"
        )
        self._command = [str(binary), "-D", "-f", str(config), "-E", str(folder / "log")]
        self._process: subprocess.Popen[bytes] | None = None

    def options(self, **more: Any) -> dict[str, Any]:
        """What goes into the options of the storage."""
        login = {"username": self.user, "private_key_path": str(self.key), "known_hosts": str(self.known_hosts)}
        return {"url": "127.0.0.1", "port": self.port, **login, **more}

    def know(self, key: Path) -> None:
        """Write the public half of this key into known_hosts, as that of this server."""
        words = Path(f"{key}.pub").read_text().split()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {words[0]} {words[1]}\n")

    def names(self) -> list[str]:
        """The files that are there, lookup files and hidden ones as well."""
        found = [file for file in self.files.rglob("*") if file.is_file()]
        return sorted(str(file.relative_to(self.files)) for file in found)

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        wait_until(self._answers, 60, "sshd")
        return self

    def stop(self) -> None:
        """kill -9, with the processes of all its connections."""
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)
            self._process = None

    def disconnect(self) -> None:
        """kill -9 the processes of all connections; new ones may come."""
        for pid in self._processes()[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _processes(self) -> list[int]:
        if self._process is None:
            return []
        found = [self._process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            return connection.recv(4) == b"SSH-"
        return False


def make_key(file: Path, password: str = "", kind: str = "ed25519") -> Path:
    """Make a key in *file*, and its public half beside it."""
    command = ["ssh-keygen", "-q", "-t", kind, "-N", password, "-C", "test", "-f", str(file)]
    if shutil.which("ssh-keygen") is None:
        missing("no ssh-keygen (apt-get install openssh-client)")
    if not file.exists():
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    return file


def fingerprint(key: Path) -> str:
    """The fingerprint of a key, as ssh-keygen shows it."""
    shown = subprocess.run(["ssh-keygen", "-lf", f"{key}.pub"], check=True, capture_output=True, text=True, timeout=60)
    return shown.stdout.split()[1]
