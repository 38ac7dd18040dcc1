"""Register with a SCITT transparency service that the vCon exists as it is, and keep the receipts.

For each telephone number of a party, or for the vCon itself where there is none, a statement is signed (COSE_Sign1,
ES256) that names the SHA-256 of the vCon and `vcon_operation`. The service adds it to its log over SCRAPI, and its
receipt is checked: the signature, and the proof that the statement is in the log. A receipt that is wrong fails the
link, and is not kept.

The receipts are kept in an analysis `scitt_receipt`, each as soon as it is there. They change the vCon, and with it its
hash; so each also holds `content_hash`, the SHA-256 of the vCon without such receipts and `updated_at`. What has a
receipt for this content, operation and service is not registered again; a vCon that was changed since is.

With `store_receipt: false` nothing is written, so signed and encrypted vCons can be registered as well. Then a second
run registers again; its statements are the same byte for byte, which a service can tell.

Reads: the parties' `tel`, and the hash of the whole vCon. Writes: an analysis `scitt_receipt`.
Needs: conserver[scitt].
"""

import base64
import hashlib
import json
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from conserver import LinkError, Vcon, VconSealed, scitt, telemetry, vcons
from conserver.errors import ConfigError, OutboundError

_TYPE = "scitt_receipt"


class Options(scitt.ScittOptions):
    """What to register, where, and in whose name."""

    vcon_operation: str = Field(default="vcon_created", min_length=1, description="What has happened to the vCon.")
    store_receipt: bool = Field(default=True, description="Keep the receipts in the vCon.")


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Register what is not registered yet; returns the UUID, raises OutboundError when a statement has no receipt."""
    vcon = vcons.get(vcon_uuid)
    if vcon.sealed and opts.store_receipt:
        raise VconSealed(f"vCon {vcon_uuid} is {vcon.form}: no receipt can be kept in it (set store_receipt: false)")
    content = _content_hash(vcon)
    done = [receipt for entry in vcon.analysis for receipt in _receipts(entry, content, opts)]
    # What is missing of a run that was broken off speaks of the same vCon as what is there.
    vcon_hash = str(done[0].get("vcon_hash")) if done else vcon.hash
    subjects = {receipt.get("subject") for receipt in done}
    missing = [one for one in scitt.statements(vcon, vcon_hash, opts.vcon_operation) if one.subject not in subjects]
    if not missing:
        return vcon_uuid
    signed = [_signed(link_name, one, opts) for one in missing]
    try:
        keys = scitt.service_keys(opts)  # first: without them nothing that is registered could be kept
        for statement, message in zip(missing, signed, strict=True):
            entry = scitt.register(opts, message)
            scitt.check_receipt(entry.receipt, statement, keys)
            if opts.store_receipt:
                receipt = {
                    "entry_id": entry.entry_id,
                    "cose_receipt": base64.b64encode(entry.receipt).decode(),
                    "vcon_operation": opts.vcon_operation,
                    "subject": statement.subject,
                    "vcon_hash": vcon_hash,
                    "scrapi_url": _public_url(opts),
                    "content_hash": content,
                }
                _keep(vcon_uuid, receipt, opts)
    except OutboundError:
        telemetry.count("conserver.link.scitt.registration_failures", link=link_name)
        raise
    return vcon_uuid


def _signed(link_name: str, statement: scitt.Statement, opts: Options) -> bytes:
    try:
        return scitt.sign(opts, statement)
    except ConfigError as error:
        telemetry.count("conserver.link.scitt.statement_creation_failures", link=link_name)
        raise LinkError(str(error)) from error


def _keep(vcon_uuid: str, receipt: dict[str, Any], opts: Options) -> None:
    with vcons.edit(vcon_uuid) as vcon:
        for entry in vcon.analysis:
            kept = _receipts(entry, receipt["content_hash"], opts)
            if any(one.get("subject") == receipt["subject"] for one in kept):  # by somebody else, meanwhile
                return
            if kept:
                entry.update(body=[*_all_receipts(entry), receipt], encoding="json")
                return
        vcon.add_analysis(type=_TYPE, dialog=0 if vcon.dialog else None, vendor="scittles", body=receipt)


def _receipts(entry: dict[str, Any], content: str, opts: Options) -> list[dict[str, Any]]:
    """Return the receipts in an analysis for this content, operation and service."""
    wanted = {"content_hash": content, "vcon_operation": opts.vcon_operation, "scrapi_url": _public_url(opts)}
    return [one for one in _all_receipts(entry) if all(one.get(name) == value for name, value in wanted.items())]


def _all_receipts(entry: dict[str, Any]) -> list[dict[str, Any]]:
    body = Vcon.decoded_body(entry) if entry.get("type") == _TYPE else None
    return [one for one in (body if isinstance(body, list) else [body]) if isinstance(one, dict)]


def _content_hash(vcon: Vcon) -> str:
    """Return a hash that stays when receipts are added, whatever the order of members."""
    document = {name: value for name, value in vcon.document.items() if name not in ("analysis", "updated_at")}
    document["analysis"] = [entry for entry in vcon.analysis if entry.get("type") != _TYPE]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _public_url(opts: Options) -> str:
    """Return the URL without the credentials and the query that it may hold."""
    parts = urlsplit(opts.scrapi_url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
