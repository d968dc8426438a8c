"""`gatekeeper demo`: what it prints is pasted into a shell, and must do what it says."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.servers import fetch
from tests.system.sidecar import embedded_pid, environment, eventually, kill_embedded
from tests.waiting import HANG_SECONDS, START_SECONDS

pytestmark = pytest.mark.slow

_COMMAND = Path(sys.executable).parent / "gatekeeper"


class Demo:
    """A running demo and what it printed."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self._out, self._err = directory / "stdout", directory / "stderr"
        self.data_dir = directory / ".gatekeeper" / "demo"
        environ = environment(**settings)
        # As a visitor has it: no key of theirs, and no port that is anybody's.
        del environ["GATEKEEPER_JWT_SECRET"], environ["GATEKEEPER_LOG_FORMAT"]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [_COMMAND, "demo"], env=environ, cwd=directory, stdout=out, stderr=err, start_new_session=True
            )

    @property
    def guide(self) -> str:
        return self._out.read_text()

    @property
    def errors(self) -> str:
        return self._err.read_text()

    def url(self, what: str) -> str:
        found = re.search(rf"^  {what} +(http://\S+?)(?:/readyz.*)?(?: .*)?$", self.guide, re.MULTILINE)
        assert found is not None, self.guide
        return found[1]

    @property
    def lines(self) -> list[str]:
        """What to paste."""
        return [line for line in self.guide.splitlines() if re.match(r"(curl |[A-Z]+=\$\(curl )", line)]


@contextmanager
def demo(directory: Path, **settings: str) -> Iterator[Demo]:
    running = Demo(directory, **settings)
    try:
        eventually(
            lambda: "Ctrl-C stops everything." in running.guide or running.process.poll() is not None,
            seconds=START_SECONDS,
        )
        yield running
    finally:
        running.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            running.process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
        kill_embedded(running.data_dir)
    assert "Traceback" not in running.errors, running.errors


def paste(lines: list[str]) -> list[str]:
    done = subprocess.run(
        ["bash", "-e"], input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=START_SECONDS, check=True
    )
    return done.stdout.splitlines()


def test_the_printed_lines_do_what_they_say(tmp_path: Path) -> None:
    with demo(tmp_path) as running:
        eventually(lambda: fetch(running.url("ops"), "GET", "/readyz").status == 200)
        assert len(running.lines) == 13, running.lines
        out = "\n".join(paste(running.lines))
        answers, _, rest = out.partition("HTTP/1.1 401")
        hello, hello_again, mine, express, admins, closed = answers.splitlines()
        assert hello == hello_again == '{"message":"Hello alice!"}'
        laptop, phone = sorted(json.loads(mine), key=lambda row: str(row["browser"]))[::-1]
        assert {row["device_name"] for row in json.loads(mine)} >= {"Safari on iOS 17.2"}
        assert {row["user_id"] for row in json.loads(mine)} == {74}
        assert laptop["id"] != phone["id"]
        shown = [row["id"] for row in json.loads(express)["data"]]
        assert sorted(shown) == sorted(f"session_{row['id']}" for row in json.loads(mine))
        assert len(json.loads(admins)) == 2
        assert closed == '{"success":true,"message":"All sessions closed successfully","closed_count":1}'
        assert '"code":"session_revoked_or_invalid","reason":"revoked_by_user"' in rest
        *_, headers, goodbye, refused = rest.splitlines()
        assert goodbye == '{"message":"Goodbye"}'
        assert json.loads(refused) == {
            "detail": "Access token has been revoked",
            "code": "access_token_blacklisted",
            "reason": "logged_out",
        }
        told = json.loads(headers)
        assert (told["x-user-id"], told["x-user-roles"]) == ("74", "user")
        # A second time too, although sessions of the first are still there; not within the second of the end of all
        # others, before which every token counts as issued (rule 4.4).
        ended_at = int(time.time())
        eventually(lambda: int(time.time()) > ended_at)
        assert "Hello alice!" in paste(running.lines)[0]


def test_the_three_users_and_every_claimed_path_are_named(tmp_path: Path) -> None:
    with demo(tmp_path) as running:
        for user in ("alice/wonderland", "bob/builder", "admin/letmein"):
            assert user in running.guide
        for path in ("GET    /api/sessions", "GET    /sessions/user/{user_id}", "DELETE /sessions/logout"):
            assert path in running.guide
        base = running.url("sidecar")
        for name, password, status in (("bob", "builder", 200), ("bob", "wonderland", 401), ("eve", "x", 401)):
            body = json.dumps({"username": name, "password": password}).encode()
            assert fetch(base, "POST", "/auth/login", [("Content-Type", "application/json")], body).status == status
        assert fetch(base, "GET", "/health").body == b'{"status":"ok"}'
        assert fetch(base, "GET", "/protected").status == 401


def test_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    with demo(tmp_path) as running:
        eventually(lambda: embedded_pid(running.data_dir))
        backend = running.url("backend")
        fetch(backend, "GET", "/health")
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(START_SECONDS) == 0
        assert embedded_pid(running.data_dir) is None
        with pytest.raises(OSError):
            fetch(backend, "GET", "/health", timeout=HANG_SECONDS)


def test_a_taken_port_is_told_and_the_next_one_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with demo(tmp_path, listen=f"127.0.0.1:{port}") as running:
            found = re.search(rf"Port {port} is in use; using (\d+) instead\.", running.guide)
            assert found is not None
            assert int(found[1]) > port
            assert running.url("sidecar") == f"http://127.0.0.1:{found[1]}"
            assert fetch(running.url("sidecar"), "GET", "/health").status == 200


def test_sessions_outlive_a_restart_of_the_demo(tmp_path: Path) -> None:
    def log_in(base: str) -> str:
        body = b'{"username":"alice","password":"wonderland"}'
        answer = fetch(base, "POST", "/auth/login", [("Content-Type", "application/json")], body)
        return str(json.loads(answer.body)["access_token"])

    with demo(tmp_path) as running:
        base = running.url("sidecar")
        lives, revoked = log_in(base), log_in(base)
        assert fetch(base, "GET", "/protected", [("Authorization", f"Bearer {lives}")]).status == 200
        answer = fetch(base, "DELETE", "/sessions/logout", [("Authorization", f"Bearer {revoked}")])
        assert answer.status == 200
    with demo(tmp_path) as running:
        base = running.url("sidecar")
        assert fetch(base, "GET", "/protected", [("Authorization", f"Bearer {lives}")]).status == 200
        assert fetch(base, "GET", "/protected", [("Authorization", f"Bearer {revoked}")]).status == 401
