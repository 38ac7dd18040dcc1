"""Problems: every answer that says no is an RFC 9457 problem with `detail`, `errors` and `request_id`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from redis.exceptions import ResponseError
from starlette.exceptions import HTTPException

from conserver.errors import (
    ConfigError,
    ConserverError,
    NotAVcon,
    ServerError,
    StorageError,
    VconConflict,
    VconNotFound,
    VconSealed,
)
from conserver.vcon import VconFinding, dump

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
#: How soon a client may ask again when the server is away.
RETRY_AFTER_SECS = 2

#: What stands for a problem in the OpenAPI document.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "`urn:conserver:problem:<name>`"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what happened, with which value, and what to do"},
        "errors": {
            "type": "array",
            "description": "everything that is wrong with the request, each with where it is",
            "items": {
                "type": "object",
                "properties": {
                    "pointer": {"type": "string", "description": "JSON pointer into the body"},
                    "parameter": {"type": "string", "description": "name of a parameter of the request"},
                    "storage": {"type": "string", "description": "name of a storage of the config"},
                    "detail": {"type": "string"},
                    "rule": {"type": "string"},
                    "level": {"type": "string", "enum": ["error", "warning"]},
                },
            },
        },
        "request_id": {"type": "string", "description": "what the log has it under"},
    },
    "example": {
        "type": "urn:conserver:problem:unknown-list",
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": "no chain reads list 'defualt'; did you mean 'default'?",
        "errors": [{"parameter": "ingress_list", "detail": "no chain reads list 'defualt'; did you mean 'default'?"}],
        "request_id": "0c5ed3a1b2f49d77",
    },
}


#: What the OpenAPI document says of each status of a problem.
MEANS = {
    400: "the request says nothing that could be done",
    403: "there is no token, it is wrong, or it may not do this",
    404: "there is no such thing",
    408: "the body came too slowly",
    409: "it does not go together with what is stored or configured, or with another request at this moment",
    412: "another version is stored than `If-Match` or `If-None-Match` demands; nothing was changed",
    413: "the body or the answer is larger than may be",
    415: "the body is in a form that is not read here",
    422: "something in the request is wrong; `errors` says what and where",
    501: "a package that this needs is not installed",
    502: "a storage has failed",
    503: "it cannot be done at the moment; `Retry-After` says when to try again",
    507: "the Redis-compatible server is full",
}


class Problem(Exception):
    """A request that is refused; `name` is the end of its type."""

    def __init__(
        self,
        status: int,
        name: str,
        detail: str,
        *,
        errors: Iterable[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.name = name
        self.detail = detail
        self.errors = [dict(error) for error in errors]
        self.headers = dict(headers or {})
        self.more = more

    def document(self, request_id: str = "") -> dict[str, Any]:
        """Return the problem as an object of JSON."""
        body: dict[str, Any] = {
            "type": f"urn:conserver:problem:{self.name}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            body["errors"] = self.errors
        body |= self.more
        if request_id:
            body["request_id"] = request_id
        plain: dict[str, Any] = _plain(body)
        return plain

    def response(self, request_id: str = "") -> Response:
        """Return the answer."""
        return Response(dump(self.document(request_id)), self.status, self.headers, MEDIA_TYPE)


def _plain(value: Any) -> Any:
    """Return *value* without what JSON in UTF-8 cannot hold: it may repeat what a client has sent."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | float | bool) or value is None else str(value)


def unprocessable(detail: str, *, parameter: str = "", pointer: str | None = None) -> Problem:
    """Return the problem of one parameter, or of one place in the body."""
    where = {"parameter": parameter} if parameter else {"pointer": pointer or ""}
    return Problem(422, "invalid-request", detail, errors=[{**where, "detail": detail}])


def of_findings(findings: Iterable[VconFinding], detail: str) -> Problem:
    """Return the problem of a vCon that breaks rules, with all findings."""
    errors = [
        {"pointer": f["pointer"], "detail": f["message"], "rule": f["rule"], "level": f["level"]}
        for f in map(asdict, findings)
    ]
    return Problem(422, "invalid-vcon", detail, errors=errors)


def of_error(error: Exception) -> Problem:
    """Return the problem that one of our own errors is."""
    text = str(error) or type(error).__name__
    if isinstance(error, VconNotFound):
        return Problem(404, "no-such-vcon", text)
    if isinstance(error, NotAVcon):
        return Problem(422, "invalid-vcon", text, errors=[{"pointer": "", "detail": text}])
    if isinstance(error, VconSealed):
        return Problem(409, "sealed", text)
    if isinstance(error, VconConflict):
        return Problem(409, "conflict", text)
    if isinstance(error, ServerError):
        log.warning("a request was refused, since the server does not work: %s", text)
        # Its words may name hosts; the log has them.
        # The client cuts the code off the words of some of its errors.
        if "OOM" in text or "used memory > 'maxmemory'" in text:
            detail = "the Redis-compatible server is full: make room there, and repeat this"
            return Problem(507, "server-full", detail)
        detail = "the Redis-compatible server cannot be used at the moment: try again"
        return Problem(503, "server-away", detail, headers={"Retry-After": str(RETRY_AFTER_SECS)})
    if isinstance(error, StorageError):
        return Problem(502, "storage-failed", text)
    if isinstance(error, ConfigError):
        return Problem(409, "config", text)
    if isinstance(error, ResponseError):
        return Problem(409, "wrong-type", f"the Redis-compatible server refuses this: {text}")
    return Problem(409, "refused", text)


def _of_validation(error: RequestValidationError) -> Problem:
    errors = []
    for problem in error.errors():
        where, *path = problem["loc"]
        if where == "body":
            errors.append({"pointer": "".join(f"/{part}" for part in path), "detail": problem["msg"]})
        else:
            errors.append({"parameter": ".".join(map(str, path)), "detail": problem["msg"]})
    said = "; ".join(f"{e.get('parameter') or e.get('pointer') or 'body'}: {e['detail']}" for e in errors)
    return Problem(422, "invalid-request", said[:1000], errors=errors)


def _of_http(error: HTTPException) -> Problem:
    name = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    detail = str(error.detail)
    if error.status_code == 404:
        # Handlers raise a Problem, so this is of a path that nobody handles.
        detail = "there is no such path: /openapi.json has all that there are"
    return Problem(error.status_code, name, detail, headers=error.headers)


def install(app: FastAPI) -> None:
    """Have *app* answer every error with a problem."""

    def answered(request: Request, problem: Problem) -> Response:
        return problem.response(request.scope.get("request_id", ""))

    async def problem(request: Request, error: Any) -> Response:
        return answered(request, error)

    async def ours(request: Request, error: Any) -> Response:
        return answered(request, of_error(error))

    async def validation(request: Request, error: Any) -> Response:
        return answered(request, _of_validation(error))

    async def http(request: Request, error: Any) -> Response:
        return answered(request, _of_http(error))

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(ConserverError, ours)
    app.add_exception_handler(ResponseError, ours)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI document says of these problems."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": MEANS.get(status, HTTPStatus(status).phrase), "content": content} for status in statuses
    }
