"""The texts and the audio of a vCon's dialogs, for links that read them."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, Field

from conserver.recordings import LIMITS, Audio, audio, has_audio, said_seconds, seconds
from conserver.vcon import Vcon

__all__ = ["LIMITS", "Audio", "Source", "at", "audio", "has_audio", "said_seconds", "seconds", "texts"]


class Source(BaseModel):
    """Where the text of a dialog comes from."""

    analysis_type: str = Field(default="transcript", description="Type of the analyses to read.")
    text_location: str = Field(
        default="body.paragraphs.transcript",
        description="Dotted path to the text in such an analysis; lists by index (`body.segments.0.text`).",
    )


def texts(vcon: Vcon, source: Source, *, without: Collection[Any] = ()) -> list[tuple[Any, str]]:
    """Return (dialog, text) of each dialog that has a text, once; dialogs that are in *without* are left out.

    A dialog is what the analysis says: an index, or the list of those that one transcript covers.
    """
    done = list(without)
    found = []
    for entry in vcon.analysis:
        dialog = entry.get("dialog")
        if entry.get("type") != source.analysis_type or dialog is None or dialog in done:
            continue
        text = at(vcon.with_decoded_body(entry), source.text_location)
        if isinstance(text, str) and text.strip():
            found.append((dialog, text))
            done.append(dialog)
    return found


def at(value: Any, path: str) -> Any:
    """Return what stands at a dotted path, or None: `body.segments.0.text`, `body.segments[0].text`."""
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
        else:
            return None
    return value
