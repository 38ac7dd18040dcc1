"""Write the list of endpoints in docs/reference/api.md, from the API's own OpenAPI document: `make docs`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from conserver.api import create_app
from conserver.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "api.md"
BEGIN, END = "<!-- endpoints: written by tools/api_reference.py -->", "<!-- end of endpoints -->"
_TYPES = {"boolean": "true or false", "integer": "whole number", "string": "text"}
#: What the page tells in a section of its own.
_ELSEWHERE = {
    "Idempotency-Key": "see [Idempotency-Key](#idempotency-key)",
    "If-Match": "see [versions](#versions)",
    "If-None-Match": "see [versions](#versions)",
}


def document() -> dict[str, Any]:
    """Return the OpenAPI document as a client of an API without tokens gets it."""
    app = create_app(Settings(config_file=ROOT / "config.yml"), "redis://localhost")

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get("/openapi.json")

    answer = asyncio.run(ask()).raise_for_status()
    return dict(answer.json())


def endpoints(described: dict[str, Any]) -> str:
    """Write the sections of the page: one a tag, and in it one an operation."""
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    out: list[str] = []
    for tag in described["tags"]:
        out += [f"### {tag['name']}", "", tag["description"], ""]
        for name, operation in operations:
            if tag["name"] in operation["tags"]:
                out += [f"#### `{name}`", "", *_lines(operation), ""]
    return "\n".join(out).rstrip()


def _lines(operation: dict[str, Any]) -> Iterator[str]:
    yield re.sub(r"\s+", " ", operation["description"])
    yield ""
    yield f"Scope: {_scope(operation.get('x-scope', ''))}."
    if body := operation.get("requestBody"):
        yield f"Body: {_body(body)}."
    if parameters := operation.get("parameters"):
        yield ""
        yield "| parameter | | |"
        yield "|---|---|---|"
        for parameter in parameters:
            schema = parameter["schema"]
            text = _ELSEWHERE.get(parameter["name"]) or parameter.get("description") or schema["description"]
            yield f"| `{parameter['name']}` | {_kind(parameter)} | {_cell(text)} |"
    yield ""
    good = {status: answer for status, answer in sorted(operation["responses"].items()) if status < "400"}
    for status, answer in good.items():
        yield f"- {status}: {_answer(answer)}"
    if bad := sorted(set(operation["responses"]) - set(good)):
        yield f"- {', '.join(bad)}: [a problem](#errors)"


def _scope(scope: str) -> str:
    if not scope:
        return "none, it is for everybody"
    return re.sub(r"\b(read|write|admin|ingress_auth|ingress:<list>)", r"`\1`", scope)


def _body(body: dict[str, Any]) -> str:
    types = ", ".join(f"`{kind}`" for kind in body["content"])
    text = body.get("description", "").rstrip(".")
    schema = next(iter(body["content"].values()))["schema"]
    members = [
        f"`{name}`{' (required)' * (name in schema.get('required', ()))}" for name in schema.get("properties", {})
    ]
    # The members of a vCon are on a page of their own.
    parts = [text or schema.get("description", "").rstrip("."), types]
    if members and "uuid" not in schema["properties"]:
        parts.append("members " + ", ".join(members))
    return "; ".join(part for part in parts if part)


def _kind(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    one = next((s for s in schema.get("anyOf", ()) if s["type"] != "null"), schema)
    kind: str
    if one["type"] == "array":
        kind = "list"
    elif "enum" in one:
        kind = " or ".join(f"`{value}`" for value in one["enum"])
    else:
        kind = "time" if one.get("format") == "date-time" else _TYPES.get(one["type"], one["type"])
    if "minimum" in one and one.get("maximum", 2**31) < 2**31:
        kind += f" from {one['minimum']:g} to {one['maximum']:,.12g}"
    where = "" if parameter["in"] == "query" else f", {parameter['in']}"
    default = schema.get("default")
    if parameter.get("required"):
        return f"{kind}{where}, required" if parameter["in"] != "path" else f"{kind}{where}"
    if default in (None, "", []):
        return f"{kind}{where}"
    return f"{kind}{where}, default {str(default).lower() if isinstance(default, bool) else default}"


def _answer(answer: dict[str, Any]) -> str:
    headers = ", ".join(f"`{name}`" for name in answer.get("headers", {}))
    return f"{answer['description'].rstrip('.')}{'; headers ' * bool(headers)}{headers}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page(text: str, described: dict[str, Any]) -> str:
    """Return the text of the page with what stands between its marks written anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{endpoints(described)}\n\n{END}{after}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text(), document()))


if __name__ == "__main__":
    main()
