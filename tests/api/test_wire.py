"""conserver.api.wire: one connection for an event loop, shared by all who ask at the same time."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from redis import Redis
from redis.exceptions import ResponseError

from conserver.api.wire import AsyncWire
from conserver.errors import ServerError
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.talk import hold_async
from conserver.vcon import Vcon, dump
from tests.host import vcon
from tests.proxy import Proxy, proxied
from tests.servers import Authority, RealServer, SentinelSet, running
from tests.waiting import wait_until

T = TypeVar("T")
NOWHERE = "redis://user:geheim@127.0.0.1:1/0"


def on(url: str, use: Callable[[AsyncWire], Awaitable[T]], **options: Any) -> T:
    """Return what *use* makes of a wire, in an event loop of its own."""

    async def main() -> T:
        with closing(AsyncWire(url, "test", **options)) as wire:
            return await asyncio.wait_for(use(wire), 90)

    with asyncio.Runner(loop_factory=_loops[-1]) as runner:
        return runner.run(main())


_loops: list[Callable[[], asyncio.AbstractEventLoop]] = []


@pytest.fixture(autouse=True, params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loops(request: pytest.FixtureRequest) -> None:
    """Each kind of event loop that the API may run on."""
    _loops[:] = [request.param]


async def outcome(call: Awaitable[Any]) -> Any:
    """Return what a call returns, or the error that it raises."""
    try:
        return await call
    except ServerError as error:
        return error


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    with proxied(server_url) as proxy:
        yield proxy


# Replies


def test_everybody_gets_his_own_replies(redis: Redis, server_url: str) -> None:
    """A thousand at once, each with several commands of different kinds, in the order in which they were asked."""

    async def one(wire: AsyncWire, n: int) -> bool:
        await asyncio.sleep(random.random() / 50)
        words = [f"{n}-{i}" for i in range(n % 5 + 1)]
        replies = await wire.call([("ECHO", word) for word in words] + [("RPUSH", f"list:{n}", *words)])
        return replies == [*map(str.encode, words), len(words)]

    async def use(wire: AsyncWire) -> list[bool]:
        return await asyncio.gather(*(one(wire, n) for n in range(1000)))

    assert on(server_url, use) == [True] * 1000
    assert redis.info("clients")["connected_clients"] <= 2


def test_what_is_asked_in_one_turn_goes_out_in_order(redis: Redis, server_url: str) -> None:
    """As one write."""

    async def use(wire: AsyncWire) -> None:
        await asyncio.gather(*(wire.call([("RPUSH", "list", n)]) for n in range(500)))

    on(server_url, use)

    assert redis.lrange("list", 0, -1) == [str(n).encode() for n in range(500)]


def test_the_error_of_a_command_is_its_reply(redis: Redis, server_url: str) -> None:
    """The others of the same call are done, and the connection goes on."""
    redis.set("text", "x")

    async def use(wire: AsyncWire) -> list[Any]:
        first = await wire.call([("SET", "a", 1), ("LPUSH", "text", 1), ("NOSUCH",), ("GET", "a")])
        return [*first, *(await wire.call([("INCR", "a")]))]

    ok, wrong_type, unknown, value, after = on(server_url, use)

    assert (ok, value, after) == (b"OK", b"1", 2)
    assert isinstance(wrong_type, ResponseError)
    assert "WRONGTYPE" in str(wrong_type)
    assert isinstance(unknown, ResponseError)


def test_big_values_come_through_both_ways(redis: Redis, server_url: str) -> None:
    """40 MB, beside small ones that others ask for."""
    big = random.Random(1).randbytes(40_000_000)

    async def use(wire: AsyncWire) -> list[Any]:
        await wire.call([("SET", "big", big)])
        got = await asyncio.gather(wire.call([("GET", "big")]), wire.call([("PING",)]), wire.call([("GET", "no")]))
        return [reply for replies in got for reply in replies]

    assert on(server_url, use, timeout_secs=60) == [big, b"PONG", None]


def test_one_who_goes_away_takes_nobodys_reply(server_url: str) -> None:
    """His is read and dropped."""

    async def use(wire: AsyncWire) -> list[Any]:
        await wire.call([("PING",)])
        tasks = [asyncio.create_task(wire.call([("ECHO", str(n)), ("ECHO", "x")])) for n in range(10)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        return [d if isinstance(d, list) else type(d) for d in done]

    got = on(server_url, use)

    assert got[::2] == [asyncio.CancelledError] * 5
    assert got[1::2] == [[str(n).encode(), b"x"] for n in range(1, 10, 2)]


# Trouble


def test_a_cut_tells_exactly_those_who_wait(redis: Redis, proxy: Proxy) -> None:
    """Who had his reply keeps it, who asks later is served by a new connection; nothing is sent twice."""

    async def use(wire: AsyncWire) -> tuple[Any, list[Any], Any]:
        before = await wire.call([("RPUSH", "list", "before")])
        proxy.lose_next_reply()
        waiting = [asyncio.create_task(outcome(wire.call([("RPUSH", "list", i)]))) for i in range(20)]
        told = await asyncio.gather(*waiting)
        return before, told, await wire.call([("RPUSH", "list", "after")])

    before, told, after = on(proxy.url, use)

    entries = redis.lrange("list", 0, -1)
    assert before == [1]
    assert all(isinstance(one, ServerError) for one in told)
    assert entries[0] == b"before"
    assert entries[-1] == b"after"
    assert len(entries) == len(set(entries)) == after[0]


def test_cuts_again_and_again_lose_no_reply_and_repeat_nothing(redis: Redis, proxy: Proxy) -> None:
    """Each push that was answered is in its list once; one whose caller was told of a cut, at most once."""
    uuids = [f"entry-{n}" for n in range(600)]

    async def use(wire: AsyncWire) -> list[Any]:
        done = []
        for at in range(0, len(uuids), 20):
            if at % 100 == 60:
                proxy.lose_next_reply() if at % 200 == 60 else proxy.lose_next_request()
            some = uuids[at : at + 20]
            done += await asyncio.gather(*(outcome(wire.call([("RPUSH", "list", uuid)])) for uuid in some))
        return done

    replies = on(proxy.url, use)

    entries = [entry.decode() for entry in redis.lrange("list", 0, -1)]
    answered = {uuid for uuid, reply in zip(uuids, replies, strict=True) if not isinstance(reply, ServerError)}
    assert len(entries) == len(set(entries))
    assert answered <= set(entries)
    assert 0 < len(uuids) - len(answered) <= 6 * 20


def test_a_server_that_comes_back_is_found(tmp_path: Path) -> None:
    """While it is away everybody is told at once, by its address without secrets."""
    with running(RealServer(tmp_path / "redis")) as server:

        async def use(wire: AsyncWire) -> list[Any]:
            first = await wire.call([("SET", "a", 1)])
            await asyncio.to_thread(server.kill)
            away = await asyncio.gather(*(outcome(wire.call([("GET", "a")])) for _ in range(50)))
            await asyncio.to_thread(server.start)
            return [first, away, await wire.call([("GET", "a")])]

        first, away, back = on(server.url, use)

    assert (first, back) == ([b"OK"], [b"1"])
    assert all(isinstance(one, ServerError) for one in away)
    assert {str(one).partition(": ")[0] for one in away} == {f"server at {server.url}"}


class Closed:
    """What uvloop makes of a connection in the moment between its end and the reader's hearing of it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        # One that nobody has any more closes itself.
        self._writer = writer
        self.transport = writer.transport

    def write(self, data: bytes) -> None:
        """Refuse, in the words of uvloop."""
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")


