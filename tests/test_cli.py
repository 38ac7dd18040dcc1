"""The command line: what each command prints, returns and leaves behind."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from conserver import cli_print
from conserver.claims import reason
from conserver.cli import app
from conserver.embedded import temporary_server
from conserver.queue import Queue
from tests.commands import CONFIG, ROOT, Folder

UUID = "01928e10-193e-8231-b9a2-279e0d16bc46"


@pytest.fixture
def folder(tmp_path: Path, server_url: str) -> Folder:
    """A folder whose commands work on the real server, which is empty."""
    return Folder(tmp_path, url=server_url)


def entries(redis: Redis, name: str) -> list[str]:
    return [entry.decode() for entry in redis.lrange(name, 0, -1)]


def bury(url: str, redis: Redis, name: str, uuid: str, error: str = "no good") -> None:
    """Make a dead letter as a worker does."""
    redis.rpush(f"DLQ:{name}", uuid)
    key = f"conserver:{{DLQ:{name}}}:dead" if name.startswith("storage:") else f"conserver:{{{name}}}:dead"
    redis.hset(key, uuid, reason(error, link="tag", chain="main", at="2026-01-01T00:00:00Z"))


# Help and documentation


def test_help_imports_nothing_heavy() -> None:
    """`conserver --help` answers at once: no client, no YAML, no config, no engine."""
    code = (
        "import sys\nfrom conserver.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'redis', 'yaml', 'httpx', 'pydantic', 'rich', 'conserver.settings', 'conserver.queue'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)

    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
    assert "Show what runs" in done.stdout


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of the program with its options."""
    pending = [("conserver", get_command(app))]
    while pending:
        name, command = pending.pop()
        if isinstance(command, TyperGroup):
            pending += [(f"{name} {sub}", one) for sub, one in command.commands.items()]
        yield name, [option for param in command.params for option in param.opts if option.startswith("-")]


@pytest.mark.parametrize(
    ("name", "options"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_and_option_is_documented(name: str, options: list[str]) -> None:
    """docs/reference/cli.md has a section for each command, and in it every option."""
    page = (ROOT / "docs/reference/cli.md").read_text()
    heading = f"# `{name}`" if name == "conserver" else f"## `{name}`"
    assert heading in page
    section = page.partition(heading)[2].partition("\n## ")[0]

    assert [option for option in options if f"`{option}" not in section] == []


def test_every_exit_code_is_documented() -> None:
    """docs/reference/cli.md has a row for each exit code."""
    page = (ROOT / "docs/reference/cli.md").read_text()
    codes = [value for name, value in vars(cli_print).items() if name.startswith("EXIT_")]

    assert sorted(codes) == [1, 2, 3, 4]
    assert [code for code in codes if f"| {code} |" not in page] == []


def test_every_environment_variable_is_documented() -> None:
    """docs/reference/environment.md has a row for each variable that is read."""
    page = (ROOT / "docs/reference/environment.md").read_text()
    source = (ROOT / "conserver/settings.py").read_text()
    read = set(re.findall(r'read\.\w+\(\s*"([A-Z0-9_]+)"', source)) | {"UUID8_DOMAIN_NAME", "NO_COLOR"}

    assert {"REDIS_URL", "CONSERVER_CONFIG_FILE", "VCON_REDIS_EXPIRY", "LOG_LEVEL"} <= read
    assert sorted(name for name in read if f"| `{name}` |" not in page) == []


def test_documented_variables_are_read() -> None:
    """No row of docs/reference/environment.md describes a variable that nobody reads."""
    page = (ROOT / "docs/reference/environment.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", page, re.MULTILINE))
    sources = "".join(
        path.read_text() for part in ("conserver", "links", "storages") for path in (ROOT / part).rglob("*.py")
    )

    assert sorted(name for name in documented if f'"{name}"' not in sources) == []


def test_version() -> None:
    """--version prints the name and the version."""
    result = CliRunner().invoke(app, ["--version"])

    assert re.fullmatch(r"conserver \d+\.\d+\.\d+\S*\n", result.output)


# Settings and the server


def test_a_setting_that_makes_no_sense_is_one_line(folder: Folder) -> None:
    """The variable, its value and what it may be; exit code 2, no traceback."""
    done = folder.run("status", CONSERVER_WORKERS="many")

    assert done.stderr == "error: CONSERVER_WORKERS='many': must be a whole number\n"
    assert done.returncode == 2


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://localhost", "redis://:pass#word@localhost", "redis://h:port"]
)
def test_a_url_that_is_none_is_not_shown(folder: Folder, url: str) -> None:
    """REDIS_URL may hold a password, so the message says how to write one and not what is there."""
    done = folder.run("status", REDIS_URL=url)

    assert done.returncode == 2
    assert "REDIS_URL is no URL of a server: write redis://" in done.stderr
    assert "word" not in done.stderr.replace("PASSWORD", "").replace("password", "")
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_there(folder: Folder) -> None:
    """Exit code 3, the address, and three things to do; never the password."""
    done = folder.run("status", REDIS_URL="redis://:geheim@127.0.0.1:1/3")

    assert done.returncode == 3
    assert done.stderr.startswith("error: server at redis://127.0.0.1:1/3 cannot be used: Error 111")
    assert "start it, correct REDIS_URL, or unset REDIS_URL" in done.stderr
    assert "geheim" not in done.stderr


