"""The lease: a host's sign of life, kept in Redis by the server's clock.

While it stands, nobody touches what the host's workers hold. When it lapses, others recover it. Renewing is a thread
of its own and a command that a full server allows (PEXPIRE), so that a busy supervisor is not taken for dead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from redis.exceptions import RedisError

from conserver import connection
from conserver.errors import ServerError

log = logging.getLogger(__name__)

HOSTS = "conserver:hosts"


def host_key(host: str) -> str:
    """Return the key whose expiry is the lease of *host*; its value says what the host does."""
    return f"conserver:host:{host}"


def host_of(worker: str) -> str:
    """Return the host that a worker's name begins with."""
    return worker.rsplit(":", 1)[0]


class Lease:
    """The lease of this host, renewed three times in its length until `end`."""

    def __init__(self, url: str, host: str, secs: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.host = host
        self.secs = secs
        self._clock = clock
        self._client = connection.once(url, f"lease:{host}", timeout_secs=max(0.5, secs / 3))
        self._steady_since: float | None = None
        self._renewed = 0.0
        self._ended = threading.Event()

    def begin(self) -> None:
        """Take the lease and keep it; raise ServerError if the server does not take it."""
        self._client.sadd(HOSTS, self.host)
        self._client.set(host_key(self.host), b"{}", px=self._ms)
        self._steady_since = self._renewed = self._clock()
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    @property
    def _ms(self) -> int:
        return int(self.secs * 1000)

    def _keep(self) -> None:
        while not self._ended.wait(self.secs / 3):
            try:
                self.renew()
            except RedisError:
                # Whatever it is: a thread that ends here would have the whole host taken for dead.
                log.exception("the lease could not be renewed")
                self._steady_since = None

    def renew(self) -> None:
        """Renew once; a gap, whatever its cause, begins the time of steadiness anew."""
        asked = self._clock()
        try:
            try:
                stood = self._prolong()
            except ServerError:
                # A connection that was cut says nothing of the server: a new one does.
                stood = self._prolong()
        except ServerError as error:
            log.debug("lease not renewed: %s", error)
            self._steady_since = None
            return
        now = self._clock()
        if not stood or self._steady_since is None or now - self._renewed > self.secs * 2 / 3:
            if self._steady_since is not None:
                log.warning("this host gave no sign of life for %.1f s", now - self._renewed)
            self._steady_since = asked
        self._renewed = now

    def _prolong(self) -> bool:
        stood = bool(self._client.pexpire(host_key(self.host), self._ms))
        if not stood:
            # Gone after a pause of the server or of this process. Nobody has to be told: whoever recovered
            # our workers took them out of their lists, and they find out at their next claim.
            self._client.set(host_key(self.host), b"{}", px=self._ms)
            self._client.sadd(HOSTS, self.host)
        return stood

    @property
    def may_judge(self) -> bool:
        """Say whether this host has renewed without a gap for a whole lease.

        Only then may it call another dead: after a pause of the server or the network every lease looks lapsed.
        """
        steady, now = self._steady_since, self._clock()
        return steady is not None and now - steady > self.secs and now - self._renewed < self.secs * 2 / 3

    def publish(self, status: bytes) -> None:
        """Write what this host does where others can read it."""
        self._client.set(host_key(self.host), status, px=self._ms)

    def lapsed(self, hosts: Iterable[str]) -> list[str]:
        """Return those of *hosts*, and of all that have said so, whose lease has lapsed.

        None while this host may not judge.
        """
        if not self.may_judge:
            return []
        known = {host.decode("utf-8", "replace") for host in self._client.smembers(HOSTS)}
        hosts = sorted({*hosts, *known} - {self.host})
        pipe = self._client.pipeline(transaction=False)
        for host in hosts:
            pipe.exists(host_key(host))
        return [host for host, there in zip(hosts, pipe.execute(), strict=True) if not there]

    def forget(self, host: str) -> None:
        """Take a host whose workers have been recovered off the list of hosts."""
        self._client.srem(HOSTS, host)

    def end(self) -> None:
        """Give the lease up: there is nothing left that it protects."""
        self._ended.set()
        self._client.delete(host_key(self.host))
        self._client.srem(HOSTS, self.host)
