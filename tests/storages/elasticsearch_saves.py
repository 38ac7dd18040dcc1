"""What the tests of storages.elasticsearch share: saves, and things that happen in the middle of one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from conserver import Vcon
from conserver.ambient import Work, working
from conserver.store import VconStore
from conserver.testing import throwaway_store
from storages import elasticsearch
from storages.elasticsearch import Options
from tests.fakes.elasticsearch_server import API_KEY, ElasticsearchServer
from tests.fakes.http_server import Exchange
from tests.fakes.orders import Answer, Order, ok

UUID = "0190c0de-1234-8567-8000-000000000001"
DOCUMENTS = "vcon_documents"
_storing = threading.Lock()


@cache
def _store() -> VconStore:
    return throwaway_store()


def options(server: ElasticsearchServer, **more: Any) -> dict[str, Any]:
    """Options for a server; *more* of them over those."""
    return {"url": server.url, "api_key": API_KEY, **more}


def save(server: ElasticsearchServer, vcon: Vcon, **more: Any) -> None:
    """Save a vCon, as a chain does: others may have stored another version by then."""
    opts, writer = Options(**options(server, **more)), _store().writer()
    with _storing:
        _store().create(vcon, replace=True)
        writer.freeze(str(vcon.uuid))
    with working(Work(writer)):
        elasticsearch.save(str(vcon.uuid), opts)


def get(server: ElasticsearchServer, uuid: str | None) -> Any:
    """Return a vCon as it comes back."""
    return elasticsearch.get(str(uuid), Options(**options(server)))


def delete(server: ElasticsearchServer, uuid: str | None) -> bool:
    """Delete a vCon."""
    return elasticsearch.delete(str(uuid), Options(**options(server)))


def at(path: str, order: Order) -> list[Order]:
    """Obey an order at requests to a path, and at no others; for as many as a save has."""

    def chosen(exchange: Exchange, work: Callable[[], Answer]) -> None:
        (order if exchange.request.path.startswith(path) else ok)(exchange, work)

    return [chosen] * 12


def before(path: str, work: Callable[[], object]) -> list[Order]:
    """Do something right before the first request to a path."""
    waiting = [work]

    def meanwhile(exchange: Exchange, answer: Callable[[], Answer]) -> None:
        if waiting and exchange.request.path.startswith(path):
            waiting.pop()()
        ok(exchange, answer)

    return [meanwhile] * 12
