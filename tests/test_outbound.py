"""outbound: what may leave, where to, for how long, and what is said when it does not work."""

from __future__ import annotations

import email.utils
import gzip
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import httpcore
import httpx
import pytest
from pydantic import ValidationError

from conserver import deadline, outbound, outbound_wire
from conserver.errors import OutboundError, OutboundRefused, OutboundStatus
from conserver.outbound import Backoff, Limits, OutboundPolicy
from tests.fakes.http_server import Exchange, HttpServer
from tests.waiting import wait_until

SECRET = "s3cr3t-value"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins with the default policy, closed breakers, and waits that are noted instead of slept."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    outbound.configure(OutboundPolicy())
    yield
    outbound.configure(OutboundPolicy())


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time."""
    noted: list[float] = []
    monkeypatch.setattr(outbound, "_sleep", noted.append)
    return noted


def hello(exchange: Exchange) -> None:
    exchange.answer(200, b"hello", content_type="text/plain")


def answers(*codes: int, **headers: str) -> tuple[list[int], HttpServer]:
    """A server that answers with these codes, one after the other, and then with 200."""
    left = list(codes)
    return left, HttpServer(lambda exchange: exchange.answer(left.pop(0) if left else 200, **headers))


# What is reached


def test_a_trusted_url_may_be_on_this_machine() -> None:
    """What the operator wrote into the config goes where it says."""
    with HttpServer(hello) as server:
        answer = outbound.request("GET", f"{server.url}/x", trusted=True)

    assert (answer.status, answer.body) == (200, b"hello")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200"),
        *("0.0.0.0", "224.0.0.1", "255.255.255.255", "168.63.129.16", "192.0.0.192", "::1", "::", "fe80::1%eth0"),
        *("fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("::127.0.0.1", "fec0::1"),
    ],
)
def test_an_untrusted_name_that_resolves_to_a_private_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """The address counts, not the name, in whatever form it hides."""
    monkeypatch.setattr(outbound_wire, "resolve", lambda host, port: [address])

    with pytest.raises(OutboundRefused, match=r"audio\.example: this host has no public address.*allow_private"):
        outbound.request("GET", "http://audio.example/call.wav", trusted=False)


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "[::1]", "localhost", "[::ffff:127.0.0.1]"])
def test_the_spellings_of_loopback_are_refused(host: str) -> None:
    """A server on this machine is not reached by writing its address in an odd way."""
    with HttpServer(hello) as server, pytest.raises(OutboundRefused):
        outbound.request("GET", f"http://{host}:{server.port}/", trusted=False)

    assert server.requests == []


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_admitted(address: str) -> None:
    """The whole internet is open to a URL of a vCon."""
    assert OutboundPolicy().admits("example.com", address)


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that changes its address after the check gains nothing, since it is resolved once."""
    asked: list[str] = []
    connected: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["203.0.114.7"] if len(asked) == 1 else ["127.0.0.1"]

    def connect(self: object, host: str, *_: object) -> None:
        connected.append(host)
        raise outbound_wire.httpcore.ConnectError("nobody there")

    monkeypatch.setattr(outbound_wire, "resolve", resolve)
    monkeypatch.setattr(outbound_wire.httpcore.SyncBackend, "connect_tcp", connect)

    with pytest.raises(OutboundError, match="nobody there"):
        outbound.request("GET", "http://rebind.example/", trusted=False, backoff=outbound.ONCE)

    assert (asked, connected) == (["rebind.example"], ["203.0.114.7"])


