"""A fake of Elasticsearch: its REST API as far as storages.elasticsearch needs it, as strict as we know the real one.

Made without a real one at hand. It refuses paths, parameters, kinds of content and names of indexes, reads NDJSON line
by line, and answers each of many writes for itself; its indexes are in `elasticsearch_index`. It misbehaves on order
(see `orders`).
"""

from __future__ import annotations

import base64
import fnmatch
import json
import re
import threading
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.fakes.elasticsearch_index import Index, Refused, Stored
from tests.fakes.http_server import Exchange, HttpServer, Request
from tests.fakes.orders import Answer, Order, ok

USER, PASSWORD, API_KEY = "conserver", "elastic-very-secret", "dmVyeS1zZWNyZXQ6YXBpLWtleQ=="
_LOGINS = {f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}", f"ApiKey {API_KEY}"}
_WHICH = {"ignore_unavailable", "allow_no_indices"}
_MOST_FOUND = 10_000
_CAS = {"if_seq_no", "if_primary_term"}
#: What may be asked: the method, the path, its parameters, and the function.
_ROUTES: list[tuple[str, str, set[str], str]] = [
    ("POST", "/_mget", set(), "_mget"),
    ("POST", "/_bulk", set(), "_bulk"),
    ("POST", "/([^/]+)/_search", _WHICH | {"allow_partial_search_results"}, "_search"),
    ("POST", "/([^/]+)/_refresh", _WHICH, "_refresh"),
    ("POST", "/([^/]+)/_delete_by_query", _WHICH | {"conflicts", "refresh"}, "_delete_by_query"),
    ("PUT", "/([^/]+)/_create/([^/]+)", set(), "_create"),
    ("PUT", "/([^/]+)/_doc/([^/]+)", _CAS, "_put"),
    ("POST", "/([^/]+)/_update/([^/]+)", _CAS, "_update"),
    ("DELETE", "/([^/]+)/_doc/([^/]+)", _CAS | {"refresh"}, "_delete"),
    ("PUT", "/([^/_][^/]*)", set(), "_make"),
]


