"""Ask a model of Hugging Face for summary, sentiment and key points of all transcripts together.

The texts at `body.transcript` of all transcripts are put together and follow a fixed prompt. What the model says is
kept as an analysis of the type `llm_analysis`, as JSON where it answers with an object of JSON, else as text. A vCon
that has such an analysis, or no transcript, is skipped. A signed or encrypted one shows none, so it passes unchanged.

The model runs at Hugging Face, or wherever `API_URL` points: a URL that ends with `/chat/completions` is asked for a
chat completion, any other for text generation. With `use_local_model` it runs in the worker itself, one vCon at a
time in each process; that needs `pip install 'conserver[transformers]'`, and memory for the model in each worker.

Reads: transcripts. Writes: an analysis of the type `llm_analysis`.
"""

import importlib.util
import json
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, RootModel, SecretStr, field_validator, model_validator

from conserver import LinkError, filters, media, models, outbound, telemetry, vcons
from conserver.errors import OutboundError

PROMPT = Path(__file__).with_name("prompt.md").read_text(encoding="utf-8").strip()
TYPE = "llm_analysis"
SOURCE = media.Source(text_location="body.transcript")
MISSING = "a local model needs the package transformers (pip install 'conserver[transformers]')"


class Options(filters.Filters):
    """Which model to ask, where, about which vCons."""

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    HUGGINGFACE_API_KEY: SecretStr = Field(default=SecretStr(""), description="A token of Hugging Face.")
    model: str = Field(default="meta-llama/Llama-2-70b-chat-hf", description="Name of the model at Hugging Face.")
    use_local_model: bool = Field(default=False, description="Run the model in the worker.")
    max_length: int = Field(default=1000, ge=1, description="Tokens that the answer may have.")
    temperature: float = Field(default=0.7, ge=0, description="How freely the model chooses its words; 0: not at all.")
    API_URL: str = Field(
        default="https://router.huggingface.co/v1/chat/completions",
        description="Where to ask; an endpoint of your own, say, which may need no key.",
    )
    timeout: float = Field(default=120.0, gt=0, description="Seconds for one call, up to the last byte.")
    retry_secs: float = Field(
        default=120.0,
        ge=0,
        description="Seconds in which a failed call is repeated, up to 6 calls; 0 leaves it to the chain's `retry`.",
    )

    @field_validator("HUGGINGFACE_API_KEY", mode="before")
    @classmethod
    def _null_is_no_key(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else "" if value is None else value

    @model_validator(mode="after")
    def _can_work(self) -> "Options":
        if self.use_local_model:
            if importlib.util.find_spec("transformers") is None:
                raise ValueError(MISSING)
        elif "API_URL" not in self.model_fields_set and not self.HUGGINGFACE_API_KEY.get_secret_value():
            raise ValueError(
                "give HUGGINGFACE_API_KEY, or API_URL of an endpoint of your own, or use_local_model: true"
            )
        return self


class Answer(RootModel[dict[str, Any]]):
    """What the model is asked for: any object will do."""


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Add the analysis; returns the UUID, raises OutboundError when the model gives no answer."""
    vcon = vcons.get(vcon_uuid)
    if not filters.selected(opts, vcon, link_name) or vcon.find_analysis_by_type(TYPE):
        return vcon_uuid
    found = media.texts(vcon, SOURCE)
    if not found:
        return vcon_uuid
    answer = _ask("\n".join(text for _, text in found), link_name, opts)
    parameters = {"max_length": opts.max_length, "temperature": opts.temperature}
    with vcons.edit(vcon_uuid) as current:
        if not current.find_analysis_by_type(TYPE):  # somebody may have, while we waited for the model
            current.add_analysis(
                type=TYPE,
                dialog=_dialogs([dialog for dialog, _ in found]),
                vendor="huggingface",
                body=json.dumps({"analysis": _as_json(answer), "model": opts.model, "parameters": parameters}),
                encoding="json",
                extra={"vendor_schema": {"opts": {"model": opts.model, **parameters}}},
            )
    return vcon_uuid


def _ask(text: str, link_name: str, opts: Options) -> str:
    prompt = f"{PROMPT}\n\n{text}"
    started = time.monotonic()
    try:
        answer = _generated_here(prompt, opts) if opts.use_local_model else _generated_there(prompt, opts)
    except Exception:  # whatever a local model raises
        telemetry.count("conserver.link.huggingface.llm_failures", link=link_name)
        raise
    telemetry.observe("conserver.link.huggingface.llm_time", time.monotonic() - started, link=link_name)
    return answer


def _generated_there(prompt: str, opts: Options) -> str:
    chat = opts.API_URL.rstrip("/").endswith("/chat/completions")
    headers = {"Content-Type": "application/json"}
    if key := opts.HUGGINGFACE_API_KEY.get_secret_value():
        headers["Authorization"] = f"Bearer {key}"
    answer = outbound.request(
        "POST",
        opts.API_URL,
        trusted=True,
        headers=headers,
        body=json.dumps(_asked(prompt, opts, chat=chat)).encode(),
        limits=outbound.Limits(read_secs=opts.timeout, total_secs=opts.timeout),
        backoff=outbound.Backoff(
            attempts=6,
            wait_secs=2.0,
            max_wait_secs=65.0,
            total_secs=opts.retry_secs,
            statuses=frozenset({408, 409, 429, 500, 502, 503, 504}),
        ),
        repeatable=True,
    )
    body = answer.json()
    try:
        text = body["choices"][0]["message"]["content"] if chat else _first(body)["generated_text"]
    except (LookupError, TypeError) as error:
        raise OutboundError(f"{answer.source}: the answer holds no text ({type(error).__name__})") from error
    if not isinstance(text, str) or not text.strip():
        raise OutboundError(f"{answer.source}: answered without a text")
    if chat:
        _count_tokens(body.get("usage"), opts)
    # Some endpoints give the prompt back in front, whatever they are asked for.
    return text.removeprefix(prompt).strip()


def _count_tokens(usage: Any, opts: Options) -> None:
    spent = usage if isinstance(usage, dict) else {}
    labels = {"model": opts.model, "vendor": "huggingface"}
    telemetry.count("conserver.model.input_tokens", spent.get("prompt_tokens") or 0, **labels)
    telemetry.count("conserver.model.output_tokens", spent.get("completion_tokens") or 0, **labels)


def _asked(prompt: str, opts: Options, *, chat: bool) -> dict[str, Any]:
    if chat:
        sampling = {"max_tokens": opts.max_length, "temperature": opts.temperature}
        return {"model": opts.model, "messages": [{"role": "user", "content": prompt}], **sampling}
    return {"inputs": prompt, "parameters": _generation(opts)}


def _generation(opts: Options) -> dict[str, Any]:
    # Generators refuse a temperature of 0: it means that nothing is drawn.
    drawn = {"do_sample": True, "temperature": opts.temperature} if opts.temperature else {"do_sample": False}
    return {"max_new_tokens": opts.max_length, "return_full_text": False, **drawn}


_one_at_a_time = threading.Lock()


def _generated_here(prompt: str, opts: Options) -> str:
    with _one_at_a_time:
        text = _first(_generator(opts.model)(prompt, **_generation(opts)))["generated_text"]
    if not text.strip():
        raise LinkError(f"the local model {opts.model!r} answered without a text")
    return str(text).strip()


@cache
def _generator(model: str) -> Any:
    try:
        import transformers  # type: ignore[import-not-found]
    except ImportError as error:
        raise LinkError(f"{MISSING}: {error}") from error
    return transformers.pipeline("text-generation", model=model)


def _first(answer: Any) -> Any:
    return answer[0] if isinstance(answer, list) else answer


def _as_json(answer: str) -> Any:
    try:
        return models.parsed(answer, Answer).value.root
    except ValueError:
        return answer


def _dialogs(dialogs: list[Any]) -> Any:
    flat = [index for dialog in dialogs for index in (dialog if isinstance(dialog, list) else [dialog])]
    once = list(dict.fromkeys(flat))
    return once[0] if len(once) == 1 else once
