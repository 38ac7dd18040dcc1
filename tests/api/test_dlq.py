"""conserver.api.dlq: dead letters of lists and of storages."""

from __future__ import annotations

import threading
import time
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from conserver.claims import reason
from conserver.tokens import digest_of
from tests.api.server import CONFIG, ApiServer, pushed, running
from tests.host import store, vcon
from tests.waiting import wait_until

A, B, C, D = (f"018f3c5e-0000-8000-8000-00000000000{n}" for n in "abcd")
#: Saves what it is told to; `gate` in the folder holds it, and `broken` makes it fail with a secret of its options.
STORAGE = """
import os, time
from conserver import StorageError

default_options = {"password": "s3cret-of-the-storage"}

def save(vcon_uuid, opts):
    while os.path.exists("gate"):
        time.sleep(0.01)
    if os.path.exists("broken"):
        raise StorageError("no room\\nfor " + opts["password"] + " ☂")
    with open("saved", "a") as file:
        file.write(vcon_uuid + "\\n")
"""
SETUP = {
    **CONFIG,
    "storages": {
        **CONFIG["storages"],
        "kept": {"module": "storages.kept", "options": {"password": "s3cret-of-the-config"}},
        "lame": {"module": "storages.lame"},
    },
    "chains": {**CONFIG["chains"], "more": {"links": [], "storages": ["kept"], "ingress_lists": ["more"]}},
    "api": {"tokens": {who: {"digest": digest_of(who), "scopes": [who]} for who in ("read", "write")}},
}


@pytest.fixture(scope="module")
def api_process(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API with a storage that can be held and broken, and one that cannot be imported."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "storages").mkdir()
    (folder / "storages" / "kept.py").write_text(STORAGE)
    (folder / "storages" / "lame.py").write_text("raise RuntimeError('it is lame')\n")
    with running(ApiServer(folder, server, SETUP)) as api:
        yield api


@pytest.fixture
def api(api_process: ApiServer, redis: Redis) -> ApiServer:
    """The API on a server that is empty, with a storage that works and has saved nothing."""
    for name in ("gate", "broken", "saved"):
        (api_process.folder / name).unlink(missing_ok=True)
    return api_process


def bury(redis: Redis, name: str, *entries: str | bytes) -> None:
    for at in range(0, len(entries), 5000):
        redis.rpush(f"DLQ:{name}", *entries[at : at + 5000])


class Later(threading.Thread):
    """A POST that is sent when it is started, by a client of its own; then `answer` is there."""

    def __init__(self, api: ApiServer, path: str) -> None:
        super().__init__(daemon=True)
        self._api, self._path = api, path
        self.answer: httpx.Response

    def run(self) -> None:
        """Send it."""
        with self._api.client(self._api.token) as client:
            self.answer = client.post(self._path)


def saved(api: ApiServer) -> list[str]:
    file = api.folder / "saved"
    return file.read_text().split() if file.exists() else []


# GET /dlq


def test_dead_letters_are_listed(http: httpx.Client, redis: Redis) -> None:
    """A bare array of UUIDs, oldest first, as existing clients expect."""
    bury(redis, "in", A, B, b"\xff")

    answer = http.get("/dlq?ingress_list=in")

    assert (answer.status_code, answer.json()) == (200, [A, B, "\\xff"])
    assert http.get("/dlq?ingress_list=in2").json() == []
    assert http.get("/dlq?ingress_list=DLQ:in").json() == [A, B, "\\xff"]


def test_dead_letters_are_listed_by_pages(http: httpx.Client, redis: Redis) -> None:
    """1,000 unless more are asked for."""
    letters = [str(uuids.uuid4()) for _ in range(1500)]
    bury(redis, "in", *letters)

    first = http.get("/dlq?ingress_list=in")
    second = http.get(first.links["next"]["url"])

    assert (len(first.json()), first.json() + second.json()) == (1000, letters)
    assert "next" not in second.links
    assert http.get("/dlq?ingress_list=in&limit=10000").json() == letters
    assert http.get("/dlq?ingress_list=in&start=1499").json() == letters[-1:]


def test_dead_letters_have_reasons(http: httpx.Client, redis: Redis) -> None:
    """As far as any is known, whatever other programs have written there."""
    bury(redis, "in", A, B, C)
    why = reason("no good", link="tag", chain="main", worker="h:1", at="2026-01-01T00:00:00Z", crashes=2, uuid=D)
    redis.hset("conserver:{in}:dead", mapping={A: why, C: '{"error": 7, "crashes": "x", "uuid": null}'})

    rows = http.get("/dlq?ingress_list=in&details=true").json()

    nothing = {"reason": "", "link": "", "chain": "", "at": "", "worker": "", "crashes": 0}
    assert rows == [
        {
            **{"entry": A, "uuid": D, "reason": "no good", "link": "tag", "chain": "main"},
            **{"at": "2026-01-01T00:00:00Z", "worker": "h:1", "crashes": 2},
        },
        {**nothing, "entry": B, "uuid": B},
        {**nothing, "entry": C, "uuid": C, "reason": "7"},
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/dlq"), ("POST", "/dlq/reprocess"), ("DELETE", "/dlq?count=1")],
)
def test_an_unknown_list_is_refused_unless_it_has_dead_letters(
    http: httpx.Client, redis: Redis, method: str, path: str
) -> None:
    """A list that was renamed still has those of before."""
    names = ["inn", "storage:files", "older", "x" * 201]
    bury(redis, "older", A)
    bury(redis, "storage:files", B)

    answers = [http.request(method, httpx.URL(path).copy_merge_params({"ingress_list": name})) for name in names]
    without = http.request(method, path)

    assert [a.status_code for a in answers] == [422, 422, 200, 422]
    assert answers[0].json()["detail"] == "no chain reads list 'inn'; did you mean 'in'?"
    assert answers[1].json()["detail"] == "what a storage could not save is under /dlq/storage"
    assert without.status_code == 422
    assert pushed(redis, "DLQ:storage:files") == [B]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[
            ("GET", f"/dlq?ingress_list=in&{query}")
            for query in ("limit=0", "limit=10001", "start=-1", "details=maybe")
        ],
        *[("POST", f"/dlq/reprocess?ingress_list=in&{query}") for query in ("count=0", "count=100001", "from_start=7")],
        *[("DELETE", f"/dlq?ingress_list=in&{query}") for query in ("", "count=0", "count=x", f"uuid={A}&count=1")],
        *[("DELETE", f"/dlq/storage?storage_name=files&{query}") for query in ("", f"uuid={A}&count=1")],
    ],
)
def test_parameters_are_checked(http: httpx.Client, redis: Redis, method: str, path: str) -> None:
    """And nothing happens."""
    bury(redis, "in", A)
    bury(redis, "storage:files", A)

    answer = http.request(method, path)

    assert answer.status_code == 422
    assert pushed(redis, "DLQ:in") == pushed(redis, "DLQ:storage:files") == [A]


