"""Run now: links on one vCon, in a process that may do what it wants, and what comes of it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from conserver import run_now as module
from conserver.config import Config, load_config
from conserver.errors import ConfigError, NotAVcon, VconConflict, VconNotFound
from conserver.run_now import OptionsRefused, TooManyRuns, keep, run_now
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.trial import Trial
from conserver.vcon import Vcon
from tests.runs import A, document
from tests.waiting import wait_until

HIDDEN = "s3cr3t-of-the-provider"
CONFIG = """\
links:
  tag: {module: links.tag, options: {tags: [seen]}}
  vip: {module: links.tag, options: {tags: [late]}, when: {has_tag: vip}}
  act: {module: acts, options: {do: nothing, pids: "", api_key: "${PROVIDER_KEY}"}}
storages:
  shelf: {module: shelf, options: {folder: FOLDER}}
chains:
  main: {links: [tag, vip, act], storages: [shelf], ingress_lists: [default], egress_lists: [done]}
  empty: {links: [], ingress_lists: [other]}
ingress_auth: {default: "${PARTNER_KEY}"}
"""
ACTS = """
import os, re, subprocess, sys, time
from conserver import LinkError, Vcon, derived_uuid, push, vcons

def run(uuid, name, opts):
    return globals()[opts["do"]](uuid, opts)

def nothing(uuid, opts):
    return uuid

def stop(uuid, opts):
    push("side", uuid)

def derive(uuid, opts):
    made = Vcon.build_new()
    made.document["uuid"] = derived_uuid(uuid, "copy")
    vcons.save(made)
    push("side", made.uuid)
    return made.uuid

def subject(uuid, opts):
    with vcons.edit(uuid) as vcon:
        vcon.document["subject"] = "of the run"
    return uuid

def delete(uuid, opts):
    vcons.delete(uuid)

def hang(uuid, opts):
    away = subprocess.Popen(["sleep", "600"], start_new_session=True)
    near = os.fork()
    if not near:
        time.sleep(600)
    with open(opts["pids"], "w") as file:
        file.write(f"{os.getpid()} {away.pid} {near}")
    re.match(r"(a+)+$", "a" * 60 + "b")

def leave(uuid, opts):
    os._exit(7)

def loud(uuid, opts):
    print("x" * 1_000_000, flush=True)
    os.write(2, b"{}\\n")
    return uuid

def tells_secrets(uuid, opts):
    with vcons.edit(uuid) as vcon:
        vcon.document["subject"] = opts["api_key"]
    raise RuntimeError("refused: " + opts["api_key"])

def look_around(uuid, opts):
    with vcons.edit(uuid) as vcon:
        vcon.add_analysis(type="env", dialog=None, vendor="test", body=dict(os.environ))
    return uuid
"""
SHELF = """
from pathlib import Path
from conserver import vcons
def save(uuid, opts):
    (Path(opts["folder"]) / uuid).write_text(vcons.get(uuid).dumps())
