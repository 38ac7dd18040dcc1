"""Keep vCons in a Redis-compatible server, apart from the copies that the conserver works on.

One key a vCon, `<prefix>:<uuid>`, with its JSON text and an expiry. Without `redis_url` it is the conserver's own
server, which is then no second place but only a longer life: the copy survives the expiry of the one that is worked on,
not the loss of the server.

A server that does not answer is a StorageError within `timeout`.

Reads: the key of a vCon. Writes: a key for each vCon, `{prefix}:{uuid}`.
"""

import heapq
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from redis.exceptions import RedisError

from conserver import StorageError, Vcon, connection, vcons
from conserver.errors import ServerError

#: UUIDs that are kept in memory to be put in order.
_PAGE = 100_000


class Options(BaseModel):
    """Where, and for how long."""

    model_config = ConfigDict(hide_input_in_errors=True)

    redis_url: SecretStr | None = Field(
        default=None,
        description="The server, in any form that `REDIS_URL` may have; without it, the conserver's own. The existing "
        "conserver ignores this option; here it counts.",
    )
    prefix: str = Field(
        default="vcon_storage",
        min_length=1,
        description="What the keys begin with, before the colon. `vcon` is refused: these keys hold the vCons that are "
        "being worked on.",
    )
    expires: int | None = Field(
        default=604800, ge=0, description="Life of a copy in seconds, from its last save; 0 or null is for ever."
    )

    timeout: float = Field(
        default=20.0, gt=0, description="Seconds that a server which says nothing is waited for, in four attempts."
    )

    @field_validator("prefix")
    @classmethod
    def _not_ours(cls, prefix: str) -> str:
        if prefix == "vcon":
            raise ValueError("must not be 'vcon': these keys hold the vCons that are being worked on")
        return prefix

    @model_validator(mode="after")
    def _is_url(self) -> "Options":
        # Of the whole, not of the one field: what is wrong with a field is told with its value, password and all.
        if self.redis_url is not None:
            try:
                connection.check(self.redis_url.get_secret_value())
            except ValueError as error:
                raise ValueError(f"redis_url {error}") from None
        return self


def save(vcon_uuid: str, opts: Options) -> None:
    """Write the vCon over what is there, and start its expiry anew."""
    text = vcons.get(vcon_uuid).to_bytes()
    with _server("save", opts) as client:
        client.set(_key(vcon_uuid, opts), text, ex=opts.expires or None)


def get(vcon_uuid: str, opts: Options) -> dict[str, Any] | None:
    """Return the stored vCon, or None if there is none."""
    with _server("read", opts) as client:
        text = client.get(_key(vcon_uuid, opts))
    return None if text is None else Vcon.parse(text, migrate=False).document


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Delete the stored vCon; False if there was none."""
    with _server("delete", opts) as client:
        return bool(client.delete(_key(vcon_uuid, opts)))


def list_uuids(opts: Options, after: str = "") -> Iterator[str]:
    """Yield the UUIDs of stored vCons in order, those behind *after*. Looks at every key, for each 100,000 once."""
    begin = _key("", opts)
    pattern = re.sub(r"([*?\[\]\\])", r"\\\1", begin) + "*"
    while True:
        with _server("list", opts) as client:
            keys = client.scan_iter(match=pattern, count=1000)
            uuids = (key.decode("utf-8", "replace").removeprefix(begin) for key in keys)
            page = heapq.nsmallest(_PAGE, (uuid for uuid in uuids if uuid > after))
        if not page:
            return
        after = page[-1]
        # A scan may name a key twice.
        yield from dict.fromkeys(page)


def ping(opts: Options) -> None:
    """Raise StorageError if the keys cannot be written to."""
    with _server("write", opts) as client:
        # A write that changes nothing: there is no such vCon.
        client.delete(_key(str(UUID(int=0)), opts))


def _key(vcon_uuid: str, opts: Options) -> str:
    return f"{opts.prefix}:{vcon_uuid}"


@contextmanager
def _server(action: str, opts: Options) -> Iterator[Any]:
    url = opts.redis_url.get_secret_value() if opts.redis_url else os.environ.get("REDIS_URL", "")
    if not url:
        raise StorageError("redis_storage knows no server: set its option redis_url, or REDIS_URL in the environment")
    try:
        yield _client(url, opts.timeout)
    except (RedisError, ServerError) as error:
        raise StorageError(f"cannot {action}: server at {connection.address(url)}: {error}") from error


@cache
def _client(url: str, timeout_secs: float) -> Any:
    return connection.client(url, "redis_storage", timeout_secs=timeout_secs / 4, retries=2)