@pytest.mark.parametrize(("method", "path"), [("GET", "/dlq"), ("POST", "/dlq/reprocess"), ("DELETE", "/dlq?count=1")])
def test_a_key_of_another_type_is_409(http: httpx.Client, redis: Redis, method: str, path: str) -> None:
    """The request is all right, and the key stays as it is."""
    redis.set("DLQ:in", "text")

    answer = http.request(method, httpx.URL(path).copy_merge_params({"ingress_list": "in"}))

    assert (answer.status_code, redis.get("DLQ:in")) == (409, b"text")


# POST /dlq/reprocess


def test_dead_letters_are_queued_again(http: httpx.Client, redis: Redis) -> None:
    """Oldest first, as many as were asked for; the answer is a bare number."""
    bury(redis, "in", A, B, C)

    two, rest, none = (http.post(f"/dlq/reprocess?ingress_list=in{count}") for count in ("&count=2", "", ""))

    assert [(a.status_code, a.json()) for a in (two, rest, none)] == [(200, 2), (200, 1), (200, 0)]
    assert pushed(redis, "in") == [A, B, C]
    assert redis.exists("DLQ:in") == 0


def test_dead_letters_go_on_from_where_they_failed_or_from_the_start(http: httpx.Client, redis: Redis) -> None:
    """What is noted as done is not paid twice, unless that is wanted."""
    note = '{"n": 1, "error": "x", "note": {"done": 2, "prefix": "p", "uuid": "%s"}}'
    bury(redis, "in", A, B)
    redis.hset("conserver:{in}:dead", mapping={A: note % A, B: note % B})

    http.post("/dlq/reprocess?ingress_list=in&count=1")
    http.post("/dlq/reprocess?ingress_list=in&count=1&from_start=true")

    [goes_on] = http.get("/lists/in/entries?what=returned").json()
    assert (goes_on["entry"], goes_on["done"]) == (A, 2)
    assert pushed(redis, "in") == [B]


def test_many_are_moved_in_pieces(http: httpx.Client, redis: Redis) -> None:
    """The server has time for others between any thousand."""
    letters = [str(uuids.UUID(int=n)) for n in range(20_000)]
    bury(redis, "in", *letters)
    redis.config_resetstat()

    answer = http.post("/dlq/reprocess?ingress_list=in&count=100000")

    calls = redis.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    assert (answer.status_code, answer.json()) == (200, 20_000)
    assert pushed(redis, "in") == letters
    assert 20 <= calls < 30