def test_of_several_addresses_only_the_public_ones_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A private address among public ones is passed over, and each public one gets its turn."""
    connected: list[str] = []

    def connect(self: object, host: str, *_: object) -> None:
        connected.append(host)
        raise outbound_wire.httpcore.ConnectError("nobody there")

    monkeypatch.setattr(outbound_wire, "resolve", lambda host, port: ["10.0.0.1", "8.8.4.4", "::1", "8.8.8.8"])
    monkeypatch.setattr(outbound_wire.httpcore.SyncBackend, "connect_tcp", connect)

    with pytest.raises(OutboundError, match="nobody there"):
        outbound.request("GET", "http://mixed.example/", trusted=False, backoff=outbound.ONCE)

    assert connected == ["8.8.4.4", "8.8.8.8"]


@pytest.mark.parametrize("entry", ["127.0.0.0/8", "127.0.0.1", "localhost", "LOCALHOST."])
def test_the_config_can_allow_a_private_host_or_network(entry: str) -> None:
    """`outbound.allow_private` opens what it names."""
    outbound.configure(OutboundPolicy(allow_private=(entry,)))
    host = "localhost" if "ocalhost" in entry.lower() else "127.0.0.1"
    with HttpServer(hello) as server:
        answer = outbound.request("GET", f"http://{host}:{server.port}/", trusted=False)

    assert answer.body == b"hello"


def test_a_connection_of_a_laxer_policy_does_not_serve_a_stricter_one() -> None:
    """Kept connections belong to the policy that opened them."""
    with HttpServer(hello) as server:
        outbound.configure(OutboundPolicy(allow_private=("127.0.0.1",)))
        outbound.request("GET", server.url, trusted=False)
        outbound.configure(OutboundPolicy())

        with pytest.raises(OutboundRefused):
            outbound.request("GET", server.url, trusted=False)


@pytest.mark.parametrize("entry", ["http://audio.local", "audio.local:9000", "*.local", "10.0.0.0/33", ""])
def test_an_entry_of_allow_private_that_can_never_match_is_refused(entry: str) -> None:
    """A URL, a port or a pattern in the list would silently allow nothing."""
    with pytest.raises(ValidationError, match="neither a host name"):
        OutboundPolicy(allow_private=(entry,))


def test_http_can_be_forbidden() -> None:
    """With `allow_http: false` a vCon's URL has to be https."""
    outbound.configure(OutboundPolicy(allow_http=False))

    with pytest.raises(OutboundRefused, match=r"http is not allowed, only https \(outbound.allow_http\)"):
        outbound.request("GET", "http://example.com/", trusted=False)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://example.com/x", "'ftp' is not http or https"),
        ("gopher://example.com/", "'gopher' is not http or https"),
        ("/just/a/path", "'no scheme' is not http or https"),
        ("http://", "there is no host"),
        ("http://[::1", "the URL cannot be read"),
        ("http://exa\nmple/", "the URL cannot be read"),
        ("http://example.com/\udc80", "the URL cannot be read"),
        ("http://127.0.0.1:99999/", "there is no port 99999"),
        ("http://127.0.0.1:0/", "there is no port 0"),
    ],
)
def test_what_is_no_http_url_is_refused(url: str, said: str) -> None:
    """Only http and https leave, trusted or not."""
    with pytest.raises(OutboundRefused, match=said):
        outbound.request("GET", url, trusted=True)


# Files


def test_a_file_is_read_only_if_the_config_allows_it(tmp_path: Path) -> None:
    """`file:` URLs of vCons are closed by default."""
    file = tmp_path / "a call.wav"
    file.write_bytes(b"RIFF")

    with pytest.raises(OutboundRefused, match=r"file URLs are not allowed \(outbound.allow_file\)"):
        outbound.request("GET", file.as_uri(), trusted=False)
    outbound.configure(OutboundPolicy(allow_file=True))

    assert outbound.request("GET", file.as_uri(), trusted=False).body == b"RIFF"


def test_a_pipe_a_folder_and_a_big_file_are_refused(tmp_path: Path) -> None:
    """Reading a file neither hangs nor fills the memory."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big").write_bytes(bytes(1001))

    for name, said in (("pipe", "not a plain file"), ("big", "larger than 1000 bytes")):
        with pytest.raises(OutboundRefused, match=said):
            outbound.request("GET", (tmp_path / name).as_uri(), trusted=True, limits=Limits(max_bytes=1000))
    with pytest.raises(OutboundError, match="Is a directory"):
        outbound.request("GET", tmp_path.as_uri(), trusted=True)
    with pytest.raises(OutboundError, match="No such file"):
        outbound.request("GET", (tmp_path / "none").as_uri(), trusted=True)


# Redirects


def test_redirects_are_followed_within_the_limit() -> None:
    """A few hops are normal; a loop is not."""

    def respond(exchange: Exchange) -> None:
        if exchange.request.path == "/end":
            hello(exchange)
        else:
            exchange.answer(302, location="/end" if exchange.request.path == "/start" else exchange.request.path)

    with HttpServer(respond) as server:
        answer = outbound.request("GET", f"{server.url}/start", trusted=True)
        with pytest.raises(OutboundRefused, match="more than 5 redirects"):
            outbound.request("GET", f"{server.url}/loop", trusted=True)

    assert answer.body == b"hello"


def test_a_redirect_to_a_private_address_is_refused() -> None:
    """Each hop is checked like a new URL, also when the first was the operator's."""
    with HttpServer(hello) as inner:
        target = f"http://localhost:{inner.port}/admin"
        with (
            HttpServer(lambda exchange: exchange.answer(302, location=target)) as outer,
            pytest.raises(OutboundRefused, match="localhost: this host has no public address"),
        ):
            outbound.request("GET", outer.url, trusted=True)

    assert inner.requests == []


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://example.com/", "http://[::1"])
def test_a_redirect_leaves_http_for_nothing_else(location: str) -> None:
    """Not even where files are allowed."""
    outbound.configure(OutboundPolicy(allow_file=True))
    with (
        HttpServer(lambda exchange: exchange.answer(302, location=location)) as server,
        pytest.raises(OutboundRefused),
    ):
        outbound.request("GET", server.url, trusted=True)