class ElasticsearchServer(HttpServer):
    """Elasticsearch with one user; `stop` and `start` make it go away, and come back with what it has.

    Without *auto_create* only a request of its own makes an index. *most_bytes* is `http.max_content_length`,
    *most_indexes* what the cluster has room for.
    """

    def __init__(self, *, auto_create: bool = True, most_bytes: int = 100_000_000, most_indexes: int = 1000) -> None:
        super().__init__(self._respond)
        self.indexes: dict[str, Index] = {}
        self.aliases: dict[str, str] = {}
        self.busy_items = 0
        """So many writes of those that come together are refused, because there are too many."""
        self._auto_create = auto_create
        self._most_bytes = most_bytes
        self._most_indexes = most_indexes
        self._orders: deque[Order] = deque()
        self._down = False
        self._lock = threading.RLock()

    def order(self, *orders: Order) -> None:
        """Queue what is to happen to the next requests; after that, all is well again."""
        self._orders.extend(orders)

    def stop(self) -> None:
        """Cut every connection instead of answering."""
        self._down = True

    def start(self) -> None:
        """Answer again."""
        self._down = False

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self.indexes, self.aliases, self.busy_items = {}, {}, 0
            self._orders.clear()
            self.requests.clear()

    def calls(self) -> list[str]:
        """What was asked so far, as `POST /_bulk`."""
        return [f"{request.method} {unquote(urlsplit(request.path).path)}" for request in self.requests]

    def put(self, index: str, key: str, document: dict[str, Any]) -> None:
        """Store a document as the existing conserver does, and let searches see it."""
        with self._lock:
            self._index(index).write(key, document)
            self._index(index).refresh()

    def stored(self, uuid: str, prefix: str = "") -> dict[str, dict[str, Any]]:
        """The documents of the parts of a vCon, by index and position as `vcon_dialog/0`."""
        with self._lock:
            return {
                f"{name.removeprefix(prefix)}/{key.removeprefix(uuid + '_')}": stored.source
                for name, index in sorted(self.indexes.items())
                for key, stored in sorted(index.documents.items())
                if key.startswith(f"{uuid}_") and name.startswith(prefix)
            }

    def delete_as_before(self, uuid: str, prefix: str = "") -> int:
        """Delete a vCon as the existing conserver does; return how many documents that were."""
        with self._lock:
            for index in self.indexes.values():
                index.refresh()
            body = {"query": {"match": {"vcon_id": uuid}}}
            return int(self._delete_by_query({"refresh": "true"}, body, f"{prefix}vcon*")[1]["deleted"])

    # HTTP

    def _respond(self, exchange: Exchange) -> None:
        if self._down:
            return exchange.cut()
        request = exchange.request
        if request.headers.get("authorization") not in _LOGINS:
            refused = Refused(401, "security_exception", "unable to authenticate")
            return _answer(401, {"error": refused.error, "status": 401}).send(exchange)
        return (self._orders.popleft() if self._orders else ok)(exchange, lambda: self._answer(request))

    def _answer(self, request: Request) -> Answer:
        try:
            with self._lock:
                if len(request.body) > self._most_bytes:
                    raise Refused(413, "content_too_long_exception", "entity content is too long")
                return _answer(*self._work(request))
        except Refused as refused:
            return _answer(refused.status, {"error": refused.error, "status": refused.status})

    def _work(self, request: Request) -> tuple[int, dict[str, Any]]:
        asked = urlsplit(request.path)
        params = dict(parse_qsl(asked.query, strict_parsing=bool(asked.query)))
        for method, pattern, allowed, name in _ROUTES:
            match = re.fullmatch(pattern, asked.path)
            if match is None or method != request.method:
                continue
            if unknown := params.keys() - allowed:
                raise Refused(400, "illegal_argument_exception", f"contains unrecognized parameters: {sorted(unknown)}")
            work: Callable[..., tuple[int, dict[str, Any]]] = getattr(self, name)
            return work(params, _body(request, name), *map(unquote, match.groups()))
        raise Refused(405, "method_not_allowed", f"Incorrect HTTP method for uri [{asked.path}]")

    # Indexes

    def _make(self, _: dict[str, str], body: Any, name: str) -> tuple[int, dict[str, Any]]:
        if name in self.indexes or name in self.aliases:
            raise Refused(400, "resource_already_exists_exception", f"index [{name}] already exists")
        self._new(name, body)
        return 200, {"acknowledged": True, "shards_acknowledged": True, "index": name}

    def _new(self, name: str, body: Any = None) -> Index:
        bad = name != name.lower() or re.search(r'[\\/*?"<>| ,#:]', name) or name[0] in "-_+" or name in (".", "..")
        if bad or len(name.encode()) > 255:
            raise Refused(400, "invalid_index_name_exception", f"Invalid index name [{name}]")
        if len(self.indexes) >= self._most_indexes:
            raise Refused(400, "validation_exception", "this cluster currently has the maximum normal shards open")
        return self.indexes.setdefault(name, Index(body))

    def _index(self, name: str) -> Index:
        """Return an index to write to, and make it if the settings allow that."""
        name = self.aliases.get(name, name)
        if name not in self.indexes and not self._auto_create:
            raise Refused(404, "index_not_found_exception", f"no such index [{name}]")
        return self.indexes.get(name) or self._new(name)

    def _named(self, names: str, params: dict[str, str]) -> dict[str, Index]:
        found = {}
        for name in names.split(","):
            matching = [known for known in [*self.indexes, *self.aliases] if fnmatch.fnmatchcase(known, name)]
            if not matching and "*" not in name and params.get("ignore_unavailable") != "true":
                raise Refused(404, "index_not_found_exception", f"no such index [{name}]")
            real = [self.aliases.get(known, known) for known in matching]
            found |= {known: self.indexes[known] for known in real}
        return found

    def _refresh(self, params: dict[str, str], _: Any, names: str) -> tuple[int, dict[str, Any]]:
        for index in self._named(names, params).values():
            index.refresh()
        return 200, {"_shards": {"total": 1, "successful": 1, "failed": 0}}

    def _search(self, params: dict[str, str], body: Any, names: str) -> tuple[int, dict[str, Any]]:
        if unknown := body.keys() - {"size", "_source", "query", "sort", "search_after"}:
            raise Refused(400, "parsing_exception", f"Unknown key for a value in [{min(unknown)}]")
        if body["size"] > _MOST_FOUND:
            raise Refused(400, "illegal_argument_exception", f"Result window is too large, from + size: {body['size']}")
        found = [
            (name, index, index.found(body.get("query", {"match_all": {}})))
            for name, index in self._named(names, params).items()
        ]
        if "sort" in body:
            hits = _sorted(found, body)
        elif "search_after" in body:
            raise Refused(400, "action_request_validation_exception", "Sort must contain at least one field.")
        else:
            hits = [{"_index": name, "_id": key, "_score": 1.0} for name, _, keys in found for key in keys]
        return 200, {"timed_out": False, "hits": {"total": {"value": len(hits)}, "hits": hits[: body["size"]]}}

    def _delete_by_query(self, params: dict[str, str], body: Any, names: str) -> tuple[int, dict[str, Any]]:
        deleted = conflicts = 0
        for index in self._named(names, params).values():
            for key, seen in index.found(body["query"]).items():
                try:
                    deleted += index.remove(key, if_seq_no=seen.seq_no, if_primary_term=1)
                except Refused as refused:
                    if params.get("conflicts") != "proceed":
                        raise refused from None
                    conflicts += 1
            if params.get("refresh") == "true":
                index.refresh()
        return 200, {"deleted": deleted, "version_conflicts": conflicts, "timed_out": False, "failures": []}

    # Documents

    def _mget(self, _: dict[str, str], body: Any) -> tuple[int, dict[str, Any]]:
        return 200, {"docs": [self._get(wanted) for wanted in body["docs"]]}

    def _get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        name = {"_index": wanted["_index"], "_id": wanted["_id"]}
        index = self.indexes.get(self.aliases.get(wanted["_index"], wanted["_index"]))
        if index is None:
            reason = f"no such index [{wanted['_index']}]"
            return name | {"error": {"type": "index_not_found_exception", "reason": reason}}
        stored = index.documents.get(wanted["_id"])
        if stored is None:
            return name | {"found": False}
        source = {key: value for key, value in stored.source.items() if key in (wanted["_source"] or [])}
        numbers = {"_version": stored.version, "_seq_no": stored.seq_no, "_primary_term": 1}
        return name | numbers | {"found": True} | ({"_source": source} if wanted["_source"] else {})

    def _put(self, params: dict[str, str], body: Any, name: str, key: str) -> tuple[int, dict[str, Any]]:
        stored = self._index(name).write(key, body, **{one: int(value) for one, value in params.items()})
        return 200, {"_id": key, "_version": stored.version, "_seq_no": stored.seq_no, "_primary_term": 1}

    def _create(self, _: dict[str, str], body: Any, name: str, key: str) -> tuple[int, dict[str, Any]]:
        stored = self._index(name).write(key, body, create=True)
        return 201, {"_id": key, "_version": stored.version, "_seq_no": stored.seq_no, "_primary_term": 1}

    def _update(self, params: dict[str, str], body: Any, name: str, key: str) -> tuple[int, dict[str, Any]]:
        self._index(name).merge(key, body["doc"], **{one: int(value) for one, value in params.items()})
        return 200, {"_id": key, "result": "updated"}

    def _delete(self, params: dict[str, str], _: Any, name: str, key: str) -> tuple[int, dict[str, Any]]:
        index = self._index(name)
        removed = index.remove(key, **{one: int(value) for one, value in params.items() if one in _CAS})
        if params.get("refresh") == "true":
            index.refresh()
        return (200, {"result": "deleted"}) if removed else (404, {"result": "not_found"})

    def _bulk(self, _: dict[str, str], lines: Any) -> tuple[int, dict[str, Any]]:
        items, rest = [], deque(lines)
        while rest:
            [(kind, meta)] = rest.popleft().items()
            if kind not in ("index", "delete") or meta.keys() - {"_index", "_id", "version", "version_type"}:
                raise Refused(400, "illegal_argument_exception", f"Malformed action/metadata line: {kind}")
            source = rest.popleft() if kind == "index" else None
            items.append({kind: {"_id": meta["_id"], **self._item(meta.pop("_index"), meta.pop("_id"), source, meta)}})
        return 200, {"errors": any("error" in next(iter(item.values())) for item in items), "items": items}

    def _item(self, name: str, key: str, source: Any, how: dict[str, Any]) -> dict[str, Any]:
        try:
            if self.busy_items:
                self.busy_items -= 1
                raise Refused(429, "es_rejected_execution_exception", "rejected execution of coordinating operation")
            if source is None:
                return {"status": 200} if self._index(name).remove(key, **how) else {"status": 404}
            self._index(name).write(key, source, **how)
        except Refused as refused:
            return {"status": refused.status, "error": refused.error}
        return {"status": 201}


