"""storages.postgres: vCons in rows of a real PostgreSQL."""

import contextlib
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from conserver import StorageError
from conserver.ambient import Work, working
from conserver.testing import STORAGE_RULES, storage_contract, throwaway_store, two_party_call
from storages import postgres
from storages.postgres import Options
from tests.postgresql import PASSWORD, postgres_server
from tests.proxy import proxied
from tests.waiting import wait_until

UUID = "0190c0de-1234-8567-8000-000000000001"
# As peewee makes it for the existing conserver.
OLD_TABLE = (
    'CREATE TABLE "{}" ("id" UUID NOT NULL PRIMARY KEY, "vcon" TEXT NOT NULL, "uuid" UUID NOT NULL, '
    '"created_at" TIMESTAMP NOT NULL, "updated_at" TIMESTAMP, "subject" TEXT, "vcon_json" JSONB)'
)


@pytest.fixture(scope="module")
def server():
    with postgres_server() as running:
        yield running


@pytest.fixture(scope="module")
def store():
    return throwaway_store()


@pytest.fixture
def table(server):
    """The name of a table that is not there."""
    yield "calls"
    server.run('DROP TABLE IF EXISTS "calls"')


@pytest.fixture
def save(server, store, table):
    """Save a call with the given options, and return it and them."""

    def saved(call=None, **options):
        call = call or two_party_call()
        opts = Options(**server.options | {"table_name": table} | options)
        store.create(call, replace=True)
        with working(Work(store.writer())):
            postgres.save(call.uuid, opts)
        return call, opts

    return saved


@pytest.mark.parametrize("rule", STORAGE_RULES)
def test_the_contract_of_storages(server, rule):
    """The rules for every storage hold."""
    with proxied(f"redis://127.0.0.1:{server.port}") as proxy, proxy.blackhole():
        checked = storage_contract(
            "storages.postgres",
            server.options | {"timeout": 10},
            rules=[rule],
            unreachable={"port": 1, "password": "s3cret"},
            denied={"password": "wrong-s3cret"},
            slow={"port": int(proxy.url.rpartition(":")[2]), "timeout": 0.5},
            backend=server,
            secrets=["s3cret", PASSWORD],
        )

    assert [rule] == checked


def test_the_row_is_the_one_of_the_existing_conserver(server, save, table):
    """Its columns have what it would have put there: dates without their zone, the JSON to be looked into."""
    call = two_party_call(UUID)
    call.document["created_at"] = "2024-05-06T23:30:00.250-07:00"

    save(call)

    [row] = server.run(
        f"SELECT id::text, uuid::text, vcon, created_at::text, subject, vcon_json->'parties'->0->>'name', vcon_text, "
        f"updated_at BETWEEN localtimestamp - interval '1 day' AND localtimestamp + interval '1 day' FROM {table}"
    )
    assert row == (UUID, UUID, "0.4.0", "2024-05-06 23:30:00.25", "Broken kettle", "Ada Moss", None, True)


def test_rows_of_the_existing_conserver_are_read(server, save, table):
    """Before anything is saved to its table, and after; what is saved over one of them replaces it."""
    server.run(OLD_TABLE.format(table))
    call, other = two_party_call(UUID), two_party_call()
    for each in (call, other):
        values = {"uuid": each.uuid, "text": json.dumps({**each.document, "subject": "theirs"})}
        server.run(
            f"INSERT INTO {table} VALUES (%(uuid)s, '0.0.1', %(uuid)s, now(), now(), 'theirs', %(text)s)", values
        )
    opts = Options(**server.options, table_name=table)

    assert postgres.get(UUID, opts) == {**call.document, "subject": "theirs"}
    save(call)
    assert postgres.get(UUID, opts) == call.document
    assert postgres.get(other.uuid, opts)["subject"] == "theirs"
    assert postgres.delete(other.uuid, opts) is True
    assert server.run(f"SELECT count(*) FROM {table}") == [(1,)]


