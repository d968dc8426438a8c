"""The page on dialects is right: its examples are what is described, and the dialect that it adds is served."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from openapi_schema_validator import OAS31Validator

from tests.described import Described
from tests.system.sidecar import World

_ROOT = Path(__file__).parent.parent.parent
_PAGE = (_ROOT / "docs" / "dialects.md").read_text(encoding="utf-8")
_SIXTH = _PAGE.partition("\n## Adding a sixth\n")[2]
_CALL = re.compile(
    r"^curl -s (?:-X (\w+) )?'?http://127\.0\.0\.1:8000(/[^' ]*)'?[^\n]*\n```\n\n```json[^\n]*\n(.*?)^```",
    re.MULTILINE | re.DOTALL,
)

# What the dialect of the page answers, asked by somebody who has two sessions.
_ASKED = """
import json, os, sys
from tests.middleware.host import mounted
from tests.system.sidecar import external_store, someone, token

with external_store() as store, mounted(store, dialects="express,harbour", error_dialect="harbour") as world:
    user = someone()
    laptop, phone = token(user), token(user)
    world.passed("/", phone)
    listed = world.fetch("/v2/devices", laptop)
    mine, other = [row["key"] for row in json.loads(listed.body)["devices"]]
    answers = [
        listed,
        world.fetch("/v2/devices/" + other + "/", token(someone()), method="DELETE"),
        world.fetch("/v2/devices/" + other, laptop, method="DELETE"),
        world.fetch("/v2/devices/" + other, laptop, method="DELETE", headers=[("Accept-Language", "fr")]),
        world.fetch("/v2/devices/x", None, method="DELETE"),
        world.fetch("/elsewhere", phone),
        world.fetch("/api/sessions", laptop),
        world.fetch("/_gatekeeper/openapi.json"),
    ]
    assert world.passed("/v2/devices", laptop, method="PUT").target == "/v2/devices"
print(json.dumps([[answer.status, json.loads(answer.body)] for answer in answers]))
"""


def test_the_examples_are_what_the_document_describes(world: World) -> None:
    described = Described(json.loads(world.fetch("/_gatekeeper/openapi.json").body))
    shown = _CALL.findall(_PAGE.partition("\n## Adding a sixth\n")[0])
    assert len(shown) >= 15
    for method, target, text in shown:
        operation = described.find(method or "GET", target)
        assert operation is not None, target
        example = json.loads(text)
        fits = [
            status
            for status, response in operation["responses"].items()
            if OAS31Validator(described.schema(response["content"]["application/json"]["schema"])).is_valid(example)
        ]
        assert fits, target


@pytest.mark.slow
def test_the_dialect_that_the_page_adds_is_served_like_the_others(tmp_path: Path) -> None:
    for folder in ("gatekeeper", "middleware"):
        shutil.copytree(_ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (source,) = re.findall(r"```python[^\n]*\n(.*?)```", _SIXTH, re.DOTALL)
    (tmp_path / "gatekeeper" / "dialects" / "harbour.py").write_text(source, encoding="utf-8")
    for path, diff in re.findall(r"\(?`(gatekeeper/[\w/]+\.py)`\)?:\n\n```diff\n(.*?)```", _SIXTH, re.DOTALL):
        lines = diff.splitlines()
        text = (tmp_path / path).read_text(encoding="utf-8")
        for old, new in zip(lines[::2], lines[1::2], strict=True):
            assert (old[0], new[0], text.count(old[1:])) == ("-", "+", 1), old
            text = text.replace(old[1:], new[1:])
        (tmp_path / path).write_text(text, encoding="utf-8")
    paths = [tmp_path, tmp_path / "middleware", _ROOT]
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ASKED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    listed, foreign, released, french, no_token, revoked, express, document = json.loads(ended.stdout)

    assert listed[0] == 200
    devices = listed[1]["devices"]
    assert [list(row) for row in devices] == [["key", "label", "seen"]] * 2
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["seen"]) for row in devices)
    not_there = {"problem": "session-not-found", "text": "Session not found or already terminated"}
    assert foreign == [404, not_there]
    assert json.loads(_CALL.findall(_SIXTH)[0][2]) == not_there
    assert released == [200, {"released": devices[1]["key"], "text": "Session revoked"}]
    assert french == [404, {"problem": "session-not-found", "text": "Session introuvable ou déjà terminée"}]
    assert no_token == [401, {"problem": "token-missing", "text": "Authentication credentials were not provided"}]
    # Where no dialect was asked, its errors are the fallback.
    assert revoked[1]["problem"] == "session-revoked-or-invalid"
    assert (express[0], len(express[1]["data"])) == (200, 1)
    described = Described(document[1])
    assert {("GET", "/v2/devices"), ("DELETE", "/v2/devices/{key}")} < described.operations.keys()
    for method, path, (status, body) in [("GET", "/v2/devices", listed), ("DELETE", "/v2/devices/{key}", foreign)]:
        response = described.operations[method, path]["responses"][str(status)]
        OAS31Validator(described.schema(response["content"]["application/json"]["schema"])).validate(body)
