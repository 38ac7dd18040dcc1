"""storages.redis_storage: vCons in a Redis-compatible server."""

import json
import time

import pytest
from pydantic import ValidationError

from conserver import StorageError
from conserver.ambient import Work, working
from conserver.components import load_storage
from conserver.config import StorageConfig
from conserver.testing import STORAGE_RULES, storage_contract, throwaway_store, two_party_call
from storages import redis_storage
from storages.redis_storage import Options
from tests.proxy import proxied
from tests.servers import RealServer

NOBODY = "redis://user:s3cret@127.0.0.1:1/0"


@pytest.fixture
def save():
    """Save a call with the given options, and return it and them."""
    store = throwaway_store()

    def saved(**options):
        opts, call = Options(**options), two_party_call()
        store.create(call)
        with working(Work(store.writer())):
            redis_storage.save(call.uuid, opts)
        return call, opts

    return saved


class Backend:
    """A server of the test's own that asks for a password, and is killed and started."""

    def __init__(self, folder):
        self.server = RealServer(folder, login={"password": "s3cret"}, requirepass="s3cret").start()
        self.url = self.server.url.replace("//", "//:s3cret@")
        self.stop, self.start = self.server.kill, self.server.start


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    backend = Backend(tmp_path_factory.mktemp("redis") / "server")
    yield backend
    backend.server.close()


@pytest.mark.parametrize("rule", STORAGE_RULES)
def test_the_contract_of_storages(backend, rule):
    """The rules for every storage hold."""
    with proxied(backend.server.url) as proxy, proxy.blackhole():
        checked = storage_contract(
            "storages.redis_storage",
            {"redis_url": backend.url},
            rules=[rule],
            unreachable={"redis_url": NOBODY},
            denied={"redis_url": backend.url.replace("s3cret", "wrong-s3cret")},
            slow={"redis_url": proxy.url.replace("//", "//:s3cret@"), "timeout": 1},
            backend=backend,
            secrets=["s3cret"],
            timeout_secs=10,
        )

    assert [rule] == checked


def test_the_key_holds_the_json_and_expires(redis, server_url, save):
    """`<prefix>:<uuid>` is a string that other programs can read, for a week."""
    call, _ = save(redis_url=server_url)

    key = f"vcon_storage:{call.uuid}"
    assert call.document == json.loads(redis.get(key))
    assert 604700 < redis.ttl(key) <= 604800


@pytest.mark.parametrize(("expires", "ttl"), [(60, 60), (0, -1), (None, -1)])
def test_an_expiry_of_nothing_is_for_ever(redis, server_url, save, expires, ttl):
    """0 and null keep the copy."""
    call, _ = save(redis_url=server_url, prefix="kept", expires=expires)

    assert ttl == redis.ttl(f"kept:{call.uuid}")


def test_without_an_url_it_is_the_conservers_own_server(redis, server_url, save, monkeypatch):
    """The workers have the server's URL in REDIS_URL, also when it is the embedded one."""
    monkeypatch.setenv("REDIS_URL", server_url)

    call, opts = save()

    assert redis.exists(f"vcon_storage:{call.uuid}") == 1
    assert call.document == redis_storage.get(call.uuid, opts)


def test_without_any_url_the_cure_is_told(save, monkeypatch):
    """Neither the option nor REDIS_URL: the message names both."""
    monkeypatch.delenv("REDIS_URL", raising=False)

    with pytest.raises(StorageError, match="set its option redis_url, or REDIS_URL in the environment"):
        save()


def test_a_server_that_is_not_there_is_named_without_its_password(save):
    """The address is in the message, user and password are not."""
    with pytest.raises(StorageError, match=r"cannot save: server at redis://127.0.0.1:1/0: ") as told:
        save(redis_url=NOBODY)

    assert "s3cret" not in str(told.value)


def test_a_server_that_says_nothing_is_given_up_in_time(backend):
    """The timeout is for all attempts together."""
    with proxied(backend.server.url) as proxy, proxy.blackhole():
        opts = Options(redis_url=proxy.url, timeout=2)
        began = time.monotonic()
        with pytest.raises(StorageError, match="cannot write: server at"):
            redis_storage.ping(opts)

    assert 1.5 < time.monotonic() - began < 6


def test_a_ping_needs_the_right_to_write(redis, server_url):
    """A user who may only read the keys, or only those of others, is told."""
    try:
        for keys in ("%R~vcon_storage:*", "~other:*"):
            redis.acl_setuser("half", enabled=True, nopass=True, reset=True, commands=["+@all"], keys=None)
            redis.execute_command("ACL", "SETUSER", "half", keys)
            address = server_url.replace("unix://", "unix://half:x@")
            with pytest.raises(StorageError, match="cannot write: server at"):
                redis_storage.ping(Options(redis_url=address))
    finally:
        redis.acl_deluser("half")


def test_a_value_of_another_kind_is_an_error(redis, server_url):
    """A list under the key is told, not taken for a missing vCon."""
    redis.rpush("vcon_storage:taken", "x")

    with pytest.raises(StorageError, match=r"cannot read: server at unix://.*WRONGTYPE"):
        redis_storage.get("taken", Options(redis_url=server_url))


def test_the_prefix_of_the_live_vcons_is_refused():
    """Copies under `vcon:` would overwrite what is being worked on, and let it expire."""
    with pytest.raises(ValidationError, match="must not be 'vcon': these keys hold the vCons"):
        Options(prefix="vcon")


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://host", "redis://:s3/cret@host:6379", "redis://host:notaport", ""]
)
def test_an_url_that_makes_no_sense_is_refused_without_its_password(url):
    """The check says how to write it, and shows nothing of it."""
    config = StorageConfig(name="copy", module="storages.redis_storage", options={"redis_url": url})

    with pytest.raises(Exception, match="redis_url is no URL of a server: write redis://") as told:
        load_storage(config)

    assert "cret" not in str(told.value)


def test_the_password_is_not_in_the_options_text():
    """Options that land in a log show no secret."""
    assert "s3cret" not in repr(Options(redis_url=NOBODY))
