"""`gatekeeper backup` while requests are served, and `gatekeeper restore`: every copy loads, and holds what had been
acknowledged before."""

from __future__ import annotations

import json
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from gatekeeper.store.embedded import EmbeddedStoreFailed, EmbeddedValkey
from gatekeeper.store.epoch import SCHEMA
from tests.servers import fetch
from tests.system.sidecar import Backend, Sidecar, bearer, command, eventually, sidecar, someone, token

COPIES = 3


def admitted(gate: Sidecar, held: str) -> bool:
    return fetch(gate.url, "GET", "/", [bearer(held)], timeout=60).status == 200


def log_out(gate: Sidecar, held: str) -> None:
    assert fetch(gate.url, "DELETE", "/sessions/logout", [bearer(held)], timeout=60).status == 200


def backed_up(data: Path, folder: Path) -> None:
    done = command("backup", str(folder), data_dir=str(data))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("backed up ")


def restored(data: Path, folder: Path) -> None:
    done = command("restore", str(folder), data_dir=str(data))
    assert done.returncode == 0, done.stderr
    assert "are live again: end them once more" in done.stderr


@contextmanager
def opening(gate: Sidecar, opened: list[str]) -> Iterator[None]:
    """Clients that open sessions all the while; `opened` are the tokens whose opening was acknowledged."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            held = token(someone())
            if admitted(gate, held):
                opened.append(held)

    clients = [threading.Thread(target=run) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        over.set()
        for client in clients:
            client.join()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_copies_that_are_made_under_load_load_and_are_whole(tmp_path: Path) -> None:
    data, opened = tmp_path / "data", list[str]()
    copies: list[tuple[Path, list[str], str]] = []
    with Backend() as backend:
        with sidecar(backend.url, data_dir=str(data)) as gate, opening(gate, opened):
            for number in range(COPIES):
                # The append-only file is rewritten as often: a copy of its files would be one of a moving target.
                with redis.Redis.from_url(EmbeddedValkey(data).url) as server:
                    server.bgrewriteaof()
                ended = token(someone())
                assert admitted(gate, ended)
                log_out(gate, ended)
                before = list(opened)
                folder = tmp_path / f"copy {number}"
                backed_up(data, folder)
                copies.append((folder, before, ended))
        # Under load until the last copy was made.
        assert len(opened) > len(copies[-1][1])
        assert not list(data.glob("*.rdb"))
        for folder, before, ended in copies:
            other = folder / "data"
            restored(other, folder)
            with sidecar(backend.url, data_dir=str(other)) as gate:
                assert all(admitted(gate, held) for held in before[-20:])
                assert not admitted(gate, ended)
            with _running(other) as server:
                # None is missing, not only of those that were asked for.
                assert len(list(server.scan_iter("gk:{*}:sessions"))) >= len(before)


@contextmanager
def _running(data: Path) -> Iterator[redis.Redis]:
    store = EmbeddedValkey(data)
    store.start()
    try:
        with redis.Redis.from_url(store.url) as server:
            eventually(lambda: not server.info("persistence")["loading"])
            yield server
    finally:
        store.stop()


def test_what_ends_after_a_backup_and_what_begins_after_it(tmp_path: Path) -> None:
    """What docs/operations.md says of the time between: a session of the copy is live again, one that began after it
    does not begin again."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    with Backend() as backend:
        with sidecar(backend.url, data_dir=str(data)) as gate:
            kept, ended_before, ended_after = (token(someone()) for _ in range(3))
            assert all(admitted(gate, held) for held in (kept, ended_before, ended_after))
            log_out(gate, ended_before)
            backed_up(data, copy)
            log_out(gate, ended_after)
            begun_after, begun_and_ended = token(someone()), token(someone())
            assert admitted(gate, begun_after)
            assert admitted(gate, begun_and_ended)
            log_out(gate, begun_and_ended)
            # In use, so that it is not replaced.
            refused = command("restore", str(copy), data_dir=str(data))
            assert (refused.returncode, refused.stdout) == (1, "")
            assert "is in use: stop `gatekeeper serve`" in refused.stderr
            assert admitted(gate, kept)
        restored(data, copy)
        (replaced,) = data.glob("appendonlydir.replaced-*")
        assert any(replaced.iterdir())
        with sidecar(backend.url, data_dir=str(data)) as gate:
            assert admitted(gate, kept)
            assert admitted(gate, ended_after)
            assert not admitted(gate, ended_before)
            assert not admitted(gate, begun_after)
            assert not admitted(gate, begun_and_ended)
            # The process goes on as usual, with new tokens.
            assert admitted(gate, token(someone(), iat=int(time.time()) + 1))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backup")
    with _running(folder / "data") as server:
        for number in range(1000):
            server.set(f"key {number}", "x" * 100)
        backed_up(folder / "data", folder / "copy")
    return folder / "copy"


def test_a_backup_is_for_its_owner_only(copy: Path) -> None:
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in copy.iterdir()} == {
        "sessions.rdb": 0o600,
        "backup.json": 0o600,
    }


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("cut", "is damaged"),
        ("changed", "is damaged"),
        ("without description", "holds no complete backup"),
        ("another description", "it is not the description of a backup"),
        ("another format", f"holds format {SCHEMA + 1}, and this Gatekeeper has format {SCHEMA}"),
        ("nothing", "holds no complete backup"),
    ],
)
def test_what_is_no_good_backup_is_refused_and_replaces_nothing(
    copy: Path, tmp_path: Path, what: str, said: str
) -> None:
    data, folder = tmp_path / "data", tmp_path / "copy"
    with _running(data) as server:
        server.set("kept", "yes")
    if what != "nothing":
        shutil.copytree(copy, folder)
        snapshot, description = folder / "sessions.rdb", folder / "backup.json"
        if what == "cut":
            snapshot.write_bytes(snapshot.read_bytes()[:-20])
        elif what == "changed":
            content = bytearray(snapshot.read_bytes())
            content[len(content) // 2] ^= 1
            snapshot.write_bytes(content)
        elif what == "without description":
            description.unlink()
        elif what == "another description":
            description.write_text("{}")
        else:
            description.write_text(json.dumps(json.loads(description.read_text()) | {"schema": SCHEMA + 1}))
    done = command("restore", str(folder), data_dir=str(data))
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    with _running(data) as server:
        assert server.get("kept") == b"yes"


def test_a_restore_that_broke_off_is_repeated_before_anything_starts(copy: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    restored(data, copy)
    (data / "appendonlydir").rename(data / "appendonlydir.restoring")
    with pytest.raises(EmbeddedStoreFailed, match="broke off: repeat `gatekeeper restore`"):
        EmbeddedValkey(data).start()
    restored(data, copy)
    with _running(data) as server:
        assert server.dbsize() == 1001


def test_a_backup_goes_into_an_empty_folder_of_a_store_that_runs(copy: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder, said in ((copy, "is not empty"), (copy / "backup.json", "File exists"), (Path("/proc/x"), "/proc/x: ")):
        with _running(data):
            done = command("backup", str(folder), data_dir=str(data))
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
    done = command("backup", str(tmp_path / "copy"), data_dir=str(data))
    assert done.returncode == 1
    assert "no embedded store runs in" in done.stderr
    assert not (tmp_path / "copy").exists()


def test_a_store_of_the_operators_own_is_left_to_its_own_means(copy: Path) -> None:
    for name in ("backup", "restore"):
        done = command(name, str(copy), redis_url="redis://127.0.0.1:1")
        assert (done.returncode, done.stdout) == (1, "")
        assert "GATEKEEPER_REDIS_URL is set: back that store up by its own means" in done.stderr
