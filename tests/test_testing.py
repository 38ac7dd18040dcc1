"""conserver.testing: what authors of links and storages import in their tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conserver import Vcon
from conserver.testing import (
    DATA_RULES,
    STORAGE_RULES,
    UNREACHABLE,
    difference,
    run_link,
    storage_contract,
    try_link,
    two_party_call,
)

LINK = '''
"""A link of a test."""

from conserver import Vcon, derived_uuid, push, vcons

default_options = {"mode": "tag", "words": []}
runs = []


def run(vcon_uuid, link_name, opts):
    runs.append(vcon_uuid)
    with vcons.edit(vcon_uuid) as vcon:
        if opts["mode"] == "grow":
            vcon.add_analysis(type="count", dialog=None, vendor="test", body="again")
        if opts["mode"] == "tag":
            vcon.add_tag("by", link_name)
    if opts["mode"] == "push":
        push("elsewhere", vcon_uuid)
        push(f"run_{len(runs)}", vcon_uuid)
    if opts["mode"] == "expire":
        vcons.expire(vcon_uuid, 60)
    if opts["mode"] == "derive":
        new = Vcon.build_new()
        new.document["uuid"] = derived_uuid(vcon_uuid, "copy")
        vcons.save(new)
        return new.uuid
    return {"number": 7, "stop": None}.get(opts["mode"], vcon_uuid)
'''
STORAGE = '''
"""A storage of a test: a folder, with the mistakes that its options ask for."""

import json
import pathlib
import threading

from conserver import vcons

default_options = {"folder": "", "mistake": "", "saved": []}


def _file(uuid, opts):
    return pathlib.Path(opts["folder"], uuid)


def save(vcon_uuid, opts):
    mistake = opts["mistake"]
    if mistake == "swallows":
        try:
            vcons.get(vcon_uuid)
        except Exception:
            return
    if mistake == "options":
        opts["saved"].append(vcon_uuid)
    document = vcons.get(vcon_uuid).document
    if mistake == "mixed":
        document["subject"] = "of another version"
    file = _file(vcon_uuid, opts)
    if mistake == "first" and file.exists():
        return
    if mistake == "merges" and file.exists():
        old = json.loads(file.read_text())
        document["dialog"] += old["dialog"][len(document["dialog"]) :]
    if mistake == "small" and len(str(document)) > 1_000_000:
        raise ValueError("too large")
    text = json.dumps(document)
    if mistake == "ascii":
        text = json.dumps(document, ensure_ascii=False).encode("ascii", "replace").decode()
    if mistake == "surrogates":
        text = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace").decode()
    if mistake == "floats":
        text = json.dumps(json.loads(text, parse_int=lambda digits: int(float(digits))))
    if mistake == "two":
        file.with_name(f"{vcon_uuid}.copy").write_text(text)
    draft = file.with_name(f"{vcon_uuid}.{threading.get_ident()}")
    draft.write_text(text)
    draft.rename(file)


def get(vcon_uuid, opts):
    for file in (_file(vcon_uuid, opts), _file(f"{vcon_uuid}.copy", opts)):
        if file.exists():
            document = json.loads(file.read_text())
            if opts["mistake"] == "id":
                document["_id"] = vcon_uuid
            return document
    return {} if opts["mistake"] == "empty" else None


def delete(vcon_uuid, opts):
    if opts["mistake"] == "all":
        for file in pathlib.Path(opts["folder"]).iterdir():
            file.unlink()
        return True
    if not _file(vcon_uuid, opts).exists():
        return False
    _file(vcon_uuid, opts).unlink()
    return None if opts["mistake"] == "nothing told" else True


def ping(opts):
    if opts["mistake"] == "ping":
        raise ValueError("no answer")
'''
CALL = {"vcon": "0.4.0", "uuid": "0190c0de-1234-8567-8000-000000000001", "parties": [], "subject": "from a file"}


@pytest.fixture(autouse=True)
def modules(tmp_path_factory, monkeypatch):
    # Not where the storage keeps its files: Python writes its own beside a module.
    folder = tmp_path_factory.mktemp("modules")
    (folder / "link_of_test.py").write_text(LINK)
    (folder / "storage_of_test.py").write_text(STORAGE)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in ("link_of_test", "storage_of_test"):
        sys.modules.pop(name, None)


# run_link and try_link


def test_run_link_returns_the_vcon_that_the_link_leaves():
    """The vCon after the run, with the options bound as in a chain."""
    vcon = run_link("link_of_test")

    assert vcon.tags == ["by:link"]


@pytest.mark.parametrize("kind", ["file", "text", "document", "vcon"])
def test_a_link_runs_on_a_file_a_document_or_a_vcon(tmp_path, kind):
    """All ways to give a vCon end in the same run, and what was given stays as it was."""
    path = tmp_path / "call.vcon"
    path.write_text(json.dumps(CALL))
    given = {"file": path, "text": str(path), "document": dict(CALL), "vcon": Vcon(dict(CALL))}[kind]

    trial = try_link("link_of_test", on=given)

    assert trial.vcon.subject == "from a file"
    assert trial.before.document == CALL
    assert given not in ({**CALL, "attachments": []}, trial.vcon)


def test_a_file_that_is_not_there_is_told_with_the_places():
    """The message says where it was looked for."""
    with pytest.raises(
        FileNotFoundError, match=r"there is no vCon none.vcon: looked for /.*none.vcon, /beside/none.vcon"
    ):
        try_link("link_of_test", on="none.vcon", beside=Path("/beside"))


def test_a_trial_has_the_pushes_and_the_expiry():
    """What a chain would do when it settles is told, not done."""
    pushed = try_link("link_of_test", {"mode": "push"})
    expiring = try_link("link_of_test", {"mode": "expire"})

    assert ("elsewhere", pushed.before.uuid) == pushed.pushes[0]
    assert expiring.expire_secs == 60


def test_a_stopped_vcon_is_the_one_that_was_given():
    """None is the result; the vCon is still there to look at."""
    trial = try_link("link_of_test", {"mode": "stop"})

    assert trial.result is None
    assert trial.before == trial.vcon


def test_the_vcon_of_a_link_that_makes_another_is_that_one():
    """The chain goes on with the vCon that the link returned, the same one in a second run."""
    trial = try_link("link_of_test", {"mode": "derive"}, times=2)

    assert trial.before.uuid != trial.result == trial.vcon.uuid


def test_a_second_run_that_adds_something_is_told():
    """`times=2` finds a link that is not idempotent, and says what it changed."""
    with pytest.raises(AssertionError, match="link_of_test: a second run changed more: /analysis/2: added"):
        run_link("link_of_test", {"mode": "grow"}, times=2)


def test_a_second_run_that_pushes_elsewhere_is_told():
    """The pushes of two runs are the same."""
    with pytest.raises(AssertionError, match=r"link_of_test: pushes of a second run: .*run_2.*, of the first: .*run_1"):
        run_link("link_of_test", {"mode": "push"}, times=2)


def test_a_result_that_is_no_uuid_is_told():
    """A chain would make a dead letter of it."""
    with pytest.raises(AssertionError, match="link_of_test: run must return a UUID or None, not 7"):
        run_link("link_of_test", {"mode": "number"})


def test_each_trial_begins_with_an_empty_store():
    """Nothing of one run is seen by the next, and a vCon may be used again."""
    call = two_party_call()
    run_link("link_of_test", on=call)

    again = run_link("link_of_test", {"mode": "none"}, on=call)

    assert again.tags == []


def test_the_fixture_finds_files_beside_the_test(tmp_path, modules):
    """As in the guide: a plugin, a test and a vCon beside it."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "two_party_call.vcon").write_text(json.dumps(CALL))
    (folder / "conftest.py").write_text('pytest_plugins = ["conserver.testing"]\n')
    (folder / "test_mine.py").write_text(
        "def test_mine(run_link):\n"
        '    vcon = run_link("link_of_test", on="two_party_call.vcon", times=2)\n'
        '    assert ("from a file", ["by:link"]) == (vcon.subject, vcon.tags)\n'
    )

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "--rootdir", tmp_path, folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(modules), str(Path(__file__).parents[1])])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


