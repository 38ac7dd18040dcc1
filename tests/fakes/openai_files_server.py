"""A fake of OpenAI's API for files and vector stores: one account, with vector stores that search by attributes.

It refuses what the real one refuses: other keys, organizations and projects, unknown paths, bodies of another type or
without their members, pages and results that are too large, vector stores and files that are not there, and the
download of what assistants use.

It misbehaves on order, one order a request (see `orders`).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.http_server import Exchange, HttpServer, Request
from tests.fakes.orders import Answer, Order, ok

KEY, ORGANIZATION, PROJECT = "sk-proj-very-secret-key-x7Qw", "org-main", "proj_main"
_ROOT = "/v1"
_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda one, other: one == other,
    "ne": lambda one, other: one != other,
}


@dataclass
class StoredFile:
    """A file as the account has it."""

    id: str
    name: str
    purpose: str
    created_at: int
    content: bytes

    def shown(self) -> dict[str, Any]:
        """What the API tells of it."""
        told = {"id": self.id, "object": "file", "bytes": len(self.content), "created_at": self.created_at}
        return {**told, "filename": self.name, "purpose": self.purpose, "status": "processed", "expires_at": None}


@dataclass
class VectorStore:
    """A vector store with the entries of its files, by their ids."""

    id: str
    status: str = "completed"
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        self.answer = _answer(status, {"error": error})


class OpenAIFilesServer(HttpServer):
    """The API; `stop` and `start` make it go away, and come back with what it has."""

    def __init__(self) -> None:
        super().__init__(self._respond)
        self._lock = threading.RLock()
        self.forget()

    def forget(self) -> None:
        """Be as new: empty, and well."""
        self.requests.clear()
        self.files: dict[str, StoredFile] = {}
        self.stores = {name: VectorStore(name) for name in ("vs_calls", "vs_other")}
        #: How often a vector store is asked for a file until that is taken in.
        self.polls = 1
        #: What becomes of a file in a vector store.
        self.outcome = "completed"
        #: How many pieces of each file the search has, of which an answer holds no more than it was asked for.
        self.pieces = 1
        #: What the search finds although it was deleted.
        self.stale: list[dict[str, Any]] = []
        #: Whether a file that is deleted goes from the vector stores at once.
        self.detaches = True
        #: How many files get the same time.
        self.uploads_a_second = 1
        self._orders: deque[Order] = deque()
        self._down = False
        self._number = 0

    @property
    def base_url(self) -> str:
        """What goes into the option `base_url`."""
        return self.url + _ROOT

    def order(self, *orders: Order) -> None:
        """Queue what is to happen to the next requests; after that, all is well again."""
        self._orders.extend(orders)

    def calls(self) -> list[str]:
        """The requests so far, as `POST /files`, with words in the place of ids."""
        names = [f"{one.method} {urlsplit(one.path).path.removeprefix(_ROOT)}" for one in self.requests]
        return [re.sub(r"file-\w+", "FILE", name.replace("/vector_stores/vs_calls", "STORE")) for name in names]

    def texts(self, uuid: str, store: str = "vs_calls") -> list[bytes]:
        """The contents of the files of a vCon that a vector store has taken in."""
        entries = [one for one in self.stores[store].entries.values() if one["status"] == "completed"]
        return [self.files[one["id"]].content for one in entries if one["filename"] == f"{uuid}.vcon.json"]

    def put(
        self, name: str, content: bytes, /, *, store: str | None = None, purpose: str = "assistants", **attributes: Any
    ) -> str:
        """Keep a file as another program would upload it, in a vector store if one is given; return its id."""
        with self._lock:
            self._number += 1
            # As with the real one, ids do not say which file is the later one.
            file_id = f"file-{hashlib.sha256(str(self._number).encode()).hexdigest()[:24]}"
            created_at = 1_800_000_000 + self._number // self.uploads_a_second
            file = StoredFile(file_id, name, purpose, created_at, content)
            self.files[file.id] = file
            if store is not None:
                entry = self._new_entry(store, file.id, attributes)
                self._finish(entry)
        return file.id

    def stop(self) -> None:
        """Cut every connection instead of answering."""
        self._down = True

    def start(self) -> None:
        """Answer again."""
        self._down = False

    def _respond(self, exchange: Exchange) -> None:
        if self._down:
            return exchange.cut()
        try:
            _check_access(exchange.request)
        except _Refused as refusal:
            return refusal.answer.send(exchange)
        return (self._orders.popleft() if self._orders else ok)(exchange, lambda: self._work(exchange.request))

    def _work(self, request: Request) -> Answer:
        asked = urlsplit(request.path)
        parts = asked.path.removeprefix(_ROOT).strip("/").split("/")
        try:
            with self._lock:
                if parts[0] == "files":
                    return _answer(200, self._on_files(request, parts[1:], parse_qs(asked.query)))
                if parts[0] == "vector_stores" and len(parts) > 1:
                    store = self.stores.get(parts[1])
                    if store is None:
                        raise _Refused(404, f"Vector store with id '{parts[1]}' not found.")
                    return _answer(200, self._on_store(request, store, parts[2:]))
                raise _Refused(404, f"Invalid URL ({request.method} {asked.path})")
        except _Refused as refusal:
            return refusal.answer

    def _on_files(self, request: Request, parts: list[str], query: dict[str, list[str]]) -> dict[str, Any]:
        match (request.method, *parts):
            case ("POST",):
                name, content, purpose = _uploaded(request)
                return self.files[self.put(name, content, purpose=purpose)].shown()
            case ("GET",):
                return self._list(query)
            case ("GET", file_id):
                return self._file(file_id).shown()
            case ("GET", file_id, "content"):
                raise _Refused(400, f"Not allowed to download files of purpose: {self._file(file_id).purpose}")
            case ("DELETE", file_id):
                self._file(file_id)
                del self.files[file_id]
                for store in self.stores.values() if self.detaches else ():
                    store.entries.pop(file_id, None)
                return {"id": file_id, "object": "file", "deleted": True}
        raise _Refused(404, f"Invalid URL ({request.method} {request.path})")

    def _list(self, query: dict[str, list[str]]) -> dict[str, Any]:
        given = {name: values[0] for name, values in query.items()}
        limit = _number(given.get("limit", "10000"), 10_000)
        purpose = given.get("purpose")
        found = [one for one in self.files.values() if purpose in (None, one.purpose)]
        found.sort(key=lambda one: (one.created_at, one.id), reverse=given.get("order", "desc") == "desc")
        if "after" in given:
            ids = [one.id for one in found]
            if given["after"] not in ids:
                raise _Refused(404, f"No such File object: {given['after']}")
            found = found[ids.index(given["after"]) + 1 :]
        page = [one.shown() for one in found[:limit]]
        return {"object": "list", "data": page, "has_more": len(found) > limit}

    def _on_store(self, request: Request, store: VectorStore, parts: list[str]) -> dict[str, Any]:
        match (request.method, *parts):
            case ("GET",):
                return {"id": store.id, "object": "vector_store", "status": store.status}
            case ("POST", "search"):
                return self._search(store, _json(request))
            case ("POST", "files"):
                return self._attach(store, _json(request))
            case ("GET" | "DELETE", "files", file_id) if file_id not in store.entries:
                raise _Refused(404, f"No file found with id '{file_id}' in vector store '{store.id}'.")
            case ("GET", "files", file_id):
                entry = store.entries[file_id]
                entry["polls"] += 1
                if entry["polls"] >= self.polls and entry["status"] == "in_progress":
                    self._finish(entry)
                return _shown(entry)
            case ("DELETE", "files", file_id):
                del store.entries[file_id]
                return {"id": file_id, "object": "vector_store.file.deleted", "deleted": True}
        raise _Refused(404, f"Invalid URL ({request.method} {request.path})")

    def _attach(self, store: VectorStore, given: dict[str, Any]) -> dict[str, Any]:
        if store.status == "expired":
            raise _Refused(400, f"Vector store '{store.id}' is expired.")
        file = self._file(given.get("file_id", ""))
        if file.purpose not in ("assistants", "user_data"):
            raise _Refused(400, f"File purpose '{file.purpose}' is not supported for vector stores.")
        attributes = given.get("attributes") or {}
        if len(attributes) > 16:
            raise _Refused(400, "Too many attributes: at most 16.")
        for name, value in attributes.items():
            fits = isinstance(value, int | float | bool) or (isinstance(value, str) and len(value) <= 512)
            if len(name) > 64 or not fits:
                raise _Refused(400, f"Invalid attribute {name!r}.")
        if file.id not in store.entries:
            self._new_entry(store.id, file.id, attributes)
        return _shown(store.entries[file.id])

    def _new_entry(self, store: str, file_id: str, attributes: dict[str, Any]) -> dict[str, Any]:
        entry = {"id": file_id, "object": "vector_store.file", "vector_store_id": store, "polls": 0}
        entry |= {"status": "in_progress", "last_error": None, "attributes": attributes, "usage_bytes": 0}
        entry |= {"created_at": self.files[file_id].created_at, "filename": self.files[file_id].name}
        self.stores[store].entries[file_id] = entry
        return entry

    def _finish(self, entry: dict[str, Any]) -> None:
        entry["status"] = self.outcome
        if self.outcome == "failed":
            entry["last_error"] = {"code": "invalid_file", "message": "The file has too many tokens."}

    def _search(self, store: VectorStore, given: dict[str, Any]) -> dict[str, Any]:
        most = _number(given.get("max_num_results", 10), 50)
        if not isinstance(given.get("query"), str) or not given["query"]:
            raise _Refused(400, "Missing required parameter: 'query'.", "missing_required_parameter")
        entries = [one for one in store.entries.values() if one["status"] == "completed"]
        found = [{"file_id": one["id"], **{name: one[name] for name in ("filename", "attributes")}} for one in entries]
        met = [one for one in [*found, *self.stale] if _meets(one["attributes"], given.get("filters"))]
        content = [{"type": "text", "text": "{"}]
        data = [{**one, "score": 0.5, "content": content} for one in met for _ in range(self.pieces)]
        page = {"object": "vector_store.search_results.page", "search_query": [given["query"]]}
        return {**page, "data": data[:most], "has_more": len(data) > most, "next_page": None}

    def _file(self, file_id: str) -> StoredFile:
        if file_id not in self.files:
            raise _Refused(404, f"No such File object: {file_id}")
        return self.files[file_id]


def _check_access(request: Request) -> None:
    key = request.headers.get("authorization", "").removeprefix("Bearer ")
    if key != KEY:
        shown = f"{key[:8]}{'*' * len(key[8:-4])}{key[-4:]}"
        raise _Refused(401, f"Incorrect API key provided: {shown}.", "invalid_api_key")
    if request.headers.get("openai-organization", ORGANIZATION) != ORGANIZATION:
        raise _Refused(401, "OpenAI-Organization header should match organization for API key")
    if request.headers.get("openai-project", PROJECT) != PROJECT:
        raise _Refused(401, "OpenAI-Project header should match project for API key")


def _uploaded(request: Request) -> tuple[str, bytes, str]:
    """Return name, content and purpose from the body of an upload."""
    kind, _, boundary = request.headers.get("content-type", "").partition("; boundary=")
    if kind != "multipart/form-data" or not boundary:
        raise _Refused(415, f"Invalid Content-Type header ({kind}), expected multipart/form-data.")
    body = b"\r\n" + request.body
    first, *parts = body.split(f"\r\n--{boundary}".encode())
    if first or not parts or parts[-1].strip() != b"--":
        raise _Refused(400, "Could not parse multipart form")
    name, fields = None, {}
    for part in parts[:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        told = dict(re.findall(r'(\w+)="([^"]*)"', head.decode()))
        fields[told["name"]] = content
        name = told.get("filename", name)
    if fields.get("purpose", b"").decode() not in _PURPOSES:
        raise _Refused(400, f"'{fields.get('purpose', b'').decode()}' is not one of {list(_PURPOSES)} - 'purpose'")
    if name is None or not fields.get("file"):
        raise _Refused(400, "'file' is a required property")
    return name, fields["file"], fields["purpose"].decode()


def _json(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "")
    if kind != "application/json":
        raise _Refused(400, f"Unsupported content type: '{kind}'.", "unsupported_content_type")
    value = json.loads(request.body)
    assert isinstance(value, dict)
    return value


def _number(text: str | int, most: int) -> int:
    if not 1 <= int(text) <= most:
        raise _Refused(400, f"Invalid value: expected an integer from 1 to {most}, but got {text} instead.")
    return int(text)


def _meets(attributes: dict[str, Any], condition: dict[str, Any] | None) -> bool:
    if condition is None:
        return True
    if condition["type"] == "and":
        return all(_meets(attributes, one) for one in condition["filters"])
    return _OPERATORS[condition["type"]](attributes.get(condition["key"]), condition["value"])


def _shown(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("polls", "filename")}


def _answer(code: int, value: object) -> Answer:
    return Answer(code, json.dumps(value).encode(), {"content_type": "application/json"})
