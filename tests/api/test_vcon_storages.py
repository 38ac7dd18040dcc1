"""What storages have to do with one vCon: reads of what only they hold, and deletes that reach all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from redis import Redis

from conserver.api.state import THREADS
from conserver.storage_calls import MOST_HANGING
from tests.api.server import CONFIG, ApiServer, pushed, running
from tests.host import vcon
from tests.waiting import wait_until

#: A storage that does what the file `mood` says, and writes down what it was asked.
MOODY = '''
"""Keeps vCons in files, unless it is in a mood."""
import json, time
from pathlib import Path

default_options = {"path": "", "password": ""}

def act(what, uuid, opts):
    folder = Path(opts["path"])
    with (folder / "asked").open("a") as asked:
        asked.write(f"{what} {uuid}\\n")
    while (folder / "mood").read_text() == "hang":
        time.sleep(0.02)
    if (folder / "mood").read_text() == "fail":
        raise OSError("no access with " + opts["password"])
    return folder / uuid

def save(vcon_uuid, opts):
    raise AssertionError("the API saves nothing")

def get(vcon_uuid, opts):
    file = act("get", vcon_uuid, opts)
    return json.loads(file.read_text()) if file.exists() else None

def delete(vcon_uuid, opts):
    file = act("delete", vcon_uuid, opts)
    if (file.parent / "mood").read_text() == "vague":
        file.unlink(missing_ok=True)
        return None
    if not file.exists():
        return False
    file.unlink()
    return True
'''
#: One that cannot delete, but say what it holds; and one that can do neither.
HALF = MOODY[: MOODY.index("def delete")]
MUTE = MOODY[: MOODY.index("def get")]
SECRET = "the-password-of-a-storage"
PATIENCE_SECS = 1


class Store:
    """The API with storages of the test's own, in one order: moody, half."""

    def __init__(self, api: ApiServer) -> None:
        self.api, self.http = api, api.http
        self.folders = {name: api.folder / f"of_{name}" for name in ("moody", "half")}

    def mood(self, mood: str, name: str = "moody") -> None:
        draft = self.folders[name] / "new"
        draft.write_text(mood)
        draft.rename(self.folders[name] / "mood")

    def holds(self, document: dict, name: str = "moody") -> Path:
        file = self.folders[name] / document["uuid"]
        file.write_text(json.dumps(document))
        return file

    def asked(self, name: str = "moody") -> int:
        file = self.folders[name] / "asked"
        return len(file.read_text().splitlines()) if file.exists() else 0


def config_of(folder: Path, **more: str) -> dict:
    storages = {
        name: {"module": f"storages.{module}", "options": {"path": str(folder / f"of_{name}"), "password": SECRET}}
        for name, module in ({"moody": "moody", "half": "half"} | more).items()
    }
    return CONFIG | {"storages": storages | CONFIG["storages"]}


