"""Followers: what is pulled from another conserver, which gives all kinds of answers."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from conserver import followers, outbound
from conserver.configmodel import Config, FollowerConfig
from conserver.errors import OutboundError, OutboundStatus, ServerError
from conserver.followers import Follower, remote
from conserver.queue import Queue
from conserver.settings import Settings
from conserver.store import VconStore
from tests.fakes.http_server import Exchange, HttpServer
from tests.fakes.other_conserver import LIST, TOKEN, OtherConserver, cut, drip, hang, html, says
from tests.server_moods import full
from tests.waiting import wait_until

DEAD = "DLQ:follower:peer"
SETTINGS = Settings(lease_secs=2.0, max_vcon_bytes=100_000)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here waits for long, and no breaker remembers what another test has seen."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers(failures=1000))
    monkeypatch.setattr(outbound, "_sleep", lambda secs: None)
    monkeypatch.setattr(followers, "FIRST_PAUSE_SECS", 0.01)
    monkeypatch.setattr(followers, "LONGEST_PAUSE_SECS", 0.05)
    monkeypatch.setattr(followers, "FIRST_LATE_SECS", 0.0)
    monkeypatch.setattr(followers, "LONGEST_LATE_SECS", 0.0)


@pytest.fixture(params=[True, False], ids=["safe", "old"])
def other(request: pytest.FixtureRequest) -> Iterator[OtherConserver]:
    """Another conserver: once with the safe egress, once with the old one only."""
    with OtherConserver(safe=request.param) as other:
        yield other


@pytest.fixture
def safe() -> Iterator[OtherConserver]:
    """Another conserver with the safe egress."""
    with OtherConserver() as other:
        yield other


@pytest.fixture
def old() -> Iterator[OtherConserver]:
    """Another conserver with the old egress only."""
    with OtherConserver(safe=False) as other:
        yield other


class House:
    """Our side: a server, its store, and followers of another conserver."""

    def __init__(self, url: str, redis: Redis) -> None:
        self.url = url
        self.redis = redis
        self.store = VconStore(url, SETTINGS)
        self.queue = Queue(url, "test")

    def follower(self, other: OtherConserver, stopping: threading.Event | None = None, **config: Any) -> Follower:
        return Follower(self.url, SETTINGS, entry(other.url, **config), self.store, stopping)

    def pushed(self) -> list[str]:
        return [uuid.decode() for uuid in self.redis.lrange("in", 0, -1)]

    def given(self) -> list[str]:
        """What was taken for good and is not done."""
        return [uuid.decode() for uuid in self.redis.lrange("follower:peer", 0, -1)]

    def dead(self) -> dict[str, str]:
        return {entry.decode(): why["error"] for entry, why in self.queue.dead("follower:peer")}

    def stored(self) -> int:
        return len(self.redis.keys("vcon:*"))


def entry(url: str, **config: Any) -> FollowerConfig:
    fields = {
        "name": "peer",
        "url": url,
        "egress_list": LIST,
        "follower_ingress_list": "in",
        "auth_token": TOKEN,
        "pulling_interval": 0.01,
        "fetch_vcon_limit": 10,
    }
    return FollowerConfig(**(fields | config))


@pytest.fixture
def house(server_url: str, redis: Redis) -> House:
    return House(server_url, redis)


# What goes well


def test_what_is_pulled_is_stored_indexed_and_pushed_oldest_first(house: House, other: OtherConserver) -> None:
    """Through either egress, with the token in its header."""
    uuids = [other.add(f"call {n}") for n in range(5)]

    assert house.follower(other).pull() == 5

    assert house.pushed() == uuids
    assert [house.store.get(uuid).subject for uuid in uuids] == [f"call {n}" for n in range(5)]
    assert house.store.find(tel="+12025550143") == set(uuids)
    assert {request.headers["x-conserver-api-token"] for request in other.requests} == {TOKEN}
    assert (other.waiting, other.leased(), house.given()) == ([], [], [])


def test_no_more_than_the_limit_is_pulled_at_once(house: House, safe: OtherConserver) -> None:
    """The rest waits where it is."""
    uuids = [safe.add() for _ in range(5)]
    follower = house.follower(safe, fetch_vcon_limit=2)

    assert [follower.pull() for _ in range(4)] == [2, 2, 1, 0]
    assert house.pushed() == uuids


def test_what_is_done_is_acknowledged_after_its_push(house: House, safe: OtherConserver) -> None:
    """When the other side hears of it, it is in our list."""
    uuid = safe.add()
    seen: list[Any] = []

    def look(exchange: Exchange) -> None:
        seen.append((house.pushed(), json.loads(exchange.request.body)["vcons"]))
        exchange.answer(503)

    safe.behave("POST /egress/acknowledge", look, times=1)
    house.follower(safe).pull()

    assert seen == [([uuid], [uuid])]
    assert safe.acknowledged == [uuid]


def test_a_conserver_without_the_safe_egress_is_asked_for_it_now_and_then(
    house: House, old: OtherConserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been replaced by one that has it."""
    follower = house.follower(old)
    for _ in range(3):
        follower.pull()
    asked = len(old.asked("POST /egress/lease"))
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 601)
    old.safe = True
    uuid = old.add()
    follower.pull()

    assert asked == 1
    assert old.acknowledged == [uuid]


