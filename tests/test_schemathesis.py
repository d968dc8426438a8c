"""Generated requests, good and bad, after the OpenAPI document: what the sidecar answers is what the document says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from gatekeeper.dialects.router import OPENAPI_PATH
from tests.described import Described
from tests.servers import fetch
from tests.system.sidecar import Backend, external_store, sidecar

_COMMAND = Path(sys.executable).parent / "schemathesis"
# A method that a dialect does not name on its path is no error: it is the backend's, and forwarded as protected.
_EXCLUDED = "unsupported_method"
# The document has no links to follow: the stateful phase has nothing to do.
_PHASES = "examples,coverage,fuzzing"
_EXAMPLES = 8


@pytest.mark.slow
def test_generated_requests_find_nothing_that_the_document_does_not_say(tmp_path: Path) -> None:
    settings = {"rate_limit": "off"}  # else most answers would be 429
    with external_store() as store, Backend() as backend, sidecar(backend.url, redis_url=store.url, **settings) as gate:
        command = [str(_COMMAND), "run", f"{gate.url}{OPENAPI_PATH}", "--checks", "all", "--exclude-checks", _EXCLUDED]
        command += ["--phases", _PHASES, "--max-examples", str(_EXAMPLES), "--continue-on-failure", "--no-color"]
        hooks = {"SCHEMATHESIS_HOOKS": "tests.callers", "GATE_URL": gate.url}
        paths = {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
        outside = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        ended = subprocess.run(
            command, cwd=tmp_path, env=outside | hooks | paths, capture_output=True, text=True, timeout=400, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

        seen: dict[tuple[str, str], set[int]] = defaultdict(set)
        for line in gate.access:
            seen[line["method"], line["route"]].add(line["status"])
        described = Described(json.loads(fetch(gate.url, "GET", OPENAPI_PATH).body))
        for (method, path), operation in described.operations.items():
            statuses = seen[method, path.removesuffix("/")]
            assert {200, 401} <= statuses, (method, path, statuses)
            assert {str(status) for status in statuses} <= operation["responses"].keys()
            if "404" in operation["responses"]:
                assert 404 in statuses, (method, path)
