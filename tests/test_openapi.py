"""The OpenAPI document describes exactly what is served."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from gatekeeper.build import build
from gatekeeper.dialects import DIALECTS
from gatekeeper.dialects.router import OPENAPI_PATH
from gatekeeper.settings import load
from tests.contracts.dialect import toggled
from tests.described import Described
from tests.middleware.host import environ_for, mounted
from tests.system.sidecar import Store, World, external_store, someone, token

CHOICES = [{}, {"dialects": "express", "error_dialect": "django"}, {"dialects": "django,fastapi"}]
CHOICES += [{"debug_endpoints": "true", "error_dialect": "express", "token_sources": "header,cookie:a,cookie:b"}]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with external_store() as running:
        yield running


@pytest.fixture(scope="module", params=CHOICES, ids=["defaults", "one", "two", "others"])
def chosen(store: Store, request: pytest.FixtureRequest) -> Iterator[tuple[World, dict[str, str]]]:
    with mounted(store, **request.param) as world:
        yield world, request.param


@pytest.fixture
def world(chosen: tuple[World, dict[str, str]]) -> World:
    return chosen[0]


@pytest.fixture
def described(world: World) -> Described:
    return Described(json.loads(world.fetch(OPENAPI_PATH).body))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def test_the_document_is_valid(described: Described) -> None:
    assert described.document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(described.document).validate()


def test_it_needs_no_token_and_no_round_trip(world: World) -> None:
    before = world.store.scripts_run
    for path in (OPENAPI_PATH, toggled(OPENAPI_PATH)):
        answer = world.fetch(path)
        assert (answer.status, answer.get_all("content-type")) == (200, ["application/json; charset=utf-8"])
        head = world.fetch(path, method="HEAD")
        assert (head.status, head.body, head.get_all("content-length")) == (200, b"", [str(len(answer.body))])
        # A token that is no good is no matter.
        assert world.fetch(path, "x").body == answer.body
    assert world.store.scripts_run == before


def test_it_describes_exactly_what_is_served(
    chosen: tuple[World, dict[str, str]], described: Described, store: Store
) -> None:
    engine = build(load(environ_for(store, **chosen[1])), mode="middleware")
    served = {tuple(claimed.split(" ", 1)) for claimed in engine.claimed} - {("GET", OPENAPI_PATH)}
    assert {(method, path.removesuffix("/")) for method, path in described.operations} == served
    names = chosen[1].get("dialects", ",".join(DIALECTS)).split(",")
    assert [tag["name"] for tag in described.document["tags"]] == names


def test_every_operation_that_it_describes_is_gatekeepers_own(world: World, described: Described) -> None:
    for (method, path), operation in described.operations.items():
        answer = world.refused(re.sub(r"\{\w+\}", "1", path), method=method)
        assert answer.status == 401
        described.validate(operation, answer)


def test_what_is_switched_off_is_neither_described_nor_served(store: Store) -> None:
    with mounted(store, dialects="mockstream") as world:
        described = Described(json.loads(world.fetch(OPENAPI_PATH).body))
        for name, dialect in DIALECTS.items():
            for operation in dialect.operations:
                shown = (operation.method, operation.path) in described.operations
                assert shown is (name == "mockstream")
                path = re.sub(r"\{\w+\}", "1", operation.path)
                if name == "native":
                    assert world.refused(path, token(someone()), method=operation.method).status == 404
                elif not shown:
                    assert world.passed(path, token(someone()), method=operation.method).target == path


def test_operation_ids_are_unique_and_name_the_dialect(described: Described) -> None:
    ids = [operation["operationId"] for operation in described.operations.values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", each) for each in ids)
    for operation in described.operations.values():
        assert operation["operationId"].startswith(f"{operation['tags'][0]}_")
    if "django" in (tag["name"] for tag in described.document["tags"]):
        assert {"user_session_management", "user_session_detail"} <= {
            match[1] for each in ids if (match := re.match(r"django_(user_session_\w+?)_(?:list|destroy)", each))
        }


def test_every_reference_resolves_and_every_schema_is_used(described: Described) -> None:
    schemas = described.document["components"]["schemas"]
    references = set(_references(described.document))
    assert references == {f"#/components/schemas/{name}" for name in schemas}


def test_every_operation_names_its_security_and_its_path_parameters(described: Described) -> None:
    schemes = set(described.document["components"]["securitySchemes"])
    for (_, path), operation in described.operations.items():
        assert {name for each in operation["security"] for name in each} == schemes
        parameters = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
        assert parameters == re.findall(r"\{(\w+)\}", path)
        assert all(each["required"] for each in operation["parameters"] if each["in"] == "path")


def test_the_cookies_that_may_hold_a_token_are_those_of_the_settings(
    chosen: tuple[World, dict[str, str]], described: Described
) -> None:
    schemes = described.document["components"]["securitySchemes"]
    cookies = [scheme["name"] for scheme in schemes.values() if scheme.get("in") == "cookie"]
    assert cookies == (["a", "b"] if "token_sources" in chosen[1] else ["access_token"])


def test_debugging_needs_an_administrator_unless_it_is_for_everybody(
    chosen: tuple[World, dict[str, str]], described: Described
) -> None:  # C-09, C-30
    operation = described.operations.get(("GET", "/debug/session-info"))
    if operation is not None:
        forbidden = "forbidden" in operation["responses"]["403"]["description"]
        assert forbidden is ("debug_endpoints" not in chosen[1])


def test_every_example_is_what_its_schema_says(described: Described) -> None:
    found = 0
    for operation in described.operations.values():
        for status, response in operation["responses"].items():
            (content,) = response["content"].values()
            examples = [each["value"] for each in content.get("examples", {}).values()]
            examples += [content["example"]] if "example" in content else []
            assert examples, (operation["operationId"], status)
            for each in examples:
                OAS31Validator(described.schema(content["schema"])).validate(each)
                found += 1
    assert found > 50


def test_an_example_reads_as_the_answer_does(store: Store) -> None:
    """Made by the handler that serves: no member more or less, in the same order."""
    with mounted(store) as world:
        described = Described(json.loads(world.fetch(OPENAPI_PATH).body))
        for path in ("/api/v1/users/me/sessions/", "/api/sessions", "/sessions/me", "/api/users/me/sessions"):
            content = described.operations["GET", path]["responses"]["200"]["content"]["application/json"]
            answer = json.loads(world.fetch(path, token(someone())).body)
            assert _names(content["example"]) == _names(answer)
        refused = described.operations["GET", "/api/sessions"]["responses"]["401"]["content"]["application/json"]
        examples = [each["value"] for each in refused["examples"].values()]
        assert examples[0] == json.loads(world.fetch("/api/sessions").body) | {
            "timestamp": examples[0]["timestamp"],
            "requestId": "550e8400-e29b-41d4-a716-446655440000",
        }


def _names(value: Any) -> Any:
    if isinstance(value, dict):
        # Without a data set nobody is anywhere.
        return [(name, _names(each if name != "location_data" else None)) for name, each in value.items()]
    return [_names(each) for each in value[:1]] if isinstance(value, list) else None