def test_what_the_existing_conserver_changes_counts(server, save, table):
    """The exact text of a row is not given back once somebody has changed its JSON."""
    call = two_party_call(UUID)
    call.document["x_number"] = 1e22
    _, opts = save(call)
    assert isinstance(postgres.get(UUID, opts)["x_number"], float)

    server.run(f"UPDATE {table} SET vcon_json = jsonb_set(vcon_json, '{{subject}}', '\"changed\"')")

    assert postgres.get(UUID, opts)["subject"] == "changed"


@pytest.mark.parametrize("how", ["option", "environment"])
def test_older_consumers_get_the_older_version(server, save, table, monkeypatch, how):
    """`vcon_json` is in the version that was asked for; what comes back is the vCon as it was."""
    if how == "environment":
        monkeypatch.setenv("EGRESS_FORMAT_VERSION", "0.0.1")

    call, opts = save(**{"format_version": "0.0.1"} if how == "option" else {})

    [row] = server.run(f"SELECT vcon, vcon_json->>'vcon', vcon_json->'dialog'->0->>'mimetype' FROM {table}")
    assert row == ("0.0.1", "0.0.1", "audio/x-wav")
    assert postgres.get(call.uuid, opts) == call.document


def test_what_jsonb_refuses_is_shown_as_a_replacement(server, save, table):
    """Others that read the JSON see U+FFFD, and the subject as well."""
    call = two_party_call()
    call.document["subject"] = "a\0b\ud800"

    save(call)

    assert server.run(f"SELECT subject, vcon_json->>'subject' FROM {table}") == [("a\ufffdb\ufffd",) * 2]


def test_an_ordinary_vcon_is_stored_once(server, save, table):
    """The exact text is kept only where jsonb would change it: a recording would take twice its room."""
    save()

    assert server.run(f"SELECT vcon_text, vcon_text_of FROM {table}") == [(None, None)]


def test_processes_that_make_the_table_at_once_agree(server, table):
    """All of them go on, and there is one table."""
    opts = Options(**server.options, table_name=table)
    tables = [postgres._Table(opts) for _ in range(8)]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda one: one.touch(), tables))

    assert server.run("SELECT count(*) FROM pg_class WHERE relname = 'calls'") == [(1,)]


def test_a_table_that_was_dropped_is_made_again(server, save, table):
    """A process that has seen it does not fail for ever; until then nothing is found in it."""
    call, opts = save()
    server.run(f"DROP TABLE {table}")
    assert postgres.get(call.uuid, opts) is None
    assert postgres.delete(call.uuid, opts) is False

    save(call)

    assert postgres.get(call.uuid, opts) == call.document


def test_connections_that_the_server_has_ended_are_replaced(server, save):
    """The next save works at once, whatever became of the connections that were kept."""
    call, opts = save()
    server.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'conserver'")

    save(call)
    server.stop()
    server.start()

    assert postgres.get(call.uuid, opts) == call.document
    save(call)


def test_no_more_connections_than_allowed(server, save, table):
    """Threads that find all in use wait for one."""
    limited = {"max_connections": 2, "database": "postgres"}
    save(**limited)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: save(**limited), range(48)))

    # Others of this process are those of other options.
    table_of = postgres._table(Options(**server.options | {"table_name": table} | limited))
    assert 1 <= len(table_of._pool._idle) <= 2
    assert server.run(f"SELECT count(*) FROM {table}") == [(49,)]


def test_connections_that_stay_in_use_are_told(server, save, table):
    """A save that finds no connection free says so within its time."""
    _, opts = save(max_connections=1, timeout=0.5)
    taken, done = threading.Event(), threading.Event()

    def keep(_):
        taken.set()
        done.wait(30)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(postgres._table(opts)._pool.run, keep)
        taken.wait(10)
        try:
            with pytest.raises(StorageError, match=r"all 1 connections have been in use for 0.5 s"):
                postgres.get(UUID, opts)
        finally:
            done.set()


