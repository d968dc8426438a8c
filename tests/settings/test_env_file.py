"""`gatekeeper --env-file FILE`: lines as Docker, systemd and a shell read them, refused where these differ."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.errors import ConfigError
from gatekeeper.settings.env_file import load_env_file, read_env_file
from gatekeeper.settings.reference import env_file as every_setting
from tests.servers import fetch
from tests.system.sidecar import Backend, command, eventually, sidecar


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gatekeeper.env"


def read(file: Path, text: str) -> dict[str, str]:
    file.write_bytes(text.encode())
    return read_env_file(file)


def problems(file: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(file, text)
    return [problem.removeprefix(f"{file}, ") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("A=", ""),
        ("A=b c,GET /d", "b c,GET /d"),
        ("A=b  \t", "b"),
        ("  A=b", "b"),
        ("export A=b", "b"),
        ("export\tA=b", "b"),
        ("A=b=c", "b=c"),
        ("A=$HOME/${B}", "$HOME/${B}"),
        ("A=#b", "#b"),
        ("A=b#c", "b#c"),
        ("A=a\"b'c", "a\"b'c"),
        (r"A=b\nc", r"b\nc"),
        ('A=""', ""),
        ('A="b # c "', "b # c "),
        ("A='b $c \\'", "b $c \\"),
        (r'A="\"\\\$\`"', '"\\$`'),
        (r'A="b\nc"', r"b\nc"),
        ('A="b\nc"', "b\nc"),
        ("A='b\n# c\nd'", "b\n# c\nd"),
        ('A="b\\\nc"', "bc"),
        ("A='b' \t", "b"),
        ('A={"code": "{code}"}', '{"code": "{code}"}'),
    ],
)
def test_a_line_gives_its_value(file: Path, line: str, value: str) -> None:
    for text in (line, f"\n# comment\n; comment\n \t\n{line}\n\n", f"\ufeff{line}\r\n"):
        assert read(file, text) == {"A": value}


@pytest.mark.parametrize("line", ["A='b c'", 'A="b # c"', r'A="\"\\\$\`"', 'A="b\nc"', "export A=b", "A=b,c", "A="])
def test_a_shell_reads_the_same(file: Path, line: str) -> None:
    given = read(file, line)["A"]
    bash = shutil.which("bash")
    assert bash is not None
    shell = subprocess.run(
        [bash, "-c", f'set -a; . {file}; printf "%s|" "$A"'], capture_output=True, text=True, check=True
    )
    assert shell.stdout == f"{given}|"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("GATEKEEPER_JWT_SECRET hunter2", "read GATEKEEPER_JWT_SECRET without = right behind it"),
        ("GATEKEEPER_JWT_SECRET = hunter2", "read GATEKEEPER_JWT_SECRET without = right behind it"),
        ("GATEKEEPER_JWT_SECRET", "read GATEKEEPER_JWT_SECRET without = right behind it"),
        ("hunter2", "read ***"),
        ("hunter-2=x", "read ***"),
        ("=hunter2", "read ***"),
        ("2A=hunter2", "read ***"),
        ("A= hunter2", "A has a space after the ="),
        ("A=hunter2 # comment", "A has a # after a space"),
        ("A=hunter2\\", "A ends with a backslash"),
        ("A='hunter2' # comment", "A has characters after the closing '"),
        ("A='hunter2", "A begins with ', which is never closed"),
        ('A="hunter2\\"', 'A begins with ", which is never closed'),
        ("A=hunter2\0", "A has a NUL character"),
    ],
)
def test_a_bad_line_is_told_with_its_number_and_without_its_value(file: Path, line: str, said: str) -> None:
    (problem,) = problems(file, f"# comment\nB=c\n{line}\nC=d\n")
    assert problem.startswith(f"line 3: {said}")
    assert "accepted: " in problem
    assert "hunter" not in problem


def test_every_bad_line_is_told_at_once(file: Path) -> None:
    text = "A=b\nnonsense\nB='c\nd'\nA=e\nC= f\n"
    assert [problem.partition(":")[0] for problem in problems(file, text)] == ["line 2", "line 5", "line 6"]


def test_a_name_stands_once(file: Path) -> None:
    assert problems(file, "A=b\nB=c\nA=b") == ["line 3: read A, which line 1 sets too; accepted: each name once"]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"A=\xff")
    for path in (tmp_path / "missing", tmp_path, binary):
        with pytest.raises(ConfigError, match=re.escape(f"--env-file: read '{path}'")):
            read_env_file(path)


def test_the_environment_wins(file: Path) -> None:
    file.write_text("A=file\nB=file\nC=file\n")
    environ = {"A": "environment", "B": ""}
    assert load_env_file(file, environ) == {"C"}
    assert environ == {"A": "environment", "B": "", "C": "file"}


def test_a_bad_file_changes_nothing(file: Path) -> None:
    file.write_text("A=b\nnonsense\n")
    environ: dict[str, str] = {}
    with pytest.raises(ConfigError):
        load_env_file(file, environ)
    assert environ == {}


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r'")))
def test_single_quotes_keep_every_text(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    file = tmp_path_factory.getbasetemp() / "quoted.env"
    assert read(file, f"A='{value}'\nB=c") == {"A": value, "B": "c"}


@given(st.text(st.sampled_from("AB=#;'\"\\ \t\n$")))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.env"
    with suppress(ConfigError):
        read(file, text)


def test_every_setting_of_the_reference_can_be_uncommented(file: Path) -> None:
    text = re.sub(r"^#(GATEKEEPER_)", r"\1", every_setting(), flags=re.MULTILINE)
    assert len(read(file, text)) == text.count("\nGATEKEEPER_")


# As a command


def test_a_command_reads_the_file_and_says_so(file: Path) -> None:
    file.write_text("GATEKEEPER_DEVICE_LIMIT=5\nGATEKEEPER_IDLE_TIMEOUT=7m\n")
    done = command("--env-file", str(file), "config", idle_timeout="8m")
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert re.search(r" 5  \(env file\)$", rows["GATEKEEPER_DEVICE_LIMIT"])
    assert re.search(r" 8m  \(environment\)$", rows["GATEKEEPER_IDLE_TIMEOUT"])


@pytest.mark.parametrize("name", ["serve", "demo", "check", "config", "sessions list 1", "token --sub 1", "audit tail"])
def test_every_command_refuses_a_bad_file_with_exit_code_2(file: Path, name: str) -> None:
    file.write_text("GATEKEEPER_DEVICE_LIMIT=many\nGATEKEEPER_JWT_SECRET: hunter2\n")
    done = command("--env-file", str(file), *name.split())
    assert done.returncode == 2
    assert f"{file}, line 2: read GATEKEEPER_JWT_SECRET without = right behind it" in done.stderr
    assert "hunter2" not in done.stderr
    file.write_text("GATEKEEPER_DEVICE_LIMIT=many\n")
    done = command("--env-file", str(file), *name.split())
    assert done.returncode == 2
    assert "GATEKEEPER_DEVICE_LIMIT: read 'many'" in done.stderr


def test_a_missing_file_is_exit_code_2(tmp_path: Path) -> None:
    done = command("--env-file", str(tmp_path / "missing.env"), "config")
    assert done.returncode == 2
    assert "cannot be read (No such file or directory)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_server_and_its_workers_see_the_file(file: Path, workers: str) -> None:
    file.write_text(f'# of the sidecar\nGATEKEEPER_WORKERS={workers}\nGATEKEEPER_PUBLIC_PATHS="GET /open"\n')
    with Backend() as backend, sidecar(backend.url, "--env-file", str(file)) as gate:
        eventually(lambda: gate.ready().status == 200, seconds=60)
        for _ in range(4):
            assert fetch(gate.url, "GET", "/open", timeout=60).status == 200
            assert fetch(gate.url, "GET", "/closed", timeout=60).status == 401
