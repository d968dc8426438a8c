"""Measures what the time of a response reveals about a secret (attack T27): wrong first and last byte of a signature
and of a refresh token, and logins of a known and of an unknown user. Each pair is sent in random order over the same
connections. Shown are the medians, their difference, and that difference in standard errors.

`python -m bench.timing [--requests 2000]`; nothing but the project is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import jwt
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bench import tools
from bench.lab import answers, store
from bench.machine import free_port, other_cores, proxy_cores, running

_RESAMPLES: Final = 300
_WARM_UP: Final = 200
_TOGETHER: Final = 64
# How much longer the backend takes for a user that it knows, if Gatekeeper has to hide that.
_LONGER_MS: Final = 20
_SECRET: Final = uuid.uuid4().hex * 2
_ISSUING: Final = {"TOKENS": "issue", "JWT_SECRET": _SECRET, "LOGIN_CHECK_URL": "/check"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.timing")
    parser.add_argument("--requests", type=int, default=2_000, help="of each of the two")
    number = parser.parse_args(arguments).requests
    print("| what | the one | the other | difference | σ of it | difference / σ |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="gatekeeper-timing-") as name:
        directory = Path(name)
        with store(directory) as port:
            place = Place(directory, port)
            for algorithm in ("HS256", "RS256", "ES256"):
                _signatures(place, algorithm, number)
            _refresh_tokens(place, number)
            _logins(place, "observe", number)
            _logins(place, "issue", number)
    return 0


class Place:
    """The place where Gatekeepers run, one after the other."""

    def __init__(self, directory: Path, store_port: int) -> None:
        self.directory = directory
        self._store_port = store_port
        self._numbers = iter(range(1_000))

    @contextmanager
    def gatekeeper(self, backend_port: int, **settings: str) -> Iterator[int]:
        """Its port."""
        port, log = free_port(), self.directory / f"log-{next(self._numbers)}"
        usual = {
            "LISTEN": f"127.0.0.1:{port}",
            "OPS_LISTEN": "off",
            "UPSTREAM_URL": f"http://127.0.0.1:{backend_port}",
            "REDIS_URL": f"redis://127.0.0.1:{self._store_port}/0",
            "LOG_FORMAT": "json",
            "RATE_LIMIT": "off",
            "LOGIN_RATE_LIMIT": "off",
        }
        environment = {f"GATEKEEPER_{name}": value for name, value in (usual | settings).items()}
        command = [tools.python(), "-c", "from gatekeeper.cli import main; main()", "serve"]
        with running(command, proxy_cores(), log, environment, ready=lambda: answers(port, "/", "a.b.c") == 401):
            yield port

    @contextmanager
    def backend(self, longer_ms: int = 0) -> Iterator[int]:
        """The port of `bench.passwords`."""
        port, log = free_port(), self.directory / f"log-{next(self._numbers)}"
        command = [tools.python(), "-m", "bench.passwords", str(port), str(longer_ms)]
        with running(command, other_cores(), log, ready=lambda: answers(port, "/", "") == 401):
            yield port


def _signatures(place: Place, algorithm: str, number: int) -> None:
    key: Any = _SECRET
    settings = {"JWT_SECRET": _SECRET}
    if algorithm != "HS256":
        key = rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
        pem = place.directory / f"{algorithm}.pem"
        pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        settings = {"JWT_PUBLIC_KEY": str(pem)}
    token = jwt.encode({"sub": "known", "jti": "a", "exp": int(time.time()) + 3600}, key, algorithm=algorithm)
    signed, _, signature = token.rpartition(".")
    with place.gatekeeper(free_port(), **settings) as port:
        asking = {
            which: _request("GET", "/", f"Authorization: Bearer {signed}.{other}")
            for which, other in _wrong(signature).items()
        }
        _compare(f"{algorithm} signature", port, asking, number)


def _refresh_tokens(place: Place, number: int) -> None:
    with place.backend() as backend_port, place.gatekeeper(backend_port, **_ISSUING) as port:
        login = _posted("/login", username="known", password="right")
        ((_, body),) = uvloop.run(_answers(port, [login], 1))
        asking = {
            which: _posted("/refresh", refresh_token=other)
            for which, other in _wrong(json.loads(body)["refresh_token"]).items()
        }
        _compare("refresh token", port, asking, number)


def _logins(place: Place, tokens: str, number: int) -> None:
    issues = tokens == "issue"
    settings = _ISSUING if issues else {"JWT_SECRET": _SECRET}
    with place.backend(_LONGER_MS if issues else 0) as backend_port, place.gatekeeper(backend_port, **settings) as port:
        asking = {name: _posted("/login", username=name, password="wrong") for name in ("known", "stranger")}
        # With `issue` each is answered at the next half second: many at once, or it would take half an hour.
        _compare(f"login, {tokens}", port, asking, number, together=_TOGETHER if issues else 1)


def _wrong(text: str) -> dict[str, str]:
    """Base64url with another first, and another last byte."""
    octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    first, last = bytes([octets[0] ^ 1]) + octets[1:], octets[:-1] + bytes([octets[-1] ^ 1])
    return {"first": _base64url(first), "last": _base64url(last)}


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _request(method: str, path: str, *lines: str, body: bytes = b"") -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, *([f"Content-Length: {len(body)}"] if body else [])]
    return "\r\n".join([*head, "", ""]).encode() + body


def _posted(path: str, **members: str) -> bytes:
    return _request("POST", path, "Content-Type: application/json", body=json.dumps(members).encode())


def _compare(what: str, port: int, asking: Mapping[str, bytes], number: int, *, together: int = 1) -> None:
    order = list(asking) * (number + _WARM_UP)
    random.shuffle(order)
    taken: dict[str, list[float]] = {which: [] for which in asking}
    found = uvloop.run(_answers(port, [asking[which] for which in order], together))
    for which, (microseconds, _) in zip(order[_WARM_UP:], found[_WARM_UP:], strict=True):
        taken[which].append(microseconds)
    one, other = taken.values()
    difference, error = statistics.median(one) - statistics.median(other), _standard_error(one, other)
    medians = [f"{which} {statistics.median(each):,.1f} µs" for which, each in taken.items()]
    print(
        f"| {what} | {' | '.join(medians)} | {difference:+.2f} µs | {error:.2f} µs | {difference / error:+.1f} |",
        flush=True,
    )


def _standard_error(one: Sequence[float], other: Sequence[float]) -> float:
    """Of the difference of the medians, by the bootstrap: what it would have been, had other requests been made."""
    return statistics.stdev(
        statistics.median(random.choices(one, k=len(one))) - statistics.median(random.choices(other, k=len(other)))
        for _ in range(_RESAMPLES)
    )


async def _answers(port: int, requests: Sequence[bytes], together: int) -> list[tuple[float, bytes]]:
    """Returns the microseconds of each request and the body of its response; so many at a time."""
    found: list[tuple[float, bytes]] = [(0.0, b"")] * len(requests)
    waiting = iter(enumerate(requests))

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for place, request in waiting:
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            took = time.perf_counter() - began
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            found[place] = (took * 1e6, await reader.readexactly(length))
        writer.close()

    await asyncio.gather(*(work() for _ in range(together)))
    return found


if __name__ == "__main__":
    sys.exit(main())
