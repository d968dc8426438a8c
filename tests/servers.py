"""Servers to test against: real applications that we did not write, a scripted backend, and any ASGI application on a
real socket. Each is a context manager and is gone afterwards."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import signal
import socket
import sqlite3
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import uvicorn

from gatekeeper.server import ErrorResponse, Limits, RejectedRequest, http_protocol
from tests.waiting import HANG_SECONDS, START_SECONDS

_BACKENDS = Path(__file__).parent / "backends"
_LIMIT_BYTES = 1 << 20


# Processes


@contextmanager
def httpbin_process(*, threads: int = 16) -> Iterator[str]:
    """httpbin under gunicorn with threads; yields its base URL."""
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--worker-class", "gthread"]
    command += ["--threads", str(threads), "--no-control-socket", "httpbin:app"]
    with process(command, listening=r"Listening at: (http://127\.0\.0\.1:\d+)") as url:
        yield url


@contextmanager
def datasette_process(directory: Path, *, rows: int = 2_000) -> Iterator[str]:
    """datasette over a small database, `/shop/orders`, made in `directory`; yields its base URL."""
    database = directory / "shop.db"
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("create table orders (id integer primary key, customer text, note text)")
        connection.executemany(
            "insert into orders values (?, ?, ?)",
            ((number, f"customer {number % 97}", 'ünïcode, "quoted"\n' * (number % 5)) for number in range(rows)),
        )
    connection.close()
    command = [sys.executable, "-m", "datasette", "serve", "--port", "0", str(database)]
    command += ["--setting", "max_returned_rows", "100", "--setting", "max_csv_mb", "0"]
    with process(command, listening=r"running on (http://127\.0\.0\.1:\d+)") as url:
        yield url


@contextmanager
def django_process(directory: Path, secret: str, *, access_seconds: int = 300) -> Iterator[str]:
    """Django with Simple JWT (`tests/backends/django_app.py`) under gunicorn, its database in `directory`; yields its
    base URL."""
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--worker-class", "gthread", "--threads", "4"]
    command += ["--no-control-socket", "--preload", "--chdir", str(_BACKENDS), "django_app:application"]
    environment = _of_backend(directory, secret, access_seconds)
    with process(command, environment, listening=r"Listening at: (http://127\.0\.0\.1:\d+)") as url:
        yield url


@contextmanager
def fastapi_users_process(directory: Path, secret: str, *, access_seconds: int = 300) -> Iterator[str]:
    """FastAPI Users (`tests/backends/fastapi_users_app.py`) under uvicorn, its database in `directory`; yields its base
    URL."""
    command = [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", "0"]
    command += ["--app-dir", str(_BACKENDS), "fastapi_users_app:app"]
    environment = _of_backend(directory, secret, access_seconds)
    with process(command, environment, listening=r"running on (http://127\.0\.0\.1:\d+)") as url:
        yield url


def _of_backend(directory: Path, secret: str, access_seconds: int) -> dict[str, str]:
    return {"SIGNING_KEY": secret, "DATA_DIRECTORY": str(directory), "ACCESS_TOKEN_SECONDS": str(access_seconds)}


@contextmanager
def process(command: Sequence[str], environment: Mapping[str, str] = {}, *, listening: str) -> Iterator[str]:
    """Starts a server, waits until its output tells where it listens, kills it with all its children."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore", **environment},
    )
    told: deque[str] = deque(maxlen=200)
    found: list[str] = []
    ready = threading.Event()

    def drain() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            told.append(line)
            if not found and (match := re.search(listening, line)):
                found.append(match[1])
                ready.set()
        ready.set()

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    try:
        ready.wait(START_SECONDS)
        if not found:
            raise RuntimeError(f"{command} did not start:\n{''.join(told)}")
        _wait_for_answer(found[0])
        yield found[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(HANG_SECONDS)
        assert process.stdout is not None
        process.stdout.close()


def _wait_for_answer(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            fetch(url, "HEAD", "/", timeout=HANG_SECONDS)
            return
        time.sleep(0.05)
    raise RuntimeError(f"{url} does not answer")


# ASGI applications


@contextmanager
def serve_asgi(app: Any, **settings: Any) -> Iterator[str]:
    """Runs an ASGI application under uvicorn, as the sidecar is run, in a thread with its own loop; yields its base
    URL. `settings` are uvicorn's: with `http="httptools"`, a server as applications have it."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        **{
            "http": http_protocol(Limits(), _plain),
            # Under our own protocol uvicorn's has nothing to do.
            "ws": "websockets-sansio" if "http" in settings else "none",
            "ws_per_message_deflate": False,
            "ws_ping_timeout": None,
            "lifespan": "on",
            "proxy_headers": False,
            "server_header": False,
            "date_header": False,
            "access_log": False,
            "log_level": "critical",
            "timeout_graceful_shutdown": 1,
            **settings,
        },
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        assert server.started, "the application did not start"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(HANG_SECONDS)
        listener.close()
        assert not thread.is_alive(), "the application did not stop"


def _plain(refusal: RejectedRequest) -> ErrorResponse:
    return ErrorResponse([(b"content-type", b"text/plain")], refusal.detail.encode())


# A backend that keeps what it is sent


class RawRequest(NamedTuple):
    """One request as it came: its head with the empty line, and its body with chunk framing as sent."""

    head: bytes
    body: bytes

    @property
    def method(self) -> bytes:
        return self.head.split(b" ", 1)[0]

    @property
    def target(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0].split(b" ")[1]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Names lower-case, order and repetition kept."""
        lines = self.head.rstrip(b"\r\n").split(b"\r\n")[1:]
        return [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]

    def get_all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


class RawConnection:
    """One connection to a `RecordingBackend`, for its script."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.number = number
        self._reader = reader
        self._writer = writer

    async def head(self) -> bytes:
        """The next request's head; empty if the connection is at its end."""
        try:
            return await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            return error.partial

    async def body(self, head: bytes) -> bytes:
        """The body that belongs to this head, whole, with its framing."""
        request = RawRequest(head, b"")
        if b"chunked" in request.get_all(b"transfer-encoding"):
            parts = []
            while True:
                size = await self._reader.readuntil(b"\r\n")
                parts += [size, await self._reader.readexactly(int(size, 16) + 2)]
                if int(size, 16) == 0:
                    return b"".join(parts)
        return await self._reader.readexactly(int(next(iter(request.get_all(b"content-length")), b"0")))

    async def read(self, size: int) -> bytes:
        return await self._reader.read(size)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def gone(self) -> None:
        """Returns when the other side has closed, reading on until then."""
        with suppress(ConnectionError):
            while await self._reader.read(65536):
                pass

    def reset(self) -> None:
        """Closes with RST instead of FIN."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


Script = Callable[[RawConnection, RawRequest], Awaitable[None]]
"""What a backend does after the head of each request; the request has its body only if the backend reads bodies."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class RecordingBackend:
    """A backend that keeps raw requests and answers with fixed bytes, or as a script says.

        async with RecordingBackend(OK) as backend:
            ... backend.url ...
        assert backend.requests[0].target == b"/"

    `requests` holds what came, in order; `connections` counts connections. `read_bodies=False` leaves bodies to the
    script. With `path` it listens on a Unix socket, with `tls` its URL is `https://localhost:…`.
    """

    def __init__(
        self,
        answer: bytes | Script = OK,
        *,
        read_bodies: bool = True,
        path: Path | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._answer = answer
        self._read_bodies = read_bodies
        self._path = path
        self._tls = tls
        self._tasks: set[asyncio.Task[Any]] = set()
        self.requests: list[RawRequest] = []
        self.failures: list[Exception] = []
        self.connections = 0
        self.url = ""

    async def __aenter__(self) -> RecordingBackend:
        if self._path is not None:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_LIMIT_BYTES)
            self.url = f"http+unix://{self._path}"
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_LIMIT_BYTES, ssl=self._tls)
            port = self._server.sockets[0].getsockname()[1]
            self.url = f"https://localhost:{port}" if self._tls else f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if error is None and self.failures:
            raise self.failures[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        connection = RawConnection(reader, writer, self.connections)
        try:
            while not writer.is_closing() and (head := await connection.head()):
                await self._answer_one(connection, head)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as error:
            self.failures.append(error)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer_one(self, connection: RawConnection, head: bytes) -> None:
        request = RawRequest(head, b"")
        place = len(self.requests)
        self.requests.append(request)
        if self._read_bodies:
            request = self.requests[place] = RawRequest(head, await connection.body(head))
        if isinstance(self._answer, bytes):
            await connection.write(self._answer)
        else:
            await self._answer(connection, request)


# Clients


class ClientResponse(NamedTuple):
    """An answer with nothing changed but the framing of its body."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


def fetch(
    url: str,
    method: str = "GET",
    target: str = "/",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | Iterable[bytes] | None = None,
    *,
    timeout: float = 30.0,
) -> ClientResponse:
    """One request with exactly these headers and, unless it is among them, a `Host`; blocking.

    `body` as bytes goes with `Content-Length`, an iterable chunked. Raises `http.client.IncompleteRead` for an answer
    that breaks off.
    """
    parts = urlsplit(url)
    headers = list(headers)
    names = {name.lower() for name, _ in headers}
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.putrequest(method, target, skip_host="host" in names, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value.encode("latin-1"))
        if isinstance(body, bytes) and "content-length" not in names:
            connection.putheader("Content-Length", str(len(body)))
        elif body is not None and not isinstance(body, bytes):
            connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders(body, encode_chunked=not isinstance(body, bytes))
        response = connection.getresponse()
        # Their case is `tests/system/test_spelling.py`'s.
        received = [(name.lower(), value) for name, value in response.getheaders()]
        return ClientResponse(response.status, response.reason, received, response.read())
    finally:
        connection.close()


async def afetch(*arguments: Any, **settings: Any) -> ClientResponse:
    """`fetch` beside a running loop."""
    return await asyncio.to_thread(fetch, *arguments, **settings)


class RawClient:
    """A client that sends bytes and reads bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until(self, end: bytes) -> bytes:
        """What comes, up to and with `end`."""
        async with asyncio.timeout(HANG_SECONDS):
            return await self.reader.readuntil(end)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        async with asyncio.timeout(HANG_SECONDS):
            return await self.reader.read()

    async def half_close(self, data: bytes) -> None:
        """Send the last data and close the sending side, as `nc -N` does."""
        await self.send(data)
        self.writer.write_eof()

    def reset(self) -> None:
        """Leave at once and visibly, as a process that is killed with unread data."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


@asynccontextmanager
async def raw_client(url: str) -> AsyncIterator[RawClient]:
    """A connection to the server at `url`, which may be `unix:/path`."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        reader, writer = await asyncio.open_unix_connection(parts.path)
    else:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