"""

Run = Callable[..., Trial]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("PROVIDER_KEY", HIDDEN)
    monkeypatch.setenv("PARTNER_KEY", "of-a-partner")
    (tmp_path / "acts.py").write_text(ACTS)
    (tmp_path / "shelf.py").write_text(SHELF)
    (tmp_path / "shelf").mkdir()
    (tmp_path / "config.yml").write_text(CONFIG.replace("FOLDER", str(tmp_path / "shelf")))
    config, findings = load_config(tmp_path / "config.yml")
    assert config is not None, findings
    return config


@pytest.fixture
def run(config: Config) -> Run:
    """Run a link, or `act` with what it is to do, on a vCon."""

    def run(target: str = "act", do: str = "", text: bytes = b"", limit_secs: float = 60, **more: Any) -> Trial:
        settings = Settings(redis_url="redis://:of-the-server@real.example")
        kind = "link" if target in config.links else "chain"
        if do:
            changed = {"do": do, **more.pop("options", {})}
            more |= {"options": changed if kind == "link" else {"act": changed}, "may_override": True}
        text = text or Vcon(document()).to_bytes()
        return run_now(settings, config, (kind, target), text, limit_secs=limit_secs, **more)  # type: ignore[arg-type]

    return run


@pytest.fixture
def store(server_url: str) -> VconStore:
    return VconStore(server_url, Settings())


def is_gone(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# What comes of it


def test_a_link_that_changes_the_vcon(run: Run) -> None:
    """What it changed comes back, as a difference and as the new text."""
    done = run("tag")

    [step] = done.steps
    assert (done.ending, done.error, done.uuid, done.given) == ("delivered", "", A, A)
    assert (step.link, step.uuid, step.result, step.changed) == ("tag", A, A, [A])
    assert '+        "seen:seen"' in step.changes
    assert done.changed == [A]
    assert Vcon.parse(done.vcons[A]).tags == ["seen:seen"]
    assert Vcon.parse(done.vcons[A]).parties == document()["parties"]


def test_a_link_that_stops_the_chain(run: Run) -> None:
    """What it pushed counts, nothing is delivered, and nothing was changed."""
    done = run(do="stop")

    assert (done.ending, done.asked, done.egress) == ("stopped", [("side", A)], [])
    assert (done.changed, list(done.vcons), done.steps[0].result) == ([], [A], None)


def test_a_chain_tells_each_link(run: Run, tmp_path: Path) -> None:
    """A link whose condition is not met is skipped; storages save only if they are asked to."""
    done = run("main", do="derive")
    untouched = list((tmp_path / "shelf").iterdir())
    stored = run("main", do="derive", storages=True)

    made = done.uuid
    assert [(step.link, step.uuid, step.result, step.changed) for step in done.steps] == [
        ("tag", A, A, [A]),
        ("act", A, made, [made]),
    ]
    assert done.skipped == ["vip"]
    assert sorted(done.vcons) == sorted(done.changed) == sorted([A, made])
    assert (done.asked, done.egress) == ([("side", made)], [("done", made)])
    assert untouched == []
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == [made]
    assert (stored.ending, stored.storage_errors) == ("delivered", {})


def test_a_vcon_that_meets_the_condition(run: Run) -> None:
    """The link runs, on what the links before it have made."""
    vcon = Vcon(document())
    vcon.add_tag("vip", "vip")
    done = run("main", text=vcon.to_bytes())

    assert ([step.link for step in done.steps], done.skipped) == (["tag", "vip", "act"], [])
    assert Vcon.parse(done.vcons[A]).tags == ["vip:vip", "seen:seen", "late:late"]


def test_a_signed_vcon_is_not_changed(run: Run) -> None:
    """A link that tries comes to its end, as it would in a worker."""
    payload = base64.urlsafe_b64encode(Vcon(document()).to_bytes()).rstrip(b"=").decode()
    signed = {"payload": payload, "signatures": [{"protected": "e30", "signature": "AA", "header": {"uuid": A}}]}
    done = run("tag", text=json.dumps(signed).encode())

    assert done.ending == "dead"
    assert done.error == f"link 'tag': VconSealed: vCon {A} is signed: it cannot be changed without breaking it"


def test_a_large_vcon_comes_and_goes(run: Run) -> None:
    """More than any pipe holds, both ways."""
    vcon = Vcon(document())
    vcon.add_attachment(body="ü" * 2_500_000, purpose="recording")
    vcon.document["attachments"] += [{"purpose": "note", "body": str(n), "encoding": "none"} for n in range(20_000)]
    done = run("tag", text=vcon.to_bytes())

    back = Vcon.parse(done.vcons[A])
    assert back.attachments[:-1] == vcon.attachments
    assert back.tags == ["seen:seen"]
    # The recording is one line of the difference, the lines behind it are counted.
    assert any(line.startswith("@@ -10") for line in done.steps[0].changes), done.steps[0].changes
    assert len("\n".join(done.steps[0].changes)) < 1000


# What links may do


def test_a_link_that_hangs_is_ended_with_all_that_it_started(run: Run, tmp_path: Path) -> None:
    """Whether it holds the interpreter, has forked, or has started something in a session of its own."""
    pids = tmp_path / "pids"
    done = run("main", do="hang", options={"pids": str(pids)}, limit_secs=3)

    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 3
    wait_until(lambda: all(map(is_gone, started)))
    assert (done.ending, done.error) == ("dead", "link 'act': the run takes longer than 3 s")
    assert [(step.link, step.error, step.changed) for step in done.steps] == [
        ("tag", "", [A]),
        ("act", done.error, []),
    ]


def test_a_link_that_ends_its_process(run: Run) -> None:
    """Is told like any other failure."""
    done = run(do="leave")

    assert (done.ending, done.error) == ("dead", "link 'act': the run ends its process with exit code 7")
    assert (done.given, done.steps[0].error, done.vcons) == (A, done.error, {})


def test_a_link_that_prints(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody hears it, and it disturbs nothing."""
    done = run(do="loud")

    assert done.ending == "delivered"
    assert capfd.readouterr() == ("", "")


