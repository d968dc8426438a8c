"""What an installation gets: exactly two top-level names, with everything in them that they need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from gatekeeper import __version__

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # Without isolation: the back end is locked with everything else, and nothing is fetched.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(_ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installer would put into site-packages."""
    where = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(where)  # noqa: S202 - it was built here
    return where


def _python(code: str, *, path: Path) -> str:
    """What `code` prints with `path` as the only place of our code."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEKEEPER_")}
    environment |= {"PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_wheel_installs_exactly_two_top_level_names(names: list[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert tops == {"gatekeeper", "gatekeeper_middleware", f"gatekeeper_sidecar-{__version__}.dist-info"}


def test_the_wheel_has_every_source_file_and_nothing_else(names: list[str]) -> None:
    sources = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in (
            ("gatekeeper", _ROOT / "gatekeeper"),
            ("gatekeeper_middleware", _ROOT / "middleware" / "gatekeeper_middleware"),
        )
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == sources


def test_the_wheel_has_the_scripts_of_the_store_and_says_that_it_is_typed(names: list[str]) -> None:
    scripts = {f"gatekeeper/sessions/scripts/{name}.lua" for name in ("check", "common", "end", "end_all", "list")}
    assert scripts <= set(names)
    assert {"gatekeeper/py.typed", "gatekeeper_middleware/py.typed"} <= set(names)


def test_the_wheel_brings_its_licence_and_its_command(wheel: Path, names: list[str]) -> None:
    info = f"gatekeeper_sidecar-{__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in names
    entry_points = zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()
    assert "gatekeeper = gatekeeper.cli:main" in entry_points


def test_the_middleware_loads_no_server_and_no_proxy(unpacked: Path) -> None:
    code = (
        "import sys, gatekeeper_middleware as m; "
        "unwanted = ('uvicorn', 'uvloop', 'gatekeeper.forward', 'gatekeeper.serve', 'gatekeeper.app', "
        "'gatekeeper.cli', 'gatekeeper.demo'); "
        "print(m.__file__, [name for name in unwanted if name in sys.modules])"
    )
    assert _python(code, path=unpacked) == f"{unpacked / 'gatekeeper_middleware' / '__init__.py'} []"


def test_the_command_runs_from_what_was_installed(unpacked: Path) -> None:
    code = "import sys; sys.argv = ['gatekeeper', '--version']; from gatekeeper.cli import main; main()"
    assert _python(code, path=unpacked) == f"gatekeeper {__version__}"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("both")
    # `build` without --wheel makes the wheel from the source distribution.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(_ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


def test_the_source_distribution_builds_the_same_wheel(names: list[str], both: Path) -> None:
    (again,) = both.glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(names)


def test_the_source_distribution_has_every_file_of_the_repository(both: Path) -> None:
    if not (_ROOT / ".git").exists():
        pytest.skip("no repository: this is what was unpacked from a source distribution")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=_ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split("\0") if name and (_ROOT / name).exists()}
    (archive,) = both.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        packed = {file.name.partition("/")[2]: file.mode for file in files if file.isfile()}
    assert packed.keys() >= tracked
    assert {"uv.lock", "Dockerfile", ".ci/run", "CONTRIBUTING.md", "SECURITY.md", "tests/vectors/README.md"} <= tracked
    assert packed[".ci/run"] & 0o100, "it is run by its name"
    # What is not tracked is left out too, by .gitignore: no environment, no data, no cache.
    assert not {name for name in packed if name.startswith((".venv", ".gatekeeper", ".git/", "bench/.work"))}


def test_the_classifiers_name_the_pythons_that_are_tested() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert project["requires-python"] == f">={named[0]}"
    assert named == [f"3.{minor}" for minor in range(int(named[0][2:]), int(named[-1][2:]) + 1)]
    found = subprocess.run([_ROOT / ".ci" / "pythons"], capture_output=True, text=True, check=True).stdout
    installed = [line.split()[0] for line in found.splitlines()]
    assert set(installed) <= set(named)
