"""`gatekeeper demo`: an embedded store, a sample legacy backend and the sidecar, in one process. Ctrl-C stops it."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Final

import uvloop

from gatekeeper.demo.backend import SampleBackend
from gatekeeper.dialects import DIALECTS
from gatekeeper.serve.inherited import CannotListen
from gatekeeper.serve.listeners import address_of, bind, serving
from gatekeeper.serve.process import configure_logs, serve
from gatekeeper.settings import ListenAddress, Settings, load
from gatekeeper.store.embedded import EmbeddedStoreFailed

_PORTS_TO_TRY: Final = 50

_GUIDE: Final = """
Gatekeeper demo
  sidecar   {base}    (what clients talk to)
  backend   {backend}    (a legacy API: it signs JWTs and knows no sessions)
  ops       {ops}
  users     alice/wonderland  bob/builder  admin/letmein
  store     {store}
{notes}
Try it: paste these lines into another terminal.

# Alice signs in at the backend, through Gatekeeper, on a laptop and on a phone.
LAPTOP=$(curl -s {base}/auth/login -H 'Content-Type: application/json' -d '{{"username":"alice","password":"wonderland"}}' | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/')
PHONE=$(curl -s {base}/auth/login -A 'Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.2 Mobile/15E148 Safari/604.1' -H 'Content-Type: application/json' -d '{{"username":"alice","password":"wonderland"}}' | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/')
ADMIN=$(curl -s {base}/auth/login -H 'Content-Type: application/json' -d '{{"username":"admin","password":"letmein"}}' | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/')

# Each login has opened a session, and both tokens are accepted.
curl -s {base}/protected -H "Authorization: Bearer $LAPTOP"; echo
curl -s {base}/protected -H "Authorization: Bearer $PHONE"; echo

# Alice lists her sessions, and an administrator lists them too.
curl -s {base}/sessions/me -H "Authorization: Bearer $LAPTOP"; echo
curl -s {base}/api/sessions -H "Authorization: Bearer $LAPTOP"; echo
curl -s {base}/sessions/user/74 -H "Authorization: Bearer $ADMIN"; echo

# She signs out all other devices. The token of the phone would be valid for an hour, but is refused at once.
curl -s -X DELETE '{base}/sessions/all?exclude_current=true' -H "Authorization: Bearer $LAPTOP"; echo
curl -s -i {base}/protected -H "Authorization: Bearer $PHONE"; echo

# The backend gets the identity headers of Gatekeeper; the same headers from a client are removed.
curl -s {base}/headers -H "Authorization: Bearer $LAPTOP" -H 'X-User-Id: 1'; echo

# She signs out at the backend, which keeps accepting her token for an hour. Gatekeeper refuses it at once.
curl -s -X POST {base}/auth/logout -H "Authorization: Bearer $LAPTOP"; echo
curl -s {base}/protected -H "Authorization: Bearer $LAPTOP"; echo

Paths that Gatekeeper serves itself (all others go to the backend):
{paths}

Ctrl-C stops everything.
"""


def run() -> int:
    """Runs the demo and returns the exit code. The environment may set anything but the backend and the secret."""
    try:
        backend = bind(ListenAddress(host="127.0.0.1", port=0))
        settings = load(_environment(address_of(backend)), require_upstream=True)
        public, moved = _bind_near(settings.listen)
        ops, ops_moved = _bind_near(settings.ops_listen) if settings.ops_listen is not None else (None, "")
        configure_logs(settings)
        guide = _guide(settings, backend, public, ops, moved + ops_moved)
        return uvloop.run(_run(settings, backend, public, ops, guide))
    except (CannotListen, EmbeddedStoreFailed) as error:
        print(f"gatekeeper: {error}", file=sys.stderr)  # noqa: T201 - the error of the command
        return 1


async def _run(
    settings: Settings, backend: socket.socket, public: socket.socket, ops: socket.socket | None, guide: str
) -> int:
    app = SampleBackend(settings.hmac_secrets[0]).app()
    async with serving(app, settings, backend):
        # Printed once the port is open: the lines are there to be pasted.
        return await serve(settings, public, ops, on_listening=lambda: print(guide, flush=True))  # noqa: T201


def _environment(upstream: str) -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name.startswith("GATEKEEPER_")}
    data_dir = Path(given.get("GATEKEEPER_DATA_DIR", ".gatekeeper/demo"))
    return {
        "GATEKEEPER_PUBLIC_PATHS": "/health",
        "GATEKEEPER_LOG_FORMAT": "text",
        "GATEKEEPER_LOG_LEVEL": "warning",
        **given,
        "GATEKEEPER_DATA_DIR": str(data_dir),
        "GATEKEEPER_JWT_SECRET": _secret(data_dir),
        "GATEKEEPER_UPSTREAM_URL": upstream,
        "GATEKEEPER_WORKERS": "1",
    }


def _secret(data_dir: Path) -> str:
    """Reads the signing secret, or makes it at the first run. Tokens stay valid over a restart of the demo."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = data_dir / "demo-secret"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(48))
    return path.read_text().strip()


def _bind_near(address: ListenAddress) -> tuple[socket.socket, str]:
    """Binds to the address or to the next free port. Returns the socket and a note for the user, if it had to move."""
    first = address.port or 0
    for port in range(first, first + _PORTS_TO_TRY):
        try:
            found = bind(ListenAddress(host=address.host, port=port, path=address.path))
        except CannotListen:
            if address.path is not None or port == first + _PORTS_TO_TRY - 1:
                raise
            continue
        return found, "" if port == first else f"\n  Port {first} is in use; using {port} instead."
    raise CannotListen(f"no free port near {address}")


def _guide(
    settings: Settings, backend: socket.socket, public: socket.socket, ops: socket.socket | None, notes: str
) -> str:
    operations = [operation for name in settings.dialects for operation in DIALECTS[name].operations]
    return _GUIDE.format(
        base=address_of(public),
        backend=address_of(backend),
        ops=f"{address_of(ops)}/readyz and /metrics" if ops is not None else "off",
        store="embedded Valkey in " + str(settings.data_dir) if settings.redis_url is None else "GATEKEEPER_REDIS_URL",
        notes=notes,
        paths="\n".join(f"  {operation.method:6} {operation.path}" for operation in operations),
    )