def test_no_secret_of_an_option_comes_back(run: Run) -> None:
    """Neither by an exception, nor its traceback, nor a difference."""
    done = run(do="tells_secrets")

    assert done.error == "link 'act': RuntimeError: refused: ***"
    assert done.steps[0].error == "RuntimeError: refused: ***"
    assert '+  "subject": "***",' in done.steps[0].changes
    assert "in tells_secrets" in done.traceback
    assert HIDDEN not in json.dumps([done.error, done.traceback, done.steps[0].changes])


def test_the_process_knows_neither_our_tokens_nor_our_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What services want of links stays."""
    real = "redis://:of-the-server@real.example"
    monkeypatch.setenv("REDIS_URL", real)
    monkeypatch.setenv("OTHER_URL", f"{real}/1")
    monkeypatch.setenv("SERVER_PASSWORD", "of-the-server")
    monkeypatch.setenv("CONSERVER_API_TOKEN", "of-the-api")
    done = run(do="look_around")

    env = Vcon.parse(done.vcons[A]).analysis[0]["body"]
    assert env["PROVIDER_KEY"] == HIDDEN
    assert env["REDIS_URL"].startswith("unix:///tmp/conserver-")
    assert {"OTHER_URL", "SERVER_PASSWORD", "PARTNER_KEY", "CONSERVER_API_TOKEN"}.isdisjoint(env)


# What is refused


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (("link", "tga"), "the config has no link 'tga'; did you mean 'tag'?"),
        (("link", "links.webhook"), "the config has no link 'links.webhook'"),
        (("chain", "mian"), "the config has no chain 'mian'; did you mean 'main'?"),
        (("chain", "empty"), "chain 'empty' has no links: there is nothing to try"),
    ],
)
def test_only_what_the_config_has_can_be_run(config: Config, target: Any, message: str) -> None:
    """By its name there; modules are not taken."""
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        run_now(Settings(), config, target, Vcon(document()).to_bytes(), limit_secs=60)


def test_what_is_no_vcon_is_refused(run: Run) -> None:
    """With what is wrong in it."""
    with pytest.raises(NotAVcon, match="not JSON"):
        run("tag", text=b"{]")


def test_options_are_overridden_by_those_who_may(run: Run) -> None:
    """And only options that the link has: there is nobody to see a warning."""
    done = run("tag", options={"tags": ["mine"]}, may_override=True)

    assert Vcon.parse(done.vcons[A]).tags == ["mine:mine"]
    with pytest.raises(OptionsRefused, match="may be overridden by an administrator only"):
        run("tag", options={"tags": ["mine"]})
    with pytest.raises(ConfigError, match="link 'tag' has no option 'tagz'; did you mean 'tags'"):
        run("tag", options={"tagz": []}, may_override=True)
    with pytest.raises(ConfigError, match="link 'act' has no option 'od'"):
        run("act", options={"od": ""}, may_override=True)
    with pytest.raises(ConfigError, match="link 'tag': option 'tags'"):
        run("main", options={"tag": {"tags": [{}, ["x"]]}}, may_override=True)
    with pytest.raises(ConfigError, match="options: chain 'main' has no link 'tgg'; did you mean 'tag'"):
        run("main", options={"tgg": {}}, may_override=True)
    with pytest.raises(ConfigError, match="options of link 'tag' must be a mapping"):
        run("main", options={"tag": 1}, may_override=True)


def test_too_many_at_once_are_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, without a process; whatever became of a run, it gives its place back."""
    monkeypatch.setattr(module, "_free", threading.BoundedSemaphore(1))
    with pytest.raises(NotAVcon):
        run("tag", text=b"no")
    run(do="leave")

    with module._free, pytest.raises(TooManyRuns, match="too many runs at once: 4 are under way"):
        run("tag")
    assert run("tag").ending == "delivered"


