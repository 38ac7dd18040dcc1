"""What is asked of JetStream, and how often."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from conserver import StorageError, outbound
from conserver.errors import OutboundError
from conserver.outbound import Backoff, Retryable

from .server import Away, NoStream, Server

if TYPE_CHECKING:
    from .connection import Connection

T = TypeVar("T")

_BACKOFF = Backoff(attempts=3, total_secs=15.0)


class Refusal(Exception):
    """JetStream does not do what was asked of it."""

    def __init__(self, error: Any) -> None:
        found = error if isinstance(error, dict) else {}
        self.number = found.get("err_code")
        """What is the matter, in the numbers of JetStream."""
        self.may_pass = found.get("code") == 503
        cure = _CURES.get(self.number or 0)
        super().__init__(f"{str(found.get('description') or 'refused')[:300]}{f'; {cure}' if cure else ''}")


_CURES = {
    10023: "JetStream needs more room",
    10039: "let the account have JetStream",
    10047: "JetStream needs more room",
    10054: "raise max_msg_size of the stream",
    10060: "set stream to the one that takes the subject",
    10076: "start the server with JetStream",
    10077: "let the stream have more messages or bytes, or discard old ones",
    10074: "there are not so many servers: lower replicas",
}


class JetStream:
    """What is asked of JetStream, over the connection of this process."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    @property
    def has_stream(self) -> bool:
        """Whether the stream was seen over this connection."""
        return self._connection.has_stream

    @has_stream.setter
    def has_stream(self, has_stream: bool) -> None:
        self._connection.has_stream = has_stream

    def publish(self, subject: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
        """Publish a message; return what the stream acknowledges it with."""
        return self._ask(subject, body, headers)

    def ask(self, function: str, given: dict[str, Any]) -> dict[str, Any]:
        """Call a function of the API, such as STREAM.NAMES."""
        try:
            return self._ask(f"$JS.API.{function}", json.dumps(given).encode())
        except NoStream:
            raise Away("JetStream does not answer; is it enabled, and does it have a leader?") from None

    def _ask(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
        if outbound.secs_left() <= 0:
            # Nobody waits for it any more, and a newer version may have been published meanwhile.
            raise Away("the time of the whole call is over")
        try:
            answer = self._connection.ask(subject, body, headers)
        except Away:
            self.has_stream = False
            raise
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StorageError(f"what answers on subject {subject} is not JetStream")
        if "error" in found:
            raise Refusal(found["error"])
        return found


def run(action: str, opts: Server, work: Callable[[JetStream], T]) -> T:
    """Call *work* with JetStream, and repeat what may go better."""
    try:
        from .connection import connection
    except ModuleNotFoundError as error:
        raise StorageError(f"cannot {action}: {error} (pip install 'conserver[nats]')") from error

    def attempt() -> T:
        try:
            return work(JetStream(connection(opts)))
        except StorageError as error:
            raise StorageError(f"cannot {action}: {error}") from error
        except Refusal as error:
            if error.may_pass:
                raise Retryable(f"cannot {action}: {error}") from error
            raise StorageError(f"cannot {action}: {error}") from error
        except Away as error:
            raise Retryable(f"cannot {action}: {error}") from error

    try:
        return outbound.retrying(f"nats {opts.address}", attempt, _BACKOFF)
    except OutboundError as error:
        raise StorageError(str(error)) from error
