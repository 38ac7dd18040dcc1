"""Statements about vCons, registered with a SCITT transparency service, and the receipts for them.

    for one in scitt.statements(vcon, vcon.hash, "vcon_created"):
        keys = scitt.service_keys(opts)
        entry = scitt.register(opts, scitt.sign(opts, one))
        scitt.check_receipt(entry.receipt, one, keys)

A statement is a COSE_Sign1. The service takes it over SCRAPI, adds it to its Merkle tree, and signs a receipt that it
is in there (see `receipts`). The link `scitt` and the storage of that name share this. Needs `pip install
'conserver[scitt]'`.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from conserver import cose, outbound, receipts
from conserver.deadline import secs_left
from conserver.errors import ConfigError, OutboundError, OutboundStatus
from conserver.outbound import ONCE, Answer, Backoff, Limits

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

    from conserver.vcon import Vcon

# Labels of the protected header of a statement. Those below zero were for private use before COSE hash envelopes had
# numbers of their own; what reads the existing statements knows these.
_CWT_CLAIMS = 13
_ISS, _SUB, _CNF, _CNF_KEY = 1, 2, 8, 1
_PAYLOAD_HASH_ALG, _PAYLOAD_LOCATION, _PREIMAGE_TYPE, _META = -6800, -6801, -6802, -6804
_SHA256 = -16

_LARGEST_ANSWER = 1024 * 1024
_RUNNING = {"running", "pending", "in_progress"}


class ScittOptions(BaseModel):
    """Which transparency service, and who signs."""

    model_config = ConfigDict(hide_input_in_errors=True)

    scrapi_url: str = Field(default="http://scittles:8000", description="The transparency service.")
    signing_key_pem: SecretStr | None = Field(
        default=None, description="The private key, P-256: the base64 of its PEM, or the PEM. Wins over the path."
    )
    signing_key_path: str = Field(
        default="/etc/scitt/signing-key.pem", description="The file of the private key, a PEM."
    )
    issuer: str = Field(default="conserver", description="Who makes the statements.")
    key_id: str = Field(default="conserver-key-1", description="The name of the key, in each statement.")
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one request, up to the last byte.")
    poll_secs: float = Field(
        default=60.0, ge=0, description="How long to ask, where the service registers later, for one statement."
    )
    poll_every_secs: float = Field(default=10.0, gt=0, description="How long to wait between asking.")

    @field_validator("scrapi_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if not url.lower().startswith(("http://", "https://")):
            raise ValueError("not a URL: write https://host/path")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _can_sign(self) -> ScittOptions:
        try:
            signing_key(self)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


@dataclass(frozen=True)
class Statement:
    """What is said: an operation has led to a vCon of this hash; `subject` is the party, or the vCon itself."""

    subject: str
    payload: bytes
    meta: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """What the service has made of a statement."""

    entry_id: str
    """As the service names it; empty if it gives no name."""
    receipt: bytes


def statements(vcon: Vcon, vcon_hash: str, operation: str) -> list[Statement]:
    """Return one statement for each telephone number of a party; for a vCon that shows none, one about itself."""
    numbers = [party.get("tel") for party in vcon.parties]
    tels = list(dict.fromkeys(tel for tel in numbers if isinstance(tel, str) and tel))
    if not tels:
        payload = f"{vcon_hash}:{operation}".encode()
        return [Statement(f"vcon://{vcon.uuid}", payload, {"vcon_operation": operation})]
    return [
        Statement(
            tel if tel.startswith("tel:") else f"tel:{tel}",
            f"{vcon_hash}:{operation}:{tel}".encode(),
            {"vcon_operation": operation, "party_tel": tel},
        )
        for tel in tels
    ]


def signing_key(options: ScittOptions) -> EllipticCurvePrivateKey:
    """Return the private key of the options; ConfigError, which quotes nothing of it, says what to do."""
    given = options.signing_key_pem.get_secret_value().strip() if options.signing_key_pem else ""
    where = "signing_key_pem" if given else f"signing_key_path {options.signing_key_path!r}"
    try:
        if given:
            pem = given.encode() if given.startswith("-----") else base64.b64decode(given, validate=True)
        else:
            pem = Path(options.signing_key_path).read_bytes()
        return cose.private_key(pem)
    except ImportError as error:
        raise ConfigError(f"statements need packages: {error} (pip install 'conserver[scitt]')") from None
    except OSError as error:
        cure = "make it readable for the conserver, or give the key itself in signing_key_pem"
        raise ConfigError(f"{where} cannot be read ({error.strerror}): {cure}") from None
    except binascii.Error:
        raise ConfigError(f"{where} is neither base64 nor a PEM: write what `base64 -w0 key.pem` prints") from None
    except ValueError as error:
        cure = "make one with `openssl ecparam -name prime256v1 -genkey -noout`"
        raise ConfigError(f"{where}: {error}; {cure}") from None


def sign(options: ScittOptions, statement: Statement) -> bytes:
    """Return the statement as a COSE_Sign1; the same statement gives the same bytes again."""
    key = signing_key(options)
    headers = {
        cose.ALG: cose.ES256,
        cose.KID: options.key_id.encode(),
        _PREIMAGE_TYPE: "application/vcon+json",
        _CWT_CLAIMS: {
            _ISS: options.issuer,
            _SUB: statement.subject,
            _CNF: {_CNF_KEY: cose.key_map(key.public_key())},
        },
        _PAYLOAD_HASH_ALG: _SHA256,
        _PAYLOAD_LOCATION: "",
        _META: dict(statement.meta),
    }
    return cose.sign(key, headers, statement.payload)


def register(options: ScittOptions, signed: bytes) -> Entry:
    """Register a signed statement and return its entry.

    Where the service registers later, it is asked for up to `poll_secs`; then OutboundError. A statement whose answer
    was lost is sent again, byte for byte the same.
    """
    try:
        # What a service says of a statement may repeat a telephone number, and errors end up in logs.
        answer = _request(options, "POST", f"{options.scrapi_url}/entries", body=signed)
    except OutboundStatus as error:
        if error.status != 303 or not error.location:
            raise
        return _poll(options, urljoin(f"{options.scrapi_url}/entries", error.location))
    location = answer.headers.get("location", "")
    entry_id = _last_part(location)
    if answer.status == 201 and answer.body:
        return Entry(entry_id, answer.body)
    if not location:
        raise OutboundError(f"{answer.source}: answered {answer.status} with neither a receipt nor a Location")
    return _poll(options, urljoin(f"{options.scrapi_url}/entries", location))


def service_keys(options: ScittOptions) -> list[tuple[str | None, EllipticCurvePublicKey]]:
    """Return the keys that the service publishes for its receipts, each with its name, or None."""
    url = f"{options.scrapi_url}/jwks"
    try:
        answer = _request(options, "GET", f"{options.scrapi_url}/.well-known/transparency-configuration")
    except OutboundStatus as error:
        if error.status != 404:
            raise
    else:
        try:
            config = cose.from_cbor(answer.body)
        except ValueError as error:
            raise OutboundError(f"{answer.source}: the transparency configuration cannot be read: {error}") from error
        found = config.get("jwks_uri") if isinstance(config, Mapping) else None
        if isinstance(found, str) and found:
            url = urljoin(url, found)
    answer = _request(options, "GET", url)
    keys = receipts.keys_of(answer.json())
    if not keys:
        raise OutboundError(f"{answer.source}: publishes no P-256 key, so no receipt can be checked")
    return keys


def check_receipt(
    receipt: bytes, statement: Statement, keys: Sequence[tuple[str | None, EllipticCurvePublicKey]]
) -> None:
    """Check that the service has signed that the statement is in its tree; OutboundError says what is wrong."""
    try:
        receipts.check(receipt, statement.payload, keys)
    except ValueError as error:
        raise OutboundError(f"the receipt of the transparency service is refused: {error}") from error


def _request(options: ScittOptions, method: str, url: str, *, body: bytes = b"", poll: bool = False) -> Answer:
    return outbound.request(
        method,
        url,
        # Trust covers the host that the operator wrote, not what that host points at.
        trusted=urlsplit(url).hostname == urlsplit(options.scrapi_url).hostname,
        headers={"Content-Type": "application/cose"} if body else {"Accept": "application/cose, */*;q=0.5"},
        body=body,
        limits=Limits(
            read_secs=options.timeout,
            total_secs=options.timeout,
            max_bytes=_LARGEST_ANSWER,
            max_redirects=0 if poll else 5,
        ),
        backoff=ONCE if poll else Backoff(),
        repeatable=True,
        quote_answer=False,
    )


def _poll(options: ScittOptions, url: str) -> Entry:
    """Ask until the statement is registered; a 200 holds the receipt, or the id of the entry that has it."""
    secs = min(options.poll_secs, secs_left())
    deadline = time.monotonic() + secs
    while True:
        why, pause = "it is still running", options.poll_every_secs
        try:
            answer = _request(options, "GET", url, poll=True)
        except OutboundError as error:
            if not _may_pass(error):
                raise
            why, pause = str(error), max(pause, error.retry_after_secs or 0.0)
        else:
            entry = None if answer.status == 202 else _entry(options, url, answer)
            if entry is not None:
                return entry
        left = deadline - time.monotonic()
        if left <= pause:
            raise OutboundError(f"the statement was not registered within {secs:.3g} s: {why}")
        time.sleep(pause)


def _may_pass(error: OutboundError) -> bool:
    """True for what a service says that is not ready yet, or busy, or not there for a moment."""
    if isinstance(error, OutboundStatus):
        return error.status in (302, 303, 307, 429) or error.status >= 500
    return type(error) is OutboundError


def _entry(options: ScittOptions, url: str, answer: Answer) -> Entry | None:
    """Return the entry that the answer to a poll tells of; None while there is none."""
    if "json" not in answer.headers.get("content-type", ""):
        return Entry(_last_part(answer.headers.get("location") or url), answer.body)
    told = answer.json()
    told = told if isinstance(told, dict) else {}
    state = str(told.get("status", "")).lower()
    if state == "failed":
        raise OutboundError(f"{answer.source}: the statement was not registered: the service says 'failed'")
    if state in _RUNNING:
        return None
    entry_id = str(told.get("entryID") or told.get("entry_id") or _last_part(url))
    receipt = _request(options, "GET", f"{options.scrapi_url}/entries/{quote(entry_id, safe='')}")
    return Entry(entry_id, receipt.body)


def _last_part(url: str) -> str:
    return urlsplit(url).path.rstrip("/").rpartition("/")[2]