@pytest.fixture(scope="module")
def process(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Its storages have one second to answer."""
    folder = tmp_path_factory.mktemp("storages")
    (folder / "storages").mkdir()
    for name, source in {"moody": MOODY, "half": HALF, "mute": MUTE}.items():
        (folder / "storages" / f"{name}.py").write_text(source)
        (folder / f"of_{name}").mkdir()
        (folder / f"of_{name}" / "mood").write_text("good")
    api = ApiServer(folder, server, config_of(folder), CONSERVER_STORAGE_TIMEOUT_SECS=PATIENCE_SECS)
    with running(api):
        yield api


@pytest.fixture
def store(process: ApiServer, redis: Redis) -> Iterator[Store]:
    """All storages work."""
    store = Store(process)
    yield store
    for name in store.folders:
        store.mood("good", name)


def test_what_only_a_storage_holds_is_read_from_there(store: Store, redis: Redis) -> None:
    """Once: then Redis has it for a while, and it stands in the index again."""
    document = vcon()
    store.holds(document)
    before = store.asked()

    answers = [store.http.get(f"/vcon/{uuid}") for uuid in (document["uuid"].upper(), document["uuid"])]

    assert [answer.json() for answer in answers] == [document, document]
    assert store.asked() - before == 1
    assert 0 < redis.ttl(f"vcon:{document['uuid']}") <= 3600
    assert redis.smembers("tel:+15550100") == {document["uuid"].encode()}


def test_a_storage_that_fails_is_502_without_its_secrets(store: Store) -> None:
    """Not 404: nobody knows whether it is there."""
    store.mood("fail")

    answer = store.http.get(f"/vcon/{uuid4()}")

    assert (answer.status_code, answer.json()["type"]) == (502, "urn:conserver:problem:storage-failed")
    assert "storage 'moody' could not be asked: no access with" in answer.json()["detail"].replace("OSError: ", "")
    assert SECRET not in answer.text + store.api.said()


def test_another_storage_has_it(store: Store) -> None:
    """One that fails or hangs is passed over."""
    for mood in ("fail", "hang"):
        document = vcon()
        store.mood(mood)
        store.holds(document, "half")

        assert store.http.get(f"/vcon/{document['uuid']}").json() == document


def test_a_storage_that_hangs_is_502_within_its_time_and_others_go_on(store: Store) -> None:
    """The event loop never waits for it; and however many ask, it costs few threads."""
    store.mood("hang")
    before = store.asked()

    with ThreadPoolExecutor(20) as pool:
        began = time.monotonic()
        hanging = [pool.submit(store.http.get, f"/vcon/{uuid4()}") for _ in range(20)]
        wait_until(lambda: store.asked() - before >= 8)
        quick = []
        while not any(get.done() for get in hanging):
            asked = time.monotonic()
            assert store.http.post("/vcon?ingress_lists=in", json=vcon()).status_code == 201
            quick.append(time.monotonic() - asked)
        answers = [get.result() for get in hanging]
        took = time.monotonic() - began
        later = store.http.get(f"/vcon/{uuid4()}")
        [left] = store.http.delete(f"/vcon/{uuid4()}").json()["errors"]

    assert {answer.status_code for answer in answers} == {502}
    assert "no answer within 1 s" in answers[0].json()["detail"]
    assert took < 15
    assert len(quick) > 3
    assert sorted(quick)[len(quick) // 2] < PATIENCE_SECS / 2
    assert later.status_code == 502
    assert "have not ended within 1 s; it was not asked" in later.json()["detail"]
    assert left["storage"] == "moody"
    assert left["detail"].endswith("it was not asked; delete again when it works")
    assert store.asked() - before <= 20
    store.mood("good")
    assert wait_until(lambda: store.http.get(f"/vcon/{uuid4()}").status_code == 404)


def test_what_a_storage_gives_back_is_checked(store: Store) -> None:
    """Another vCon, or nothing like one, is never served."""
    for wrong in (vcon(), {"uuid": 7}, []):
        uuid = str(uuid4())
        (store.folders["moody"] / uuid).write_text(json.dumps(wrong))

        assert store.http.get(f"/vcon/{uuid}").status_code == 502


def test_a_vcon_of_a_storage_can_be_changed(store: Store, redis: Redis) -> None:
    """It is fetched first; a condition is held against what the storage has."""
    patched, replaced, refused = vcon(), vcon(), vcon()
    for document in (patched, replaced, refused):
        store.holds(document)
    new = replaced | {"subject": "new"}

    answers = [
        store.http.patch(f"/vcon/{patched['uuid']}", json={"subject": "new"}),
        store.http.put(f"/vcon/{replaced['uuid']}", json=new, headers={"If-Match": "*"}),
        store.http.put(f"/vcon/{refused['uuid']}", json=refused, headers={"If-None-Match": "*"}),
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 412]
    assert json.loads(redis.get(f"vcon:{patched['uuid']}"))["subject"] == "new"
    # What the storage holds is not this one any more.
    assert redis.ttl(f"vcon:{patched['uuid']}") == redis.ttl(f"vcon:{replaced['uuid']}") == -1


def test_it_is_gone_everywhere(store: Store, redis: Redis) -> None:
    """From Redis, the index and each storage; its entries of lists stay, for the dead letters."""
    document = vcon(subject="a word")
    uuid = document["uuid"]
    store.http.post("/vcon?ingress_lists=in", json=document)
    file = store.holds(document)

    answer = store.http.delete(f"/vcon/{uuid.upper()}")

    assert (answer.status_code, answer.content) == (204, b"")
    assert not file.exists()
    assert not any(uuid.encode() in key for key in redis.keys("vcon:*"))
    assert not redis.exists("tel:+15550100", "vcons", "conserver:subject:word", "conserver:index")
    assert pushed(redis, "in") == [uuid]
    assert store.http.get(f"/vcon/{uuid}").status_code == 404
    assert store.http.delete(f"/vcon/{uuid}").status_code == 404


def test_what_was_nowhere_is_404(store: Store) -> None:
    """The existing API always says that it was deleted."""
    assert store.http.delete(f"/vcon/{uuid4()}").status_code == 404


def test_what_only_a_storage_held_is_204(store: Store) -> None:
    """Without being fetched."""
    document = vcon()
    file = store.holds(document)

    assert store.http.delete(f"/vcon/{document['uuid']}").status_code == 204
    assert not file.exists()


def test_a_storage_that_does_not_say_counts_as_one_that_had_it(store: Store) -> None:
    """Else a 404 could be wrong."""
    store.mood("vague")

    assert store.http.delete(f"/vcon/{uuid4()}").status_code == 204


def test_the_audit_log_names_the_vcon(store: Store) -> None:
    """Who, and which one."""
    uuid = str(uuid4())
    store.http.delete(f"/vcon/{uuid.upper()}")

    line = next(json.loads(line) for line in store.api.said().splitlines() if f'"vcon":"{uuid}"' in line)
    assert (line["name"], line["who"], line["status"]) == ("conserver.audit", "CONSERVER_API_TOKEN", 404)


@pytest.mark.parametrize("mood", ["fail", "hang"])
def test_a_storage_that_cannot_delete_is_named(store: Store, redis: Redis, mood: str) -> None:
    """All others are done; what it holds does not come back, and the same request again finishes the job."""
    document = vcon()
    uuid = document["uuid"]
    store.http.post("/vcon", json=document)
    file = store.holds(document)
    store.mood(mood)

    answer = store.http.delete(f"/vcon/{uuid}")

    assert (answer.status_code, answer.json()["type"]) == (502, "urn:conserver:problem:not-deleted-everywhere")
    [error] = answer.json()["errors"]
    assert error["storage"] == "moody"
    why = {"fail": "OSError: no access with ***", "hang": "no answer within 1 s"}[mood]
    assert error["detail"] == f"{why}; delete again when it works"
    assert not redis.exists(f"vcon:{uuid}", "tel:+15550100")
    store.mood("good")
    assert store.http.get(f"/vcon/{uuid}").status_code == 404
    # One that hung may have finished meanwhile.
    assert store.http.delete(f"/vcon/{uuid}").status_code == 204 or mood == "hang"
    assert wait_until(lambda: not file.exists())
    assert store.http.delete(f"/vcon/{uuid}").status_code == 404


def test_a_storage_without_delete_is_named_while_it_holds_the_vcon(store: Store) -> None:
    """It says itself when somebody has deleted it there by hand."""
    document = vcon()
    file = store.holds(document, "half")
    store.http.post("/vcon", json=document)

    answer = store.http.delete(f"/vcon/{document['uuid']}")

    assert answer.status_code == 502
    [error] = answer.json()["errors"]
    assert error["storage"] == "half"
    assert error["detail"] == "storages.half has no delete(vcon_uuid, opts): delete the vCon there by hand"
    file.unlink()
    assert store.http.delete(f"/vcon/{document['uuid']}").status_code == 404


def test_what_cannot_be_asked_at_all_is_named(store: Store) -> None:
    """A storage that cannot be loaded, and one that has neither get nor delete; the others are done."""
    document = vcon()
    file = store.holds(document)
    store.http.post("/vcon", json=document)
    store.api.configure(config_of(store.api.folder, mute="mute", broken="broken"))
    try:
        # The config counts within a second.
        wait_until(lambda: store.http.delete(f"/vcon/{uuid4()}").status_code == 502, 30)

        answer = store.http.delete(f"/vcon/{document['uuid']}")
    finally:
        store.api.configure(config_of(store.api.folder))
        wait_until(lambda: store.http.delete(f"/vcon/{uuid4()}").status_code == 404, 30)

    errors = {error["storage"]: error["detail"] for error in answer.json()["errors"]}
    assert errors.keys() == {"mute", "broken"}
    assert errors["mute"] == "storages.mute has no delete(vcon_uuid, opts): delete the vCon there by hand"
    assert errors["broken"].startswith("it cannot be loaded: storage 'broken': ")
    assert not file.exists()


def test_if_match_deletes_that_version_only(store: Store, redis: Redis) -> None:
    """Also of a vCon that only a storage holds; another one stays everywhere."""
    document = vcon()
    file = store.holds(document)
    tag = store.http.get(f"/vcon/{document['uuid']}").headers["etag"]
    redis.delete(f"vcon:{document['uuid']}")

    wrong = store.http.delete(f"/vcon/{document['uuid']}", headers={"If-Match": '"other"'})
    assert wrong.status_code == 412
    assert file.exists()
    right = store.http.delete(f"/vcon/{document['uuid']}", headers={"If-Match": tag})
    assert right.status_code == 204
    assert not file.exists()


def test_the_bound_on_hanging_calls_is_below_the_threads_of_the_api() -> None:
    """Else one storage that hangs could use them all."""
    assert MOST_HANGING * 4 <= THREADS
