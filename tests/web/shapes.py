"""How each dialect words an error, and where its operations are: read from the tables, so that none is forgotten."""

from __future__ import annotations

import json
import re

from gatekeeper.dialects import DIALECTS
from gatekeeper.dialects.base import Needs, Operation
from tests.servers import ClientResponse
from tests.system.sidecar import someone, token

# One operation of each that lists something, and one that ends something; an administrator may call all of them.
READS = {
    "django": "/api/v1/users/me/sessions/",
    "express": "/api/sessions",
    "fastapi": "/admin/sessions/active",
    "mockstream": "/sessions/me",
    "users_me": "/api/users/me/sessions",
}
ENDS = {
    "django": ("DELETE", "/api/v1/users/me/sessions/all/"),
    "express": ("DELETE", "/api/sessions"),
    "fastapi": ("POST", "/admin/sessions/cleanup"),
    "mockstream": ("DELETE", "/sessions/all"),
    "users_me": ("DELETE", "/api/users/me/sessions?exclude_current=false"),
}
OPERATIONS = [(name, operation) for name, dialect in DIALECTS.items() for operation in dialect.operations]
UNSAFE = [(name, operation) for name, operation in OPERATIONS if operation.method != "GET"]
ADMIN = [(name, operation) for name, operation in OPERATIONS if operation.needs is Needs.ADMIN]


def named(value: object) -> str:
    return f"{value.method} {value.path}" if isinstance(value, Operation) else str(value)


def target(operation: Operation, user: str = "74", session: int = 1) -> str:
    """The operation's path with its parameters filled in."""
    path = operation.path.replace("{user_id}", user)
    return re.sub(r"\{\w+\}", str(session), path)


def admin(user: str | None = None) -> str:
    return token(user or someone(), roles=["user", "admin"])


def error_of(dialect: str, answer: ClientResponse) -> tuple[str, str]:
    """Code (as in the table of rule 6.1; of a 401 of two dialects there is only one) and text of an error in the
    shape of `dialect`, to the last key."""
    body = json.loads(answer.body)
    match dialect:
        case "django":
            assert list(body) == ["success", "error"]
            assert body["success"] is False
            code, text = body["error"].pop("code"), body["error"].pop("message")
            assert not body["error"]
            assert code == code.upper()
        case "express":
            assert list(body) == ["success", "message", "error", "timestamp", "requestId"]
            assert list(body["error"]) == ["code", "details"]
            assert body["success"] is False
            code, text = body["error"]["code"], body["error"]["details"]
            assert code == code.upper()
        case _:
            assert list(body) in (["detail", "code"], ["detail", "code", "reason"])
            code, text = body["code"], body["detail"]
            assert code == code.lower()
    return code.lower(), text


def assert_refused(dialect: str, answer: ClientResponse, status: int, code: str) -> str:
    """An error of Gatekeeper's own in the shape of `dialect`; gives its text."""
    found, text = error_of(dialect, answer)
    expected = "unauthorized" if status == 401 and dialect in {"django", "express"} else code
    assert (answer.status, found) == (status, expected), (answer, code)
    assert answer.get_all("content-type") == ["application/json; charset=utf-8"]
    assert answer.get_all("content-length") == [str(len(answer.body))]
    assert answer.get_all("cache-control") == ["no-store"]
    assert answer.get_all("x-content-type-options") == ["nosniff"]
    assert len(answer.get_all("x-request-id")) == 1
    return text
