"""conserver.configfile: the config as a client of the API reads it and replaces it."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conserver import backups, configfile
from conserver.backups import BACKUPS, ConfigBusy, backups_of
from conserver.config import draft_config, load_config
from conserver.configfile import read_masked, replace
from conserver.errors import ConfigError
from conserver.findings import ConfigRefused, Findings
from conserver.masks import MASK, same
from conserver.yamlnodes import read_yaml
from tests.commands import Folder

CHAINS = {"main": {"links": [], "ingress_lists": ["in"]}}
CONFIG = """\
# Ours, since 2020.
ingress_auth:
  in: [hush-one, hush-two]
links:
  tag: &tag
    module: links.tag
    options:
      tags: [seen]   # once
  ask:
    <<: *tag
    options: {tags: [asked], api_key: hush-key, url: "redis://:hush-url@db/0", token: "${TOKEN:-hush-default}"}
chains:
  main: {links: [tag, ask], ingress_lists: [in]}
"""
SECRETS = ("hush-one", "hush-two", "hush-key", "hush-url", "hush-default")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(CONFIG)
    return path


def refused(path: Path, posted: Any, **env: str) -> list[tuple[str, str, str]]:
    """The errors that refuse it: nothing of the file, and nothing beside it, has changed."""
    before, beside = path.read_bytes(), sorted(backups_of(path))
    with pytest.raises(ConfigRefused) as raised:
        replace(path, posted, env)
    assert path.read_bytes() == before
    assert sorted(backups_of(path)) == beside
    return [(r.pointer, r.rule, r.message) for r in raised.value.remarks if r.level == "error"]


def meaning(path: Path) -> Any:
    """What the engine takes the file for."""
    config, findings = draft_config(path, {})
    assert [finding for finding in findings.sorted() if finding.level == "error"] == []
    return config.model_dump(exclude={"file", "folder"})


def values(path: Path) -> Any:
    findings = Findings(str(path))
    read = read_yaml(path.read_text(), None, findings)
    assert findings.sorted() == []
    return read


# Reading


def test_the_whole_file_is_read_without_its_secrets(file: Path) -> None:
    """Anchors and merges are what they mean, variables are what is written."""
    shown = read_masked(file)

    assert list(shown) == ["ingress_auth", "links", "chains"]
    assert shown["links"]["ask"]["module"] == "links.tag"
    assert shown["links"]["ask"]["options"]["url"] == f"redis://{MASK}@db/0"
    assert not any(secret in json.dumps(shown) for secret in SECRETS)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", {}),
        ("x-a: 2026-11-22\nx-b: 1:30\nx-c: 0o644\nx-d: .inf\n", ["2026-11-22", "1:30", 420, ".inf"]),
        ("5: x\ntrue: x\n2026-11-22: x\n~: x\n", {"5": "x", "true": "x", "2026-11-22": "x", "~": "x"}),
        ("x-a: !!set {a, b}\nx-b: !!binary aGk=\nx-c: !mine 5\n", [{"a": None, "b": None}, "aGk=", 5]),
        ("x-a: 0644\nx-b: {[1, 2]: a, b: c}\n", ["0644", {"b": "c"}]),
        ("x-a: &a [*a]\nx-b: {a: 1, a: 2}\n", [[None], {"a": 1}]),
        ("x-a: ${A}\nx-b: $${A}\nx-c: ${\n", ["${A}", "$${A}", "${"]),
    ],
)
def test_whatever_yaml_has_is_shown_as_json(tmp_path: Path, text: str, shown: Any) -> None:
    """Also what the check has something against: somebody has to see it to mend it."""
    path = tmp_path / "config.yml"
    path.write_text(text)

    read = read_masked(path)
    assert read == shown or list(read.values()) == shown
    json.dumps(read, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("links: {\n", r"config.yml:2:1: error\[syntax\] while parsing"),
        ("- a\n", "the file must be a mapping with links, storages and chains"),
        ("a: \x07\n", r"control character U\+0007"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_says_why(tmp_path: Path, text: str | None, said: str) -> None:
    """With line and column, as the check says it."""
    path = tmp_path / "config.yml"
    if text is not None:
        path.write_text(text)

    with pytest.raises(ConfigError, match=said):
        read_masked(path)


# Replacing


def test_what_was_read_changes_nothing(file: Path) -> None:
    """The file is not touched, so nobody has to look at it again."""
    before = file.stat()

    done = replace(file, json.loads(json.dumps(read_masked(file))), {})

    assert done.backup is None
    assert done.remarks == ()
    assert file.stat() == before
    assert file.read_text() == CONFIG


def test_what_is_masked_stays_and_the_rest_is_replaced(file: Path) -> None:
    """The file that was is beside it, with its comments."""
    posted = read_masked(file)
    posted["chains"]["main"]["egress_lists"] = ["out"]
    posted["ingress_auth"]["in"][0] = "new"

    done = replace(file, posted, {})

    assert done.backup is not None
    assert done.backup.read_text() == CONFIG
    assert {remark.rule for remark in done.remarks} >= {"unknown-option"}
    assert {remark.pointer for remark in done.remarks if remark.rule == "unknown-option"} >= {
        "/links/ask/options/api_key"
    }
    new = values(file)
    assert new["ingress_auth"] == {"in": ["new", "hush-two"]}
    assert new["links"]["ask"]["options"]["url"] == "redis://:hush-url@db/0"
    assert new["chains"]["main"]["egress_lists"] == ["out"]
    assert MASK not in file.read_text()
    assert load_config(file, {})[0] is not None


def test_the_check_accepts_what_was_written(tmp_path: Path) -> None:
    """The command that a person would type says the same."""
    folder = Folder(tmp_path, config=CONFIG)
    replace(tmp_path / "config.yml", read_masked(tmp_path / "config.yml") | {"x-new": ["012", "yes"]}, {})

    checked = folder.run("check", "config.yml")

    assert checked.returncode == 0, checked.stdout
    assert "0 errors" in checked.stdout


def test_a_client_may_replace_the_config_for_a_while(file: Path) -> None:
    """It reads, replaces and restores, as load testers do, and the secrets that it never saw are there again."""
    meant = meaning(file)
    saved = json.loads(json.dumps(read_masked(file)))
    replace(file, {"links": {"t": {"module": "links.tag"}}, "chains": CHAINS | {"load": {"links": ["t"]}}}, {})
    replace(file, {"chains": {"load": {"links": []}}}, {})

    replace(file, saved, {})

    assert meaning(file) == meant
    assert file.read_text() == CONFIG
    assert len(backups_of(file)) == 3


def test_a_module_of_a_backup_may_come_back(tmp_path: Path) -> None:
    """Restoring names what the file named before it was replaced."""
    path = tmp_path / "config.yml"
    path.write_text("imports: {j: json}\nchains: {main: {links: []}}\n")
    saved = read_masked(path)
    replace(path, {"chains": CHAINS}, {})

    replace(path, saved, {})

    assert read_masked(path) == saved


def test_a_secret_that_was_changed_by_hand_is_not_undone(file: Path) -> None:
    """A mask means the secret of the file, also where the config is otherwise that of a backup."""
    posted = read_masked(file)
    replace(file, posted | {"x-other": 1}, {})
    file.write_text(file.read_text().replace("hush-key", "fresh-key"))

    replace(file, posted, {})

    assert "x-other" not in values(file)
    assert values(file)["links"]["ask"]["options"]["api_key"] == "fresh-key"


def test_a_mask_that_means_nothing_is_refused(file: Path) -> None:
    """Its place is named, and the file is as it was."""
    posted = read_masked(file)
    posted["links"]["renamed"] = posted["links"].pop("ask")
    posted["chains"]["main"]["links"] = ["tag", "renamed"]

    found = refused(file, posted)
    assert [place for place, _, _ in found] == [
        f"/links/renamed/options/{name}" for name in ("api_key", "url", "token")
    ]
    assert {rule for _, rule, _ in found} == {"masked"}


def test_the_quotes_of_a_variable_are_kept(tmp_path: Path) -> None:
    """They say whether its digits are text or a number."""
    path = tmp_path / "config.yml"
    path.write_text("x-a:\n  p: ${N}\n  q: '${N}'\nchains: {main: {links: []}}\n")

    replace(path, read_masked(path) | {"x-new": "${N}"}, {"N": "5"})

    lines = path.read_text().splitlines()
    assert [line for line in lines if "N" in line] == ["  p: ${N}", "  q: '${N}'", "x-new: ${N}"]


def test_a_broken_file_can_be_mended(tmp_path: Path) -> None:
    """Nothing is known of what stands in it, and it is kept."""
    path = tmp_path / "config.yml"
    path.write_text("links: {\n")

    done = replace(path, {"chains": CHAINS}, {})

    assert done.backup is not None
    assert done.backup.read_text() == "links: {\n"
    assert values(path) == {"chains": CHAINS}
    assert refused(path, {"chains": CHAINS, "links": {"x": MASK}})[0][0] == "/links/x"


def test_what_is_read_of_a_file_with_mistakes_mends_it(tmp_path: Path) -> None:
    """Though it says the same, it is written."""
    path = tmp_path / "config.yml"
    path.write_text("x-a: 0644\nx-b: {a: 1, a: 2}\nchains: {main: {links: []}}\n")

    replace(path, read_masked(path), {})

    assert values(path) == {"x-a": "0644", "x-b": {"a": 1}, "chains": {"main": {"links": []}}}


# What is refused


def test_every_finding_of_the_check_refuses_with_its_place(file: Path) -> None:
    """As JSON pointers into what was posted; the warnings come with them."""
    posted = {
        "links": {"t/1": {"module": "links.delay", "options": {"seconds": ["soon"]}}, "u": {"options": {}}},
        "chains": {"main": {"links": ["t/1", "v"], "timeout": "long"}},
    }

    found = refused(file, posted)
    assert {(place, rule) for place, rule, _ in found} == {
        ("/links/t~11/options/seconds", "bad-options"),
        ("/links/u", "missing-field"),
        ("/chains/main/links/1", "unknown-link"),
        ("/chains/main/timeout", "wrong-type"),
    }
    with pytest.raises(ConfigRefused, match="/chains/main/links/1: chain 'main' uses link 'v', which is not defined"):
        replace(file, posted, {})


def test_a_variable_that_is_not_set_is_refused(file: Path) -> None:
    """The workers would start with nothing in its place."""
    posted = {"chains": {"main": {"links": [], "ingress_lists": ["${LIST}"]}}}

    assert [(p, r) for p, r, _ in refused(file, posted)] == [("/chains/main/ingress_lists/0", "missing-env")]
    assert replace(file, posted, {"LIST": "in"}).backup


def test_a_config_without_chains_is_refused(file: Path) -> None:
    """The conserver would not take it over, so the answer may not be that it is in force."""
    assert [(p, r) for p, r, _ in refused(file, {})] == [("/chains", "no-chains")]


@pytest.mark.parametrize(
    ("posted", "place", "said"),
    [
        ([], "", "must be an object"),
        (None, "", "must be an object"),
        ({"x-a": ["\ud800"]}, "/x-a/0", "half of a surrogate pair"),
        ({"x-a": {"\udc00": 1}}, "/x-a", "half of a surrogate pair"),
        ({"x-a": float("nan")}, "/x-a", "no number of JSON"),
        ({"x-a": 10**400}, "/x-a", "more than 300 digits"),
        ({"x-a": {5: 1}}, "/x-a", "has a key that is no text"),
        ({"x-a": {1, 2}}, "/x-a", "is a set"),
        ({"x-a": "a" * (6 * 1024 * 1024)}, "", "larger than 5 MB"),
    ],
)
def test_what_no_file_can_hold_is_refused(file: Path, posted: Any, place: str, said: str) -> None:
    """Before anything of it is looked at."""
    found = refused(file, posted)

    assert found[0][0] == place
    assert said in found[0][2]


def test_a_text_that_grows_when_it_is_written_has_the_same_bound(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conserver could not read it any more."""
    monkeypatch.setattr(configfile, "MAX_BYTES", 1000)

    assert [(p, r) for p, r, _ in refused(file, {"x-a": "\x01" * 400, "chains": CHAINS})] == [("", "too-large")]
    assert refused(file, {"x-a": [{}] * 500, "chains": CHAINS})[0][1] == "too-large"


