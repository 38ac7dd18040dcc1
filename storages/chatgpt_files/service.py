"""The files and vector stores of OpenAI's API, one request a function.

All raise OutboundError, and OutboundStatus for an answer that is an error; neither holds the key.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from conserver import outbound
from conserver.errors import OutboundError, OutboundStatus
from conserver.outbound import Backoff, Limits, Upload

T = TypeVar("T")
Condition = dict[str, str]

_BACKOFF = Backoff(statuses=frozenset({408, 429, 500, 502, 503, 504}))
_LARGEST_PAGE = 10_000
_MOST_RESULTS = 50


class Service(BaseModel):
    """A vector store, and how to get in."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    organization_key: str = Field(default="", description="The organization at OpenAI that pays.")
    project_key: str = Field(default="", description="The project at OpenAI that the files belong to.")
    api_key: SecretStr = Field(min_length=1, description="A key of that project.")
    vector_store_id: str = Field(min_length=1, description="The vector store; it must be there.")
    base_url: str = Field(
        default="https://api.openai.com/v1", description="The root of the API, where it is not OpenAI's own."
    )
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one attempt, up to the last byte.")

    @field_validator("organization_key", "project_key", "api_key", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        # A line break at the end is what keys get on their way through files and environment variables.
        return value.strip() if isinstance(value, str) else "" if value is None else value

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if not url.lower().startswith(("http://", "https://")):
            raise ValueError("is no URL: write it as https://host/v1")
        return url.rstrip("/")


@dataclass(frozen=True, order=True)
class File:
    """A file at OpenAI, ordered by age; the id decides between two of the same second."""

    uploaded_at: int
    id: str


@dataclass(frozen=True)
class Entry:
    """A file in the vector store: `status` says whether it was taken in, `reason` why not, fit for a message."""

    status: str
    reason: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """A file that the search has found."""

    file: File
    name: str
    attributes: Mapping[str, Any]


def upload(opts: Service, name: str, text: bytes, purpose: str) -> File:
    """Upload a file of this name, which must be fit for a header."""
    # Of the content, so that it cannot stand in it.
    boundary = hashlib.sha256(b"boundary" + text).hexdigest()
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/json\r\n\r\n"
    )
    body = Upload(head.encode(), text, f"\r\n--{boundary}--\r\n".encode())
    return _request("POST", "/files", opts, _file, body, f"multipart/form-data; boundary={boundary}")


def attach(opts: Service, file_id: str, attributes: Mapping[str, object]) -> Entry:
    """Put a file into the vector store."""
    return _post_json(f"{_store(opts)}/files", opts, _entry, {"file_id": file_id, "attributes": dict(attributes)})


def entry(opts: Service, file_id: str) -> Entry:
    """Return what the vector store says of a file."""
    return _request("GET", _place(opts, file_id), opts, _entry)


def exists(opts: Service, file_id: str) -> bool:
    """True if the file is there, in the vector store or not."""
    try:
        _request("GET", f"/files/{quote(file_id, safe='')}", opts, _file)
    except OutboundStatus as error:
        if error.status == 404:
            return False
        raise
    return True


def remove(opts: Service, file_id: str) -> bool:
    """Delete a file, and take it out of the vector store; False if it was in neither."""
    removed = False
    # The file first: if this breaks off in between, the search still finds what is in the vector store.
    for path in (f"/files/{quote(file_id, safe='')}", _place(opts, file_id)):
        try:
            _request("DELETE", path, opts, _deleted)
            removed = True
        except OutboundStatus as error:
            if error.status != 404:  # it went with the file, or somebody else was faster
                raise
    return removed


def search(opts: Service, query: str, conditions: Sequence[Condition]) -> list[Found]:
    """Return files in the vector store whose attributes meet all conditions, one or more times, and not all of them."""

    def read(value: Any) -> list[Found]:
        return [_found(one) for one in value["data"]]

    filters = {"type": "and", "filters": list(conditions)}
    asked = {"query": query, "filters": filters, "max_num_results": _MOST_RESULTS}
    return _post_json(f"{_store(opts)}/search", opts, read, asked)


