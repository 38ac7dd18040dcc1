"""Requests to the Web API of Dataverse, and the tokens for them, which Microsoft Entra ID gives to an application."""

import json
import os
import re
from functools import cache
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from conserver import outbound
from conserver.errors import OutboundError, OutboundStatus
from conserver.outbound import Backoff, Limits, Retryable
from conserver.usage import plain_key


class Environment(BaseModel):
    """An environment of Dataverse, and the application that gets in."""

    # Versions are numbers in YAML.
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, coerce_numbers_to_str=True)

    url: str = Field(description="The environment, as `https://org.crm.dynamics.com`.")
    api_version: str = Field(default="9.2", pattern=r"^\d+\.\d+$", description="The version of its Web API.")
    tenant_id: str = Field(pattern=r"^[A-Za-z0-9.-]+$", description="The tenant: its UUID, or one of its domains.")
    client_id: str = Field(min_length=1, description="The UUID of the application that is registered there.")
    client_secret: SecretStr = Field(min_length=1, description="A client secret of the application: its value.")
    authority: str = Field(
        default="https://login.microsoftonline.com",
        description="The sign-in service; sovereign clouds have one of their own, as `https://login.microsoftonline.us`.",
    )
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one attempt, up to the last byte.")
    transient_retries: int = Field(
        default=3, ge=0, description="How often a request is repeated that gets no answer, or 429, 502, 503 or 504."
    )
    transient_backoff_base_s: float = Field(
        default=0.5, ge=0, description="Seconds until the first repetition; they double. A `Retry-After` is obeyed."
    )

    @field_validator("client_secret", mode="before")
    @classmethod
    def _without_line_breaks(cls, value: Any) -> Any:
        return plain_key(value)

    @field_validator("url", "authority")
    @classmethod
    def _is_host(cls, url: str) -> str:
        if not re.fullmatch(r"https://[a-z0-9.-]+(:[0-9]{1,5})?/?", url.lower()):
            raise ValueError("must be https, a host and nothing else, as https://org.crm.dynamics.com")
        return url.lower().rstrip("/")

    @property
    def backoff(self) -> Backoff:
        """How requests are repeated."""
        return Backoff(attempts=1 + self.transient_retries, wait_secs=self.transient_backoff_base_s)


class Refused(OutboundStatus):
    """Dataverse has answered with an error; `text` are its words, which may quote what was sent."""

    def __init__(self, message: str, status: int, code: str, text: str) -> None:
        super().__init__(message, status)
        self.code = code
        self.text = text


def request(
    method: str, path: str, opts: Environment, *, row: dict[str, Any] | None = None, must_exist: bool = False
) -> dict[str, Any]:
    """Send a request and return what is answered; with *must_exist*, no row is made of one that is not there."""
    headers = {"Accept": "application/json", "OData-MaxVersion": "4.0", "OData-Version": "4.0"}
    if row is not None:
        headers["Content-Type"] = "application/json; charset=utf-8"
    if must_exist:
        headers["If-Match"] = "*"
    body = b"" if row is None else json.dumps(row, ensure_ascii=False).encode()
    token = _token(opts)
    try:
        return _send(method, path, opts, {**headers, "Authorization": f"Bearer {token}"}, body)
    except OutboundStatus as error:
        if error.status != 401:
            raise
    # It has ended early: the secret was changed, or the application was shut out for a time.
    token = _token(opts, refused=token)
    return _send(method, path, opts, {**headers, "Authorization": f"Bearer {token}"}, body)


