"""conserver.connection: what is sent again and what is not, and whose trouble an error is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from redis import Redis
from redis import exceptions as redis_errors
from redis._parsers import BaseParser

from conserver import connection
from conserver.errors import ServerError
from tests.proxy import Proxy, proxied
from tests.server_moods import denied, full, read_only

NOWHERE = "redis://user:geheim@127.0.0.1:1/0"


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    with proxied(server_url) as proxy:
        yield proxy


# Clients


def test_a_client_repeats_what_a_cut_connection_swallowed(redis: Redis, proxy: Proxy) -> None:
    """Reads, and scripts that recognise their repetition, survive a restart in between."""
    client = connection.client(proxy.url, "test")
    redis.set("key", "value")
    client.ping()

    proxy.lose_next_reply()

    assert client.get("key") == b"value"


def test_once_sends_a_command_once(redis: Redis, proxy: Proxy) -> None:
    """A push whose reply was lost is not pushed a second time."""
    client = connection.once(proxy.url, "test")
    client.ping()

    proxy.lose_next_reply()
    with pytest.raises(ServerError):
        client.rpush("list", "a")

    assert redis.lrange("list", 0, -1) == [b"a"]


@pytest.mark.parametrize("mood", [full, read_only])
@pytest.mark.parametrize("make", [connection.client, connection.once])
def test_not_now_is_a_server_error(redis: Redis, server_url: str, mood: object, make: object) -> None:
    """By command, by pipeline and by script alike."""
    client = make(server_url, "test")
    pipe = client.pipeline(transaction=False)
    pipe.set("a", "b")

    with mood(redis):
        for write in (
            lambda: client.set("a", "b"),
            pipe.execute,
            lambda: client.eval("return redis.call('SET', KEYS[1], 'b')", 1, "a"),
        ):
            with pytest.raises(ServerError):
                write()


@pytest.mark.parametrize(
    "command",
    [
        ("SET", "a", "b"),
        ("EVAL", "return redis.call('SET', KEYS[1], 'b')", "1", "a"),
    ],
)
def test_a_denied_command_is_a_server_error(redis: Redis, server_url: str, command: tuple[str, ...]) -> None:
    """Also inside a script, where the words are others: it is denied to everybody, so no vCon is to blame."""
    client = connection.client(server_url, "test")

    with denied(redis, "-set"), pytest.raises(ServerError):
        client.execute_command(*command)


@pytest.mark.parametrize(
    "words",
    [
        "OOM command not allowed",
        "MISCONF Redis is configured to save RDB snapshots",
        "READONLY You can't write against a read only replica.",
        "LOADING Redis is loading the dataset in memory",
        "NOREPLICAS Not enough good replicas to write.",
        "NOAUTH Authentication required.",
        "NOPERM User default has no permissions",
        "MASTERDOWN Link with MASTER is down",
        "CLUSTERDOWN Hash slot not served",
    ],
)
def test_every_not_now_is_known_as_redis_py_raises_it(words: str) -> None:
    """The library turns some codes into types and cuts them off."""
    assert connection.is_server_error(BaseParser.parse_error(words))


def test_a_mistake_is_not_a_server_error(redis: Redis, server_url: str) -> None:
    """A command on a key of another type fails each time, for this one only."""
    redis.set("a", "b")

    with pytest.raises(redis_errors.ResponseError):
        connection.client(server_url, "test").lpush("a", "b")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        ("ERR Error running script: OOM command not allowed", True),
        ("MISCONF Redis is configured to save RDB snapshots", True),
        ("LOADING Redis is loading the dataset in memory", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
        ("ERR unknown command 'FOO'", False),
        ("ERR key 'DLQ:ZOOM_CALLS' holds a string, not a list", False),
    ],
)
def test_the_words_of_a_server_tell_not_now_from_not_this(words: str, expected: bool) -> None:
    """What is mistaken for trouble of the server is tried for ever."""
    assert connection.is_server_error(redis_errors.ResponseError(words)) is expected
    assert connection.is_not_now(words) is expected


def test_nobody_there_is_a_server_error_without_the_password() -> None:
    """Errors end up in logs and dead letters."""
    with pytest.raises(ServerError) as once:
        connection.once(NOWHERE, "test").ping()
    with pytest.raises(ServerError, match=r"server at redis://127.0.0.1:1/0: ") as wire:
        connection.Wire(NOWHERE, "test").call([("PING",)])

    assert "geheim" not in f"{once.value}{wire.value}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:pw@host:6380/2?password=pw", "redis://host:6380/2"),
        ("rediss://:pw@host", "rediss://host"),
        ("redis://", "redis://localhost"),
        ("unix://user:pw@/run/r.sock?db=1", "unix:///run/r.sock"),
        ("redis+sentinel://:pw@a:1,b:2/name?sentinel_password=pw", "redis+sentinel://a:1,b:2/name"),
    ],
)
def test_an_address_shows_no_secret(url: str, shown: str) -> None:
    """Neither user nor password nor query."""
    assert connection.address(url) == shown


# Sentinels


class Sentinels:
    """What the sentinels of a `redis+sentinel://` URL say, without any: the server is behind a proxy that may move."""

    def __init__(self, server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._server_url = server_url
        self._place = ("127.0.0.1", 1)
        self.asked = 0
        monkeypatch.setattr(connection._Sentinels, "discover_master", lambda _, service: self._say(service))

    def _say(self, service: str) -> tuple[str, int]:
        assert service == "mymaster"
        self.asked += 1
        return self._place

    @contextmanager
    def moved(self) -> Iterator[None]:
        """The server is at a place where it has not been; at the end its connections are cut."""
        with proxied(self._server_url) as proxy:
            parts = urlsplit(proxy.url)
            self._place = (parts.hostname or "", parts.port or 0)
            yield


@pytest.fixture
def sentinels(server_url: str, monkeypatch: pytest.MonkeyPatch) -> Sentinels:
    return Sentinels(server_url, monkeypatch)


FOUND = "redis+sentinel://127.0.0.1:1/mymaster"


def test_sentinels_are_asked_before_each_connection(redis: Redis, sentinels: Sentinels) -> None:
    """A server that has gone elsewhere is found there, by each of the ways in; nobody goes back to where it was."""
    redis.set("key", "value")
    client, once, wire = connection.client(FOUND, "c"), connection.once(FOUND, "o"), connection.Wire(FOUND, "w")

    def ask() -> list[object]:
        return [client.get("key"), once.get("key"), *wire.call([("GET", "key")])]

    with sentinels.moved():
        before = ask()
    with sentinels.moved():
        with pytest.raises(ServerError):
            wire.call([("GET", "key")])
        after = ask()

    assert before == after == [b"value"] * 3


def test_connections_that_stand_ask_no_sentinel(redis: Redis, sentinels: Sentinels) -> None:
    """Sentinels may all be away while nothing moves."""
    wire, client = connection.Wire(FOUND, "w"), connection.client(FOUND, "c")
    with sentinels.moved():
        for _ in range(5):
            wire.call([("PING",)])
            client.ping()

    assert sentinels.asked == 2


def test_a_server_that_is_no_primary_any_more_is_left(redis: Redis, sentinels: Sentinels) -> None:
    """It refuses a write, since it was made a replica: the sentinels know where to go."""
    wire, once = connection.Wire(FOUND, "w"), connection.once(FOUND, "o")
    with sentinels.moved():
        wire.call([("PING",)])
        once.ping()
        with read_only(redis):
            with pytest.raises(ServerError):
                wire.call([("SET", "a", "b")])
            with pytest.raises(ServerError):
                once.set("a", "b")
            asked = sentinels.asked

            wire.call([("PING",)])
            once.ping()

    assert sentinels.asked == asked + 2


def test_what_each_sentinel_says_is_told() -> None:
    """Of those that do not answer, too, and no password of anybody."""
    url = "redis+sentinel://:geheim@127.0.0.1:1,127.0.0.1:2/mymaster?sentinel_password=wache"
    with pytest.raises(ServerError) as told:
        connection.Wire(url, "test").call([("PING",)])

    assert "server at redis+sentinel://127.0.0.1:1,127.0.0.1:2/mymaster: " in str(told.value)
    assert "no server 'mymaster' is known: sentinel 127.0.0.1:1: Error 111 connecting" in str(told.value)
    assert "; sentinel 127.0.0.1:2: Error 111 connecting" in str(told.value)
    assert "geheim" not in str(told.value)
    assert "wache" not in str(told.value)


# Wire


def test_a_wire_gives_one_reply_a_command_and_errors_as_values(redis: Redis, server_url: str) -> None:
    """One refused command does not spoil the others."""
    redis.set("a", "text")

    replies = connection.Wire(server_url, "test").call([("GET", "a"), ("LPUSH", "a", "b"), ("GET", "nothing")])

    assert replies[0] == b"text"
    assert isinstance(replies[1], redis_errors.ResponseError)
    assert replies[2] is None


def test_a_wire_repeats_nothing_and_opens_again(redis: Redis, proxy: Proxy) -> None:
    """The caller decides what to ask again."""
    wire = connection.Wire(proxy.url, "test")
    wire.call([("PING",)])

    proxy.lose_next_reply()
    with pytest.raises(ServerError):
        wire.call([("RPUSH", "list", "a"), ("RPUSH", "list", "b")])

    assert wire.call([("LRANGE", "list", "0", "-1")]) == [[b"a", b"b"]]


def test_an_interrupted_read_does_not_answer_the_next_question(
    redis: Redis, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler that raises leaves no old reply on the wire."""
    wire = connection.Wire(server_url, "test")
    wire.call([("PING",)])

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(wire, "_reply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            wire.call([("ECHO", "old")])

    assert wire.call([("ECHO", "new")]) == [b"new"]


def test_connections_say_whose_they_are(redis: Redis, server_url: str) -> None:
    """An operator sees in CLIENT LIST what is connected."""
    wire = connection.Wire(server_url, "queue:host 1")
    wire.call([("PING",)])

    assert any(client["name"].startswith("conserver:queue:host_1:") for client in redis.client_list())
