"""Turn what is said in the recordings of a vCon into text, with the speech service of your choice.

Every dialog of type `recording` that has no `transcript` yet is given to the service that `vendor` names: `openai`
(OpenAI, Azure, a LiteLLM proxy or anything compatible), `groq`, `hugging_face`, `deepgram`, or `whisper_builtin`, a
Whisper model that runs in the worker itself. Its options stand under `vendor_options`. What it answers becomes an
analysis of type `transcript` for that dialog.

The audio is inline or behind a URL, and is checked against its `content_hash`. Each transcript is saved before the next
dialog is sent: when a later one fails, what was paid for is kept, and the next run goes on from there. A service that
fails fails the link; its error is never kept as a transcript. A signed or encrypted vCon shows no recordings, so it
passes through unchanged.

Reads: recordings. Writes: an analysis of type `transcript` for each.
"""

import time
from typing import Any, Literal, cast

from pydantic import AliasChoices, ConfigDict, Field, ValidationInfo, field_validator

from conserver import LinkError, Vcon, filters, media, telemetry, vcons
from conserver.errors import OutboundError

from . import deepgram_vendor, groq_vendor, hugging_face_vendor, openai_vendor, whisper_vendor
from .service import AudioOptions, shown

_VENDORS = {
    "whisper_builtin": whisper_vendor,
    "openai": openai_vendor,
    "groq": groq_vendor,
    "hugging_face": hugging_face_vendor,
    "deepgram": deepgram_vendor,
}
_OPTIONS: dict[str, type[AudioOptions]] = {
    "whisper_builtin": whisper_vendor.WhisperOptions,
    "openai": openai_vendor.OpenaiOptions,
    "groq": groq_vendor.GroqOptions,
    "hugging_face": hugging_face_vendor.HuggingFaceOptions,
    "deepgram": deepgram_vendor.DeepgramOptions,
}


class Options(filters.Filters):
    """Which service is to listen, and to which vCons."""

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    vendor: Literal["whisper_builtin", "openai", "groq", "hugging_face", "deepgram"] = Field(
        default="whisper_builtin", description="Who listens."
    )
    vendor_options: (
        whisper_vendor.WhisperOptions
        | openai_vendor.OpenaiOptions
        | groq_vendor.GroqOptions
        | hugging_face_vendor.HuggingFaceOptions
        | deepgram_vendor.DeepgramOptions
    ) = Field(
        default_factory=lambda: cast(Any, {}),
        validate_default=True,
        validation_alias=AliasChoices("vendor_options", "transcribe_options"),
        description="The options of that vendor.",
    )

    @field_validator("vendor_options", mode="before")
    @classmethod
    def _are_those_of_the_vendor(cls, given: Any, info: ValidationInfo) -> Any:
        """Choose the model by `vendor`, so that a mistake is told in its words alone."""
        vendor = info.data.get("vendor")
        if vendor is None:  # which has an error of its own, and one is enough
            return hugging_face_vendor.HuggingFaceOptions.model_construct()
        return _OPTIONS[vendor].model_validate({} if given is None else given)


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Add the missing transcripts; returns the UUID, raises OutboundError or LinkError when one cannot be made.

    Audio that is no good does not keep the other recordings back; a service that fails ends the run.
    """
    vcon = vcons.get(vcon_uuid)
    failures = []
    if not filters.selected(opts, vcon, link_name):
        return vcon_uuid
    for index, dialog in enumerate(vcon.dialog):
        if index in _transcribed(vcon) or not media.has_audio(dialog):
            continue
        try:
            transcripts = _listen(vcon_uuid, link_name, dialog, opts)
        except LinkError as error:
            failures.append(LinkError(f"dialog {index}: {error}"))
            continue
        if not transcripts:
            continue
        with vcons.edit(vcon_uuid) as current:
            if index in _transcribed(current):  # by somebody else, while we waited for the service
                continue
            for transcript in transcripts:
                current.add_analysis(
                    type="transcript",
                    dialog=index,
                    vendor=_VENDORS[opts.vendor].VENDOR,
                    body=transcript.body,
                    extra={"vendor_schema": {"opts": shown(opts.vendor_options)}, **transcript.extra},
                )
    if failures:
        raise LinkError("; ".join(map(str, failures)))
    return vcon_uuid


def _listen(vcon_uuid: str, link_name: str, dialog: dict[str, Any], opts: Options) -> list[Any]:
    vendor: Any = _VENDORS[opts.vendor]
    given = opts.vendor_options
    started = time.monotonic()
    try:
        if given.minimum_duration > 0:
            length = media.seconds(dialog, limits=given.limits())
            if length is not None and length < given.minimum_duration:
                return []
        transcripts: list[Any] = vendor.transcribe(dialog, given, vcon_uuid=vcon_uuid, link_name=link_name)
    except (OutboundError, LinkError):
        telemetry.count(vendor.FAILURES, link=link_name)
        raise
    telemetry.observe(vendor.TIME, time.monotonic() - started, link=link_name)
    return transcripts


def _transcribed(vcon: Vcon) -> set[Any]:
    """Return the indexes of the dialogs that have a transcript, alone or together with others."""
    about = [entry.get("dialog") for entry in vcon.analysis if entry.get("type") == "transcript"]
    return {index for one in about for index in (one if isinstance(one, list) else [one]) if isinstance(index, int)}
