"""conserver.store on values of a real JSON module, as the existing conserver wrote them."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from conserver import scripts
from conserver.reindex import reindex
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.vcon import Vcon
from tests.servers import RealServer, find_json_module, running

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="there is no build of the JSON module"
)
UUID = "018f3c5e-0000-8000-8000-00000000000a"
KEY = f"vcon:{UUID}"


@pytest.fixture(scope="module")
def json_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that has the JSON module."""
    with running(RealServer(tmp_path_factory.mktemp("json") / "server", loadmodule=find_json_module())) as server:
        yield server.url


@pytest.fixture
def redis(json_url: str) -> Iterator[Redis]:
    """Its client; the server is empty."""
    with Redis.from_url(json_url) as client:
        client.flushall()
        yield client


def document(**more: Any) -> dict[str, Any]:
    return {
        "vcon": "0.4.0",
        "uuid": UUID,
        "created_at": "2026-01-01T00:00:00Z",
        "parties": [{"tel": "+15550100"}],
        "dialog": [],
        "analysis": [],
        "attachments": [],
        **more,
    }


@pytest.mark.parametrize(("redis_format", "kind"), [("string", b"string"), ("json", b"ReJSON-RL")])
def test_a_json_value_is_read_and_changed(json_url: str, redis: Redis, redis_format: str, kind: bytes) -> None:
    """What the existing conserver has written is a vCon like any other; a save writes the format of the setting."""
    vcons = VconStore(json_url, Settings(redis_format=redis_format))
    redis.execute_command("JSON.SET", KEY, "$", json.dumps(document(count=12345678901234567890)))

    writer = vcons.writer()
    for tag in "ab":
        with writer.edit(UUID) as vcon:
            vcon.add_tag(tag, "1")

    assert redis.type(KEY) == kind
    assert vcons.get(UUID).tags == ["a:1", "b:1"]
    assert vcons.get(UUID).document["count"] == 12345678901234567890


@pytest.mark.parametrize("redis_format", ["string", "json"])
def test_no_update_of_a_json_value_is_lost(json_url: str, redis: Redis, redis_format: str) -> None:
    """Two writers that overlap, and a third save by the one that came first."""
    vcons = VconStore(json_url, Settings(redis_format=redis_format))
    redis.execute_command("JSON.SET", KEY, "$", json.dumps(document()))
    one = vcons.writer()
    with one.edit(UUID) as mine:
        mine.add_analysis(type="one", dialog=[], vendor="v", body="1")
        with vcons.edit(UUID) as theirs:
            theirs.add_analysis(type="two", dialog=[], vendor="v", body="2")
    with one.edit(UUID) as mine:
        mine.add_tag("last", "1")

    assert sorted(entry["type"] for entry in vcons.get(UUID).analysis) == ["one", "two"]
    assert vcons.get(UUID).tags == ["last:1"]


@pytest.mark.parametrize("redis_format", ["string", "json"])
def test_a_json_value_expires_by_its_version(json_url: str, redis: Redis, redis_format: str) -> None:
    """The version that storages hold is the one that the module gives back, not the text it was given."""
    vcons = VconStore(json_url, Settings(redis_format=redis_format))
    vcons.create(Vcon(document(number=1.50)))
    writer = vcons.writer()
    with writer.edit(UUID) as vcon:
        vcon.add_tag("a", "1")
    version = writer.freeze(UUID)

    assert redis.eval(scripts.VERSION.text, 1, KEY) == version.encode()
    assert vcons.expire([(UUID, version, 100)]) == 1
    assert 0 < redis.ttl(KEY) <= 100
    with vcons.edit(UUID) as vcon:
        vcon.add_tag("b", "1")
    assert redis.ttl(KEY) == -1


def test_json_values_are_found_and_entered_into_a_rebuilt_index(json_url: str, redis: Redis) -> None:
    """As the existing conserver left them, and after an edit."""
    redis.execute_command("JSON.SET", KEY, "$", json.dumps(document(subject="Hello", tags=[1])))
    redis.rpush("vcon:018f3c5e-0000-8000-8000-00000000000b", "x")
    redis.zadd("vcons", {KEY: 5})
    vcons = VconStore(json_url, Settings(redis_format="json"))

    assert reindex(vcons.client, Settings()) == 1
    assert vcons.find(tel="+15550100", subject="hello") == {UUID}
    with vcons.edit(UUID) as vcon:
        vcon.add_tag("mood", "good")
        vcon.document["subject"] = "Bye"
    assert vcons.find(tag="mood:good", subject="bye") == {UUID}
    assert vcons.find(subject="hello") == set()
    assert redis.zrange("vcons", 0, -1, withscores=True) == [(UUID.encode(), 1767225600.0)]
