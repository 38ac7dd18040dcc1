"""Trying a link, or a chain of the config, on one vCon: nothing to install or start, and nothing is kept.

It runs as it would in a worker, claim included, on a throw-away server; only the deadlines are not enforced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conserver import compat, components, outbound_policy
from conserver.chain import Chain
from conserver.components import Link, Storage
from conserver.config import ChainConfig, Config, LinkConfig, StorageConfig, load_config
from conserver.embedded import temporary_server
from conserver.errors import ConfigError, NotAVcon, ServerError
from conserver.findings import Findings, did_you_mean, without
from conserver.outcomes import settlement
from conserver.queue import Queue
from conserver.run import Outcome, Run
from conserver.session import Session
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.trial import Step, Trial, Watch
from conserver.vcon import Vcon, migrate
from conserver.workload import read_through
from conserver.yamlnodes import read_yaml

_LIST = "try"


@dataclass(frozen=True)
class Plan:
    """What is to be tried."""

    config: ChainConfig
    links: tuple[Link, ...]
    storages: tuple[Storage, ...] = ()
    warnings: tuple[str, ...] = ()
    """About the options, as `conserver check` has them."""

    @property
    def secrets(self) -> frozenset[str]:
        """Values of options that may not be repeated."""
        return frozenset[str]().union(*(link.secrets for link in self.links), *(s.secrets for s in self.storages))


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
    warnings = _prepare(config) if config is not None else []
    name = target.rpartition(".")[2]
    link = LinkConfig(name=name, module=target, options=dict(_option(option) for option in options))
    return _loaded(ChainConfig(name=_LIST, links=(name,)), [link], [], warnings)


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
    return plan_chain(config, chain, changed, with_storages=with_storages)


def plan_chain(
    config: Config, chain: ChainConfig, changed: Mapping[str, Mapping[str, Any]], *, with_storages: bool = False
) -> Plan:
    """Import what *chain*, which is made of links of *config*, needs, with *changed* options by link."""
    components.use_folder(config.folder)
    warnings = _prepare(config)
    links = [
        config.links[name].model_copy(update={"options": {**config.links[name].options, **changed.get(name, {})}})
        for name in chain.links
    ]
    return _loaded(chain, links, [config.storages[name] for name in chain.storages if with_storages], warnings)


def _prepare(config: Config) -> list[str]:
    """Do what a worker does before it imports its chains, and return what it would complain about."""
    outbound_policy.configure(config.outbound)
    compat.use(config)
    try:
        components.load_imports(config)
    except ConfigError as error:
        return [f"{error}; what needs it will fail"]
    return []


def _loaded(
    chain: ChainConfig, links: Sequence[LinkConfig], storages: Sequence[StorageConfig], warnings: Sequence[str]
) -> Plan:
    warnings = [*warnings, *(problem.message for link in links for problem in components.load("link", link)[2])]
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
    data = file.read_bytes()
    with temporary_server() as url:
        # Components without a server of their own use that of REDIS_URL, which here must not be a real one.
        os.environ["REDIS_URL"] = url
        try:
            return try_on(data, plan, url, settings)
        except NotAVcon as error:
            raise NotAVcon(f"{file}: {error}") from error


def try_on(
    data: bytes,
    plan: Plan,
    url: str,
    settings: Settings,
    *,
    notice: Callable[[int, Step], None] = lambda number, step: None,
    notice_stage: Callable[[str], None] = lambda stage: None,
) -> Trial:
    """Run *plan* on the vCon *data*, on the server at *url*, which nobody else uses; raise NotAVcon if it is none.

    *notice* is told each step and its number, when it begins and when it has ended; *notice_stage* where the run is,
    as in "storage 'file'".
    """
    if not plan.config.links and not plan.storages:
        raise ConfigError(f"chain {plan.config.name!r} has no links: there is nothing to try")
    # The throw-away server has no JSON module.
    settings = replace(settings, redis_url=url, redis_format="string")
    vcon = Vcon.parse(data, migrate=False, max_bytes=settings.max_vcon_bytes)
    migrated, given = migrate(vcon.document), str(vcon.uuid)
    bases = {given: vcon.to_bytes()}

    def fetch(uuid: str) -> dict[str, Any] | None:
        document = read_through(list(plan.storages), uuid)
        if document is not None:
            bases[uuid] = Vcon(document).to_bytes()
        return document

    store = VconStore(url, settings, fetch)
    store.create(vcon)
    watch = Watch(store, bases, plan.secrets, notice)
    chain = Chain(plan.config, [watch.watched(link) for link in plan.links], plan.storages, settings)
    run = _claimed(given, chain, store, url)
    run.board = lambda what, deadline: notice_stage(what.decode("utf-8", "replace"))
    run.outcome = chain.run(run)
    with suppress(ServerError):
        watch.look()
    return _trial(plan, run, run.outcome, watch, given=given, migrated=migrated)


def _claimed(uuid: str, chain: Chain, store: VconStore, url: str) -> Run:
    Queue(url, "try").push(_LIST, [uuid])
    session = Session(url, "try:1")
    session.join([_LIST])
    trip = session.trip([], {_LIST: 1})
    if trip.trouble or not trip.claims:
        raise ServerError(f"the throw-away server does not work: {trip.trouble}")
    return Run(trip.claims[0], chain, store)


def _trial(plan: Plan, run: Run, outcome: Outcome, watch: Watch, *, given: str, migrated: list[str]) -> Trial:
    end = settlement(run, outcome, "try")
    well = outcome.kind in ("delivered", "stopped")
    changed = [uuid for uuid, text in watch.texts.items() if text != watch.bases.get(uuid)]
    texts = {uuid: text.decode() for uuid, text in watch.texts.items() if uuid == given or uuid in changed}
    ran = {step.link for step in watch.steps}
    passed = plan.config.links[: run.done]
    return Trial(
        migrated=migrated,
        steps=watch.steps,
        skipped=[link.name for link in plan.links if link.when and link.name in passed and link.name not in ran],
        ending=run.ending,
        error=without(plan.secrets, outcome.error),
        traceback=without(plan.secrets, outcome.traceback),
        uuid=outcome.uuid,
        pushes=[(name, str(value)) for kind, name, value, _ in end.operations if well and kind == "R"],
        storage_errors={name: without(plan.secrets, error) for name, error in outcome.storage_errors.items()},
        given=given,
        asked=list(run.pushes) if well else [],
        egress=[(name, outcome.uuid) for name in plan.config.egress_lists if outcome.kind == "delivered"],
        expire_secs=run.expire_secs if well else None,
        vcons=texts,
        changed=changed,
        deleted=[uuid for uuid in watch.bases if uuid not in watch.texts],
        bases={uuid: watch.bases[uuid].decode() for uuid in changed if uuid in watch.bases and uuid != given},
    )
