"""Wait before the chain goes on.

The vCon keeps its thread for as long as it waits, so give the chain enough `concurrency`. The wait counts against the
link's `timeout`: a longer one ends as a dead letter. To try again later, use the chain's `retry` instead, which holds
no thread.

Reads: nothing. Writes: nothing.
"""

import time

from pydantic import BaseModel, Field, field_validator


class Options(BaseModel):
    """How long to wait."""

    seconds: float = Field(
        default=5.0, allow_inf_nan=False, description="How long to wait, in seconds; a negative number means 0."
    )

    @field_validator("seconds")
    @classmethod
    def _never_negative(cls, seconds: float) -> float:
        return max(seconds, 0.0)


def run(vcon_uuid: str, link_name: str, opts: Options) -> str:
    """Sleep, then go on."""
    time.sleep(opts.seconds)
    return vcon_uuid
