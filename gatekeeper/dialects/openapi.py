"""The OpenAPI 3.1 document of the enabled dialects, made from the tables and types that serve their requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from gatekeeper import __version__
from gatekeeper.dialects.base import Dialect, Needs, Operation
from gatekeeper.dialects.examples import error_example, example
from gatekeeper.errors import Reason

_SCHEMA_PATH: Final = "#/components/schemas/{name}"
_UNAUTHORIZED: Final = (
    Reason.TOKEN_MISSING,
    Reason.TOKEN_INVALID,
    Reason.TOKEN_EXPIRED,
    Reason.ACCESS_TOKEN_BLACKLISTED,
    Reason.SESSION_REVOKED_OR_INVALID,
    Reason.SESSION_INACTIVITY_TIMEOUT,
    Reason.SESSION_EXPIRED,
)
_TOKEN_ONLY: Final = (Reason.TOKEN_MISSING, Reason.TOKEN_INVALID)
_SHARED: Final = (
    Reason.BAD_REQUEST,
    Reason.ORIGIN_NOT_ALLOWED,
    Reason.BODY_TOO_LARGE,
    Reason.UNSUPPORTED_MEDIA_TYPE,
    Reason.RATE_LIMITED,
    Reason.INTERNAL_ERROR,
    Reason.STORE_UNAVAILABLE,
    Reason.KEYS_UNAVAILABLE,
)
_PARAMETERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "exclude_current": {"description": "True keeps the session of this request alive."},
    "include_inactive": {"description": "True also lists sessions that ended, except those ended by DELETE."},
    "include_ended": {"description": "True also lists ended sessions that are still kept."},
    "id": {"description": "The id of a session, or `current`."},
    "user_id": {"description": "The user id; defaults to the caller."},
}


class _Enabled(msgspec.Struct, frozen=True):
    """The settings that the document depends on. `fallback` words errors of requests that match no dialect."""

    fallback: Dialect
    debug_for_everybody: bool
    cookies: Sequence[str]


def document(
    dialects: Sequence[Dialect], *, fallback: Dialect, debug_for_everybody: bool, cookies: Sequence[str]
) -> dict[str, Any]:
    """Returns the document for `dialects`. `cookies` are the names of the cookies that may hold a token."""
    components = _schemas(dialects, fallback)
    enabled = _Enabled(fallback, debug_for_everybody, cookies)
    paths: dict[str, dict[str, Any]] = {}
    for dialect in dialects:
        for operation in dialect.operations:
            paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(dialect, operation, enabled)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gatekeeper",
            "version": __version__,
            "description": "Lists and ends the sessions behind the tokens of this API. "
            "Every path works with and without a trailing slash.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": dialect.name, "description": _doc(dialect)} for dialect in dialects],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _security_schemes(cookies)},
    }


def _doc(dialect: Dialect) -> str:
    return (dialect.__doc__ or "").split("\n", 1)[0]


def _schemas(dialects: Sequence[Dialect], fallback: Dialect) -> dict[str, Any]:
    """Returns the types of every dialect under their component names. Of `fallback` only the error type is needed."""
    found: dict[str, Any] = {}
    for dialect in {each.name: each for each in (fallback, *dialects)}.values():
        types = [*(operation.returns for operation in dialect.operations if dialect in dialects), dialect.Error]
        _, components = msgspec.json.schema_components(types, ref_template=_SCHEMA_PATH)
        for name, schema in components.items():
            found[component(dialect, name)] = renamed(schema, dialect)
    return found


def component(dialect: Dialect, type_name: str) -> str:
    """Returns the component name of a type: `express_Listed` for `ExpressListed`."""
    return f"{dialect.name}_{_bare(dialect, type_name)}"


def _bare(dialect: Dialect, type_name: str) -> str:
    """Cuts the dialect off a type name: `Listed` for the type `ExpressListed` of the dialect `express`."""
    return type_name.removeprefix("".join(part.capitalize() for part in dialect.name.split("_")))


def schema_of(dialect: Dialect, kind: Any) -> Any:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_SCHEMA_PATH)
    return renamed(schema, dialect)


def renamed(schema: Any, dialect: Dialect) -> Any:
    """Returns `schema` with its titles and references changed to the component names of the dialect."""
    if isinstance(schema, list):
        return [renamed(item, dialect) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: renamed(value, dialect) for key, value in schema.items()}
    if isinstance(schema.get("title"), str):
        found["title"] = _bare(dialect, schema["title"])
    if "$ref" in schema:
        folder, _, name = schema["$ref"].rpartition("/")
        found["$ref"] = f"{folder}/{component(dialect, name)}"
    return found


def _operation(dialect: Dialect, operation: Operation, enabled: _Enabled) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _operation_id(dialect, operation),
        "tags": [dialect.name],
        "summary": operation.summary,
        "security": [{"bearer": []}, *({f"cookie_{name}": []} for name in enabled.cookies)],
        "parameters": _parameters(operation),
        "responses": _responses(dialect, operation, enabled),
    }
    if operation.method not in {"GET", "HEAD"}:
        described["requestBody"] = {
            "required": bool(operation.accepts),
            "content": {"application/json": {"schema": _request_body(operation)}},
        }
    return described


def _request_body(operation: Operation) -> dict[str, Any]:
    # Without a type: any other value is accepted and ignored.
    language = {"description": "Language of the messages: en or fr.", "examples": ["fr"]}
    found: dict[str, Any] = {"type": "object", "properties": {"language": language, **operation.accepts}}
    if operation.accepts:
        found["required"] = list(operation.accepts)
    return found | ({"additionalProperties": False} if operation.is_strict else {})


def _operation_id(dialect: Dialect, operation: Operation) -> str:
    """Returns a unique name; the second path of a handler gets the suffix `_2`, and so on."""
    same = [other for other in dialect.operations if other.handler is operation.handler]
    name = f"{dialect.name}_{getattr(operation.handler, '__name__', 'operation')}"
    return name if same[0] is operation else f"{name}_{same.index(operation) + 1}"


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    def parameter(name: str, where: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "in": where, "required": where == "path", "schema": schema, **_PARAMETERS.get(name, {})}

    return [
        *(parameter(name, "path", {"type": "string"}) for name in re.findall(r"\{(\w+)\}", operation.path)),
        *(parameter(n, "query", {"type": "boolean", "default": default}) for n, default in operation.flags.items()),
        *(parameter(name, "query", {"type": "string"}) for name in operation.texts),
    ]


def _responses(dialect: Dialect, operation: Operation, enabled: _Enabled) -> dict[str, Any]:
    done = {"schema": schema_of(dialect, operation.returns), "example": example(operation)}
    responses: dict[str, Any] = {
        "200": {"description": "Done", "headers": headers_of(200), "content": {"application/json": done}}
    }
    needs_admin = operation.needs is Needs.ADMIN or (operation.needs is Needs.DEBUG and not enabled.debug_for_everybody)
    reasons = [
        *(_TOKEN_ONLY if operation.needs is Needs.TOKEN else (*_UNAUTHORIZED, Reason.SESSION_LIMIT_EXCEEDED)),
        *((Reason.FORBIDDEN,) if needs_admin else ()),
        *operation.refusals,
        *_SHARED,
    ]
    by_status: dict[int, list[Reason]] = {}
    for reason in reasons:
        by_status.setdefault(reason.status, []).append(reason)
    for status, found in sorted(by_status.items()):
        refused: dict[str, Any] = {"schema": schema_of(dialect, dialect.Error)}
        if status == 400 and "{" in operation.path and dialect.Error is not enabled.fallback.Error:
            # A path with a bad parameter is refused before it is matched to a dialect.
            refused["schema"] = {"anyOf": [refused["schema"], schema_of(enabled.fallback, enabled.fallback.Error)]}
        refused["examples"] = {reason.code: {"value": error_example(dialect, operation, reason)} for reason in found}
        responses[str(status)] = {
            "description": "; ".join(f"{reason.code}: {reason.detail}".removesuffix(": ") for reason in found),
            "headers": headers_of(status),
            "content": {"application/json": refused},
        }
    return responses


def headers_of(status: int) -> dict[str, Any]:
    text = {"schema": {"type": "string"}}
    found: dict[str, Any] = {"X-Request-Id": {"description": "Finds the request in the log", **text}}
    if status == 401:
        found["WWW-Authenticate"] = {"description": "RFC 6750 section 3", **text}
    if status in {429, 503}:
        found["Retry-After"] = {"description": "Seconds", "schema": {"type": "integer"}}
    return found


def _security_schemes(cookies: Sequence[str]) -> dict[str, Any]:
    return {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        **{f"cookie_{name}": {"type": "apiKey", "in": "cookie", "name": name} for name in cookies},
    }