def _send(method: str, path: str, opts: Environment, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    where = f"{method} {opts.url}"

    def attempt() -> httpx.Response:
        try:
            url = f"{opts.url}/api/data/v{opts.api_version}/{path}"
            answer = _http(opts.timeout).request(method, url, headers=headers, content=body)
        except httpx.TransportError as error:
            raise Retryable(f"{where}: {outbound.describe(error)}") from error
        if answer.is_success:
            return answer
        code, text = _reason(answer)
        message = f"{where}: answered {answer.status_code}{code and ' ' + code}"
        if answer.status_code in opts.backoff.statuses:
            raise Retryable(message, status=answer.status_code, retry_after_secs=outbound.retry_after(answer.headers))
        if text and method != "PATCH":  # of a row that it does not like, it may quote any column
            message += f': "{text[:200]}"'
        raise Refused(message, answer.status_code, code, text)

    answer = outbound.retrying(opts.url, attempt, opts.backoff)
    found = _json(answer) if answer.content else {}
    if not isinstance(found, dict):
        raise OutboundError(f"{where}: the answer is no JSON object; is url that of an environment?")
    return found


def _reason(answer: httpx.Response) -> tuple[str, str]:
    """Return code and words of an error, as far as it is one of Dataverse."""
    found = _json(answer)
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict):
        return "", ""
    code, text = str(error.get("code")), " ".join(str(error.get("message")).split())
    return (code if re.fullmatch("0x[0-9a-fA-F]{1,8}", code) else ""), "".join(filter(str.isprintable, text))


def _json(answer: httpx.Response) -> Any:
    try:
        return json.loads(answer.content)
    except ValueError:
        return None


@cache
def _http(timeout: float) -> httpx.Client:
    # A row is a million characters, each of which may be six in JSON.
    return outbound.http_client(Limits.within(timeout, max_bytes=16 * 1024 * 1024))


# The tokens

_apps: dict[tuple[int, Environment], Any] = {}


def _token(opts: Environment, *, refused: str = "") -> str:
    """Return a token, which MSAL keeps until shortly before its end; another one than *refused*."""
    where = f"sign-in at {opts.authority}"
    scopes = [f"{opts.url}/.default"]

    def attempt() -> dict[str, Any]:
        try:
            app = _app(opts)
            found: dict[str, Any] = app.acquire_token_for_client(scopes)
            if refused and found.get("access_token") == refused:
                app.remove_tokens_for_client()
                found = app.acquire_token_for_client(scopes)
        except httpx.TransportError as error:
            raise Retryable(f"{where}: {outbound.describe(error)}") from error
        except (AttributeError, KeyError, TypeError, ValueError):
            # MSAL takes what it is answered as it is; the text of the error may be that answer.
            raise OutboundError(
                f"{where}: it does not know tenant {opts.tenant_id}, or is no sign-in service; "
                "check tenant_id and authority"
            ) from None
        return found

    found = outbound.retrying(opts.authority, attempt, opts.backoff)
    token = found.get("access_token")
    if isinstance(token, str) and token.isascii():
        return token
    said = str(found.get("error_description") or found.get("error") or "no token").partition("Trace ID")[0]
    said = " ".join(said.split())[:300].replace(opts.client_secret.get_secret_value(), "***")
    raise OutboundError(f"{where}: {said}; check tenant_id, client_id, client_secret and url")


def _app(opts: Environment) -> Any:
    # The locks of a parent process may be held for ever, by a thread that is not in its child.
    key = (os.getpid(), opts)
    if key not in _apps:
        import msal  # type: ignore[import-untyped]

        client = outbound.http_client(Limits.within(opts.timeout))
        client.event_hooks = {"response": [_check_sign_in]}
        _apps[key] = msal.ConfidentialClientApplication(
            opts.client_id,
            client_credential=opts.client_secret.get_secret_value(),
            authority=f"{opts.authority}/{opts.tenant_id}",
            instance_discovery=False,  # it asks the public cloud about all others
            http_client=client,
        )
    return _apps[key]


def _check_sign_in(answer: httpx.Response) -> None:
    """Raise for what MSAL would take for an answer of its service, or keep for a minute."""
    answer.read()
    where = f"{answer.request.method} {answer.request.url.scheme}://{answer.request.url.netloc.decode()}"
    if answer.status_code in Backoff.statuses:
        wait = outbound.retry_after(answer.headers)
        raise Retryable(f"{where}: answered {answer.status_code}", status=answer.status_code, retry_after_secs=wait)
    if answer.status_code >= 500 or not isinstance(_json(answer), dict):
        raise OutboundStatus(
            f"{where}: answered {answer.status_code}, not as a sign-in service does; check authority",
            answer.status_code,
        )
