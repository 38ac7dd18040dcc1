"""Everything that leaves: one HTTP client with one policy.

    answer = outbound.request("POST", opts.url, trusted=True, body=data, repeatable=True)

A URL of the config file is *trusted*: the operator wrote it, so it may point anywhere. A URL that comes from a vCon
or from a client of the API is not: it never reaches an address that is not public, nor a file, unless the
`outbound` section of the config allows it. Both are held to the same limits of time and size.

`request` builds a request and follows its redirects, `retrying` repeats it and breaks the circuit; one exchange, its
limits and its connections are in `outbound_wire`, the check of addresses in `outbound_policy`.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import json
import logging
import os
import random
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import httpx
import tenacity

from conserver.deadline import secs_left
from conserver.errors import OutboundError, OutboundRefused, OutboundStatus, OutboundTooLarge
from conserver.outbound_policy import OutboundPolicy, configure, in_force
from conserver.outbound_wire import Limits, Upload, close_connections, origin, send

__all__ = [
    "ONCE",
    "Answer",
    "Backoff",
    "Limits",
    "OutboundPolicy",
    "Retryable",
    "Upload",
    "close_connections",
    "configure",
    "delivery_id",
    "describe",
    "extract",
    "http_client",
    "is_sensitive",
    "request",
    "retry_after",
    "retrying",
    "secs_left",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

# These write whole URLs, headers and prompts into the log, and with them what is secret or personal in those.
for _name in ("httpx", "httpcore", "openai"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """When a failed request is repeated. The wait doubles from `wait_secs`, halved at random, up to `max_wait_secs`.

    A `Retry-After` is obeyed; one that is longer than `max_wait_secs` ends the attempts, since the thread has
    better things to do than to wait for it. No attempt begins later than `total_secs` after the first.
    """

    attempts: int = 4
    wait_secs: float = 0.5
    max_wait_secs: float = 10.0
    total_secs: float = 30.0
    statuses: frozenset[int] = frozenset({429, 502, 503, 504})

    def wait(self, state: tenacity.RetryCallState) -> float:
        """Return the seconds until the next attempt."""
        longest: float = min(self.max_wait_secs, self.wait_secs * 2 ** (state.attempt_number - 1))
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after_secs if isinstance(error, Retryable) else None
        return max(random.uniform(longest / 2, longest), asked or 0.0)  # noqa: S311 - spreads load, hides nothing

    def is_over(self, state: tenacity.RetryCallState) -> bool:
        """True if there is to be no further attempt."""
        return (
            state.attempt_number >= self.attempts
            or state.upcoming_sleep > self.max_wait_secs
            or (state.seconds_since_start or 0.0) + state.upcoming_sleep > self.total_secs
            or state.upcoming_sleep > secs_left()
        )


ONCE = Backoff(attempts=1)
_DEFAULT_LIMITS = Limits()
_DEFAULT_BACKOFF = Backoff()
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What may follow a redirect to another host; all else could be a credential.
_HARMLESS_HEADERS = frozenset({"accept", "accept-language", "content-type", "user-agent"})
_SENSITIVE = (
    *("key", "token", "secret", "password", "passwd", "credential"),
    *("proxy_url", "authorization", "cookie", "signature"),
)


@dataclass(frozen=True)
class Answer:
    """A 2xx answer, read to its end."""

    status: int
    headers: httpx.Headers
    body: bytes
    source: str
    """Where it came from, fit for messages: no credentials, no query."""

    def json(self) -> Any:
        """Return the body as JSON, or raise OutboundError that names the source."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise OutboundError(f"{self.source}: the answer is not JSON ({error})") from None


