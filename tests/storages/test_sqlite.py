"""storages.sqlite: vCons in one file, and the search over them."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from conserver import StorageError, Vcon
from conserver.ambient import Work, working
from conserver.testing import DATA_RULES, storage_contract, throwaway_store, two_party_call
from storages import sqlite
from storages.sqlite import Hit, Options
from tests.waiting import wait_until

UUID = "0190c0de-1234-8567-8000-000000000001"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store():
    return throwaway_store()


@pytest.fixture
def save(store, tmp_path):
    """Save a call with the given options, and return them."""

    def saved(call: Vcon | None = None, **options: Any) -> Options:
        call = call or two_party_call()
        opts = Options(**{"path": str(tmp_path / "vcons.sqlite")} | options)
        store.create(call, replace=True)
        with working(Work(store.writer())):
            sqlite.save(call.uuid, opts)
        return opts

    return saved


def rows(opts: Options, statement: str) -> list[Any]:
    with closing(sqlite3.connect(opts.path)) as connection:
        return connection.execute(statement).fetchall()


def uuids(query: str, opts: Options) -> list[str]:
    return [hit.uuid for hit in sqlite.search(query, opts)]


@pytest.mark.parametrize("rule", DATA_RULES)
@pytest.mark.parametrize("options", [{}, {"fsync": False}], ids=["default", "no-fsync"])
def test_the_contract_of_storages(tmp_path, monkeypatch, rule, options):
    """The rules for every storage hold, in a folder that is made for it."""
    monkeypatch.chdir(tmp_path)

    checked = storage_contract("storages.sqlite", {"path": "new/vcons.sqlite", **options}, rules=[rule])

    assert [rule] == checked


def test_the_row_can_be_read_by_others(save):
    """The vCon is JSON text beside what one would look for."""
    call = two_party_call(UUID)

    opts = save(call)

    [(uuid, created_at, subject, text)] = rows(opts, "SELECT uuid, created_at, subject, vcon FROM vcons")
    assert (uuid, created_at, subject) == (UUID, call.created_at, "Broken kettle")
    assert json.loads(text) == call.document
    assert rows(opts, "SELECT json_extract(vcon, '$.parties[0].name') FROM vcons") == [("Ada Moss",)]
    assert rows(opts, "PRAGMA journal_mode") == [("wal",)]
    assert rows(opts, "PRAGMA user_version") == [(1,)]


@pytest.mark.parametrize(
    ("query", "finds"),
    [
        ("kettle", True),
        ("KETTLÉ", True),
        ("kett*", True),
        ("kett", False),
        ("broken moss boil", True),
        ("broken toaster", False),
        ('"not boil"', True),
        ('"boil not"', False),
        ("+12025550143", True),
        ("0143", False),
        ("ada@example.com", True),
        ("NOT", True),
        ("kettle AND toaster", False),
        ('kettle"', True),
        ("subject:kettle", False),
        ("-- kettle \ud800", True),
    ],
)
def test_search_finds_words(save, query, finds):
    """All words must be there, in any part; operators of the search engine are words like any other."""
    call = two_party_call(UUID)
    call.parties[0]["mailto"] = "ada@example.com"
    opts = save(call)
    save(Vcon({"vcon": "0.4.0", "uuid": two_party_call().uuid, "parties": [], "subject": "another"}))

    assert uuids(query, opts) == [UUID] * finds


@pytest.mark.parametrize("query", ["", " ", '""', "--", "*", '"--" *'])
def test_a_search_for_nothing_finds_nothing(save, query):
    """It is no error."""
    assert sqlite.search(query, save()) == []


@pytest.mark.parametrize(
    "body",
    [
        "the quick fox",
        {"transcript": "the quick fox", "words": [{"word": "fox"}]},
        {"paragraphs": {"transcript": "the quick fox"}},
        {"text": "the quick fox", "segments": [{"text": "the quick"}, {"text": "fox"}]},
        {"transcript": {"text": "the quick fox", "language": "en"}, "segments": []},
        {"transcript": "", "segments": [{"text": "the quick"}, {"text": "fox"}]},
        [{"speaker": 1, "message": "the quick"}, {"speaker": 2, "message": "fox"}],
    ],
)
@pytest.mark.parametrize("kind", ["transcript", "wtf_transcription", "old", "chat"])
def test_transcripts_of_all_shapes_are_found(save, body, kind):
    """Those of the usual services, as JSON or as its text, and what was written instead of spoken."""
    call = two_party_call(UUID)
    call.analysis.clear()
    if kind == "chat":
        call.add_dialog({"type": "text", "start": call.created_at, "parties": [0], "encoding": "json", "body": body})
    elif kind == "old":
        text = json.dumps(body)
        call.analysis.append({"type": "transcript", "dialog": 0, "vendor": "x", "encoding": "json", "body": text})
    else:
        call.add_analysis(type=kind, dialog=0, vendor="x", body=body)

    opts = save(call)

    assert uuids("quick fox", opts) == [UUID]
    # Once, though the services repeat it.
    [(words,)] = rows(opts, "SELECT transcripts FROM vcons_words")
    assert words.count("fox") == 1


def test_a_hit_has_what_a_list_needs(save):
    """UUID, date, subject, and the words around the place."""
    call = two_party_call(UUID)

    [hit] = sqlite.search("boil", save(call))

    assert isinstance(hit, Hit)
    assert (hit.uuid, hit.created_at, hit.subject) == (UUID, call.created_at, "Broken kettle")
    assert "does not boil" in hit.excerpt


def test_the_best_come_first_up_to_a_limit(save):
    """Where a word is more of the whole, it counts more."""
    long, short = two_party_call(), two_party_call()
    long.analysis[0]["body"] = "zebra " + "and many other words " * 50
    short.analysis[0]["body"] = "zebra zebra"
    save(long)
    opts = save(short)

    assert uuids("zebra", opts) == [short.uuid, long.uuid]
    assert [hit.uuid for hit in sqlite.search("zebra", opts, limit=1)] == [short.uuid]


def test_search_follows_saves_and_deletes(save):
    """Words of an earlier version, or of a vCon that is gone, find nothing."""
    call = two_party_call(UUID)
    opts = save(call)
    call.document["subject"] = "Toaster"
    call.analysis.clear()
    save(call)

    assert uuids("kettle", opts) == []
    assert uuids("toaster", opts) == [UUID]
    sqlite.delete(UUID, opts)
    assert uuids("toaster", opts) == []
    assert rows(opts, "SELECT count(*) FROM vcons_words") == [(0,)]


def test_processes_may_share_a_file(save, tmp_path):
    """Each waits for the others, and nothing is lost; the file is made by whoever comes first."""
    code = (
        "import sys\nfrom conserver.testing import throwaway_store, two_party_call\n"
        "from conserver.ambient import Work, working\nfrom storages import sqlite\n"
        "opts, store = sqlite.Options(path=sys.argv[1]), throwaway_store()\n"
        "for _ in range(40):\n"
        "    call = two_party_call()\n    store.create(call)\n"
        "    with working(Work(store.writer())):\n        sqlite.save(call.uuid, opts)\n"
    )
    path = tmp_path / "vcons.sqlite"
    command = [sys.executable, "-W", "error", "-c", code, path]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]

    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in running]

    assert ended == [(b"", 0)] * 2
    assert rows(Options(path=str(path)), "SELECT count(*) FROM vcons") == [(80,)]


def test_a_file_that_another_process_just_makes_is_waited_for(save, monkeypatch):
    """Two changes to WAL that meet: SQLite refuses one of them at once, one time in some hundred."""
    refused = sqlite3.OperationalError("database is locked")
    refused.sqlite_errorcode = sqlite3.SQLITE_BUSY
    refusals = [refused, refused]

    def execute(connection, statement, *values):
        if "journal_mode" in statement and refusals:
            raise refusals.pop()
        return sqlite3.Connection.execute(connection, statement, *values)

    monkeypatch.setattr(sqlite._Connection, "execute", execute, raising=False)

    opts = save()

    assert refusals == []
    assert rows(opts, "SELECT count(*) FROM vcons") == [(1,)]


def test_a_process_that_is_killed_loses_nothing_that_it_has_saved(tmp_path):
    """What it said is saved is there, whole, and the file is sound."""
    code = (
        "import sys\nfrom conserver.testing import throwaway_store, two_party_call\n"
        "from conserver.ambient import Work, working\nfrom storages import sqlite\n"
        "opts, store = sqlite.Options(path=sys.argv[1]), throwaway_store()\n"
        "while True:\n"
        "    call = two_party_call()\n    call.dialog[0]['body'] = 'QUJD' * 50_000\n    store.create(call)\n"
        "    with working(Work(store.writer())):\n        sqlite.save(call.uuid, opts)\n"
        "    print(call.uuid, flush=True)\n"
    )
    path = tmp_path / "vcons.sqlite"
    said = tmp_path / "said"
    with said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code, path], cwd=ROOT, stdout=file, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            wait_until(lambda: said.read_text().count("\n") >= 20 or process.poll() is not None, 60)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # and the server of its store
            process.wait(10)

    saved = said.read_text().splitlines()
    opts = Options(path=str(path))
    assert len(saved) >= 20
    assert all((sqlite.get(uuid, opts) or {}).get("uuid") == uuid for uuid in saved)
    assert rows(opts, "PRAGMA integrity_check") == [("ok",)]


def test_saves_at_the_same_moment_are_written_together(save, monkeypatch):
    """Those that come while the disk is busy share the next transaction."""
    opts = save()
    batches, began, go_on = [], threading.Event(), threading.Event()

    def slow(works, connection, real=sqlite._in_transaction):
        batches.append(len(works))
        began.set()
        go_on.wait(30)
        return real(works, connection)

    monkeypatch.setattr(sqlite, "_in_transaction", slow)
    file = sqlite._file(opts)
    with ThreadPoolExecutor(9) as threads:
        threads.submit(save)
        assert began.wait(10)
        others = [threads.submit(save) for _ in range(8)]
        wait_until(lambda: len(file._waiting) == 8)
        go_on.set()
        for other in others:
            other.result(30)

    assert batches == [1, 8]


def test_one_that_cannot_be_written_does_not_fail_the_others(save):
    """Of those that are written together, each has its own result."""
    file = sqlite._file(save())
    results = []

    def good(connection):
        return connection.execute("SELECT 7").fetchone()

    def bad(connection):
        raise sqlite3.DataError("too big")

    with ThreadPoolExecutor(3) as threads, file._writing:
        running = [threads.submit(file.write, work) for work in (good, bad, good)]
        wait_until(lambda: len(file._waiting) == 3)
        file._writing.release()
        try:
            results = [one.exception(30) or one.result() for one in running]
        finally:
            file._writing.acquire()

    assert [str(one) for one in results] == ["(7,)", "too big", "(7,)"]


def test_a_file_that_was_replaced_is_opened_anew(save):
    """Saves into a file that nobody can reach any more would be lost."""
    call = two_party_call(UUID)
    opts = save()
    for path in Path(opts.path).parent.glob("vcons.sqlite*"):
        path.unlink()

    assert sqlite.get(UUID, opts) is None
    save(call)

    assert rows(opts, "SELECT uuid FROM vcons") == [(UUID,)]


def test_a_file_that_stays_locked_is_told(save):
    """Within the timeout, with what it may be; afterwards all is well."""
    opts = save(timeout=0.2)
    with closing(sqlite3.connect(opts.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"cannot save to .*vcons.sqlite: database is locked; another program"):
            save(timeout=0.2)
        with pytest.raises(StorageError, match=r"cannot write .*: database is locked; another program keeps it"):
            sqlite.ping(opts)
        assert sqlite.get(UUID, opts) is None

    sqlite.ping(opts)


def test_a_file_of_something_else_is_left_alone(save, tmp_path):
    """Neither another program's database, nor one of a later version, nor any other file."""
    for name, statement in (("theirs", "CREATE TABLE x (y)"), ("later", "PRAGMA user_version = 7")):
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            connection.execute(statement)
    (tmp_path / "text").write_text("no database " * 100)

    with pytest.raises(StorageError, match=r"its schema is none that is known here \(0\): give a path of its own"):
        save(path=str(tmp_path / "theirs"))
    with pytest.raises(StorageError, match=r"its schema is none that is known here \(7\): update the conserver"):
        save(path=str(tmp_path / "later"))
    with pytest.raises(StorageError, match="text: file is not a database; give a path of its own"):
        save(path=str(tmp_path / "text"))


