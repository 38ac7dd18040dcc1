"""Chains of plain functions, and claims of a real server to run through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redis import Redis

from conserver import scripts
from conserver.chain import Chain
from conserver.claims import Claim
from conserver.components import Link, Storage
from conserver.config import ChainConfig
from conserver.queue import Queue
from conserver.run import Outcome, Run
from conserver.session import Session
from conserver.settings import Settings
from conserver.store import VconStore

A, B, C = (f"018f3c5e-0000-8000-8000-00000000000{n}" for n in "abc")


def document(uuid: str = A, **parts: Any) -> dict[str, Any]:
    """A small vCon of the current draft."""
    empty: dict[str, Any] = {name: [] for name in ("parties", "dialog", "analysis", "attachments")}
    return {"vcon": "0.4.0", "uuid": uuid, "created_at": "2026-01-01T00:00:00Z", **empty, **parts}


def link(run: Callable[..., Any], name: str = "", **more: Any) -> Link:
    """A link that calls *run* with the UUID alone."""
    name = name or getattr(run, "__name__", "link").strip("<>")
    values = {"options": {}, "fingerprint": name} | more
    return Link(name=name, module=f"links.{name}", run=lambda uuid, link_name, opts: run(uuid), **values)


def storage(save: Callable[[str], Any], name: str = "s3", **more: Any) -> Storage:
    """A storage that calls *save* with the UUID alone, and can give nothing back."""
    return Storage(name=name, module=f"storages.{name}", save=lambda uuid, opts: save(uuid), options={}, **more)


def goes_on(uuid: str) -> str:
    """Do nothing."""
    return uuid


class Host:
    """One worker's store and session, without its process."""

    def __init__(self, redis: Redis, url: str, settings: Settings | None = None) -> None:
        self.redis = redis
        self.settings = settings or Settings()
        self.store = VconStore(url, self.settings)
        self.queue = Queue(url)
        self.session = Session(url, "host:1")
        self.session.join(["in"])

    def chain(self, links: Sequence[Link] = (), storages: Sequence[Storage] = (), **config: Any) -> Chain:
        """A chain named `main` that claims from `in`."""
        config = {"name": "main", "ingress_lists": ("in",)} | config
        return Chain(ChainConfig(**config), links, storages, self.settings)

    def claim(self, entry: str | bytes = A) -> Claim:
        """Push *entry*, and claim it or what came back before it."""
        self.redis.rpush("in", entry)
        (claim,) = self.session.trip([], {"in": 1}).claims
        return claim

    def begin(self, chain: Chain, claim: Claim | None = None, *, stored: bool = True) -> Run:
        """A run of *claim*, or of a new one, whose vCon is in Redis if it is *stored*."""
        if stored:
            for uuid in (A, B):
                self.redis.setnx(f"vcon:{uuid}", self.text(uuid))
        claim = claim or self.claim()
        run = Run(claim, chain, self.store, found=self.session.found([claim])[0])
        run.take_note = lambda note: self.queue.note(claim, note)
        return run

    def run(self, chain: Chain, claim: Claim | None = None, *, stored: bool = True) -> Outcome:
        """Run *claim*, or a new one, to its outcome."""
        return self.finish(self.begin(chain, claim, stored=stored))

    def finish(self, run: Run) -> Outcome:
        """Run it as a worker does: until the storages hold the newest version."""
        while True:
            run.outcome = run.chain.run(run)
            if not run.outcome.saved:
                return run.outcome
            outcome = run.stands(self.redis_version(run.uuid))
            if outcome is not None:
                return outcome

    def redis_version(self, uuid: str) -> bytes | None:
        """The digest of what Redis holds."""
        return self.redis.eval(scripts.VERSION.text, 1, f"vcon:{uuid}")

    @staticmethod
    def text(uuid: str) -> bytes:
        from conserver.vcon import Vcon

        return Vcon(document(uuid)).to_bytes()
