"""conserver.queue: dead letters, their reasons, and the way back."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from conserver.claims import Note, Settlement, reason
from conserver.errors import ServerError
from conserver.queue import Queue
from conserver.session import Session
from tests.server_moods import denied, full

A, B, C = (f"018f3c5e-0000-8000-8000-00000000000{n}" for n in "abc")
WHYS = "conserver:{in}:dead"


@pytest.fixture
def queue(server_url: str) -> Queue:
    return Queue(server_url)


@pytest.fixture
def session(server_url: str) -> Session:
    session = Session(server_url, "host:1")
    session.join(["in"])
    return session


def die(redis: Redis, session: Session, *letters: tuple[str | bytes, bytes]) -> None:
    """Have each (entry, reason) pushed, claimed and buried."""
    for entry, why in letters:
        redis.rpush("in", entry)
        (claim,) = session.trip([], {"in": 1}).claims
        assert session.trip([Settlement(claim).die(why)], {}).results == [1]


# Reasons


@given(
    error=st.text(),
    names=st.tuples(*[st.text('abc"\\\n☃', max_size=100)] * 3),
    note=st.none() | st.builds(Note, st.integers(0, 99), st.text(max_size=40), st.just(B)),
    crashes=st.integers(0, 3),
)
def test_a_reason_is_json_under_500_bytes(
    error: str, names: tuple[str, str, str], note: Note | None, crashes: int
) -> None:
    """Whatever went wrong, and however long and strange the names are."""
    link, chain, worker = names
    at = "2026-01-01T00:00:00Z"
    data = reason(error, link=link, chain=chain, worker=worker, at=at, crashes=crashes, note=note, uuid=B)

    assert len(data) < 500
    assert json.loads(data)["n"] == 1
    assert data.startswith(b'{"n":1')


def test_names_of_many_bytes_leave_a_reason_under_500_bytes() -> None:
    """Four bytes a character are allowed in names too."""
    name = "🎧" * 60

    assert len(reason("no good", link=name, chain=name, worker=name)) < 500


def test_a_long_note_does_not_drive_out_the_error() -> None:
    """A reason without an error helps nobody; a note only saves work."""
    note = Note(3, "0123456789ab", B, (("a_rather_long_list_name", C),), 86400)
    why = json.loads(
        reason(
            "it answered 401 Unauthorized", link="l" * 60, chain="c" * 60, worker="w" * 60, note=note, uuid=B, crashes=2
        )
    )

    assert why["error"].startswith("it answered 401")


def test_a_reason_says_what_is_known_and_no_more() -> None:
    """Empty fields are left out, except the error."""
    assert json.loads(reason("")) == {"n": 1, "error": ""}
    assert json.loads(reason("bad\nline", link="tag", note=Note(1, "ab", B))) == {
        "n": 1,
        "error": "bad line",
        "link": "tag",
        "note": {"done": 1, "prefix": "ab", "uuid": B},
    }


def test_a_dead_letter_is_what_was_pushed_with_its_reason_beside(redis: Redis, queue: Queue, session: Session) -> None:
    """Existing tools find plain UUIDs in the list; an entry of any bytes and length is found with its reason too."""
    odd = b"\xff\x00" * 2000
    die(redis, session, (A, reason("first")), (odd, reason("second")))
    redis.rpush("DLQ:in", C)

    assert redis.lrange("DLQ:in", 0, -1) == [A.encode(), odd, C.encode()]
    assert queue.dead("in") == [
        (A.encode(), {"n": 1, "error": "first"}),
        (odd, {"n": 1, "error": "second"}),
        (C.encode(), {}),
    ]
    assert queue.dead("in", 1, 1) == [(odd, {"n": 1, "error": "second"})]
    assert queue.dead_count("in") == 3


def test_equal_entries_share_a_reason_until_the_last_is_gone(redis: Redis, queue: Queue, session: Session) -> None:
    """The newest reason stands, with the number of letters that have it."""
    die(redis, session, (A, reason("first")), (A, reason("second")))

    both = queue.dead("in")
    queue.drop("in", A)
    one = queue.dead("in")
    queue.drop("in", A)

    assert both == [(A.encode(), {"n": 2, "error": "second"})] * 2
    assert one == [(A.encode(), {"n": 1, "error": "second"})]
    assert not redis.exists("DLQ:in", WHYS)


def test_a_reason_that_is_not_ours_stops_no_listing(redis: Redis, queue: Queue) -> None:
    """Another tool may write what it likes into a hash."""
    redis.rpush("DLQ:in", A)
    redis.hset(WHYS, A, "not JSON")

    assert queue.dead("in") == [(A.encode(), {})]


# Retry


def test_retry_goes_on_where_it_had_come_to(redis: Redis, queue: Queue, session: Session) -> None:
    """A letter with a note comes back as a record, before the list; its counters start anew."""
    note = Note(2, "0123456789ab", B, (("out", C),), 60)
    die(redis, session, (A, reason("x", note=note, crashes=2)), (B, reason("y")))

    moved = queue.retry("in", 10)

    claims = session.trip([], {"in": 5}).claims
    assert moved == 2
    assert [(c.uuid, c.note, c.crashes, c.returns, c.attempts) for c in claims] == [
        (A, note, 0, 0, 0),
        (B, None, 0, 0, 0),
    ]
    assert not redis.exists("DLQ:in", WHYS)


def test_retry_from_the_start_forgets_the_note(redis: Redis, queue: Queue, session: Session) -> None:
    """The UUID is pushed to the list, like new."""
    die(redis, session, (A, reason("x", note=Note(2, "ab", B))))

    queue.retry("in", 10, from_start=True)

    assert redis.lrange("in", 0, -1) == [A.encode()]
    assert not redis.exists("conserver:{in}:returned", WHYS)


def test_retry_takes_the_oldest_and_no_more_than_asked(redis: Redis, queue: Queue, session: Session) -> None:
    """What stays keeps its reason."""
    die(redis, session, (A, reason("x")), (B, reason("y")), (C, reason("z")))

    assert queue.retry("in", 2) == 2
    assert redis.lrange("in", 0, -1) == [A.encode(), B.encode()]
    assert queue.dead("in") == [(C.encode(), {"n": 1, "error": "z"})]


@pytest.mark.parametrize("key", ["in", "conserver:{in}:returned"])
def test_retry_into_a_key_of_another_type_moves_nothing(redis: Redis, queue: Queue, key: str) -> None:
    """It names the key."""
    redis.rpush("DLQ:in", A)
    redis.set(key, "a string")

    with pytest.raises(Exception, match=f"key '{key}' holds a string, not a list"):
        queue.retry("in", 1)

    assert redis.llen("DLQ:in") == 1


def test_retry_on_a_server_that_refuses_moves_nothing(redis: Redis, queue: Queue) -> None:
    """A letter that cannot be pushed stays a letter."""
    redis.rpush("DLQ:in", A, B)

    with full(redis), pytest.raises(ServerError):
        queue.retry("in", 2)
    with denied(redis, "-rpush"), pytest.raises(ServerError):
        queue.retry("in", 2)

    assert redis.lrange("DLQ:in", 0, -1) == [A.encode(), B.encode()]
    assert not redis.exists("in")


def test_a_letter_with_a_note_that_cannot_be_pushed_stays_a_letter(
    redis: Redis, queue: Queue, session: Session
) -> None:
    """Those with a note go to another key, which may be refused by itself."""
    die(redis, session, (A, reason("no", note=Note(1, "0123456789ab", A))))

    with denied(redis, "-rpush"), pytest.raises(ServerError):
        queue.retry("in", 1)

    assert redis.lrange("DLQ:in", 0, -1) == [A.encode()]
    assert queue.dead("in")[0][1]["error"] == "no"


def test_100_000_dead_letters_go_back_complete_and_in_order(
    redis: Redis, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    """Moving a queue that died overnight takes about a second."""
    letters = [f"018f3c5e-0000-8000-8000-{n:012x}" for n in range(100_000)]
    why = reason("the service was gone", link="transcribe", chain="main", at="2026-01-01T00:00:00Z")
    for at in range(0, len(letters), 5000):
        redis.rpush("DLQ:in", *letters[at : at + 5000])
        redis.hset(WHYS, mapping=dict.fromkeys(letters[at : at + 5000], why))

    began = time.monotonic()
    moved = queue.retry("in", 10**9)
    took = time.monotonic() - began

    with capsys.disabled():
        print(f"\n{moved / took:,.0f} dead letters with reasons moved a second")  # noqa: T201  for who tunes it
    assert moved == 100_000
    assert redis.lrange("in", 0, -1) == [letter.encode() for letter in letters]
    assert not redis.exists("DLQ:in", WHYS)


def test_two_who_retry_at_once_move_each_letter_once(redis: Redis, queue: Queue, server_url: str) -> None:
    """Batches of both are mixed; none is lost or doubled."""
    letters = [f"018f3c5e-0000-8000-8000-{n:012x}" for n in range(100)]
    redis.rpush("DLQ:in", *letters)
    other = Queue(server_url)

    moved = sum(q.retry("in", 7, batch=3) for _ in range(10) for q in (queue, other))

    assert moved == 100
    assert Counter(redis.lrange("in", 0, -1)) == Counter(letter.encode() for letter in letters)


# Drop


def test_a_letter_that_is_dropped_takes_its_reason_along(redis: Redis, queue: Queue, session: Session) -> None:
    """One that is not there is told from one that was."""
    die(redis, session, (A, reason("x")), (B, reason("y")))

    assert [queue.drop("in", A), queue.drop("in", C)] == [True, False]
    assert queue.dead("in") == [(B.encode(), {"n": 1, "error": "y"})]
    assert redis.hkeys(WHYS) == [B.encode()]


def test_the_oldest_are_dropped_first(redis: Redis, queue: Queue, session: Session) -> None:
    """In batches, and never more than asked for."""
    die(redis, session, *((entry, reason("x")) for entry in (A, B, C)))

    assert queue.drop_oldest("in", 2, batch=1) == 2
    assert redis.lrange("DLQ:in", 0, -1) == [C.encode()]
    assert redis.hkeys(WHYS) == [C.encode()]
    assert queue.drop_oldest("in", 10) == 1


def test_letters_of_a_storage_have_reasons_of_their_own(redis: Redis, queue: Queue, session: Session) -> None:
    """They are read under the name `storage:<name>`."""
    redis.rpush("in", A)
    (claim,) = session.trip([], {"in": 1}).claims

    session.trip([Settlement(claim).bury("DLQ:storage:s3", A, reason("no answer"))], {})

    assert queue.dead("storage:s3") == [(A.encode(), {"n": 1, "error": "no answer"})]
    assert queue.drop("storage:s3", A)
    assert redis.keys("*dead*") == []