# difference


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}, ""),
        ({"a": [1]}, {"a": [1, 2]}, "/a/1: added"),
        ({"a": 1, "b": 2}, {"a": 1}, "/b: removed"),
        ({"a": {"b": "x"}}, {"a": {"b": "y"}}, "/a/b: 'x' became 'y'"),
        ([1], [1.0], "/0: 1 became 1.0"),
        ([1], [True], "/0: 1 became True"),
        ({}, [], ": {} became []"),
    ],
)
def test_the_first_difference_is_named(one, other, told):
    """A JSON pointer and what happened there; 1, 1.0 and true are not the same."""
    assert told == difference(one, other)


# storage_contract


def test_a_good_storage_keeps_every_rule(tmp_path):
    """All rules but those that need a server in trouble are checked."""
    checked = storage_contract("storage_of_test", {"folder": str(tmp_path)})

    assert list(DATA_RULES) == checked


def test_half_a_version_is_told(tmp_path):
    """What many saves of one vCon leave is one of its versions."""
    with pytest.raises(AssertionError, match=r"16 saves of one vCon left {'vcon'.*, which is none of its versions"):
        storage_contract(
            "storage_of_test",
            {"folder": str(tmp_path), "mistake": "mixed"},
            rules=["16 threads may save one vCon at once"],
        )


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("swallows", "a missing vCon is an error: save of a vCon that does not exist must raise VconNotFound"),
        ("options", "the options stay as they are: save changed its options"),
        ("id", "what is saved comes back: what get returned is not what was saved: /_id: added"),
        ("empty", "an unknown UUID is None: get returned {}, not None"),
        ("first", "saved twice is one record, the later one: what get returned is not what was saved: /created_at"),
        (
            "two",
            "saved twice is one record, the later one: a vCon that was saved twice is still there after one delete",
        ),
        ("merges", "a vCon may shrink: what get returned is not what was saved: /dialog/1: added"),
        ("ascii", "unicode comes back: what get returned is not what was saved: "),
        (
            "surrogates",
            "text that databases dislike comes back: what get returned is not what was saved: /parties/0/name",
        ),
        ("floats", "numbers come back exactly: what get returned is not what was saved: /x_numbers/0"),
        ("small", "5 MB come back: too large"),
        ("all", "a deleted vCon is gone: delete returned True, not False, for a vCon that is gone"),
        ("nothing told", "a deleted vCon is gone: delete returned None, not True, for a vCon that was saved"),
        ("ping", "ping says that it works: no answer"),
    ],
)
def test_a_mistake_is_told_with_its_rule(tmp_path, mistake, message):
    """Each rule finds the storage that breaks it."""
    with pytest.raises(AssertionError) as told:
        storage_contract("storage_of_test", {"folder": str(tmp_path), "mistake": mistake})

    assert str(told.value).startswith(f"storage_of_test: {message}")