class Retryable(Exception):
    """What an attempt raises when another one may succeed; see `retrying`."""

    def __init__(self, message: str, *, status: int | None = None, retry_after_secs: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_secs = retry_after_secs


def request(
    method: str,
    url: str,
    *,
    trusted: bool,
    headers: Mapping[str, str] | None = None,
    body: bytes | Upload = b"",
    into: BinaryIO | None = None,
    limits: Limits = _DEFAULT_LIMITS,
    backoff: Backoff = _DEFAULT_BACKOFF,
    repeatable: bool | None = None,
    quote_answer: bool = True,
    ca_file: str | None = None,
) -> Answer:
    """Send one request and return its 2xx answer; with *into*, a file, its body is written there and nowhere else.

    `repeatable` says whether the request may be sent again when it is not known what became of the first; unset,
    that depends on the method (POST and PATCH are not repeated). `quote_answer=False` keeps the other side's words
    out of the error, for answers that may repeat what was sent. `ca_file` has the authorities that may have signed the
    certificate, instead of those of the system.

    Raises OutboundRefused when the policy or a limit forbids it, OutboundStatus for any other status, OutboundError
    when there is no answer. None of the messages holds a credential, a query, or the path of a trusted URL (the path
    of a web hook is often its secret).
    """
    method = method.upper()
    target, sent = _parse(url, headers or {})
    where = f"{method} {_shown(target, trusted=trusted)}"
    if target.scheme == "file":
        return _read_file(method, target, where, into, trusted=trusted, limits=limits)
    if isinstance(body, Upload):
        sent["content-length"] = str(len(body))
    secrets = [*target.params.values(), *(value for name, value in sent.items() if is_sensitive(name))]

    def attempt() -> Answer:
        if into is not None:
            into.seek(0)
            into.truncate()
        try:
            response = _exchange(
                method, target, sent, body, into, where=where, trusted=trusted, limits=limits, ca_file=ca_file
            )
        except httpx.TransportError as error:
            raise Retryable(f"{where}: {describe(error)}") from error
        if response.is_success:
            return Answer(response.status_code, response.headers, response.content, where)
        quoted = extract(response, secrets) if quote_answer else ""
        message = f"{where}: answered {response.status_code}{quoted}"
        if response.status_code in backoff.statuses:
            raise Retryable(message, status=response.status_code, retry_after_secs=retry_after(response.headers))
        raise OutboundStatus(message, response.status_code, location=response.headers.get("location"))

    may_repeat = method in _IDEMPOTENT if repeatable is None else repeatable
    return retrying(origin(target), attempt, backoff if may_repeat else ONCE)


def retrying(target: str, attempt: Callable[[], T], backoff: Backoff) -> T:
    """Call `attempt` until it returns, or raises something else than Retryable, or the back-off is used up.

    The last Retryable then becomes an OutboundStatus or OutboundError. When ten calls in a row to one target have ended
    so, further ones fail at once for thirty seconds; after that, one call finds out whether it is back.

    No attempt begins after the deadline of the thread; OutboundError as well.
    """
    if secs_left() <= 0:
        raise OutboundError(f"{target}: not asked, since the time of the whole call is over")
    _breakers.check(target)
    attempts = 0

    def counted() -> T:
        nonlocal attempts
        attempts += 1
        return attempt()

    retryer = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Retryable),
        wait=backoff.wait,
        stop=backoff.is_over,
        sleep=lambda secs: _sleep(secs),
        reraise=True,
    )
    try:
        result = retryer(counted)
    except Retryable as failure:
        _breakers.failed(target)
        message = failure.message + (f" ({attempts} attempts)" if attempts > 1 else "")
        if failure.retry_after_secs is not None and failure.retry_after_secs > backoff.max_wait_secs:
            message += f"; it asks to wait {failure.retry_after_secs:.0f} s"
        error = OutboundError(message) if failure.status is None else OutboundStatus(message, failure.status)
        error.retry_after_secs = failure.retry_after_secs
        raise error from failure.__cause__
    except OutboundStatus:
        _breakers.answered(target)
        raise
    _breakers.answered(target)
    return result


def http_client(limits: Limits = _DEFAULT_LIMITS) -> httpx.Client:
    """Return an httpx client for an SDK whose URL is trusted; it follows no redirects and repeats nothing.

    Its connections are those of the thread that uses it, so it costs little and needs no closing.
    """
    return httpx.Client(transport=_Transport(limits), timeout=limits.read_secs, trust_env=False)


