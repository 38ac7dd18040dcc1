"""OpenAI's transcriptions, and those of Azure, LiteLLM and whatever is compatible; long audio goes in pieces."""

from typing import Any, Literal

from pydantic import Field

from conserver import media, models, usage

from .chunks import Cutting, Piece, pieces
from .service import AudioOptions, Transcript, ask, multipart, text_of

VENDOR = "openai"
TIME = "conserver.link.openai.transcription_time"
FAILURES = "conserver.link.openai.transcription_failures"


class OpenaiOptions(models.ModelOptions, AudioOptions):
    """Which service, which model, and how long audio is cut."""

    model: str = Field(default="gpt-4o-transcribe", description="Name of the model, as the service knows it.")
    temperature: float | None = Field(default=None, description="Sent when it is set.")
    language: str | None = Field(default=None, description="What is spoken, as `en`; unset leaves it to the model.")
    response_format: Literal["json", "verbose_json"] = Field(
        default="json", description="`verbose_json` has segments with times; not every model knows it."
    )
    minimum_duration: float = Field(default=3.0, ge=0, description="Seconds; what is known to be shorter is left out.")
    max_chunk_duration: float = Field(default=480.0, ge=1, description="Seconds; what is longer is sent in pieces.")
    use_silence_chunking: bool = Field(default=True, description="Cut in the middle of a silence where one is near.")
    silence_thresh: float = Field(default=-40.0, lt=0, description="What counts as silence, in dBFS.")
    silence_len: float = Field(default=2000.0, gt=0, description="How long a silence must be, in milliseconds.")


def transcribe(dialog: dict[str, Any], opts: OpenaiOptions, *, vcon_uuid: str, link_name: str) -> list[Transcript]:
    """Return the transcript of a dialog, of all its pieces together."""
    cutting = Cutting(
        longest_secs=opts.max_chunk_duration,
        at_silences=opts.use_silence_chunking,
        noise_dbfs=opts.silence_thresh,
        silence_secs=opts.silence_len / 1000,
    )
    with media.audio(dialog, limits=opts.limits()) as audio:
        answers = [_transcribe(piece, opts, vcon_uuid) for piece in pieces(audio, cutting)]
    return [Transcript(answers[0] if len(answers) == 1 else joined(answers))]


def joined(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the answers to the pieces as one."""
    body: dict[str, Any] = {"text": " ".join(text for answer in answers if (text := answer["text"].strip()))}
    used = [answer["usage"] for answer in answers if isinstance(answer.get("usage"), dict)]
    if used:
        body["usage"] = _sum(used)
    return {**body, "chunked_transcription": {"total_chunks": len(answers), "chunk_results": answers}}


def _sum(usages: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in usages for name in one):
        values = [one[name] for one in usages if one.get(name) is not None]
        if values and all(isinstance(value, dict) for value in values):
            total[name] = _sum(values)
        elif values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            total[name] = sum(values)
        else:
            total[name] = values[0] if values else None
    return total


def _transcribe(piece: Piece, opts: OpenaiOptions, vcon_uuid: str) -> dict[str, Any]:
    url, headers = models.endpoint(opts, "audio/transcriptions")
    fields = {"model": opts.model, "response_format": opts.response_format}
    if opts.language:
        fields["language"] = opts.language
    if opts.temperature is not None:
        fields["temperature"] = f"{opts.temperature:g}"
    content_type, form = multipart(fields, piece.file, piece.filename, piece.mediatype)
    answer = ask(opts, url, {**headers, "Content-Type": content_type}, form)
    text_of(answer, url)
    _account(answer.get("usage"), opts, vcon_uuid)
    return answer


def _account(used: Any, opts: OpenaiOptions, vcon_uuid: str) -> None:
    """Count and report what one call cost; models are paid by tokens or by seconds."""
    used = used if isinstance(used, dict) else {}
    if used.get("type") == "duration":
        unit, spent, made = "seconds", used.get("seconds"), 0
    else:
        unit, spent, made = "tokens", used.get("input_tokens"), used.get("output_tokens")
    given, got = (value if isinstance(value, int | float) and value > 0 else 0 for value in (spent, made))
    if unit == "tokens":
        models.count_tokens(opts, models.ChatResult("", int(given), int(got)))
    usage.report_units(
        opts,
        model=opts.model,
        unit_type=unit,
        input_units=given,
        output_units=got,
        vcon_uuid=vcon_uuid,
        sub_type="OPENAI_TRANSCRIBE",
    )