def test_a_place_that_cannot_be_written_is_told(save, tmp_path):
    """A folder below a file, and a disk without room."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match=r"cannot save to .*taken.*: File exists; give another path"):
        save(path=str(tmp_path / "taken" / "vcons.sqlite"))

    opts = save()
    sqlite._file(opts)._pool.run(lambda connection: connection.execute("PRAGMA max_page_count = 40"))
    call = two_party_call(UUID)
    call.dialog[0]["body"] = "QUJD" * 100_000
    with pytest.raises(StorageError, match="database or disk is full; make room on that disk"):
        save(call)
    assert sqlite.get(UUID, opts) is None


def test_a_save_that_is_written_does_not_wait_for_the_next_ones(save):
    """Only one of those that wait has to get hold of the file, and the others return when it has written them."""
    file = sqlite._file(save())
    all_wait, lock = threading.Event(), threading.Lock()

    class TakenAgain:
        """A lock that somebody else has as soon as it is free."""

        def __enter__(self):
            all_wait.wait(10)
            assert lock.acquire(timeout=0.5), "it waits although it is written"

        def __exit__(self, *_):
            pass

    file._writing = TakenAgain()
    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(save) for _ in range(3)]
        wait_until(lambda: len(file._waiting) == 3)
        all_wait.set()

        assert [one.exception(30) for one in running] == [None, None, None]
