"""A real server in a bad mood for a while: full, read-only, or with a command or a key denied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis


@contextmanager
def full(redis: Redis) -> Iterator[None]:
    """The server has no memory left for writes."""
    redis.config_set("maxmemory", "1")
    try:
        yield
    finally:
        redis.config_set("maxmemory", "0")


@contextmanager
def read_only(redis: Redis) -> Iterator[None]:
    """The server has become a replica of one that is gone."""
    redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        redis.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def denied(redis: Redis, *rules: str) -> Iterator[None]:
    """An operator has set ACL *rules* for everybody, such as `-rpush`, or `resetkeys` and key patterns."""
    redis.execute_command("ACL", "SETUSER", "default", *rules)
    try:
        yield
    finally:
        redis.execute_command("ACL", "SETUSER", "default", "on", "nopass", "allkeys", "allchannels", "allcommands")
