"""Restarts under load, by sockets that outlive the process and by `/readyz`: no request may fail.

    python -m tests.faults.restarts --restarts 50 --requests 100000

Clients keep their connections and leave one whose response says `Connection: close`, as RFC 9112 section 9.6 wants it.
A request that gets no response, or another one than 200, has failed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.machine import need
from tests.servers import fetch
from tests.system.sidecar import START_SECONDS, Backend, Sidecar, bearer, eventually, external_store, someone, token

# No client may give up because the machine is slow.
_PATIENCE_SECONDS = 300.0
_CLIENTS = 6
# A host is sent new connections for this long after it was seen ready: half of the delay.
_TRUST_SECONDS = 1.0
_DELAY_SECONDS = 2.0


class Outcome(NamedTuple):
    """What the clients have seen. `failures` has one line for each request that failed."""

    restarts: int
    requests: int
    failures: list[str]


class Host:
    """A Gatekeeper that is restarted: on an inherited socket, which stays open meanwhile, or on a port of its own."""

    def __init__(self, settings: dict[str, str], directory: Path, *, inherits: bool) -> None:
        self._directory = directory
        self._numbers = itertools.count()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = int(self._socket.getsockname()[1])
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.ops = f"127.0.0.1:{free.getsockname()[1]}"
        self._fds = (self._socket.fileno(),) if inherits else ()
        listen = f"fd:{self._socket.fileno()}" if inherits else f"127.0.0.1:{self.port}"
        if not inherits:
            self._socket.close()
        self._settings = {**settings, "listen": listen, "ops_listen": self.ops}
        self._seen_ready_at = 0.0
        self.start()

    def start(self) -> None:
        self._gate = Sidecar(self._settings, self._directory, next(self._numbers), pass_fds=self._fds)

    def stop(self) -> None:
        """End it as an init system does, and wait for it."""
        self._gate.terminate()
        code = self._gate.exit_code(seconds=_PATIENCE_SECONDS)
        assert code == 0, (code, self._gate.stderr)

    def close(self) -> None:
        self._gate.close()
        self._socket.close()

    async def ask(self) -> bool:
        """Ask `/readyz`, and remember a 200 as of before the question."""
        now = time.monotonic()
        with suppress(OSError):
            if (await asyncio.to_thread(fetch, f"http://{self.ops}", "GET", "/readyz", timeout=60)).status == 200:
                self._seen_ready_at = now
                return True
        return False

    async def until_ready(self) -> None:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not await self.ask():  # noqa: ASYNC110 - what is waited for is in another process
                await asyncio.sleep(0.05)

    @property
    def is_trusted(self) -> bool:
        """True while new connections may go to it, as far as a load balancer knows."""
        return bool(self._fds) or time.monotonic() - self._seen_ready_at < _TRUST_SECONDS


class Nginx:
    """A real nginx in front of hosts, which keeps connections to them, as `deploy/` and most installations do it. POSTs
    are tried once, as it does unless told otherwise."""

    is_trusted = True

    def __init__(self, hosts: list[Host], directory: Path) -> None:
        self._directory = directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        servers = " ".join(f"server 127.0.0.1:{host.port};" for host in hosts)
        temporary = " ".join(
            f"{name}_temp_path {directory}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (directory / "nginx.conf").write_text(
            f"""daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/error.log error;
            events {{ worker_connections 1024; }}
            http {{
                access_log off; {temporary}
                upstream gatekeeper {{ {servers} keepalive 32; }}
                server {{
                    listen 127.0.0.1:{self.port};
                    keepalive_requests 1000000;
                    location / {{
                        proxy_pass http://gatekeeper; proxy_http_version 1.1; proxy_set_header Connection "";
                        proxy_read_timeout 300s; proxy_connect_timeout 300s;
                    }}
                }}
            }}"""
        )
        self._process = subprocess.Popen(
            [need("nginx"), "-p", directory, "-e", directory / "error.log", "-c", directory / "nginx.conf"]
        )
        eventually(self._listens, seconds=START_SECONDS)

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    @property
    def log(self) -> str:
        return (self._directory / "error.log").read_text()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


class Load:
    """Clients that send requests, GET and POST by turns, until they are told to stop."""

    def __init__(self, hosts: Sequence[Host | Nginx]) -> None:
        self._hosts = hosts
        self._turns = itertools.count()
        self._credentials = ": ".join(bearer(token(someone(), exp=int(time.time()) + 86_400)))
        self.requests = 0
        self.failures: list[str] = []
        self.over = False

    async def client(self) -> None:
        """One client with one connection at a time."""
        while not self.over:
            host = await self._host()
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
            except OSError as error:
                self.failures.append(f"connecting: {error!r}")
                continue
            try:
                while not self.over and not reader.at_eof() and await self._request(reader, writer):
                    pass
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.failures.append(f"{time.strftime('%X')} {error!r}")
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    async def _host(self) -> Host | Nginx:
        while True:
            for _ in self._hosts:
                host = self._hosts[next(self._turns) % len(self._hosts)]
                if host.is_trusted:
                    return host
            await asyncio.sleep(0.02)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send one request and read its response. Return True if the connection stays."""
        self.requests += 1
        body = b"abc" if self.requests % 2 else b""
        method = "POST" if body else "GET"
        head = f"{method} / HTTP/1.1\r\nHost: a\r\n{self._credentials}\r\nContent-Length: {len(body)}\r\n\r\n"
        async with asyncio.timeout(_PATIENCE_SECONDS):
            writer.write(head.encode() + body)
            await writer.drain()
            lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            headers = dict(line.split(b": ", 1) for line in lines[1:-2])
            await reader.readexactly(int(headers[b"content-length"]))
        if b" 200 " not in lines[0]:
            self.failures.append(lines[0].decode())
        return headers.get(b"connection") != b"close"


