"""`lib.links.filters`: which vCons a link works on, by its options."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any, TypedDict

from pydantic import ValidationError

from conserver.filters import OnlyIf
from conserver.vcon import Vcon

log = logging.getLogger(__name__)


class OnlyIfFilter(TypedDict, total=False):
    """What `only_if` says: `section` and `includes` with `type` or `purpose`."""

    section: str
    type: str
    purpose: str
    includes: str


class FilterOptions(TypedDict, total=False):
    """The options by which a link is held to some of the vCons."""

    only_if: OnlyIfFilter
    sampling_rate: float


def is_included(options: Mapping[str, Any] | None, vcon: Any) -> bool:
    """Say whether the vCon meets `only_if`, or there is none; one that cannot be read does not, which is logged."""
    only_if = (options or {}).get("only_if")
    if not only_if:
        return True
    try:
        return OnlyIf.model_validate(only_if).matches(Vcon(vcon.to_dict()))
    except (ValidationError, ValueError, AttributeError) as error:
        log.warning("only_if cannot be applied, so the link skips the vCon: %s", error)
        return False


def randomly_execute_with_sampling(options: Mapping[str, Any] | None) -> bool:
    """Say yes with the probability `sampling_rate`; without one, or with 0, always.

    It is drawn anew for each run: `sampling_rate` of the library's own links, which is not, is what a crash leaves be.
    """
    rate = (options or {}).get("sampling_rate")
    return not rate or random.random() < float(rate)  # noqa: S311  no secret depends on it