def test_depth_has_a_bound(file: Path) -> None:
    """The deepest that is taken is the deepest that is read."""

    def nested(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = [value]
        return {"x-deep": value, "chains": CHAINS}

    assert "deeper than 100 levels" in refused(file, nested(100))[0][2]
    assert "deeper than 100 levels" in refused(file, nested(100_000))[0][2]
    assert replace(file, nested(99), {}).backup
    assert values(file) == nested(99)


# Modules


@pytest.fixture
def beside(file: Path) -> Callable[[str, str], None]:
    """Write a module beside the config; when it is imported, it leaves a mark."""

    def write(name: str, text: str = "") -> None:
        path = file.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mark = f"open({str(file.parent / 'imported')!r}, 'a').close()\n"
        path.write_text(f"{mark}def run(vcon_uuid, link_name, opts):\n    return vcon_uuid\n{text}")

    return write


def with_link(module: str) -> dict[str, Any]:
    return {"links": {"x": {"module": module}}, "chains": {"main": {"links": ["x"]}}}


@pytest.mark.parametrize(
    "module", ["mine", "os", "links", "links..mine", "links.mine.", "links.__mine__", "${M:-mine}"]
)
def test_no_module_of_the_machine_can_be_named(file: Path, beside: Callable[..., None], module: str) -> None:
    """It is not even imported to see whether it is a link."""
    beside("mine.py")

    assert [(p, r) for p, r, _ in refused(file, with_link(module))] == [("/links/x/module", "foreign-module")]
    assert not (file.parent / "imported").exists()


@pytest.mark.parametrize("imports", [{"m": "mine"}, {"m": {"module": "mine"}}])
def test_no_module_can_be_imported_on_its_own(file: Path, beside: Callable[..., None], imports: Any) -> None:
    """Under `imports` as under links."""
    beside("mine.py")

    found = refused(file, {"imports": imports, "chains": CHAINS})
    assert [(p.split("/")[1:3], r) for p, r, _ in found] == [(["imports", "m"], "foreign-module")]
    assert not (file.parent / "imported").exists()


def test_a_module_that_the_file_names_may_be_named_again(file: Path, beside: Callable[..., None]) -> None:
    """Whoever wrote the file has allowed it."""
    beside("mine.py")
    file.write_text("links: {x: {module: mine}}\nchains: {main: {links: [x]}}\n")
    posted = with_link("mine")
    posted["links"]["y"] = {"module": "mine"}

    assert replace(file, posted, {}).backup
    assert (file.parent / "imported").exists()


def test_a_link_beside_the_file_may_be_named(file: Path, beside: Callable[..., None]) -> None:
    """The folder `links` is where links are."""
    beside("links/own.py")

    assert replace(file, with_link("links.own"), {}).backup


def test_an_entry_point_may_be_named(file: Path, beside: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that brings links says so by itself, for links only."""
    beside("packaged.py")
    info = file.parent / "packaged-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[conserver.links]\nspeech = packaged\n")
    monkeypatch.syspath_prepend(str(file.parent))

    storage = {"storages": {"x": {"module": "speech"}}, "chains": CHAINS}
    assert [(p, r) for p, r, _ in refused(file, storage)] == [("/storages/x/module", "foreign-module")]
    assert replace(file, with_link("speech"), {}).backup


@pytest.mark.parametrize(
    ("section", "module", "rule"),
    [
        ("links", "links.nowhere", "missing-package"),
        ("storages", "storage.nowhere", "missing-package"),
        ("storages", "storages.nowhere", "missing-package"),
        ("tracers", "tracers.nowhere", "not-built"),
    ],
)
def test_what_is_not_installed_is_refused(file: Path, section: str, module: str, rule: str) -> None:
    """With what to install, and nothing is installed."""
    posted = {section: {"x": {"module": module, "pip_name": "none-such"}}, "chains": CHAINS}

    found = refused(file, posted)
    assert [(p.split("/")[1:3], r) for p, r, _ in found] == [([section, "x"], rule)]
    assert rule == "not-built" or "(pip install 'none-such')" in found[0][2]


def test_what_is_not_built_yet_may_stay(file: Path) -> None:
    """The file named it before, so a client may restore it."""
    file.write_text("tracers: {x: {module: tracers.audit}}\nchains: {main: {links: []}}\n")
    posted = read_masked(file)
    posted["chains"]["main"]["ingress_lists"] = ["in"]

    done = replace(file, posted, {})
    assert ("/tracers/x", "warning", "not-built") in {(r.pointer, r.level, r.rule) for r in done.remarks}


@pytest.mark.parametrize(
    "where", ["host=database.example.com user=conserver password=hush-where", "host=database bearer hush-bearer-1"]
)
def test_no_refusal_repeats_a_secret(file: Path, beside: Callable[..., None], where: str) -> None:
    """Whoever posts a mask does not learn from a mistake what is behind it."""
    beside("links/own.py", "from pydantic import BaseModel\nclass Options(BaseModel):\n    where: int\n    n: int\n")
    options = f"{{where: {where}, n: 1}}"
    file.write_text(f"links: {{x: {{module: links.own, options: {options}}}}}\nchains: {{main: {{links: [x]}}}}")
    posted = read_masked(file)
    posted["links"]["x"]["options"]["n"] = 2

    found = refused(file, posted)
    assert [(p, r) for p, r, _ in found] == [("/links/x/options/where", "bad-options")]
    assert "host=database" in found[0][2]
    assert "hush" not in found[0][2]


# The file


def test_backups_are_kept_up_to_a_number(file: Path) -> None:
    """The newest; and what somebody else has put there stays."""
    other = file.with_name("config.yml.mine.bak")
    other.write_text("")
    for number in range(BACKUPS + 3):
        replace(file, {"chains": CHAINS, "x-n": number}, {})

    found = backups_of(file)
    assert [values(path)["x-n"] for path in found] == list(range(BACKUPS + 1, 1, -1))
    assert other.exists()
    assert len(list(file.parent.iterdir())) == BACKUPS + 3  # with the file, the lock and the other


def test_a_clock_that_was_set_back_costs_no_backup(file: Path) -> None:
    """The one just made stays, although it seems the oldest."""
    for number in range(BACKUPS):
        file.with_name(f"config.yml.2999010{number}T000000.000000Z.bak").write_text("")

    done = replace(file, {"chains": CHAINS}, {})

    assert done.backup is not None
    assert done.backup.read_text() == CONFIG
    assert len(backups_of(file)) == BACKUPS


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_who_may_read_the_file_stays_the_same(file: Path, mode: int) -> None:
    """Of the file, and of its backup, which has the same secrets."""
    file.chmod(mode)
    if os.geteuid() == 0:
        os.chown(file, 12345, 23456)
    before = file.stat()

    backup = replace(file, {"chains": CHAINS}, {}).backup

    assert backup is not None
    for found in (file.stat(), backup.stat()):
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, before.st_uid, before.st_gid)


def test_the_target_of_a_link_is_replaced(tmp_path: Path, beside: Callable[..., None], file: Path) -> None:
    """The link stays a link, and modules are looked for beside it, as the conserver does."""
    beside("links/own.py")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = file.rename(elsewhere / "real.yml")
    file.symlink_to(target)

    backup = replace(file, with_link("links.own"), {}).backup

    assert file.is_symlink()
    assert values(target) == with_link("links.own")
    assert backup is not None
    assert backup.parent == elsewhere
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.yml", "elsewhere", "imported", "links"]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be somebody who may not write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_file_or_folder_that_is_read_only_is_said_so() -> None:
    """Somebody mounted it so, and meant it."""
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "config.yml"
        path.write_text(CONFIG)
        path.chmod(0o444)
        folder.chmod(0o755)

        with pytest.raises(ConfigError, match="is read-only for this process"):
            replace(path, {"chains": CHAINS}, {})
        path.chmod(0o666)
        folder.chmod(0o555)
        with as_nobody(), pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\)"):
            replace(path, {"chains": CHAINS}, {})
        folder.chmod(0o755)
        assert [entry.name for entry in folder.iterdir()] == ["config.yml"]


def test_a_file_that_is_gone_is_not_made(tmp_path: Path) -> None:
    """It is more likely that its name is wrong."""
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        replace(tmp_path / "config.yml", {"chains": CHAINS}, {})

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_mounted_alone_is_said_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can take its place, and nothing of the attempt stays."""

    def busy(*_: Any) -> NoReturn:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(backups.Path, "replace", busy)
    with pytest.raises(ConfigError, match="mounted as a single file, so mount its folder"):
        replace(file, {"chains": CHAINS}, {})

    assert file.read_text() == CONFIG
    assert sorted(entry.name for entry in file.parent.iterdir()) == [".config.yml.lock", "config.yml"]


def test_an_edit_during_the_check_is_not_lost(file: Path, beside: Callable[..., None]) -> None:
    """Somebody saves the file in an editor while the modules are imported."""
    beside("links/own.py", f"open({str(file)!r}, 'a').write('# edited\\n')\n")

    with pytest.raises(ConfigBusy, match="was changed by somebody else"):
        replace(file, with_link("links.own"), {})

    assert file.read_text() == CONFIG + "# edited\n"
    assert backups_of(file) == []


def test_one_after_the_other_replaces_it(file: Path) -> None:
    """Threads and processes: each state that was answered with success has been the file, and none is lost."""
    code = (
        "import sys; from pathlib import Path; from conserver.configfile import replace\n"
        "for n in range(2):\n"
        "    replace(Path(sys.argv[1]), {'chains': {'main': {'links': []}}, 'x-n': f'{sys.argv[2]}{n}'}, {})"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(file), name]) for name in "ab"]

    def thread(name: str) -> None:
        for number in range(2):
            replace(file, {"chains": CHAINS, "x-n": f"{name}{number}"}, {})

    threads = [threading.Thread(target=thread, args=(name,)) for name in "cd"]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)

    assert [process.wait(60) for process in processes] == [0, 0]
    states = [values(path).get("x-n") for path in [file, *backups_of(file)]]
    assert sorted(states, key=str) == sorted([None, *(f"{name}{n}" for name in "abcd" for n in range(2))], key=str)


