"""Backends and clients from npm: installed once, by `make`, into a folder that git ignores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.machine import lacks, need
from tests.recipes.walk import SECRET, Device, Said
from tests.servers import process
from tests.waiting import HANG_SECONDS

_SCRIPTS: Final = Path(__file__).parent
_INSTALLED: Final = Path(__file__).parent.parent.parent / ".recipes"
_MAJOR: Final = 20


def _script(name: str) -> list[str]:
    """The command that runs a script of ours, such as `node/express.cjs`, among the packages of its folder."""
    node = need("node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").split(".")[0]) < _MAJOR:
        lacks(f"node is older than {_MAJOR}: {version.strip()}")
    place = _INSTALLED / name
    if not (place.parent / "node_modules").is_dir():
        lacks(f"no packages from npm: `make .recipes/{place.parent.name}/.installed`")
    # Scripts find packages beside themselves. Another process may be copying the same at this moment.
    copy = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.copyfile(_SCRIPTS / name, copy)
    copy.replace(place)
    return [node, str(place)]


@contextmanager
def node_process(script: str, directory: Path) -> Iterator[str]:
    """Runs a server that prints its address; yields its base URL."""
    environment = {"SIGNING_KEY": SECRET, "DATA_DIRECTORY": str(directory)}
    listening = r"(?:listening on|Server started at) (http://127\.0\.0\.1:\d+)"
    with process(_script(script), environment, listening=listening) as url:
        yield url


class SdkDevice(Device):
    """A backend's own client in a Node of its own: one line asks it to act, one line says what came of it."""

    script: str
    credentials: dict[str, str]

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._node = subprocess.Popen(
            [*_script(self.script), url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._node.communicate(timeout=HANG_SECONDS)

    def _act(self, act: str, **given: str) -> Said:
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        self._node.stdin.write(json.dumps({"act": act, **given}) + "\n")
        self._node.stdin.flush()
        line: dict[str, Any] = json.loads(self._node.stdout.readline())
        return Said(line["status"], json.dumps(line["body"]))

    def _bear(self) -> None:
        """What it holds now is what a person would list sessions with."""
        token = json.loads(self._act("token").text)["token"]
        if token:
            self.http.headers["Authorization"] = f"Bearer {token}"

    def sign_in(self) -> Said:
        answer = self._act("login", **self.credentials)
        self._bear()
        return answer

    def ask(self) -> Said:
        return self._act("ask")

    def refresh(self) -> Said:
        answer = self._act("refresh")
        self._bear()
        return answer

    def logout(self) -> Said:
        return self._act("logout")

    def restored(self) -> None:
        self._act("hold", token=self.http.headers["Authorization"].removeprefix("Bearer "))
