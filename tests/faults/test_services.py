"""Services that links talk to: what they refuse, garble or cut costs no more calls than configured, and no vCon."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.fakes.http_server import Exchange, HttpServer
from tests.fakes.model_server import ModelServer, cut, empty_choices, invalid_json, ok, status
from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.thorough, pytest.mark.timeout(300)]


def make(tmp_path: Path, url: str, module: str, options: dict[str, Any], **chain: Any) -> Host:
    """A host with one chain of one link that calls a service."""
    config = {
        "links": {"service": {"module": module, "options": options}},
        "chains": {
            "main": {
                "links": ["service"],
                "ingress_lists": ["in"],
                "egress_lists": ["out"],
                "pause_after": 0,
                **chain,
            }
        },
    }
    return Host(tmp_path / "host", url, config)


def call() -> dict[str, Any]:
    """A vCon with a transcript for a model to read."""
    body = {"paragraphs": {"transcript": "the kettle is on"}}
    return vcon(analysis=[{"type": "transcript", "dialog": 0, "vendor": "example", "body": body}])


def summaries(redis: Redis, uuid: str) -> int:
    """How many answers of the model the vCon has."""
    document = json.loads(redis.get(f"vcon:{uuid}") or b"{}")
    return [entry["type"] for entry in document["analysis"]].count("summary")


def test_a_model_that_misbehaves_is_asked_as_often_as_configured(tmp_path: Path, redis: Redis, server_url: str):
    """Busy for some seconds, broken, garbled, empty, cut: the vCon waits in Redis, and each is answered once."""
    orders = [status(429, retry_after="3"), status(500), status(500), invalid_json, empty_choices, cut, ok] * 4
    uuids = store(redis, [call() for _ in range(40)])
    with ModelServer() as models:
        models.order(*orders)
        options = {"base_url": models.base_url, "api_key": "k", "retry_secs": 0}
        retry = {"attempts": 30, "backoff_secs": 0.1, "max_backoff_secs": 0.5}
        host = make(tmp_path, server_url, "links.analyze", options, retry=retry)
        try:
            host.start()
            redis.rpush("in", *uuids)
            wait_until(lambda: accounted(redis, ["in"]), 120)

            assert Counter(entries(redis, "out")) == Counter(uuids)
            assert len(models.calls) == 40 + sum(order is not ok for order in orders)
            assert [summaries(redis, uuid) for uuid in uuids] == [1] * 40
        finally:
            host.close()


def test_a_model_that_stays_busy_gets_no_more_calls_than_allowed(tmp_path: Path, redis: Redis, server_url: str):
    """Each vCon is a dead letter after its attempts, with the service's words; the key is in none of them."""
    uuids = store(redis, [call() for _ in range(3)])
    with ModelServer() as models:
        models.order(*[status(429, "slow down", retry_after="1")] * 100)
        options = {"base_url": models.base_url, "api_key": "sk-very-secret", "retry_secs": 0}
        retry = {"attempts": 3, "backoff_secs": 0.1, "max_backoff_secs": 0.2}
        host = make(tmp_path, server_url, "links.analyze", options, retry=retry)
        try:
            host.start()
            redis.rpush("in", *uuids)
            wait_until(lambda: accounted(redis, ["in"]), 120)
            whys = [json.loads(why)["error"] for why in redis.hvals("conserver:{in}:dead")]

            assert Counter(entries(redis, "DLQ:in")) == Counter(uuids)
            assert len(models.calls) == 3 * 3
            assert all("429" in why for why in whys)
            assert "sk-very-secret" not in host.said() + "".join(whys)
        finally:
            host.close()


def test_an_answer_that_was_paid_for_is_not_asked_for_again(tmp_path: Path, redis: Redis, server_url: str):
    """Workers are killed while they wait for the model: one more call for each in hand, and one answer for each."""
    uuids = store(redis, [call() for _ in range(40)])
    arrived, go_on = threading.Semaphore(0), threading.Event()

    def held_up(exchange: Exchange) -> None:
        arrived.release()
        if go_on.wait(60):
            ok(exchange)

    with ModelServer() as models:
        models.order(*[held_up] * 16)
        host = make(tmp_path, server_url, "links.analyze", {"base_url": models.base_url, "api_key": "k"})
        try:
            host.start()
            redis.rpush("in", *uuids)
            assert all(arrived.acquire(timeout=90) for _ in range(16))
            host.signal(signal.SIGKILL, host.worker_pids())
            go_on.set()
            wait_until(lambda: accounted(redis, ["in"]), 120)

            assert Counter(entries(redis, "out")) == Counter(uuids)
            assert len(models.calls) == 40 + 16
            assert [summaries(redis, uuid) for uuid in uuids] == [1] * 40
        finally:
            go_on.set()
            host.close()


def test_a_webhook_whose_answer_is_lost_comes_again_with_the_same_id(tmp_path: Path, redis: Redis, server_url: str):
    """The receiver accepts and the connection dies, or the worker does: by the id it knows that it has this one."""
    uuids = store(redis, [vcon() for _ in range(30)])
    seen: dict[str, list[str]] = defaultdict(list)
    arrived, lock = threading.Semaphore(0), threading.Lock()

    def receive(exchange: Exchange) -> None:
        request = exchange.request
        with lock:
            ids = seen[json.loads(request.body)["uuid"]]
            ids.append(request.headers["webhook-id"])
            nth = len(ids)
        if nth == 1:
            exchange.cut()
        elif nth == 2:
            arrived.release()
            exchange.pause(1.0)
            exchange.answer(200)
        else:
            exchange.answer(200)

    with HttpServer(receive) as receiver:
        host = make(tmp_path, server_url, "links.webhook", {"webhook-urls": [receiver.url]})
        try:
            host.start()
            redis.rpush("in", *uuids)
            assert all(arrived.acquire(timeout=90) for _ in range(6))
            host.signal(signal.SIGKILL, host.worker_pids())
            wait_until(lambda: accounted(redis, ["in"]), 120)

            assert Counter(entries(redis, "out")) == Counter(uuids)
            assert seen.keys() == set(uuids)
            assert all(len(ids) >= 2 and len(set(ids)) == 1 for ids in seen.values())
            assert max(map(len, seen.values())) >= 3
            assert len({ids[0] for ids in seen.values()}) == 30
        finally:
            host.close()
