"""The machine: its cores, and processes that are pinned to them and watched."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_START_SECONDS: Final = 30.0
_ROOT: Final = Path(__file__).resolve().parent.parent
# A peer's settings are those that the bench gives it.
_ENVIRONMENT: Final = {name: value for name, value in os.environ.items() if not name.startswith("GATEKEEPER_")}

Cores = frozenset[int]


class DidNotStart(Exception):
    """A process ended, or does not listen; the text ends with what it wrote."""


def all_cores() -> Cores:
    return frozenset(os.sched_getaffinity(0))


def proxy_cores() -> Cores:
    """One core, the last, for what is measured."""
    return frozenset([max(_CORES)])


def other_cores() -> Cores:
    """The rest, for load, backend and store. With one core alone that is the same one."""
    return (_CORES - proxy_cores()) or _CORES


_CORES: Final = all_cores()


def raise_file_limit() -> int:
    """As many open files as this process may have; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Process:
    """A server in a session of its own, so that all its children are found. Figures are sums over all of them."""

    def __init__(self, command: Sequence[str], cores: Cores, log: Path, environment: Mapping[str, str] = {}) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=_ROOT,
                env={**_ENVIRONMENT, **environment},
                preexec_fn=partial(os.sched_setaffinity, 0, cores),
            )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Returns when `ready()` does; raises `DidNotStart`."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError):
                if ready():
                    return
            time.sleep(0.05)
        said = self._log.read_text(errors="replace")[-2000:]
        raise DidNotStart(f"{self._process.args!r} does not answer:\n{said}")

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return sum(sum(map(int, fields[11:13])) for _, fields in self._members()) / _TICKS

    def memory_bytes(self) -> int:
        """Proportional set size: what processes share is counted once."""
        found = 0
        for pid, _ in self._members():
            with suppress(OSError):
                lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
                found += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return found * 1024

    def _members(self) -> Iterator[tuple[int, list[str]]]:
        """Process ids, and the fields of their `stat` from the third on (proc(5))."""
        for entry in _PROC.iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self._process.pid:
                    yield int(entry.name), fields

    def send_signal(self, number: int) -> None:
        """To the process itself, not to its children."""
        self._process.send_signal(number)

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(3)


@contextmanager
def running(
    command: Sequence[str],
    cores: Cores,
    log: Path,
    environment: Mapping[str, str] = {},
    *,
    ready: Callable[[], bool],
) -> Iterator[Process]:
    """A process that is ready, and gone afterwards. Raises `DidNotStart`."""
    process = Process(command, cores, log, environment)
    try:
        process.wait_until(ready)
        yield process
    finally:
        process.stop()


def environment() -> dict[str, str]:
    """The properties of the machine that the results depend on and do not show."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in (_PROC / "cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": model,
        "cores": f"{len(_CORES)}: {_listed(proxy_cores())} for the peer, {_listed(other_cores())} for the rest",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "interpreter": f"{platform.python_implementation()} {sys.version}",
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _listed(cores: Cores) -> str:
    return ",".join(map(str, sorted(cores)))


def version(*command: str) -> str:
    """The first line that has a digit of what a command says of itself, empty if there is no such command."""
    if shutil.which(command[0]) is None:
        return ""
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    lines = (said.stdout + said.stderr).splitlines()
    line = next((line.strip() for line in lines if any(map(str.isdigit, line))), "")
    # The path is left out: it says nothing about the result.
    return line.replace(command[0], Path(command[0]).name)
