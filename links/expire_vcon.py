"""Let the copy of the vCon in Redis expire.

The time begins when the chain has settled, so a vCon that waits for its turn, or is worked on, does not go away. It
takes the place of `VCON_REDIS_EXPIRY` for this vCon, and unlike that it does not ask whether a storage holds a copy:
without one, the vCon is gone when the time is over. A later save, or another run of a chain, ends the countdown.

Works on signed and encrypted vCons, too.

Reads: nothing. Writes: nothing; the copy in Redis gets an expiry.
"""

from pydantic import BaseModel, Field

from conserver import vcons


class Options(BaseModel):
    """When it expires."""

    seconds: int = Field(default=86400, ge=1, description="Life of the copy in Redis after the chain, in seconds.")


def run(vcon_uuid: str, link_name: str, opts: Options) -> str:
    """Ask for the expiry."""
    vcons.expire(vcon_uuid, opts.seconds)
    return vcon_uuid