def test_who_waits_too_long_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the lock is free again when the other is done, also after an error."""
    monkeypatch.setattr(backups, "LOCK_SECS", 0.1)

    with pytest.raises(ZeroDivisionError), backups.alone(file):  # noqa: PT012
        with pytest.raises(ConfigBusy, match="somebody else has been replacing"):
            replace(file, {"chains": CHAINS}, {})
        raise ZeroDivisionError

    assert replace(file, {"chains": CHAINS}, {}).backup


def test_a_fork_does_not_keep_the_lock(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was started meanwhile may have it open for as long as it lives."""
    monkeypatch.setattr(backups, "LOCK_SECS", 0.1)
    lock = str(file.with_name(".config.yml.lock"))

    with backups.alone(file):
        opened = next(int(fd.name) for fd in Path("/proc/self/fd").iterdir() if os.path.realpath(fd) == lock)
        copy = os.dup(opened)  # shares the lock, as a fork does
    try:
        assert replace(file, {"chains": CHAINS}, {}).backup
    finally:
        os.close(copy)


def test_who_is_reading_the_file_reads_one_of_them(file: Path) -> None:
    """What was opened stays what it was, to its end."""
    with file.open() as opened:
        start = opened.read(5)
        replace(file, {"chains": CHAINS, "x-long": "x" * 20_000}, {})

        assert start + opened.read() == CONFIG


