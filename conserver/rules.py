"""The rules of `conserver check` that look at the config as a whole.

Each function below is one rule, or a few that see the same thing. The rules about syntax and fields are in
`conserver.yamlnodes` and `conserver.config`, those that need the components in `conserver.components`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from conserver.configmodel import ChainConfig, Config
from conserver.findings import Findings, did_you_mean
from conserver.findings import Path as Where

_OUR_KEYS = ("conserver:", "vcon:")


def apply(config: Config, findings: Findings) -> dict[str, str]:
    """Note what is wrong between the parts of the config; return the chains that cannot be worked on yet, and why."""
    _check_references(config, findings)
    _check_unused(config, findings)
    _check_lists(config, findings)
    _check_egress(config, findings)
    _check_followers(config, findings)
    _check_cycles(config, findings)
    _check_now_enforced(config, findings)
    _check_schedules(config, findings)
    return _find_not_built(config, findings)


def _enabled(config: Config) -> list[ChainConfig]:
    return [chain for chain in config.chains.values() if chain.enabled]


def _owners(config: Config) -> dict[str, str]:
    return {name: chain.name for chain in _enabled(config) for name in chain.ingress_lists}


def _check_references(config: Config, findings: Findings) -> None:
    for chain in config.chains.values():
        named = (
            ("links", "link", chain.links, config.links),
            ("storages", "storage", chain.storages, config.storages),
            ("tracers", "tracer", chain.tracers or (), config.tracers),
        )
        for section, word, names, defined in named:
            for index, name in enumerate(names):
                path = ("chains", chain.name, section, index)
                # A name that stands in the file with a mistake of its own has its own finding.
                if name in defined or (section, name) in findings.places.keys:
                    continue
                hint = "" if path in findings.places.hidden else did_you_mean(name, defined)
                message = f"chain {chain.name!r} uses {word} {findings.shown(name, path)}, which is not defined{hint}"
                findings.value(f"unknown-{word}", path, message)


def _check_unused(config: Config, findings: Findings) -> None:
    links = {name for chain in config.chains.values() for name in chain.links}
    storages = {name for chain in config.chains.values() for name in chain.storages}
    for name in config.links.keys() - links if not findings.refused("chains", "links") else ():
        findings.key("unused-link", ("links", name), f"link {name!r} is in no chain")
    for name in config.storages.keys() - storages if not findings.refused("chains", "storages") else ():
        findings.key("unused-storage", ("storages", name), f"storage {name!r} is in no chain")


def _check_lists(config: Config, findings: Findings) -> None:
    owners = _owners(config)
    for chain in config.chains.values():
        for section, names in (("ingress_lists", chain.ingress_lists), ("egress_lists", chain.egress_lists)):
            for index, name in enumerate(names):
                path = ("chains", chain.name, section, index)
                if not name or name.startswith(_OUR_KEYS):
                    message = f"{findings.shown(name, path)} cannot be a list: it must not be empty or begin with "
                    findings.value("bad-value", path, f"chain {chain.name!r}: {message}{' or '.join(_OUR_KEYS)}")
        if not chain.enabled:
            continue
        if not chain.ingress_lists and not findings.refused("chains", "ingress_lists"):
            message = f"chain {chain.name!r} has no ingress_lists, so no vCon ever gets into it"
            findings.key("no-ingress", ("chains", chain.name), message)
        for index, name in enumerate(chain.ingress_lists):
            path = ("chains", chain.name, "ingress_lists", index)
            if owners[name] != chain.name:
                message = f"chain {chain.name!r} gets nothing from list {findings.shown(name, path)}: chain"
                last = f"{message} {owners[name]!r} reads it too, and the last one in the file has it"
                findings.value("shared-ingress", path, last)


def _check_egress(config: Config, findings: Findings) -> None:
    ingress = {name: None for chain in config.chains.values() for name in chain.ingress_lists}
    for chain in _enabled(config):
        for index, name in enumerate(chain.egress_lists):
            path = ("chains", chain.name, "egress_lists", index)
            near = [other for other in ingress if _is_typo(name, other)]
            if name not in ingress and near and path not in findings.places.hidden:
                message = f"chain {chain.name!r}: no chain reads the egress list {name!r}; did you mean {near[0]!r}?"
                findings.value("egress-without-consumer", path, message)


def _check_followers(config: Config, findings: Findings) -> None:
    ingress = {name: None for chain in config.chains.values() for name in chain.ingress_lists}
    for follower in config.followers.values():
        path = ("followers", follower.name, "follower_ingress_list")
        name = follower.follower_ingress_list
        near = [other for other in ingress if _is_typo(name, other)]
        if not name or name.startswith(_OUR_KEYS):
            message = f"{findings.shown(name, path)} cannot be a list: it must not be empty or begin with "
            findings.value("bad-value", path, f"follower {follower.name!r}: {message}{' or '.join(_OUR_KEYS)}")
        elif name not in ingress and near and path not in findings.places.hidden:
            message = f"follower {follower.name!r}: no chain reads the list {name!r}; did you mean {near[0]!r}?"
            findings.value("egress-without-consumer", path, message)


def _is_typo(name: str, other: str) -> bool:
    """Say whether one wrong, missing, extra or exchanged letter is all that is between two names."""
    if min(len(name), len(other)) < 4:
        return False
    if name.casefold() == other.casefold():
        return True
    start = next((i for i, (a, b) in enumerate(zip(name, other, strict=False)) if a != b), min(len(name), len(other)))
    a, b = name[start:], other[start:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    if any(char.isdigit() for char in a + b):
        return False  # calls1 and calls2 are two lists, not one list and a slip
    return (len(a) <= 1 and len(b) <= 1) or (len(a) == 2 and a == b[::-1])


def _check_cycles(config: Config, findings: Findings) -> None:
    owners = _owners(config)
    ways = {
        chain.name: [(name, path, owners[name]) for name, path in _pushes(config, chain) if name in owners]
        for chain in _enabled(config)
    }
    told: set[str] = set()
    for chain in ways:
        circle = [] if chain in told else _way_back(chain, ways)
        if circle:
            told.update(reader for _, _, reader in circle)
            steps = "".join(f" -> list {findings.shown(name, path)} -> {reader!r}" for name, path, reader in circle)
            message = f"chain {chain!r} feeds itself: {chain!r}{steps}; a vCon goes round until a link stops it"
            findings.value("chain-feeds-itself", circle[0][1], message)


def _pushes(config: Config, chain: ChainConfig) -> Iterator[tuple[str, Where]]:
    for index, name in enumerate(chain.egress_lists):
        yield name, ("chains", chain.name, "egress_lists", index)
    for name in chain.links:
        link = config.links.get(name)
        routes = link.options.get("tag_routes") if link and link.module == "links.tag_router" else None
        for tag, lists in routes.items() if isinstance(routes, dict) else ():
            for list_name in lists if isinstance(lists, list) else [lists]:
                yield str(list_name), ("links", name, "options", "tag_routes", tag)


_Way = tuple[str, Where, str]


def _way_back(start: str, ways: dict[str, list[_Way]]) -> list[_Way]:
    """Find the shortest way from a chain through lists and other chains to itself."""
    seen = set()
    waiting: deque[list[_Way]] = deque([way] for way in ways[start])
    while waiting:
        route = waiting.popleft()
        reader = route[-1][2]
        if reader == start:
            return route
        if reader not in seen:
            seen.add(reader)
            waiting.extend([*route, way] for way in ways[reader])
    return []


def _check_now_enforced(config: Config, findings: Findings) -> None:
    for chain in config.chains.values():
        path = ("chains", chain.name)
        if not chain.enabled:
            message = f"chain {chain.name!r} is switched off: nothing is taken from its lists"
            findings.value("now-enforced", (*path, "enabled"), f"{message} (the existing conserver runs it anyway)")
        if chain.timeout:
            message = f"chain {chain.name!r}: a vCon that takes longer than {chain.timeout:g} s becomes a dead letter"
            findings.value("now-enforced", (*path, "timeout"), f"{message} (the existing conserver lets it run)")
        if chain.tracers is not None and set(chain.tracers) < set(config.tracers):
            message = f"chain {chain.name!r} has only the tracers named here"
            findings.key(
                "now-enforced", (*path, "tracers"), f"{message} (the existing conserver runs all in every chain)"
            )


def _check_schedules(config: Config, findings: Findings) -> None:
    for chain in config.chains.values():
        if chain.schedule is None:
            continue
        from cronsim import CronSim, CronSimError

        path = ("chains", chain.name, "schedule")
        given = f"chain {chain.name!r}: schedule {findings.shown(chain.schedule, path)}"
        fields = len(chain.schedule.split())
        if fields != 5:
            message = f"{given} has {fields} fields instead of 5: minute hour day month weekday, as in '30 2 * * *'"
            findings.value("bad-schedule", path, message)
            continue
        try:
            CronSim(chain.schedule, datetime.now(UTC))
        except CronSimError as error:
            findings.value("bad-schedule", path, f"{given}: {str(error).lower()}; write it as in '30 2 * * 1-5'")


def _find_not_built(config: Config, findings: Findings) -> dict[str, str]:
    waiting: dict[str, str] = {}

    def note(path: Where, what: str, users: Iterable[ChainConfig], *, verb: str = "comes") -> None:
        chains = [chain for chain in users if chain.enabled]
        for chain in chains:
            waiting.setdefault(chain.name, f"{what} {verb} with a later version")
        message = f"{what} {verb} with a later version"
        for chain in chains:
            lists = ", ".join(
                findings.shown(name, ("chains", chain.name, "ingress_lists", index))
                for index, name in enumerate(chain.ingress_lists)
            )
            message += f"; until then chain {chain.name!r} is not worked on" + (
                f" and its vCons wait in {lists}" * bool(lists)
            )
        (findings.key if len(path) == 2 else findings.value)("not-built", path, message)

    chains = list(config.chains.values())
    for name in config.tracers:
        users = [chain for chain in chains if chain.tracers is None or name in chain.tracers]
        note(("tracers", name), f"tracer {name!r}: tracers", users, verb="come")
    for name in config.hooks:
        note(("hooks", name), f"hook {name!r}: hooks", chains, verb="come")
    for chain in chains:
        if chain.schedule is not None:
            note(("chains", chain.name, "schedule"), f"chain {chain.name!r}: schedule", [chain])
    return waiting
