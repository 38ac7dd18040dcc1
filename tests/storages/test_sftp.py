"""storages.sftp: vCons as files on a real OpenSSH server."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from pydantic import ValidationError

from conserver import StorageError, Vcon
from conserver.ambient import Work, working
from conserver.testing import STORAGE_RULES, storage_contract, throwaway_store, two_party_call
from storages import sftp
from storages.sftp import Options, files
from tests.fakes.sftp_server import SftpServer, fingerprint, make_key

Save = Callable[..., tuple[Vcon, Options]]
UUID = "018f0000-0000-8000-8abc-000000000001"
DATED, LOOKUP = f"vcon_20240301T043000Z_{UUID}.json", f".lookup/00/{UUID}"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpServer]:
    with SftpServer(tmp_path_factory.mktemp("sftp")) as server:
        yield server


@pytest.fixture
def server(running: SftpServer) -> SftpServer:
    """The server, which knows itself, without files."""
    for name in running.names():
        (running.files / name).unlink()
    running.know(running.host_key)
    return running


@pytest.fixture
def save() -> Save:
    """Save a vCon with the given options, and return both."""
    store = throwaway_store()

    def saved(vcon: Vcon | None = None, /, **options: Any) -> tuple[Vcon, Options]:
        vcon, opts = vcon or call_of("2024-02-29T23:30:00-05:00"), Options(**options)
        store.create(vcon, replace=True)
        with working(Work(store.writer())):
            sftp.save(str(vcon.uuid), opts)
        return vcon, opts

    return saved


def call_of(created_at: str, uuid: str = UUID) -> Vcon:
    vcon = two_party_call(uuid)
    vcon.document["created_at"] = created_at
    return vcon


@pytest.fixture(scope="module")
def silent() -> Iterator[int]:
    """A port where somebody listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("rule", STORAGE_RULES)
def test_the_contract_of_storages(running: SftpServer, silent: int, tmp_path: Path, rule: str) -> None:
    """The rules for every storage hold."""
    key = make_key(tmp_path / "wrong", "s3cret-word")
    checked = storage_contract(
        "storages.sftp",
        running.options(),
        rules=[rule],
        unreachable={"port": 1},
        denied={"private_key_path": str(key), "password": "s3cret-word"},
        slow={"port": silent, "timeout": 0.3},
        backend=running,
        secrets=["s3cret-word"],
    )

    assert checked == [rule]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, DATED),
        ({"add_timestamp_to_filename": False}, f"vcon_{UUID}.json"),
        ({"filename": "call", "extension": "vcon"}, f"call_20240301T043000Z_{UUID}.vcon"),
        ({"path": "some/folder"}, f"some/folder/{DATED}"),
    ],
)
def test_the_name_is_made_of_the_options(server: SftpServer, save: Save, options: dict[str, Any], name: str) -> None:
    """Their meaning is that of the existing conserver, with the UUID in the name as well."""
    vcon, _ = save(**server.options(**options))

    folder = f"{options['path']}/" if "path" in options else ""
    assert server.names() == sorted([f"{folder}{LOOKUP}", name])
    assert json.loads((server.files / name).read_bytes()) == vcon.document


def test_an_absolute_path_is_one(server: SftpServer, save: Save) -> None:
    """With or without a slash at its end."""
    save(**server.options(path=f"{server.files}/in/"))

    assert f"in/{DATED}" in server.names()


def test_the_right_vcon_is_given_back(server: SftpServer, save: Save) -> None:
    """Not the newest file, as the existing conserver would."""
    vcon, opts = save(**server.options())
    save(call_of("2030-01-01T00:00:00Z", "018f0000-0000-8000-8abc-000000000002"), **server.options())

    assert sftp.get(UUID, opts) == vcon.document


def test_a_vcon_without_a_date_has_none_in_its_name(server: SftpServer, save: Save) -> None:
    """It is found all the same."""
    vcon, opts = save(Vcon({"uuid": UUID, "vcon": "0.4.0", "parties": []}), **server.options())

    assert f"vcon_{UUID}.json" in server.names()
    assert (sftp.get(UUID, opts) or {})["uuid"] == vcon.uuid