DIES = """
import json, os, signal, sys
from pathlib import Path
from conserver import configfile
file = Path(sys.argv[1])
before = file.read_bytes()
def deadly(function):
    def call(*args, **more):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **more)
    return call
for turn in range(1, 60):
    file.write_bytes(before)
    child = os.fork()
    if not child:
        left = turn
        for name in ("open", "fchmod", "fsync", "replace", "rename", "unlink", "close"):
            setattr(os, name, deadly(getattr(os, name)))
        configfile.replace(file, {"chains": {"main": {"links": []}}, "x-n": turn}, {})
        os._exit(0)
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([turn, died, file.read_text(), [old.read_text() for old in configfile.backups_of(file)][:1]]))
    if not died:
        break
"""


def test_a_kill_in_the_middle_leaves_a_whole_file(file: Path) -> None:
    """At every step of it the file is the old one or the new one, and the next one can replace it."""
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(file)], capture_output=True, text=True, check=True, timeout=60
    )

    states = [json.loads(line) for line in done.stdout.splitlines()]
    new = "chains:\n  main:\n    links: []\nx-n: {}\n"
    assert {died for _, died, _, _ in states[:-1]} == {-signal.SIGKILL}
    assert states[-1][1:] == [0, new.format(states[-1][0]), [CONFIG]]
    assert {text == CONFIG for _, died, text, _ in states if died} == {True, False}
    for turn, _, text, backup in states:
        assert text == CONFIG or (text, backup) == (new.format(turn), [CONFIG])
    assert not [entry for entry in file.parent.iterdir() if entry.name.endswith((".draft", ".spare"))]


