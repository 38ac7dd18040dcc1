"""conserver.talk: exchanges with the server, held in a thread or in an event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import Redis

from conserver import connection, scripts
from conserver.connection import Command
from conserver.stored import vcon_key
from conserver.talk import Talk, hold, hold_async

KEY = vcon_key("a")


def version() -> Talk[bytes]:
    """Ask for the version of a text by its script."""
    [reply] = yield [scripts.VERSION.command([KEY], [])]
    return reply


@pytest.mark.parametrize("waits", ["in a thread", "in a loop"])
def test_a_server_that_forgets_its_scripts_all_the_time_is_served(redis: Redis, server_url: str, waits: str) -> None:
    """Before each command: whatever it was told just before, it has forgotten again."""
    redis.set(KEY, "text")
    client = connection.client(server_url, "test")

    def call(commands: list[Command]) -> list[Any]:
        redis.script_flush()
        return client.call(commands)

    async def wait(commands: list[Command]) -> list[Any]:
        return call(commands)

    found = hold(version(), call) if waits == "in a thread" else asyncio.run(hold_async(version(), wait))

    assert found == b"372ea08cab33e71c02c651dbc83a474d32c676ea"