def test_credentials_do_not_follow_a_redirect_to_another_host() -> None:
    """Neither Authorization nor a key in some other header is shown to whom it was not meant for."""
    outbound.configure(OutboundPolicy(allow_private=("localhost",)))
    headers = {"Authorization": f"Bearer {SECRET}", "X-Api-Key": SECRET, "Content-Type": "text/plain"}
    with HttpServer(hello) as second:
        target = f"http://localhost:{second.port}/"
        with HttpServer(lambda exchange: exchange.answer(307, location=target)) as first:
            outbound.request(
                "POST", first.url.replace("//", f"//me:{SECRET}@"), trusted=True, headers=headers, body=b"data"
            )

    assert SECRET in first.requests[0].headers["x-api-key"]
    assert SECRET not in str(second.requests[0])
    assert (second.requests[0].body, second.requests[0].headers["content-type"]) == (b"data", "text/plain")


def test_credentials_follow_a_redirect_on_the_same_host() -> None:
    """A service that only adds a slash still knows who asks."""

    def respond(exchange: Exchange) -> None:
        if exchange.request.path == "/a":
            exchange.answer(308, location="/a/")
        else:
            exchange.answer(204)

    with HttpServer(respond) as server:
        outbound.request("GET", f"http://me:{SECRET}@127.0.0.1:{server.port}/a", trusted=True)

    assert server.requests[1].path == "/a/"
    assert server.requests[0].headers["authorization"] == server.requests[1].headers["authorization"]


def test_a_post_is_not_turned_into_a_get() -> None:
    """A redirect that would drop the body is an error, not a delivery."""
    with (
        HttpServer(lambda exchange: exchange.answer(302, location="/elsewhere")) as server,
        pytest.raises(OutboundStatus, match="answered 302"),
    ):
        outbound.request("POST", server.url, trusted=True, body=b"vcon")

    assert len(server.requests) == 1


def test_a_redirect_that_is_not_followed_says_where_it_leads() -> None:
    """A caller that allows none finds the place in the error, and nobody has asked there."""
    with HttpServer(lambda exchange: exchange.answer(302, location="/elsewhere")) as server:
        for method, limits in (("POST", Limits()), ("GET", Limits(max_redirects=0))):
            with pytest.raises(OutboundStatus, match="answered 302") as caught:
                outbound.request(method, server.url, trusted=True, limits=limits)
            assert caught.value.location == "/elsewhere"

    assert len(server.requests) == 2


