"""The import contracts of pyproject.toml catch what they are there for: each violation is planted in a copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parent.parent
_LINT = Path(sys.executable).with_name("lint-imports")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("gatekeeper", "middleware"):
        shutil.copytree(_ROOT / folder, tmp_path / folder, ignore=ignore)
    shutil.copy(_ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def _broken(copy: Path) -> list[str]:
    """The names of the contracts that are broken in `copy`."""
    environment = {**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'middleware'}", "COLUMNS": "300"}
    command = [str(_LINT), "--no-logo", "--no-cache"]
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in run.stdout.splitlines()]
    broken = [line.removesuffix(" BROKEN") for line in lines if line.endswith(" BROKEN")]
    assert any(line.startswith("Contracts:") for line in lines) or "exhaustive" in run.stdout + run.stderr, run
    assert (run.returncode != 0) == bool(broken), run.stdout + run.stderr
    return broken


def test_the_contracts_hold_as_it_stands(copy: Path) -> None:
    assert _broken(copy) == []


ROOMS = "The rooms: imports point down, and every module has its place"
PURE = "What is pure stays pure"
STORE = "The store client knows errors, and no session"
HOSTS = "The middleware is a host: no room below knows it"
SETTINGS = "Components take plain arguments, never the settings"


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("gatekeeper/stray.py", "from gatekeeper.serve import run", ROOMS),
        ("gatekeeper/http/request_head.py", "import starlette.requests, pydantic, structlog", PURE),
        ("gatekeeper/http/request_head.py", "import asyncio", PURE),
        ("gatekeeper/store/errors.py", "from gatekeeper.sessions import device", ROOMS),
        ("gatekeeper/store/errors.py", "import gatekeeper.http.grammar", STORE),
        ("gatekeeper/store/errors.py", "from gatekeeper.store import client", "Inside store: imports point down"),
        ("gatekeeper/sessions/events.py", "import gatekeeper.sessions.device", "Inside sessions: imports point down"),
        ("gatekeeper/http/headers.py", "import gatekeeper.net", "HTTP knows errors, and no store"),
        ("gatekeeper/sessions/stray.py", "import gatekeeper.models", "Inside sessions: imports point down"),
        ("gatekeeper/web/outcome.py", "from gatekeeper.web import pipeline", "Inside web: imports point down"),
        ("gatekeeper/upstream/http1.py", "from gatekeeper.upstream import pool", "Inside upstream: imports point down"),
        ("gatekeeper/forward/http.py", "import gatekeeper_middleware", HOSTS),
        ("gatekeeper/web/pipeline.py", "from gatekeeper.settings import load", SETTINGS),
    ],
)
def test_a_planted_violation_is_caught(copy: Path, file: str, line: str, contract: str) -> None:
    path = copy / file
    path.write_text((path.read_text() if path.exists() else "") + f"\n{line}\n")
    assert contract in _broken(copy)
