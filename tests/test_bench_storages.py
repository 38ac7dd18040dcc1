"""Saves a second of each storage, shown with a few: what is measured, and what is said where that cannot be done."""

from __future__ import annotations

import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from bench import report
from bench.backends import BACKENDS
from bench.plan import BenchError, Plan, Table
from bench.storages import COLUMNS, measure, storages
from tests.conftest import missing


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """As little as can be measured."""
    return Plan(tmp_path, secs=0.05, repeats=1, scale=0.01, say=lambda words: None)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_storage_is_measured_beside_its_bare_loop(name: str, plan: Plan) -> None:
    """With one thread and many, and the ratio is that of the two rates."""
    [table] = storages(plan, [name])
    [row] = table.rows
    if row.note:
        missing(row.note)

    assert set(row.runs) == set(COLUMNS)
    assert all(min(values) > 0 for values in row.runs.values())
    for kind in ("one", "many"):
        assert row.median(f"{kind}_of_bare") == pytest.approx(row.median(kind) / row.median(f"{kind}_bare"))


@pytest.mark.parametrize(("name", "package"), [("postgres", "psycopg"), ("s3", "boto3"), ("sftp", "paramiko")])
def test_what_is_not_installed_is_a_row_that_says_how(
    name: str, package: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default install has no clients of databases and clouds, and the others are measured all the same."""
    monkeypatch.setitem(sys.modules, package, None)

    [table] = storages(plan, [name, "file, fsync: false"])

    assert f"not measured: pip install 'conserver[{name}]'" in report.text_of(table)
    assert [bool(row.runs) for row in table.rows] == [False, True]


def test_a_server_that_is_not_installed_is_a_row_that_says_which(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed for a measurement."""
    pytest.importorskip("paramiko")
    monkeypatch.setattr("shutil.which", lambda name, path: None)

    [table] = storages(plan, ["sftp"])

    assert table.rows[0].note == "not measured: there is no sshd: install openssh-server"


def test_every_save_counts_once() -> None:
    """What is kept before does not count, and each vCon has a UUID of its own."""
    kept, lock = [], threading.Lock()

    def put(uuid: str, text: bytes) -> None:
        with lock:
            kept.append(uuid)
        assert uuid.encode() in text

    rate = measure(lambda: nullcontext(put), threads=3, secs=0.1, warm_up=2)

    assert len(set(kept)) == len(kept)
    assert 0 < rate * 0.1 <= len(kept) - 6


def test_a_save_that_fails_is_no_measurement() -> None:
    """It is told with its reason, instead of a rate, also where others go on well."""
    turns = iter(range(1000))

    def put(uuid: str, text: bytes) -> None:
        if next(turns) == 20:
            raise OSError("no room")

    with pytest.raises(BenchError, match="a save failed: OSError: no room"):
        measure(lambda: nullcontext(put), threads=2, secs=0.1)


def test_what_was_measured_is_drawn(tmp_path: Path) -> None:
    """Ours and the bare loop, and nothing of what was not measured."""
    table = Table("storages", "saves", COLUMNS)
    table.row("file").add(**dict.fromkeys(COLUMNS, 7.0))
    table.row("s3", note="not measured: pip install 'conserver[s3]'")

    [file] = report.plot(tmp_path, {"storages": table})

    assert file.name == "storages.svg"
    assert file.read_text().count("<rect class=") == 3
    assert "file, bare loop" in file.read_text()
    assert "s3" not in file.read_text()
