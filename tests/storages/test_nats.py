"""storages.nats: vCons in streams of a real NATS server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType

from conserver import StorageError, Vcon, deadline, outbound, telemetry
from conserver.ambient import Work, working
from conserver.testing import (
    ONE_WAY_RULES,
    storage_contract,
    throwaway_store,
    two_party_call,
)
from storages import nats
from storages.nats import Options
from storages.nats.jetstream import JetStream
from tests.nats import PASSWORD, NatsServer, nats_server
from tests.proxy import proxied
from tests.waiting import wait_until

Save = Callable[..., Vcon]
UUID = "0190c0de-1234-8567-8000-000000000001"


@pytest.fixture(scope="module")
def running() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
def server(running: NatsServer) -> Iterator[NatsServer]:
    """A server without streams, and a name for one that no other test uses."""
    running.stream = f"VCONS-{uuid4().hex[:8]}"
    yield running
    running.remove_streams()


@pytest.fixture
def save() -> Save:
    """Save a vCon, and return it."""
    store = throwaway_store()

    def saved(server: NatsServer, vcon: Vcon | None = None, **more: Any) -> Vcon:
        vcon = vcon or two_party_call()
        store.create(vcon, replace=True)
        with working(Work(store.writer())):
            nats.save(str(vcon.uuid), Options(**server.options | more))
        return vcon

    return saved


@pytest.mark.parametrize("rule", ONE_WAY_RULES)
def test_the_contract_of_storages(server: NatsServer, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules for every storage hold, but for those about `get`, which there is not."""
    with proxied(f"redis://127.0.0.1:{server.port}") as proxy, proxy.blackhole():
        checked = storage_contract(
            "storages.nats",
            server.options,
            rules=[rule],
            unreachable={"servers": ["nats://127.0.0.1:1"], "password": "wrong-s3cret"},
            denied={"password": "wrong-s3cret"},
            slow={"servers": [proxy.url.replace("redis:", "nats:")], "timeout": 0.2},
            backend=server,
            secrets=["wrong-s3cret", PASSWORD],
        )

    assert checked == [rule]


def test_the_message_is_the_vcon(server: NatsServer, save: Save) -> None:
    """Under the subject of its UUID, with headers by which one can pass it over unread."""
    vcon = save(server, two_party_call(UUID))

    [message] = server.messages()
    assert message.subject == f"vcons.{UUID}"
    assert message.data == vcon.to_bytes()
    assert message.headers is not None
    identity = message.headers.pop("Nats-Msg-Id")
    assert len(identity) == 32
    assert message.headers == {
        "Content-Type": "application/vcon+json",
        "Vcon-Uuid": UUID,
        "Vcon-Version": "0.4.0",
        "Nats-Expected-Stream": server.stream,
    }


def test_the_message_says_what_has_become_of_the_vcon(server: NatsServer, save: Save) -> None:
    """In a chain it names it: all its links have run."""
    with telemetry.bound(chain="main", vcon=UUID):
        save(server)

    headers = server.messages()[0].headers or {}
    assert (headers["Conserver-Chain"], headers["Conserver-Outcome"]) == ("main", "processed")


def odd() -> Vcon:
    vcon = two_party_call()
    vcon.document["x_odd"] = ["\0", "\ud800", "žluť 🐎", 2**70, 1e22, 1e5, 1.0, {"$set.a": None, "": []}]
    return vcon


def large() -> Vcon:
    vcon = two_party_call()
    vcon.dialog[0].update(body="QUJD" * 1_250_000, encoding="base64url")
    return vcon


def signed() -> Vcon:
    signature = {"header": {"uuid": UUID}, "protected": "eyJhbGciOiJSUzI1NiJ9", "signature": "c2lnbmF0dXJl"}
    return Vcon({"payload": "eyJwYXJ0aWVzIjpbXX0", "signatures": [signature]})


@pytest.mark.parametrize("make", [odd, large, signed])
def test_every_vcon_arrives_as_it_is(server: NatsServer, save: Save, make: Callable[[], Vcon]) -> None:
    """What JSON can say, 5 MB, and an envelope that says no version."""
    vcon = save(server, make())

    [message] = server.messages()
    assert Vcon.parse(message.data or b"", migrate=False).to_bytes() == vcon.to_bytes()
    assert ("Vcon-Version" in (message.headers or {})) == (make is not signed)


def test_a_uuid_may_go_in_its_place(server: NatsServer, save: Save) -> None:
    """Each version is a message of its own all the same."""
    server.add_stream(subjects=["vcons.>"])
    vcon = save(server, two_party_call(UUID), payload="uuid")
    vcon.document["subject"] = "Boiling again"
    save(server, vcon, payload="uuid")

    assert [message.data for message in server.messages()] == [UUID.encode()] * 2
    assert (server.messages()[0].headers or {})["Content-Type"] == "text/plain"