def test_a_server_that_stops_answering_ends_with_the_timeout(server, save):
    """Over a connection that worked before; the next one is new."""
    with proxied(f"redis://127.0.0.1:{server.port}") as proxy:
        away = {"port": int(proxy.url.rpartition(":")[2]), "timeout": 1}
        call, opts = save(**away)
        began = time.monotonic()
        with (
            proxy.blackhole(),
            pytest.raises(StorageError, match=r"cannot save to table calls at .*: no answer within"),
        ):
            save(call, **away)
        took = time.monotonic() - began

        assert 0.9 < took < 10
        save(call, **away)
        assert postgres.get(call.uuid, opts) == call.document


def test_a_save_that_is_over_its_time_does_not_take_effect_later(server, save, table):
    """A row that somebody keeps locked: what is given up here ends there as well."""
    call, opts = save(timeout=1)
    before = postgres.get(call.uuid, opts)
    with contextlib.closing(server.connect()) as connection, connection.transaction():
        connection.execute(f"SELECT 1 FROM {table} FOR UPDATE")
        call.document["subject"] = "late"
        with pytest.raises(StorageError, match=r"no answer within 1 s|statement timeout"):
            save(call, timeout=1)
        busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%INSERT INTO%%' AND wait_event_type = 'Lock'"
        wait_until(lambda: server.run(busy) == [(0,)], 20)

    assert postgres.get(call.uuid, opts) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"password": "wrong-s3cret"}, "password authentication failed for user"),
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"port": 1}, "Connection refused"),
    ],
)
def test_a_login_that_fails_says_why(server, save, options, message):
    """At once, with the server's own words, and without the password."""
    with pytest.raises(StorageError, match=rf"cannot save to table calls at 127.0.0.1:\d+/\w+: .*{message}") as told:
        save(**options)

    assert "s3cret" not in str(told.value)


def test_a_right_that_is_missing_is_told_with_its_cure(server, save, table):
    """A role that may not add the columns, and one that may only read."""
    server.run(OLD_TABLE.format(table))
    server.run(
        f"CREATE ROLE clerk LOGIN PASSWORD '{PASSWORD}'; GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO clerk"
    )
    try:
        with pytest.raises(StorageError, match="must be owner of table calls; let the role of the conserver do that"):
            save(user="clerk")
        server.run(f"ALTER TABLE {table} ADD COLUMN vcon_text text, ADD COLUMN vcon_text_of bytea")
        _, opts = save(user="clerk")
        postgres.ping(opts)
        server.run(f"REVOKE UPDATE ON {table} FROM clerk")
        with pytest.raises(StorageError, match=r"cannot write to table calls at .*: permission denied for table calls"):
            postgres.ping(opts)
    finally:
        server.run(f"DROP TABLE {table}; DROP ROLE clerk")


def test_what_is_said_is_in_no_error(server, save, table):
    """The server quotes the row that it refuses; that is left out."""
    save()
    server.run(f"ALTER TABLE {table} ADD CONSTRAINT short CHECK (length(subject) < 20)")
    call = two_party_call()
    call.document["subject"] = "A very private matter of Ada Moss"

    with pytest.raises(StorageError, match='violates check constraint "short"') as told:
        save(call)

    assert "private" not in f"{told.value!r} {told.value.__cause__!r}"


def test_an_id_that_is_no_uuid_is_told(server):
    """The message shows it."""
    with pytest.raises(StorageError, match=r"'../etc' is no UUID"):
        postgres.get("../etc", Options(**server.options))


def test_a_missing_package_is_told_with_the_command(monkeypatch):
    """What to install stands in the message."""
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(StorageError, match=r"pip install 'conserver\[postgres\]'"):
        postgres.get(UUID, Options())


def test_the_password_is_not_in_the_options_text():
    """Options that land in a log show no secret."""
    assert "s3cret" not in repr(Options(password="s3cret"))