def test_a_downgrade_from_https_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was meant to be private does not go on in the clear."""
    moved = httpx.Response(307, headers={"location": "http://example.com/"})
    monkeypatch.setattr(outbound, "send", lambda *_: moved)

    with pytest.raises(OutboundRefused, match="redirects from https to http, which is not followed"):
        outbound.request("GET", "https://example.com/", trusted=True)


# Time and size


def test_a_dripping_body_ends_with_the_total_time() -> None:
    """A server that sends a byte now and then meets no read timeout, but the limit of the whole."""

    def drip(exchange: Exchange) -> None:
        exchange.begin(200, 10_000)
        while exchange.pause(0.02):
            exchange.write(b".")

    with HttpServer(drip) as server:
        started = time.monotonic()
        with pytest.raises(OutboundError, match="no answer in time"):
            outbound.request("GET", server.url, trusted=True, limits=Limits(total_secs=0.5), backoff=outbound.ONCE)

    assert 0.4 < time.monotonic() - started < 3


def test_a_dripping_head_ends_with_the_total_time() -> None:
    """The same for a server that never comes to the end of its headers."""

    def drip(exchange: Exchange) -> None:
        exchange.write(b"HTTP/1.1 200 OK\r\nx-a: ")
        while exchange.pause(0.02):
            exchange.write(b".")

    with HttpServer(drip) as server:
        started = time.monotonic()
        with pytest.raises(OutboundError, match="no answer in time"):
            outbound.request("GET", server.url, trusted=True, limits=Limits(total_secs=0.5), backoff=outbound.ONCE)

    assert time.monotonic() - started < 3


def test_a_silent_server_ends_with_the_read_time() -> None:
    """Silence is cut off before the total time is over."""
    with HttpServer(lambda exchange: exchange.pause(30) or None) as server:
        started = time.monotonic()
        with pytest.raises(OutboundError, match=r"no answer in time \(ReadTimeout\)"):
            outbound.request("GET", server.url, trusted=True, limits=Limits(read_secs=0.3), backoff=outbound.ONCE)

    assert time.monotonic() - started < 3


def test_a_receiver_that_does_not_read_ends_with_the_total_time() -> None:
    """Sending is bounded as well as reading."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        started = time.monotonic()
        with pytest.raises(OutboundError, match="no answer in time"):
            outbound.request("POST", url, trusted=True, body=bytes(32 * 1024 * 1024), limits=Limits(total_secs=0.5))

    assert time.monotonic() - started < 3


def test_a_time_limit_does_not_reach_into_the_next_request() -> None:
    """A connection that is used again has the time of the new request."""

    def respond(exchange: Exchange) -> None:
        if exchange.request.path == "/fast" or exchange.pause(0.5):
            hello(exchange)

    with HttpServer(respond) as server:
        outbound.request("GET", f"{server.url}/fast", trusted=True, limits=Limits(total_secs=0.3))
        answer = outbound.request("GET", f"{server.url}/slow", trusted=True)

    assert answer.body == b"hello"


@pytest.mark.parametrize("announced", [True, False])
def test_an_answer_over_the_size_limit_is_refused(announced: bool) -> None:
    """Whether its length was announced or not, it is not read to its end."""
    sent: list[int] = []

    def flood(exchange: Exchange) -> None:
        if announced:
            exchange.begin(200, 50_000_000)
        else:
            exchange.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
            exchange.cut()
        for _ in range(500):
            exchange.write(bytes(100_000))
            sent.append(100_000)

    with (
        HttpServer(flood) as server,
        pytest.raises(OutboundRefused, match="the answer is larger than 100000 bytes"),
    ):
        outbound.request("GET", server.url, trusted=True, limits=Limits(max_bytes=100_000))

    assert sum(sent) < 50_000_000


def test_a_packed_bomb_is_refused() -> None:
    """What an answer unpacks to is bounded, not only what is received."""
    bomb = gzip.compress(bytes(200_000_000), compresslevel=9)
    with (
        HttpServer(lambda exchange: exchange.answer(200, bomb, content_encoding="gzip")) as server,
        pytest.raises(OutboundRefused, match="the answer is larger than 1000000 bytes"),
    ):
        outbound.request("GET", server.url, trusted=True, limits=Limits(max_bytes=1_000_000))

    assert len(bomb) < 1_000_000


def test_a_packed_answer_is_unpacked() -> None:
    """gzip is asked for and understood."""
    packed = gzip.compress(b"hello" * 1000)
    with HttpServer(lambda exchange: exchange.answer(200, packed, content_encoding="gzip")) as server:
        answer = outbound.request("GET", server.url, trusted=True)

    assert answer.body == b"hello" * 1000
    assert server.requests[0].headers["accept-encoding"] == "gzip"
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("body", "encoding", "said"),
    [
        (gzip.compress(b"hello", mtime=0)[:-4], "gzip", "the packed answer ends too early"),
        (b"hello", "gzip", "the answer is not gzip"),
        (b"hello", "br", "packed with 'br', which was not asked for"),
        (gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "gzip, gzip", "packed with 'gzip, gzip'"),
    ],
)
def test_a_badly_packed_answer_is_an_error(body: bytes, encoding: str, said: str) -> None:
    """Half an answer is never taken for a whole one."""
    with (
        HttpServer(lambda exchange: exchange.answer(200, body, content_encoding=encoding)) as server,
        pytest.raises(OutboundError, match=said),
    ):
        outbound.request("GET", server.url, trusted=True, backoff=outbound.ONCE)


