"""The load on a peer, made on the cores that are not its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from bench import tools
from bench.lab import Lab
from bench.machine import Cores, other_cores, proxy_cores

_UNANSWERED_SECONDS: Final = 60.0
_OPENING_SECONDS: Final = 900.0

Figures = dict[str, float]


class Broken(Exception):
    """The load met refusals or broken connections: what was measured is not the work that was meant."""


def wrk(
    lab: Lab,
    port: int,
    path: str,
    *,
    connections: int,
    seconds: float,
    body_bytes: int = 0,
    cores: Cores | None = None,
) -> Figures:
    """As much as the peer bears over `connections`, each waiting for its answer. Raises `Broken`."""
    tokens = lab.few_tokens_file if body_bytes else lab.tokens_file
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
    command += ["-s", str(tools.HERE / "requests.lua"), f"http://127.0.0.1:{port}{path}", "--"]
    return _figures([*command, str(tokens), "POST" if body_bytes else "GET", str(body_bytes)], seconds, cores)


def constant_rate(lab: Lab, port: int, path: str, *, connections: int, rate: float, seconds: float) -> Figures:
    """Latencies at that rate, in microseconds, from when each request was due. Raises `Broken`."""
    command = [tools.python(), "-m", "bench.constant_rate", str(port), str(connections), str(rate), str(seconds)]
    return _figures([*command, path, str(lab.tokens_file)], seconds)


def messages(lab: Lab, port: int, *, connections: int, seconds: float, size_bytes: int) -> Figures:
    """WebSocket messages there and back. Raises `Broken`."""
    command = [tools.python(), "-m", "bench.messages", str(port), str(connections), str(seconds), str(size_bytes)]
    return _figures([*command, str(lab.tokens_file)], seconds)


def checks(port: int, *, rounds: int, seconds: float, sessions: int) -> dict[str, Any]:
    """Gatekeeper's store client alone, on the core of the peers (`checks.py`)."""
    command = [tools.python(), "-m", "bench.checks", str(port), str(rounds), str(seconds), str(sessions)]
    found: dict[str, Any] = _run(command, rounds * seconds * 10 + _OPENING_SECONDS, proxy_cores())
    return found


def _figures(command: Sequence[str], seconds: float, cores: Cores | None = None) -> Figures:
    figures: Figures = _run(command, seconds, cores)
    for name in ("refused", "broken", "unanswered"):
        if figures.get(name):
            raise Broken(f"{figures[name]} of {figures['requests']} {name}")
    if not figures["requests"]:
        raise Broken("not one answer in time")
    return figures


def _run(command: Sequence[str], seconds: float, cores: Cores | None = None) -> Any:
    """The JSON that a program ends with, which runs for about so long. Raises `Broken`."""
    process = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + _UNANSWERED_SECONDS,
        cwd=tools.HERE.parent,
        preexec_fn=partial(os.sched_setaffinity, 0, cores or other_cores()),
    )
    lines = [line for line in process.stdout.splitlines() if "{" in line]
    if process.returncode or not lines:
        raise Broken(f"{command[0]} failed: {(process.stderr or process.stdout)[-500:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def hold_idle(stack: ExitStack, lab: Lab, port: int, connections: int) -> None:
    """Opens connections that have each had one answer and stay open, silent. Raises `OSError`, `Broken`."""
    opened: list[socket.socket] = []
    for number in range(connections):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        token = lab.tokens[number % len(lab.tokens)]
        connection.sendall(f"GET /small HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        received = connection.recv(65_536)
        if not received.startswith(b"HTTP/1.1 200"):
            raise Broken(f"connection {number + 1}: {received[:40]!r}")
        opened.append(connection)
    if closed := sum(map(_is_closed, opened)):
        raise Broken(f"{closed} of {connections} connections were closed meanwhile")


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
