"""A Whisper model that runs in the worker itself, by the package faster-whisper.

`load` makes the recogniser, once a process and size; a test puts its own in its place.
"""

import importlib
import importlib.util
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, Literal, Protocol

from pydantic import Field, model_validator

from conserver import LinkError, media

from .service import AudioOptions, Transcript

VENDOR = "whisper_builtin"
TIME = "conserver.link.whisper_builtin.transcription_time"
FAILURES = "conserver.link.whisper_builtin.transcription_failures"

_INSTALL = "whisper_builtin needs the package faster-whisper (pip install 'conserver[whisper]')"


class Recogniser(Protocol):
    """What faster-whisper's WhisperModel is to us."""

    def transcribe(self, audio: BinaryIO, *, language: str | None, word_timestamps: bool) -> tuple[Any, Any]:
        """Return the segments (id, start, end, text, words), as they come, and what is known of them all."""


def _faster_whisper(model_size: str) -> Recogniser:
    try:
        package = importlib.import_module("faster_whisper")
    except ImportError as error:
        raise LinkError(f"{_INSTALL}: {error}") from error
    recogniser: Recogniser = package.WhisperModel(model_size)
    return recogniser


load: Callable[[str], Recogniser] = _faster_whisper


class WhisperOptions(AudioOptions):
    """Which model, and what is kept of what it hears."""

    model_size: str = Field(default="base", description="A size of Whisper (`tiny` to `large-v3`), or a folder.")
    output_options: list[Literal["vendor", "word_srt", "word_ass"]] = Field(
        default=["vendor"],
        min_length=1,
        description="`vendor`: text, segments and words as JSON; `word_srt`, `word_ass`: subtitles word by word.",
    )
    language: str | None = Field(default=None, description="What is spoken, as `en`; unset leaves it to the model.")

    @model_validator(mode="after")
    def _is_installed(self) -> "WhisperOptions":
        if load is _faster_whisper and importlib.util.find_spec("faster_whisper") is None:
            raise ValueError(_INSTALL)
        return self


def transcribe(dialog: dict[str, Any], opts: WhisperOptions, *, vcon_uuid: str, link_name: str) -> list[Transcript]:
    """Return one transcript for each of `output_options`."""
    with media.audio(dialog, limits=opts.limits()) as audio:
        try:
            heard = _hear(audio.file, opts)
        except LinkError:
            raise
        except Exception as error:
            raise LinkError(f"whisper cannot transcribe the dialog: {type(error).__name__}: {error}") from error
    words = [word for segment in heard["segments"] for word in segment["words"]]
    outputs = {
        "vendor": lambda: Transcript(heard),
        "word_srt": lambda: Transcript(srt(words), {"mediatype": "application/x-subrip", "schema": "whisper_word_srt"}),
        "word_ass": lambda: Transcript(ass(words), {"mediatype": "text/x-ass", "schema": "whisper_word_ass"}),
    }
    return [outputs[name]() for name in dict.fromkeys(opts.output_options)]


_recognisers: dict[str, Recogniser] = {}
# A model takes all cores that it gets: two at once would only hold each other up.
_one_at_a_time = threading.Lock()


def _hear(file: BinaryIO, opts: WhisperOptions) -> dict[str, Any]:
    with _one_at_a_time:
        if opts.model_size not in _recognisers:
            _recognisers[opts.model_size] = load(opts.model_size)
        found, info = _recognisers[opts.model_size].transcribe(file, language=opts.language, word_timestamps=True)
        segments = [
            {
                "id": segment.id,
                "start": float(segment.start),
                "end": float(segment.end),
                "text": segment.text,
                "words": [
                    {"word": w.word, "start": float(w.start), "end": float(w.end), "probability": float(w.probability)}
                    for w in segment.words or []
                ],
            }
            for segment in found
        ]
    text = " ".join(said for segment in segments if (said := segment["text"].strip()))
    return {"text": text, "language": info.language, "duration": float(info.duration), "segments": segments}


def srt(words: list[dict[str, Any]]) -> str:
    """Return the words as SubRip subtitles."""
    return "\n".join(
        f"{number}\n{_time(word['start'], ',', 3)} --> {_time(word['end'], ',', 3)}\n{word['word'].strip()}\n"
        for number, word in enumerate(words, 1)
    )


def ass(words: list[dict[str, Any]]) -> str:
    """Return the words as subtitles of SubStation Alpha."""
    head = "[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
    return head + "".join(
        f"Dialogue: 0,{_time(word['start'], '.', 2)},{_time(word['end'], '.', 2)},Default,{word['word'].strip()}\n"
        for word in words
    )


def _time(secs: float, point: str, digits: int) -> str:
    whole, fraction = divmod(round(secs * 10**digits), 10**digits)
    hours = f"{whole // 3600:02d}" if digits == 3 else f"{whole // 3600}"
    return f"{hours}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{fraction:0{digits}d}"
