"""What all handlers share: settings, the config that is in force, tokens, and the ways to the server."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from conserver.api.problems import Problem
from conserver.api.wire import AsyncWire
from conserver.components import Storage
from conserver.config import Config, load_config
from conserver.egress import Egress
from conserver.errors import ConfigError, SettingsError
from conserver.findings import did_you_mean
from conserver.hosts import Hosts
from conserver.queue import Queue
from conserver.records import Records
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.talk import Talk, hold_async
from conserver.tokens import Tokens, read_tokens
from conserver.workload import load_storages, read_through

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: How soon a changed config or token file counts.
LOOK_SECS = 1.0
#: What waits for the server outside of the event loop; as many wait for storages.
THREADS = 64
#: Lists that are something else, whatever a config says.
_NO_EGRESS = ("DLQ:", "conserver:", "vcon:")


class Api:
    """One API process. The event loop owns it; what `run` calls is on other threads."""

    def __init__(self, settings: Settings, url: str) -> None:
        """Raise ConfigError or SettingsError if the config or the tokens cannot be used."""
        self.settings = settings
        self.url = url
        self.config = self._read_config()
        self.tokens: Tokens = read_tokens(settings, self.config)
        self.config_error = ""
        self.store = VconStore(url, settings, self._read_through)
        self.queue = Queue(url, "api")
        self.egress = Egress(url, "api")
        self.records = Records(url, "api")
        self.hosts = Hosts(url, "api")
        self.wire = AsyncWire(url, "api")
        self._threads = ThreadPoolExecutor(THREADS, "api")
        self._asking = ThreadPoolExecutor(THREADS, "storages")
        self._loading = threading.Lock()
        self._storages: tuple[Config, list[Storage], dict[str, str]] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._seen = self._stamps()

    # Ways to work

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what *function* returns, called on a thread: it may wait."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **kwargs))

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what *function* returns, which may wait for storages: when they hang, `run` still works."""
        return await asyncio.get_running_loop().run_in_executor(self._asking, partial(function, *args, **kwargs))

    async def hold(self, talk: Talk[T]) -> T:
        """Return what *talk* returns, held over the connection of the event loop."""
        return await hold_async(talk, self.wire.call)

    # Config and tokens

    def _read_config(self) -> Config:
        config, findings = load_config(self.settings.config_file)
        if config is None:
            errors = [finding for finding in findings if finding.level == "error"]
            raise ConfigError(f"{errors[0]}{f' (and {len(errors) - 1} more)' if len(errors) > 1 else ''}")
        return config

    def _stamps(self) -> list[tuple[int, ...]]:
        stamps: list[tuple[int, ...]] = []
        for path in (self.settings.config_file, self.settings.api_token_file):
            try:
                stat = path.stat() if path else None
            except OSError:
                stat = None
            stamps.append((stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat else ())
        return stamps

    def look(self) -> None:
        """Read config and tokens again if their files have changed; what cannot be used leaves the last good ones."""
        seen = self._stamps()
        if seen == self._seen:
            return
        self._seen = seen
        config, tokens, error = self.config, self.tokens, ""
        try:
            config = self._read_config()
        except ConfigError as wrong:
            error = f"the config that was read before stays in force: {wrong}"
        try:
            # Also when the config is broken: a token that is taken out of the file counts no more.
            found = read_tokens(self.settings, config)
            if self.tokens and not found:
                # Else a file that is empty for a moment would open the API to everybody.
                raise SettingsError("config and token file have no token any more; start anew to do without")
            tokens = found
        except SettingsError as wrong:
            error = f"the last tokens stay in force: {wrong}"
        if error:
            log.error("%s", error)
        self.config, self.tokens, self.config_error = config, tokens, error

    async def keep_looking(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECS)
            await self.run(self.look)

    # Storages

    def storages(self) -> tuple[list[Storage], dict[str, str]]:
        """Return the storages of the config that can be used, in its order, and why the others cannot; on a thread."""
        config = self.config
        with self._loading:
            if self._storages is None or self._storages[0] is not config:
                good, broken = load_storages(config)
                for name, error in broken.items():
                    log.error("storage %r cannot be read from: %s", name, error)
                self._storages = config, list(good.values()), {name: str(error) for name, error in broken.items()}
            return self._storages[1], self._storages[2]

    def _read_through(self, uuid: str) -> dict[str, Any] | None:
        return read_through(self.storages()[0], uuid, timeout_secs=self.settings.storage_timeout_secs)

    # Lists

    async def ingress_list(self, name: str) -> str:
        """Return *name* if it is an ingress list of the config; else raise Problem."""
        if not self._is_ingress(name):
            # It may have come with a change of the last second.
            await self.run(self.look)
        if self._is_ingress(name):
            return name
        known = [n for chain in self.config.chains.values() for n in chain.ingress_lists]
        detail = f"no chain reads list {name[:200]!r}{did_you_mean(name, known)}"
        raise Problem(422, "unknown-list", detail, errors=[{"parameter": "ingress_list", "detail": detail}])

    def _is_ingress(self, name: str) -> bool:
        return any(name in chain.ingress_lists for chain in self.config.chains.values())

    async def egress_list(self, name: str) -> str:
        """Return *name* if it is a list that others may take from; else raise Problem."""
        if name not in self.egress_lists():
            await self.run(self.look)
        lists = self.egress_lists()
        if name in lists:
            return name
        reader = next((c.name for c in self.config.chains.values() if name in c.ingress_lists), None)
        if reader is None:
            detail = f"no chain pushes to list {name[:200]!r}{did_you_mean(name, lists)}"
        else:
            detail = f"list {name[:200]!r} is read by chain {reader!r}: what is in it is for nobody else to take"
        raise Problem(422, "unknown-list", detail, errors=[{"parameter": "egress_list", "detail": detail}])

    def egress_lists(self) -> set[str]:
        """Return the lists that others may take from: those of `pushed_to` that no chain reads, enabled or not."""
        return {n for n in self.pushed_to() if not self._is_ingress(n) and not n.startswith(_NO_EGRESS)}

    def pushed_to(self) -> set[str]:
        """Return the lists that chains push to, and those that a link's options route to."""
        config = self.config
        lists = {name for chain in config.chains.values() for name in chain.egress_lists}
        for link in config.links.values():
            routes = link.options.get("tag_routes")
            if isinstance(routes, dict):
                lists |= {route for route in routes.values() if isinstance(route, str)}
        return lists

    # Life

    async def begin(self) -> None:
        """Begin to look for changes."""
        self._looking = asyncio.create_task(self.keep_looking())

    async def end(self) -> None:
        """Close what is open."""
        if self._looking is not None:
            self._looking.cancel()
        self.wire.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._asking.shutdown(wait=False, cancel_futures=True)
