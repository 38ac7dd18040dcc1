"""Tell a Utopia knowledge base what each vCon says, as dated prose.

    POST {base_url}/kbs/{kb_id}/documents        the vCon as Markdown, under the name {uuid}.md
    DELETE {base_url}/documents/{id}             what that takes the place of

Utopia draws facts from prose, and dates a document by its first line. So it gets no JSON but sentences: the parties,
the dialogs, summaries and transcripts, tags, and what the `lawful_basis` of the vCon says. The vCon cannot be had back
from that, so there is no `get`.

The new document is uploaded first, then those are deleted that it takes the place of, also what an earlier save left
behind that broke off. Utopia does not keep the same content twice, so a save of the same vCon changes nothing.

With `require_analysis_grant`, vCons whose lawful basis does not grant `analysis` at this time are passed over, and what
Utopia has of them is deleted. A deletion in Utopia invalidates the facts, but keeps the text until somebody purges it
there. Signed and encrypted vCons cannot be told.

The account needs the role Editor on the knowledge base. Sessions are logged in with its password, and kept.

Reads: nothing that could be had back. Writes: a document for each vCon.
"""

import hashlib
import json
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from conserver import StorageError, outbound, vcons
from conserver.errors import OutboundError, OutboundStatus
from conserver.outbound import Answer, Backoff, Limits

from . import prose

_Document = dict[str, Any]


