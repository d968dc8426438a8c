"""A flood of tokens whose signature is bad: they wait for their turn, and others are served meanwhile (attack D04).
Nothing is timed here; `python -m bench.flood` does that."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gatekeeper.app import create_app
from gatekeeper.build import build
from gatekeeper.serve.listeners import limits
from gatekeeper.server import http_protocol
from gatekeeper.settings import load
from gatekeeper.telemetry.access_log import AccessLog
from gatekeeper.tokens.verify_queue import VerifyQueue
from gatekeeper.web.engine import Engine
from gatekeeper.web.server_errors import ServerErrors
from tests.contracts.responses import RETRY_SOON
from tests.servers import ClientResponse, RawClient, afetch, fetch, raw_client, serve_asgi
from tests.system.sidecar import (
    Backend,
    Sidecar,
    Store,
    bearer,
    environment,
    eventually,
    sidecar,
    someone,
    token,
)
from tests.tokens import forge

CONNECTIONS = 200
HANDSHAKE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


def keys() -> dict[str, Any]:
    return {"RS256": rsa.generate_private_key(65537, 2048), "ES256": ec.generate_private_key(ec.SECP256R1())}


def good(key: Any, algorithm: str) -> str:
    now = int(time.time())
    return forge.signed_by(key, {"alg": algorithm}, {"sub": someone(), "jti": someone(), "iat": now, "exp": now + 600})


def bad(key: Any, algorithm: str, number: int) -> list[bytes]:
    """Requests with tokens that only their signature is wrong with: each has that of another."""
    head, payload, signature = good(key, algorithm).split(".")
    claims = json.loads(forge.unb64(payload))
    made = [forge.b64(forge.as_bytes(claims | {"jti": str(each)})) for each in range(number)]
    return [
        f"GET /flooded HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {head}.{each}.{signature}\r\n\r\n".encode()
        for each in made
    ]


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_good_users_are_served_during_a_flood_of_bad_signatures(
    store: Store, backend: Backend, tmp_path: Path, algorithm: str
) -> None:
    # D04
    key = keys()[algorithm]
    pem = tmp_path / "key.pem"
    pem.write_text(forge.pem(key))
    with sidecar(backend.url, redis_url=store.url, jwt_public_key=str(pem)) as gate:
        known = good(key, algorithm)
        assert fetch(gate.url, "GET", "/known", [bearer(known)]).status == 200
        requests = bad(key, algorithm, CONNECTIONS)
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(raw_client(gate.url)) for _ in requests]
            over = asyncio.Event()
            floods = [asyncio.create_task(_flood(each, over)) for each in zip(clients, requests, strict=True)]
            for _ in range(10):
                assert (await afetch(gate.url, "GET", "/known", [bearer(known)])).status == 200
                assert (await afetch(gate.url, "GET", "/new", [bearer(good(key, algorithm))])).status == 200
                assert (await afetch(gate.url, "GET", "/sessions/me", [bearer(known)])).status == 200
                assert (await afetch(gate.url, "POST", "/login", body=b"{}")).status == 200
            over.set()
            refused = sum(await asyncio.gather(*floods))
        assert refused > CONNECTIONS
        assert (
            gate.metric("gatekeeper_decisions_total", result="deny", reason="token_invalid", mode="sidecar") == refused
        )
        assert not [request for request in backend.reached if request.target == "/flooded"]


async def _flood(flooder: tuple[RawClient, bytes], over: asyncio.Event) -> int:
    """Asks again as soon as there is an answer; how many there were."""
    client, request = flooder
    answered = 0
    while not over.is_set():
        await client.send(request)
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
        await client.until(b"}")
        answered += 1
    return answered


def test_clients_that_leave_are_forgotten_by_a_running_sidecar(store: Store, backend: Backend, tmp_path: Path) -> None:
    # D04
    key = keys()["ES256"]
    pem = tmp_path / "key.pem"
    pem.write_text(forge.pem(key))
    with sidecar(backend.url, redis_url=store.url, jwt_public_key=str(pem)) as gate:
        sent = 0

        def some_were_forgotten() -> bool:
            nonlocal sent
            requests = bad(key, "ES256", CONNECTIONS)
            for client, request in zip([_connected(gate) for _ in requests], requests, strict=True):
                client.sendall(request)
                # With RST: a plain close could be that of the sending side alone (rule 3.20).
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            sent += len(requests)
            eventually(lambda: len(gate.access) == sent)
            return "rate_limited" in {line["reason"] for line in gate.access}

        eventually(some_were_forgotten, seconds=60)
        assert {line["reason"] for line in gate.access} <= {"rate_limited", "token_invalid"}
        assert fetch(gate.url, "GET", "/x", [bearer(good(key, "ES256"))]).status == 200
        assert gate.metric("gatekeeper_http_requests_in_flight") == 0


def _connected(gate: Sidecar) -> socket.socket:
    parts = urlsplit(gate.url)
    return socket.create_connection((str(parts.hostname), int(parts.port or 0)))


# Without a turn for anybody


class Crowded(NamedTuple):
    url: str
    verify_queue: VerifyQueue
    engine: Engine
    out: io.BytesIO

    @property
    def reasons(self) -> list[str]:
        return [json.loads(line)["reason"] for line in self.out.getvalue().splitlines()]


@contextmanager
def crowded(store: Store, backend: Backend, verify_queue: VerifyQueue, **settings: str) -> Iterator[Crowded]:
    """The application of the sidecar behind its front door, with verify_queue of the test's choice."""
    chosen = load(environment(redis_url=store.url, upstream_url=backend.url, **settings), require_upstream=True)
    out = io.BytesIO()
    engine = build(chosen, mode="sidecar", access_log=AccessLog(out), verify_queue=verify_queue)
    app, fast_path = create_app(chosen, engine)
    server_errors = ServerErrors(engine.rules, engine.responder, engine.telemetry)
    door = http_protocol(
        limits(chosen),
        server_errors,
        fast_path=fast_path,
        on_client_left=verify_queue.cancel,
    )
    with serve_asgi(app, http=door) as url:
        yield Crowded(url, verify_queue, engine, out)


