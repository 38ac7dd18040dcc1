"""The group `conserver storage`: what each command prints, returns and leaves behind."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from typer.testing import CliRunner

from conserver.cli import app
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.testing import two_party_call
from tests.commands import Folder
from tests.shelves import stored
from tests.waiting import wait_until

SECRET = "s3cret-word"
CONFIG = """\
links: {}
storages:
  files: {module: storages.file, options: {path: data/vcons, fsync: false}}
  db: {module: storages.sqlite, options: {path: data/vcons.sqlite, fsync: false}}
  odd: {module: storages.odd, options: {folder: data/odd, password: s3cret-word}, timeout: 1}
  mute: {module: storages.mute}
chains:
  main: {links: [], storages: [files], ingress_lists: [in], egress_lists: [done]}
  other: {links: [], storages: [odd], ingress_lists: [others]}
"""
#: A folder, and the troubles that a file beside it asks for.
ODD = '''\
"""A storage of a test."""

import json
import os
import pathlib
import threading

from conserver import StorageError, vcons

default_options = {"folder": "", "password": ""}


def _check(opts, what):
    folder = pathlib.Path(opts["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "calls", "a") as calls:
        calls.write(what + "\\n")
    trouble = folder / "trouble"
    asked = json.loads(trouble.read_text()) if trouble.exists() else {}
    name = next((name for name in asked if name in what), None)
    if name is None:
        return
    if asked[name] == "hang":
        threading.Event().wait()
    raise StorageError(f"{asked[name]} (logged in with {opts['password']})")


def save(vcon_uuid, opts):
    text = vcons.get(vcon_uuid).to_bytes()
    _check(opts, f"save {vcon_uuid}")
    file = pathlib.Path(opts["folder"], vcon_uuid)
    file.with_suffix(f".{os.getpid()}").write_bytes(text)
    file.with_suffix(f".{os.getpid()}").replace(file)


def get(vcon_uuid, opts):
    _check(opts, f"get {vcon_uuid}")
    file = pathlib.Path(opts["folder"], vcon_uuid)
    return json.loads(file.read_text()) if file.exists() else None


def delete(vcon_uuid, opts):
    _check(opts, f"delete {vcon_uuid}")
    pathlib.Path(opts["folder"], vcon_uuid).unlink(missing_ok=True)


def ping(opts):
    _check(opts, "ping")
'''
MUTE = '"""Saves, and does nothing else."""\n\n\ndef save(vcon_uuid, opts):\n    pass\n'


class Storages(Folder):
    """A folder with storages, one of which has troubles when it is told to."""

    def __init__(self, path: Path, url: str, patch: pytest.MonkeyPatch) -> None:
        super().__init__(path, url=url, config=CONFIG)
        patch.chdir(path)
        patch.setattr(sys, "path", [*sys.path])
        for name in [name for name in os.environ if name.startswith(("CONSERVER_", "VCON_"))]:
            patch.delenv(name)
        patch.setenv("REDIS_URL", url)
        (path / "storages").mkdir()
        (path / "storages" / "odd.py").write_text(ODD)
        (path / "storages" / "mute.py").write_text(MUTE)
        self.odd = path / "data" / "odd"
        self.odd.mkdir(parents=True)
        self.store = VconStore(url, Settings())

    def run(self, *args: object, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in this process, which spares its start."""
        assert not env
        done = CliRunner().invoke(app, [*map(str, args)], input=stdin, prog_name="conserver")
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert SECRET not in done.output
        return subprocess.CompletedProcess(args, done.exit_code, done.stdout, done.stderr)

    def run_apart(self, *args: object) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in a process of its own."""
        done = super().run(*args)
        assert SECRET not in done.stdout + done.stderr
        return done

    def trouble(self, **asked: str) -> None:
        (self.odd / "trouble").write_text(json.dumps({name.replace("_", " "): what for name, what in asked.items()}))

    def calls(self, what: str) -> int:
        calls = self.odd / "calls"
        return len([line for line in calls.read_text().splitlines() if line.startswith(what)]) if calls.exists() else 0

    def put(self, count: int = 1) -> list[str]:
        """Put new vCons into `odd`, and nowhere else."""
        vcons = [two_party_call() for _ in range(count)]
        for vcon in vcons:
            (self.odd / str(vcon.uuid)).write_bytes(vcon.to_bytes())
        return [str(vcon.uuid) for vcon in vcons]

    def files(self) -> dict[str, Any]:
        """What the storage `files` holds."""
        return {file.stem: json.loads(file.read_text()) for file in (self.path / "data/vcons").rglob("*.json")}


@pytest.fixture
def folder(tmp_path: Path, server_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storages]:
    folder = Storages(tmp_path, server_url, monkeypatch)
    yield folder
    told = (tmp_path / "out").read_text() + (tmp_path / "err").read_text() if (tmp_path / "out").exists() else ""
    assert SECRET not in told


# ping


def test_ping_says_of_each_storage_whether_it_works(folder: Storages) -> None:
    """All of the config, or those that are named; no secret is told."""
    good = folder.run("storage", "ping", "files", "db", "mute")
    folder.trouble(ping="no login")
    bad = folder.run("storage", "ping")
    values = folder.run("storage", "ping", "odd", "mute", "--format", "json")

    assert (good.stdout, good.returncode) == ("files: works\ndb: works\nmute: has no ping\n", 0)
    assert "odd: no login (logged in with ***)\n" in bad.stdout
    assert (bad.returncode, values.returncode) == (1, 1)
    assert json.loads(values.stdout) == [
        {"storage": "odd", "state": "fails", "error": "no login (logged in with ***)"},
        {"storage": "mute", "state": "no ping", "error": ""},
    ]


def test_ping_waits_for_no_storage_longer_than_its_timeout(folder: Storages) -> None:
    """One that hangs, and one that cannot be loaded, do not hide the others."""
    (folder.path / "storages" / "mute.py").write_text("import nowhere_at_all\n")
    folder.trouble(ping="hang")
    done = folder.run_apart("storage", "ping")

    assert "files: works\ndb: works\nodd: no answer within 1 s\nmute: cannot import storages.mute: " in done.stdout
    assert "nowhere_at_all" in done.stdout
    assert done.returncode == 1


def test_a_name_that_is_none_is_told(folder: Storages) -> None:
    """With what was probably meant."""
    done = folder.run("storage", "ping", "file")

    assert done.stderr == "error: config.yml has no storage 'file'; did you mean 'files'?\n"
    assert done.returncode == 1


# verify


def test_verify_says_what_is_wrong_and_repairs_it(folder: Storages) -> None:
    """A line for each, and how many of each kind."""
    uuids = [stored(folder.store) for _ in range(3)]
    missing, different, _ = uuids
    saved = folder.run("storage", "verify", "odd", "--repair")
    (folder.odd / missing).unlink()
    document = folder.store.get(different).document | {"subject": "another"}
    (folder.odd / different).write_text(json.dumps(document))
    told = folder.run("storage", "verify", "odd")
    repaired = folder.run("storage", "verify", "odd", "--repair", "--threads", "2")
    again = folder.run("storage", "verify", "odd")

    assert saved.stdout.endswith("'odd': 3 repaired\n")
    assert sorted(told.stdout.splitlines()[:-1]) == sorted(
        [f"{missing}  missing", f"{different}  different: at /subject"]
    )
    assert re.fullmatch(r"'odd': (1 (equal|missing|different)(, |$)){3}", told.stdout.splitlines()[-1])
    assert (told.returncode, repaired.returncode, again.returncode) == (1, 0, 0)
    assert f"{missing}  repaired: it was missing\n" in repaired.stdout
    assert again.stdout == "'odd': 3 equal\n"


def test_verify_as_values(folder: Storages) -> None:
    """The same, for programs."""
    [uuid] = [stored(folder.store)]
    done = folder.run("storage", "verify", "odd", "--format", "json")

    assert json.loads(done.stdout) == {
        "storage": "odd",
        "counts": {"missing": 1},
        "vcons": [{"uuid": uuid, "state": "missing", "why": ""}],
    }


def test_what_never_came_to_a_storage_need_not_be_there(folder: Storages) -> None:
    """It is said which chains do not save to it; with --missing-ok it is not wrong, and not repaired."""
    uuid = stored(folder.store)
    told = folder.run("storage", "verify", "odd")
    fine = folder.run("storage", "verify", "odd", "--missing-ok", "--repair")

    assert told.stderr == (
        "warning: chains that do not save to 'odd': 'main'; what only they have seen is rightly missing"
        " (--missing-ok)\n"
    )
    assert (told.returncode, fine.returncode) == (1, 0)
    assert fine.stdout == "'odd': 1 missing\n"
    assert not (folder.odd / uuid).exists()


def test_verify_of_what_waits(folder: Storages, redis: Redis) -> None:
    """What a chain has still to save is not wrong; nor is what is gone from Redis."""
    redis.rpush("others", stored(folder.store))
    redis.delete(f"vcon:{stored(folder.store)}")
    done = folder.run("storage", "verify", "odd")

    assert done.stdout in (
        "'odd': 1 not saved yet, 1 not in Redis any more\n",
        "'odd': 1 not in Redis any more, 1 not saved yet\n",
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["mute"], 1, "storages.mute has no get, so what it holds cannot be seen"),
        (["odd", "--since", "soon"], 2, "--since 'soon': it must be a time like 2026-01-31T12:00:00Z"),
        (["odd", "--limit", "0"], 2, ""),
    ],
)
def test_verify_that_makes_no_sense(folder: Storages, args: list[str], code: int, told: str) -> None:
    """One line says so."""
    done = folder.run("storage", "verify", *args)

    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_of_a_storage_that_hangs_ends(folder: Storages) -> None:
    """After a few calls, in one line."""
    for _ in range(20):
        stored(folder.store)
    folder.trouble(get="hang", ping="hang")
    done = folder.run_apart("storage", "verify", "odd", "--since", "2020-01-01")

    assert re.search(r"^error: 5 calls in a row have failed, the last one: storage 'odd': .*1 s", done.stderr, re.M)
    assert done.returncode == 1


# copy


def test_copy_of_two_thousand(folder: Storages) -> None:
    """Along UUIDs that are given, and along the list of a storage; Redis keeps nothing of it."""
    uuids = folder.put(2000)
    listed = "\n".join(uuids)
    first = folder.run("storage", "copy", "odd", "files", "--uuids", "-", stdin=listed)
    second = folder.run("storage", "copy", "files", "db", "--threads", "8")

    assert (first.stdout, first.returncode) == ("'odd' to 'files': 2,000 copied\n", 0)
    assert (second.stdout, second.returncode) == ("'files' to 'db': 2,000 copied\n", 0)
    assert folder.files() == {uuid: json.loads((folder.odd / uuid).read_text()) for uuid in uuids}
    assert folder.store.client.dbsize() == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_copy_that_is_broken_off_goes_on(folder: Storages, end: signal.Signals) -> None:
    """With the same command, where it was; whatever was under way hangs for ever."""
    uuids = sorted(folder.put(600))
    (folder.path / "uuids").write_text("\n".join(uuids))
    command = ("storage", "copy", "odd", "files", "--uuids", "uuids")
    folder.trouble(**{f"get_{uuids[450]}": "hang"})
    process = folder.start(*command)
    wait_until(lambda: folder.calls(f"get {uuids[450]}"), 60, "the copy")
    process.send_signal(end)
    code = process.wait(60)
    # That of a process which was killed lapses in ten seconds.
    folder.store.client.delete("conserver:{copy:odd:files}:lock")
    before = folder.calls("get")
    folder.trouble()
    done = folder.run(*command)

    assert code == (1 if end == signal.SIGINT else -end)
    if end == signal.SIGINT:
        assert "error: interrupted; the same command goes on where it was\n" in folder.said()
    assert "going on behind 400 vCons of an earlier run; --restart begins anew\n" in done.stderr
    assert sum(int(count) for count in re.findall(r"(\d+) (?:copied|equal)", done.stdout)) == 600
    assert (done.returncode, folder.calls("get") - before) == (0, 200)
    assert set(folder.files()) == set(uuids)


def test_copy_leaves_what_differs(folder: Storages) -> None:
    """And says so; --overwrite does not."""
    [uuid] = folder.put()
    folder.run("storage", "copy", "odd", "files", "--uuids", "-", stdin=uuid)
    document = json.loads((folder.odd / uuid).read_text()) | {"subject": "another"}
    (folder.odd / uuid).write_text(json.dumps(document))
    left = folder.run("storage", "copy", "odd", "files", "--uuids", "-", stdin=uuid)
    values = folder.run("storage", "copy", "odd", "files", "--uuids", "-", "--format", "json", stdin=uuid)
    before = folder.files()[uuid]["subject"]
    done = folder.run("storage", "copy", "odd", "files", "--uuids", "-", "--overwrite", stdin=uuid)

    assert left.stdout == f"{uuid}  different: at /subject\n'odd' to 'files': 1 different, left as they are\n"
    assert left.stderr == "what differs is overwritten with --overwrite\n"
    assert json.loads(values.stdout) == {
        "from": "odd",
        "to": "files",
        "counts": {"different": 1},
        "left": 0,
        "vcons": [{"uuid": uuid, "state": "different", "why": "at /subject"}],
    }
    assert (left.returncode, values.returncode, done.returncode) == (1, 1, 0)
    assert (before, folder.files()[uuid]["subject"]) == ("Broken kettle", "another")


def test_copy_tells_what_fails_and_goes_on(folder: Storages) -> None:
    """It is tried again at the end, and by the same command."""
    uuids = folder.put(10)
    command, listed = ("storage", "copy", "odd", "files", "--uuids", "-"), "\n".join(uuids)
    folder.trouble(**{f"get_{uuids[3]}": "no such block"})
    told = folder.run(*command, stdin=listed)
    folder.trouble()
    done = folder.run(*command, stdin=listed)

    assert told.stdout.count(f"{uuids[3]}  failed: storage 'odd': no such block (logged in with ***)\n") == 1
    assert told.stdout.endswith("'odd' to 'files': 9 copied, 1 to be tried again\n")
    assert (told.returncode, done.returncode) == (1, 0)
    assert done.stdout == "'odd' to 'files': 10 copied\n"


def test_copy_by_the_index_says_so(folder: Storages) -> None:
    """A storage that cannot list what it holds."""
    stored(folder.store)
    folder.run("storage", "verify", "odd", "--repair")
    done = folder.run("storage", "copy", "odd", "db")

    assert done.stderr.startswith("warning: storage 'odd' cannot list what it holds: copied is what Redis knows of")
    assert (done.stdout, done.returncode) == ("'odd' to 'db': 1 copied\n", 0)


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["db", "db"], 2, "FROM and TO are the same storage"),
        (["mute", "db"], 1, "storage 'mute': storages.mute has no get, so nothing can be copied"),
        (["db", "mute"], 1, "so what it holds cannot be seen: it can only be overwritten (--overwrite)"),
        (["db", "files", "--uuids", "nowhere"], 1, "nowhere cannot be read: No such file or directory"),
        (["db", "files", "--uuids", "config.yml"], 2, "config.yml: 'links: {}' is no UUID"),
        (["db", "nothing"], 1, "config.yml has no storage 'nothing'"),
    ],
)
def test_copy_that_makes_no_sense(folder: Storages, args: list[str], code: int, told: str) -> None:
    """One line says so, and nothing is done."""
    done = folder.run("storage", "copy", *args)

    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_copy_shows_its_progress_on_a_terminal(folder: Storages) -> None:
    """On one line of stderr, which is gone at the end."""
    [*uuids] = folder.put(300)
    (folder.path / "uuids").write_text("\n".join(uuids))
    ours, theirs = pty.openpty()
    argv = folder.argv("storage", "copy", "odd", "files", "--uuids", "uuids")
    with subprocess.Popen(argv, cwd=folder.path, env=folder.env, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        said = bytearray()
        try:
            while chunk := os.read(ours, 4096):
                said += chunk
        except OSError:
            pass  # the end, on Linux
        out = process.stdout.read() if process.stdout else b""
    os.close(ours)

    assert b"copying to 'files': " in said
    assert said.endswith(b"\r\x1b[K")
    assert out == b"'odd' to 'files': 300 copied\n"


# delete


def test_delete_asks_first_and_deletes_there_alone(folder: Storages) -> None:
    """One line for each."""
    uuid, gone = stored(folder.store), str(two_party_call().uuid)
    for name in ("files", "odd"):
        folder.run("storage", "verify", name, "--repair")
    no = folder.run("storage", "delete", "files", uuid, stdin="n\n")
    kept = set(folder.files())
    yes = folder.run("storage", "delete", "files", uuid, gone, stdin="y\n")
    odd = folder.run("storage", "delete", "odd", uuid, "--yes")

    assert (no.returncode, kept) == (1, {uuid})
    assert yes.stdout == (f"Delete 2 vCons from storage 'files'? [y/N]: y\n{uuid}: deleted\n{gone}: was not there\n")
    assert odd.stdout == f"{uuid}: deleted, if it was there\n"
    assert (yes.returncode, odd.returncode, folder.files()) == (0, 0, {})
    assert folder.store.get(uuid).uuid == uuid


def test_delete_tells_what_it_cannot(folder: Storages) -> None:
    """And deletes the others."""
    first, second = folder.put(2)
    folder.trouble(**{f"delete_{first}": "is locked"})
    done = folder.run("storage", "delete", "odd", first, second, "-y")
    mute = folder.run("storage", "delete", "mute", first, "-y")
    none = folder.run("storage", "delete", "odd", second, "all", "-y")

    assert done.stderr == f"{first}: not deleted: storage 'odd': is locked (logged in with ***)\n"
    assert done.stdout == f"{second}: deleted, if it was there\n"
    assert mute.stderr == "error: storage 'mute': storages.mute has no delete: delete the vCons there by hand\n"
    assert none.stderr == "error: 'all' is no UUID; nothing was deleted\n"
    assert (done.returncode, mute.returncode, none.returncode) == (1, 1, 2)


def test_help_says_what_each_command_does(folder: Storages) -> None:
    """In a line each."""
    done = folder.run("storage", "--help")

    assert [word for word in ("ping", "verify", "copy", "delete") if word not in done.stdout] == []