class Options(BaseModel):
    """Which knowledge base, and how to get in."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    base_url: str = Field(default="http://127.0.0.1:1516/api/v1", description="The root of Utopia's REST API.")
    kb_id: str = Field(min_length=1, description="The UUID of the knowledge base.")
    email: str = Field(min_length=1, description="The account that logs in.")
    password: SecretStr = Field(min_length=1, description="Its password.")
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one attempt, up to the last byte.")
    transient_retries: int = Field(
        default=3, ge=0, description="How often a request is repeated that gets no answer, or 429, 502, 503 or 504."
    )
    transient_backoff_base_s: float = Field(
        default=0.5, ge=0, description="Seconds until the first repetition; they double. A `Retry-After` is obeyed."
    )
    require_analysis_grant: bool = Field(
        default=False, description="Whether only vCons are told whose lawful basis grants `analysis`."
    )

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if not url.lower().startswith(("http://", "https://")):
            raise ValueError("is no URL: write it as http://host:1516/api/v1")
        return url.rstrip("/")


def save(vcon_uuid: str, opts: Options) -> None:
    """Upload what the vCon says, then delete what that takes the place of."""
    vcon = vcons.get(vcon_uuid)
    if vcon.sealed:
        raise StorageError(f"vCon {vcon_uuid} is {vcon.form}: there is nothing in it that could be told to Utopia")
    if opts.require_analysis_grant and not prose.grants_analysis(vcon):
        delete(vcon_uuid, opts)
        return
    text = prose.tell(vcon).encode("utf-8", "replace")
    try:
        before = _documents(vcon_uuid, opts)
        digest = hashlib.sha256(text).hexdigest()
        current = {one["id"] for one in before if one.get("sha256") == digest} or _upload(vcon_uuid, text, opts)
        if not current and len(before) > 1:
            # It has this content, but does not say in which of them: none of them, then, and again.
            _delete(before, opts)
            _upload(vcon_uuid, text, opts)
        elif current:
            _delete([one for one in before if one["id"] not in current], opts)
    except OutboundError as error:
        raise StorageError(f"cannot save: {error}") from error


def delete(vcon_uuid: str, opts: Options) -> bool:
    """Delete what Utopia has of the vCon; False if that was nothing."""
    try:
        found = _documents(vcon_uuid, opts)
        _delete(found, opts)
    except OutboundError as error:
        raise StorageError(f"cannot delete: {error}") from error
    return bool(found)


def ping(opts: Options) -> None:
    """Raise StorageError if the account cannot list the knowledge base."""
    try:
        _request("GET", f"/kbs/{quote(opts.kb_id, safe='')}/documents?limit=1", opts)
    except OutboundError as error:
        raise StorageError(f"cannot list: {error}") from error


def _name(vcon_uuid: str) -> str:
    return f"{vcon_uuid}.md"


def _documents(vcon_uuid: str, opts: Options) -> list[_Document]:
    """Return the documents that Utopia has of the vCon."""
    path = f"/kbs/{quote(opts.kb_id, safe='')}/documents?q={quote(vcon_uuid, safe='')}&limit=200"
    listed = _members(_request("GET", path, opts), "docs")
    return [one for one in listed if one.get("filename") == _name(vcon_uuid)]


def _upload(vcon_uuid: str, text: bytes, opts: Options) -> set[str]:
    """Upload a document and return its id in a set, which is empty if the content is there already."""
    # Of the content, so that it cannot stand in it.
    boundary = hashlib.sha256(b"boundary" + text).hexdigest()
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{_name(vcon_uuid)}"\r\n'
    body = f"{head}Content-Type: text/markdown\r\n\r\n".encode() + text + f"\r\n--{boundary}--\r\n".encode()
    path = f"/kbs/{quote(opts.kb_id, safe='')}/documents"
    answer = _request("POST", path, opts, body=body, content_type=f"multipart/form-data; boundary={boundary}")
    return {one["id"] for one in _members(answer, "created")}


def _delete(documents: list[_Document], opts: Options) -> None:
    for one in documents:
        try:
            _request("DELETE", f"/documents/{quote(one['id'], safe='')}", opts)
        except OutboundStatus as error:
            if error.status != 404:  # somebody else was faster
                raise


def _members(answer: Answer, name: str) -> list[_Document]:
    value = answer.json()
    members = value.get(name) if isinstance(value, dict) else None
    if not isinstance(members, list) or not all(
        isinstance(one, dict) and isinstance(one.get("id"), str) for one in members
    ):
        raise OutboundError(f"{answer.source}: the answer has no list of documents in {name!r}; is base_url Utopia's?")
    return members


# The session

_tokens: dict[Options, str] = {}


def _request(method: str, path: str, opts: Options, *, body: bytes = b"", content_type: str = "") -> Answer:
    """Send a request; log in for it where there is no session, and once more where that has ended."""
    kept = _tokens.get(opts)
    try:
        return _send(method, path, opts, body, content_type, kept or _log_in(opts))
    except OutboundStatus as error:
        if error.status != 401 or kept is None:
            raise
    # Perhaps another thread has logged in meanwhile.
    token = _tokens.get(opts)
    return _send(method, path, opts, body, content_type, token if token and token != kept else _log_in(opts))


def _log_in(opts: Options) -> str:
    login = json.dumps({"email": opts.email, "password": opts.password.get_secret_value()}).encode()
    try:
        answer = _send("POST", "/auth/login", opts, login, "application/json", None)
    except OutboundStatus as error:
        if error.status in (400, 401, 403, 422):
            raise OutboundStatus(f"{error}; check email and password", error.status) from error
        raise
    value = answer.json()
    token = value.get("token") if isinstance(value, dict) else None
    if not isinstance(token, str) or not token:
        raise OutboundError(f"{answer.source}: the answer to the login has no token; is base_url Utopia's?")
    _tokens[opts] = token
    return token


def _send(method: str, path: str, opts: Options, body: bytes, content_type: str, token: str | None) -> Answer:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if content_type:
        headers["Content-Type"] = content_type
    return outbound.request(
        method,
        opts.base_url + path,
        trusted=True,
        headers=headers,
        body=body,
        limits=Limits.within(opts.timeout),
        backoff=Backoff(attempts=1 + opts.transient_retries, wait_secs=opts.transient_backoff_base_s),
        repeatable=True,  # the same content is not kept twice
        quote_answer=token is not None,  # a refused login may repeat the password
    )
