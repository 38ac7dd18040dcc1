"""What the OpenAPI document says of bodies and answers that handlers read and write by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from conserver.api import problems
from conserver.settings import Settings

VCON_EXAMPLE: dict[str, Any] = {
    "uuid": "01928e10-193e-8231-b9a2-279e0d16bc46",
    "created_at": "2026-01-31T12:00:00Z",
    "subject": "A question about an invoice",
    "parties": [{"tel": "+15550100", "name": "Ann", "validation": "none"}, {"mailto": "bob@example.com"}],
    "dialog": [],
    "analysis": [],
    "attachments": [],
}
VCON: dict[str, Any] = {
    "type": "object",
    "description": "A vCon: unsigned, signed (JWS, general JSON serialization) or encrypted (JWE). Members that are "
    "not named here are kept as they are.",
    "properties": {
        "vcon": {"type": "string"},
        "uuid": {"type": "string", "format": "uuid"},
        "created_at": {"type": "string"},
        "updated_at": {"type": "string"},
        **{name: {"type": "array", "items": {"type": "object"}} for name in ("parties", "dialog")},
        **{name: {"type": "array", "items": {"type": "object"}} for name in ("analysis", "attachments")},
    },
    "example": VCON_EXAMPLE,
}
#: What is stored may break rules of the draft, and is served as it is.
_STORED: dict[str, Any] = VCON | {"properties": {name: {} for name in VCON["properties"]}}
#: How operations refer to them.
A_VCON = {"$ref": "#/components/schemas/Vcon"}
A_STORED_VCON = {"$ref": "#/components/schemas/StoredVcon"}
_VCON_BODY = {
    "required": True,
    "description": "The vCon, as JSON or as gzip of it. Older versions of the draft are brought to the current one.",
    "content": {media_type: {"schema": A_VCON} for media_type in ("application/json", "application/vcon+json")},
}
_PATCH_SCHEMA = {
    "type": "object",
    "description": "What is to change (RFC 7396): a member that is null is removed, an array is replaced as a whole.",
    "example": {"subject": "An invoice that was wrong", "analysis": []},
}
_PATCH_BODY = {
    "required": True,
    "content": {
        media_type: {"schema": _PATCH_SCHEMA} for media_type in ("application/merge-patch+json", "application/json")
    },
}
#: What the tags of operations stand for, in the order in which they are shown.
_TAGS = {
    "vCons": "One vCon: create, read, change, delete, check, query.",
    "Search": "Which vCons there are, and many of them at once.",
    "Ingest": "Many vCons, those of partners, and stored ones that are to be worked on again.",
    "Egress": "What chains have delivered.",
    "Lists and chains": "What waits, and who works on it.",
    "Dead letters": "What has failed for good, and running it again.",
    "Claims and hosts": "What is being worked on, and where.",
    "Run now": "A link or a chain on one vCon, apart from the lists.",
    "System": "Health, version, numbers, config, and this document.",
}
_HEADERS: dict[str, dict[str, Any]] = {
    "ETag": {"description": "the version, for `If-Match` and `If-None-Match`", "schema": {"type": "string"}},
    "Conserver-Findings": {
        "description": "how many rules of the draft the vCon breaks, though it was stored; absent if none",
        "schema": {"type": "integer"},
    },
    "Location": {"description": "where the vCon is", "schema": {"type": "string"}},
}


def takes(body: Mapping[str, Any], access: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a route declares that reads its body by hand: `@router.put(path, **takes(body, needs("write")))`."""
    access = dict(access or {})
    return {**access, "openapi_extra": {**access.get("openapi_extra", {}), "requestBody": body}}


def reads_headers(access: Mapping[str, Any], *parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a route declares that reads these headers by hand."""
    extra = access.get("openapi_extra", {})
    return {**access, "openapi_extra": {**extra, "parameters": [*extra.get("parameters", ()), *parameters]}}


def takes_model(
    model: type[BaseModel], access: Mapping[str, Any] | None = None, *, optional: bool = False
) -> dict[str, Any]:
    """Return what a route declares whose body is read by `bodies.read_model`."""
    schema = model.model_json_schema()
    return takes({"required": not optional, "content": {"application/json": {"schema": schema}}}, access)


def takes_vcon(access: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a route declares whose body is a vCon."""
    return takes(_VCON_BODY, access)


def takes_patch(access: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a route declares whose body is a merge patch."""
    return takes(_PATCH_BODY, access)


def gives_vcon(status: int, description: str, *headers: str) -> dict[int | str, dict[str, Any]]:
    """Return what a route declares that answers with a vCon, its ETag and these *headers*."""
    return {
        status: {
            "description": description,
            "content": {"application/json": {"schema": A_STORED_VCON}},
            "headers": {name: _HEADERS[name] for name in ("ETag", *headers)},
        }
    }


def not_modified() -> dict[int | str, dict[str, Any]]:
    """Return what a route declares that answers 304."""
    return {304: {"description": "the version that the client has", "headers": {"ETag": _HEADERS["ETag"]}}}


def _of_answer(answer: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """Return what an answer is that its route does not describe: what its model says of itself."""
    schema = answer["content"]["application/json"]["schema"] if "content" in answer else {}
    name = schema.get("$ref", schema.get("items", {}).get("$ref", "")).rpartition("/")[2]
    if name:
        said: str = schemas[name]["description"]
        return said.rstrip(".") if "$ref" in schema else f"of each: {said[0].lower()}{said[1:].rstrip('.')}"
    return {"array": "entries", "integer": "a number"}.get(schema.get("type", ""), "done")


def document(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """Return the OpenAPI document of *app*, made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            routes=app.routes,
            description="Creates, reads, searches and enqueues vCons, and looks after the conserver that works on "
            "them. Every refusal is a problem (RFC 9457).",
            servers=[{"url": path or "/"} for path in dict.fromkeys(["", settings.api_root_path])],
        )
        parts = made.setdefault("components", {})
        parts.setdefault("schemas", {}).update(Problem=problems.SCHEMA, Vcon=VCON, StoredVcon=_STORED)
        parts["securitySchemes"] = {
            "token": {"type": "apiKey", "in": "header", "name": settings.api_header_name},
            "bearer": {"type": "http", "scheme": "bearer"},
        }
        made["tags"] = [{"name": name, "description": text} for name, text in _TAGS.items()]
        for operations in made["paths"].values():
            for operation in operations.values():
                if "x-scope" in operation:
                    operation["security"] = [{"token": []}, {"bearer": []}]
                if "requestBody" in operation:
                    operation["responses"] |= {"408": problems.responses(408)[408]}
                # Else it is the name of a function.
                operation["summary"] = operation["description"].partition("\n")[0].rstrip(".")
                for answer in operation["responses"].values():
                    if answer["description"] == "Successful Response":
                        answer["description"] = _of_answer(answer, parts["schemas"])
        app.openapi_schema = made
    return app.openapi_schema