@asynccontextmanager
async def _asking(hosts: list[Host]) -> AsyncIterator[None]:
    """The load balancer: it asks every host again and again."""

    async def ask(host: Host) -> None:
        while True:
            await host.ask()
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(ask(host)) for host in hosts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def trial(*, hosts: int, workers: int, restarts: int, requests: int, nginx: bool = False) -> Outcome:
    """Restart one host by its inherited socket, or two in turn by `/readyz`, `restarts` times under load; with `nginx`
    between the clients and the one host."""
    with ExitStack() as stack:
        backend = stack.enter_context(Backend())
        store = stack.enter_context(external_store())
        settings = {"upstream_url": backend.url, "redis_url": store.url, "workers": str(workers)}
        settings |= {"shutdown_delay": f"{_DELAY_SECONDS if hosts > 1 else 0.5}s", "log_level": "error"}
        running = []
        for _ in range(hosts):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gk-")))
            running.append(Host(settings, directory, inherits=hosts == 1))
            stack.callback(running[-1].close)
        for host in running:
            await host.until_ready()
        front: Sequence[Host | Nginx] = running
        if nginx:
            front = [Nginx(running, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nginx-"))))]
            stack.callback(front[0].close)
        async with _asking(running):
            return await _under_load(running, Load(front), restarts, requests)


async def _under_load(hosts: list[Host], load: Load, restarts: int, requests: int) -> Outcome:
    clients = [asyncio.create_task(load.client()) for _ in range(_CLIENTS)]
    for number in range(restarts):
        while load.requests < requests * number // restarts and not load.failures:  # noqa: ASYNC110 - a count
            await asyncio.sleep(0.02)
        host = hosts[number % len(hosts)]
        await asyncio.to_thread(host.stop)
        await asyncio.to_thread(host.start)
        await host.until_ready()
    while load.requests < requests and not load.failures:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    load.over = True
    await asyncio.wait_for(asyncio.gather(*clients), _PATIENCE_SECONDS + START_SECONDS)
    return Outcome(restarts, load.requests, load.failures)


def main() -> None:
    """Run the full length: every number of hosts and workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--hosts", type=int, choices=(1, 2), action="append")
    parser.add_argument("--workers", type=int, choices=(1, 2), action="append")
    parser.add_argument("--nginx", action="store_true", help="one host behind an nginx that keeps connections")
    chosen = parser.parse_args()
    if chosen.nginx:
        chosen.hosts = [1]
    for hosts, workers in itertools.product(chosen.hosts or (1, 2), chosen.workers or (1, 2)):
        found = asyncio.run(
            trial(
                hosts=hosts,
                workers=workers,
                restarts=chosen.restarts,
                requests=chosen.requests,
                nginx=chosen.nginx,
            )
        )
        print(
            f"{hosts} host(s), {workers} worker(s): {len(found.failures)} failed of {found.requests} requests "
            f"over {found.restarts} restarts",
            *found.failures[:5],
            sep="\n  ",
            flush=True,
        )


if __name__ == "__main__":
    main()
