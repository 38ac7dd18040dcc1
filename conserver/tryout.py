"""Trying a link, or a chain of the config, on one vCon: nothing to install or start, and nothing is kept.

It runs as it would in a worker, claim included, on a throw-away server; only the deadlines are not enforced.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from conserver import components
from conserver.chain import Chain, Run
from conserver.components import Link, Storage
from conserver.config import ChainConfig, Config, LinkConfig, StorageConfig, load_config
from conserver.embedded import temporary_server
from conserver.errors import ConfigError, NotAVcon, ServerError, VconNotFound
from conserver.findings import Findings, did_you_mean
from conserver.outcomes import settlement
from conserver.queue import Queue
from conserver.session import Session
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.vcon import Vcon, migrate
from conserver.workload import read_through
from conserver.yamlnodes import read_yaml

_LIST = "try"
_LONGEST_LINE = 160


@dataclass(frozen=True)
class Plan:
    """What is to be tried."""

    config: ChainConfig
    links: tuple[Link, ...]
    storages: tuple[Storage, ...] = ()
    warnings: tuple[str, ...] = ()
    """About the options, as `conserver check` has them."""


@dataclass
class Step:
    """What one link did."""

    link: str
    secs: float = 0.0
    result: str | None = None
    error: str = ""
    changes: list[str] = field(default_factory=list)
    """A unified diff of the vCons that it was given and that it led to, as indented JSON."""


@dataclass
class Trial:
    """What came of it."""

    migrated: list[str]
    """What migration changed before the first link."""
    steps: list[Step]
    skipped: list[str]
    """Links whose condition (`when`) the vCon does not meet."""
    ending: str
    """What the outcome leads to: delivered, stopped, delayed (it would be tried again), dead or returned."""
    error: str
    traceback: str
    """What a link raised, unless it is a LinkError; its traceback begins in the link."""
    uuid: str
    pushes: list[tuple[str, str]]
    """(list, UUID), as they would be made with the settlement."""
    storage_errors: dict[str, str]


def plan(target: str, settings: Settings, options: Sequence[str] = (), *, with_storages: bool = False) -> Plan:
    """Find the chain or the link module *target* and import what it needs; ConfigError with the cure.

    *options* are `KEY=VALUE` for a module, `LINK.KEY=VALUE` for a chain; a value is read as in the config.
    """
    config, findings = load_config(settings.config_file) if settings.config_file.exists() else (None, [])
    if config is not None and target in config.chains:
        return _plan_chain(config, config.chains[target], options, with_storages=with_storages)
    if "." not in target and config is None and findings:
        errors = [str(finding) for finding in findings if finding.level == "error"]
        raise ConfigError(f"{target!r} is no module, and chains cannot be looked up: {errors[0]}")
    if "." not in target:
        known = config.chains if config is not None else {}
        raise ConfigError(
            f"{target!r} is no module, which has its package in front (links.{target}), and {settings.config_file} has "
            f"no such chain{did_you_mean(target, known)}"
        )
    components.use_folder(settings.config_file.absolute().parent)
    name = target.rpartition(".")[2]
    link = LinkConfig(name=name, module=target, options=dict(_option(option) for option in options))
    return _loaded(ChainConfig(name=_LIST, links=(name,)), [link], [])


def _plan_chain(config: Config, chain: ChainConfig, options: Sequence[str], *, with_storages: bool) -> Plan:
    changed: dict[str, dict[str, Any]] = {}
    for option in options:
        key, value = _option(option)
        link, dot, name = key.partition(".")
        if not dot or link not in chain.links:
            raise ConfigError(
                f"--set {option}: write LINK.KEY=VALUE, with one of the links of chain {chain.name!r} "
                f"({', '.join(chain.links)}){did_you_mean(link, chain.links)}"
            )
        changed.setdefault(link, {})[name] = value
    components.use_folder(config.folder)
    links = [
        config.links[name].model_copy(update={"options": {**config.links[name].options, **changed.get(name, {})}})
        for name in chain.links
    ]
    return _loaded(chain, links, [config.storages[name] for name in chain.storages if with_storages])


def _loaded(chain: ChainConfig, links: Sequence[LinkConfig], storages: Sequence[StorageConfig]) -> Plan:
    warnings = [problem.message for link in links for problem in components.load("link", link)[2]]
    loaded = (tuple(map(components.load_link, links)), tuple(map(components.load_storage, storages)))
    return Plan(chain, *loaded, tuple(dict.fromkeys(warnings)))


def _option(option: str) -> tuple[str, Any]:
    key, equals, text = option.partition("=")
    if not key or not equals:
        raise ConfigError(f"--set {option}: write KEY=VALUE")
    findings = Findings("--set")
    value = read_yaml(text, os.environ, findings)
    for finding in findings.sorted():
        raise ConfigError(f"--set {key}: {finding.message}")
    return key, value


def try_out(plan: Plan, file: Path, settings: Settings) -> Trial:
    """Run *plan* on the vCon in *file*; raise NotAVcon if there is none in it, OSError if it cannot be read."""
    if not plan.config.links and not plan.storages:
        raise ConfigError(f"chain {plan.config.name!r} has no links: there is nothing to try")
    data = file.read_bytes()
    try:
        vcon = Vcon.parse(data, migrate=False, max_bytes=settings.max_vcon_bytes)
    except NotAVcon as error:
        raise NotAVcon(f"{file}: {error}") from error
    migrated = migrate(vcon.document)
    with temporary_server() as url:
        # Components without a server of their own use that of REDIS_URL, which here must not be a real one.
        os.environ["REDIS_URL"] = url
        store = VconStore(url, settings, lambda uuid: read_through(list(plan.storages), uuid))
        store.create(vcon)
        Queue(url, "try").push(_LIST, [str(vcon.uuid)])
        session = Session(url, "try:1")
        session.join([_LIST])
        trip = session.trip([], {_LIST: 1})
        if trip.trouble or not trip.claims:
            raise ServerError(f"the throw-away server does not work: {trip.trouble}")
        steps: list[Step] = []
        links = [replace(link, run=_watched(link, store, steps)) for link in plan.links]
        chain = Chain(plan.config, links, plan.storages, settings)
        run = Run(trip.claims[0], chain, store)
        outcome = run.outcome = chain.run(run)
        end = settlement(run, outcome, "try")
    egress = [(name, str(value)) for kind, name, value, _ in end.operations if kind == "R"]
    ran = {step.link for step in steps}
    passed = plan.config.links[: run.done]
    return Trial(
        migrated=migrated,
        steps=steps,
        skipped=[link.name for link in plan.links if link.when and link.name in passed and link.name not in ran],
        ending=run.ending,
        error=outcome.error,
        traceback=outcome.traceback,
        uuid=outcome.uuid,
        pushes=egress if outcome.kind in ("delivered", "stopped") else [],
        storage_errors=outcome.storage_errors,
    )


def _watched(link: Link, store: VconStore, steps: list[Step]) -> Callable[[str, str, Any], Any]:
    """Return the link's run, which leaves a Step behind."""

    def run(uuid: str, name: str, options: Any) -> Any:
        step = Step(link.name)
        steps.append(step)
        before = {uuid: _text(store, uuid)}
        began = time.monotonic()
        try:
            result = link.run(uuid, name, options)
            step.result = str(result) if result else None
            return result
        except BaseException as error:
            step.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            step.secs = time.monotonic() - began
            for one in dict.fromkeys([uuid, step.result or uuid]):
                step.changes += _difference(one, before.get(one, ""), _text(store, one))

    return run


def _text(store: VconStore, uuid: str) -> str:
    try:
        return msgspec.json.format(store.read(uuid), indent=2).decode()
    except VconNotFound:
        return ""


def _difference(uuid: str, before: str, after: str) -> list[str]:
    names = (f"{uuid} before", f"{uuid} after")
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), *names, n=2, lineterm="")
    return [_cut(line) for line in lines]


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}… ({len(line):,} characters)"
