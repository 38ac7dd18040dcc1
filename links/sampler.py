"""Let a share of the vCons through and stop the rest.

`method` says how a vCon is chosen and what `value` means:

- `percentage`: `value` percent of them. The choice follows from the UUID and the `seed`, so a vCon that is run again
  after a crash meets the same fate. Without a `seed` the link's name is the seed.
- `modulo`: one of `value`, by a hash of the UUID; the same ones whatever the link is called.
- `rate`: at most one every `value` seconds in each worker process, so `value: 0.1` with 4 workers is at most 40 a
  second in all. A vCon that was let through is let through again when its run is repeated in the meantime.
- `time_based`: those that come in a second of the clock that `value` divides. All of them, so it limits nothing.

A vCon that is stopped reaches no later link, storage or egress list.

Reads: the UUID. Writes: nothing.
"""

import hashlib
import threading
import time
from functools import cache
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from conserver import telemetry


class Options(BaseModel):
    """How to choose."""

    method: Literal["percentage", "rate", "modulo", "time_based"] = Field(
        default="percentage", description="How vCons are chosen."
    )
    value: float = Field(
        default=50.0,
        ge=0,
        allow_inf_nan=False,
        description="Percent (`percentage`), one of how many (`modulo`), or seconds (`rate`, `time_based`).",
    )
    seed: int | str | None = Field(
        default=None,
        description="For `percentage`: links with the same seed choose the same vCons. Without one, it is the name of "
        "the link.",
    )

    @model_validator(mode="after")
    def _value_suits_method(self) -> "Options":
        if self.method == "percentage" and self.value > 100:
            raise ValueError(f"method percentage: value must be from 0 to 100, not {self.value:g}")
        if self.method == "rate" and self.value == 0:
            raise ValueError("method rate: value is the seconds between two vCons, so it must be more than 0")
        if self.method in ("modulo", "time_based") and (self.value < 1 or self.value % 1):
            raise ValueError(f"method {self.method}: value must be a whole number from 1 on, not {self.value:g}")
        return self


class Spacing:
    """Admits at most one vCon every `secs` seconds."""

    def __init__(self, secs: float) -> None:
        self._secs = secs
        self._lock = threading.Lock()
        self._next = float("-inf")
        self._last = ""

    def admits(self, uuid: str, now: float) -> bool:
        """Tell whether this vCon may pass at *now*; the one that passed last may do so again."""
        with self._lock:
            if now >= self._next:
                self._next, self._last = now + self._secs, uuid
                return True
            return uuid == self._last


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Go on with the vCon if it is chosen."""
    chosen = _is_chosen(vcon_uuid, link_name, opts)
    name = "conserver.link.sampler.sampled_in" if chosen else "conserver.link.sampler.sampled_out"
    telemetry.count(name, link=link_name, method=opts.method)
    return vcon_uuid if chosen else None


def _is_chosen(uuid: str, link_name: str, opts: Options) -> bool:
    if opts.method == "percentage":
        seed = link_name if opts.seed is None else opts.seed
        drawn = int.from_bytes(hashlib.sha256(f"{seed}\0{uuid}".encode()).digest()[:8], "big") / 2**64
        return drawn * 100 < opts.value
    if opts.method == "modulo":
        return int(hashlib.sha256(uuid.encode()).hexdigest()[:8], 16) % int(opts.value) == 0
    if opts.method == "rate":
        return _spacing(link_name, opts.value).admits(uuid, time.monotonic())
    return int(time.time()) % int(opts.value) == 0


@cache
def _spacing(link_name: str, secs: float) -> Spacing:
    return Spacing(secs)