def test_others_are_answered_while_dead_letters_are_moved(api: ApiServer, redis: Redis) -> None:
    """Though the server is slow with it."""
    bury(redis, "in", A)
    moved = Later(api, "/dlq/reprocess?ingress_list=in")
    redis.client_pause(9000, all=False)
    try:
        moved.start()
        wait_until(lambda: any(c["cmd"] == "evalsha" for c in redis.client_list()), 8, "the move to wait")
        [row] = [row for row in api.http.get("/lists").json() if row["list"] == "in"]
        waited = moved.is_alive()
    finally:
        redis.client_unpause()
        moved.join()

    assert (waited, row["dead"]) == (True, 1)
    assert (moved.answer.status_code, moved.answer.json()) == (200, 1)


@pytest.mark.long
def test_others_are_answered_at_once_while_very_many_are_moved(api: ApiServer, redis: Redis) -> None:
    """100,000 in one call; nobody else waits for a second."""
    letters = [str(uuids.UUID(int=n)) for n in range(100_000)]
    bury(redis, "in", *letters)
    moved = Later(api, "/dlq/reprocess?ingress_list=in&count=100000")
    seen, longest = [], 0.0

    moved.start()
    while moved.is_alive():
        began = time.monotonic()
        seen.append(api.http.get("/lists/in").json()["dead"])
        longest = max(longest, time.monotonic() - began)
    moved.join()

    assert moved.answer.json() == 100_000
    assert pushed(redis, "in") == letters
    assert any(0 < dead < 100_000 for dead in seen), "nobody else was answered meanwhile"
    assert longest < 1


# DELETE /dlq


def test_dead_letters_are_dropped(http: httpx.Client, redis: Redis) -> None:
    """One by its name, or the oldest ones."""
    bury(redis, "in", A, B, C, b"\xff", D)

    answers = [
        http.delete("/dlq", params={"ingress_list": "in", **what})
        for what in ({"uuid": B}, {"uuid": "\\xff"}, {"uuid": B}, {"count": 2}, {"uuid": ""})
    ]

    assert [a.status_code for a in answers] == [200] * 5
    assert [a.json()["dropped"] for a in answers] == [1, 1, 0, 2, 0]
    assert pushed(redis, "DLQ:in") == [D]


def test_what_may_be_done_to_dead_letters(api: ApiServer, redis: Redis) -> None:
    """Looking is `read`, queuing again is `write`, dropping is `admin`."""
    bury(redis, "in", A)
    bury(redis, "storage:kept", A)
    with api.client("read") as reader, api.client("write") as writer, api.client("wrong") as nobody:
        looks = [w.get(p).status_code for w in (reader, nobody) for p in (_IN, _KEPT)]
        again = [w.post(p.replace("?", "/reprocess?")).status_code for w in (reader, nobody) for p in (_IN, _KEPT)]
        drops = [w.delete(f"{p}&count=1").status_code for w in (reader, writer, nobody) for p in (_IN, _KEPT)]

    assert looks == [200, 200, 403, 403]
    assert again == [403] * 4
    assert drops == [403] * 6
    assert pushed(redis, "DLQ:in") == pushed(redis, "DLQ:storage:kept") == [A]


_IN, _KEPT = "/dlq?ingress_list=in", "/dlq/storage?storage_name=kept"
_REPLAY = "/dlq/storage/reprocess?storage_name=kept"


# Storages


def test_what_a_storage_could_not_save_is_listed(http: httpx.Client, redis: Redis) -> None:
    """A bare array, or objects with reasons."""
    bury(redis, "storage:kept", A, B)
    redis.hset("conserver:{DLQ:storage:kept}:dead", A, reason("no room", chain="more"))

    [first, second] = http.get(f"{_KEPT}&details=true").json()

    assert http.get(_KEPT).json() == [A, B]
    assert (first["entry"], first["reason"], first["chain"]) == (A, "no room", "more")
    assert (second["entry"], second["reason"]) == (B, "")
    assert http.get(f"{_KEPT}&limit=1").links["next"]["url"] == f"{_KEPT}&limit=1&start=1"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/dlq/storage"), ("POST", "/dlq/storage/reprocess"), ("DELETE", "/dlq/storage?count=1")],
)
def test_an_unknown_storage_is_404(http: httpx.Client, method: str, path: str) -> None:
    """With what was probably meant."""
    answer = http.request(method, httpx.URL(path).copy_merge_params({"storage_name": "kent"}))

    assert (answer.status_code, answer.json()["type"]) == (404, "urn:conserver:problem:no-such-storage")
    assert answer.json()["detail"] == "there is no storage 'kent'; did you mean 'kept'?"