# Keeping it


def test_what_a_run_changed_is_merged_with_what_others_did(run: Run, store: VconStore, redis: Redis) -> None:
    """Nobody's change is lost; pushes are for the caller to make."""
    store.create(Vcon(document()))
    base = store.read(A)
    done = run("main", do="derive", text=base)
    with store.edit(A) as theirs:
        theirs.add_analysis(type="note", dialog=None, vendor="test", body="theirs")
    kept = keep(store, base, done)

    assert kept.saved == {A: "changed", done.uuid: "created"}
    assert kept.pushes == [("side", done.uuid)]
    assert (store.get(A).tags, len(store.get(A).analysis)) == (["seen:seen"], 1)
    assert store.get(done.uuid).uuid == done.uuid
    assert (redis.exists("side"), redis.exists("done")) == (0, 0)


def test_both_changed_the_same(run: Run, store: VconStore) -> None:
    """The conflict is told, and theirs stays."""
    store.create(Vcon(document(subject="first")))
    base = store.read(A)
    done = run(do="subject", text=base)
    with store.edit(A) as theirs:
        theirs.document["subject"] = "theirs"

    with pytest.raises(VconConflict, match="subject"):
        keep(store, base, done)
    assert store.get(A).subject == "theirs"


def test_a_vcon_that_is_in_the_way_keeps_all_from_being_saved(run: Run, store: VconStore) -> None:
    """The links could not see it, so they do not know what they would replace."""
    store.create(Vcon(document()))
    base = store.read(A)
    done = run("main", do="derive", text=base)
    store.create(Vcon(document(uuid=done.uuid, subject="theirs")))

    with pytest.raises(VconConflict, match=f"vCon {done.uuid}, which the run has made, is stored already"):
        keep(store, base, done)
    assert store.read(A) == base


def test_a_vcon_that_is_not_stored_is_created(run: Run, store: VconStore) -> None:
    """Also if no link changed it; but it replaces nobody else's."""
    done = run(do="nothing")
    kept = keep(store, None, done, deliver=True)
    again = keep(store, None, done)

    assert kept.saved == again.saved == {A: "created"}
    assert store.get(A).parties == document()["parties"]
    with pytest.raises(VconConflict, match=f"another vCon is stored under {A}"):
        keep(store, None, run("tag"))


def test_what_is_delivered_goes_to_the_egress_lists_too(run: Run, store: VconStore) -> None:
    """If the caller wants that."""
    done = run("main")

    assert keep(store, None, done, deliver=True).pushes == [("done", A)]


def test_a_deletion_is_kept(run: Run, store: VconStore) -> None:
    """Unless somebody has changed what is to be deleted, which the link has not seen."""
    store.create(Vcon(document()))
    base = store.read(A)
    done = run(do="delete", text=base)
    with store.edit(A) as theirs:
        theirs.document["subject"] = "theirs"
    newer = store.read(A)

    assert (done.deleted, done.vcons, done.ending) == ([A], {}, "stopped")
    with pytest.raises(VconConflict, match="which the run has deleted, was changed meanwhile: nothing was saved"):
        keep(store, base, done)
    assert keep(store, newer, done).saved == {A: "deleted"}
    assert not store.exists(A)


def test_nothing_is_kept_of_a_run_that_failed(run: Run, store: VconStore) -> None:
    """Not even what it changed before."""
    store.create(Vcon(document()))
    base = store.read(A)
    done = run(do="tells_secrets", text=base)

    assert done.changed == [A]
    assert keep(store, base, done).saved == {}
    assert store.read(A) == base


def test_a_vcon_that_was_deleted_meanwhile_stays_so(run: Run, store: VconStore) -> None:
    """As it does for a worker."""
    store.create(Vcon(document()))
    base = store.read(A)
    done = run("tag", text=base)
    store.delete(A)

    with pytest.raises(VconNotFound, match="was deleted"):
        keep(store, base, done)
