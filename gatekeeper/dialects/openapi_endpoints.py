"""The endpoints beside the session APIs in the OpenAPI document, made from the table in `endpoints.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gatekeeper.dialects.base import Wording
from gatekeeper.dialects.endpoints import UNKNOWN_CLIENT, Endpoint, Serves
from gatekeeper.dialects.openapi import component, headers_of, renamed, schema_of
from gatekeeper.errors import Reason
from gatekeeper.models import Problem

_TAG: Final = "tokens"
_SHARED: Final = (Reason.INTERNAL_ERROR, Reason.STORE_UNAVAILABLE, Reason.KEYS_UNAVAILABLE)
_CLIENT: Final = {"client": {"type": "http", "scheme": "basic"}}
_WORDING: Final = Wording(request_id="", now=0, language="en")


def add_endpoints(document: dict[str, Any], endpoints: Sequence[Endpoint]) -> None:
    """Adds `endpoints` to `document`. A path pattern appears as the shortest path that it matches."""
    if not endpoints:
        return
    document["tags"].append({"name": _TAG, "description": "Issue, refresh, revoke and introspect tokens."})
    schemas = document["components"]["schemas"]
    for endpoint in endpoints:
        for kind in (endpoint.returns, endpoint.dialect.Error):
            _, components = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
            for name, schema in components.items():
                schemas[component(endpoint.dialect, name)] = renamed(schema, endpoint.dialect)
        if endpoint.dialect.name == "oauth":
            document["components"]["securitySchemes"].update(_CLIENT)
        path = _shortest(endpoint.path)
        document["paths"].setdefault(path, {}).setdefault(endpoint.method.lower(), _described(endpoint, path))


def _shortest(pattern: str) -> str:
    path = pattern.removeprefix("*").replace("*", "any")
    return path if path.startswith("/") else f"/{path}"


def _described(endpoint: Endpoint, path: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": f"{_TAG}_{endpoint.serves.value}{path.replace('/', '_').replace('-', '_').replace('.', '_')}",
        "tags": [_TAG],
        "summary": endpoint.summary,
        "security": _security(endpoint),
        "parameters": [],
        "responses": _responses(endpoint),
    }
    if "*" in endpoint.path:
        described["description"] = f"Every path that matches `{endpoint.path}`; `*` stands for anything."
    if endpoint.accepts:
        kind = "application/x-www-form-urlencoded" if endpoint.form else "application/json"
        members = {name: {"type": "string"} for name, _ in endpoint.accepts}
        required = [name for name, needed in endpoint.accepts if needed]
        schema = {"type": "object", "properties": members, **({"required": required} if required else {})}
        described["requestBody"] = {"required": bool(required), "content": {kind: {"schema": schema}}}
    return described


def _security(endpoint: Endpoint) -> list[dict[str, list[str]]]:
    if endpoint.dialect.name == "oauth":
        return [{"client": []}]
    return [{}, {"bearer": []}] if endpoint.serves is Serves.LOGOUT else []


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    done = {"schema": schema_of(endpoint.dialect, endpoint.returns), "example": endpoint.example}
    responses: dict[str, Any] = {
        "200": {"description": "Done", "headers": headers_of(200), "content": {"application/json": done}}
    }
    by_status: dict[int, list[Reason]] = {}
    upstream = (Reason.UPSTREAM_UNAVAILABLE, Reason.UPSTREAM_TIMEOUT) if endpoint.serves is Serves.LOGIN else ()
    for reason in (*endpoint.refusals, *_SHARED, *upstream):
        by_status.setdefault(reason.status, []).append(reason)
    for status, found in sorted(by_status.items()):
        examples = {reason.code: {"value": _example(endpoint, reason)} for reason in found}
        responses[str(status)] = {
            "description": "; ".join(f"{reason.code}: {reason.detail}".removesuffix(": ") for reason in found),
            "headers": headers_of(status),
            "content": {
                "application/json": {
                    "schema": schema_of(endpoint.dialect, endpoint.dialect.Error),
                    "examples": examples,
                }
            },
        }
    return responses


def _example(endpoint: Endpoint, reason: Reason) -> Any:
    detail = "" if reason.detail else "What is wrong"
    if endpoint.dialect.name == "oauth" and reason is Reason.INVALID_CREDENTIALS:
        detail = UNKNOWN_CLIENT
    return msgspec.to_builtins(endpoint.dialect.word(Problem(reason=reason, detail=detail), _WORDING))