@pytest.mark.parametrize("options", [{}, {"filename": "other"}, {"extension": "txt"}])
def test_another_name_leaves_nothing_under_the_old_one(server: SftpServer, save: Save, options: dict[str, Any]) -> None:
    """Whether the date of the vCon has changed, or the options."""
    save(**server.options())
    later, opts = save(call_of("2025-01-01T00:00:00Z"), **server.options(**options))

    name = f"{opts.filename}_20250101T000000Z_{UUID}.{opts.extension}"
    assert server.names() == sorted([LOOKUP, name])
    assert (server.files / LOOKUP).read_text() == f"{name}\n"
    assert sftp.get(UUID, opts) == later.document


@pytest.mark.parametrize("done", range(6))
@pytest.mark.parametrize("then", ["delete", "save"])
def test_a_save_that_breaks_off_anywhere_leaves_a_vcon_and_no_orphans(
    server: SftpServer, save: Save, monkeypatch: pytest.MonkeyPatch, done: int, then: str
) -> None:
    """After each of its steps: a vCon is found, and the next delete or save finds all."""
    vcon, opts = save(**server.options())
    later = call_of("2025-01-01T00:00:00Z")
    steps = iter(range(100))

    def breaks_off(step: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*given: Any) -> Any:
            if next(steps) >= done:
                raise KeyboardInterrupt
            return step(*given)

        return stepping

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", breaks_off(files.write))
        patch.setattr(files, "remove", breaks_off(files.remove))
        if done < 5:
            with pytest.raises(KeyboardInterrupt):
                save(later, **server.options())
        else:
            save(later, **server.options())

    assert sftp.get(UUID, opts) in (vcon.document, later.document)
    if then == "delete":
        assert sftp.delete(UUID, opts) is True
        assert server.names() == []
    else:
        last, _ = save(call_of("2026-01-01T00:00:00Z"), **server.options())
        assert sftp.get(UUID, opts) == last.document
        assert server.names() == sorted([LOOKUP, f"vcon_20260101T000000Z_{UUID}.json"])


