"""Calls to language models of any service that speaks OpenAI's protocol, over the client of `outbound`.

A link inherits its options from ModelOptions and gets an answer with

    result = models.chat(opts, messages, vcon_uuid=vcon_uuid, sub_type="ANALYZE")
    parsed = models.chat_json(opts, messages, Labels, vcon_uuid=vcon_uuid, sub_type="LABEL")

The `openai` package is imported with the first call: it takes most of a second, and most processes never need it.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import AliasChoices, BaseModel, Field, SecretStr, field_validator, model_validator

from conserver import outbound, telemetry
from conserver.answers import Parsed as Parsed  # for links, which import `models` alone
from conserver.answers import parsed as parsed
from conserver.errors import ConfigError, OutboundError, OutboundStatus
from conserver.outbound import Backoff, Limits, Retryable
from conserver.usage import UsageOptions, plain_key, report_units

if TYPE_CHECKING:
    import openai
    from openai import OpenAI

log = logging.getLogger(__name__)

T = TypeVar("T")
Asking = TypeVar("Asking", bound="ModelOptions")
S = TypeVar("S", bound=BaseModel)

AZURE_API_VERSION = "2024-10-21"
OPENAI_URL = "https://api.openai.com/v1"
_NO_SECRET = SecretStr("")
_JSON_OBJECT = {"type": "json_object"}

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


class ModelOptions(UsageOptions):
    """How to reach a model service, and where to report what it cost.

    Credentials come from these options alone, never from the environment. The first complete group is used: LiteLLM,
    Azure, then `base_url` and `OPENAI_API_KEY`, of which one suffices.
    """

    model: str = Field(default="gpt-3.5-turbo-16k", description="Name of the model, as the service knows it.")
    temperature: float | None = Field(default=0.0, description="null leaves it to the model; some accept nothing else.")
    LITELLM_PROXY_URL: str = Field(default="", description="A LiteLLM proxy.")
    LITELLM_MASTER_KEY: SecretStr = Field(default=_NO_SECRET, description="The key of that proxy.")
    AZURE_OPENAI_ENDPOINT: str = Field(default="", description="An Azure OpenAI resource; `model` is a deployment.")
    AZURE_OPENAI_API_KEY: SecretStr = Field(default=_NO_SECRET, description="The key of that resource.")
    AZURE_OPENAI_API_VERSION: str = Field(default=AZURE_API_VERSION, description="The version of Azure's API.")
    base_url: str = Field(
        default="", description="Any service that speaks OpenAI's protocol, as `http://localhost:11434/v1`."
    )
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
    price_per_million_input: float = Field(
        default=0.0, ge=0, description="What a million tokens of a question cost, in your currency, for the metrics."
    )
    price_per_million_output: float = Field(default=0.0, ge=0, description="The same for tokens of an answer.")

    @field_validator("LITELLM_PROXY_URL", "AZURE_OPENAI_ENDPOINT", "base_url", mode="before")
    @classmethod
    def _null_is_unset(cls, value: Any) -> Any:
        return "" if value is None else value

    @field_validator("LITELLM_MASTER_KEY", "AZURE_OPENAI_API_KEY", "api_key", mode="before")
    @classmethod
    def _null_is_no_key(cls, value: Any) -> Any:
        return plain_key(value)

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


class InvalidAnswer(OutboundError):
    """The model has answered, but not what it was asked for; `text` is what it said, and is paid for."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


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


def endpoint(options: ModelOptions, path: str) -> tuple[str, dict[str, str]]:
    """Return the URL of `path` (`embeddings`) at the service, and the headers that it wants, for plain HTTP.

    ConfigError if the options name no service.
    """
    service = service_of(options)
    if service is None:
        raise ConfigError("no model service in the options")
    base = service.url.rstrip("/")
    if service.kind == "azure":
        deployment = f"{base}/openai/deployments/{quote(options.model, safe='')}"
        return f"{deployment}/{path}?api-version={service.api_version}", {"api-key": service.api_key}
    headers = {"Authorization": f"Bearer {service.api_key}"}
    if service.organization:
        headers["OpenAI-Organization"] = service.organization
    if service.project:
        headers["OpenAI-Project"] = service.project
    return f"{base}/{path}", headers


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
    asked: dict[str, Any] = {"messages": [{part: _sendable(text) for part, text in one.items()} for one in messages]}
    if response_format is not None:
        asked["response_format"] = dict(response_format)
    return _call(options, _CHAT, asked, vcon_uuid=vcon_uuid, sub_type=sub_type)


def respond(options: ModelOptions, text: str, *, vcon_uuid: str, sub_type: str) -> ChatResult:
    """Ask by OpenAI's Responses API, which not every compatible service has; otherwise as `chat`."""
    return _call(options, _RESPONSES, {"input": _sendable(text)}, vcon_uuid=vcon_uuid, sub_type=sub_type)


def chat_json(
    options: ModelOptions,
    messages: Sequence[Mapping[str, str]],
    schema: type[S],
    *,
    vcon_uuid: str,
    sub_type: str,
    response_format: Mapping[str, Any] | None = _JSON_OBJECT,
    again: bool = True,
) -> Parsed[S]:
    """Ask for a JSON object and check it with *schema*; otherwise as `chat` and `valid`."""

    def ask(opts: ModelOptions) -> ChatResult:
        return chat(opts, messages, vcon_uuid=vcon_uuid, sub_type=sub_type, response_format=response_format)

    return valid(options, ask, lambda text: parsed(text, schema), again=again)


