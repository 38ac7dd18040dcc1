"""Put fixed tags on every vCon.

A tag is a name and a value. It is written as `name:value`; a bare `name` gets itself as its value, and a mapping of
names to values means the same. Tags that the vCon has already stay, however they are written there, and adding one a
second time changes nothing.

A signed or encrypted vCon cannot be tagged: VconSealed.

Reads: tags. Writes: tags.
"""

from typing import Any

from pydantic import BaseModel, Field, field_validator

from conserver import vcons


class Options(BaseModel):
    """What to tag with."""

    tags: list[str] = Field(
        default=["iron", "maiden"],
        validate_default=True,
        description="The tags: a list of `name:value`, a bare `name` for `name:name`, or a mapping of names to values.",
        json_schema_extra={"type": ["array", "object"], "items": {}, "x-type": "list or mapping"},
    )

    @field_validator("tags", mode="before")
    @classmethod
    def _as_pairs(cls, given: Any) -> list[str]:
        entries = given if isinstance(given, list) else [given]
        pairs = [pair for entry in entries for pair in _pairs(entry)]
        return [f"{name}:{value}" for name, value in pairs]


def run(vcon_uuid: str, link_name: str, opts: Options) -> str:
    """Add each tag that is not there yet."""
    with vcons.edit(vcon_uuid) as vcon:
        for tag in opts.tags:
            name, _, value = tag.partition(":")
            vcon.add_tag(name, value)
    return vcon_uuid


def _pairs(entry: Any) -> list[tuple[str, str]]:
    if isinstance(entry, dict):
        pairs = [(_text(name), _text(value)) for name, value in entry.items()]
    else:
        name, colon, value = _text(entry).partition(":")
        pairs = [(name, value if colon else name)]
    for name, _ in pairs:
        if not name or ":" in name:
            raise ValueError(f"{name!r} is no name of a tag: write `name:value`, the name without a colon")
    return pairs


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"{value!r} is no tag: write `name:value`, or `name: value` in a mapping")
