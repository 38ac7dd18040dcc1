"""An HTTP server that answers late: `python -m bench.slow_http SECS` prints its port.

GET /peak tells how many have waited at once at most.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys


async def serve(delay_secs: float) -> None:
    """Answer every POST after *delay_secs*, however many wait."""
    waiting = most = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting, most
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                body = b""
                if head.startswith(b"GET /peak"):
                    body = str(most).encode()
                else:
                    waiting += 1
                    most = max(most, waiting)
                    await asyncio.sleep(delay_secs)
                    waiting -= 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    # It ends with whoever has started it, at once: many connections still wait for the next request.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