def test_a_server_with_a_password(folder: Folder) -> None:
    """It is said whether a password is missing or wrong; the right one works."""
    with temporary_server() as url:
        with Redis.from_url(url) as client:
            client.config_set("requirepass", "geheim")
        path = url.removeprefix("unix://")
        missing = folder.run("push", "default", UUID, REDIS_URL=url)
        wrong = folder.run("push", "default", UUID, REDIS_URL=f"unix://:falsch@{path}")
        right = folder.run("push", "default", UUID, REDIS_URL=f"unix://:geheim@{path}")

    assert missing.returncode == wrong.returncode == 3
    assert "demands a password; write it in REDIS_URL, as redis://:PASSWORD@HOST:PORT" in missing.stderr
    assert "refuses the user or the password of REDIS_URL; correct them" in wrong.stderr
    assert "falsch" not in wrong.stderr
    assert right.stdout == f"{UUID}: pushed\n1 pushed to 'default'\n"


# check


def test_check_prints_findings_and_a_summary(folder: Folder) -> None:
    """One finding a line with its place and rule, then how many there are; exit code 1 for an error."""
    (folder.path / "config.yml").write_text(CONFIG.replace("links: [tag]", "links: [tga]"))
    done = folder.run("check")
    lines = done.stdout.splitlines()

    assert "config.yml:11:13: error[unknown-link] chain 'main' uses link 'tga', which is not defined" in done.stdout
    assert lines[-1] == "config.yml: 1 error, 0 warnings"
    assert done.returncode == 1
    assert "\x1b" not in done.stdout


def test_check_takes_a_file_and_knows_strict(folder: Folder) -> None:
    """Warnings pass, and fail with --strict."""
    (folder.path / "other.yml").write_text(CONFIG.replace("chains:", "  spare:\n    module: storages.file\nchains:"))
    lax = folder.run("check", "other.yml")
    strict = folder.run("check", "other.yml", "--strict")

    assert "other.yml: 0 errors, 1 warning" in lax.stdout
    assert (lax.returncode, strict.returncode) == (0, 1)


def test_check_prints_json(folder: Folder) -> None:
    """The same as values, for editors and CI."""
    (folder.path / "config.yml").write_text(CONFIG.replace("links: [tag]", "links: [tga]"))
    done = folder.run("check", "--format", "json")
    said = json.loads(done.stdout)

    assert (said["file"], said["errors"], done.returncode) == ("config.yml", 1, 1)
    assert {"line": 11, "column": 13, "level": "error", "rule": "unknown-link"}.items() <= said["findings"][0].items()


