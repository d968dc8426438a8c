"""Mixed load on Gatekeeper for some minutes, and what its memory does meanwhile."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from bench import load
from bench.lab import LARGE_BYTES, Lab
from bench.load import Figures

_TURN_SECONDS: Final = 10.0
_SAMPLES: Final = 40


def run(lab: Lab, minutes: float) -> dict[str, Any]:
    """Runs the soak test and returns it for `report.py`. Each kind of load reconnects every ten seconds."""
    with lab.peer("gatekeeper") as running, ThreadPoolExecutor() as threads:
        assert running.process is not None
        port, turn = running.port, min(_TURN_SECONDS, minutes * 60 / 4)
        kinds = [
            partial(load.wrk, lab, port, "/small", connections=16, seconds=turn),
            partial(load.wrk, lab, port, "/large", connections=4, seconds=turn),
            partial(load.wrk, lab, port, "/upload", connections=4, seconds=turn, body_bytes=LARGE_BYTES),
            partial(load.messages, lab, port, connections=16, seconds=turn, size_bytes=64),
        ]
        over = time.monotonic() + minutes * 60
        loads = [threads.submit(_repeat, kind, over) for kind in kinds]
        samples, begun = [], time.monotonic()
        while time.monotonic() < over:
            time.sleep(minutes * 60 / _SAMPLES)
            minute = (time.monotonic() - begun) / 60
            samples.append({"minute": minute, "mib": running.process.memory_bytes() / 2**20})
        requests = sum(done.result() for done in loads)
    return {
        "minutes": minutes,
        "requests": int(requests),
        "samples": samples[:: max(1, len(samples) // 10)],
        "kib_a_minute": _slope(samples[len(samples) // 2 :]) * 1024,
    }


def _repeat(kind: partial[Figures], over: float) -> float:
    done = 0.0
    while time.monotonic() < over:
        done += kind()["requests"]
    return done


def _slope(samples: list[dict[str, float]]) -> float:
    """MiB a minute, by least squares."""
    count = len(samples)
    minute = sum(sample["minute"] for sample in samples) / count
    mib = sum(sample["mib"] for sample in samples) / count
    spread = sum((sample["minute"] - minute) ** 2 for sample in samples)
    return sum((sample["minute"] - minute) * (sample["mib"] - mib) for sample in samples) / spread if spread else 0.0
