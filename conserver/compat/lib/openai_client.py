"""`lib.openai_client`: clients of the package `openai`, by the options of a link."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from conserver import models

DEFAULT_AZURE_OPENAI_API_VERSION = models.AZURE_API_VERSION


def get_openai_client(opts: Mapping[str, Any] | None = None, max_retries: int = 0) -> Any:
    """Return a client for the first complete group of options: LiteLLM, Azure, OpenAI. ValueError if there is none.

    It is shared by all threads, and goes through the same HTTP client as those of the library.
    """
    client = models._client(_service(opts))
    return client.with_options(max_retries=max_retries) if max_retries else client


def get_async_openai_client(opts: Mapping[str, Any] | None = None) -> Any:
    """Return a new client for links that await; see `get_openai_client`. ConfigError without the package."""
    service = _service(opts)
    # Imports the package, or says how to get it.
    models._client(service)
    import openai

    shared: dict[str, Any] = {"api_key": service.api_key, "max_retries": 0, "timeout": service.timeout}
    if service.kind == "azure":
        return openai.AsyncAzureOpenAI(azure_endpoint=service.url, api_version=service.api_version, **shared)
    url = f"{service.url.rstrip('/')}/v1" if service.kind == "litellm" else service.url
    shared |= {"organization": service.organization, "project": service.project}
    return openai.AsyncOpenAI(base_url=url, **shared)


def get_vendor_from_opts(opts: Mapping[str, Any] | None = None) -> str:
    """Return the name of the provider that answers, as `vendor` of an analysis."""
    try:
        return models.vendor_of(_options(opts))
    except ValueError:
        return "openai"


def _options(opts: Mapping[str, Any] | None) -> models.ModelOptions:
    # Of a link's options only the credentials: what else it calls `timeout` or `temperature` is its own affair.
    names = {"base_url", "model", "api_key", "openai_api_key", "organization_key", "project_key"}
    names |= {name for name in (opts or {}) if name.isupper()} | {"organization", "project"}
    wanted = {name: value for name, value in (opts or {}).items() if name in names and value is not None}
    try:
        return models.ModelOptions.model_validate(wanted)
    except ValidationError as error:
        raise ValueError(error.errors(include_url=False, include_input=False)[0]["msg"]) from None


def _service(opts: Mapping[str, Any] | None) -> models.Service:
    service = models.service_of(_options(opts))
    if service is None:
        raise ValueError("no model service in the options")
    return service