def test_who_asks_just_after_the_connection_has_ended_is_told(redis: Redis, server_url: str) -> None:
    """Some event loops refuse to write to it before the reader has heard of its end."""

    async def use(wire: AsyncWire) -> list[Any]:
        first = await wire.call([("PING",)])
        wire._writer = Closed(wire._writer)  # type: ignore[assignment, arg-type]
        told = await outcome(wire.call([("PING",)]))
        return [first, told, await wire.call([("PING",)])]

    first, told, after = on(server_url, use)

    assert (first, after) == ([b"PONG"], [b"PONG"])
    assert isinstance(told, ServerError)
    assert "the handler is closed" in str(told)


def test_nobody_there_is_an_error_without_the_secrets_of_the_url() -> None:
    """For each of many at once."""
    told = on(NOWHERE, lambda wire: asyncio.gather(*(outcome(wire.call([("PING",)])) for _ in range(20))))

    assert all(isinstance(one, ServerError) for one in told)
    assert all(str(one).startswith("server at redis://127.0.0.1:1/0: Error 111 connecting") for one in told)
    assert "geheim" not in str(told)


def test_a_silent_server_costs_everybody_one_timeout(tmp_path: Path) -> None:
    """Those who wait, and those who come while it is silent: not one timeout after the other."""
    with running(RealServer(tmp_path / "redis")) as server:

        async def use(wire: AsyncWire) -> list[Any]:
            await wire.call([("PING",)])
            server.freeze()
            began = time.monotonic()
            first = await asyncio.gather(*(outcome(wire.call([("PING",)])) for _ in range(30)))
            # These have to connect, and nobody answers them either.
            second = await asyncio.gather(*(outcome(wire.call([("PING",)])) for _ in range(30)))
            took = time.monotonic() - began
            server.process.send_signal(signal.SIGCONT)
            return [first, second, took, await wire.call([("PING",)])]

        first, second, took, after = on(server.url, use, timeout_secs=0.5)

    assert all(isinstance(one, ServerError) for one in first + second)
    assert {str(one) for one in first} == {f"server at {server.url}: no answer within 0.5 s"}
    assert took < 5
    assert after == [b"PONG"]


