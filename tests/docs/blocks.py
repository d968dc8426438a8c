"""Reads the fenced code blocks of a page, and runs them as a reader does who pastes them from top to bottom.

The words behind the three backticks decide what happens to a block:

    bash                    run in the terminal of the page, after the blocks above it
    bash serves             the same, but it keeps its terminal; the blocks below it run in a new one
    python                  run as a program in the folder of the page
    ini                     read by `gatekeeper --env-file`
    python NAME, ini NAME   the same, and kept in the folder of the page as the file NAME
    json, text              with `output`: compared with what the block above it has printed
    json, yaml              read as what they are
    nginx NAME              tried by a test of its own
    … not-run="why"         left alone, for a reason that is counted by a test
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.system.sidecar import kill_embedded
from tests.tokens import forge
from tests.waiting import HANG_SECONDS, START_SECONDS, eventually

LANGUAGES: Final = frozenset({"bash", "python", "ini", "json", "yaml", "text", "http", "diff", "mermaid", "nginx"})
_BLOCK_SECONDS: Final = 120.0
_FENCE: Final = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)
_FILE: Final = re.compile(r"[\w-]+\.\w+")


@dataclass(frozen=True)
class Block:
    """One fenced block. `words` are those behind its language, `line` is where its fence opens."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that the block is to be kept in."""
        return next((word for word in self.words if _FILE.fullmatch(word)), None)

    @property
    def not_run(self) -> str | None:
        """The reason why it is left alone."""
        reason = next((word for word in self.words if word.startswith("not-run=")), None)
        return reason and reason.removeprefix("not-run=")

    @property
    def unknown_words(self) -> list[str]:
        known = {self.file, "serves", "output"}
        return [word for word in self.words if word not in known and not word.startswith("not-run=")]


def blocks_of(page: str, text: str) -> list[Block]:
    """Return the fenced blocks of a page, in order, without their indentation."""
    found = []
    for fence in _FENCE.finditer(text):
        language, *words = shlex.split(fence[2]) or [""]
        body = re.sub(rf"^{fence[1]}", "", fence[3], flags=re.MULTILINE)
        found.append(Block(page, text.count("\n", 0, fence.start()) + 1, language, tuple(words), body))
    return found


def indented_blocks(text: str) -> Iterator[int]:
    """Yield the line of every code block that is made by indentation, which has no language."""
    lines = _FENCE.sub(lambda fence: re.sub(r"[^\n]+", "", fence[0]), text).split("\n")
    for number, (before, line) in enumerate(itertools.pairwise(lines), start=2):
        if not before.strip() and re.match(r"    +[^ \-*\d]", line):
            yield number


