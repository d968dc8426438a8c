"""Commands ask the store that serves. None of them starts one: an empty store would tell that there is nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers import fetch
from tests.system.sidecar import (
    Backend,
    bearer,
    command,
    embedded_pid,
    environment,
    eventually,
    sidecar,
    someone,
    token,
)

ALL = [
    ["sessions", "list", "7"],
    ["sessions", "revoke", "7", "--all"],
    ["sessions", "revoke", "7", "5"],
    ["audit", "tail"],
    ["audit", "export"],
    ["check", "--online"],
]
NO_STORE = ["nothing", "an empty directory", "files of a store that is gone"]


@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
@pytest.mark.parametrize("left", NO_STORE)
def test_where_no_store_runs_that_is_said_and_none_is_started(tmp_path: Path, arguments: list[str], left: str) -> None:
    data = tmp_path / "data"
    if left != "nothing":
        data.mkdir()
    if left.startswith("files"):
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(data / "valkey.sock"))
        (data / "valkey.pid").write_text(f"{os.getpid()}\n")
        (data / "in-use.lock").touch()
    before = sorted(data.rglob("*"))
    done = command(*arguments, data_dir=str(data))
    if arguments[0] == "check":
        # Before the first `serve` there is none, and nothing is wrong with that.
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "ok")
        assert f"store: embedded Valkey in {data}, not running: `gatekeeper serve` starts it\n" in done.stdout
    else:
        assert done.returncode == 1
        assert f"no embedded store runs in {data}: it runs while `gatekeeper serve` does" in done.stderr
        assert f"store: embedded Valkey in {data}\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(data.rglob("*")) == before
    assert data.exists() is (left != "nothing")


def test_check_asks_the_backend_and_the_keys_where_the_store_does_not_run(tmp_path: Path) -> None:
    done = command(
        "check",
        "--online",
        data_dir=str(tmp_path / "data"),
        upstream_url="http://127.0.0.1:1",
        jwks_url="http://127.0.0.1:1/keys",
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert (done.returncode, len(failed)) == (1, 2), done.stdout
    assert "key" in failed[0]
    assert "GATEKEEPER_UPSTREAM_URL" in failed[1]


def test_a_relative_directory_is_named_in_full() -> None:
    done = command("sessions", "revoke", "7", "--all")
    (first, second) = done.stderr.splitlines()
    assert first.startswith("store: embedded Valkey in /")
    assert first.endswith("/.gatekeeper")
    assert second.startswith("gatekeeper: no embedded store runs in /")


def test_commands_join_the_store_that_runs_and_leave_it_running(tmp_path: Path) -> None:
    """By another name of its directory too, without any key; also a store that a `kill -9` left behind, which the next
    start takes over."""
    data, link = tmp_path / "data", tmp_path / "link"
    link.symlink_to(data)
    user = someone()
    with Backend() as backend, sidecar(backend.url, data_dir=str(data)) as gate:
        held = token(user)
        for each in (held, token(user), token(user)):
            assert fetch(gate.url, "GET", "/", [bearer(each)]).status == 200
        server = embedded_pid(data)
        # Both, and one not readable, would be two problems for a command that wants a key.
        listed = command("sessions", "list", user, data_dir=str(link), jwt_secret_file=str(tmp_path / "secret"))
        assert (listed.returncode, listed.stdout.count("\n")) == (0, 3), listed.stderr
        assert listed.stderr == f"store: embedded Valkey in {data}\n"
        done = command("sessions", "revoke", user, "--all", data_dir=str(data))
        assert (done.returncode, done.stdout) == (0, "3 session(s) ended\n")
        assert fetch(gate.url, "GET", "/", [bearer(held)]).status == 401
        assert command("check", "--online", data_dir=str(data)).returncode == 0
        assert embedded_pid(data) == server
        gate.process.send_signal(signal.SIGKILL)
        gate.process.wait()
        assert command("sessions", "list", user, data_dir=str(data)).returncode == 0
        assert embedded_pid(data) == server


def test_a_command_that_follows_keeps_no_store_alive(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Backend() as backend, sidecar(backend.url, data_dir=str(data)) as gate:
        assert fetch(gate.url, "GET", "/", [bearer(token(someone()))]).status == 200
        following = subprocess.Popen(
            [Path(sys.executable).parent / "gatekeeper", "audit", "tail", "--follow"],
            env=environment(data_dir=str(data)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with following:
            assert following.stdout is not None
            assert following.stdout.readline()
            gate.terminate()
            assert gate.exit_code(seconds=60) == 0
            eventually(lambda: embedded_pid(data) is None)
            assert following.wait(60) == 1


def test_what_is_to_be_revoked_is_named(tmp_path: Path) -> None:
    for arguments in (["7"], ["7", "5", "--all"], ["7", "x"]):
        done = command("sessions", "revoke", *arguments, data_dir=str(tmp_path))
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr


# What `check` says of the directory without --online


def test_check_fails_for_a_directory_that_serve_refuses(tmp_path: Path) -> None:
    file, foreign = tmp_path / "file", tmp_path / "foreign"
    file.touch()
    refused = [file / "below", Path("/proc/gatekeeper/data")]
    if os.getuid() == 0:
        foreign.mkdir()
        os.chown(foreign, 12345, 12345)
        refused.append(foreign)
    else:
        foreign.mkdir(mode=0o500)
        refused.append(foreign / "below")
    for data in refused:
        checked = command("check", data_dir=str(data))
        served = command("serve", data_dir=str(data), upstream_url="http://127.0.0.1:1")
        assert (checked.returncode, served.returncode) == (1, 1), data
        (failure,) = [line for line in checked.stdout.splitlines() if line.startswith("failed: ")]
        assert failure.removeprefix("failed: ") in served.stderr
        assert checked.stdout.splitlines()[-1] == "failed"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "foreign"]


def test_check_warns_of_a_directory_that_others_can_write_to(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for mode, expected in ((0o700, 0), (0o755, 0), (0o770, 1), (0o777, 1)):
        data.chmod(mode)
        done = command("check", data_dir=str(data))
        found = [line for line in done.stdout.splitlines() if line.startswith("warning: GATEKEEPER_DATA_DIR: ")]
        assert (done.returncode, len(found)) == (0, expected)
    assert not list(data.iterdir())


# Whose rules count


def test_commands_judge_by_the_rules_of_the_gatekeeper_that_serves(tmp_path: Path) -> None:  # C09
    data, user = tmp_path / "data", someone()
    with Backend() as backend, sidecar(backend.url, data_dir=str(data), idle_timeout="1h", device_limit="9") as gate:
        held = token(user)
        assert fetch(gate.url, "GET", "/", [bearer(held)]).status == 200
        other = {"data_dir": str(data), "idle_timeout": "100ms", "device_limit": "1"}
        note = "here and {} there, at the Gatekeeper that serves: its settings count\n"

        def idle_by_the_command() -> bool:
            listed = command("sessions", "list", user, **other)
            assert (listed.returncode, listed.stdout.split()[1:2]) == (0, ["live"]), listed.stdout
            assert f"note: GATEKEEPER_IDLE_TIMEOUT is 0.1s {note.format('3600s')}" in listed.stderr
            assert f"note: GATEKEEPER_DEVICE_LIMIT is 1 {note.format('9')}" in listed.stderr
            assert listed.stderr.count("note: ") == 2
            return time.monotonic() > begun + 0.5

        begun = time.monotonic()
        eventually(idle_by_the_command)
        checked = command("check", "--online", **other)
        assert "warning: the Gatekeeper that started last on this store has other settings: " in checked.stdout
        assert "GATEKEEPER_IDLE_TIMEOUT is 0.1s here and 3600s there" in checked.stdout
        assert fetch(gate.url, "GET", "/", [bearer(held)]).status == 200
        assert command("sessions", "revoke", someone(), "--all", **other).returncode == 1
        assert (
            "other settings"
            not in command("check", "--online", data_dir=str(data), idle_timeout="1h", device_limit="9").stdout
        )


def test_check_online_tells_the_state_of_a_tokens_session(tmp_path: Path) -> None:
    data, user, file = tmp_path / "data", someone(), tmp_path / "token"
    with Backend() as backend, sidecar(backend.url, data_dir=str(data)) as gate:
        held = token(user)
        file.write_text(held)

        def checked() -> tuple[int, str]:
            done = command("check", "--online", "--token", str(file), data_dir=str(data), upstream_url=backend.url)
            assert done.stdout.startswith(f"the token is good: user {user}, roles "), done.stdout
            (line,) = [line for line in done.stdout.splitlines() if line.startswith("  its session: ")]
            return done.returncode, line.removeprefix("  its session: ")

        assert checked() == (0, "the store has none yet")
        assert fetch(gate.url, "GET", "/", [bearer(held)]).status == 200
        session_id, state = command("sessions", "list", user, data_dir=str(data)).stdout.split()[:2]
        code, line = checked()
        assert (code, state) == (0, "live")
        assert line.startswith(f"{session_id}, live, last active ")
        assert command("sessions", "revoke", user, session_id, data_dir=str(data)).returncode == 0
        assert checked() == (1, f"{session_id}, which has ended (revoked_by_admin): the token is refused")
    # Without a store its token is judged all the same.
    done = command("check", "--online", "--token", str(file), data_dir=str(data), upstream_url="http://127.0.0.1:1")
    assert "  its session: the store does not answer\n" in done.stdout
    assert "Traceback" not in done.stderr
