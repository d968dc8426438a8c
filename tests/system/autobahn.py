"""Autobahn's WebSocket test suite against an echo server, directly and through a sidecar; both must behave the same.

The suite (autobahntestsuite 0.8.2, of 2018) runs on Python 2.7 only, which Debian has not had since its release 12, so
this is a command and no test. It takes a Python 2.7, a new directory to install the suite into, and cases, all but the
long ones of groups 9, 12 and 13 without any:

python -m tests.system.autobahn /usr/bin/python2.7 /tmp/autobahn '1.*' '12.1.*'
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.system.sidecar import external_store, sidecar
from tests.system.test_http2 import listens
from tests.waiting import eventually

_SUITE: Final = "autobahntestsuite==0.8.2"
_SHORT: Final = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")
_DRIVER: Final = "import site, sys; site.addsitedir(sys.argv.pop(1)); from autobahntestsuite.wstest import run; run()"
_AGENTS: Final = ("direct", "through")
# A violation right behind a message: the connection ends before the echo of the message has come back, which the suite
# calls non-strict.
_EXPECTED: Final = frozenset({"3.4", "4.1.5", "4.2.5"})


async def _echo(peer: ServerConnection) -> None:
    try:
        async for message in peer:
            await peer.send(message)
    except ConnectionClosed:
        pass


async def _serve(port: int) -> None:
    async with serve(_echo, "127.0.0.1", port, max_size=None, ping_interval=None) as server:
        await server.serve_forever()


@contextmanager
def _echo_server() -> Iterator[int]:
    port = 9801
    server = subprocess.Popen([sys.executable, "-m", "tests.system.autobahn", "echo", str(port)])
    try:
        eventually(lambda: listens(port))
        yield port
    finally:
        server.kill()
        server.wait()


def _installed(python: str, directory: Path) -> None:
    if not (directory / "autobahntestsuite").exists():
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--target", directory, _SUITE], check=True)


def _run(python: str, suite: Path, cases: Sequence[str], urls: dict[str, str]) -> dict[str, Any]:
    """Runs the suite. Returns its index: agent → case → how it behaved."""
    reports = suite / "reports"
    specification = {
        "outdir": str(reports),
        "servers": [{"agent": agent, "url": url} for agent, url in urls.items()],
        "cases": list(cases),
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    (suite / "cases.json").write_text(json.dumps(specification))
    arguments = ["--mode", "fuzzingclient", "--spec", str(suite / "cases.json")]
    subprocess.run([python, "-c", _DRIVER, suite, *arguments], check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((reports / "index.json").read_text())
    return found


def compare(found: dict[str, Any]) -> list[str]:
    """Lists the cases in which the two behaved differently."""
    direct, through = (found[agent] for agent in _AGENTS)
    assert direct.keys() == through.keys()
    return [
        f"{case}: {member} is {direct[case][member]} directly and {through[case][member]} through"
        for case in sorted(direct, key=lambda case: [int(part) for part in case.split(".")])
        for member in ("behavior", "behaviorClose", "remoteCloseCode")
        if direct[case][member] != through[case][member]
    ]


def main(python: str, directory: str, *cases: str) -> int:
    suite = Path(directory)
    suite.mkdir(parents=True, exist_ok=True)
    _installed(python, suite)
    with (
        _echo_server() as port,
        external_store() as store,
        sidecar(f"http://127.0.0.1:{port}", redis_url=store.url, public_paths="*") as gate,
    ):
        urls = {"direct": f"ws://127.0.0.1:{port}", "through": gate.url.replace("http", "ws")}
        found = _run(python, suite, cases or _SHORT, urls)
    for agent in _AGENTS:
        print(f"{agent}: {dict(Counter(case['behavior'] for case in found[agent].values()))}")
    differences = compare(found)
    print("\n".join(differences) or "the same in every case")
    return 1 if any(line.partition(":")[0] not in _EXPECTED for line in differences) else 0


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        asyncio.run(_serve(int(sys.argv[2])))
    else:
        sys.exit(main(*sys.argv[1:]))
