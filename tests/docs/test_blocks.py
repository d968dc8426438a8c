"""Every code block of the documentation does what it says: pasted as it stands, from the top of its page down."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.docs.blocks import LANGUAGES, Block, Reader, blocks_of, difference, indented_blocks, listens
from tests.system.sidecar import eventually, external_store
from tests.waiting import START_SECONDS

_ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    {
        path.relative_to(_ROOT).as_posix()
        for path in [*_ROOT.glob("*.md"), *_ROOT.glob("docs/**/*.md"), _ROOT / "bench" / "README.md"]
    }
)
# Pages whose examples are those of the demo, which their readers have started as the README says.
_WITH_DEMO = ("docs/dialects.md",)
# Pages that are run by tests of their own, in front of the backends that they are about (tests/recipes).
_RECIPES = "docs/recipes/"
# Pages that speak of a store of the reader's own.
_WITH_STORE = ("docs/operations.md",)
# A page that shows how Gatekeeper is installed, so that it is not there before.
_NOT_INSTALLED = ("README.md",)
# Of the checkout, what no block of a page needs.
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "vectors", "golden", "node_modules")


def _blocks(page: str) -> list[Block]:
    return blocks_of(page, (_ROOT / page).read_text(encoding="utf-8"))


def _runs(page: str) -> bool:
    if page.startswith(_RECIPES):
        return False
    return any(block.language in {"bash", "python", "ini"} and not block.not_run for block in _blocks(page))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_and_known_words(page: str) -> None:
    for block in _blocks(page):
        assert block.language in LANGUAGES, f"{block}: {block.language!r}; accepted: {sorted(LANGUAGES)}"
        assert not block.unknown_words, f"{block}: {block.unknown_words}"
        assert block.not_run is None or len(block.not_run) > 10, f"{block}: give a reason"
    text = (_ROOT / page).read_text(encoding="utf-8")
    indented = list(indented_blocks(text))
    assert not indented, f"{page}: lines {indented}: a code block without a fence has no language"
    assert text.count("```") == 2 * len(_blocks(page)), f"{page}: a fence is not closed"


def test_few_blocks_are_left_alone_and_each_for_a_reason() -> None:
    left = [f"{block.page}: {block.not_run}" for page in PAGES for block in _blocks(page) if block.not_run]
    assert len(left) <= 14, left


def test_a_command_is_not_hidden_in_a_block_of_text() -> None:
    commands = ("curl ", "gatekeeper ", "make ", "export ", "pip ", "docker ", "python ", "$ ")
    for page in PAGES:
        for block in _blocks(page):
            if block.language not in {"bash", "python"}:
                lines = block.text.splitlines()
                assert not [line for line in lines if line.startswith(commands)], str(block)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in PAGES if _runs(page)])
def test_the_blocks_of_a_page_run_as_pasted(page: str, tmp_path: Path) -> None:
    with _reader(page, tmp_path) as reader:
        for block in _blocks(page):
            if not block.not_run:
                reader.paste(block)


@contextmanager
def _reader(page: str, tmp_path: Path) -> Iterator[Reader]:
    """A reader of a page in a copy of the checkout, with Gatekeeper installed as `make` does it."""
    folder = tmp_path / "gatekeeper"
    shutil.copytree(_ROOT, folder, ignore=_LEFT_OUT)
    _installed(folder)
    ports = dict(zip((8000, 8080, 9090), _free_ports(3), strict=True))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GATEKEEPER_")}
    environ |= {
        "GATEKEEPER_LISTEN": f"127.0.0.1:{ports[8000]}",
        "GATEKEEPER_OPS_LISTEN": f"127.0.0.1:{ports[9090]}",
    }
    path = [entry for entry in os.environ["PATH"].split(os.pathsep) if not (Path(entry) / "gatekeeper").exists()]
    environ["PATH"] = os.pathsep.join(path if page in _NOT_INSTALLED else [str(Path(sys.executable).parent), *path])
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with ExitStack() as running:
        if page in _WITH_STORE:
            environ["GATEKEEPER_REDIS_URL"] = running.enter_context(external_store()).url
        backend = _Backend(folder, ports[8080])
        running.callback(backend.close)
        reader = Reader(folder, environ, ports, backend.start)
        running.callback(reader.close)
        if page in _WITH_DEMO:
            reader.paste(Block(page, 0, "bash", ("serves",), "gatekeeper demo\n"))
        yield reader


def _installed(folder: Path) -> None:
    """Make a `.venv` that `make` takes for complete, and that is this interpreter's."""
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    makefile = (_ROOT / "Makefile").read_text(encoding="utf-8")
    version = makefile.partition("UV_VERSION := ")[2].split()[0]
    for stamp in (f".uv-{version}", ".installed", ".installed-dev"):
        (folder / ".venv" / stamp).touch()


class _Backend:
    """The backend of the reader's own that some pages assume. It signs with what they have put into `jwt-secret`."""

    def __init__(self, folder: Path, port: int) -> None:
        self._secret, self._port = folder / "jwt-secret", port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it if the secret is there by now."""
        if self._process is None and self._secret.exists():
            command = [sys.executable, "-m", "tests.docs.demo_backend", str(self._secret), str(self._port)]
            process = self._process = subprocess.Popen(command, cwd=_ROOT)
            eventually(lambda: process.poll() is not None or listens(self._port), seconds=60)
            assert process.poll() is None

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_SECONDS)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports: list[int] = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


# The comparison itself


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ('{"id": 5, "on": true}', '{"id":71,"on":true}', True),
        ('{"id": 5, "on": true}', '{"id":71,"on":false}', False),
        ('{"code": "a"}', '{"code": "b"}', False),
        ('{"at": "2026-11-21T06:58:33Z"}', '{"at": "2026-11-30T00:00:00Z"}', True),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ("[1, 2]", "[1]", False),
        ("[] {}", "[]\n{}", True),
        ("[] {}", "[]", False),
    ],
)
def test_json_may_differ_in_ids_and_times_only(shown: str, printed: str, same: bool) -> None:
    assert (difference(shown, printed, as_json=True) is None) == same


def test_text_may_leave_lines_out_but_not_change_them() -> None:
    printed = "one 12\ntwo\nthree\n"
    assert difference("one 7\nthree", printed, as_json=False) is None
    assert difference("three\none 7", printed, as_json=False) is not None
    assert difference("four", printed, as_json=False) is not None
