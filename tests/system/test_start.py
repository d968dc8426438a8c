"""What keeps Gatekeeper from starting, and how that is told."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gatekeeper.serve import inherited
from tests.servers import fetch
from tests.system.sidecar import (
    START_SECONDS,
    Backend,
    Sidecar,
    Store,
    command,
    embedded_pid,
    eventually,
    kill_embedded,
)
from tests.tokens import forge


def one_line(stderr: str) -> str:
    (line,) = stderr.splitlines()
    return line


@pytest.mark.parametrize("variable", ["listen", "ops_listen"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_taken_port_is_told_in_one_line(store: Store, backend: Backend, variable: str, workers: str) -> None:  # K13
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = {variable: address, "workers": workers, "redis_url": store.url}
        done = command("serve", upstream_url=backend.url, **settings)
    assert done.returncode == 1
    assert one_line(done.stderr) == f"gatekeeper: cannot listen on {address}: Address already in use"
    assert done.stdout == ""


@pytest.mark.parametrize("address", ["192.0.2.1:8000", "no.such.host.invalid:8000"])
def test_an_address_that_is_not_ours_is_told_in_one_line(store: Store, backend: Backend, address: str) -> None:  # K13
    done = command("serve", upstream_url=backend.url, redis_url=store.url, listen=address)
    assert done.returncode == 1
    assert one_line(done.stderr).startswith(f"gatekeeper: cannot listen on {address}: ")


def test_all_problems_of_the_settings_are_told_at_once(backend: Backend) -> None:  # C01, C02
    secret = "a-secret-that-is-too-short"
    done = command(
        "serve",
        jwt_secret=secret,
        listen="nowhere",
        device_limit="many",
        devise_limit="3",
        redis_url="redis://user:hunter2@",
        jwt_leeway="301s",
        error_dialect="soap",
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    head, *problems = done.stderr.splitlines()
    names = [problem.split(":")[0].strip().removeprefix("GATEKEEPER_") for problem in problems]
    wrong = ["LISTEN", "DEVICE_LIMIT", "DEVISE_LIMIT", "REDIS_URL", "JWT_LEEWAY", "ERROR_DIALECT", "JWT_SECRET"]
    assert sorted(names) == sorted([*wrong, "UPSTREAM_URL"])
    assert head == f"gatekeeper: {len(problems)} problem(s) with the settings"
    assert secret not in done.stderr
    assert "hunter2" not in done.stderr
    assert "GATEKEEPER_DEVICE_LIMIT" in next(line for line in problems if "DEVISE" in line)


@pytest.mark.parametrize(
    "secret", ["", "12345678", "changeme", "x" * 64, "changeme-to-what-openssl-rand-base64-48-prints"]
)
def test_a_weak_secret_is_refused(backend: Backend, secret: str) -> None:  # T28
    done = command("serve", upstream_url=backend.url, jwt_secret=secret)
    assert done.returncode == 2
    assert "GATEKEEPER_JWT_SECRET" in done.stderr
    assert "Traceback" not in done.stderr
    assert not secret or f"'{secret}'" not in done.stderr


def test_a_public_key_is_no_secret(backend: Backend) -> None:  # T02
    key = ec.generate_private_key(ec.SECP256R1())
    done = command("serve", upstream_url=backend.url, jwt_secret=forge.pem(key))
    assert done.returncode == 2
    assert "GATEKEEPER_JWT_SECRET" in done.stderr
    assert "BEGIN" not in done.stderr


def test_a_data_directory_that_cannot_be_used_is_told_in_one_line(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for workers in ("1", "2"):
        done = command("serve", upstream_url=backend.url, data_dir=str(tmp_path / "file" / "data"), workers=workers)
        assert done.returncode in (1, 2)
        assert "GATEKEEPER_DATA_DIR" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_what_kubernetes_injects_is_no_setting(store: Store, backend: Backend) -> None:
    injected = {
        "port": "tcp://10.0.0.1:8000",
        "service_host": "10.0.0.1",
        "service_port": "8000",
        "port_8000_tcp_addr": "10.0.0.1",
        "service_port_http": "8000",
    }
    done = command("check", upstream_url=backend.url, redis_url=store.url, **injected)
    assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_leaves_nothing_behind(backend: Backend, tmp_path: Path, number: int) -> None:
    data_dir = tmp_path / "data"
    gate = Sidecar({"upstream_url": backend.url, "data_dir": str(data_dir)}, tmp_path)
    try:
        eventually(lambda: embedded_pid(data_dir) is not None, seconds=START_SECONDS)
        gate.process.send_signal(number)
        assert gate.exit_code() == 0
        assert embedded_pid(data_dir) is None
        assert "Traceback" not in gate.stderr
    finally:
        gate.close()
        kill_embedded(data_dir)


# As systemd does it: the socket is 3, and for this very process.
_SYSTEMD = """
import os, sys
os.dup2({number}, 3)
del os.environ["GATEKEEPER_LISTEN"]
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], [sys.argv[1], "serve"])
"""


def _connects(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_start_that_fails_never_accepts(store: Store, backend: Backend, tmp_path: Path, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    # The settings are read; that the key cannot be used is seen when it is loaded.
    pem = forge.pem(ec.generate_private_key(ec.SECP256R1())).replace("A", "B")
    settings = {"listen": f"127.0.0.1:{port}", "workers": workers, "redis_url": store.url, "jwt_public_key": pem}
    gate = Sidecar({"upstream_url": backend.url, **settings}, tmp_path)
    try:
        while gate.process.poll() is None:
            assert not _connects(port)
        assert gate.process.returncode == 2
        assert "Traceback" not in gate.stderr
    finally:
        gate.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_inherited_socket_is_served(store: Store, backend: Backend, tmp_path: Path, workers: str) -> None:
    settings = {"upstream_url": backend.url, "redis_url": store.url, "workers": workers}
    with socket.create_server(("127.0.0.1", 0)) as passed:
        url = f"http://127.0.0.1:{passed.getsockname()[1]}"
        number = passed.fileno()
        by_number = {**settings, "listen": f"fd:{number}"}
        for place, (given, launcher) in enumerate(((by_number, ""), (settings, _SYSTEMD.format(number=number)))):
            gate = Sidecar(given, tmp_path, place, pass_fds=(number,), launcher=launcher)
            try:
                gate.wait_until_listening()
                assert gate.url == url
                assert fetch(url).status == 401
                gate.terminate()
                assert gate.exit_code() == 0
            finally:
                gate.close()
        # The socket outlives both.
        assert _connects(passed.getsockname()[1])


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("fd:999", "Bad file descriptor; accepted: the number of an inherited socket"),
        ("fd:0", "Socket operation on non-socket; accepted: the number of an inherited socket"),
    ],
)
def test_a_number_that_is_no_socket_is_told_in_one_line(backend: Backend, store: Store, listen: str, why: str) -> None:
    done = command("serve", upstream_url=backend.url, redis_url=store.url, listen=listen)
    assert done.returncode == 1
    assert one_line(done.stderr) == f"gatekeeper: cannot listen on {listen}: {why}"


@pytest.mark.parametrize(
    ("count", "pid", "numbers"),
    [("2", "own", [3, 4]), ("1", "", [3]), ("1", "1", []), ("", "own", []), ("0", "own", []), ("x", "own", [])],
)
def test_sockets_for_another_process_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, count: str, pid: str, numbers: list[int]
) -> None:
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "own" else pid)
    assert list(inherited.numbers()) == numbers
