"""Connections: who is slow with the head of a request, says nothing, or does not read, keeps none for ever."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

#: How long a client may take for the head of a request; it is looked at so often, and cut off at the second look.
HEAD_SECS = 30.0
MAX_HEAD_BYTES = 64 * 1024

# It is another class where httptools are installed.
_Protocol: Any = AutoHTTPProtocol


class Connection(_Protocol):  # type: ignore[misc]
    """One connection of a client, as uvicorn serves it, with an end to its patience."""

    def connection_made(self, transport: Any) -> None:
        """Begin to watch the connection."""
        super().connection_made(transport)
        self._in_head = False
        self._head_bytes = 0
        self._seen: Any = None
        self._unread = 0
        self._timer = self.loop.call_later(HEAD_SECS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Watch it no more."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        # A cycle is one request with its answer; uvicorn has a timer while it waits for the first byte of the next one.
        idle = self.cycle is None or self.cycle.response_complete
        slow = idle and self.cycle is self._seen and self.timeout_keep_alive_task is None
        unread = self.transport.get_write_buffer_size()
        stuck = idle and unread and unread == self._unread
        if stuck:
            self.transport.abort()
            return
        if slow and not unread:
            # In good order: a client that comes back at this moment sees an end, which it knows, and no reset.
            self.transport.close()
            return
        self._seen, self._unread = self.cycle, unread
        self._timer = self.loop.call_later(HEAD_SECS, self._look)

    # httptools keep a head of any size; h11 has a limit of its own, and does not call these two.

    def on_message_begin(self) -> None:
        """Begin to count the head of a request."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Count no more."""
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")
