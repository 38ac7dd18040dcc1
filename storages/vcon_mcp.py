"""Keep vCons in a vcon-mcp server, by its REST API.

    POST {base_url}/vcons, GET and DELETE {base_url}/vcons/{uuid}

The API has nothing that replaces a vCon: depending on its version, a second POST fails or adds the parts of the vCon
once more. So a save deletes what is there and then posts, and does both again when the answer to the POST is lost. If
it breaks off in between, the server has no copy until the vCon is saved again, which the conserver sees to; and two
saves of the same vCon at the same time may leave it with its parts twice, until it is saved again.

vcon-mcp takes a vCon apart into tables. What has no column there does not come back, and dates come back in its own
form. It refuses what its own rules do not allow, such as a vCon without parties, and signed or encrypted ones.

Reads: the vCon at the server. Writes: the vCon there.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from conserver import StorageError, Vcon, outbound, vcons
from conserver.errors import OutboundError, OutboundRefused, OutboundStatus
from conserver.outbound import ONCE, Answer, Backoff, Limits, Retryable


class Options(BaseModel):
    """Which server, and how to get in."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    base_url: str = Field(default="http://127.0.0.1:3000/api/v1", description="The root of its REST API.")
    api_key: SecretStr = Field(default=SecretStr(""), description="Its API key, which is sent as a bearer token.")
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one attempt, up to the last byte.")
    transient_retries: int = Field(
        default=3, ge=0, description="How often a request is repeated that gets no answer, or 429, 502, 503 or 504."
    )
    transient_backoff_base_s: float = Field(
        default=0.5, ge=0, description="Seconds until the first repetition; they double. A `Retry-After` is obeyed."
    )

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if not url.lower().startswith(("http://", "https://")):
            raise ValueError("is no URL: write it as http://host:3000/api/v1")
        return url.rstrip("/")

    @property
    def backoff(self) -> Backoff:
        """How requests are repeated."""
        return Backoff(attempts=1 + self.transient_retries, wait_secs=self.transient_backoff_base_s)


def save(vcon_uuid: str, opts: Options) -> None:
    """Post the vCon, in the place of one that is there already."""
    body = vcons.get(vcon_uuid).to_bytes()

    def attempt() -> None:
        _delete(vcon_uuid, opts)
        try:
            _request("POST", "/vcons", opts, ONCE, body=body)
        except OutboundRefused:
            raise
        except OutboundError as error:
            status = error.status if isinstance(error, OutboundStatus) else None
            if status is not None and status not in opts.backoff.statuses:
                raise
            raise Retryable(str(error), status=status, retry_after_secs=error.retry_after_secs) from error

    try:
        outbound.retrying(f"vcon_mcp {opts.base_url}", attempt, opts.backoff)
    except OutboundError as error:
        raise StorageError(f"cannot save: {error}") from error


def get(vcon_uuid: str, opts: Options) -> dict[str, Any] | None:
    """Return the vCon as the server gives it, or None if there is none."""
    try:
        answer = _request("GET", f"/vcons/{vcon_uuid}", opts, opts.backoff)
        found = answer.json()
    except OutboundError as error:
        if isinstance(error, OutboundStatus) and error.status == 404:
            return None
        raise StorageError(f"cannot read: {error}") from error
    document = found.get("vcon") if isinstance(found, dict) else None
    if not isinstance(document, dict) or Vcon(document).uuid != vcon_uuid:
        raise StorageError(f"cannot read: {answer.source}: the answer holds no vCon {vcon_uuid}")
    return document


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Delete the vCon; False if there was none."""
    try:
        return _delete(vcon_uuid, opts)
    except OutboundError as error:
        raise StorageError(f"cannot delete: {error}") from error


def ping(opts: Options) -> None:
    """Raise StorageError if the server does not list its vCons to this key."""
    try:
        _request("GET", "/vcons?limit=1", opts, opts.backoff)
    except OutboundError as error:
        raise StorageError(f"cannot list: {error}") from error


def _delete(vcon_uuid: str, opts: Options) -> bool:
    try:
        _request("DELETE", f"/vcons/{vcon_uuid}", opts, opts.backoff)
    except OutboundStatus as error:
        if error.status == 404:
            return False
        raise
    return True


def _request(method: str, path: str, opts: Options, backoff: Backoff, *, body: bytes = b"") -> Answer:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key := opts.api_key.get_secret_value():
        headers["Authorization"] = f"Bearer {key}"
    limits = Limits.within(opts.timeout)
    return outbound.request(
        method, opts.base_url + path, trusted=True, headers=headers, body=body, limits=limits, backoff=backoff
    )