# Round trips

TRAPS = [
    *("yes", "no", "on", "null", "~", "", "true", "012", "089", "-01", "1e3", "0o644", "0x1F", ".inf", "1_000", "1:30"),
    *("2026-11-22", "<<", "=", "- a", "a: b", "a:", ":a", "# x", "a #b", " lead", "trail ", "\ttab", "two\nlines"),
    *("\n", "a\n\n\nb\n\n", " \n a", "a\r\nb", "\x85", "a\u2028b", "\ufeff", "\x7f", "\x00", "é", "\U0001f600"),
    *("*a", "&a", "!x", "%d", "@", "`", "{a}", "[a]", "|", ">", "'", '"', "---", "...", "?", "-", "\\", "${A}", "$$"),
    *("${", "${A:-: }", "${A:-b}", "9" * 400),
]
TEXTS = st.one_of(
    st.sampled_from(TRAPS),
    st.lists(st.sampled_from(TRAPS), max_size=3).map("".join),
    st.text(max_size=20),
    st.text(alphabet="0123456789eE+-._xob~:,#'\"\n \t[]{}&*!|>%@`\\$", max_size=10),
).filter(lambda text: not re.search(r"\$\{(?!A\}|A:-)", text))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=15,
)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=JSON)
def test_any_json_is_read_as_what_was_posted(file: Path, value: Any) -> None:
    """By the same reader that the engine has; and what is then shown puts the same back."""
    posted = {"x-any": value, "chains": CHAINS}

    replace(file, posted, {"A": "a"})

    assert same(values(file), posted)
    before = file.read_text()
    assert replace(file, read_masked(file), {}).backup is None
    assert file.read_text() == before


@pytest.mark.parametrize("text", TRAPS)
def test_a_text_stays_text(file: Path, text: str) -> None:
    """As a value, in a list, and as a key, also for a reader of YAML 1.1."""
    import yaml

    posted = {"x-a": text, "x-b": [text, {text: text}], "chains": CHAINS}
    env = {"A": "a"}
    if text == "${":
        assert refused(file, posted, **env)[0][:2] == ("/x-a", "bad-value")
        return

    replace(file, posted, env)

    assert values(file) == posted
    assert yaml.safe_load(file.read_text()) == posted