def test_a_server_that_cannot_rename_over_a_file_will_do(
    server: SftpServer, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """posix-rename is an extension of OpenSSH; others say that they do not know it."""

    def unknown(*_: Any) -> None:
        raise OSError("Operation unsupported")

    monkeypatch.setattr(paramiko.SFTPClient, "posix_rename", unknown)
    save(**server.options())
    vcon, opts = save(**server.options())

    assert sftp.get(UUID, opts) == vcon.document
    assert server.names() == sorted([LOOKUP, DATED])


def test_connections_are_kept(server: SftpServer, save: Save) -> None:
    """One for all, as long as there is one thread."""
    log = server.folder / "log"
    save(**server.options(timeout=31))
    before = log.read_text().count("Accepted publickey")
    for _ in range(5):
        save(**server.options(timeout=31))

    assert log.read_text().count("Accepted publickey") == before


def test_a_connection_that_broke_is_replaced(server: SftpServer, save: Save) -> None:
    """The save that meets it does not fail."""
    save(**server.options())
    server.disconnect()
    vcon, opts = save(call_of("2025-01-01T00:00:00Z"), **server.options())

    assert sftp.get(UUID, opts) == vcon.document


@pytest.mark.parametrize(("key", "password"), [("key", None), ("locked_key", "opensesame")])
def test_a_key_may_be_given_as_text(server: SftpServer, save: Save, key: str, password: str | None) -> None:
    """With a password of its own, or without."""
    text = getattr(server, key).read_text()
    save(**server.options(private_key_path=None, private_key=text, password=password))

    assert DATED in server.names()


def test_a_key_that_is_none_is_told_and_not_shown(server: SftpServer, save: Save) -> None:
    """Nor is its password."""
    with pytest.raises(StorageError, match="private_key: this is no private key of Ed25519, ECDSA or RSA") as told:
        save(**server.options(private_key_path=None, private_key="s3cret-text", password="s3cret-word"))

    assert "s3cret" not in str(told.value)


def test_a_key_file_that_is_not_there_is_named(server: SftpServer, save: Save) -> None:
    """By its path."""
    with pytest.raises(StorageError, match=r"private_key_path: cannot read /none/key: .*No such file"):
        save(**server.options(private_key_path="/none/key"))


def test_an_unknown_server_gets_nothing(server: SftpServer, save: Save) -> None:
    """The message has its fingerprint, and the option for it."""
    server.known_hosts.write_text("")
    mark = fingerprint(server.host_key)

    with pytest.raises(StorageError) as told:
        save(**server.options(timeout=32))
    assert f"the server is not in known_hosts; if its key is {mark}, set fingerprint to that" in str(told.value)
    assert server.names() == []


def test_a_server_with_another_key_gets_nothing(server: SftpServer, save: Save, tmp_path: Path) -> None:
    """It may be somebody in between."""
    server.know(make_key(tmp_path / "other"))

    with pytest.raises(StorageError, match="the server has another key than known_hosts says"):
        save(**server.options(timeout=33))
    assert server.names() == []


def test_a_fingerprint_takes_the_place_of_known_hosts(server: SftpServer, save: Save, tmp_path: Path) -> None:
    """The right one lets in, another one does not."""
    wrong = fingerprint(make_key(tmp_path / "other"))

    save(**server.options(known_hosts="/none", fingerprint=fingerprint(server.host_key)))
    with pytest.raises(StorageError, match=r"the server's key is SHA256:.*, not that of the option fingerprint"):
        save(**server.options(known_hosts="/none", fingerprint=wrong))


def test_the_check_of_the_server_may_be_left_out(server: SftpServer, save: Save) -> None:
    """Only where somebody says so."""
    save(**server.options(known_hosts="/none", check_host_key=False))

    assert DATED in server.names()


def test_a_refused_login_is_told(server: SftpServer, save: Save) -> None:
    """With the name of the user, and what to check."""
    with pytest.raises(StorageError, match="refuses the login of 'nobody-here'; check username, and password or"):
        save(**server.options(username="nobody-here"))


def test_a_folder_in_the_way_is_told(server: SftpServer, save: Save) -> None:
    """A file where a folder has to be."""
    (server.files / "taken").write_text("")

    with pytest.raises(StorageError, match=r"cannot write to sftp://127\.0\.0\.1:"):
        save(**server.options(path="taken/below"))


@pytest.mark.parametrize("name", [f"../{UUID}.json", "vcon_another.json"])
def test_what_a_lookup_file_says_leads_nowhere_else(server: SftpServer, name: str) -> None:
    """Others can write there, too: neither out of the folder, nor to another vCon."""
    lookup = server.files / LOOKUP
    lookup.parent.mkdir(parents=True, exist_ok=True)
    lookup.write_text(f"{name}\n")
    (server.files / name).write_bytes(two_party_call().to_bytes())

    assert sftp.get(UUID, Options(**server.options())) is None
    assert sftp.delete(UUID, Options(**server.options())) is False
    assert (server.files / name).exists()


def test_a_file_that_is_no_vcon_is_told(server: SftpServer, save: Save) -> None:
    """It is not taken for one."""
    _, opts = save(**server.options())
    (server.files / DATED).write_text("{}")

    with pytest.raises(StorageError, match=f"{DATED} is no vCon"):
        sftp.get(UUID, opts)


def test_what_is_no_uuid_never_becomes_a_name(server: SftpServer) -> None:
    """It could climb out of the folder."""
    with pytest.raises(StorageError, match="is no UUID, so it can be no file's name"):
        sftp.get("../../etc/passwd", Options(**server.options()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"url": "https://host"}, "write its name, or sftp://name"),
        ({"url": "sftp://user:s3cret@host"}, "write its name, or sftp://name"),
        ({"filename": "a/b"}, "without slashes"),
        ({"extension": ""}, "without slashes"),
        ({"fingerprint": "MD5:00"}, "as ssh-keygen -lf shows it"),
        ({"private_key": "s3cret", "private_key_path": "x"}, "not both"),
        ({"password": ""}, "give password, private_key or private_key_path"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    """With what to write, and without secrets."""
    with pytest.raises(ValidationError, match=message) as told:
        Options(**{"username": "me", "password": "s3cret", **given})

    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize(("url", "port"), [("host", 2022), ("sftp://host", 2022), ("sftp://host:2222/", 2222)])
def test_the_server_may_be_a_name_or_an_url(url: str, port: int) -> None:
    """The existing conserver took a bare name only."""
    opts = Options(url=url, port=2022, username="me", password="x")

    assert (opts.host, opts.server_port) == ("host", port)