def on_terminal(folder: Folder, *args: object, **env: str) -> str:
    """What a command prints when its output is a terminal."""
    ours, theirs = pty.openpty()
    command = folder.argv(*args)
    with subprocess.Popen(command, cwd=folder.path, env=folder.env | env, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not data:
                break
            said += data
        process.wait(60)
    os.close(ours)
    return said.decode()


def test_colours_on_a_terminal_only_and_not_with_no_color(folder: Folder) -> None:
    """A level is coloured for a person who has not forbidden it."""
    (folder.path / "config.yml").write_text(CONFIG.replace("links: [tag]", "links: [tga]"))

    assert "\x1b[31merror\x1b[0m[unknown-link]" in on_terminal(folder, "check")
    assert "\x1b" not in on_terminal(folder, "check", NO_COLOR="1")


# push


def test_push_keeps_the_order_of_uuids_files_and_folders(folder: Folder, redis: Redis) -> None:
    """A UUID is pushed as it is, a file's vCon is stored first, a folder is its vCon files by name."""
    two, one, three = folder.vcon("in/b.json"), folder.vcon("in/a.vcon"), folder.vcon("c.vcon")
    folder.vcon("in/.lookup/hidden.json")
    (folder.path / "in" / "LICENSE").write_text("no vCon")
    done = folder.run("push", "default", UUID, "in", "c.vcon", "-", stdin=f"\n{UUID}\n c.vcon \n")

    assert entries(redis, "default") == [UUID, one, two, three, UUID, three]
    assert all(redis.exists(f"vcon:{uuid}") for uuid in (one, two, three))
    assert done.stdout.splitlines()[-1] == "6 pushed to 'default'"
    assert f"in/a.vcon: created {one} and pushed" in done.stdout
    assert done.returncode == 0


def test_push_of_a_file_whose_uuid_is_in_capitals(folder: Folder, redis: Redis) -> None:
    """It is pushed as it is stored, so that it is found."""
    folder.vcon("capitals.vcon", uuid=UUID.upper())
    done = folder.run("push", "default", "capitals.vcon")

    assert entries(redis, "default") == [UUID]
    assert redis.exists(f"vcon:{UUID}")
    assert done.stdout.startswith(f"capitals.vcon: created {UUID} and pushed\n")


def test_push_refuses_by_name_and_pushes_all_others(folder: Folder, redis: Redis) -> None:
    """Each file that is no vCon is named with the reason; exit code 1."""
    good = folder.vcon("good.vcon")
    (folder.path / "text.json").write_text("hello")
    (folder.path / "nan.json").write_text('{"uuid": NaN}')
    (folder.path / "array.json").write_text("[]")
    (folder.path / "deep.json").write_text("[" * 1000 + "]" * 1000)
    (folder.path / "big.json").write_text(json.dumps({"uuid": UUID, "x": "y" * 5000}))
    (folder.path / "empty").mkdir()
    names = ["text.json", "nan.json", "array.json", "deep.json", "big.json", "empty", "nosuch", "good.vcon"]
    done = folder.run("push", "default", *names, CONSERVER_MAX_VCON_BYTES="4000")

    assert entries(redis, "default") == [good]
    assert [name for name in names[:-1] if f"{name}: refused: " not in done.stderr] == []
    assert "nosuch: refused: it is neither a UUID nor a file" in done.stderr
    assert "big.json: refused: it has more than 4,000 bytes (CONSERVER_MAX_VCON_BYTES)" in done.stderr
    assert "empty: refused: there is no file in it that ends in .vcon, .json, .vcon.gz, .json.gz" in done.stderr
    assert "1 pushed to 'default', 7 refused" in done.stdout
    assert done.returncode == 1


def test_push_migrates_and_says_which_rules_are_broken(folder: Folder, redis: Redis) -> None:
    """A vCon of an old draft is stored in the current one; what is still wrong with it is told by rule and place."""
    uuid = folder.vcon("old.vcon", vcon="0.0.1", dialog=[{"type": "recording", "mimetype": "audio/x-wav"}])
    done = folder.run("push", "default", "old.vcon")
    stored = json.loads(redis.get(f"vcon:{uuid}") or b"")

    assert stored["vcon"] == "0.4.0"
    assert stored["dialog"][0]["mediatype"] == "audio/x-wav"
    assert "  E10 /dialog/0/start: is missing" in done.stdout
    assert done.returncode == 0


def test_push_keeps_what_is_stored_unless_told_to_replace_it(folder: Folder, redis: Redis) -> None:
    """The UUID is pushed in both cases, and the message says which version counts."""
    uuid = folder.vcon("a.vcon", subject="first")
    folder.run("push", "default", "a.vcon")
    folder.vcon("a.vcon", uuid=uuid, subject="second")
    kept = folder.run("push", "default", "a.vcon")
    first = json.loads(redis.get(f"vcon:{uuid}") or b"")["subject"]
    replaced = folder.run("push", "default", "a.vcon", "--replace")
    second = json.loads(redis.get(f"vcon:{uuid}") or b"")["subject"]

    assert (first, second) == ("first", "second")
    assert f"pushed {uuid}; the version that was stored is kept (--replace overwrites it)" in kept.stdout
    assert f"replaced {uuid} and pushed" in replaced.stdout
    assert entries(redis, "default") == [uuid] * 3


def test_push_to_a_list_that_nobody_reads_warns(folder: Folder, redis: Redis) -> None:
    """It is done all the same, since another host may read it."""
    done = folder.run("push", "defualt", UUID)

    assert "warning: no chain of config.yml reads list 'defualt': what is in it waits; did you mean" in done.stderr
    assert entries(redis, "defualt") == [UUID]
    assert done.returncode == 0


def test_push_to_a_key_that_is_no_list(folder: Folder, redis: Redis) -> None:
    """The key is left as it is and named; exit code 3."""
    redis.set("default", "text")
    done = folder.run("push", "default", UUID)

    assert "nothing was pushed to 'default': WRONGTYPE" in done.stderr
    assert "Traceback" not in done.stderr
    assert redis.get("default") == b"text"
    assert done.returncode == 3


def test_push_quietly(folder: Folder) -> None:
    """--quiet prints what was refused, and nothing else."""
    done = folder.run("push", "default", UUID, "nosuch", "--quiet")

    assert done.stdout == ""
    assert done.stderr == "nosuch: refused: it is neither a UUID nor a file\n"


def test_push_of_many_shows_a_bar_on_a_terminal(folder: Folder, redis: Redis) -> None:
    """No line for each, but what was refused is still named."""
    uuids_of_many = [str(uuids.uuid4()) for _ in range(120)]
    said = on_terminal(folder, "push", "default", *uuids_of_many, "nosuch", NO_COLOR="1")

    assert "100%" in said
    assert f"{uuids_of_many[0]}: pushed" not in said
    assert "nosuch: refused" in said
    assert "120 pushed to 'default', 1 refused" in said
    assert entries(redis, "default") == uuids_of_many


def test_push_starts_the_embedded_server_and_stops_it(tmp_path: Path) -> None:
    """Where nothing runs, what was pushed is in the data folder afterwards, and no process is left."""
    folder = Folder(tmp_path)
    pushed = folder.run("push", "default", UUID)
    overview = json.loads(folder.run("status", "--format", "json").stdout)

    assert pushed.returncode == 0, pushed.stderr
    assert {"list": "default", "waiting": 1, "chain": "main"}.items() <= overview["lists"][0].items()
    assert not (tmp_path / "data/redis/redis.sock").exists()


# status


def test_status_when_nothing_runs(folder: Folder) -> None:
    """It says so, and how to start; exit code 0."""
    done = folder.run("status")

    assert "config  config.yml: no errors" in done.stdout
    assert re.search(r"^hosts   no conserver runs; '.*conserver run' starts one$", done.stdout, re.MULTILINE)
    assert re.search(r"^default +main +0 +0 +0$", done.stdout, re.MULTILINE)
    assert done.returncode == 0


def test_status_shows_what_needs_somebody(folder: Folder, redis: Redis, server_url: str) -> None:
    """A broken config, pauses, dead letters, lists that nobody reads, saves that failed."""
    redis.rpush("default", UUID, UUID)
    redis.sadd("conserver:lists", "left")
    redis.rpush("left", UUID)
    bury(server_url, redis, "default", UUID)
    bury(server_url, redis, "storage:file", UUID)
    folder.run("pause", "main", "--reason", "the model is down")
    done = folder.run("status")

    assert re.search(r"^paused  chain 'main' since \S+: the model is down$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +until '.*conserver resume main'$", done.stdout, re.MULTILINE)
    assert re.search(r"^default +main +2 +0 +1$", done.stdout, re.MULTILINE)
    assert "no chain reads list 'left': what is in it waits" in done.stdout
    assert re.search(r"storage 'file' has 1 failed save; '.*conserver dlq replay file' tries now", done.stdout)


def test_status_with_a_config_that_cannot_be_used(folder: Folder) -> None:
    """The first error is shown, and the rest of the overview all the same."""
    (folder.path / "config.yml").write_text("chains:\n\tmain:\n")
    done = folder.run("status")

    assert "config  config.yml: config.yml:2:1: error[syntax] a tab" in done.stdout
    assert "no conserver runs" in done.stdout
    assert done.returncode == 0


# pause and resume


def test_pause_and_resume(folder: Folder, server_url: str) -> None:
    """A pause stands in Redis for all hosts, until it is resumed."""
    paused = folder.run("pause", "main", "--reason", "maintenance")
    why = Queue(server_url).paused()["main"]
    resumed = folder.run("resume", "main")
    again = folder.run("resume", "main")

    assert why["reason"] == "maintenance"
    assert "retry_at" not in why
    assert "chain 'main' is paused" in paused.stdout
    assert (resumed.stdout, again.stdout) == ("chain 'main' goes on\n", "chain 'main' was not paused\n")
    assert Queue(server_url).paused() == {}


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_chain_that_is_not_there(folder: Folder, server_url: str, command: str) -> None:
    """A typing error pauses nothing."""
    done = folder.run(command, "mian")

    assert done.stderr == "error: config.yml has no chain 'mian'; did you mean 'main'?\n"
    assert done.returncode == 1
    assert Queue(server_url).paused() == {}


# dlq


def test_dlq_list_and_show(folder: Folder, redis: Redis, server_url: str) -> None:
    """Oldest first with the reason; under the list's name, or that of its DLQ."""
    other = str(uuids.uuid4())
    bury(server_url, redis, "default", UUID, "the model said no")
    bury(server_url, redis, "default", other)
    redis.rpush("DLQ:default", b"\xff\x00 not a uuid")
    done = folder.run("dlq", "list", "DLQ:default")
    page = json.loads(folder.run("dlq", "list", "default", "--start", "1", "--count", "1", "--format", "json").stdout)
    shown = folder.run("dlq", "show", "default", UUID)

    lines = done.stdout.splitlines()
    assert lines[0] == f"{UUID}  2026-01-01T00:00:00Z, chain 'main': the model said no"
    assert lines[2].endswith("no reason is known")
    assert lines[3] == "3 of 3 dead letters of 'default'"
    assert (page["total"], [row["entry"] for row in page["dead"]]) == (3, [other])
    assert re.search(r"^error +the model said no$", shown.stdout, re.MULTILINE)


def test_dlq_of_a_name_that_is_not_there(folder: Folder) -> None:
    """It has no dead letters, and the name that was probably meant is told."""
    done = folder.run("dlq", "list", "defalt")
    shown = folder.run("dlq", "show", "default", UUID)

    assert done.stdout == "'defalt' has no dead letters; did you mean 'default'?\n"
    assert shown.stderr == f"error: 'default' has no dead letter {UUID}\n"
    assert shown.returncode == 1


def test_dlq_retry(folder: Folder, redis: Redis, server_url: str) -> None:
    """Oldest first, as many as asked for, their reasons gone."""
    others = [str(uuids.uuid4()) for _ in range(2)]
    for uuid in (UUID, *others):
        bury(server_url, redis, "default", uuid)
    done = folder.run("dlq", "retry", "default", "--most", "2")

    assert done.stdout == "2 dead letters of 'default' queued again\n"
    assert entries(redis, "default") == [UUID, others[0]]
    assert entries(redis, "DLQ:default") == [others[1]]


def test_dlq_retry_of_a_storage_is_a_replay(folder: Folder, redis: Redis, server_url: str) -> None:
    """Its vCons would otherwise go to an ingress list that does not exist."""
    bury(server_url, redis, "storage:file", UUID)
    done = folder.run("dlq", "retry", "DLQ:storage:file")

    assert done.stderr == "error: what a storage could not save is replayed: conserver dlq replay file\n"
    assert done.returncode == 2
    assert entries(redis, "DLQ:storage:file") == [UUID]


def test_dlq_drop(folder: Folder, redis: Redis, server_url: str) -> None:
    """The ones that are named; one that is not there is an error; vCons stay."""
    bury(server_url, redis, "default", UUID)
    redis.set(f"vcon:{UUID}", "{}")
    other = str(uuids.uuid4())
    done = folder.run("dlq", "drop", "default", UUID, other)

    assert done.stdout == "1 dead letter of 'default' dropped\n"
    assert done.stderr == f"error: 'default' has no dead letter {other}\n"
    assert done.returncode == 1
    assert entries(redis, "DLQ:default") == []
    assert redis.exists(f"vcon:{UUID}")


def test_dlq_drop_all_asks_first(folder: Folder, redis: Redis, server_url: str) -> None:
    """No answer is a no; --yes is one that scripts can give."""
    bury(server_url, redis, "default", UUID)
    asked = folder.run("dlq", "drop", "default", "--all")
    refused = folder.run("dlq", "drop", "default", "--all", stdin="n\n")
    left = entries(redis, "DLQ:default")
    done = folder.run("dlq", "drop", "default", "--all", "--yes")
    unclear = folder.run("dlq", "drop", "default")

    assert "Forget 1 dead letter of 'default'?" in asked.stdout
    assert asked.returncode == refused.returncode == 1
    assert left == [UUID]
    assert done.stdout == "1 dead letter of 'default' dropped\n"
    assert entries(redis, "DLQ:default") == []
    assert unclear.stderr == "error: name the UUIDs to drop, or write --all\n"


def test_dlq_replay(folder: Folder, redis: Redis, server_url: str) -> None:
    """What the storage could not save is saved; what is nowhere any more is named and stays."""
    uuid = folder.vcon("a.vcon")
    folder.run("push", "default", "a.vcon")
    bury(server_url, redis, "storage:file", UUID)
    bury(server_url, redis, "storage:file", uuid)
    done = folder.run("dlq", "replay", "file")

    assert "1 vCon saved to 'file', 1 dead letter left" in done.stdout
    assert f"{UUID} is nowhere any more: conserver dlq drop storage:file {UUID}" in done.stdout
    assert done.returncode == 0
    assert [path.name for path in (folder.path / "data/vcons").rglob("*.json") if path.is_file()].count(f"{uuid}.json")
    assert entries(redis, "DLQ:storage:file") == [UUID]


def test_dlq_replay_that_fails(folder: Folder, redis: Redis, server_url: str) -> None:
    """The storage's words, exit code 1, and nothing is dropped."""
    uuid = folder.vcon("a.vcon")
    folder.run("push", "default", "a.vcon")
    bury(server_url, redis, "storage:file", uuid)
    (folder.path / "data").write_text("where a folder should be")
    done = folder.run("dlq", "replay", "storage:file")

    assert f"error: storage 'file': {uuid}: cannot write " in done.stderr
    assert done.returncode == 1
    assert entries(redis, "DLQ:storage:file") == [uuid]


def test_dlq_replay_of_an_unknown_storage(folder: Folder) -> None:
    """With the name that was probably meant."""
    done = folder.run("dlq", "replay", "fil")

    assert done.stderr == "error: config.yml has no storage 'fil'; did you mean 'file'?\n"
    assert done.returncode == 1


# try


def test_try_shows_what_a_link_changes(tmp_path: Path) -> None:
    """Nothing has to run, and nothing is left behind."""
    folder = Folder(tmp_path)
    folder.vcon("a.vcon")
    before = (tmp_path / "a.vcon").read_bytes()
    done = folder.run("try", "links.tag", "a.vcon", "--set", 'tags=["x", "y:z"]')

    assert done.returncode == 0, done.stderr
    assert '+        "x:x",' in done.stdout
    assert '+        "y:z"' in done.stdout
    assert done.stdout.endswith("outcome: delivered\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.vcon", "config.yml"]
    assert (tmp_path / "a.vcon").read_bytes() == before


def test_try_a_chain_of_the_config(tmp_path: Path) -> None:
    """Its links with their options, and what it would push; no storage unless asked for."""
    folder = Folder(tmp_path)
    uuid = folder.vcon("a.vcon")
    plain = folder.run("try", "main", "a.vcon", "--set", "tag.tags=mine")
    files_of_plain = (tmp_path / "data").exists()
    stored = folder.run("try", "main", "a.vcon", "--storages")

    assert '+        "mine:mine"' in plain.stdout
    assert f"would push {uuid} to 'done'" in plain.stdout
    assert not files_of_plain
    assert '+        "seen:seen"' in stored.stdout
    assert len(list((tmp_path / "data/vcons").rglob(f"{uuid}.json"))) >= 1


def test_try_a_link_that_fails(tmp_path: Path) -> None:
    """The traceback of the author's own code, the outcome, exit code 1."""
    folder = Folder(tmp_path)
    folder.vcon("a.vcon")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/mine.py").write_text("def run(uuid, name, opts):\n    return 1 // 0\n")
    done = folder.run("try", "links.mine", "a.vcon")

    assert "outcome: dead: link 'mine': ZeroDivisionError: integer division or modulo by zero" in done.stdout
    assert 'links/mine.py", line 2, in run' in done.stderr
    assert "chain.py" not in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["mian", "a.vcon"], "and config.yml has no such chain; did you mean 'main'?"),
        (["links.tga", "a.vcon"], "there is no module links.tga"),
        (["links.tag", "nosuch"], "nosuch cannot be read: No such file or directory"),
        (["links.tag", "config.yml"], "config.yml: not JSON"),
        (["links.tag", "a.vcon", "--set", "tags"], "--set tags: write KEY=VALUE"),
        (["links.tag", "a.vcon", "--set", "tags=[a"], "--set tags: "),
        (
            ["main", "a.vcon", "--set", "tgg.tags=a"],
            "write LINK.KEY=VALUE, with one of the links of chain 'main' (tag)",
        ),
    ],
)
def test_try_says_what_is_wrong_with_its_arguments(tmp_path: Path, args: list[str], message: str) -> None:
    """One line, exit code 1, no traceback."""
    folder = Folder(tmp_path)
    folder.vcon("a.vcon")
    done = folder.run("try", *args)

    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == 1