def condition(attribute: str, comparison: str, value: str) -> Condition:
    """Return a condition for `search`: comparisons are eq, ne and others."""
    return {"key": attribute, "type": comparison, "value": value}


def newest_files(opts: Service, most: int, purpose: str) -> list[tuple[File, str]]:
    """Return the newest files with this purpose, with their names."""
    files, _ = _list(opts, limit=most, purpose=purpose)
    return files


def all_files(opts: Service) -> Iterator[tuple[File, str]]:
    """Go through all files that the key can see, with their names."""
    after: dict[str, str] = {}
    has_more = True
    while has_more:
        page, has_more = _list(opts, limit=_LARGEST_PAGE, **after)
        yield from page
        if has_more and (not page or after.get("after") == page[-1][0].id):
            raise OutboundError("the list of files says that it goes on, and does not")
        after = {"after": page[-1][0].id} if page else {}


def store_status(opts: Service) -> str:
    """Return the status of the vector store, such as `completed` or `expired`."""
    return _request("GET", _store(opts), opts, lambda value: _text(value["status"]))


def _store(opts: Service) -> str:
    return f"/vector_stores/{quote(opts.vector_store_id, safe='')}"


def _place(opts: Service, file_id: str) -> str:
    return f"{_store(opts)}/files/{quote(file_id, safe='')}"


def _list(opts: Service, *, limit: int, **more: str) -> tuple[list[tuple[File, str]], bool]:
    def read(value: Any) -> tuple[list[tuple[File, str]], bool]:
        return [(_file(one), _text(one["filename"])) for one in value["data"]], bool(value.get("has_more"))

    return _request("GET", f"/files?{urlencode({'limit': limit, 'order': 'desc', **more})}", opts, read)


# Requests, and what is read from their answers


def _post_json(path: str, opts: Service, read: Callable[[Any], T], value: object) -> T:
    return _request("POST", path, opts, read, json.dumps(value).encode(), "application/json")


def _request(
    method: str,
    path: str,
    opts: Service,
    read: Callable[[Any], T],
    body: bytes | Upload = b"",
    content_type: str = "",
) -> T:
    """Send a request, and return what *read* makes of its answer."""
    headers = {
        "Authorization": f"Bearer {opts.api_key.get_secret_value()}",
        "Accept": "application/json",
        "Content-Type": content_type,
        "OpenAI-Organization": opts.organization_key,
        "OpenAI-Project": opts.project_key,
        "OpenAI-Beta": "assistants=v2",  # without it, some services have no vector stores
    }
    try:
        answer = outbound.request(
            method,
            opts.base_url + path,
            trusted=True,
            headers={name: value for name, value in headers.items() if value},
            body=body,
            limits=Limits.within(opts.timeout),
            backoff=_BACKOFF,
            repeatable=True,  # of a file that is uploaded twice, one comes into the vector store
        )
    except OutboundStatus as error:
        if error.status not in (401, 403):
            raise
        # Not quoted: OpenAI repeats the beginning and the end of the key.
        where = str(error).partition(": answered")[0]
        hint = "check api_key and its rights, organization_key and project_key"
        raise OutboundStatus(f"{where}: answered {error.status}; {hint}", error.status) from None
    try:
        return read(answer.json())
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise OutboundError(f"{answer.source}: the answer is not OpenAI's; is base_url the root of its API?") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("not a text")
    return value


def _file(value: Any) -> File:
    return File(int(value["created_at"]), _text(value["id"]))


def _found(value: Any) -> Found:
    attributes = dict(value.get("attributes") or {})
    file = File(int(attributes.get("uploaded_at") or 0), _text(value["file_id"]))
    return Found(file, _text(value["filename"]), attributes)


def _entry(value: Any) -> Entry:
    error = value.get("last_error") or {}
    reason = " ".join(" ".join(str(error[name]) for name in ("code", "message") if error.get(name)).split())
    return Entry(_text(value["status"]), f": {reason[:200]}" if reason else "", dict(value.get("attributes") or {}))


def _deleted(value: Any) -> None:
    if value["deleted"] is not True:
        raise ValueError("not deleted")
