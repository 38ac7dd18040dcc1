"""The checker of the fault suite accepts a good history, and refuses one with any violation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.faults.checker import History, digest_of, samples
from tests.host import store, vcon

GOOD, DEAD, STOPPED, TWICE = (f"018f3c5e-0000-8000-8000-00000000000{n}" for n in "abcd")
SECRET = "sesame-opens"
EXPOSITION = """\
# TYPE conserver_main_loop_count_vcons_received counter
conserver_main_loop_count_vcons_received_total{ingress_list="in"} 5
# TYPE conserver_main_loop_count_vcons_processed counter
conserver_main_loop_count_vcons_processed_total{chain_name="main",outcome="delivered"} 3
conserver_main_loop_count_vcons_processed_total{chain_name="main",outcome="stopped"} 1
conserver_main_loop_count_vcons_processed_total{chain_name="main",outcome="dead"} 1
# TYPE conserver_dlq_count counter
conserver_dlq_count_total{queue_name="DLQ:in"} 1
"""


class Scene:
    """What a server, a folder and a log look like after one was delivered, one died, one stopped, one came twice."""

    def __init__(self, redis: Redis, path: Path) -> None:
        self.redis, self.folder, self.effects, self.log = redis, path / "keep", path / "effects.log", path / "host.log"
        self.folder.mkdir()
        self.exposition = EXPOSITION
        self.pushed = {GOOD: 1, DEAD: 1, STOPPED: 1, TWICE: 2}
        self.given = {uuid: json.dumps(vcon(uuid=uuid, x_rate=[1.50, {"a": None}])) for uuid in self.pushed}
        store(redis, [json.loads(text) for text in self.given.values()])
        for uuid in (GOOD, TWICE, TWICE, STOPPED):
            self.say("began", "edit", uuid, adds="edit")
            self.change(uuid, lambda document: document["analysis"].append({"type": "edit", "body": "x"}))
            self.say("ended", "edit", uuid, adds="edit")
        self.say("began", "edit", DEAD, adds="edit")
        self.say("stopped", "edit", STOPPED)
        for uuid in (GOOD, TWICE, TWICE):
            self.save(uuid)
            redis.rpush("out", uuid)
        redis.rpush("DLQ:in", DEAD)
        redis.hset("conserver:{in}:dead", DEAD, json.dumps({"n": 1, "error": "ValueError: no good with ***"}))
        redis.sadd("conserver:hosts", "alive")
        redis.set("conserver:host:alive", "{}")
        redis.sadd("conserver:{in}:workers", "alive:1")
        self.log.write_text('{"message": "delivered"}\n')

    def say(self, event: str, name: str, uuid: str, **more: Any) -> None:
        """Add a line to the log of effects."""
        with self.effects.open("a") as file:
            file.write(json.dumps({"event": event, "name": name, "vcon": uuid, **more}) + "\n")

    def change(self, uuid: str, how: Callable[[dict[str, Any]], object]) -> None:
        """Change a document in Redis."""
        document = json.loads(self.redis.get(f"vcon:{uuid}") or b"{}")
        how(document)
        self.redis.set(f"vcon:{uuid}", json.dumps(document))

    def save(self, uuid: str) -> None:
        """Save a document to the storage."""
        text = self.redis.get(f"vcon:{uuid}") or b""
        (self.folder / uuid).write_bytes(text)
        self.say("saved", "log", uuid, digest=digest_of(text))

    def check(self, **more: Any) -> None:
        """Check everything."""
        claims: dict[str, Any] = {
            "dead": [DEAD],
            "storages": {"keep": self.folder, "log": None},
            "links": {"edit": 1},
            "repeats": 0,
            "faults": [],
            "given": self.given.get,
            "metrics": [samples(self.exposition)],
            "counted_all": True,
            "logs": [self.log],
            "secrets": [SECRET],
        }
        History(self.effects).check(self.redis, self.pushed, **claims | more)

    def hold(self, uuid: str, worker: str = "alive:1") -> None:
        """Let a worker hold a UUID."""
        note = b'{"done":1,"prefix":"","uuid":""}'
        self.redis.hset(f"conserver:{{in}}:held:{worker}", "7", b"1 0 0 0 %d\n%b%b" % (len(note), note, uuid.encode()))

    def take_away(self, uuid: str) -> None:
        """Let a delivery never have happened."""
        self.redis.lrem("out", 1, uuid)


@pytest.fixture
def scene(redis: Redis, tmp_path: Path) -> Scene:
    """A scene in which every invariant holds."""
    return Scene(redis, tmp_path)


def test_a_good_history_is_accepted(scene: Scene):
    """Nothing is said about a history in which all invariants hold."""
    scene.check()


def test_a_document_that_has_expired_in_redis_may_be_in_the_storages(scene: Scene):
    """What the storages hold is the final document then."""
    scene.redis.delete(f"vcon:{GOOD}")

    scene.check()


def test_entries_may_wait_where_that_is_said(scene: Scene):
    """A delayed retry, a returned claim and an entry of the list are accepted as waiting, and refused otherwise."""
    record = b"1 0 0 1 0\n" + GOOD.encode()
    for put in (
        lambda: scene.redis.zadd("conserver:{in}:delayed", {b"7:" + record: 1}),
        lambda: scene.redis.rpush("conserver:{in}:returned", record),
        lambda: scene.redis.rpush("in", GOOD),
    ):
        scene.redis.delete("out", "in", "conserver:{in}:delayed", "conserver:{in}:returned")
        scene.redis.rpush("out", TWICE, TWICE)
        put()

        scene.check(waiting=True, counted_all=False, metrics=())
        with pytest.raises(AssertionError, match=f"(?s)I1 is broken.*{GOOD} has not come to an end"):
            scene.check(counted_all=False, metrics=())


def _another_number(document: dict[str, Any]) -> None:
    document["x_rate"][0] = 1.51


VIOLATIONS: dict[str, tuple[Callable[[Scene], object], str]] = {
    "lost": (lambda s: s.take_away(GOOD), f"I1.*{GOOD} was pushed 1 times, and 1 are lost: nowhere"),
    "one of two lost": (lambda s: s.take_away(TWICE), f"I1.*{TWICE} was pushed 2 times, and 1 are lost: 1 in 'out'"),
    "delivered twice": (
        lambda s: s.redis.rpush("out", GOOD),
        f"I1.*{GOOD} was pushed 1 times, .*more often: 2 in 'out'",
    ),
    "delivered and dead": (lambda s: s.redis.rpush("DLQ:in", GOOD), f"I1.*{GOOD} is a dead letter, and should be none"),
    "stopped and delivered": (
        lambda s: s.pushed.update({STOPPED: 3}),
        f"I1.*{STOPPED}.* 3 are lost.*stopped it 1 times",
    ),
    "not dead": (
        lambda s: (s.redis.delete("DLQ:in"), s.redis.rpush("out", DEAD)),
        f"I1.*{DEAD} should be a dead letter: 1 in 'out'",
    ),
    "never pushed": (lambda s: s.pushed.pop(GOOD), f"I1.*{GOOD} was pushed 0 times, .*I4.* which was never pushed"),
    "still held": (
        lambda s: (s.take_away(GOOD), s.hold(GOOD)),
        f"I2.*{GOOD} is in somebody's hands: 1 held",
    ),
    "held and delivered": (lambda s: s.hold(GOOD), f"I1.*{GOOD} was pushed 1 times, .*more often: 1 held, 1 in 'out'"),
    "suspect": (
        lambda s: (s.take_away(GOOD), s.redis.rpush("conserver:{in}:suspects", f"1 1 0 0 0\n{GOOD}")),
        f"I2.*{GOOD} is in somebody's hands: 1 suspect",
    ),
    "member of a host that is gone": (
        lambda s: s.redis.sadd("conserver:{in}:workers", "gone:1"),
        r"I2.*gone:1 has ended, and is still a member of conserver:\{in\}:workers",
    ),
    "host that is gone": (lambda s: s.redis.sadd("conserver:hosts", "gone"), "I2.*host gone has ended, and is still"),
    "not stored": (lambda s: (s.folder / GOOD).unlink(), f"I3.*storage 'keep' does not have {GOOD}"),
    "stored too early": (
        lambda s: s.change(GOOD, lambda d: d.update(subject="new")),
        f"I3.*'keep' .*{GOOD}.*'log' .*{GOOD}",
    ),
    "begun too often": (lambda s: s.say("began", "edit", GOOD), f"I4.*'edit' began 2 times with {GOOD}, at most 1 can"),
    "added twice": (
        lambda s: (s.change(GOOD, lambda d: d["analysis"].append({"type": "edit"})), s.save(GOOD)),
        f"I4.*analysis 'edit' is 2 times in {GOOD}",
    ),
    "update lost": (
        lambda s: (s.change(GOOD, lambda d: d.update(analysis=[])), s.save(GOOD)),
        f"I5.*analysis 'edit' is not in {GOOD}, and its link had ended well",
    ),
    "document gone": (
        lambda s: s.redis.delete(f"vcon:{DEAD}"),
        f"I5.*the document of {DEAD} is neither in Redis nor in a storage",
    ),
    "value changed": (
        lambda s: (s.change(GOOD, _another_number), s.save(GOOD)),
        f"I6.*'x_rate' of {GOOD} was .*1.5,.*1.51,",
    ),
    "value gone": (
        lambda s: (s.change(GOOD, lambda d: d.pop("x_rate")), s.save(GOOD)),
        f"I6.*'x_rate' of {GOOD} is gone",
    ),
    "entry changed": (
        lambda s: (s.change(GOOD, lambda d: d["parties"][0].pop("name")), s.save(GOOD)),
        f"I6.*'parties' of {GOOD} was .*Ann.* and is ",
    ),
    "received more": (
        lambda s: setattr(s, "exposition", s.exposition.replace('"in"} 5', '"in"} 6')),
        "I7.*6 were received and 5 processed",
    ),
    "counted too few": (
        lambda s: setattr(
            s, "exposition", s.exposition.replace('="in"} 5', '="in"} 4').replace('ivered"} 3', 'ivered"} 2')
        ),
        "I7.*3 were delivered, and the hosts have counted 2",
    ),
    "secret in a log": (
        lambda s: s.log.write_text(f'{{}}\n{{"message": "no good with {SECRET}"}}\n'),
        "I8.*a secret is in line 2 of .*host.log",
    ),
    "secret in a reason": (
        lambda s: s.redis.hset("conserver:{in}:dead", DEAD, f'{{"error": "{SECRET}"}}'),
        f"I8.*a secret is in the reason why {DEAD} is dead",
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_refused(scene: Scene, name: str):
    """Each invariant that is broken is named, with the UUID."""
    violate, words = VIOLATIONS[name]
    violate(scene)

    with pytest.raises(AssertionError, match=f"(?s){words}"):
        scene.check()


def test_a_violation_comes_with_the_lines_of_its_vcon(scene: Scene):
    """The report shows what links and storages said of the vCon, and nothing of others."""
    scene.take_away(GOOD)

    with pytest.raises(AssertionError) as refused:
        scene.check(metrics=())
    report = str(refused.value)
    assert f"the log of {GOOD}:" in report
    assert '"event": "ended"' in report
    assert '"event": "saved"' in report
    assert TWICE not in report


def test_a_delivery_to_one_of_two_lists_is_refused(scene: Scene):
    """A vCon is delivered to all egress lists of its chain or to none."""
    scene.redis.rpush("also", TWICE, TWICE)

    with pytest.raises(AssertionError, match=f"(?s)I1.*{GOOD} was delivered to some lists more often than to others"):
        scene.check(egress=["out", "also"])


def test_repeats_are_limited_altogether(scene: Scene):
    """Where no single vCon may say how often, the sum of what was repeated is limited."""
    scene.say("began", "edit", GOOD)
    scene.check(links={}, faults=None, repeats=1)

    with pytest.raises(AssertionError, match=r"(?s)I4.*links began 1 times more than once a push, at most 0"):
        scene.check(links={}, faults=None, repeats=0)


def test_a_link_begins_again_only_for_a_cause(scene: Scene):
    """A fault between the two begins, to all or to that very process, explains them; nothing else does."""
    scene.say("began", "edit", GOOD, at=100.0, pid=7)
    scene.say("began", "edit", GOOD, at=110.0, pid=8)
    for cause in ((105.0, 106.0, None), (90.0, 100.5, None), (105.0, 105.0, {7})):
        scene.check(links={}, repeats=None, faults=[(0.0, 99.0, None), cause])

    for no_cause in ((90.0, 99.0, None), (111.0, 112.0, None), (105.0, 105.0, {8})):
        with pytest.raises(AssertionError, match=f"(?s)I4.*'edit' began again with {GOOD} 10.0 s after it had"):
            scene.check(links={}, repeats=None, faults=[(0.0, 99.0, None), no_cause])


def test_a_link_that_failed_may_begin_again(scene: Scene):
    """A retry is a cause of its own."""
    scene.say("began", "edit", GOOD, at=100.0, pid=7)
    scene.say("failed", "edit", GOOD, at=101.0, pid=7)
    scene.say("began", "edit", GOOD, at=110.0, pid=7)

    scene.check(links={}, repeats=None, faults=[(0.0, 99.0, None)])


def test_nothing_may_be_left_of_hosts_that_have_ended(scene: Scene):
    """After the last host has ended, no member and no host is left."""
    with pytest.raises(AssertionError, match=r"(?s)I2.*alive:1 has ended.*host alive has ended"):
        scene.check(gone=True)
