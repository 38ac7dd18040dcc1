"""Which vCons a link works on: `only_if` and `sampling_rate` of its options, `when` of its entry in the config.

A link inherits its options from Filters and asks once:

    if not filters.selected(opts, vcon, link_name):
        return vcon_uuid
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from conserver.vcon import Vcon, tags_of

log = logging.getLogger(__name__)


class OnlyIf(BaseModel):
    """A condition on what a vCon holds: some entry of `section` whose purpose or type is the given one has `includes`.

    `purpose` and `type` mean the same and `purpose` wins. For `tags`, `includes` is a whole tag (`name:value`); for
    everything else it is a piece of the body's text.
    """

    model_config = ConfigDict(frozen=True)

    section: Literal["attachments", "analysis"] = Field(description="Where to look.")
    purpose: str | None = Field(default=None, description="The kind of entry to look at, such as `tags`.")
    type: str | None = Field(default=None, description="The same, as an analysis has it; one of the two is needed.")
    includes: str = Field(description="A whole tag (`sale:yes`); for other entries a piece of the body's text.")

    @model_validator(mode="after")
    def _has_target(self) -> OnlyIf:
        if not self.target:
            raise ValueError("only_if needs 'purpose' (or 'type'): the kind of entry to look at")
        return self

    @property
    def target(self) -> str:
        """The purpose or type of the entries to look at."""
        return self.purpose or self.type or ""

    def matches(self, vcon: Vcon) -> bool:
        """True if the vCon meets the condition; raises ValueError for tags that cannot be read."""
        names = ("purpose", "type") if self.section == "attachments" else ("type",)
        entries = [
            entry
            for entry in vcon.document.get(self.section) or []
            if isinstance(entry, dict) and any(entry.get(name) == self.target for name in names)
        ]
        if self.target == "tags":
            return any(self.includes in _tags(entry) for entry in entries)
        return any(self.includes in _text(entry.get("body")) for entry in entries)


class Filters(BaseModel):
    """The options by which any link can be held to some of the vCons."""

    only_if: OnlyIf | None = Field(default=None, description="Work only on vCons that meet this condition.")
    sampling_rate: float = Field(
        default=1.0, ge=0, le=1, description="Share of the vCons to work on, from none to all; never drawn anew."
    )

    @field_validator("sampling_rate", mode="before")
    @classmethod
    def _missing_is_all(cls, value: Any) -> Any:
        return 1.0 if value is None else value


def selected(options: Filters, vcon: Vcon, link_name: str) -> bool:
    """True if the link is to work on this vCon, by `only_if` and `sampling_rate`."""
    return sampled(options.sampling_rate, vcon.uuid or "", link_name) and is_included(options, vcon)


def is_included(options: Filters, vcon: Vcon) -> bool:
    """True if the vCon meets `only_if`, or there is none.

    A vCon whose entries cannot be read does not meet it; that is logged.
    """
    if options.only_if is None:
        return True
    try:
        return options.only_if.matches(vcon)
    except ValueError as error:
        log.warning("only_if cannot read the %s, so the link skips the vCon: %s", options.only_if.section, error)
        return False


def sampled(rate: float | None, uuid: str, link_name: str) -> bool:
    """True for this share of the UUIDs, and always the same answer for one UUID and link.

    A vCon that is run again after a crash must not be drawn anew: it would be paid twice, or half of its links skipped.
    """
    if rate is None:
        return True
    digest = hashlib.sha256(f"{link_name}\0{uuid}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < rate


class When(BaseModel):
    """The `when` of a link in the config: the link is passed over for vCons that do not match.

    Every key that is given must hold. A list means any of its values for `has_...`, and none of them for `lacks_...`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    has_tag: tuple[str, ...] = Field(default=(), description="Tags, as `name:value` or `name` for any value.")
    lacks_tag: tuple[str, ...] = Field(default=(), description="Tags, as `name:value` or `name` for any value.")
    has_analysis: tuple[str, ...] = Field(default=(), description="Types of analysis.")
    lacks_analysis: tuple[str, ...] = Field(default=(), description="Types of analysis.")
    has_dialog: tuple[str, ...] = Field(default=(), description="Types of dialog: recording, text, transfer, ...")

    @field_validator("*", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def matches(self, vcon: Vcon) -> bool:
        """True if the link is to run on this vCon. A signed or encrypted one has nothing that could be seen."""
        tags = set(vcon.tags)
        tags |= {tag.partition(":")[0] for tag in tags}
        analyses, dialogs = _types(vcon, "analysis"), _types(vcon, "dialog")
        return (
            (not self.has_tag or not tags.isdisjoint(self.has_tag))
            and tags.isdisjoint(self.lacks_tag)
            and (not self.has_analysis or not analyses.isdisjoint(self.has_analysis))
            and analyses.isdisjoint(self.lacks_analysis)
            and (not self.has_dialog or not dialogs.isdisjoint(self.has_dialog))
        )


def _types(vcon: Vcon, section: str) -> set[str]:
    entries = vcon.document.get(section) or []
    kinds = (entry.get("type") for entry in entries if isinstance(entry, dict))
    return {kind for kind in kinds if isinstance(kind, str)}


def _tags(entry: dict[str, Any]) -> list[str]:
    tags = tags_of(entry)
    if tags is None:
        raise ValueError("the body of the tags is no list of tags")
    return tags


def _text(body: Any) -> str:
    # Older vCons hold as a string of JSON what newer ones hold as JSON: the condition means the same text.
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