def valid(options: Asking, ask: Callable[[Asking], ChatResult], read: Callable[[str], T], *, again: bool = True) -> T:
    """Ask, and return what *read* makes of the answer.

    *read* raises ValueError for an answer that is not what was asked for. It is then asked once more if *again*, and
    if `retry_secs` are not over; after that InvalidAnswer is raised. The reason goes into logs, so it quotes nothing.
    """
    deadline = time.monotonic() + options.retry_secs
    while True:
        text = ask(options).text
        try:
            return read(text)
        except ValueError as error:
            left = deadline - time.monotonic()
            if not again or left <= 0:
                message = f"model {options.model!r}: the answer is not what was asked for: {error}"
                raise InvalidAnswer(message, text) from None
        options, again = options.model_copy(update={"retry_secs": left}), False


def report_usage(options: ModelOptions, result: ChatResult, *, vcon_uuid: str, sub_type: str) -> None:
    """POST the number of tokens that an answer cost; see `report_units`."""
    cost = {"input_units": result.input_tokens, "output_units": result.output_tokens}
    report_units(options, model=options.model, unit_type="tokens", **cost, vcon_uuid=vcon_uuid, sub_type=sub_type)


@dataclass(frozen=True)
class _Said:
    """An answer as the service gave it; `ending` is its word for why it ends there."""

    text: Any
    ending: Any
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class _Protocol:
    """One of the two ways to ask: what the SDK calls, and how its answer is read."""

    name: str
    create: Callable[[Any], Any]
    read: Callable[[Any], _Said]


def _completion(body: Any) -> _Said:
    choice, usage = body["choices"][0], body.get("usage")
    spent = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
    return _Said(choice["message"]["content"], choice.get("finish_reason"), *spent)


def _response(body: Any) -> _Said:
    parts = [part for item in body["output"] if item["type"] == "message" for part in item["content"]]
    text = "".join(part["text"] for part in parts if part["type"] == "output_text")
    status, usage = body.get("status"), body.get("usage")
    if not parts and status == "completed":
        raise LookupError("no message")
    return _Said(text, status, _tokens(usage, "input_tokens"), _tokens(usage, "output_tokens"))


_CHAT = _Protocol("chat completion", lambda client: client.chat.completions, _completion)
_RESPONSES = _Protocol("response", lambda client: client.responses, _response)

#: Models (by URL and name) that have refused a temperature, as some do that accept only their own.
_own_temperature: set[tuple[str, str]] = set()


def _call(
    options: ModelOptions, protocol: _Protocol, asked: dict[str, Any], *, vcon_uuid: str, sub_type: str
) -> ChatResult:
    """Ask within the budget, and account for the tokens before anything else is made of the answer."""
    service = service_of(options)
    if service is None:
        raise ConfigError("no model service in the options of the link")
    asked = {"model": options.model, **asked}
    if options.temperature is not None and (service.url, options.model) not in _own_temperature:
        asked["temperature"] = options.temperature
    backoff = Backoff(attempts=6, wait_secs=2.0, max_wait_secs=65.0, total_secs=options.retry_secs)
    where = f"model {options.model!r} at {_host(service.url)}"
    attempt = functools.partial(_ask, service, protocol, asked, where=where)
    said = outbound.retrying(_host(service.url), attempt, backoff)
    result = ChatResult(said.text if isinstance(said.text, str) else "", said.input_tokens, said.output_tokens)
    count_tokens(options, result)
    report_usage(options, result, vcon_uuid=vcon_uuid, sub_type=sub_type)
    if not result.text.strip():
        raise OutboundError(f"{where}: answered without a text (finish_reason {said.ending!r})")
    return result


def count_tokens(options: ModelOptions, result: ChatResult) -> None:
    """Count what an answer cost, for the metrics: tokens, and money where the options have prices."""
    labels = {"model": options.model, "vendor": vendor_of(options)}
    telemetry.count("conserver.model.input_tokens", result.input_tokens, **labels)
    telemetry.count("conserver.model.output_tokens", result.output_tokens, **labels)
    prices = options.price_per_million_input, options.price_per_million_output
    if any(prices):
        cost = (result.input_tokens * prices[0] + result.output_tokens * prices[1]) / 1_000_000
        telemetry.count("conserver.model.cost", cost, **labels)


def _ask(service: Service, protocol: _Protocol, asked: dict[str, Any], *, where: str) -> _Said:
    """Make one call; raise Retryable when another one may go better."""
    client = _client(service)
    import openai

    try:
        # The raw answer, since the SDK takes anything that is JSON for an answer.
        answer = protocol.create(client).with_raw_response.create(**asked).http_response
    except openai.APIStatusError as error:
        if _refuses_temperature(error, asked):
            _own_temperature.add((service.url, asked["model"]))
            del asked["temperature"]
            return _ask(service, protocol, asked, where=where)
        raise _refusal(error, where, service.api_key) from None
    except openai.APIConnectionError as error:
        reason = outbound.describe(error.__cause__ or error)
        raise Retryable(f"{where}: {reason}") from error
    try:
        return protocol.read(json.loads(answer.content))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Retryable(f"{where}: the answer is not a {protocol.name} ({type(error).__name__})") from error


def _sendable(text: str) -> str:
    # JSON may name half a pair of surrogates, and transcripts that were cut do; UTF-8 cannot.
    return text.encode("utf-8", "replace").decode()


def _refuses_temperature(error: openai.APIStatusError, asked: Mapping[str, Any]) -> bool:
    response: Any = error.response
    return error.status_code == 400 and "temperature" in asked and b"temperature" in response.content


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
