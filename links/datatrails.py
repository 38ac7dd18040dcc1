"""Record in DataTrails that the vCon exists as it is: an event with its SHA-256 and `vcon_operation`.

DataTrails keeps such an event with an asset, so there is one asset a day, found by its attributes or made. The event is
then posted again in the newer form that needs no asset; that one is in preview, so its failure is only logged.

An event that is there is not posted again: before each attempt the events of this vCon with this hash and operation
are searched. A vCon that was changed since gets a new event. An event that DataTrails has taken, but does not find yet
when the link runs again, is posted twice.

Of a signed or encrypted vCon the hash is that of what is stored.

Reads: the hash of the whole vCon. Writes: nothing; an event goes to DataTrails.
"""

import functools
import json
import logging
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from conserver import Vcon, outbound, telemetry, vcons
from conserver.errors import OutboundError, OutboundRefused, OutboundStatus

log = logging.getLogger(__name__)

_LINK_VERSION = "0.3.0"
"""What readers of the events know this form by."""
_EARLY_SECS = 300.0


class Auth(BaseModel):
    """How to get a token."""

    model_config = ConfigDict(hide_input_in_errors=True)

    type: str = Field(default="oidc-client-credentials", description="The only one there is.")
    token_endpoint: str = Field(description="Where to get tokens.")
    client_id: str = Field(description="Who asks for one.")
    client_secret: SecretStr = Field(description="The secret of that client.")

    @field_validator("type")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        if kind.lower() != "oidc-client-credentials":
            raise ValueError("write oidc-client-credentials")
        return kind.lower()

    @field_validator("token_endpoint")
    @classmethod
    def _is_url(cls, url: str) -> str:
        return _checked(url)