def test_an_error_does_not_mean_that_the_safe_egress_is_missing(house: House, safe: OtherConserver) -> None:
    """What is taken by the old one because of a passing error may be lost by another."""
    safe.add()
    for status in (401, 403, 422, 500):
        safe.behave("POST /egress/lease", says(status, {"detail": "no"}), times=1)
        with pytest.raises(OutboundStatus, match=f"answered {status}"):
            house.follower(safe).pull()

    assert safe.asked("GET") == []


def test_the_header_has_the_name_of_the_settings(house: House) -> None:
    """CONSERVER_HEADER_NAME holds for followers, too."""
    with OtherConserver(header="x-other") as other:
        other.add()
        settings = Settings(api_header_name="x-other")

        assert Follower(house.url, settings, entry(other.url), house.store).pull() == 1


# vCons that cannot be had


def test_a_vcon_that_is_not_there_any_more_is_dropped(
    house: House, other: OtherConserver, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and the others go on."""
    first, gone, last = other.add(), other.add(), other.add()
    del other.vcons[gone]
    house.follower(other).pull()

    assert house.pushed() == [first, last]
    assert house.given() == other.leased() == []
    assert f"follower 'peer': vCon {gone} is not there any more: dropped" in caplog.messages


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        (says(200, {"detail": "Invalid API Key"}), "no vCon: the member uuid is missing"),
        (says(200, ["x"]), "a vCon is a JSON object, not an array"),
        (lambda exchange: exchange.answer(200, b"oops", content_type="application/json"), "not JSON: "),
        (lambda exchange: exchange.answer(200, b""), "not JSON: it is empty"),
        (says(200, {"uuid": "019cbd56-e6f8-8850-b39e-284dd08aa134"}), "which is another one"),
        (says(200, {"x": "y" * 200_000}), "the answer is larger than 100000 bytes"),
    ],
)
def test_what_is_no_vcon_is_a_dead_letter_and_holds_nobody_up(
    house: House, other: OtherConserver, mood: Callable[[Exchange], None], reason: str
) -> None:
    """Nothing of it is stored; the reason says what came instead."""
    first, bad, last = other.add(), other.add(), other.add()
    other.behave(f"GET /vcon/{bad}", mood)
    house.follower(other).pull()

    assert house.pushed() == [first, last]
    assert list(house.dead()) == [bad]
    assert reason in house.dead()[bad]
    assert house.stored() == 2
    assert house.given() == other.leased() == []


def test_entries_that_are_no_uuids_are_dead_letters(house: House, other: OtherConserver) -> None:
    """Nothing is asked for by such a name."""
    other.waiting = ["../config", {"a": 1}, 7, "", "\ud800"]
    good = other.add()
    house.follower(other).pull()

    assert house.pushed() == [good]
    assert set(house.dead()) == {"../config", '{"a":1}', "7", "", "\\ud800"}
    assert house.dead()["../config"] == "the entry '../config' is not a UUID"
    assert [request.path for request in other.asked("GET /vcon/") if "egress" not in request.path] == [f"/vcon/{good}"]


def test_dead_letters_that_are_retried_are_fetched_again(house: House, other: OtherConserver) -> None:
    """`dlq retry follower:peer` puts them where the follower looks first."""
    uuid = other.add()
    other.behave(f"GET /vcon/{uuid}", says(200, {}))
    follower = house.follower(other)
    follower.pull()
    other.be_good()
    assert house.queue.retry("follower:peer", 10) == 1
    follower.pull()

    assert house.pushed() == [uuid]
    assert house.dead() == {}


@pytest.mark.parametrize(
    "mood",
    [html, cut, drip, says(500, {"detail": "boom"}), says(422, {}), says(502, {})],
    ids=lambda mood: str(mood)[:20],
)
def test_a_vcon_that_fails_is_kept_and_the_others_go_on(
    house: House, other: OtherConserver, mood: Callable[[Exchange], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the answer is stored; it is fetched when it can be."""
    monkeypatch.setattr(remote, "VCON_SECS", 0.3)
    first, bad, last = other.add(), other.add(), other.add()
    other.behave(f"GET /vcon/{bad}", mood)
    follower = house.follower(other)
    follower.pull()
    pushed = house.pushed()
    assert house.stored() == 2
    other.be_good()
    follower.pull()

    assert pushed == [first, last]
    assert house.pushed() == [first, last, bad]
    assert house.dead() == {}


def test_one_that_fails_while_others_do_not_becomes_a_dead_letter(house: House, other: OtherConserver) -> None:
    """After ten tries, also where only one a round is pulled."""
    bad = other.add()
    other.behave(f"GET /vcon/{bad}", says(500, {"detail": "boom"}))
    follower = house.follower(other, fetch_vcon_limit=1)
    with pytest.raises(OutboundStatus, match="answered 500"):
        follower.pull()
    good = []
    while not house.dead():
        good.append(other.add())
        assert len(good) < 20
        follower.pull()

    assert house.pushed() == good
    assert "it failed 10 times while others did not: GET" in house.dead()[bad]
    assert 'answered 500: "{"detail": "boom"}"' in house.dead()[bad].replace('\\"', '"')


def test_nothing_becomes_a_dead_letter_while_nobody_gets_through(house: House, other: OtherConserver) -> None:
    """An outage is nobody's fault, and takes little more from the list."""
    uuids = [other.add() for _ in range(8)]
    other.behave("GET /vcon/0", says(500, {}))
    other.behave("GET /vcon/", says(500, {}))
    other._moods = [[f"GET /vcon/{uuid}", says(500, {}), 10_000] for uuid in uuids]
    follower = house.follower(other, fetch_vcon_limit=2)
    for _ in range(15):
        with pytest.raises(OutboundStatus, match="answered 500"):
            follower.pull()
    assert (house.dead(), house.pushed()) == ({}, [])
    other.be_good()
    for _ in range(8):
        follower.pull()

    assert sorted(house.pushed()) == sorted(uuids)


# Lists that cannot be had


@pytest.mark.parametrize(
    ("mood", "said"),
    [
        (says(403, {"detail": "Invalid API Key"}), 'answered 403: "{"detail": "Invalid API Key"}"'),
        (says(200, {"detail": "Invalid API Key"}), "answered something else than a l"),
        (says(200, "x"), "answered something else than a l"),
        (says(500, {"detail": "boom"}), "answered 500"),
        (html, "answered with 'text/html' instead of JSON"),
        (lambda exchange: exchange.answer(200, b"[[" * 5000, content_type="application/json"), "nested deeper than"),
        (cut, "no answer (RemoteProtocolError"),
        (drip, "no answer in time"),
        (hang, "no answer in time"),
    ],
    ids=["403", "object", "text", "500", "html", "deep", "cut", "drip", "hang"],
)
def test_a_list_that_is_none_is_an_error_and_nothing_else(
    house: House, other: OtherConserver, mood: Callable[[Exchange], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched, stored or pushed, and the next round goes well."""
    monkeypatch.setattr(remote, "UUIDS_SECS", 0.3)
    uuid = other.add()
    follower = house.follower(other)
    other.behave("POST /egress/lease" if other.safe else "GET /vcon/egress", mood)
    with pytest.raises(OutboundError) as raised:
        follower.pull()
    keys = [key.decode() for key in house.redis.keys("*") if not key.endswith(b":source")]
    other.be_good()

    assert said in str(raised.value)
    assert TOKEN not in str(raised.value)
    assert keys == []
    assert follower.pull() == 1
    assert house.pushed() == [uuid]


@pytest.mark.parametrize("lease", [None, 7, "", "a\nb", "x" * 201])
def test_a_lease_without_an_id_is_refused(house: House, safe: OtherConserver, lease: Any) -> None:
    """What it names could never be acknowledged."""
    safe.behave("POST /egress/lease", says(200, {"lease": lease, "vcons": [safe.add()]}))

    with pytest.raises(OutboundError, match="answered a lease without a usable id: an object"):
        house.follower(safe).pull()


def test_what_a_cut_answer_may_have_taken_is_told(
    house: House, old: OtherConserver, caplog: pytest.LogCaptureFixture
) -> None:
    """The old egress has no other way; while it fails, one is taken at a time."""
    follower = house.follower(old)
    old.behave("GET /vcon/egress", cut, times=2)
    for _ in range(2):
        follower._round()
    old.add()
    follower._round()

    assert [message for message in caplog.messages if "may be lost" in message] == [
        f"follower 'peer': up to {n} entries may be lost that were taken from list 'out' of the other conserver: {why}"
        for n, why in ((10, "there was no usable answer"), (1, "there was no usable answer, again and again"))
    ]


def test_nothing_is_said_to_be_lost_when_nobody_was_reached(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """A conserver that is down has taken nothing."""
    with OtherConserver(safe=False) as other:
        follower = house.follower(other)
        follower.pull()
    outbound.close_connections()
    follower._round()

    assert "may be lost" not in caplog.text
    assert "ConnectError" in caplog.text


def test_the_token_does_not_follow_a_redirect_to_another_host(
    house: House, other: OtherConserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for the one that the config names."""
    monkeypatch.setattr(outbound, "in_force", lambda: outbound.OutboundPolicy(allow_private=("localhost",)))
    uuid = other.add()
    with HttpServer(lambda exchange: exchange.answer(200, other.vcons[uuid], content_type="application/json")) as thief:
        target = thief.url.replace("127.0.0.1", "localhost")
        other.behave(f"GET /vcon/{uuid}", lambda exchange: exchange.answer(302, location=f"{target}/x"))
        house.follower(other).pull()

        assert len(thief.requests) == 1
        assert "x-conserver-api-token" not in thief.requests[0].headers


# Leases


def test_what_could_not_be_acknowledged_is_acknowledged_later_and_not_pulled_again(
    house: House, safe: OtherConserver
) -> None:
    """Nothing more is leased until the other side knows."""
    first, second = safe.add(), safe.add()
    follower = house.follower(safe, fetch_vcon_limit=1)
    safe.behave("POST /egress/acknowledge", says(500, {}))
    for _ in range(2):
        with pytest.raises(OutboundStatus, match="answered 500"):
            follower.pull()
    assert len(safe.asked("POST /egress/lease")) == 1
    safe.be_good()
    follower.pull()

    assert house.pushed() == [first, second]
    assert safe.acknowledged == [first, second]


def test_a_lease_that_has_lapsed_is_forgotten(house: House, safe: OtherConserver) -> None:
    """It has gone back by itself, and comes again."""
    uuid = safe.add()

    def lapses(exchange: Exchange) -> None:
        safe.lapse()
        exchange.answer(200, safe.vcons[uuid], content_type="application/json")

    safe.behave(f"GET /vcon/{uuid}", lapses, times=1)
    follower = house.follower(safe)
    follower.pull()
    follower.pull()

    assert house.pushed() == [uuid, uuid]
    assert safe.acknowledged == [uuid]
    assert house.redis.keys("conserver:{follower:peer}:lease*") == []


def test_a_lease_is_given_back_before_it_lapses(house: House, safe: OtherConserver) -> None:
    """What there was no time for goes to whoever comes next."""
    uuids = [safe.add() for _ in range(3)]
    given = {"lease": "short", "vcons": uuids, "secs": 0.2}
    safe.leases["short"] = time.monotonic() + 60, list(uuids)
    safe.waiting.clear()
    safe.behave("POST /egress/lease", says(200, given), times=1)

    def slow(exchange: Exchange) -> None:
        exchange.pause(0.15)
        exchange.answer(200, safe.vcons[uuids[0]], content_type="application/json")

    safe.behave(f"GET /vcon/{uuids[0]}", slow, times=1)

    assert house.follower(safe).pull() == 1
    assert safe.acknowledged == uuids[:1]
    assert safe.waiting == uuids[1:]


def test_a_uuid_that_is_leased_twice_is_pushed_twice(house: House, other: OtherConserver) -> None:
    """Each push over there is one here."""
    uuid = other.add()
    other.waiting.append(uuid)
    house.follower(other).pull()

    assert house.pushed() == [uuid, uuid]
    assert house.given() == other.leased() == []


# What is stored here already


def test_a_version_that_was_not_changed_here_is_replaced(house: House, other: OtherConserver) -> None:
    """The index follows, and what is done with it here begins anew."""
    follower, uuid = house.follower(other), other.add("one")
    follower.pull()
    other.vcons[uuid] = other.vcons[uuid].replace(b'"one"', b'"two"').replace(b"0143", b"0179")
    other.waiting.append(uuid)
    follower.pull()

    assert house.store.get(uuid).subject == "two"
    assert house.store.find(tel="+12025550143") == set()
    assert house.store.find(tel="+12025550179") == {uuid}
    assert house.pushed() == [uuid, uuid]


def test_a_version_that_was_changed_here_only_is_kept(house: House, other: OtherConserver) -> None:
    """The other side has nothing new to say; pushed there again, it runs here again."""
    follower, uuid = house.follower(other), other.add("one")
    follower.pull()
    with house.store.edit(uuid) as vcon:
        vcon.document["subject"] = "ours"
    other.waiting.append(uuid)
    follower.pull()

    assert house.store.get(uuid).subject == "ours"
    assert house.pushed() == [uuid, uuid]


def test_a_version_that_was_changed_there_and_here_is_a_dead_letter(house: House, other: OtherConserver) -> None:
    """Nobody's change is lost without a word."""
    follower, uuid = house.follower(other), other.add("one")
    follower.pull()
    with house.store.edit(uuid) as vcon:
        vcon.document["subject"] = "ours"
    other.add("theirs", uuid)
    follower.pull()

    assert house.store.get(uuid).subject == "ours"
    assert house.pushed() == [uuid]
    assert house.dead() == {uuid: "it was changed there and here since it was followed last; the one here was kept"}


def test_a_version_that_was_never_followed_is_replaced(house: House, other: OtherConserver) -> None:
    """As the existing conserver does; also what is no vCon at all."""
    first, second = other.add("theirs"), other.add("theirs")
    with house.store.edit(first) if house.redis.exists(f"vcon:{first}") else pytest.MonkeyPatch.context():
        house.redis.set(f"vcon:{first}", other.vcons[first].replace(b"theirs", b"ours"))
        house.redis.set(f"vcon:{second}", b"rubbish")
    house.follower(other).pull()

    assert [house.store.get(uuid).subject for uuid in (first, second)] == ["theirs", "theirs"]


def test_a_key_that_is_something_else_makes_a_dead_letter(house: House, other: OtherConserver) -> None:
    """It is left alone."""
    uuid = other.add()
    house.redis.rpush(f"vcon:{uuid}", "x")
    house.follower(other).pull()

    assert house.dead() == {uuid: f"key 'vcon:{uuid}' holds a list, not a vCon"}


# Our own side fails


def test_nothing_is_taken_that_could_not_be_written_down(house: House, old: OtherConserver) -> None:
    """A full server takes no note of what is about to be taken."""
    old.add()
    follower = house.follower(old)
    follower.pull()
    uuid = old.add()
    asked = len(old.asked("GET /vcon/egress"))
    with full(house.redis), pytest.raises(ServerError, match="used memory"):
        follower.pull()

    assert len(old.asked("GET /vcon/egress")) == asked
    assert old.waiting == [uuid]


def test_what_was_taken_waits_for_a_server_that_does_not_write(house: House, old: OtherConserver) -> None:
    """It is written down as soon as that is possible."""
    uuid = old.add()
    follower, ended = house.follower(old), threading.Event()

    def fills(exchange: Exchange) -> None:
        house.redis.config_set("maxmemory", 1)
        exchange.answer(200, json.dumps([uuid]).encode(), content_type="application/json")

    old.behave("GET /vcon/egress", fills, times=1)
    thread = threading.Thread(target=lambda: (follower.pull(), ended.set()), daemon=True)
    thread.start()
    try:
        wait_until(lambda: len(old.asked("GET /vcon/egress")) == 1)
        assert follower.taking.wait(10)
        assert not ended.wait(0.2)
    finally:
        house.redis.config_set("maxmemory", 0)
    thread.join(20)

    assert ended.is_set()
    assert house.pushed() == [uuid]


def test_a_target_that_is_no_list_loses_nothing(house: House, other: OtherConserver) -> None:
    """What could not be pushed is there when it can be."""
    uuid = other.add()
    house.redis.set("in", "not a list")
    follower = house.follower(other)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        follower.pull()
    house.redis.delete("in")
    follower.pull()

    assert house.pushed() == [uuid]
    assert house.dead() == {}


def test_what_came_from_another_source_is_not_fetched_from_this_one(house: House, old: OtherConserver) -> None:
    """A config that was changed in between would have it dropped as missing."""
    uuid = old.add()
    old.behave(f"GET /vcon/{uuid}", says(500, {}))
    with pytest.raises(OutboundStatus):
        house.follower(old).pull()
    with OtherConserver(safe=False) as another:
        house.follower(another).pull()

        assert another.asked(uuid) == []
    assert house.dead() == {
        uuid: "it was taken from another conserver or list than this follower has now, so it cannot be fetched"
    }


# Going on for ever


@pytest.fixture
def run(house: House, other: OtherConserver) -> Iterator[Callable[[], None]]:
    """Run a follower on a thread; the result is called to stop it."""
    stopping = threading.Event()
    thread = threading.Thread(target=house.follower(other, stopping).run, daemon=True)

    def stop() -> None:
        stopping.set()
        thread.join(20)
        assert not thread.is_alive()

    thread.start()
    yield stop
    stop()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO and r.name == "conserver.followers"]


def test_trouble_is_told_once_and_so_is_its_end(
    house: House, other: OtherConserver, run: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing else is said, and nothing ends a follower."""
    first = other.add()
    wait_until(lambda: house.pushed() == [first])
    other.behave("/egress", says(503, {"detail": "later"}))
    asked = len(other.requests)
    wait_until(lambda: len(other.requests) > asked + 20)
    other.be_good()
    second = other.add()
    wait_until(lambda: house.pushed() == [first, second])
    wait_until(lambda: "works again" in caplog.text)
    run()

    begun, ended = [line for line in warnings(caplog) if "may be lost" not in line]
    assert begun.startswith("follower 'peer' does not work, and tries again until it does: ")
    assert "answered 503" in begun
    assert ended == "follower 'peer' works again"


def test_an_error_that_nobody_foresaw_does_not_end_a_follower(
    house: House,
    other: OtherConserver,
    run: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told with its traceback, and the next round comes."""
    rounds: list[int] = []
    keep = followers.keep

    def stumbles(*args: Any) -> None:
        rounds.append(1)
        if len(rounds) < 3:
            raise ZeroDivisionError("oops")
        keep(*args)

    monkeypatch.setattr(followers, "keep", stumbles)
    uuid = other.add()
    wait_until(lambda: house.pushed() == [uuid])
    run()

    assert warnings(caplog)[0].endswith("until it does: ZeroDivisionError('oops')")
    assert caplog.text.count("Traceback") == 1


def test_a_pause_that_is_asked_for_is_kept(house: House, other: OtherConserver) -> None:
    """Retry-After is obeyed, up to an hour."""
    other.behave("/", says(503, {}, retry_after="120"), times=1)
    other.behave("/", says(503, {}, retry_after="999999"), times=1)
    follower = house.follower(other)

    assert 119 <= follower._round() <= 121
    assert follower._round() == 3600


def test_pauses_grow(house: House, other: OtherConserver, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a second to a minute, or to the interval if that is longer."""
    monkeypatch.setattr(followers, "FIRST_PAUSE_SECS", 1.0)
    monkeypatch.setattr(followers, "LONGEST_PAUSE_SECS", 60.0)
    monkeypatch.setattr(followers.random, "uniform", lambda low, high: high)
    other.behave("/", says(500, {}))
    often, seldom = house.follower(other), house.follower(other, pulling_interval=90)

    assert [often._round() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [seldom._round() for _ in range(8)][-2:] == [64, 90]


def test_serve_stops_when_it_is_told_to(house: House, safe: OtherConserver) -> None:
    """A follower that waits for an answer does not keep it up."""
    safe.add()
    safe.behave("GET /vcon/", hang)
    config = Config(file="config.yml", folder=".", followers={"peer": entry(safe.url)})
    stopping = threading.Event()
    thread = threading.Thread(target=followers.serve, args=(house.url, SETTINGS, config, stopping), daemon=True)
    thread.start()
    wait_until(lambda: safe.asked("GET /vcon/"))
    began = time.monotonic()
    stopping.set()
    thread.join(30)

    assert not thread.is_alive()
    assert time.monotonic() - began < followers.STOP_SECS + 10


def test_serve_without_followers_waits_for_its_end(house: House) -> None:
    """Whoever has started it would take an early end for a death."""
    stopping = threading.Event()
    config = Config(file="config.yml", folder=".")
    thread = threading.Thread(target=followers.serve, args=(house.url, SETTINGS, config, stopping), daemon=True)
    thread.start()
    thread.join(0.2)
    waited = thread.is_alive()
    stopping.set()
    thread.join(10)

    assert waited
    assert not thread.is_alive()