def _sorted(found: list[tuple[str, Index, dict[str, Stored]]], body: dict[str, Any]) -> list[dict[str, Any]]:
    """Sort by one field and go on behind its last value; what has none comes last, and is never behind anything."""
    [(field, order)] = [pair for one in body["sort"] for pair in one.items()]
    if order != "asc":
        raise Refused(400, "parsing_exception", f"the fake sorts upwards, not {order}")
    hits: list[dict[str, Any]] = []
    for name, index, documents in found:
        index.check_sort(field)
        for key, stored in documents.items():
            hits.append({"_index": name, "_id": key, "_score": None, "sort": [index.sorted_as(stored.source, field)]})
    if "search_after" in body:
        [after] = body["search_after"]
        hits = [hit for hit in hits if hit["sort"][0] is None or hit["sort"][0] > after]
    return sorted(hits, key=lambda hit: (hit["sort"][0] is None, hit["sort"][0] or ""))


def _body(request: Request, name: str) -> Any:
    """Return the JSON of a body; its kind must be the right one."""
    kind = request.headers.get("content-type")
    if not request.body and name in ("_delete", "_refresh", "_make"):
        return None
    if kind != ("application/x-ndjson" if name == "_bulk" else "application/json"):
        raise Refused(406, "media_type_header_exception", f"Content-Type header [{kind}] is not supported")
    try:
        if name != "_bulk":
            return json.loads(request.body)
        if not request.body.endswith(b"\n"):
            raise Refused(400, "illegal_argument_exception", "The bulk request must be terminated by a newline [\\n]")
        return [json.loads(line) for line in request.body[:-1].split(b"\n")]
    except ValueError as error:
        raise Refused(400, "parse_exception", str(error)) from None


def _answer(status: int, value: object) -> Answer:
    headers = {"content_type": "application/json", "x_elastic_product": "Elasticsearch"}
    return Answer(status, json.dumps(value).encode(), headers)
