"""Take out of a vCon what takes space or should not travel on: media, analyses, attachments, system prompts.

With `remove_dialog_body` alone the bodies of all dialogs are gone for good. With `s3_bucket` or `post_media_to_url`
they are stored there first: the dialog then has `url` and `content_hash` (SHA-512 of the decoded content) instead of
its body, as the vCon draft has it for content outside of the vCon. A body that could not be stored stays where it is,
and the link fails when the others are stored; nothing else is removed before.

An object in S3 is named by its content, so storing it again after a crash finds it there. Its bucket and key stay in
the dialog as `s3_object`, since the URL expires. A bucket needs `pip install 'conserver[s3]'`.

A signed or encrypted vCon cannot be changed, so the link fails.

Reads: the whole vCon. Writes: the vCon without what is taken out; `url`, `content_hash`, `s3_object` of dialogs.
"""

import base64
import binascii
import hashlib
import importlib.util
import json
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from conserver import LinkError, Vcon, VconConflict, VconSealed, outbound, telemetry, vcons
from conserver.errors import OutboundError
from conserver.outbound import Limits

from . import s3

_NO_SECRET = SecretStr("")
_PROMPT = "system_prompt"


class Options(BaseModel):
    """What to take out, and where to put the media."""

    model_config = ConfigDict(hide_input_in_errors=True)

    remove_dialog_body: bool = Field(default=False, description="Take the bodies out of all dialogs.")
    post_media_to_url: str = Field(default="", description="Where to POST each body first; it answers with a URL.")
    remove_analysis: bool = Field(default=False, description="Take out all analyses.")
    remove_attachment_types: list[str] = Field(
        default=[], description="Take out attachments of these media types, purposes or types."
    )
    remove_system_prompts: bool = Field(
        default=False, description="Take out every member `system_prompt`, at any depth."
    )
    s3_bucket: str = Field(default="", description="The bucket to store each body in first.")
    s3_path: str = Field(default="", description="What the keys in the bucket begin with.")
    aws_access_key_id: SecretStr = Field(
        default=_NO_SECRET, description="The key for the bucket; without one, what the machine has is used."
    )
    aws_secret_access_key: SecretStr = Field(default=_NO_SECRET, description="The secret that belongs to it.")
    aws_region: str = Field(default="us-east-1", description="The region of the bucket.")
    presigned_url_expiration: int | None = Field(
        default=None, ge=1, le=604_800, description="Seconds until the URL expires; an hour if unset, a week at most."
    )
    endpoint_url: str = Field(default="", description="Another service that speaks S3, such as MinIO.")

    @field_validator("post_media_to_url", "s3_bucket", "s3_path", "endpoint_url", mode="before")
    @classmethod
    def _null_is_unset(cls, value: Any) -> Any:
        return "" if value is None else value

    @field_validator("aws_access_key_id", "aws_secret_access_key", mode="before")
    @classmethod
    def _null_is_no_key(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else _NO_SECRET if value is None else value

    @model_validator(mode="after")
    def _can_store(self) -> "Options":
        if bool(self.aws_access_key_id.get_secret_value()) != bool(self.aws_secret_access_key.get_secret_value()):
            raise ValueError("give aws_access_key_id and aws_secret_access_key, or neither")
        if self.post_media_to_url and not self.post_media_to_url.lower().startswith(("http://", "https://")):
            raise ValueError("post_media_to_url is not a URL: write https://host/path")
        if self.endpoint_url and not re.match(r"https?://[^@/]+(/|$)", self.endpoint_url, re.IGNORECASE):
            raise ValueError("endpoint_url is not a URL: write https://host:port, without a login")
        if self.s3_bucket and importlib.util.find_spec("boto3") is None:
            raise ValueError("s3_bucket needs the package boto3: pip install 'conserver[s3]'")
        return self


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Store the media and take out what the options name; returns the UUID, raises LinkError if storing failed."""
    vcon = vcons.get(vcon_uuid)
    flags = (opts.remove_dialog_body, opts.remove_analysis, opts.remove_attachment_types, opts.remove_system_prompts)
    if not any(flags):
        return vcon_uuid
    if vcon.sealed:
        raise VconSealed(f"vCon {vcon_uuid} is {vcon.form}: nothing can be taken out without breaking it")
    stores = bool(opts.s3_bucket or opts.post_media_to_url)
    if opts.remove_dialog_body and stores:
        failures = []
        for index, dialog in enumerate(vcon.dialog):
            if not _has_content(dialog):
                continue
            try:
                _move_out(vcon_uuid, index, dialog, opts)
            except (OutboundError, LinkError) as error:
                telemetry.count("conserver.link.diet.media_post_failures", link=link_name)
                failures.append((index, error))
        if failures:
            said = "; ".join(f"dialog {index}: {error}" for index, error in failures)
            raise LinkError(f"{said}; what could not be stored is still in the vCon") from failures[0][1]
    with vcons.edit(vcon_uuid) as current:
        if opts.remove_dialog_body and not stores:
            for dialog in current.dialog:
                if _has_content(dialog):
                    dialog["body"] = ""
                    dialog.pop("encoding", None)
        if opts.remove_analysis and current.analysis:
            current.analysis = []
        _remove_attachments(current, {kind.casefold() for kind in opts.remove_attachment_types})
        if opts.remove_system_prompts:
            _remove_prompts(current.document)
    return vcon_uuid


def _has_content(dialog: dict[str, Any]) -> bool:
    # The existing conserver leaves a URL as the body: all that is known of where the media is.
    return dialog.get("body") not in (None, "") and dialog.get("body_type") != "url"


def _move_out(vcon_uuid: str, index: int, dialog: dict[str, Any], opts: Options) -> None:
    """Store the content of a dialog, then replace it by where it is."""
    content = _content(dialog, index)
    digest = base64.urlsafe_b64encode(hashlib.sha512(content).digest()).decode().rstrip("=")
    content_hash = f"sha512-{digest}"
    if opts.s3_bucket:
        place = s3.store(_bucket(opts), vcon_uuid, dialog, content, content_hash)
    else:
        place = {"url": _post(vcon_uuid, dialog, content_hash, opts.post_media_to_url)}
    with vcons.edit(vcon_uuid) as current:
        there = current.dialog[index] if index < len(current.dialog) else {}
        if there.get("body") != dialog["body"]:
            raise VconConflict(f"vCon {vcon_uuid}: the body of dialog {index} was changed while it was stored")
        for name in ("body", "encoding"):
            there.pop(name, None)
        there.update(place, content_hash=content_hash)


def _content(dialog: dict[str, Any], index: int) -> bytes:
    """Return the bytes that a body stands for; LinkError if it is not what its encoding says."""
    body, encoding = dialog["body"], dialog.get("encoding")
    if encoding == "json" or not isinstance(body, str):
        return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else json.dumps(body).encode()
    if encoding == "none":
        return body.encode("utf-8", "surrogatepass")
    # Both alphabets, padded or not: writers mix them up. But nothing that is in neither, which would be cut out.
    text = "".join(body.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise LinkError(f"the body of dialog {index} is no base64, as its encoding {encoding!r} says") from error


def _bucket(opts: Options) -> s3.Bucket:
    return s3.Bucket(
        name=opts.s3_bucket,
        path=opts.s3_path.strip("/"),
        access_key_id=opts.aws_access_key_id.get_secret_value(),
        secret_access_key=opts.aws_secret_access_key.get_secret_value(),
        region=opts.aws_region,
        endpoint_url=opts.endpoint_url,
        expires_secs=opts.presigned_url_expiration or 3600,
    )


def _post(vcon_uuid: str, dialog: dict[str, Any], content_hash: str, url: str) -> str:
    """POST a body as it stands in the vCon, and return the URL that the receiver has for its content."""
    sent = {
        "content": dialog["body"],
        "vcon_uuid": vcon_uuid,
        "dialog_id": dialog.get("id", ""),
        "encoding": dialog.get("encoding"),
        "mediatype": dialog.get("mediatype"),
        "content_hash": content_hash,
    }
    answer = outbound.request(
        "POST",
        url,
        trusted=True,
        headers={
            "Content-Type": "application/json",
            "Idempotency-Key": outbound.delivery_id(vcon_uuid, str(dialog.get("id", "")), content_hash),
        },
        body=json.dumps(sent).encode(),
        limits=Limits(read_secs=60.0, total_secs=300.0),
        repeatable=True,
        quote_answer=False,  # it may repeat what was said in the call
    )
    said = answer.json()
    found = said.get("url") if isinstance(said, dict) else None
    if not isinstance(found, str) or not found.lower().startswith(("http://", "https://")):
        raise OutboundError(f"{answer.source}: the answer names no url of what was stored")
    return found


def _remove_attachments(vcon: Vcon, kinds: set[str]) -> None:
    """Take attachments out, and let the analyses that point to the others go on pointing to them."""
    kept = [index for index, attachment in enumerate(vcon.attachments) if not kinds & _kinds_of(attachment)]
    if len(kept) == len(vcon.attachments):
        return
    places = {old: new for new, old in enumerate(kept)}
    vcon.attachments = [vcon.attachments[index] for index in kept]
    for entry in vcon.analysis:
        named = entry.get("attachment")
        indices = named if isinstance(named, list) else [named]
        left = [places[index] for index in indices if isinstance(index, int) and index in places]
        if left:
            entry["attachment"] = left if isinstance(named, list) else left[0]
        else:
            entry.pop("attachment", None)


def _kinds_of(attachment: dict[str, Any]) -> set[str]:
    names = ("mime_type", "mimetype", "mediatype", "purpose", "type")
    kinds = {kind.casefold() for name in names if isinstance(kind := attachment.get(name), str)}
    return kinds | {kind.partition(";")[0].strip() for kind in kinds}


def _remove_prompts(value: Any) -> bool:
    """Take out every member `system_prompt` below *value*; tell whether there was one."""
    found = False
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            found |= one.pop(_PROMPT, None) is not None
            body = one.get("body")
            if isinstance(body, str) and _PROMPT in body:
                decoded = Vcon.decoded_body(one)
                if isinstance(decoded, (dict, list)) and _remove_prompts(decoded):
                    one["body"], found = json.dumps(decoded, ensure_ascii=False), True
            waiting += one.values()
    return found
