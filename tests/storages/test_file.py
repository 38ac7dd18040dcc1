"""storages.file: each vCon in a file."""

import gzip
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from conserver import StorageError, Vcon
from conserver.ambient import Work, working
from conserver.components import load_storage
from conserver.config import StorageConfig
from conserver.testing import DATA_RULES, storage_contract, throwaway_store, two_party_call
from storages import file
from storages.file import Options

UUID = "0190c0de-1234-8567-8000-000000000001"
BY_DATE = f"2024/05/06/{UUID}.json"


@pytest.fixture(scope="module")
def store():
    return throwaway_store()


@pytest.fixture
def save(store, tmp_path):
    """Save a call of 2024-05-06 with the given options, and return them."""

    def saved(created_at="2024-05-06T23:30:00-07:00", *, subject="call", **options):
        opts = Options(path=str(tmp_path), **options)
        call = two_party_call(UUID)
        call.document.update(created_at=created_at, subject=subject)
        store.create(call, replace=True)
        with working(Work(store.writer())):
            file.save(UUID, opts)
        return opts

    return saved


def files_in(folder: Path) -> list[str]:
    """Every file that is no lookup link, relative to *folder*."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(map(str, found))


@pytest.mark.parametrize("rule", DATA_RULES)
@pytest.mark.parametrize(
    "options",
    [{}, {"organize_by_date": False}, {"compression": True}, {"fsync": False, "path": "fresh/below"}],
    ids=["default", "flat", "gzip", "new-folder"],
)
def test_the_contract_of_storages(tmp_path, monkeypatch, rule, options):
    """The rules for every storage hold for each layout."""
    monkeypatch.chdir(tmp_path)

    checked = storage_contract("storages.file", {"path": "vcons", **options}, rules=[rule])

    assert [rule] == checked


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({}, BY_DATE),
        ({"compression": True}, f"{BY_DATE}.gz"),
        ({"organize_by_date": False}, f"{UUID}.json"),
        ({"organize_by_date": False, "compression": True}, f"{UUID}.json.gz"),
    ],
)
def test_the_layout_is_that_of_the_existing_conserver(save, tmp_path, options, place):
    """The date is the one that created_at says, as written, and the file is plain JSON."""
    save(**options)

    assert [place] == files_in(tmp_path)
    data = (tmp_path / place).read_bytes()
    assert json.loads(gzip.decompress(data) if place.endswith(".gz") else data)["uuid"] == UUID


@pytest.mark.parametrize("created_at", [None, "yesterday", 7, "2024-13-01T00:00:00Z", ""])
def test_a_vcon_without_a_date_lies_in_the_folder_itself(save, tmp_path, created_at):
    """A created_at that is no date does not stop the save."""
    opts = save(created_at)

    assert [f"{UUID}.json"] == files_in(tmp_path)
    assert created_at == file.get(UUID, opts)["created_at"]


@pytest.mark.parametrize("first", [{}, {"compression": True}, {"organize_by_date": False}])
@pytest.mark.parametrize("second", [{}, {"compression": True}, {"organize_by_date": False, "compression": True}])
def test_a_later_save_leaves_no_older_copy(save, tmp_path, first, second):
    """Another date, ending or layout moves the vCon: exactly one file is left, the new one."""
    save("2020-01-02T00:00:00Z", subject="old", **first)

    opts = save(subject="new", **second)

    assert len(files_in(tmp_path)) == 1
    assert file.get(UUID, opts)["subject"] == "new"


def test_what_the_existing_conserver_wrote_is_found(save, tmp_path):
    """Files without a lookup link are found under any day, and flat, in both endings."""
    opts = Options(path=str(tmp_path))
    document = {"uuid": UUID, "parties": [], "subject": "there"}
    for place in (BY_DATE, f"2019/12/31/{UUID}.json.gz", f"{UUID}.json.gz"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((gzip.compress if place.endswith("gz") else bytes)(json.dumps(document).encode()))

        assert document == file.get(UUID, opts)
        assert file.exists(UUID, opts)
        assert file.delete(UUID, opts)
        assert files_in(tmp_path) == []


def test_a_vcon_is_found_by_its_link_without_a_look_at_the_days(save, monkeypatch):
    """The normal read does not list folders, however many there are."""
    opts = save()
    monkeypatch.setattr(os, "listdir", None)

    found = file.get(UUID, opts)

    assert found["uuid"] == UUID


def test_a_vcon_of_the_day_in_its_uuid_needs_no_link(save, tmp_path, monkeypatch):
    """UUIDs of versions 7 and 8 say where to look, so such a vCon is one file and nothing more."""
    opts = save("2024-07-17T12:00:00Z")
    monkeypatch.setattr(os, "listdir", None)

    found = file.get(UUID, opts)

    assert found["uuid"] == UUID
    assert files_in(tmp_path) == [f"2024/07/17/{UUID}.json"]
    assert not (tmp_path / ".lookup").exists()


def test_a_vcon_may_move_to_the_day_in_its_uuid_and_back(save, tmp_path):
    """The link comes and goes with the need for it."""
    for created_at in ("2024-07-17T12:00:00Z", "2024-05-06T00:00:00Z", "2024-07-17T12:00:00Z"):
        opts = save(created_at)

        assert file.get(UUID, opts)["created_at"] == created_at
        assert files_in(tmp_path) == [f"{created_at[:10].replace('-', '/')}/{UUID}.json"]


def test_a_lost_lookup_folder_costs_time_but_no_vcon(save, tmp_path):
    """Without the links, the days are searched."""
    opts = save()
    (link,) = (path for path in tmp_path.rglob("*") if path.is_symlink())
    link.unlink()

    assert file.get(UUID, opts)["uuid"] == UUID


def test_a_delete_leaves_no_empty_folders(save, tmp_path):
    """The folders of the date go with their last file, the storage's own folder stays."""
    opts = save()

    assert file.delete(UUID, opts)

    assert list(tmp_path.glob("[0-9]*")) == []
    assert tmp_path.is_dir()