# Retries


def test_a_failing_service_is_asked_again(waits: list[float]) -> None:
    """503 and 429 are repeated, with waits that grow and vary."""
    _, server = answers(503, 429)
    with server:
        answer = outbound.request("GET", server.url, trusted=True)

    assert (answer.status, len(server.requests)) == (200, 3)
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0


def test_a_cut_connection_is_tried_again(waits: list[float]) -> None:
    """An answer that breaks off is not an answer."""

    def respond(exchange: Exchange) -> None:
        if len(server.requests) == 1:
            exchange.begin(200, 100)
            exchange.write(b"half")
            exchange.cut()
        else:
            hello(exchange)

    with HttpServer(respond) as server:
        answer = outbound.request("GET", server.url, trusted=True)

    assert (answer.body, len(waits)) == (b"hello", 1)


def test_the_attempts_are_counted_in_the_error(waits: list[float]) -> None:
    """After the last attempt the status is raised, and how often it was tried is said."""
    _, server = answers(*[503] * 10)
    with server, pytest.raises(OutboundStatus, match=r"answered 503 \(4 attempts\)$") as caught:
        outbound.request("GET", server.url, trusted=True)

    assert (caught.value.status, len(server.requests)) == (503, 4)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_may_have_been_done_is_not_repeated_unasked(method: str, waits: list[float]) -> None:
    """A POST is sent once, unless the caller says that it may be repeated."""
    _, server = answers(*[503] * 10)
    with server:
        with pytest.raises(OutboundStatus, match=r"answered 503$"):
            outbound.request(method, server.url, trusted=True)
        with pytest.raises(OutboundStatus, match="4 attempts"):
            outbound.request(method, server.url, trusted=True, repeatable=True)

    assert len(server.requests) == 5


@pytest.mark.parametrize("status", [400, 401, 404, 500, 501])
def test_what_repeating_cannot_cure_is_not_repeated(status: int) -> None:
    """A wrong request stays wrong."""
    _, server = answers(status)
    with server, pytest.raises(OutboundStatus, match=f"answered {status}$"):
        outbound.request("GET", server.url, trusted=True)

    assert len(server.requests) == 1


def test_retry_after_is_obeyed(waits: list[float]) -> None:
    """The server knows best when to come back."""
    _, server = answers(429, retry_after="7")
    with server:
        outbound.request("GET", server.url, trusted=True)

    assert waits == [7.0]


