"""The nginx configuration of docs/operations.md, before a sidecar with the settings that stand beside it."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest

from gatekeeper.settings.env_file import read_env_file
from tests.docs.blocks import Block, blocks_of
from tests.forward.sockets import TEXT, echo, frame, upgraded
from tests.machine import need
from tests.servers import fetch
from tests.system.sidecar import Backend, bearer, eventually, sidecar, someone, token
from tests.system.test_http2 import listens
from tests.web.handshakes import message, opened

pytestmark = pytest.mark.slow

_PAGE = Path(__file__).parent.parent.parent / "docs" / "operations.md"


def _block(file: str) -> Block:
    (found,) = [block for block in blocks_of(_PAGE.name, _PAGE.read_text(encoding="utf-8")) if block.file == file]
    return found


def _settings(folder: Path) -> dict[str, str]:
    (folder / "env").write_text(_block("behind-nginx.env").text)
    return {name.removeprefix("GATEKEEPER_").lower(): value for name, value in read_env_file(folder / "env").items()}


def test_nginx_as_the_page_has_it_tells_the_client_and_passes_websockets(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Backend(upgraded(echo)) as talker, sidecar(talker.url, **_settings(tmp_path)) as gate:
        text = _block("gatekeeper.conf").text
        assert text.count("127.0.0.1:8000") == text.count("listen 80;") == 1
        text = text.replace("127.0.0.1:8000", gate.url.removeprefix("http://"))
        text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
        main = f"daemon off; master_process off; pid {tmp_path}/pid; events {{}}\nhttp {{ access_log off;\n{text} }}\n"
        (tmp_path / "nginx.conf").write_text(main)
        server = subprocess.Popen(
            [need("nginx"), "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error"]
        )
        url = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: listens(port))
            bearing = token(someone())
            # 198.51.100.7 is what a client wrote: nginx is asked from loopback, which is trusted, so it stands for the
            # client's own address.
            told = [("X-Forwarded-For", "203.0.113.9, 198.51.100.7"), ("Forwarded", "for=1.1.1.1")]
            with opened(url, "/ws", [bearer(bearing), *told]) as (answer, connection):
                assert answer.status == 101
                connection.sendall(frame(TEXT, b"hello", masked=True))
                assert message(connection) == b"hello"
                seen = talker.reached[-1]
                assert [value for name, value in seen.headers if name == "x-forwarded-proto"] == ["http"]
            listed = json.loads(fetch(gate.url, "GET", "/sessions/me", [bearer(bearing)]).body)
            assert "198.51.100.7" in json.dumps(listed), listed
        finally:
            server.terminate()
            server.wait()