def test_a_storage_that_hides_a_missing_server_is_told(tmp_path):
    """With options that lead nowhere, a save that succeeds is a mistake."""
    with pytest.raises(AssertionError, match=f"{UNREACHABLE}: save raised nothing although the server"):
        storage_contract("storage_of_test", {"folder": str(tmp_path)}, unreachable={"mistake": ""})


@pytest.mark.parametrize("cause", ["", " from ValueError(opts['url'])"], ids=["message", "cause"])
def test_a_secret_in_a_message_is_told(modules, cause):
    """The rules about trouble look into the errors, and into what a traceback shows with them."""
    message = "cannot reach the server" if cause else "cannot reach {opts['url']}"
    (modules / "telling_storage.py").write_text(
        "from conserver import StorageError\n"
        "default_options = {}\n"
        "def save(vcon_uuid, opts):\n"
        f'    raise StorageError(f"{message}"){cause}\n'
    )
    url = "db://user:s3cret@nowhere"

    with pytest.raises(AssertionError, match="the message of the error holds a secret") as told:
        storage_contract("telling_storage", rules=[UNREACHABLE], unreachable={"url": url}, secrets=["s3cret"])

    assert "s3cret" not in str(told.value)


class Server:
    """A server in name: the storage below works while its file is there."""

    def __init__(self, folder: Path, *, forgetful: bool = False) -> None:
        self.up = folder / "up"
        self.up.touch()
        self._forgetful = forgetful

    def stop(self) -> None:
        self.up.unlink()

    def start(self) -> None:
        if self._forgetful:
            for file in self.up.parent.glob("*-*"):
                file.unlink()
        self.up.touch()


