"""Servers as REDIS_URL may name them: with users, by TLS, found by sentinels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest
from redis import Redis

from conserver import connection
from conserver.errors import ConserverError, ServerError, SettingsError
from conserver.server import serving
from conserver.settings import Settings
from tests.commands import Folder
from tests.host import Host, accounted, entries, store, vcon
from tests.servers import Authority, RealServer, SentinelSet, running
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

CONFIG = {
    "links": {"act": {"module": "links.act", "options": {"sleep": 0.02}}},
    "chains": {"main": {"links": ["act"], "ingress_lists": ["in"], "egress_lists": ["out"]}},
}
#: Each character of it means something in a URL.
PASSWORD = "ge:h/e@i#m?%&"


def refused(url: str, kind: type[ConserverError] = ServerError) -> str:
    """Return what a start with this REDIS_URL says, which has no secret in it."""
    with pytest.raises(kind) as told, serving(Settings(redis_url=url)):
        pass
    said = str(told.value)
    assert not any(secret in said for secret in ("geheim", "wache", "falsch", PASSWORD, quote(PASSWORD, safe="")))
    return said


def refused_run(folder: Path, url: str) -> str:
    """Return the same as a user sees it: one line of `conserver run`, with exit code 3."""
    done = Folder(folder).run("run", REDIS_URL=url)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    return done.stderr.removeprefix("error: ").rstrip("\n")


def deliver(host: Host, redis: Redis, n: int) -> list[str]:
    """Start the host and wait until it has delivered *n* vCons."""
    uuids = store(redis, [vcon() for _ in range(n)])
    redis.rpush("in", *uuids)
    host.start(wait=False)
    wait_until(lambda: accounted(redis, ["in"]), 90, "everything settled")
    return uuids


# Users


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RealServer]:
    """A server that lets only the user `worker` in."""
    with running(RealServer(tmp_path / "guarded")) as server:
        acl = ("ACL", "SETUSER")
        server.client.execute_command(*acl, "worker", "on", f">{PASSWORD}", "allkeys", "allchannels", "+@all")
        server.client.execute_command(*acl, "default", "off")
        yield server


@pytest.mark.thorough
def test_a_user_with_a_password_works_and_neither_is_told(tmp_path: Path, guarded: RealServer):
    """The host delivers as that user; status and logs show the address alone; a wrong password is said to be wrong."""
    secret = quote(PASSWORD, safe="")
    url = f"redis://worker:{secret}@127.0.0.1:{guarded.port}/1"
    host = Host(tmp_path / "host", url, CONFIG, CONSERVER_WORKERS=1)
    try:
        with guarded.connect(username="worker", password=PASSWORD, db=1) as redis:
            uuids = deliver(host, redis, 50)
            status = Folder(tmp_path).run("status", REDIS_URL=url)
            assert host.stop() == 0

            assert Counter(entries(redis, "out")) == Counter(uuids)
        assert f" at redis://127.0.0.1:{guarded.port}/1\n" in status.stdout
        for text in (host.said(), status.stdout, status.stderr):
            assert "worker:" not in text.replace(f"{host.folder}", "")
            assert PASSWORD not in text
            assert secret not in text
        for wrong in ("worker:falsch", "nobody:geheim"):
            said = refused(f"redis://{wrong}@127.0.0.1:{guarded.port}/1")
            assert f"redis://127.0.0.1:{guarded.port}/1 refuses the user or the password of REDIS_URL" in said
        assert "demands a password; write it in REDIS_URL" in refused(f"redis://127.0.0.1:{guarded.port}/1")
    finally:
        host.close()


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who has signed the certificates of servers and clients."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def by_tls(tmp_path: Path, authority: Authority) -> Iterator[Callable[..., RealServer]]:
    """Start servers that speak TLS alone."""
    folders = (tmp_path / f"tls-{n}" for n in count())
    with ExitStack() as stack:

        def start(certificate: Path, *, clients: str = "no") -> RealServer:
            options = authority.options(certificate, clients=clients)
            return stack.enter_context(running(RealServer(next(folders), login=authority.login, **options)))

        yield start


@pytest.mark.thorough
def test_a_server_that_wants_certificates_works_with_them(
    tmp_path: Path, authority: Authority, by_tls: Callable[..., RealServer]
):
    """Both sides show one; all processes and threads of the host come in."""
    server = by_tls(authority.server, clients="yes")
    own = f"ssl_certfile={authority.client}&ssl_keyfile={authority.client.with_suffix('.key')}"
    url = f"rediss://127.0.0.1:{server.port}/0?ssl_ca_certs={authority.ca}&{own}"
    host = Host(tmp_path / "host", url, CONFIG, CONSERVER_WORKERS=1)
    try:
        uuids = deliver(host, host.redis, 50)
        assert host.stop() == 0

        assert Counter(entries(host.redis, "out")) == Counter(uuids)
    finally:
        host.close()


@pytest.mark.thorough
def test_what_is_wrong_with_tls_is_told(tmp_path: Path, authority: Authority, by_tls: Callable[..., RealServer]):
    """An authority that is not known, a certificate for another host, one that is missing, no TLS at all."""
    stranger = Authority(tmp_path / "stranger")
    good, elsewhere = by_tls(authority.server), by_tls(authority.elsewhere)
    strict = by_tls(authority.server, clients="yes")
    ca = f"ssl_ca_certs={authority.ca}"

    def url(server: RealServer, options: str = "", scheme: str = "rediss") -> str:
        return f"{scheme}://:geheim@127.0.0.1:{server.port}/0?{options}"

    def said(*args: object, **kwargs: str) -> str:
        return refused(url(*args, **kwargs))

    with running(RealServer(tmp_path / "plain")) as plain:
        assert "self-signed certificate in certificate chain" in (unknown := said(good))
        assert refused_run(tmp_path, url(good)) == unknown
        assert f"rediss://127.0.0.1:{good.port}/0 cannot be used" in unknown
        assert "add ?ssl_ca_certs=/PATH to REDIS_URL" in unknown
        assert "add ?ssl_ca_certs=/PATH to REDIS_URL" in said(good, f"ssl_ca_certs={stranger.ca}")
        assert "ssl_ca_certs=/no.crt cannot be read" in refused(url(good, "ssl_ca_certs=/no.crt"), SettingsError)
        assert "write in REDIS_URL the host that its certificate is for" in said(elsewhere, ca)
        assert "if it wants a certificate, add ?ssl_certfile=/PATH" in said(strict, ca)
        assert "if it speaks TLS there, write rediss://" in said(good, scheme="redis")
        assert "if it speaks no TLS there, write redis://" in said(plain, ca)


# Sentinels


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[SentinelSet]:
    """A primary, a replica and three sentinels."""
    with running(SentinelSet(tmp_path)) as servers:
        yield servers


@pytest.mark.thorough
def test_a_failover_loses_nothing_that_the_replica_had(tmp_path: Path, sentinels: SentinelSet):
    """kill -9 of the primary and of a sentinel: the host goes on with the replica, and each vCon is delivered once."""
    primary, replica = sentinels.primary.client, sentinels.replica.client
    url = f"redis://:{sentinels.PASSWORD}@127.0.0.1:{sentinels.replica.port}"
    host = Host(tmp_path / "host", url, CONFIG, REDIS_URL=sentinels.url)
    try:
        uuids = store(primary, [vcon() for _ in range(800)])
        primary.rpush("in", *uuids)
        assert primary.wait(1, 10_000) == 1
        host.start(wait=False)
        wait_until(lambda: replica.llen("out") > 100, 90, "the host is at work")
        sentinels.primary.kill()
        sentinels.sentinels[0].kill()
        wait_until(sentinels.promoted, 60, "a failover")
        wait_until(lambda: accounted(replica, ["in"]), 90, "everything settled")
        done = Folder(tmp_path).run("status", REDIS_URL=sentinels.url)

        assert Counter(entries(replica, "out")) == Counter(uuids)
        assert entries(replica, "DLQ:in") == []
        assert host.process is not None
        assert host.process.poll() is None
        assert " at redis+sentinel://127.0.0.1:" in done.stdout
        for secret in (sentinels.PASSWORD, sentinels.SENTINEL_PASSWORD):
            assert secret not in host.said() + done.stdout + done.stderr
    finally:
        host.close()


@pytest.mark.thorough
def test_sentinels_and_their_server_may_both_speak_tls(
    tmp_path: Path, authority: Authority, by_tls: Callable[..., RealServer]
):
    """The options of the URL count for both, and a sentinel that is not trusted is said to be so."""
    server = by_tls(authority.server)
    options = authority.options(authority.server) | {"tls_replication": "yes"}
    conf = f"sentinel monitor mymaster 127.0.0.1 {server.port} 1\n"
    with running(RealServer(tmp_path / "sentinel", conf=conf, login=authority.login, **options)) as sentinel:
        url = f"rediss+sentinel://127.0.0.1:{sentinel.port}/mymaster/0"
        with serving(Settings(redis_url=f"{url}?ssl_ca_certs={authority.ca}")) as found:
            wire = connection.Wire(found.url, "test")
            assert wire.call([("SET", "key", "value"), ("GET", "key")]) == [b"OK", b"value"]
            wire.close()
        assert f"sentinel 127.0.0.1:{sentinel.port}: Error 1 connecting" in (said := refused(url))
        assert "add ?ssl_ca_certs=/PATH to REDIS_URL" in said


@pytest.mark.thorough
def test_what_is_wrong_with_sentinels_is_told(tmp_path: Path, sentinels: SentinelSet):
    """Nobody there, another service, another password of the sentinels or of the server: what each of them says."""
    first = f"127.0.0.1:{sentinels.sentinels[0].port}"
    nobody = refused("redis+sentinel://:geheim@127.0.0.1:1,127.0.0.1:2/mymaster?sentinel_password=wache")
    service = refused(sentinels.url.replace("/mymaster/", "/othermaster/"))
    theirs = refused(sentinels.url.replace("sentinel_password=wache", "sentinel_password=falsch"))
    as_a_user = refused_run(tmp_path, sentinels.url.replace("/mymaster/", "/othermaster/"))
    server = refused(sentinels.url.replace(":geheim@", ":falsch@"))
    none = refused(sentinels.url.replace(":geheim@", ""))
    for sentinel in sentinels.sentinels:
        sentinel.freeze()
    silent = refused(sentinels.url)

    assert "server at redis+sentinel://127.0.0.1:1,127.0.0.1:2/mymaster cannot be used" in nobody
    assert "sentinel 127.0.0.1:1: Error 111 connecting" in nobody
    assert "sentinel 127.0.0.1:2: Error 111 connecting" in nobody
    assert f"no server 'othermaster' is known: sentinel {first} watches 'mymaster'" in service
    assert as_a_user == service
    assert f"sentinel {first} wants another sentinel_password" in theirs
    assert "/mymaster/0 refuses the user or the password of REDIS_URL" in server
    assert "/mymaster/0 demands a password" in none
    assert f"sentinel {first}: Timeout" in silent
    for said in (nobody, service, theirs, silent):
        assert "correct their hosts, their sentinel_password and the service in REDIS_URL" in said
