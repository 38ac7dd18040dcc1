"""Reads the JSON in what a language model has said."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Parsed(Generic[S]):
    """What an answer says."""

    value: S
    json: str
    """The same as the JSON that the model wrote, without what stood around it."""


def parsed(text: str, schema: type[S]) -> Parsed[S]:
    """Return the one JSON object in a text; words around it, or a code fence, do no harm.

    Raises ValueError when there is none, or more than one value, or one that is not what *schema* wants. The reason
    quotes nothing of the text: what a model says about a conversation is as private as the conversation.
    """
    found = _the_object(text)
    try:
        return Parsed(schema.model_validate(_loads(found)), found)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, one['loc'])) or 'the whole'}: {one['msg']}" for one in error.errors()[:3]]
        raise ValueError("; ".join(reasons)) from None  # pydantic's own text quotes the input


def _the_object(text: str) -> str:
    try:
        whole = _loads(text)
    except ValueError:
        return _only_object_within(text)
    if not isinstance(whole, dict):
        raise ValueError("it is JSON, but no object")
    return text.strip()


def _only_object_within(text: str) -> str:
    found: list[str] = []
    at = _next_bracket(text, 0)
    while at < len(text):
        try:
            _, end = _decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            # Whatever comes later may be a part of what broke off here.
            raise ValueError("it holds no JSON that can be read") from None
        found.append(text[at:end])
        at = _next_bracket(text, end)
    if not found:
        raise ValueError("it holds no JSON")
    if len(found) > 1 or not found[0].startswith("{"):
        raise ValueError("it holds more than one object of JSON, or a list")
    return found[0]


def _next_bracket(text: str, start: int) -> int:
    places = [place for bracket in "{[" if (place := text.find(bracket, start)) >= 0]
    return min(places, default=len(text))


def _loads(text: str) -> Any:
    try:
        return _decoder.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse)