def delivery_id(*parts: str) -> str:
    """Return a name for a delivery that is the same whenever the same parts are delivered again."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def is_sensitive(name: str) -> bool:
    """True if an option or header of this name is likely to hold a secret."""
    return any(part in name.lower().replace("-", "_") for part in _SENSITIVE)


def extract(response: httpx.Response, secrets: Iterable[str]) -> str:
    """Return the beginning of an answer as `: "..."` for an error message, without the secrets; '' if it is no text."""
    kind = response.headers.get("content-type", "")
    if not kind.startswith("text/") and "json" not in kind:
        return ""
    text = " ".join(response.content[:4096].decode("utf-8", "replace").split())
    parts = {part for secret in secrets for part in (secret, secret.rpartition(" ")[2]) if len(part) >= 4}
    for part in sorted(parts, key=len, reverse=True):
        text = text.replace(part, "***")
    text = "".join(char if char.isprintable() else "?" for char in text)
    return f': "{text[:200]}"' if text else ""


def describe(error: BaseException) -> str:
    """Say in words why there was no answer."""
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time ({type(error).__name__})"
    return f"no answer ({type(error).__name__}: {str(error)[:200]})"


def retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds that a Retry-After header asks for, if it has one that can be understood."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _parse(url: str, headers: Mapping[str, str]) -> tuple[httpx.URL, dict[str, str]]:
    """Split the credentials off a URL, and check the headers before httpx can quote them in an error."""
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError):
        raise OutboundRefused("the URL cannot be read; write it as https://host/path") from None
    sent = {"user-agent": "conserver", "accept": "*/*"} | {name.lower(): value for name, value in headers.items()}
    for name, value in sent.items():
        if not (name.isascii() and value.isascii() and (name + value).replace("\t", " ").isprintable()):
            raise OutboundRefused(f"header {name!r} holds characters that HTTP forbids")
    if target.userinfo:
        login = f"{target.username}:{target.password}".encode()
        sent.setdefault("authorization", "Basic " + base64.b64encode(login).decode())
    return target.copy_with(username=None, password=None, fragment=None), sent


def _shown(url: httpx.URL, *, trusted: bool) -> str:
    return origin(url) + ("" if trusted else url.raw_path.decode("ascii", "replace").partition("?")[0][:200])


def _exchange(
    method: str,
    url: httpx.URL,
    headers: dict[str, str],
    body: bytes | Upload,
    into: BinaryIO | None,
    *,
    where: str,
    trusted: bool,
    limits: Limits,
    ca_file: str | None,
) -> httpx.Response:
    """Send a request and follow its redirects; each hop is checked like a new URL."""
    deadline = time.monotonic() + limits.total_secs
    first_host = url.host
    for _ in range(limits.max_redirects + 1):
        # Trust covers the host that the operator wrote, not where that host sends us.
        policy = None if trusted and url.host == first_host else in_force()
        request = httpx.Request(method, url, headers=headers, content=body)
        response = send(request, policy, limits, deadline, where, into, ca_file)
        location = response.headers.get("location")
        if location is None or response.status_code not in _REDIRECTS or not limits.max_redirects:
            return response
        if method not in ("GET", "HEAD") and response.status_code not in (307, 308):
            return response  # following it would drop the body, and look like success
        try:
            next_url = url.join(location).copy_with(username=None, password=None, fragment=None)
        except (httpx.InvalidURL, ValueError):
            raise OutboundRefused(f"{where}: redirects to something that is not a URL") from None
        if url.scheme == "https" and next_url.scheme == "http":
            raise OutboundRefused(f"{where}: redirects from https to http, which is not followed")
        if next_url.host != url.host:
            headers = {name: value for name, value in headers.items() if name in _HARMLESS_HEADERS}
        url = next_url
    raise OutboundRefused(f"{where}: more than {limits.max_redirects} redirects")


class _Transport(httpx.BaseTransport):
    """What an SDK gets: our exchange behind httpx's interface."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        where = f"{request.method} {_shown(request.url, trusted=True)}"
        return send(request, None, self._limits, time.monotonic() + self._limits.total_secs, where)


def _read_file(
    method: str, url: httpx.URL, where: str, into: BinaryIO | None, *, trusted: bool, limits: Limits
) -> Answer:
    if not trusted and not in_force().allow_file:
        raise OutboundRefused(f"{where}: file URLs are not allowed (outbound.allow_file)")
    if method != "GET" or url.host not in ("", "localhost"):
        raise OutboundRefused(f"{where}: a file URL can only be read, and names no host: file:///folder/name")
    try:
        # Not blocking, or a pipe would hold this thread for ever.
        with open(os.open(url.path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OutboundRefused(f"{where}: not a plain file")
            body = file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:
        raise OutboundError(f"{where}: {getattr(error, 'strerror', None) or 'not a path'}") from error
    if len(body) > limits.max_bytes:
        raise OutboundTooLarge(f"{where}: the file is larger than {limits.max_bytes} bytes")
    if into is not None:
        into.write(body)
    return Answer(200, httpx.Headers(), body if into is None else b"", where)


class _Breakers:
    """Remembers, for each target, how many calls in a row failed."""

    def __init__(self, *, failures: int = 10, open_secs: float = 30.0, most: int = 1000) -> None:
        self._failures = failures
        self._open_secs = open_secs
        self._most = most
        self._lock = threading.Lock()
        self._targets: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, target: str) -> None:
        with self._lock:
            failures, until = self._targets.get(target, (0, 0.0))
            if failures < self._failures:
                return
            if time.monotonic() >= until:
                # This caller finds out whether the target is back; the others go on failing until it knows.
                self._targets[target] = (failures, time.monotonic() + self._open_secs)
                return
        # No count and no time in the message: equal failures should look equal.
        raise OutboundError(
            f"{target}: left alone for {self._open_secs:.0f} s, after {self._failures} calls in a row failed"
        )

    def failed(self, target: str) -> None:
        with self._lock:
            failures = self._targets.pop(target, (0, 0.0))[0] + 1
            self._targets[target] = (failures, time.monotonic() + self._open_secs)
            while len(self._targets) > self._most:
                self._targets.popitem(last=False)
        if failures == self._failures:
            log.warning("%s: %d calls in a row failed, so it is left alone for a while", target, failures)

    def answered(self, target: str) -> None:
        with self._lock:
            self._targets.pop(target, None)


_breakers = _Breakers()
_sleep = time.sleep
