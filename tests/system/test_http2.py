"""A sidecar that speaks HTTP/2 to nginx, which winds its connections up every few dozen requests."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.machine import need
from tests.servers import fetch
from tests.system.sidecar import Backend, Sidecar, bearer, eventually, sidecar, someone, token
from tests.upstream.test_upstream import self_signed

pytestmark = pytest.mark.slow

_MEGABYTE = bytes(range(256)) * 4096
NGINX = """
daemon off; master_process off; pid %(at)s/pid; error_log %(at)s/error crit;
events {}
http {
  log_format requests "$server_protocol $connection $request_uri";
  access_log %(at)s/requests requests;
  client_body_temp_path %(at)s/body;
  proxy_temp_path %(at)s/proxy;
  client_max_body_size 0;
  keepalive_requests 40;
  server {
    listen 127.0.0.1:%(port)d ssl http2;
    listen 127.0.0.1:%(plain)d http2;
    listen 127.0.0.1:%(http1)d;
    ssl_certificate %(certificate)s;
    ssl_certificate_key %(certificate)s;
    location / {
      proxy_pass %(application)s; proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off;
      proxy_set_header Host $http_host; proxy_set_header Connection "";
    }
    location /files/ { root %(at)s; }
  }
}
"""


class Nginx(NamedTuple):
    """nginx: its URLs with HTTP/2, over TLS and without, and with HTTP/1.1; its directory."""

    secure: str
    plain: str
    http1: str
    directory: Path


class Chained(NamedTuple):
    """The sidecar, before nginx, before an application; nginx's log."""

    gate: Sidecar
    application: Backend
    log: Path

    def requests(self) -> list[tuple[str, str]]:
        """The protocol and the connection of each request that nginx has served."""
        lines = (line.split() for line in self.log.read_text().splitlines())
        return [(protocol, connection) for protocol, connection, _ in lines]


@contextmanager
def nginx(application: str) -> Iterator[Nginx]:
    with tempfile.TemporaryDirectory(prefix="gk-nginx-") as name:
        directory = Path(name)
        # Its workers may be another user.
        directory.chmod(0o755)
        (directory / "files").mkdir()
        (directory / "files" / "large").write_bytes(_MEGABYTE * 50)
        certificate = self_signed(directory, "localhost")
        with ExitStack() as held:
            free = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
            port, plain, http1 = [each.getsockname()[1] for each in free]
        parts = {
            "at": name,
            "port": port,
            "plain": plain,
            "http1": http1,
            "certificate": certificate,
            "application": application,
        }
        (directory / "conf").write_text(NGINX % parts)
        process = subprocess.Popen([need("nginx"), "-p", name, "-c", f"{name}/conf", "-e", f"{name}/error"])
        try:
            eventually(lambda: listens(port))
            urls = f"https://localhost:{port}", f"http://localhost:{plain}", f"http://localhost:{http1}"
            yield Nginx(*urls, directory)
        finally:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    """Tells whether somebody accepts connections at a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module", params=["auto", "prior"])
def chained(request: pytest.FixtureRequest) -> Iterator[Chained]:
    with Backend() as application, nginx(application.url) as (secure, plain, _, directory):
        ca_file = str(directory / "certificate.pem")
        with sidecar(
            secure if request.param == "auto" else plain, upstream_http2=request.param, upstream_ca_file=ca_file
        ) as gate:
            yield Chained(gate, application, directory / "requests")


def test_every_request_is_answered_however_often_nginx_winds_its_connections_up(chained: Chained) -> None:
    credential = bearer(token(someone()))

    def one(number: int) -> int:
        return fetch(chained.gate.url, "GET", f"/{number}", [credential]).status

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(one, range(600))) == {200}
    served = eventually(lambda: found if len(found := chained.requests()) >= 600 else None)
    assert {protocol for protocol, _ in served} == {"HTTP/2.0"}
    # Many shared each of them, and many of them there were.
    assert 10 <= len({connection for _, connection in served}) <= 120


def test_large_bodies_pass_whole_while_others_are_served(chained: Chained) -> None:
    credential = bearer(token(someone()))
    with ThreadPoolExecutor(4) as threads:
        download = threads.submit(fetch, chained.gate.url, "GET", "/files/large", [credential])
        upload = threads.submit(fetch, chained.gate.url, "POST", "/up", [credential], _MEGABYTE * 20)
        small = [threads.submit(fetch, chained.gate.url, "GET", "/small", [credential]) for _ in range(10)]
        assert [answer.result().status for answer in small] == [200] * 10
        assert upload.result().status == 200
        assert download.result().body == _MEGABYTE * 50
    (received,) = [request for request in chained.application.raw if request.target == b"/up"]
    assert received.body == _MEGABYTE * 20


def test_nothing_is_left_of_answers_without_a_body_and_of_clients_that_left(chained: Chained) -> None:
    credential = bearer(token(someone()))
    assert fetch(chained.gate.url, "HEAD", "/files/large", [credential]).get_all("content-length") == [str(50 << 20)]
    whole = fetch(chained.gate.url, "GET", "/files/large", [credential])
    unchanged = [credential, ("If-None-Match", whole.get_all("etag")[0])]
    assert fetch(chained.gate.url, "GET", "/files/large", unchanged).status == 304
    port = int(chained.gate.url.rpartition(":")[2])
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = f"GET /files/large HTTP/1.1\r\nHost: a\r\n{credential[0]}: {credential[1]}\r\n\r\n"
            client.sendall(head.encode())
            assert client.recv(100_000).startswith(b"HTTP/1.1 200")
    assert fetch(chained.gate.url, "GET", "/files/large", [credential]).body == _MEGABYTE * 50
