"""A speech model behind an inference endpoint of Hugging Face."""

from typing import Any

from pydantic import Field, SecretStr, field_validator

from conserver import media, outbound, usage

from .service import ServiceOptions, Transcript, ask, text_of

VENDOR = "hugging_face_whisper"
TIME = "conserver.link.hugging_face_whisper.transcription_time"
FAILURES = "conserver.link.hugging_face_whisper.transcription_failures"


class HuggingFaceOptions(ServiceOptions):
    """The endpoint and its key."""

    API_URL: str = Field(min_length=1, description="The endpoint.")
    API_KEY: SecretStr = Field(default=SecretStr(""), description="Its key, with or without `Bearer` before it.")
    content_type: str | None = Field(
        default=None,
        alias="Content-Type",
        description="What the endpoint is told that the audio is; unset is what the dialog says, or `audio/flac`.",
    )
    minimum_duration: float = Field(default=30.0, ge=0, description="Seconds; what is known to be shorter is left out.")

    @field_validator("API_KEY", mode="before")
    @classmethod
    def _without_the_scheme(cls, value: Any) -> Any:
        value = usage.plain_key(value)
        return value[7:].strip() if isinstance(value, str) and value.lower().startswith("bearer ") else value


def transcribe(dialog: dict[str, Any], opts: HuggingFaceOptions, *, vcon_uuid: str, link_name: str) -> list[Transcript]:
    """Return the transcript of a dialog."""
    key = opts.API_KEY.get_secret_value()
    with media.audio(dialog, limits=opts.limits()) as audio:
        known = audio.mediatype if audio.mediatype != "application/octet-stream" else "audio/flac"
        headers = {"Accept": "application/json", "Content-Type": opts.content_type or known}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        answer = ask(opts, opts.API_URL, headers, outbound.Upload(audio.file))
        seconds = audio.duration or 0
    text_of(answer, opts.API_URL)
    usage.report_units(
        opts,
        model="hugging_face_whisper",
        unit_type="seconds",
        input_units=seconds,
        output_units=0,
        vcon_uuid=vcon_uuid,
        sub_type="HUGGING_FACE_TRANSCRIBE",
    )
    return [Transcript(answer)]
