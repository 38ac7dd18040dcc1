"""Run now: a link or a chain of the config on one vCon, at once and apart from the queue.

Links are other people's code, so they run in a child process that has a throw-away server instead of the real one,
none of our tokens, and a time limit. What they made of the vCon comes back; `keep` saves it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from conserver import components
from conserver.config import ChainConfig, Config
from conserver.embedded import temporary_server
from conserver.errors import ConfigError, ConserverError, NotAVcon, ServerError, VconConflict
from conserver.findings import did_you_mean, secrets_of, without
from conserver.isolation import Died, Tell, call
from conserver.reasons import describe
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.trial import Step, Trial
from conserver.tryout import plan_chain, try_on
from conserver.vcon import Vcon

#: How many runs a process has at the same time: each is a process and a server.
AT_ONCE = 4
#: What the links' side needs to know of ours. Tokens and the server are no part of it.
_SETTINGS = ("parallel_storage", "storage_fallback", "link_timeout_secs", "storage_timeout_secs", "max_vcon_bytes")
#: Of our environment, what says how to get in here.
_OUR_TOKENS = "CONSERVER_API_"
_ERRORS = {"ConfigError": ConfigError, "NotAVcon": NotAVcon}

Target = tuple[Literal["link", "chain"], str]
"""A link or a chain of the config, by its name."""

_free = threading.BoundedSemaphore(AT_ONCE)


class TooManyRuns(ConserverError):
    """There are as many runs as this process has at the same time; one may be free in a moment."""


class OptionsRefused(ConserverError):
    """Options were to be overridden by somebody who may not do that."""


@dataclass(frozen=True)
class Kept:
    """What became of a trial: UUID -> created, changed or deleted, and the (list, UUID) that are to be pushed now."""

    saved: dict[str, str]
    pushes: list[tuple[str, str]]


@dataclass(frozen=True)
class _Order:
    """What the child is told to do."""

    document: bytes
    config: Config
    chain: ChainConfig
    options: dict[str, dict[str, Any]]
    with_storages: bool
    settings: Settings
    url: str = ""


def run_now(
    settings: Settings,
    config: Config,
    target: Target,
    document: bytes,
    *,
    options: Mapping[str, Any] | None = None,
    may_override: bool = False,
    storages: bool = False,
    limit_secs: float,
) -> Trial:
    """Run *target* on the vCon *document* and return what came of it; nothing is saved or pushed.

    *options* take the place of some in the config: `{option: value}` for a link, `{link: {option: value}}` for a
    chain. They lead credentials of the config wherever they want, so this is for those who *may_override*. With
    *storages* the chain's storages save what comes out, for good, which is not what `keep` may merge later. Links see
    no other vCon, except what these storages give back. A run that hangs or dies has the ending `dead`.

    Raises ConfigError for a target or an option that there is not, NotAVcon, OptionsRefused, TooManyRuns.
    """
    order = _order(settings, config, target, document, options or {}, storages)
    if order.options and not may_override:
        raise OptionsRefused("options of the config may be overridden by an administrator only")
    if not _free.acquire(blocking=False):
        raise TooManyRuns(f"too many runs at once: {AT_ONCE} are under way; try again in a moment")
    try:
        with temporary_server() as url:
            env = _environment(settings, config) | {"REDIS_URL": url}
            told, died = call(_run, replace(order, url=url), limit_secs=limit_secs, env=env)
    except ServerError as error:
        # Ours has nothing to do with it.
        raise ConserverError(f"a run needs a throw-away server: {error}") from error
    finally:
        _free.release()
    return _trial(told, died)


def _order(
    settings: Settings, config: Config, target: Target, document: bytes, options: Mapping[str, Any], storages: bool
) -> _Order:
    kind, name = target
    known: Mapping[str, Any] = config.links if kind == "link" else config.chains
    if name not in known:
        raise ConfigError(f"the config has no {kind} {name!r:.80}{did_you_mean(name, known)}")
    if kind == "link":
        chain, options = ChainConfig(name=name, links=(name,)), {name: options} if options else {}
    else:
        chain = config.chains[name]
    for link, changed in options.items():
        if link not in chain.links:
            raise ConfigError(f"options: chain {name!r} has no link {link!r:.80}{did_you_mean(link, chain.links)}")
        if not isinstance(changed, Mapping):
            raise ConfigError(f"options of link {link!r} must be a mapping of names to values")
    # Only what is needed: links have no business with the keys of those who call us.
    needed = Config(
        file=config.file,
        folder=config.folder,
        links={link: config.links[link] for link in chain.links},
        storages={storage: config.storages[storage] for storage in chain.storages},
        imports=config.imports,
        outbound=config.outbound,
    )
    told = Settings(**{field: getattr(settings, field) for field in _SETTINGS})
    return _Order(document, needed, chain, {link: dict(some) for link, some in options.items()}, storages, told)


def _environment(settings: Settings, config: Config) -> dict[str, str]:
    """Return our environment without the real server and our tokens; what services want of links stays."""
    url = settings.redis_url or os.environ.get("REDIS_URL", "")
    hidden = {key for keys in config.ingress_auth.values() for key in keys} | secrets_of(url)
    hidden |= {follower.auth_token for follower in config.followers.values()}
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OUR_TOKENS) and value not in hidden and not (url and url in value)
    }


def _run(order: _Order, tell: Tell) -> None:
    """Do what is ordered, in the child."""
    given = [one.options for one in (*order.config.links.values(), *order.config.storages.values())]
    secrets = set[str]().union(*map(secrets_of, [*given, *order.options.values()]))
    try:
        tell(["stage", "importing its modules"])
        plan = plan_chain(order.config, order.chain, order.options, with_storages=order.with_storages)
        _check_options(order)
        trial = try_on(
            order.document,
            plan,
            order.url,
            order.settings,
            notice=lambda number, step: tell(["step", number, msgspec.to_builtins(step)]),
            notice_stage=lambda stage: tell(["stage", stage]),
        )
        tell(["trial", msgspec.to_builtins(trial)])
    except tuple(_ERRORS.values()) as error:
        kind = next(name for name, kind in _ERRORS.items() if isinstance(error, kind))
        tell(["error", kind, without(secrets, str(error))])
    except Exception as error:  # noqa: BLE001  the top of a process
        tell(["error", "", describe(error, secrets)])


def _check_options(order: _Order) -> None:
    """Raise ConfigError for options that a link does not have: nobody sees a warning here."""
    for name, changed in order.options.items():
        link = order.config.links[name]
        module, options, problems = components.load(
            "link", link.model_copy(update={"options": {**link.options, **changed}})
        )
        for problem in problems:
            if problem.rule == "unknown-option" and problem.path[-1] in changed:
                raise ConfigError(problem.message)
        if isinstance(options, dict):
            known = {**(getattr(module, "default_options", None) or {}), **link.options}
            for option in changed:
                if option not in known:
                    raise ConfigError(f"link {name!r} has no option {option!r:.80}{did_you_mean(option, known)}")


def _trial(told: list[Any], died: Died | None) -> Trial:
    """Return the trial that the child has told of, or as much as it could before it died."""
    steps: dict[int, Step] = {}
    stage = "the start"
    for kind, *values in told:
        if kind == "trial":
            return msgspec.convert(values[0], Trial)
        if kind == "error":
            raise _ERRORS.get(values[0], ConserverError)(values[1])
        if kind == "stage":
            [stage] = values
        else:
            steps[values[0]] = msgspec.convert(values[1], Step)
    error = f"{stage}: the run {died.reason if died else 'has said nothing'}"
    done = list(steps.values())
    if done and not done[-1].secs:
        done[-1].error = error
    given = done[0].uuid if done else ""
    return Trial([], done, [], "dead", error, "", uuid=given, pushes=[], storage_errors={}, given=given)


def keep(store: VconStore, base: bytes | None, trial: Trial, *, deliver: bool = False) -> Kept:
    """Save what *trial* led to, merged with what others have changed since *base*; of one that failed, nothing.

    *base* is the stored text that the run began with, or None for a vCon that is not stored: then it is created, as
    are those that links have made. The pushes that links have asked for are for the caller to make, and with *deliver*
    those to the egress lists, too. Raises VconConflict if somebody else has changed the same part, or stored one of
    these vCons, and VconNotFound if it was deleted.
    """
    if not trial.went_well:
        return Kept({}, [])
    given = trial.given
    made = [uuid for uuid in trial.changed if uuid != given and uuid not in trial.bases]
    for uuid in made:
        # Before anything is saved: they would be in the way after the rest, too.
        if store.newest(uuid) is not None:
            raise VconConflict(f"vCon {uuid}, which the run has made, is stored already: nothing was saved")
    if given in trial.deleted and base is not None and store.newest(given) != base:
        raise VconConflict(f"vCon {given}, which the run has deleted, was changed meanwhile: nothing was saved")
    saved: dict[str, str] = {}
    if given in trial.vcons and base is None:
        made.insert(0, given)
    elif given in trial.changed and base is not None:
        saved[given] = _save(store, trial.vcons[given], base)
    for uuid, read in trial.bases.items():
        saved[uuid] = _save(store, trial.vcons[uuid], read.encode())
    for uuid in made:
        if store.create(Vcon.parse(trial.vcons[uuid], max_bytes=store.max_bytes)) == "exists":
            raise VconConflict(f"another vCon is stored under {uuid}")
        saved[uuid] = "created"
    for uuid in trial.deleted:
        if (uuid != given or base is not None) and store.delete(uuid):
            saved[uuid] = "deleted"
    return Kept(saved, [*trial.asked, *(trial.egress if deliver else ())])


def _save(store: VconStore, text: str, base: bytes) -> str:
    vcon = Vcon.parse(text, max_bytes=store.max_bytes)
    vcon.base = base
    store.writer().save(vcon)
    return "changed"
