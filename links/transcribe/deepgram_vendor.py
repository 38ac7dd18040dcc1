"""Deepgram, asked directly or by a LiteLLM proxy."""

import json
import logging
from typing import Any
from urllib.parse import urlencode

from pydantic import Field, SecretStr, field_validator, model_validator

from conserver import media, outbound, telemetry, usage
from conserver.errors import OutboundError

from .service import ServiceOptions, Transcript, ask, multipart, text_of

log = logging.getLogger(__name__)

VENDOR = "deepgram"
TIME = "conserver.link.deepgram.transcription_time"
FAILURES = "conserver.link.deepgram.transcription_failures"


class DeepgramOptions(ServiceOptions):
    """The key, what to ask for, and how sure the answer must be."""

    DEEPGRAM_KEY: SecretStr = Field(default=SecretStr(""), description="The key at Deepgram.")
    base_url: str = Field(default="https://api.deepgram.com", description="The service, or one of your own.")
    api: dict[str, Any] = Field(
        default_factory=dict,
        description="Parameters of Deepgram's `/v1/listen`; unset: `model`, `smart_format` and `detect_language`.",
    )
    minimum_confidence: float = Field(default=0.5, ge=0, le=1, description="What is less sure is not kept.")
    by_url: bool = Field(
        default=True,
        description="Let Deepgram fetch the audio of a dialog that has a `url` and no `content_hash`; false sends it.",
    )
    LITELLM_PROXY_URL: str = Field(default="", description="A LiteLLM proxy, which is then asked instead.")
    LITELLM_MASTER_KEY: SecretStr = Field(default=SecretStr(""), description="The key of that proxy.")
    model: str = Field(default="nova-3", description="The model at the proxy, or at Deepgram where `api` is empty.")
    minimum_duration: float = Field(default=60.0, ge=0, description="Seconds; what is known to be shorter is left out.")

    @field_validator("DEEPGRAM_KEY", "LITELLM_MASTER_KEY", mode="before")
    @classmethod
    def _without_line_breaks(cls, value: Any) -> Any:
        return usage.plain_key(value)

    @field_validator("LITELLM_PROXY_URL", "api", mode="before")
    @classmethod
    def _null_is_unset(cls, value: Any, info: Any) -> Any:
        return value if value is not None else {} if info.field_name == "api" else ""

    @model_validator(mode="after")
    def _has_a_key(self) -> "DeepgramOptions":
        if not self.DEEPGRAM_KEY.get_secret_value() and not self.proxied:
            raise ValueError("no key: give DEEPGRAM_KEY, or LITELLM_PROXY_URL and LITELLM_MASTER_KEY")
        return self

    @property
    def proxied(self) -> bool:
        """Whether both options of the proxy are given."""
        return bool(self.LITELLM_PROXY_URL and self.LITELLM_MASTER_KEY.get_secret_value())


def transcribe(dialog: dict[str, Any], opts: DeepgramOptions, *, vcon_uuid: str, link_name: str) -> list[Transcript]:
    """Return the transcript of a dialog, or nothing when Deepgram is not sure enough of it."""
    body, model, seconds = _by_proxy(dialog, opts) if opts.proxied else _directly(dialog, opts)
    usage.report_units(
        opts,
        model=model,
        unit_type="seconds",
        input_units=seconds or 0,
        output_units=0,
        vcon_uuid=vcon_uuid,
        sub_type="DEEPGRAM_TRANSCRIBE",
    )
    confidence = body.get("confidence")
    if isinstance(confidence, int | float):
        telemetry.observe("conserver.link.deepgram.confidence", confidence, link=link_name)
        if confidence < opts.minimum_confidence:
            log.warning("a transcript is dropped: its confidence of %.2f is too low", confidence)
            return []
    return [Transcript(body)]


def _directly(dialog: dict[str, Any], opts: DeepgramOptions) -> tuple[dict[str, Any], str, float | None]:
    wanted = opts.api or {"model": opts.model, "smart_format": True, "detect_language": True}
    pairs = [
        (name, _plain(one)) for name, value in wanted.items() for one in (value if isinstance(value, list) else [value])
    ]
    query = urlencode([(name, value) for name, value in pairs if value is not None])
    url = f"{opts.base_url.rstrip('/')}/v1/listen?{query}"
    headers = {"Authorization": f"Token {opts.DEEPGRAM_KEY.get_secret_value()}", "Accept": "application/json"}
    if opts.by_url and _may_be_fetched_there(dialog):
        sent = json.dumps({"url": dialog["url"]}).encode()
        # Not quoted: it may repeat the query of the dialog's URL.
        answer = ask(opts, url, {**headers, "Content-Type": "application/json"}, sent, quote_answer=False)
        seconds = media.said_seconds(dialog)
    else:
        with media.audio(dialog, limits=opts.limits()) as audio:
            answer = ask(opts, url, {**headers, "Content-Type": audio.mediatype}, outbound.Upload(audio.file))
            seconds = audio.duration
    about = answer.get("metadata")
    about = about if isinstance(about, dict) else {}
    billed = about.get("duration")
    return _first(answer), _model(wanted, about), billed if isinstance(billed, int | float) else seconds


def _by_proxy(dialog: dict[str, Any], opts: DeepgramOptions) -> tuple[dict[str, Any], str, float | None]:
    url = f"{opts.LITELLM_PROXY_URL.rstrip('/')}/audio/transcriptions"
    with media.audio(dialog, limits=opts.limits()) as audio:
        content_type, form = multipart({"model": opts.model}, audio.file, audio.filename, audio.mediatype)
        headers = {
            "Authorization": f"Bearer {opts.LITELLM_MASTER_KEY.get_secret_value()}",
            "Content-Type": content_type,
        }
        answer = ask(opts, url, headers, form)
        seconds = audio.duration
    return {"transcript": text_of(answer, url)}, opts.model, seconds


def _may_be_fetched_there(dialog: dict[str, Any]) -> bool:
    """True if Deepgram may fetch it: a web address, without a hash that it would not check."""
    url = dialog.get("url")
    hashed = dialog.get("content_hash") or dialog.get("signature")
    return (
        not dialog.get("body")
        and not hashed
        and isinstance(url, str)
        and url.lower().startswith(("http://", "https://"))
    )


def _plain(value: Any) -> str | None:
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _first(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the best transcript of the first channel, with the language that was heard."""
    try:
        channel = answer["results"]["channels"][0]
        best = channel["alternatives"][0]
        said = best["transcript"]
    except (LookupError, TypeError):
        said = None
    if not isinstance(said, str):
        raise OutboundError("Deepgram: the answer is no transcript: it has no channel with an alternative")
    language = channel.get("detected_language")
    return {**best, "detected_language": language} if language is not None else dict(best)


def _model(wanted: dict[str, Any], about: dict[str, Any]) -> str:
    """Return the model that was really used: as asked for, or else as Deepgram says."""
    if wanted.get("model"):
        return str(wanted["model"])
    infos = about.get("model_info")
    first = next(iter(infos.values()), None) if isinstance(infos, dict) else None
    return str(first.get("arch") or first.get("name")) if isinstance(first, dict) else "unknown"
