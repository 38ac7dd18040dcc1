"""Calls to language models of any service that speaks OpenAI's protocol, over the client of `outbound`.

A link inherits its options from ModelOptions and gets an answer with

    result = models.chat(opts, messages, vcon_uuid=vcon_uuid, sub_type="ANALYZE")

The `openai` package is imported with the first call: it takes most of a second, and most processes never need it.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from conserver import outbound, telemetry
from conserver.errors import ConfigError, OutboundError, OutboundStatus
from conserver.outbound import Backoff, Limits, Retryable

if TYPE_CHECKING:
    import openai
    from openai import OpenAI

log = logging.getLogger(__name__)

AZURE_API_VERSION = "2024-10-21"
OPENAI_URL = "https://api.openai.com/v1"
_NO_SECRET = SecretStr("")

# Providers by the prefix of a model name at a gateway ("anthropic/claude-3"), by how model names begin, and by host.
_PROVIDERS = {
    **{
        name: name
        for name in ("openai", "azure", "anthropic", "google", "mistral", "meta", "cohere", "groq", "bedrock")
    },
    "vertex_ai": "google",
}
_MODEL_NAMES = {
    **dict.fromkeys(("gpt-", "o1", "o3", "chatgpt"), "openai"),
    **{"claude": "anthropic", "gemini": "google", "mistral": "mistral", "mixtral": "mistral"},
    **{"llama": "meta", "command": "cohere"},
}
_HOSTS = {
    **{"openai.com": "openai", "openai.azure.com": "azure", "anthropic.com": "anthropic"},
    **{"googleapis.com": "google", "mistral.ai": "mistral", "cohere.com": "cohere", "groq.com": "groq"},
}


class ModelOptions(BaseModel):
    """How to reach a model service, and where to report what it cost.

    Credentials come from these options alone, never from the environment. The first complete group is used: LiteLLM,
    Azure, then `base_url` and `OPENAI_API_KEY`, of which one suffices.
    """

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    model: str = Field(default="gpt-3.5-turbo-16k", description="Name of the model, as the service knows it.")
    temperature: float | None = Field(default=0.0, description="null leaves it to the model; some accept nothing else.")
    LITELLM_PROXY_URL: str = Field(default="", description="A LiteLLM proxy.")
    LITELLM_MASTER_KEY: SecretStr = Field(default=_NO_SECRET, description="The key of that proxy.")
    AZURE_OPENAI_ENDPOINT: str = Field(default="", description="An Azure OpenAI resource.")
    AZURE_OPENAI_API_KEY: SecretStr = Field(default=_NO_SECRET, description="The key of that resource.")
    AZURE_OPENAI_API_VERSION: str = Field(default=AZURE_API_VERSION, description="The version of Azure's API.")
    base_url: str = Field(default="", description="Any compatible service, such as http://localhost:11434/v1.")
    api_key: SecretStr = Field(
        default=_NO_SECRET,
        validation_alias=AliasChoices("OPENAI_API_KEY", "openai_api_key", "api_key"),
        description="The key for `base_url`, or for OpenAI when that is unset.",
    )
    organization: str | None = Field(
        default=None,
        validation_alias=AliasChoices("organization", "organization_key"),
        description="The organization at OpenAI that pays.",
    )
    project: str | None = Field(
        default=None,
        validation_alias=AliasChoices("project", "project_key"),
        description="The project at OpenAI that the call belongs to.",
    )
    timeout: float = Field(default=120.0, gt=0, description="Seconds for one call, up to the last byte.")
    retry_secs: float = Field(
        default=120.0,
        ge=0,
        description="Seconds in which a failed call is repeated, up to 6 calls; 0 leaves it to the chain's `retry`.",
    )
    send_ai_usage_data_to_url: str = Field(default="", description="Where to POST the number of tokens of each call.")
    ai_usage_api_token: SecretStr = Field(default=_NO_SECRET, description="Bearer token for that.")

    @field_validator(
        "LITELLM_PROXY_URL", "AZURE_OPENAI_ENDPOINT", "base_url", "send_ai_usage_data_to_url", mode="before"
    )
    @classmethod
    def _null_is_unset(cls, value: Any) -> Any:
        return "" if value is None else value

    @field_validator("LITELLM_MASTER_KEY", "AZURE_OPENAI_API_KEY", "api_key", "ai_usage_api_token", mode="before")
    @classmethod
    def _null_is_no_key(cls, value: Any) -> Any:
        # A line break at the end is what keys get on their way through files and environment variables.
        return value.strip() if isinstance(value, str) else _NO_SECRET if value is None else value

    @model_validator(mode="after")
    def _names_a_service(self) -> ModelOptions:
        if service_of(self) is None:
            raise ValueError(
                "no model service: give OPENAI_API_KEY, or base_url, or LITELLM_PROXY_URL and LITELLM_MASTER_KEY, "
                "or AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_API_KEY"
            )
        return self


@dataclass(frozen=True)
class Service:
    """One model service with its credentials; what a client is made for."""

    kind: str
    url: str
    api_key: str
    api_version: str
    organization: str | None
    project: str | None
    timeout: float


@dataclass(frozen=True)
class ChatResult:
    """The answer of a model, with what it cost in tokens (0 when the service does not say)."""

    text: str
    input_tokens: int
    output_tokens: int


def service_of(options: ModelOptions) -> Service | None:
    """Return the service of the first complete group of options, or None if there is none."""
    more = (options.organization or None, options.project or None, options.timeout)
    if options.LITELLM_PROXY_URL and (key := options.LITELLM_MASTER_KEY.get_secret_value()):
        return Service("litellm", options.LITELLM_PROXY_URL, key, "", *more)
    if options.AZURE_OPENAI_ENDPOINT and (key := options.AZURE_OPENAI_API_KEY.get_secret_value()):
        return Service("azure", options.AZURE_OPENAI_ENDPOINT, key, options.AZURE_OPENAI_API_VERSION, *more)
    key = options.api_key.get_secret_value()
    if options.base_url or key:
        # A service without keys still gets one: the SDK does not start without.
        return Service("openai", options.base_url or OPENAI_URL, key or "none", "", *more)
    return None


def vendor_of(options: ModelOptions) -> str:
    """Return the name of the provider that really answers, as `vendor` of an analysis.

    The host says it for services of their own; behind a gateway it is the model's name, by prefix or beginning.
    """
    service = service_of(options)
    if service is None or service.kind == "azure":
        return "azure"
    host = urlsplit(service.url).hostname or ""
    by_host = [vendor for domain, vendor in _HOSTS.items() if host == domain or host.endswith("." + domain)]
    prefix, _, name = options.model.lower().rpartition("/")
    by_name = [vendor for beginning, vendor in _MODEL_NAMES.items() if name.startswith(beginning)]
    by_prefix = [_PROVIDERS[part] for part in prefix.split("/") if part in _PROVIDERS]
    fallback = "litellm" if service.kind == "litellm" else "openai-compatible"
    return [*by_host, *by_prefix, *by_name, fallback][0]


def chat(
    options: ModelOptions,
    messages: Sequence[Mapping[str, str]],
    *,
    vcon_uuid: str,
    sub_type: str,
    response_format: Mapping[str, Any] | None = None,
) -> ChatResult:
    """Ask the model, count the tokens, and report the usage if the options say where to.

    Repeats what may go better the next time (no answer, 408, 409, 429, 5xx, an answer that is cut or has no choice),
    within `retry_secs`. Raises OutboundError when that is used up or repeating cannot help, as with a wrong key.
    """
    service = service_of(options)
    if service is None:
        raise ConfigError("no model service in the options of the link")
    client = _client(service)
    asked: dict[str, Any] = {"model": options.model, "messages": list(messages)}
    if options.temperature is not None:
        asked["temperature"] = options.temperature
    if response_format is not None:
        asked["response_format"] = dict(response_format)
    backoff = Backoff(attempts=6, wait_secs=2.0, max_wait_secs=65.0, total_secs=options.retry_secs)
    where = f"model {options.model!r} at {_host(service.url)}"
    result = outbound.retrying(
        _host(service.url), functools.partial(_ask, client, asked, where=where, secret=service.api_key), backoff
    )
    labels = {"model": options.model, "vendor": vendor_of(options)}
    telemetry.count("conserver.model.input_tokens", result.input_tokens, **labels)
    telemetry.count("conserver.model.output_tokens", result.output_tokens, **labels)
    report_usage(options, result, vcon_uuid=vcon_uuid, sub_type=sub_type)
    return result


def report_usage(options: ModelOptions, result: ChatResult, *, vcon_uuid: str, sub_type: str) -> None:
    """POST what a call cost. A report that fails is logged and forgotten: the answer is paid for, and is kept."""
    if not options.send_ai_usage_data_to_url:
        return
    report = {
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "record_id": vcon_uuid,
        "type": "VCON_PROCESSING",
        "sub_type": sub_type,
        "unit_type": "tokens",
        "input_units": result.input_tokens,
        "output_units": result.output_tokens,
        "ai_model": options.model,
    }
    try:
        outbound.request(
            "POST",
            options.send_ai_usage_data_to_url,
            trusted=True,
            headers={
                "Content-Type": "application/json",
                "Authorization": f"Bearer {options.ai_usage_api_token.get_secret_value()}",
            },
            body=json.dumps(report).encode(),
            limits=Limits(total_secs=30.0),
        )
    except OutboundError as error:
        log.warning("the usage of a model call is not reported: %s", error)


def safe_options(options: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that may be logged or stored in a vCon: all but those that may be secret, by name."""
    values = options.model_dump(mode="json") if isinstance(options, BaseModel) else options
    return {
        name: safe_options(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if not outbound.is_sensitive(name) and name != "send_ai_usage_data_to_url"
    }


def _ask(client: OpenAI, asked: dict[str, Any], *, where: str, secret: str) -> ChatResult:
    """Make one call; raise Retryable when another one may go better."""
    import openai

    try:
        # The raw answer, since the SDK takes anything that is JSON for a completion.
        answer = client.chat.completions.with_raw_response.create(**asked).http_response
    except openai.APIStatusError as error:
        raise _refusal(error, where, secret) from None
    except openai.APIConnectionError as error:
        reason = outbound.describe(error.__cause__ or error)
        raise Retryable(f"{where}: {reason}") from error
    try:
        body = json.loads(answer.content)
        choice = body["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise Retryable(f"{where}: the answer is not a chat completion ({type(error).__name__})") from error
    if not isinstance(text, str) or not text.strip():
        raise OutboundError(f"{where}: answered without a text (finish_reason {choice.get('finish_reason')!r})")
    usage = body.get("usage") or {}
    return ChatResult(text, _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens"))


def _refusal(error: openai.APIStatusError, where: str, secret: str) -> Exception:
    status = error.status_code
    response: Any = error.response  # the SDK types it as httpx2's, and returns what its http_client returned
    if status in (401, 403):
        # Not quoted: services like to repeat the beginning and the end of the key.
        return OutboundStatus(f"{where}: answered {status}; check the key in the options", status)
    message = f"{where}: answered {status}{outbound.extract(response, [secret])}"
    if status in (408, 409, 429) or status >= 500:
        return Retryable(message, status=status, retry_after_secs=outbound.retry_after(response.headers))
    return OutboundStatus(message, status)


def _tokens(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value > 0 else 0


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


_clients: dict[Service, OpenAI] = {}
_clients_lock = threading.Lock()


def _client(service: Service) -> OpenAI:
    """Return the client of a service: one a process, however many threads ask at once."""
    with _clients_lock:
        if service not in _clients:
            _clients[service] = _new_client(service)
        return _clients[service]


def _new_client(service: Service) -> OpenAI:
    try:
        import openai
    except ImportError as error:
        raise ConfigError(f"models need a package: {error} (pip install 'conserver[openai]')") from error
    limits = Limits(read_secs=service.timeout, total_secs=service.timeout)
    # Repeating is left to outbound.retrying, which knows how long it may take.
    shared: dict[str, Any] = {"api_key": service.api_key, "max_retries": 0, "timeout": service.timeout}
    shared |= {"http_client": outbound.http_client(limits)}
    client: OpenAI
    if service.kind == "azure":
        client = openai.AzureOpenAI(azure_endpoint=service.url, api_version=service.api_version, **shared)
    else:
        client = openai.OpenAI(base_url=service.url, **shared)
    # Set afterwards: None as an argument means "look in the environment".
    client.organization = service.organization
    client.project = service.project
    return client