def test_retry_after_may_be_a_date() -> None:
    """Both forms of the header are read, and nonsense is ignored."""
    date = email.utils.formatdate(time.time() + 20, usegmt=True)

    assert 17 < (outbound.retry_after(httpx.Headers({"retry-after": date})) or 0) <= 20
    assert outbound.retry_after(httpx.Headers({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"})) == 0
    assert outbound.retry_after(httpx.Headers({"retry-after": "soon"})) is None
    assert outbound.retry_after(httpx.Headers()) is None


def test_a_long_retry_after_ends_the_attempts(waits: list[float]) -> None:
    """No thread waits an hour; the message says what was asked for."""
    _, server = answers(*[429] * 5, retry_after="3600")
    with server, pytest.raises(OutboundStatus, match="answered 429; it asks to wait 3600 s") as raised:
        outbound.request("GET", server.url, trusted=True)

    assert (waits, len(server.requests)) == ([], 1)
    assert raised.value.retry_after_secs == 3600


def test_the_time_of_all_attempts_is_bounded(waits: list[float]) -> None:
    """An attempt that would begin after the total time is not made."""
    _, server = answers(*[503] * 9)
    backoff = Backoff(attempts=9, wait_secs=4, max_wait_secs=10, total_secs=1)
    with server, pytest.raises(OutboundStatus):
        outbound.request("GET", server.url, trusted=True, backoff=backoff)

    assert len(server.requests) == 1


def test_an_exchange_ends_when_the_whole_call_does() -> None:
    """Whatever its own limits are; calls that come later have their own time again."""
    with HttpServer(lambda exchange: exchange.pause(30) or None) as server:
        started = time.monotonic()
        with deadline.until(started + 0.3), deadline.until(started + 60), pytest.raises(OutboundError, match="in time"):
            outbound.request("GET", server.url, trusted=True)
        took = time.monotonic() - started
    with HttpServer(hello) as server:
        answer = outbound.request("GET", server.url, trusted=True)

    assert (took < 3, answer.body) == (True, b"hello")


def test_no_attempt_begins_after_the_end_of_the_whole_call(waits: list[float]) -> None:
    """What failed in time is not tried again too late."""
    _, server = answers(*[503] * 9)
    with server, deadline.until(time.monotonic() + 60), pytest.raises(OutboundStatus, match=r"answered 503$"):
        outbound.request(
            "GET", server.url, trusted=True, backoff=Backoff(wait_secs=300, max_wait_secs=600, total_secs=900)
        )

    assert (waits, len(server.requests)) == ([], 1)


def test_nothing_is_asked_once_the_whole_call_is_over() -> None:
    """Nor does it count as a failure of the other side."""
    with HttpServer(hello) as server:
        with deadline.until(time.monotonic()):
            for _ in range(20):
                with pytest.raises(OutboundError, match="not asked, since the time of the whole call is over"):
                    outbound.request("GET", server.url, trusted=True)
        outbound.request("GET", server.url, trusted=True)

    assert len(server.requests) == 1


def test_a_refusal_is_not_repeated(waits: list[float]) -> None:
    """What the policy forbids is forbidden the second time as well."""
    with pytest.raises(OutboundRefused):
        outbound.request("GET", "http://127.0.0.1:1/", trusted=False)

    assert waits == []


# The breaker


def test_a_target_that_fails_ten_times_in_a_row_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Calls to it then fail at once, others are not concerned, and after a while one call finds out."""
    codes, server = answers(*[503] * 11)
    breakers = outbound._Breakers(open_secs=0.3)
    outbound._breakers = breakers
    with server, HttpServer(hello) as other:
        for _ in range(10):
            with pytest.raises(OutboundStatus):
                outbound.request("GET", server.url, trusted=True, backoff=outbound.ONCE)
        with pytest.raises(OutboundError, match="left alone for 0 s, after 10 calls in a row failed"):
            outbound.request("GET", server.url, trusted=True)
        unconcerned = outbound.request("GET", other.url, trusted=True)
        while not _admitted(breakers, server.url):
            threading.Event().wait(0.02)
        with pytest.raises(OutboundError, match="left alone"):
            outbound.request("GET", server.url, trusted=True)  # one probe at a time
        breakers.answered(server.url)
        codes.clear()
        answer = outbound.request("GET", server.url, trusted=True)

    assert (unconcerned.status, answer.status, len(server.requests)) == (200, 200, 11)
    assert f"{server.url}: 10 calls in a row failed" in caplog.text


def _admitted(breakers: outbound._Breakers, target: str) -> bool:
    try:
        breakers.check(target)
    except OutboundError:
        return False
    return True


def test_one_answer_closes_the_count() -> None:
    """Only failures in a row count, and a 404 is an answer."""
    codes, server = answers(*([503] * 9 + [404] + [503] * 9))
    with server:
        for _ in range(19):
            with pytest.raises(OutboundStatus):
                outbound.request("GET", server.url, trusted=True, backoff=outbound.ONCE)
        answer = outbound.request("GET", server.url, trusted=True)

    assert (answer.status, codes) == (200, [])


def test_many_targets_do_not_fill_the_memory() -> None:
    """URLs of vCons may name any number of hosts; only the last thousand are remembered."""
    breakers = outbound._Breakers(most=3)
    for number in range(10):
        breakers.failed(f"http://host{number}")

    assert list(breakers._targets) == ["http://host7", "http://host8", "http://host9"]


# Secrets


def test_no_error_or_log_holds_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Not from the URL, not from a header, not when the other side repeats them."""
    caplog.set_level(logging.DEBUG)

    def echo(exchange: Exchange) -> None:
        said = f"{exchange.request.path} {exchange.request.headers}"
        exchange.answer(403, said.encode(), content_type="text/plain")

    with HttpServer(echo) as server:
        url = f"http://me:{SECRET}@127.0.0.1:{server.port}/hook/T0KEN-IN-PATH?sig={SECRET}&x=1#{SECRET}"
        headers = {"Authorization": f"Bearer {SECRET}-2", "X-Api-Key": f"{SECRET}-3"}
        with pytest.raises(OutboundStatus) as caught:
            outbound.request("GET", url, trusted=True, headers=headers, quote_answer=False)
        with pytest.raises(OutboundStatus) as quoted:
            outbound.request("GET", url, trusted=True, headers=headers)

    assert f"GET http://127.0.0.1:{server.port}: answered 403" == str(caught.value)
    assert SECRET not in str(quoted.value)
    assert "***" in str(quoted.value)
    assert SECRET not in caplog.text


def test_an_untrusted_url_is_named_with_its_path() -> None:
    """Host and path say which recording it was; the query may hold a signature."""
    with pytest.raises(OutboundRefused) as caught:
        outbound.request("GET", f"gopher://example.com/calls/7.wav?X-Amz-Signature={SECRET}", trusted=False)

    assert str(caught.value).startswith("GET gopher://example.com/calls/7.wav: 'gopher' is not http or https")


@pytest.mark.parametrize("value", [f"{SECRET}\nx: y", f"{SECRET}é", f"{SECRET}\x00"])
def test_a_header_that_http_forbids_is_named_and_not_shown(value: str) -> None:
    """The value may be the secret whose last line break was not cut off."""
    with pytest.raises(OutboundRefused, match="header 'authorization' holds characters that HTTP forbids") as caught:
        outbound.request("GET", "http://127.0.0.1:1/", trusted=True, headers={"Authorization": value})

    assert SECRET not in str(caught.value)


def test_the_words_of_an_error_page_are_short_and_on_one_line() -> None:
    """An error quotes the beginning of a text, and nothing of anything else."""
    text = b"line one\n\x1b[31mline two " + b"x" * 5000
    with (
        HttpServer(lambda exchange: exchange.answer(400, text, content_type="text/plain")) as server,
        pytest.raises(OutboundStatus) as caught,
    ):
        outbound.request("GET", server.url, trusted=True)
    with (
        HttpServer(lambda exchange: exchange.answer(400, text, content_type="audio/wav")) as server,
        pytest.raises(OutboundStatus, match=r"answered 400$"),
    ):
        outbound.request("GET", server.url, trusted=True)

    assert 'answered 400: "line one ?[31mline two xxx' in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_sensitive_names_are_known() -> None:
    """By these names options and headers are kept out of logs and vCons."""
    sensitive = ["OPENAI_API_KEY", "ai_usage_api_token", "Authorization", "Set-Cookie", "LITELLM_PROXY_URL", "passwd"]

    assert all(outbound.is_sensitive(name) for name in sensitive)
    assert not any(outbound.is_sensitive(name) for name in ("model", "prompt", "content-type", "temperature"))


def test_an_answer_that_is_not_json_says_so() -> None:
    """The error names the source and the place."""
    answer = outbound.Answer(200, httpx.Headers(), b"{oops", "GET https://example.com")

    with pytest.raises(OutboundError, match=r"GET https://example.com: the answer is not JSON \(Expecting"):
        answer.json()


def test_a_delivery_keeps_its_name() -> None:
    """The same parts give the same name, and no two ways of cutting them do."""
    assert outbound.delivery_id("a", "b") == outbound.delivery_id("a", "b")
    assert outbound.delivery_id("a", "b") != outbound.delivery_id("ab", "")
    assert len(outbound.delivery_id("a")) == 32


# Names, TLS, proxies


def test_a_name_that_does_not_resolve_says_so(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    """The error names the host."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(outbound_wire, "getaddrinfo", unknown)

    with pytest.raises(OutboundError, match=r"cannot resolve nowhere.example: .*Name or service not known"):
        outbound.request("GET", "http://nowhere.example/", trusted=True)


def test_a_refused_connection_says_so(waits: list[float]) -> None:
    """Nobody listens: the error says it, with the attempts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(OutboundError, match=r"no answer \(ConnectError: .*refused.*\) \(4 attempts\)"):
        outbound.request("GET", f"http://127.0.0.1:{port}/", trusted=True)


def test_tls_is_checked_against_the_name_and_not_the_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """We connect to an address, but the certificate has to be for the name in the URL."""
    if which("openssl") is None:
        pytest.skip("makes a certificate with openssl")
    command = "req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=right.example"
    subprocess.run(
        ["openssl", *command.split(), "-addext", "subjectAltName=DNS:right.example"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    monkeypatch.setattr(outbound_wire, "_tls", lambda: ssl.create_default_context(cafile=tmp_path / "cert.pem"))
    monkeypatch.setattr(outbound_wire, "resolve", lambda host, port: ["127.0.0.1"])
    outbound_wire.close_connections()
    with HttpServer(hello) as server:
        server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
        answer = outbound.request("GET", f"https://right.example:{server.port}/", trusted=True)
        with pytest.raises(OutboundError, match=r"certificate is not valid for 'wrong.example'"):
            outbound.request("GET", f"https://wrong.example:{server.port}/", trusted=True, backoff=outbound.ONCE)
    outbound_wire.close_connections()

    assert answer.body == b"hello"


def test_a_proxy_of_the_environment_is_for_trusted_urls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrusted URL goes direct, since behind a proxy its address could not be checked."""
    monkeypatch.setattr(outbound_wire, "resolve", lambda host, port: ["127.0.0.1"])
    with HttpServer(hello) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:{SECRET}@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "inside.example")
        outbound.request("GET", "http://models.example/v1", trusted=True)
        with pytest.raises(OutboundRefused):
            outbound.request("GET", "http://models.example/v1", trusted=False)
        with pytest.raises(OutboundError):
            outbound.request("GET", "http://inside.example:1/", trusted=True, backoff=outbound.ONCE)

    assert [request.path for request in proxy.requests] == ["http://models.example/v1"]
    assert proxy.requests[0].headers["proxy-authorization"].startswith("Basic ")


def test_a_connection_belongs_to_one_thread() -> None:
    """It is used again there, and by nobody else, who might close it in the middle of a request."""
    ports: list[int] = []

    def respond(exchange: Exchange) -> None:
        ports.append(exchange._handler.client_address[1])
        exchange.answer(200)

    with HttpServer(respond) as server:
        outbound.request("GET", server.url, trusted=True)
        outbound.request("GET", server.url, trusted=True)
        other = threading.Thread(target=lambda: outbound.request("GET", server.url, trusted=True))
        other.start()
        other.join(20)
        outbound.request("GET", server.url, trusted=True)

    assert ports[0] == ports[1] == ports[3]
    assert ports[2] != ports[0]


FORKS = """
import os, sys
from conserver import outbound
def ask(): outbound.request("GET", sys.argv[1], trusted=True)
ask()
child = os.fork()
if not child:
    ask()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
ask()
"""


def test_a_child_process_has_connections_of_its_own() -> None:
    """Over that of its parent each could get the answers that are meant for the other."""
    ports: list[int] = []

    def respond(exchange: Exchange) -> None:
        ports.append(exchange._handler.client_address[1])
        exchange.answer(200)

    with HttpServer(respond) as server:
        subprocess.run([sys.executable, "-c", FORKS, server.url], check=True, timeout=60)

    assert ports[0] == ports[2]
    assert ports[1] != ports[0]


def test_the_connections_of_a_thread_end_with_it() -> None:
    """Threads come and go; what they leave open would add up."""
    closed: list[httpcore.NetworkStream] = []

    class Seen(outbound_wire._Stream):
        def close(self) -> None:
            closed.append(self)
            super().close()

    with pytest.MonkeyPatch.context() as patch, HttpServer(hello) as server:
        patch.setattr(outbound_wire, "_Stream", Seen)
        thread = threading.Thread(target=lambda: outbound.request("GET", server.url, trusted=True))
        thread.start()
        thread.join(20)
        wait_until(lambda: closed, message="a connection that is closed")

    assert len(closed) == 1


def test_many_threads_ask_at_once() -> None:
    """The client is safe to use from all threads of a worker at once."""
    seen: list[bytes] = []
    with HttpServer(hello) as server:
        threads = [
            threading.Thread(target=lambda: seen.append(outbound.request("GET", server.url, trusted=True).body))
            for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

    assert seen == [b"hello"] * 40


def test_an_sdk_gets_the_same_limits() -> None:
    """The httpx client for SDKs goes through the same exchange, and keeps its URLs out of the log."""
    with HttpServer(lambda exchange: exchange.answer(200, bytes(2000))) as server:
        client = outbound.http_client(Limits(max_bytes=1000))
        with pytest.raises(OutboundRefused, match="larger than 1000 bytes"):
            client.post(server.url, content=b"x")
        answer = outbound.http_client().post(server.url, content=b"x")

    assert len(answer.content) == 2000