class Reader:
    """Pastes the blocks of one page into bash, in `folder`, with `ports` instead of those that the page names."""

    def __init__(
        self,
        folder: Path,
        environ: Mapping[str, str],
        ports: Mapping[int, int],
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._environ = dict(environ)
        self._ports = ports
        self._between = between
        self._terminals: list[subprocess.Popen[bytes]] = []
        self._printed = ""
        self._number = 0

    def paste(self, block: Block) -> None:
        """Do with a block what its words say. Raises `AssertionError` with the place of the block."""
        self._between()
        text = self._with_ports(block.text)
        if block.file is not None:
            (self._folder / block.file).write_text(text)
        if block.language == "bash":
            self._bash(block, text)
        elif block.language == "python" and block.file is None:
            self._bash(block, f"python - <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\n")
        elif block.language == "python":
            compile(text, str(block), "exec")
        elif block.language == "ini":
            self._env_file(block, text)
        elif block.language == "yaml":
            list(yaml.safe_load_all(text))
        elif "output" in block.words:
            problem = difference(text, self._printed, as_json=block.language == "json")
            assert problem is None, f"{block}: {problem}\nprinted:\n{self._printed}"
        elif block.language == "json":
            json.loads(text)

    def _with_ports(self, text: str) -> str:
        for shown, used in self._ports.items():
            text = re.sub(rf"(?<![\w.])127\.0\.0\.1:{shown}\b", f"127.0.0.1:{used}", text)
            text = re.sub(rf"--port {shown}\b", f"--port {used}", text)
        return text

    def _bash(self, block: Block, text: str) -> None:
        self._number += 1
        script, done = self._folder / f".block-{self._number}.sh", self._folder / f".done-{self._number}"
        script.write_text(text)
        if "serves" in block.words:
            self._end_servers()
        terminal = self._terminal()
        files = f"</dev/null >{script}.out 2>{script}.err"
        terminal.stdin.write(f". {script} {files}\necho >{done}\n".encode())  # type: ignore[union-attr]
        terminal.stdin.flush()  # type: ignore[union-attr]

        def told() -> str:
            return f"{block}:\n{text}\n{Path(f'{script}.out').read_text()}\n{Path(f'{script}.err').read_text()}"

        if "serves" in block.words:
            self._terminals.append(self._new_terminal())
            eventually(lambda: terminal.poll() is not None or self._serving(), seconds=START_SECONDS)
            assert terminal.poll() is None, told()
            return
        deadline = time.monotonic() + _BLOCK_SECONDS
        while not done.exists():
            assert terminal.poll() is None, told()
            assert time.monotonic() < deadline, f"not done in time: {told()}"
            time.sleep(0.02)
        self._printed = Path(f"{script}.out").read_text()

    def _env_file(self, block: Block, text: str) -> None:
        """Have Gatekeeper read a block of settings. Where it names no key, one is in the environment."""
        path = self._folder / (block.file or f".block-{block.line}.env")
        path.write_text(text)
        given = {name: value for name, value in self._environ.items() if not name.startswith("GATEKEEPER_")}
        if not re.search(r"^GATEKEEPER_(JWT_SECRET|JWT_PUBLIC_KEY|JWKS_URL|SIGNING_KEY)", text, re.MULTILINE):
            given["GATEKEEPER_JWT_SECRET"] = forge.SECRET
        command = [str(Path(sys.executable).parent / "gatekeeper"), "--env-file", str(path), "config"]
        done = subprocess.run(command, cwd=self._folder, env=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}:\n{text}\n{done.stderr}"

    # Terminals

    def _terminal(self) -> subprocess.Popen[bytes]:
        if not self._terminals:
            self._terminals.append(self._new_terminal())
        return self._terminals[-1]

    def _new_terminal(self) -> subprocess.Popen[bytes]:
        # A process group of its own, to be interrupted as a whole as by Ctrl-C.
        return subprocess.Popen(
            ["bash", "--norc", "-e"],
            cwd=self._folder,
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _serving(self) -> bool:
        """Tell whether what was started takes requests; a sidecar, whether it is ready."""
        if not listens(self._ports[8000]):
            return False
        time.sleep(0.2)
        if not listens(self._ports[9090]):
            return True
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._ports[9090]}/readyz", timeout=HANG_SECONDS
            ) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def _end_servers(self) -> None:
        for terminal in self._terminals[:-1]:
            self._end(terminal)
        del self._terminals[:-1]

    def _end(self, terminal: subprocess.Popen[bytes]) -> None:
        """Press Ctrl-C and leave the terminal; kill what does not end by that."""
        if terminal.stdin is not None:
            terminal.stdin.close()
        for number in (signal.SIGINT, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(terminal.pid, number)
            with suppress(subprocess.TimeoutExpired):
                terminal.wait(20)

    def close(self) -> None:
        for terminal in self._terminals:
            self._end(terminal)
        for data_dir in (".gatekeeper", ".gatekeeper/demo"):
            kill_embedded(self._folder / data_dir)


def listens(port: int) -> bool:
    """Tell whether a connection to a port of this machine is taken."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


# What was printed, compared with what a page shows


def difference(shown: str, printed: str, *, as_json: bool) -> str | None:
    """Return what is printed otherwise than shown, or None. Ids, times, tokens and versions may differ."""
    if as_json:
        try:
            return _json_difference(_documents(shown), _documents(printed), "$")
        except ValueError as error:
            return f"not JSON: {error}"
    lines = iter(_masked(printed))
    missing = [line for line in _masked(shown) if line and not any(line == other for other in lines)]
    if not missing:
        return None
    near = difflib.get_close_matches(missing[0], _masked(printed), n=1, cutoff=0)
    return f"no line {missing[0]!r}; the nearest is {near[0] if near else None!r}"


def _masked(text: str) -> list[str]:
    return [re.sub(r"[0-9a-f]*\d[0-9a-f]*", "0", re.sub(r"\s+", " ", line.strip())) for line in text.splitlines()]


def _documents(text: str) -> list[Any]:
    decoder, found, position = json.JSONDecoder(), [], 0
    while text[position:].strip():
        position += len(text[position:]) - len(text[position:].lstrip())
        document, position = decoder.raw_decode(text, position)
        found.append(document)
    return found


def _json_difference(shown: Any, printed: Any, where: str) -> str | None:
    if type(shown) is not type(printed):
        return f"{where} is shown as {shown!r} and printed as {printed!r}"
    if isinstance(shown, dict):
        if list(shown) != list(printed):
            return f"{where} is shown with {list(shown)} and printed with {list(printed)}"
        pairs = [(shown[name], printed[name], f"{where}.{name}") for name in shown]
    elif isinstance(shown, list):
        if len(shown) != len(printed):
            return f"{where} is shown with {len(shown)} members and printed with {len(printed)}"
        pairs = [
            (one, other, f"{where}[{index}]") for index, (one, other) in enumerate(zip(shown, printed, strict=True))
        ]
    else:
        varies = isinstance(shown, int | float) and not isinstance(shown, bool)
        varies = varies or (isinstance(shown, str) and bool(re.search(r"\d|\.\.\.|…", shown)))
        return None if varies or shown == printed else f"{where} is shown as {shown!r} and printed as {printed!r}"
    return next((found for pair in pairs if (found := _json_difference(*pair))), None)