def test_older_consumers_get_the_older_version(server: NatsServer, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the option says so; the environment does not count."""
    monkeypatch.setenv("EGRESS_FORMAT_VERSION", "0.0.1")
    save(server, subject="new.{uuid}", stream="NEW")
    save(server, subject="old.{uuid}", stream="OLD", format_version="0.0.1")

    for stream, version in (("NEW", "0.4.0"), ("OLD", "0.0.1")):
        [message] = server.messages(stream)
        assert Vcon.parse(message.data or b"", migrate=False).document["vcon"] == version
        assert (message.headers or {})["Vcon-Version"] == version


# Versions


def test_a_later_version_takes_the_place_of_the_earlier_one(server: NatsServer, save: Save) -> None:
    """In a stream that was made here."""
    vcon = save(server)
    vcon.document["subject"] = "Boiling again"
    save(server, vcon)

    assert [message.data for message in server.messages()] == [vcon.to_bytes()]


@pytest.mark.parametrize("size", [0, 8_000_000])
def test_a_version_that_is_saved_again_is_one_message(server: NatsServer, save: Save, size: int) -> None:
    """Also in a stream that keeps all, and if it is nearly as large as the server allows."""
    server.add_stream(subjects=["vcons.>"])
    vcon = two_party_call()
    vcon.document["x_large"] = "x" * size
    save(server, vcon)
    save(server, vcon)

    assert len(server.messages()) == 1


@pytest.mark.parametrize("between", ["another version", "a delete"])
def test_a_version_that_comes_back_is_the_last_again(server: NatsServer, save: Save, between: str) -> None:
    """It is not taken for a repetition of what is not there any more."""
    vcon = save(server)
    subject = vcon.document["subject"]
    if between == "a delete":
        assert nats.delete(str(vcon.uuid), Options(**server.options)) is True
    else:
        vcon.document["subject"] = "Boiling again"
        save(server, vcon)
        vcon.document["subject"] = subject
    save(server, vcon)

    assert [message.data for message in server.messages()] == [vcon.to_bytes()]


def test_a_lost_acknowledgement_is_no_second_message(server: NatsServer, save: Save) -> None:
    """What was published by then is not published again, also where somebody has taken it."""
    server.add_stream(subjects=["vcons.>"])
    with proxied(f"redis://127.0.0.1:{server.port}") as proxy:
        away = {"servers": [proxy.url.replace("redis:", "nats:")]}
        save(server, **away)
        proxy.lose_next_reply()
        save(server, **away)

    assert len(server.messages()) == 2


def test_nothing_is_published_once_the_whole_call_is_over(
    server: NatsServer, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer version may be the last message by then."""
    find = nats._find_or_make_stream

    def late(jetstream: JetStream, opts: Options) -> None:
        find(jetstream, opts)
        wait_until(lambda: outbound.secs_left() < 0)

    monkeypatch.setattr(nats, "_find_or_make_stream", late)

    with deadline.until(time.monotonic() + 1), pytest.raises(StorageError, match="time of the whole call is over"):
        save(server)
    vcon = save(server)

    assert [message.data for message in server.messages()] == [vcon.to_bytes()]


def test_what_was_acknowledged_outlives_a_kill(server: NatsServer, save: Save) -> None:
    """Every save that returned is in the stream when the server is back."""
    saved: list[str] = []

    def keep_saving() -> None:
        with contextlib.suppress(StorageError):
            while True:
                saved.append(str(save(server).uuid))

    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(keep_saving) for _ in range(4)]
        try:
            wait_until(lambda: len(saved) >= 40 or any(one.done() for one in running), 60)
        finally:
            server.stop()
    server.start()

    assert len(saved) >= 40
    assert {f"vcons.{uuid}" for uuid in saved} <= {message.subject for message in server.messages()}


# Deleting


def test_a_delete_takes_all_of_one_vcon(server: NatsServer, save: Save) -> None:
    """All its versions, and nothing else."""
    server.add_stream(subjects=["vcons.>"])
    opts = Options(**server.options)
    other, vcon = save(server), save(server)
    vcon.document["subject"] = "Boiling again"
    save(server, vcon)

    assert (nats.delete(str(vcon.uuid), opts), nats.delete(str(vcon.uuid), opts)) == (True, False)
    assert [message.data for message in server.messages()] == [other.to_bytes()]


def test_a_delete_without_a_stream_finds_nothing(server: NatsServer) -> None:
    """It makes none, either."""
    assert nats.delete(UUID, Options(**server.options)) is False
    assert server.messages() == []


def test_a_delete_whose_answer_was_lost_does_not_know(server: NatsServer, save: Save) -> None:
    """It says neither that there was one nor that there was none; the vCon is gone."""
    with proxied(f"redis://127.0.0.1:{server.port}") as proxy:
        away = {"servers": [proxy.url.replace("redis:", "nats:")]}
        vcon = save(server, **away)
        proxy.lose_next_reply()

        assert nats.delete(str(vcon.uuid), Options(**server.options | away)) is None
        assert server.messages() == []


# Streams


def test_the_stream_that_is_made_keeps_the_last_version_of_each(server: NatsServer, save: Save) -> None:
    """In files, without an end."""
    save(server, subject="calls.{uuid}.done")

    info = server.jetstream(lambda jetstream: jetstream.stream_info(server.stream))
    config = info.config
    assert (config.subjects, config.max_msgs_per_subject, config.max_age) == (["calls.*.done"], 1, 0)
    assert (config.retention, config.storage) == (RetentionPolicy.LIMITS, StorageType.FILE)