class Counted(VerifyQueue):
    taken = 0

    async def wait_turn(self) -> None:
        self.taken += 1
        await super().wait_turn()


def assert_too_many(answer: ClientResponse) -> None:
    assert (answer.status, json.loads(answer.body)["code"]) == (429, "rate_limited")
    (seconds,) = answer.get_all("retry-after")
    assert seconds in RETRY_SOON


def test_over_the_bound_the_answer_is_429(store: Store, backend: Backend) -> None:
    # D04
    with crowded(store, backend, VerifyQueue(per_turn=0, max_waiting=0), public_paths="/public") as gate:
        before = len(backend.reached)
        for target in ("/x", "/sessions/me"):
            assert_too_many(fetch(gate.url, "GET", target, [bearer(token(someone()))]))
        assert len(backend.reached) == before
        eventually(lambda: gate.reasons == ["rate_limited"] * 2)
        # What cannot be a token is no work, and is told apart.
        assert fetch(gate.url, "GET", "/x", [bearer("a.b.c")]).status == 401
        # On a public path a token that is not judged is none.
        assert fetch(gate.url, "GET", "/public", [bearer(token(someone()))]).status == 200
        (passed,) = backend.reached[before:]
        assert passed.get_all("authorization") == passed.get_all("x-user-id") == []


def test_a_token_that_was_found_good_needs_no_turn(store: Store, backend: Backend) -> None:
    # D04
    verify_queue = Counted()
    with crowded(store, backend, verify_queue) as gate:
        known = token(someone())
        for target in ("/x", "/x", "/y", "/sessions/me"):
            assert fetch(gate.url, "GET", target, [bearer(known)]).status == 200
            assert verify_queue.taken == 1
        assert fetch(gate.url, "GET", "/x", [bearer(token(someone()))]).status == 200
        assert verify_queue.taken == 2


@pytest.mark.parametrize("upgrade", ["", HANDSHAKE], ids=["http", "websocket"])
async def test_a_client_that_leaves_waits_no_longer(store: Store, backend: Backend, upgrade: str) -> None:
    # D04
    verify_queue = VerifyQueue(per_turn=0)
    with crowded(store, backend, verify_queue) as gate:
        request = f"GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token(someone())}\r\n{upgrade}\r\n".encode()
        async with raw_client(gate.url) as leaves, raw_client(gate.url) as stays:
            await leaves.send(request)
            await stays.send(request)
            await asyncio.to_thread(eventually, lambda: verify_queue.waiting == 2)
            leaves.reset()
            await asyncio.to_thread(eventually, lambda: verify_queue.waiting == 1)
            await asyncio.to_thread(eventually, lambda: gate.reasons == ["rate_limited"])
            stays.reset()
        await asyncio.to_thread(eventually, lambda: verify_queue.waiting == 0)
    assert gate.engine.telemetry.metrics._open == {True: 0, False: 0}