class Options(BaseModel):
    """Where to record what."""

    model_config = ConfigDict(hide_input_in_errors=True)

    auth: Auth = Field(description="The client that tokens are got for.")
    vcon_operation: str = Field(min_length=1, description="What has happened to the vCon; gets `vcon_` before it.")
    api_url: str = Field(
        default="https://app.datatrails.ai/archivist", description="The API; a `/v2` at its end is left out."
    )
    auth_url: str = Field(default="", description="Not used: see `auth.token_endpoint`.")
    partner_id: str = Field(default="not-set", description="What DataTrails calls you, sent with each request.")
    asset_attributes: dict[str, Any] = Field(
        default={"arc_display_type": "vcon_droid", "conserver_link_version": _LINK_VERSION},
        description="By what the asset of the day is found, beside the date. Replaces the default as a whole.",
    )
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one request, up to the last byte.")

    @field_validator("api_url")
    @classmethod
    def _is_root(cls, url: str) -> str:
        return _checked(url).rstrip("/").removesuffix("/v2")


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Post the event if it is not there; returns the UUID, raises OutboundError when that fails."""
    attributes = _attributes(vcons.get(vcon_uuid), link_name, opts)
    api = _Api(opts)
    try:
        posted = api.post_once(attributes)
    except OutboundError:
        telemetry.count("conserver.link.datatrails.event_creation_failures", link=link_name, event_type="asset_event")
        raise
    if posted:
        try:
            api.post("/v1/events", {"attributes": attributes, "trails": [attributes["subject"]]})
        except (OutboundError, outbound.Retryable) as error:
            telemetry.count("conserver.link.datatrails.event_creation_failures", link=link_name, event_type="event")
            log.warning("the event without an asset is not recorded, the one with an asset is: %s", error)
    return vcon_uuid


def _attributes(vcon: Vcon, link_name: str, opts: Options) -> dict[str, str]:
    operation = "vcon_" + opts.vcon_operation.lower().removeprefix("vcon_").removeprefix("vcon-")
    return {
        "arc_display_type": operation,
        "arc_event_type": operation,
        "conserver_link": "DataTrails",
        "conserver_link_name": link_name,
        "conserver_link_version": _LINK_VERSION,
        "payload": vcon.hash,
        "payload_hash_alg": "SHA-256",
        "payload_preimage_content_type": "application/vcon+json",
        "subject": f"vcon://{vcon.uuid}",
        # A signed or encrypted vCon does not show when it was made.
        "timestamp_declared": vcon.updated_at or vcon.created_at or datetime.now(UTC).isoformat(timespec="seconds"),
        "vcon_draft_version": "01",
        "vcon_operation": operation,
    }


class _Api:
    """The API of DataTrails, as these options reach it."""

    def __init__(self, opts: Options) -> None:
        self._opts = opts
        auth = opts.auth
        self._tokens = _tokens(auth.token_endpoint, auth.client_id, auth.client_secret.get_secret_value(), opts.timeout)

    def post_once(self, attributes: Mapping[str, str]) -> bool:
        """Post an event with the asset of the day, unless it is there; True if it was posted."""
        asked = {name: attributes[name] for name in ("subject", "payload", "vcon_operation")}
        search = urlencode({f"event_attributes.{name}": value for name, value in asked.items()})
        event = {"operation": "Record", "behaviour": "RecordEvidence", "event_attributes": dict(attributes)}

        def attempt() -> bool:
            # An attempt without an answer may have been one that was taken.
            if self._found(f"/v2/assets/-/events?{search}", "events"):
                return False
            try:
                self.post(f"/v2/{self._asset()}/events", event)
            except OutboundStatus as error:
                if error.status == 404:
                    _assets.clear()  # the asset that we remember is not there any more
                raise
            return True

        return outbound.retrying(f"DataTrails at {urlsplit(self._opts.api_url).hostname}", attempt, _BACKOFF)

    def _asset(self) -> str:
        wanted = {**self._opts.asset_attributes, "droid_id": datetime.now(UTC).date().isoformat()}
        key = json.dumps([self._opts.api_url, self._opts.auth.client_id, wanted], sort_keys=True, default=str)
        if key not in _assets:
            with _assets_lock:  # or at midnight each thread would make one
                if key not in _assets:
                    _assets[key] = self._found_or_made(wanted)
        return _assets[key]

    def _found_or_made(self, wanted: Mapping[str, Any]) -> str:
        found = self._found("/v2/assets?" + urlencode({f"attributes.{n}": str(v) for n, v in wanted.items()}), "assets")
        if found:
            asset = found[0]
        else:
            new = {"behaviours": ["RecordEvidence"], "attributes": wanted, "public": False}
            asset = self.post("/v2/assets", new).json()
        identity = asset.get("identity") if isinstance(asset, dict) else None
        if not isinstance(identity, str) or not identity.startswith("assets/"):
            raise OutboundError("DataTrails answered with an asset that has no identity")
        return identity

    def _found(self, path: str, what: str) -> list[Any]:
        answer = self._request("GET", path)
        told = answer.json()
        found = told.get(what) if isinstance(told, dict) else None
        if not isinstance(found, list):
            raise OutboundError(f"{answer.source}: the answer to a search has no list of {what}")
        return found

    def post(self, path: str, body: Mapping[str, Any]) -> outbound.Answer:
        """Post once; Retryable says that another attempt may do better."""
        try:
            return self._request("POST", path, json.dumps(body).encode())
        except OutboundRefused:
            raise
        except OutboundStatus as error:
            if error.status not in _BACKOFF.statuses:
                raise
            wait = error.retry_after_secs
            raise outbound.Retryable(str(error), status=error.status, retry_after_secs=wait) from error
        except OutboundError as error:
            raise outbound.Retryable(str(error)) from error

    def _request(self, method: str, path: str, body: bytes = b"") -> outbound.Answer:
        token = self._tokens.get()
        try:
            return self._send(method, path, body, token)
        except OutboundStatus as error:
            if error.status != 401:
                raise
        # It may have been withdrawn before its time.
        return self._send(method, path, body, self._tokens.get(refused=token))

    def _send(self, method: str, path: str, body: bytes, token: str) -> outbound.Answer:
        return outbound.request(
            method,
            self._opts.api_url + path,
            trusted=True,
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/json",
                "DataTrails-User-Agent": f"oss/conserverlink/{_LINK_VERSION}",
                "DataTrails-Partner-ID": self._opts.partner_id,
            },
            body=body,
            limits=_limits(self._opts.timeout),
        )


_BACKOFF = outbound.Backoff()
# The assets of the day by what they are found by; there is one a day for each set of options.
_assets: dict[str, str] = {}
_assets_lock = threading.Lock()


class _Tokens:
    """The token of one client, got when it is needed and again five minutes before it ends."""

    def __init__(self, endpoint: str, client_id: str, secret: str, timeout: float) -> None:
        self._endpoint = endpoint
        self._asked = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
        self._timeout = timeout
        self._lock = threading.Lock()
        self._value, self._until = "", 0.0

    def get(self, *, refused: str | None = None) -> str:
        """Return a token that lasts and is not the one that was refused."""
        with self._lock:
            if self._value in ("", refused) or time.monotonic() >= self._until:
                self._value, self._until = self._new()
            return self._value

    def _new(self) -> tuple[str, float]:
        began = time.monotonic()
        answer = outbound.request(
            "POST",
            self._endpoint,
            trusted=True,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            body=urlencode(self._asked).encode(),
            limits=_limits(self._timeout),
            repeatable=True,
            quote_answer=False,  # it may repeat the secret
        )
        told = answer.json()
        told = told if isinstance(told, dict) else {}
        value, lasts = told.get("access_token"), told.get("expires_in")
        if not isinstance(value, str) or not value:
            raise OutboundError(f"{answer.source}: answered without an access_token; check auth in the options")
        secs = float(str(lasts)) if str(lasts).isdecimal() else 2 * _EARLY_SECS
        return value, began + secs - min(_EARLY_SECS, secs / 2)


@functools.cache
def _tokens(endpoint: str, client_id: str, secret: str, timeout: float) -> _Tokens:
    return _Tokens(endpoint, client_id, secret, timeout)


def _limits(timeout: float) -> outbound.Limits:
    return outbound.Limits(read_secs=timeout, total_secs=timeout, max_bytes=8 * 1024 * 1024)


def _checked(url: str) -> str:
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError("not a URL: write https://host/path")
    return url