WITH_SERVER = '''
"""A storage with a server."""

import pathlib
import time

from conserver import StorageError
from storage_of_test import get
from storage_of_test import save as _save

default_options = {"folder": "", "mistake": "", "saved": []}
fell = False


def _check(opts, of):
    global fell
    up = pathlib.Path(opts["folder"], "up").exists()
    fell = fell or not up
    if opts["mistake"] == f"slow {of}" and not up:
        time.sleep(2.5)
    if opts["mistake"] == "stays away" and fell:
        up = False
    if not up and opts["mistake"] == f"other {of}":
        raise ConnectionResetError("cut")
    if not up and opts["mistake"] != f"silent {of}":
        raise StorageError("it is away")


def save(vcon_uuid, opts):
    _check(opts, "save")
    _save(vcon_uuid, opts)


def ping(opts):
    _check(opts, "ping")
'''
PING_RULE, KILL_RULE = STORAGE_RULES[-2:]


@pytest.fixture
def with_server(tmp_path, modules):
    """The contract of a storage whose server is given, with a mistake."""
    (modules / "server_storage.py").write_text(WITH_SERVER)
    yield lambda mistake="", timeout_secs=30.0, **server: storage_contract(
        "server_storage",
        {"folder": str(tmp_path), "mistake": mistake},
        rules=[PING_RULE, KILL_RULE],
        backend=Server(tmp_path, **server),
        timeout_secs=timeout_secs,
    )
    sys.modules.pop("server_storage", None)


def test_a_storage_that_comes_back_with_its_server_keeps_the_rules(with_server):
    """Both rules about a server that is away are checked."""
    assert with_server() == [PING_RULE, KILL_RULE]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("silent ping", f"{PING_RULE}: ping raised nothing although the server cannot be used"),
        ("other ping", f"{PING_RULE}: ping raised ConnectionResetError, not StorageError: cut"),
        ("slow ping", f"{PING_RULE}: ping took 2.5 s, more than 2 s"),
        ("stays away", f"{PING_RULE}: 2 s after its start: it is away"),
        ("silent save", f"{KILL_RULE}: save raised nothing although the server was killed"),
        ("other save", f"{KILL_RULE}: save raised ConnectionResetError, not StorageError: cut"),
    ],
)
def test_a_mistake_with_a_server_that_is_away_is_told(with_server, mistake, message):
    """Each rule finds the storage that breaks it."""
    with pytest.raises(AssertionError) as told:
        with_server(mistake, timeout_secs=2.0)

    assert str(told.value) == f"server_storage: {message}"


def test_what_a_killed_server_loses_is_told(with_server):
    """A save that was lost by the kill is found."""
    with pytest.raises(AssertionError, match=f"{KILL_RULE}: get returned None for a vCon that was saved"):
        with_server(forgetful=True)


def test_rules_about_what_a_storage_lacks_are_passed_over(tmp_path, modules):
    """A storage that only saves is checked for what it does."""
    (modules / "write_only_storage.py").write_text(
        "from conserver import vcons\ndef save(vcon_uuid, opts):\n    vcons.get(vcon_uuid)\n"
    )

    checked = storage_contract("write_only_storage")

    assert checked == [
        "a vCon can be saved",
        "a missing vCon is an error",
        "the options stay as they are",
        "16 threads may save at once",
    ]