def test_a_stream_that_is_there_stays_as_it_is(server: NatsServer, save: Save) -> None:
    """A save uses what others have made."""
    server.add_stream(name="WORK", subjects=["vcons.>", "calls"], retention=RetentionPolicy.WORK_QUEUE)
    before = server.jetstream(lambda jetstream: jetstream.stream_info("WORK")).config
    nats.ping(Options(**server.options | {"stream": "WORK"}))
    save(server, stream="WORK")

    assert server.jetstream(lambda jetstream: jetstream.stream_info("WORK")).config == before
    assert len(server.messages("WORK")) == 1


def test_a_stream_that_was_deleted_is_made_again(server: NatsServer, save: Save) -> None:
    """A process that has seen it does not fail for ever."""
    save(server)
    server.remove_streams()
    vcon = save(server)

    assert [message.data for message in server.messages()] == [vcon.to_bytes()]


def test_a_listener_is_not_taken_for_a_stream(server: NatsServer, save: Save) -> None:
    """Somebody who listens to the subject, so that NATS does not say that nobody does."""
    with server.answering("vcons.*", None):
        vcon = save(server)

    assert [message.data for message in server.messages()] == [vcon.to_bytes()]


@pytest.mark.parametrize("answer", [b"ok", b"[]", b"{}", b'{"stream": "OTHER", "seq": 1}', b'{"stream": "", "seq": 1}'])
def test_an_answer_that_is_no_acknowledgement_is_an_error(server: NatsServer, save: Save, answer: bytes) -> None:
    """Somebody else who answers has not kept the vCon."""
    with (
        server.answering("vcons.*", answer),
        pytest.raises(StorageError, match=r"what answers on subject vcons\.\S+ is not (JetStream|the stream)"),
    ):
        save(server, create_stream=False)


@pytest.mark.parametrize(
    ("stream", "options", "message"),
    [
        ({"name": "OTHER", "subjects": ["vcons.*"]}, {}, r"subject vcons\.\* belongs to stream OTHER: name that"),
        (
            {"name": "OTHER", "subjects": ["vcons.*"]},
            {"create_stream": False},
            "expected stream does not match; set stream to the one that takes the subject",
        ),
        (
            {"subjects": ["calls"]},
            {},
            r"the stream is there, but does not take subject vcons\.\*: add that to it",
        ),
        (
            {"subjects": ["calls"]},
            {"create_stream": False},
            r"nobody takes subject vcons\.\S+; is there a stream for it, and has it a leader\? \(3 attempts\)",
        ),
        (None, {"replicas": 3}, "replicas > 1 not supported in non-clustered mode; .*lower replicas"),
        (
            {"subjects": ["vcons.*"], "max_msg_size": 100},
            {},
            "message size exceeds maximum allowed; raise max_msg_size of the stream",
        ),
        (
            {"subjects": ["vcons.*"], "max_bytes": 100, "discard": DiscardPolicy.NEW},
            {},
            "maximum bytes exceeded; let the stream have more messages or bytes",
        ),
    ],
    ids=["of another", "of another, not made", "other subjects", "not made", "replicas", "message size", "full"],
)
def test_a_stream_that_does_not_take_it_says_why(
    server: NatsServer, save: Save, stream: dict[str, Any] | None, options: dict[str, Any], message: str
) -> None:
    """With what to do."""
    if stream:
        server.add_stream(**stream)

    where = r"cannot publish vCon \S+ to stream VCONS-\w+ at nats://127.0.0.1:\d+: "
    with pytest.raises(StorageError, match=where + message):
        save(server, **options)


def test_without_jetstream_it_says_so(save: Save) -> None:
    """A server that was started without."""
    with nats_server(jetstream="disabled") as server, pytest.raises(StorageError, match="is it enabled"):
        save(server)


def test_a_message_that_is_too_large_is_told_beforehand(save: Save) -> None:
    """The server would end the connection; smaller ones go on over it."""
    with nats_server(max_payload=20_000) as server:
        save(server)
        vcon = two_party_call()
        vcon.dialog[0].update(body="QUJD" * 6_000, encoding="base64url")
        with pytest.raises(StorageError, match=r"has 2\d,\d{3} bytes, and the server allows 20,000; raise its max_p"):
            save(server, vcon)
        save(server, vcon, payload="uuid")

        assert len(server.messages()) == 2


def test_headers_count_for_the_limit(save: Save) -> None:
    """A message that has room without them is not sent, either; one that just fits is."""
    with nats_server(max_payload=20_000) as server:
        vcon = two_party_call(UUID)
        fits = []
        for size in range(19_650, 20_001, 5):
            vcon.document["subject"] = ""
            vcon.document["subject"] = "x" * (size - len(vcon.to_bytes()))
            try:
                save(server, vcon)
                fits.append(size)
            except StorageError as error:
                assert "the server allows 20,000" in str(error)  # noqa: PT017  some fit, some do not

        assert 19_700 < max(fits) < 19_950
