"""The programs that the bench needs beyond the project: installed into `bench/.work`, reported if missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
WORK: Final = HERE / ".work"
VENV: Final = WORK / "venv"
FASTIFY: Final = WORK / "fastify"
PEERS: Final = HERE / "peers"

_MODULES: Final = Path("/usr/lib/nginx/modules")
_PACKAGES: Final = {
    "wrk": "wrk",
    "nginx": "nginx libnginx-mod-http-lua lua-nginx-redis lua-cjson",
    "node": "nodejs",
    "npm": "npm",
}


def install() -> None:
    """The pinned packages of Python and of node; those of the system as root with CI=true only."""
    WORK.mkdir(exist_ok=True)
    missing = [packages for command, packages in _PACKAGES.items() if shutil.which(command) is None]
    if _PACKAGES["nginx"] not in missing and nginx_is_missing():
        missing.append(_PACKAGES["nginx"])
    if missing and os.environ.get("CI") == "true" and os.getuid() == 0:
        _install_system(" ".join(missing).split())
    _install_python()
    if shutil.which("npm"):
        _install_node()


def _install_system(packages: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment)
    subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], check=True, env=environment
    )
    # The package starts an nginx of its own.
    if "nginx" in packages:
        subprocess.run(["service", "nginx", "stop"], check=False)


def _install_python() -> None:
    wanted = HERE / "requirements.txt"
    if _is_installed(VENV, wanted):
        return
    venv.create(VENV, with_pip=True)
    pip = [str(VENV / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(wanted)], check=True)
    _remember(VENV, wanted)


def _install_node() -> None:
    wanted = PEERS / "fastify" / "package-lock.json"
    # node looks for packages beside the file that needs them.
    shutil.copytree(PEERS / "fastify", FASTIFY, dirs_exist_ok=True)
    if _is_installed(FASTIFY, wanted):
        return
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=FASTIFY, check=True)
    _remember(FASTIFY, wanted)


def _is_installed(directory: Path, wanted: Path) -> bool:
    stamp = directory / ".installed"
    return stamp.is_file() and stamp.read_text() == wanted.read_text()


def _remember(directory: Path, wanted: Path) -> None:
    (directory / ".installed").write_text(wanted.read_text())


def nginx_is_missing() -> str:
    """Returns the reason if there is no nginx with Lua; empty if there is."""
    if shutil.which("nginx") is None or not (_MODULES / "ngx_http_lua_module.so").is_file():
        return f"no nginx with Lua: install {_PACKAGES['nginx']}"
    return ""


def wrk_is_missing() -> str:
    return "" if shutil.which("wrk") else "no wrk: install wrk"


def node_is_missing() -> str:
    if shutil.which("node") is None or not (FASTIFY / "node_modules").is_dir():
        return "no node with its packages: install nodejs and npm"
    return ""


def is_missing_in_venv(command: str) -> str:
    return "" if (VENV / "bin" / command).exists() else f"no {command} in {VENV.name}: see requirements.txt"


def python() -> str:
    """The interpreter of the project, which runs Gatekeeper and the load."""
    return sys.executable
