"""Orders to a fake service: what is to become of the good answer that it has in hand.

    service.order(status(429, retry_after="1"), cut, ok)

The first order is for the next request, and so on; after the last, all is well again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.fakes.http_server import Exchange


@dataclass(frozen=True)
class Answer:
    """An answer that was not sent yet."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def send(self, exchange: Exchange) -> None:
        """Send it."""
        exchange.answer(self.status, self.body, **self.headers)


#: Gets the exchange, and what does the work of the request and returns the good answer.
Order = Callable[[Exchange, Callable[[], Answer]], None]


def ok(exchange: Exchange, work: Callable[[], Answer]) -> None:
    """Answer as one should."""
    work().send(exchange)


def status(code: int, text: str = "on order", **headers: str) -> Order:
    """Refuse with an error status; nothing is done."""
    return lambda exchange, _: exchange.answer(code, text.encode(), content_type="text/plain", **headers)


def slow(secs: float) -> Order:
    """Answer well, but late."""

    def late(exchange: Exchange, work: Callable[[], Answer]) -> None:
        answer = work()
        if exchange.pause(secs):
            answer.send(exchange)

    return late


def cut(exchange: Exchange, work: Callable[[], Answer]) -> None:
    """Do what is asked, and break off in the middle of the answer."""
    answer = work()
    exchange.begin(answer.status, len(answer.body) + 10, **answer.headers)
    exchange.write(answer.body[: len(answer.body) // 2])
    exchange.cut()


def with_body(body: bytes) -> Order:
    """Do what is asked, and answer with something else."""
    return changed(lambda answer: replace(answer, body=body))


def changed(change: Callable[[Answer], Answer]) -> Order:
    """Do what is asked, and change the answer."""
    return lambda exchange, work: change(work()).send(exchange)