@pytest.mark.parametrize("uuid", ["../../etc/passwd", f"../{UUID}", f"{UUID}/x", f"{UUID}\n", "", "*", f"{UUID[:-1]}٣"])
@pytest.mark.parametrize("action", [file.save, file.get, file.delete, file.exists])
def test_only_a_uuid_becomes_a_files_name(tmp_path, uuid, action):
    """Nothing that climbs out of the folder reaches the file system."""
    with pytest.raises(StorageError, match="is no UUID, so it can be no file's name"):
        action(uuid, Options(path=str(tmp_path / "vcons")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "mode"), [(0o600, 0o600), ("0o640", 0o640), ("0644", 0o644), ("644", 0o644), ("0O600", 0o600)]
)
def test_permissions_may_be_written_in_every_octal_way(save, tmp_path, given, mode):
    """A number or the text of one; the file gets exactly this mode, whatever the umask."""
    save(file_permissions=given, dir_permissions="0o750")

    assert mode == stat.S_IMODE((tmp_path / BY_DATE).stat().st_mode)
    assert stat.S_IMODE((tmp_path / "2024/05").stat().st_mode) == 0o750


@pytest.mark.parametrize("given", [644, "rw-r--r--", "0o999", 0, True, 0o100644, None])
def test_permissions_that_make_no_sense_are_refused(given):
    """644 is not 0o644: the message says how to write it."""
    with pytest.raises(ValidationError, match="must be an octal number from 0o400 to 0o777, as 0o644 or '644'"):
        Options(file_permissions=given)


def test_folders_that_the_conserver_cannot_use_are_refused():
    """A folder that its owner cannot enter could never hold a vCon."""
    with pytest.raises(ValidationError, match="must let the owner do everything"):
        Options(dir_permissions="0o644")


def test_folders_that_were_there_keep_their_mode(save, tmp_path):
    """Neither the given folder nor those above it are touched."""
    tmp_path.chmod(0o711)
    (tmp_path / "2024").mkdir(mode=0o700)

    save(dir_permissions="0o755")

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o711
    assert stat.S_IMODE((tmp_path / "2024").stat().st_mode) == 0o700


