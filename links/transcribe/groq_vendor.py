"""Whisper at Groq."""

import os
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from conserver import media, usage

from .service import ServiceOptions, Transcript, ask, multipart, text_of

VENDOR = "groq_whisper"
TIME = "conserver.link.groq_whisper.transcription_time"
FAILURES = "conserver.link.groq_whisper.transcription_failures"


class GroqOptions(ServiceOptions):
    """The key, and which model."""

    API_KEY: SecretStr = Field(
        default_factory=lambda: SecretStr(os.environ.get("GROQ_API_KEY", "").strip()),
        description="The key at Groq; by default the environment's `GROQ_API_KEY`.",
    )
    base_url: str = Field(default="https://api.groq.com/openai/v1", description="The service.")
    model: str = Field(default="whisper-large-v3-turbo", description="Name of the model.")
    language: str | None = Field(default=None, description="What is spoken, as `en`; unset leaves it to the model.")
    response_format: Literal["json", "verbose_json"] = Field(
        default="verbose_json", description="`verbose_json` has segments with times."
    )
    minimum_duration: float = Field(default=30.0, ge=0, description="Seconds; what is known to be shorter is left out.")
    content_type: str | None = Field(
        default=None, alias="Content-Type", description="Of no effect: the dialog says what its audio is."
    )

    @field_validator("API_KEY", mode="before")
    @classmethod
    def _without_line_breaks(cls, value: Any) -> Any:
        return usage.plain_key(value)

    @model_validator(mode="after")
    def _has_a_key(self) -> "GroqOptions":
        if not self.API_KEY.get_secret_value():
            raise ValueError("no key: give API_KEY, or GROQ_API_KEY in the environment")
        return self


def transcribe(dialog: dict[str, Any], opts: GroqOptions, *, vcon_uuid: str, link_name: str) -> list[Transcript]:
    """Return the transcript of a dialog."""
    url = f"{opts.base_url.rstrip('/')}/audio/transcriptions"
    fields = {"model": opts.model, "response_format": opts.response_format}
    if opts.language:
        fields["language"] = opts.language
    with media.audio(dialog, limits=opts.limits()) as audio:
        content_type, form = multipart(fields, audio.file, audio.filename, audio.mediatype)
        headers = {"Authorization": f"Bearer {opts.API_KEY.get_secret_value()}", "Content-Type": content_type}
        answer = ask(opts, url, headers, form)
        seconds = answer.get("duration", audio.duration)
    text_of(answer, url)
    usage.report_units(
        opts,
        model=opts.model,
        unit_type="seconds",
        input_units=seconds if isinstance(seconds, int | float) else 0,
        output_units=0,
        vcon_uuid=vcon_uuid,
        sub_type="GROQ_TRANSCRIBE",
    )
    return [Transcript(answer)]
