"""Running the API: `conserver api` alone, or a process beside the workers of `conserver run`."""

from __future__ import annotations

import os
import socket

import uvicorn

from conserver.api import create_app
from conserver.api.connections import Connection
from conserver.settings import Settings


def serve(settings: Settings, url: str, listening: socket.socket) -> None:
    """Answer until SIGTERM or Ctrl-C; what is being answered then may end."""
    # Where components look that have no server of their own, as in a worker.
    os.environ["REDIS_URL"] = url
    config = uvicorn.Config(
        create_app(settings, url),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        http=Connection,
        ws="none",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, int(settings.drain_secs)),
    )
    uvicorn.Server(config).run([listening])
