"""Trying links and chains without anything around them."""

from __future__ import annotations

import json
import os
import sys
import uuid as uuids
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conserver.errors import ConfigError, NotAVcon
from conserver.settings import Settings
from conserver.trial import Trial
from conserver.tryout import plan, try_out

CONFIG = """\
links:
  first: {module: links.first}
  tag: {module: links.tag, options: {tags: [a]}, when: {has_tag: vip}}
  last: {module: links.last}
storages:
  broken: {module: storages.broken}
chains:
  main:
    links: [first, tag, last]
    storages: [broken]
    ingress_lists: [default]
    egress_lists: [done]
"""
FIRST = """
from conserver import push, vcons
def run(uuid, name, opts):
    with vcons.edit(uuid) as vcon:
        vcon.add_analysis(type="note", dialog=0, vendor="test", body="hello")
    push("side", uuid)
    return uuid
"""
LAST = """
from conserver import Vcon, vcons
def run(uuid, name, opts):
    other = Vcon.build_new()
    vcons.save(other)
    return other.uuid
"""
BROKEN = """
import os
from conserver import StorageError
def save(uuid, opts):
    raise StorageError(os.environ["REDIS_URL"].partition(":")[0])
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A folder with a config, links of its own and a vCon, and an environment that is put back afterwards."""
    monkeypatch.setenv("REDIS_URL", "redis://production.example")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in {"links/first": FIRST, "links/last": LAST, "storages/broken": BROKEN}.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "config.yml").write_text(CONFIG)
    document = {"vcon": "0.0.1", "uuid": str(uuids.uuid4()), "created_at": "2026-01-01T00:00:00Z", "redacted": {}}
    (tmp_path / "call.vcon").write_text(json.dumps(document))
    yield replace(Settings(), config_file=tmp_path / "config.yml")
    for name in ("links.first", "links.last", "links.loud", "storages.broken"):
        sys.modules.pop(name, None)


def trial(settings: Settings, target: str, *options: str, with_storages: bool = False) -> Trial:
    planned = plan(target, settings, options, with_storages=with_storages)
    return try_out(planned, settings.config_file.parent / "call.vcon", settings)


def test_a_chain_tells_what_each_link_did(settings: Settings) -> None:
    """Changes, a link that its condition passes over, a vCon that leads to another, and the pushes in the end."""
    done = trial(settings, "main")

    assert [step.link for step in done.steps] == ["first", "last"]
    assert any('+      "body": "hello"' in line for line in done.steps[0].changes)
    assert done.skipped == ["tag"]
    assert done.steps[1].result == done.uuid
    assert any(line == f"+++ {done.uuid} after" for line in done.steps[1].changes)
    assert done.pushes == [("done", done.uuid), ("side", done.steps[0].result)]
    assert done.ending == "delivered"


def test_migration_is_told_and_is_no_change_of_a_link(settings: Settings) -> None:
    """What an old vCon needs is done before the first link."""
    done = trial(settings, "links.tag")

    assert "/redacted: dropped, it was empty" in done.migrated
    assert not any("redacted" in line for step in done.steps for line in step.changes)


def test_a_storage_that_fails_is_told(settings: Settings) -> None:
    """Components that ask for REDIS_URL get the throw-away server, never the real one."""
    done = trial(settings, "main", with_storages=True)

    assert done.storage_errors == {"broken": "unix"}
    assert ("DLQ:storage:broken", done.uuid) in done.pushes
    assert os.environ["REDIS_URL"].startswith("unix://")


def test_a_link_that_stops_the_chain(settings: Settings) -> None:
    """Links behind it are neither run nor passed over, and there is no egress."""
    (settings.config_file.parent / "links" / "first.py").write_text("def run(uuid, name, opts):\n    return None\n")
    done = trial(settings, "main")

    assert (done.ending, done.skipped, done.pushes) == ("stopped", [], [])


def test_an_option_that_the_link_does_not_know_is_a_warning(settings: Settings) -> None:
    """As in `conserver check`."""
    planned = plan("links.tag", settings, ["tagz=1"])

    assert planned.warnings == ("link 'tag' has no option 'tagz'; did you mean 'tags'?",)


def test_values_are_read_as_in_the_config(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML 1.2, with variables of the environment."""
    monkeypatch.setenv("REGION", "north")
    planned = plan("links.tag", settings, ["tags=[no, '${REGION}', 1:30]"])

    assert planned.links[0].options.tags == ["no:no", "north:north", "1:30"]


def test_long_lines_are_cut(settings: Settings) -> None:
    """A recording inside of a vCon does not fill the screen."""
    source = FIRST.replace('"hello"', '"x" * 100_000')
    (settings.config_file.parent / "links" / "loud.py").write_text(source)
    done = trial(settings, "links.loud")

    assert max(len(line) for step in done.steps for line in step.changes) < 200
    assert any("… (100,01" in line for line in done.steps[0].changes)


def test_a_file_that_is_no_vcon_is_named(settings: Settings) -> None:
    """With what is wrong in it."""
    planned = plan("links.tag", settings)

    with pytest.raises(NotAVcon, match=r"config\.yml: not JSON"):
        try_out(planned, settings.config_file, settings)


def test_a_config_with_errors_is_needed_for_chains_only(settings: Settings) -> None:
    """A module can be tried beside it."""
    settings.config_file.write_text("chains: [")

    assert trial(settings, "links.tag").ending == "delivered"
    with pytest.raises(ConfigError, match=r"'main' is no module, and chains cannot be looked up: .*error\[syntax\]"):
        plan("main", settings)


def test_the_throw_away_server_needs_no_json_module(settings: Settings) -> None:
    """Whatever the real one is told to store."""
    assert trial(replace(settings, redis_format="json"), "links.tag").ending == "delivered"


def test_imports_of_the_config_come_first(settings: Settings) -> None:
    """As in a worker: one that fails is worth a word."""
    settings.config_file.write_text(CONFIG + "imports: {mine: {module: no_such_module}}\n")
    planned = plan("main", settings)

    assert planned.warnings == (
        "import 'mine': there is no module no_such_module; is it spelt right, and in the folder of the config?; "
        "what needs it will fail",
    )


def test_a_link_may_change_others_too(settings: Settings) -> None:
    """All that was made is told, the vCon that it was given first."""
    source = FIRST.replace('push("side", uuid)', "vcons.save(Vcon.build_new())").replace("push,", "Vcon,")
    (settings.config_file.parent / "links" / "loud.py").write_text(source)
    done = trial(settings, "links.loud")

    [step] = done.steps
    assert step.changed[0] == done.given == done.uuid
    assert sorted(step.changed) == sorted(done.changed) == sorted(done.vcons)
    assert len(step.changed) == 2
