"""`conserver run` and `conserver worker`, from the start to the end."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from conserver.embedded import EmbeddedServer, temporary_server
from tests.commands import CONFIG, ROOT, Folder
from tests.waiting import wait_until

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder without a REDIS_URL, so with an embedded server."""
    return Folder(tmp_path)


@pytest.fixture
def start(folder: Folder) -> Iterator[Start]:
    """Start commands in the folder; what still runs in the end is ended."""
    started: list[subprocess.Popen[str]] = []

    def begin(*args: object, **env: str) -> subprocess.Popen[str]:
        started.append(folder.start(*args, **env))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def outcomes(folder: Folder) -> list[dict[str, str]]:
    """The line of each vCon in the log, which is JSON since nobody watches."""
    lines = [json.loads(line) for line in (folder.path / "out").read_text().splitlines()]
    return [line for line in lines if line["name"] == "conserver.outcomes"]


def test_run_takes_a_newcomer_from_nothing_to_files(folder: Folder, start: Start) -> None:
    """The examples flow through the chain once, a line each; then it says where things are and what to type next."""
    shutil.copytree(ROOT / "examples", folder.path / "examples")
    process = start("run", "--examples", "examples")
    wait_until(lambda: "Next, in another terminal" in folder.said(), 60)
    said = (folder.path / "err").read_text()
    first = outcomes(folder)
    files = [path for path in (folder.path / "data/vcons").rglob("*.json") if not path.is_symlink()]
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    again = start("run", "--examples", "examples")
    wait_until(lambda: folder.said().count("Next, in another terminal") == 2, 60)
    again.send_signal(signal.SIGINT)
    code_of_second = again.wait(60)

    assert len(first) == len(files) == len(list((ROOT / "examples").glob("*.vcon")))
    assert {line["message"] for line in first} == {"delivered"}
    assert "redis: embedded " in said
    assert "data in ./data/redis" in said
    assert "It was fed 6 example vCons." in said
    assert "vCons are stored in data/vcons." in said
    assert "conserver push default FILE" in said
    assert (code, code_of_second) == (0, 0)
    assert len(outcomes(folder)) == len(first)
    assert not EmbeddedServer(folder.path / "data").is_running()


def test_a_second_run_says_that_one_runs_already(folder: Folder, start: Start) -> None:
    """With the process, what to do, and exit code 4; the first goes on."""
    process = start("run")
    wait_until(lambda: (folder.path / "data/redis/redis.sock").exists(), 60)
    second = folder.run("run")

    assert f"error: conserver runs already (pid {process.pid}) on data folder data: " in second.stderr
    assert f"'kill {process.pid}', ends it; for another one beside it, set CONSERVER_DATA_DIR" in second.stderr
    assert second.returncode == 4
    assert process.poll() is None


def test_workers_run_beside_each_other(folder: Folder, start: Start) -> None:
    """`worker` shares the embedded server, has nothing to say to newcomers, and its work is seen by `status`."""
    first, second = start("worker", "--workers", "2"), start("worker")

    def hosts() -> list[dict[str, object]]:
        return json.loads(folder.run("status", "--format", "json").stdout)["hosts"]

    alive = wait_until(lambda: (seen := hosts()) and sum(len(h.get("workers", [])) for h in seen) == 3 and seen, 60)

    assert {host["pid"] for host in alive} == {first.pid, second.pid}
    assert {host["alive"] for host in alive} == {True}
    assert "Next, in another terminal" not in folder.said()


def test_a_config_with_errors_starts_nothing(folder: Folder) -> None:
    """All findings with their places, exit code 1, and no data folder."""
    (folder.path / "config.yml").write_text(CONFIG.replace("links.tag", "links.tga"))
    done = folder.run("run")

    assert "config.yml:3:13: error[import-failed] link 'tag': there is no module links.tga" in done.stderr
    assert done.stderr.endswith("error: config.yml has 1 error: nothing was started\n")
    assert done.returncode == 1
    assert not (folder.path / "data").exists()


def test_a_config_that_is_not_there(folder: Folder) -> None:
    """Its whole path, and how to name another one."""
    done = folder.run("run", "--config", "nosuch.yml")

    assert f"{folder.path}/nosuch.yml does not exist" in done.stderr
    assert "CONSERVER_CONFIG_FILE" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"LOGGING_CONFIG_FILE": "nosuch"}, "LOGGING_CONFIG_FILE='nosuch': there is no such file"),
        ({"LOGGING_CONFIG_FILE": "config.yml"}, "LOGGING_CONFIG_FILE='config.yml' is no logging configuration: "),
        ({"CONSERVER_CHAINS": "mian"}, "names chain 'mian', which config.yml does not have; did you mean 'main'?"),
        ({"VCON_REDIS_FORMAT": "yaml"}, "VCON_REDIS_FORMAT='yaml': must be one of string, json"),
    ],
)
def test_settings_that_make_no_sense_start_nothing(folder: Folder, env: dict[str, str], message: str) -> None:
    """One line with the variable, and exit code 2."""
    done = folder.run("run", **env)

    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert not (folder.path / "data").exists()


def test_a_data_folder_that_cannot_be_written(folder: Folder) -> None:
    """What is in the way, what to do, and exit code 3."""
    (folder.path / "data").write_text("a file")
    done = folder.run("run")

    assert "error: data folder data: it cannot be written to (File exists); make room or give" in done.stderr
    assert "set CONSERVER_DATA_DIR to another folder" in done.stderr
    assert done.returncode == 3


def test_a_server_that_does_not_answer_starts_nothing(folder: Folder) -> None:
    """With REDIS_URL there is no embedded server as a replacement: vCons would go to the wrong place."""
    done = folder.run("run", REDIS_URL="redis://127.0.0.1:1")

    assert "error: server at redis://127.0.0.1:1 cannot be used: " in done.stderr
    assert done.returncode == 3
    assert not (folder.path / "data").exists()


def test_hosts_on_one_server_may_share_a_folder(folder: Folder, start: Start, redis: Redis, server_url: str) -> None:
    """With REDIS_URL any number of `run`s work beside each other."""
    processes = [start("run", REDIS_URL=server_url) for _ in range(2)]
    wait_until(lambda: redis.scard("conserver:hosts") == 2, 60)

    assert [process.poll() for process in processes] == [None, None]


def test_examples_of_a_folder_that_is_not_there(folder: Folder, start: Start) -> None:
    """It is said, and the conserver runs all the same."""
    start("run", "--examples", "nosuch")
    wait_until(lambda: "Next, in another terminal" in folder.said(), 60)

    assert "no examples are fed: nosuch is no folder" in folder.said()


def test_a_note_about_the_environment_is_a_warning(folder: Folder, start: Start) -> None:
    """What a variable does not do any more is logged at the start."""
    start("worker", CONSERVER_START_METHOD="fork")
    wait_until(lambda: "workers are always spawned, never forked" in folder.said(), 60)

    assert '"levelname":"WARNING"' in folder.said()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [("maxmemory", "1mb", "used memory > 'maxmemory'"), ("min-replicas-to-write", "1", "good replicas")],
)
def test_a_server_that_takes_no_writes_starts_nothing(folder: Folder, setting: str, value: str, message: str) -> None:
    """A full server, or one whose replicas are gone: its address, its words, and exit code 3."""
    with temporary_server() as url:
        with Redis.from_url(url) as client:
            client.config_set(setting, value)
        done = folder.run("run", REDIS_URL=url)

    assert f"error: server at {url}: " in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 3