def test_a_storage_that_is_gone_from_the_config_has_its_dead_letters(http: httpx.Client, redis: Redis) -> None:
    """They can be looked at and dropped, but not saved."""
    bury(redis, "storage:older", A)

    looked = http.get("/dlq/storage?storage_name=older")
    replayed = http.post("/dlq/storage/reprocess?storage_name=older")
    dropped = http.delete("/dlq/storage?storage_name=older&count=5")

    assert (looked.json(), replayed.status_code, dropped.json()) == ([A], 404, {"dropped": 1})


def test_what_a_storage_could_not_save_is_saved(api: ApiServer, http: httpx.Client, redis: Redis) -> None:
    """Oldest first; the answer is a bare number, and what is saved is no dead letter any more."""
    first, second, third = store(redis, [vcon(n) for n in "abc"])
    bury(redis, "storage:kept", first, second, third)

    two = http.post(f"{_REPLAY}&count=2")
    rest = http.post(_REPLAY)

    assert [(a.status_code, a.json()) for a in (two, rest)] == [(200, 2), (200, 1)]
    assert "conserver-replay-failed" not in two.headers
    assert saved(api) == [first, second, third]
    assert pushed(redis, "DLQ:storage:kept") == []


def test_a_replay_that_fails_says_why(api: ApiServer, http: httpx.Client, redis: Redis) -> None:
    """Still with the number that existing clients read; without what is secret, or would break a header."""
    [uuid] = store(redis, [vcon("a")])
    bury(redis, "storage:kept", uuid)
    (api.folder / "broken").touch()

    plain = http.post(_REPLAY)
    detailed = http.post(f"{_REPLAY}&details=true")

    assert (plain.status_code, plain.json()) == (200, 0)
    assert plain.headers["conserver-replay-failed"].startswith(f"{uuid}: no room for ")
    assert plain.headers["conserver-replay-failed"].isascii()
    assert detailed.json()["failed"].startswith(f"{uuid}: no room")
    assert (detailed.json()["saved"], detailed.json()["missing"], detailed.json()["left"]) == (0, [], 1)
    assert "s3cret" not in plain.headers["conserver-replay-failed"] + detailed.text


def test_entries_whose_vcon_is_nowhere_are_named(http: httpx.Client, redis: Redis) -> None:
    """They stay until they are dropped, and keep nobody from being saved."""
    [uuid] = store(redis, [vcon("a")])
    bury(redis, "storage:kept", A, "no uuid", uuid)

    answer = http.post(f"{_REPLAY}&details=true")

    assert answer.json() == {"saved": 1, "failed": "", "missing": [A, "no uuid"], "left": 2}
    assert http.delete(f"{_KEPT}&uuid={A}").json() == {"dropped": 1}
    assert pushed(redis, "DLQ:storage:kept") == ["no uuid"]


def test_one_replay_runs_at_a_time(api: ApiServer, http: httpx.Client, redis: Redis) -> None:
    """Another is refused, and other requests are answered while the storage takes its time."""
    [uuid] = store(redis, [vcon("a")])
    bury(redis, "storage:kept", uuid)
    (api.folder / "gate").touch()
    first = Later(api, _REPLAY)
    first.start()
    try:
        wait_until(lambda: redis.exists("conserver:{DLQ:storage:kept}:replay"), 30, "the replay")
        second = http.post(_REPLAY)
        looked = http.get(_KEPT)
    finally:
        (api.folder / "gate").unlink()
        first.join()

    assert (second.status_code, second.json()["type"]) == (409, "urn:conserver:problem:replay-runs")
    assert looked.json() == [uuid]
    assert (first.answer.json(), saved(api)) == (1, [uuid])


def test_a_storage_that_cannot_be_used_is_409(http: httpx.Client, redis: Redis) -> None:
    """With the reason; nothing is touched."""
    bury(redis, "storage:lame", A)

    answer = http.post("/dlq/storage/reprocess?storage_name=lame")

    assert (answer.status_code, answer.json()["type"]) == (409, "urn:conserver:problem:storage-unusable")
    assert "it is lame" in answer.json()["detail"]
    assert pushed(redis, "DLQ:storage:lame") == [A]


def test_the_storages_own_files_are_where_its_config_says(api: ApiServer, http: httpx.Client, redis: Redis) -> None:
    """A storage that comes with the conserver is replayed as in a worker."""
    [uuid] = store(redis, [vcon("a")])
    bury(redis, "storage:files", uuid)

    answer = http.post("/dlq/storage/reprocess?storage_name=files")

    assert answer.json() == 1
    assert [path for path in Path(api.folder / "vcons").rglob(f"*{uuid}*") if path.is_file()]
