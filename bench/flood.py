"""Tokens with bad signatures, as many as a client can send, over connections that are kept: how late the event loop
comes to what is due, and what clients with good tokens wait (attack D04). Gatekeeper on one core, all else on the
others.

`python -m bench.flood [--connections 500] [--seconds 8] [ALGORITHM …]`; nginx with Lua and wrk as for the bench.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bench import machine, tools
from bench.lab import Lab, answers
from bench.machine import free_port, other_cores, proxy_cores, running

_BAD: Final = 5_000
_KNOWN: Final = 200
_RATE: Final = 100.0
_KEYS: Final[dict[str, Callable[[], Any]]] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "HS256": lambda: uuid.uuid4().hex * 2,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.flood")
    parser.add_argument("algorithms", nargs="*", metavar="ALGORITHM", help=", ".join(_KEYS))
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args(arguments)
    machine.raise_file_limit()
    missing = tools.nginx_is_missing() or tools.wrk_is_missing()
    if missing:
        print(f"flood: {missing}", file=sys.stderr)
        return 1
    print(
        "| signatures | bad tokens a second | loop late p50, p99, most (ms) | known token p50, p99 (ms) | new token |"
    )
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="gatekeeper-flood-") as directory:
        Path(directory).chmod(0o755)
        with Lab(Path(directory) / "lab") as lab:
            for algorithm in options.algorithms or ("RS256", "ES256"):
                _measure(lab, algorithm, 0, options.seconds)
                _measure(lab, algorithm, options.connections, options.seconds)
    return 0


def _measure(lab: Lab, algorithm: str, connections: int, seconds: float) -> None:
    directory = lab.directory / f"{algorithm}-{connections}"
    directory.mkdir()
    key = _KEYS[algorithm]()
    good = directory / "good"
    good.write_text("\n".join(_tokens(key, algorithm, _KNOWN)))
    new = directory / "new"
    new.write_text("\n".join(_tokens(key, algorithm, int(_RATE * (seconds + 2)))))
    bad = directory / "bad"
    bad.write_text("\n".join(_bad_tokens(key, algorithm)))
    port, told = free_port(), directory / "lag"
    environment = _environment(lab, port, key, directory)
    command = [tools.python(), "-m", "bench.lag", str(told)]
    first = good.read_text().split()

    def ready() -> bool:
        return answers(port, "/small", first[0]) == 200

    with running(command, proxy_cores(), directory / "log", environment, ready=ready) as process:
        for token in first:
            answers(port, "/small", token)
        if answers(port, "/small", bad.read_text().split()[0]) != 401:
            raise machine.DidNotStart("a bad signature passed")
        flood = _start(_flooding(port, connections, seconds + 4, bad)) if connections else None
        time.sleep(1)
        _lag(process, told)
        clients = [_start(_asking(port, seconds, tokens)) for tokens in (good, new)]
        known, fresh = (_result(client) for client in clients)
        late = _lag(process, told)
        rate = 0.0
        if flood is not None:
            figures = _result(flood)
            rate = figures["refused"] / figures["seconds"]
            if figures["refused"] != figures["requests"] or figures["broken"]:
                print(f"flood: {figures}", file=sys.stderr)
    print(
        f"| {algorithm} | {rate:,.0f} | {_ms(late, 'p50_us', 'p99_us', 'max_us')} "
        f"| {_client(known)} | {_client(fresh)} |",
        flush=True,
    )


def _tokens(key: Any, algorithm: str, number: int) -> list[str]:
    now = int(time.time())
    claims = [{"sub": f"user-{each}", "jti": uuid.uuid4().hex, "iat": now, "exp": now + 3600} for each in range(number)]
    return [jwt.encode(each, key, algorithm=algorithm) for each in claims]


def _bad_tokens(key: Any, algorithm: str) -> list[str]:
    """Each with the signature of another: good in form, so that it has to be verified to the end."""
    (signed,) = _tokens(key, algorithm, 1)
    signature = signed.rpartition(".")[2]
    cheap = "a secret of nobody, of thirty-two bytes"
    header = signed.partition(".")[0]
    return [f"{header}.{each.split('.')[1]}.{signature}" for each in _tokens(cheap, "HS256", _BAD)]


def _environment(lab: Lab, port: int, key: Any, directory: Path) -> dict[str, str]:
    settings = {
        "LISTEN": f"127.0.0.1:{port}",
        "OPS_LISTEN": "off",
        "UPSTREAM_URL": f"http://127.0.0.1:{lab.backend_port}",
        "REDIS_URL": f"redis://127.0.0.1:{lab.store_port}/0",
        "LOG_FORMAT": "json",
    }
    if isinstance(key, str):
        settings["JWT_SECRET"] = key
    else:
        pem = directory / "key.pem"
        pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        settings["JWT_PUBLIC_KEY"] = str(pem)
        settings["JWT_ALGORITHMS"] = directory.name.partition("-")[0]
    return {f"GATEKEEPER_{name}": value for name, value in settings.items()}


def _flooding(port: int, connections: int, seconds: float, tokens: Path) -> list[str]:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout", "30s"]
    return [
        *command,
        "-s",
        str(tools.HERE / "requests.lua"),
        f"http://127.0.0.1:{port}/small",
        "--",
        str(tokens),
        "GET",
        "0",
    ]


def _asking(port: int, seconds: float, tokens: Path) -> list[str]:
    command = [tools.python(), "-m", "bench.constant_rate", str(port), "16", str(_RATE), str(seconds)]
    return [*command, "/small", str(tokens)]


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tools.HERE.parent,
        preexec_fn=partial(os.sched_setaffinity, 0, other_cores()),
    )


def _result(process: subprocess.Popen[str]) -> dict[str, float]:
    said, _ = process.communicate(timeout=120)
    lines = [line for line in said.splitlines() if "{" in line]
    found: dict[str, float] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def _lag(process: machine.Process, told: Path) -> dict[str, float]:
    told.unlink(missing_ok=True)
    process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 30
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    found: dict[str, float] = json.loads(told.read_text())
    return found


def _ms(figures: dict[str, float], *names: str) -> str:
    return ", ".join(f"{figures[name] / 1000:.1f}" for name in names)


def _client(figures: dict[str, float]) -> str:
    faults = {name: figures[name] for name in ("refused", "broken", "unanswered") if figures[name]}
    return _ms(figures, "p50_us", "p99_us") + (f" {faults}" if faults else "")


if __name__ == "__main__":
    sys.exit(main())