def test_a_vcon_that_is_too_large_is_refused_with_both_numbers(save, tmp_path):
    """The message has the size and the limit; nothing is written."""
    with pytest.raises(StorageError, match=rf"vCon {UUID} has \d{{3,}} bytes, more than max_file_size \(100\)"):
        save(max_file_size=100)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(save, tmp_path, monkeypatch, stage):
    """Whatever step fails, the vCon that was stored before is intact and no piece is left over."""
    opts = save(subject="before")
    before = (tmp_path / BY_DATE).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    def half(descriptor, data, write=os.write):
        monkeypatch.setattr(os, "write", full)
        return write(descriptor, data[:20])

    monkeypatch.setattr(os, stage, half if stage == "write" else full)
    with pytest.raises(StorageError, match=r"cannot write .*\.json: No space left on device; make room on that disk"):
        save(subject="after")
    monkeypatch.undo()

    assert files_in(tmp_path) == [BY_DATE]
    assert before == (tmp_path / BY_DATE).read_bytes()
    assert file.get(UUID, opts)["subject"] == "before"


def test_a_path_below_a_file_is_told_with_a_cure(tmp_path):
    """A path that cannot be a folder says so, in a ping and in a read."""
    (tmp_path / "taken").write_text("")
    opts = Options(path=str(tmp_path / "taken" / "vcons"))

    with pytest.raises(StorageError, match=r"cannot write .*taken.*: Not a directory; a part of the path is no folder"):
        file.ping(opts)
    with pytest.raises(StorageError, match=r"cannot read from .*taken/vcons: Not a directory; a part of the path is"):
        file.get(UUID, opts)


def test_a_read_only_disk_is_told_by_ping_with_a_cure(tmp_path, monkeypatch):
    """Ping really writes, so it finds what a look at the modes does not."""

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)

    with pytest.raises(StorageError, match="Read-only file system; it is mounted read-only: give another path"):
        file.ping(Options(path=str(tmp_path)))


def test_ping_leaves_nothing_behind(tmp_path):
    """The file that ping writes is removed again."""
    file.ping(Options(path=str(tmp_path / "new")))

    assert files_in(tmp_path) == []


def test_half_a_vcon_is_told_and_not_taken(tmp_path):
    """What another writer left half done is an error that names the file."""
    opts = Options(path=str(tmp_path))
    (tmp_path / f"{UUID}.json").write_text('{"uuid": "')

    with pytest.raises(StorageError, match=rf"{UUID}\.json is no vCon: "):
        file.get(UUID, opts)


def test_the_list_has_the_latest_first(tmp_path):
    """list_vcons pages through the UUIDs by the time of their last save."""
    uuids = [f"0190c0de-0000-8000-8000-00000000000{number}" for number in range(5)]
    for number, uuid in enumerate(uuids):
        path = tmp_path / "2024" / f"{number + 1:02}" / "01" / f"{uuid}.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, (number, number))
    (tmp_path / "notes.json").write_text("{}")
    opts = Options(path=str(tmp_path))

    assert uuids[::-1] == file.list_vcons(opts)
    assert [uuids[3], uuids[2]] == file.list_vcons(opts, limit=2, offset=1)
    assert file.list_vcons(Options(path=str(tmp_path / "none"))) == []


def test_saves_and_deletes_may_meet(store, tmp_path):
    """A delete that removes the empty folders takes no save down that happens at the same moment."""
    storage = load_storage(StorageConfig(name="file", module="storages.file", options={"path": str(tmp_path)}))
    calls = [two_party_call(f"0190c0de-0000-8000-8000-00000000000{number}") for number in range(4)]
    for call in calls:
        store.create(call, replace=True)
    failures = []

    def churn(call: Vcon) -> None:
        try:
            for _ in range(50):
                with working(Work(store.writer())):
                    storage.save(call.uuid, storage.options)
                storage.delete(call.uuid, storage.options)
        except StorageError as error:
            failures.append(error)

    threads = [threading.Thread(target=churn, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert files_in(tmp_path) == []
