"""Backups of the embedded store: a consistent copy while it runs, and the way back.

A backup is a folder with a snapshot (`sessions.rdb`) that the server itself has made of one instant, and `backup.json`,
which is written last: a copy that broke off is none. Copying the append-only files of a server that runs is no backup:
they change while they are copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import msgspec
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from gatekeeper.store.command import command
from gatekeeper.store.embedded import DATA, RESTORING, EmbeddedValkey, JoinedValkey, server_binary
from gatekeeper.store.epoch import SCHEMA

_SNAPSHOT: Final = "sessions.rdb"
_DESCRIPTION: Final = "backup.json"
_BASE, _INCREMENT = "appendonly.aof.1.base.rdb", "appendonly.aof.1.incr.aof"
_MANIFEST: Final = f"file {_BASE} seq 1 type b\nfile {_INCREMENT} seq 1 type i\n"
_POLL_SECONDS: Final = 0.05


class BackupFailed(Exception):
    """A backup could not be made, or cannot be restored. The text says why."""


class Backup(msgspec.Struct, frozen=True):
    """The content of `backup.json`. `taken_at` is in microseconds by the store's clock: every change that was
    acknowledged until then is in the snapshot."""

    taken_at: int
    schema: int
    size: int
    sha256: str
    gatekeeper: str

    @property
    def time(self) -> str:
        return datetime.fromtimestamp(self.taken_at // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_backup(data_dir: Path, folder: Path, *, version: str) -> Backup:
    """Copy the embedded store in `data_dir`, which must run, into `folder`, which must be new or empty. Raises
    `BackupFailed` and `EmbeddedStoreFailed`."""
    store = JoinedValkey(data_dir)
    store.start()
    with _failing(f"{folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise BackupFailed(f"{folder} is not empty")
        taken_at = _snapshot_into(store, folder / _SNAPSHOT)
        _check(folder / _SNAPSHOT)
        backup = Backup(taken_at, SCHEMA, (folder / _SNAPSHOT).stat().st_size, _digest(folder / _SNAPSHOT), version)
        _write(folder / _DESCRIPTION, msgspec.json.format(msgspec.json.encode(backup)) + b"\n")
        _sync(folder)
    return backup


def restore_backup(data_dir: Path, folder: Path, *, key_prefix: str) -> tuple[Backup, Path | None]:
    """Make the backup in `folder` the data of the embedded store in `data_dir`, which must not be in use. Returns the
    backup, and where the data of before is now, if there was any. Raises `BackupFailed` and `EmbeddedStoreFailed`.

    Tokens that were issued until now open no session that the copy does not hold (rule 4.9): the session may have ended
    since.
    """
    backup = read_backup(folder)
    with EmbeddedValkey(data_dir).unused() as place, _failing(f"GATEKEEPER_DATA_DIR {data_dir}"):
        new = place / RESTORING
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        with (folder / _SNAPSHOT).open("rb") as source:
            _write(new / _BASE, source)
        _write(new / _INCREMENT, _not_before_now(key_prefix))
        _write(new / f"{DATA.removesuffix('dir')}.aof.manifest", _MANIFEST.encode())
        _check(new / _BASE)
        _sync(new)
        replaced = None
        if (place / DATA).exists():
            replaced = place / f"{DATA}.replaced-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
            (place / DATA).rename(replaced)
        new.rename(place / DATA)
        _sync(place)
    return backup, replaced


def read_backup(folder: Path) -> Backup:
    """Read the description of a backup, and check that the snapshot is the one that it describes."""
    with _failing(f"{folder}"):
        try:
            backup = msgspec.json.decode((folder / _DESCRIPTION).read_bytes(), type=Backup)
        except FileNotFoundError:
            raise BackupFailed(f"{folder} holds no complete backup: there is no {_DESCRIPTION}") from None
        except msgspec.MsgspecError:
            raise BackupFailed(
                f"{folder / _DESCRIPTION} cannot be read: it is not the description of a backup"
            ) from None
        if backup.schema != SCHEMA:
            raise BackupFailed(f"{folder} holds format {backup.schema}, and this Gatekeeper has format {SCHEMA}")
        snapshot = folder / _SNAPSHOT
        if snapshot.stat().st_size != backup.size or _digest(snapshot) != backup.sha256:
            raise BackupFailed(f"{snapshot} is damaged: it is not what was backed up")
    return backup


def _snapshot_into(store: EmbeddedValkey, target: Path) -> int:
    """Have the server write a snapshot, and copy it. Returns the instant, in microseconds by the server's clock."""
    try:
        with contextlib.closing(Redis.from_url(store.url)) as server:
            path = _server_folder(server)
            while True:
                taken_at = _save(server)
                try:
                    # The server replaces this file, and never changes it.
                    with path.open("rb") as source:
                        path.unlink(missing_ok=True)
                        _write(target, source)
                    return taken_at
                except FileNotFoundError:
                    continue  # another backup at the same time has taken it
    except RedisError as error:
        raise BackupFailed(f"the embedded store did not make a snapshot: {error}") from None


def _server_folder(server: Any) -> Path:
    found = {**server.config_get("dir"), **server.config_get("dbfilename")}
    return Path(found["dir"]) / str(found["dbfilename"])


def _save(server: Any) -> int:
    """Have the server write a snapshot, once it writes no other."""
    while True:
        seconds, microseconds = server.time()
        try:
            server.bgsave(schedule=False)
            break
        except ResponseError as error:
            # Of a snapshot, or of the append-only file, which the server rewrites now and then.
            if "in progress" not in str(error) and "child process is active" not in str(error):
                raise
            time.sleep(_POLL_SECONDS)
    while (state := server.info("persistence"))["rdb_bgsave_in_progress"]:
        time.sleep(_POLL_SECONDS)
    if state["rdb_last_bgsave_status"] != "ok":
        raise BackupFailed("the embedded store could not write a snapshot: valkey.log in GATEKEEPER_DATA_DIR says why")
    return int(seconds) * 1_000_000 + int(microseconds)


def _not_before_now(key_prefix: str) -> bytes:
    """Write the commands behind the snapshot: see `adopt_not_before` in scripts/epoch.lua."""
    now = str(int(time.time() * 1_000_000))
    return command("SELECT", "0").packed + command("HSET", f"{key_prefix}epoch", "adopt_not_before", now).packed


def _check(snapshot: Path) -> None:
    """Have the server's own program read a snapshot, every byte of it."""
    binary = server_binary()
    # One program under several names.
    name = "valkey-check-rdb" if "valkey" in Path(binary).name else "redis-check-rdb"
    done = subprocess.run([name, snapshot], executable=binary, capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise BackupFailed(f"{snapshot} cannot be read: it is no snapshot of a store, or a damaged one")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes | IO[bytes]) -> None:
    """Write a new file for its owner only, onto the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            shutil.copyfileobj(content, file, 1024 * 1024)
        file.flush()
        os.fsync(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _failing(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackupFailed(f"{place}: {error.strerror or error}") from None
