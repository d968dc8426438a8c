"""The OpenAPI document as a judge of answers."""

from __future__ import annotations

import json
import re
from typing import Any

from openapi_schema_validator import OAS31Validator

from tests.servers import ClientResponse


class Described:
    """`/_gatekeeper/openapi.json`, and what it says of requests and answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        # Literal before parameter, as paths are matched.
        templates = sorted(document["paths"], key=lambda path: [part.startswith("{") for part in path.split("/")])
        self._paths = [
            (re.compile(re.sub(r"\{\w+\}", "[^/]+", path.removesuffix("/")) + r"/?"), path) for path in templates
        ]

    @property
    def operations(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Every operation by its method and path."""
        return {
            (method.upper(), path): operation
            for path, item in self.document["paths"].items()
            for method, operation in item.items()
        }

    def find(self, method: str, target: str) -> dict[str, Any] | None:
        """The operation that serves a request, if the document has one."""
        asked = "GET" if method == "HEAD" else method
        for regex, path in self._paths:
            if regex.fullmatch(target.partition("?")[0]) and (asked, path) in self.operations:
                return self.operations[asked, path]
        return None

    def schema(self, reference: Any) -> dict[str, Any]:
        """A schema that stands for itself, and allows no member that it does not name."""
        return {"components": _strict(self.document["components"]), **_strict(reference)}

    def validate(self, operation: dict[str, Any], answer: ClientResponse) -> None:
        """Raises where the document does not describe `answer` to the last member."""
        response = operation["responses"][str(answer.status)]
        for name in response.get("headers", {}):
            assert len(answer.get_all(name)) == 1, name
        if answer.body:
            (media_type,) = response["content"]
            assert answer.get_all("content-type") == [f"{media_type}; charset=utf-8"]
            validator = OAS31Validator(self.schema(response["content"][media_type]["schema"]))
            validator.validate(json.loads(answer.body))


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if schema.get("type") == "object" and "properties" in schema else {}
    return {key: _strict(value) for key, value in schema.items()} | closed
