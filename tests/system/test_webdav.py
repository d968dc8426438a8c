"""WebDAV (RFC 4918) by a server and a client that we did not write, directly and through the sidecar: every method does
the same, to the files too."""

from __future__ import annotations

import random
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from webdav4 import client as webdav

from tests.servers import process
from tests.system.sidecar import Store, sidecar, someone, token

pytestmark = pytest.mark.slow

LOCK = """<?xml version="1.0"?><D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope>
<D:locktype><D:write/></D:locktype><D:owner>me</D:owner></D:lockinfo>"""
PASSING = {"date", "connection", "keep-alive", "x-request-id", "transfer-encoding", "content-length"}


@contextmanager
def wsgidav(directory: Path) -> Iterator[str]:
    """wsgidav under cheroot over `directory`, for everybody; yields its base URL."""
    directory.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "wsgidav.server.server_cli", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--root", str(directory), "--auth", "anonymous", "--server", "cheroot", "--no-config", "-v"]
    with process(command, listening=r"(http://127\.0\.0\.1:\d+)") as url:
        yield url


def masked(answer: httpx.Response) -> str:
    """Without what names a moment, a lock or the connection."""
    headers = sorted((name, value) for name, value in answer.headers.multi_items() if name not in PASSING)
    told = repr((answer.status_code, answer.reason_phrase, headers, answer.text))
    told = re.sub(r"http://127\.0\.0\.1:\d+", "<url>", told)
    told = re.sub(r"quota-available-bytes>\d+", "quota>", told)
    told = re.sub(r"opaquelocktoken:[0-9a-fx-]+", "<lock>", told)
    told = re.sub(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT|\d{4}-\d\d-\d\d[T ][\d:.]+Z?", "<when>", told)
    return re.sub(r"[0-9a-f]{32}-\d+-\d+|\d+-\d+-[0-9a-f]+|[0-9a-f]{10,}", "<etag>", told)


def everything(url: str, bearer: str, directory: Path) -> list[Any]:
    """What a client does with a server, and what it sees of it."""
    seen: list[Any] = []
    headers = {"Authorization": f"Bearer {bearer}"}

    def keep(answer: httpx.Response) -> None:
        answer.read()
        seen.append(masked(answer))

    with httpx.Client(headers=headers, event_hooks={"response": [keep]}) as http:
        client = webdav.Client(url, http_client=http)
        body = random.Random(4918).randbytes(300_000)
        (directory.parent / "up").write_bytes(body)
        client.mkdir("a")
        client.upload_file(str(directory.parent / "up"), "a/one file ü.bin")
        client.copy("a/one file ü.bin", "a/two.bin")
        client.move("a/two.bin", "a/three.bin")
        client.mkdir("b")
        client.copy("a", "b/c")
        seen += [sorted(item["name"] for item in client.ls("a")), client.exists("a/two.bin"), client.isdir("b/c")]
        client.download_file("a/three.bin", str(directory.parent / "down"))
        assert (directory.parent / "down").read_bytes() == body
        path = f"{url}/a/three.bin"
        lock = http.request("LOCK", path, content=LOCK, headers={"Timeout": "Second-60", "Depth": "0"})
        name = lock.headers["lock-token"]
        http.request("PUT", path, content=b"not yours")
        http.request("PUT", path, content=b"mine", headers={"If": f"({name})"})
        http.request("UNLOCK", path, headers={"Lock-Token": name})
        http.request("PUT", path, content=iter([b"in ", b"chunks"]))
        http.request("PROPFIND", f"{url}/a", headers={"Depth": "1"})
        http.request("PROPFIND", f"{url}/", headers={"Depth": "infinity"})
        http.request("OPTIONS", f"{url}/a")
        http.request("GET", path, headers={"Range": "bytes=3-5"})
        http.request("HEAD", path)
        http.request("MKCOL", f"{url}/a")
        http.request("MOVE", path, headers={"Destination": f"{url}/b/c/", "Overwrite": "F"})
        client.remove("b/c")
        http.request("DELETE", f"{url}/nothing")
    files = [(str(path.relative_to(directory)), path.is_dir() or path.read_bytes()) for path in directory.rglob("*")]
    return [*seen, sorted(name for name, _ in files)]


def test_every_method_does_the_same(store: Store, tmp_path: Path) -> None:
    bearer = token(someone())
    with wsgidav(tmp_path / "direct" / "dav") as direct, wsgidav(tmp_path / "through" / "dav") as behind:
        with sidecar(behind, redis_url=store.url) as gate:
            through = everything(gate.url, bearer, tmp_path / "through" / "dav")
        for one, other in zip(through, everything(direct, bearer, tmp_path / "direct" / "dav"), strict=True):
            assert one == other
        assert len(through) > 25