def test_one_who_goes_away_while_it_connects_stops_nobody_else(proxy: Proxy) -> None:
    """The attempt is everybody's."""

    async def use(wire: AsyncWire) -> Any:
        proxy.delay_secs = 0.2
        first = asyncio.create_task(wire.call([("PING",)]))
        second = asyncio.create_task(wire.call([("PING",)]))
        await asyncio.sleep(0.1)
        first.cancel()
        return await second

    assert on(proxy.url, use) == [b"PONG"]


def test_what_nobody_has_asked_for_ends_the_connection(redis: Redis) -> None:
    """Else each later reply would be somebody else's."""

    async def use(_: AsyncWire) -> Any:
        asked = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            while data := await reader.read(4096):
                asked += data.count(b"PING")
                writer.write(b"+OK\r\n" * data.count(b"*"))
                if asked == 1 and b"PING" in data:
                    writer.write(b"-ERR nobody asked\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        wire = AsyncWire(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", "test")
        got = [await outcome(wire.call([("PING",)]))]
        while wire._writer is not None:
            await asyncio.sleep(0.01)
        got.append(await outcome(wire.call([("PING",)])))
        wire.close()
        server.close()
        return got

    assert on(NOWHERE, use) == [[b"OK"], [b"OK"]]


def test_a_server_that_has_forgotten_its_scripts_is_told_them_again(redis: Redis, server_url: str) -> None:
    """Also after a restart; the vCon is stored once and pushed once."""
    store = VconStore(server_url, Settings())

    def creating() -> Any:
        document = Vcon(vcon("hello"))
        return store.creating(document, dump(document.document), then=[("RPUSH", "list", str(document.uuid))])

    async def use(wire: AsyncWire) -> None:
        await hold_async(creating(), wire.call)
        await wire.call([("SCRIPT", "FLUSH")])
        await asyncio.gather(*(hold_async(creating(), wire.call) for _ in range(20)))

    on(server_url, use)

    assert redis.llen("list") == 21
    assert len(redis.keys("vcon:*")) == 21


# Addresses


def test_a_socket_file_works(server: str) -> None:
    """That is how the server of the tests is reached, and one of `conserver run`."""
    assert server.startswith("unix:")
    assert on(server, lambda wire: wire.call([("PING",)])) == [b"PONG"]


@pytest.mark.faults
@pytest.mark.timeout(300)
class TestServersByUrl:
    @pytest.fixture
    def stack(self) -> Iterator[ExitStack]:
        with ExitStack() as stack:
            yield stack

    def test_a_user_with_a_password_comes_in_and_another_one_does_not(self, tmp_path: Path, stack: ExitStack) -> None:
        """The words of the refusal hold no secret."""
        server = stack.enter_context(running(RealServer(tmp_path / "guarded")))
        server.client.execute_command("ACL", "SETUSER", "worker", "on", ">geheim", "allkeys", "+@all")
        server.client.execute_command("ACL", "SETUSER", "default", "off")
        at = f"127.0.0.1:{server.port}/1"

        good = on(f"redis://worker:geheim@{at}", lambda wire: wire.call([("PING",)]))
        wrong = on(f"redis://worker:falsch@{at}", lambda wire: outcome(wire.call([("PING",)])))

        assert good == [b"PONG"]
        assert isinstance(wrong, ServerError)
        assert str(wrong).startswith(f"server at redis://{at}: ")
        assert "falsch" not in str(wrong)

    @pytest.mark.thorough
    def test_tls_works_with_an_authority_that_is_known(self, tmp_path: Path, stack: ExitStack) -> None:
        """And is refused without it."""
        authority = Authority(tmp_path / "authority")
        options = authority.options(authority.server)
        server = stack.enter_context(running(RealServer(tmp_path / "tls", login=authority.login, **options)))
        url = f"rediss://127.0.0.1:{server.port}/0"

        good = on(f"{url}?ssl_ca_certs={authority.ca}", lambda wire: wire.call([("PING",)]))
        wrong = on(url, lambda wire: outcome(wire.call([("PING",)])))

        assert good == [b"PONG"]
        assert "certificate verify failed" in str(wrong)

    @pytest.mark.thorough
    def test_sentinels_say_where_the_server_is_now(self, tmp_path: Path, stack: ExitStack) -> None:
        """After a failover the next call goes to the new primary."""
        servers = stack.enter_context(running(SentinelSet(tmp_path)))

        async def use(wire: AsyncWire) -> list[Any]:
            before = await wire.call([("SET", "a", 1), ("WAIT", 1, 5000)])
            servers.primary.kill()
            await asyncio.to_thread(wait_until, servers.promoted, 60, "a failover")
            while isinstance(after := await outcome(wire.call([("GET", "a"), ("SET", "b", 1)])), ServerError):
                await asyncio.sleep(0.2)
            return [before, after]

        assert on(servers.url, use) == [[b"OK", 1], [b"1", b"OK"]]
