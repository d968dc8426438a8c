"""The bench: what it is made of fits together, and its load measures what it says."""

from __future__ import annotations

import asyncio
import json
import re
import time
from functools import partial
from pathlib import Path

import pytest

from bench import constant_rate, lag, messages, report, results, soak
from bench.__main__ import main
from bench.echo import Echo, frame, frame_at
from bench.lineup import PEERS, Peer, Place
from bench.results import Measured, Results, WorkResult
from bench.works import WORKS

SECRET = "a secret of the bench, thirty-two bytes or more"
STALL_SECONDS = 0.3


def test_the_list_names_every_peer_and_every_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {named.name} " in listed for named in (*PEERS, *WORKS))


@pytest.mark.parametrize("option", ["--peers", "--work"])
def test_a_name_that_there_is_not_is_an_error(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([option, "gatekeeper,no-such"])
    assert "no-such" in capsys.readouterr().err


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_the_configuration_of_a_peer_has_no_blank_left(peer: Peer, tmp_path: Path) -> None:
    place = Place(8001, 8002, 8003, tmp_path, SECRET)
    peer.render(place)
    for template in peer.templates:
        written = (tmp_path / template).read_text()
        assert not re.search(r"@[a-z_]+@", written)
        assert "8001" in written or "8002" in written


def results_of(ours: float, theirs: float) -> Results:
    found = Results(environment={"cores": "2"}, versions={"nginx": "1.0"}, commands=["python -m bench"])
    for work in WORKS:
        peers = {peer.name: Measured([{"rate": theirs, "p99_us": theirs, "mib": theirs}]) for peer in PEERS}
        peers["gatekeeper"] = Measured([{"rate": rate, "p99_us": ours, "mib": ours} for rate in (1.0, ours, ours)])
        peers["naive"] = Measured(lacks="failed: 3 of 7 refused")
        found.works[work.name] = WorkResult("2026-01-01 00:00 UTC", 10.0, 100.0, peers)
    return found


def test_the_page_shows_medians_ratios_and_what_is_missing() -> None:
    page = report.render(results_of(600.0, 1000.0))
    assert all(f"## {work.title}\n" in page for work in WORKS)
    assert "| small JSON, against nginx with Lua | ≥ 0.6 | 0.60 | met |" in page
    assert "| small JSON, against Envoy, which knows no sessions | ≥ 1 | 0.60 | **missed** |" in page
    assert "| small JSON, against the naive stack | ≥ 40 |  | not measured |" in page
    assert "| Gatekeeper | token, session; access log | 600 | 1.00 |" in page
    assert "failed: 3 of 7 refused" in page


def test_results_are_the_same_when_they_have_been_kept(tmp_path: Path) -> None:
    found = results_of(2.0, 3.0)
    found.save(tmp_path / "results.json")
    assert results.load(tmp_path / "results.json") == found
    assert results.load(tmp_path / "none.json") == Results()


def test_the_page_on_performance_is_of_the_form_that_the_bench_writes() -> None:
    page = Path(__file__).parent.parent / "docs" / "performance.md"
    if not page.is_file():
        pytest.skip("nothing has been measured yet")
    titles = {f"## {work.title}" for work in WORKS} | {"## Machine and versions", "## Goals", "## Soak"}
    found = [line for line in page.read_text().splitlines() if line.startswith("## ")]
    assert set(found) <= titles | {"## The store alone"}
    assert page.read_text().startswith(report.render(Results()).split("## ")[0])


@pytest.mark.parametrize("mask", [b"", b"\1\2\3\4"])
@pytest.mark.parametrize("size", [0, 1, 3, 125, 126, 65_535])
def test_a_frame_is_read_as_it_was_written(size: int, mask: bytes) -> None:
    payload = bytes(number % 251 for number in range(size))
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if mask else payload
    written = frame(masked, opcode=2, mask=mask)
    assert frame_at(bytearray(written + b"rest")) == (len(written), 2, payload)
    assert frame_at(bytearray(written[:-1])) is None or not size + len(mask)


async def test_messages_come_back_and_are_counted() -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await messages.measure(port, 3, 0.2, 64, ["a.b.c"])
        await asyncio.sleep(0.1)
    assert found["requests"] > 0
    assert found["refused"] == found["broken"] == 0


class Stalling(asyncio.Protocol):
    """Answers at once, but for one request, which it lets wait."""

    def __init__(self, requests: list[bytes]) -> None:
        self._requests = requests

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._requests.append(data)
        answer = partial(self._transport.write, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        if len(self._requests) == 150:
            asyncio.get_running_loop().call_later(STALL_SECONDS, answer)
        else:
            answer()


@pytest.mark.slow
async def test_a_stall_is_charged_to_every_request_that_was_due_meanwhile() -> None:
    heard: list[bytes] = []
    server = await asyncio.get_running_loop().create_server(lambda: Stalling(heard), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await constant_rate.measure(port, 1, 100.0, 1.0, [b"GET / HTTP/1.1\r\n\r\n"])
        await asyncio.sleep(0.1)
    assert len(heard) == 200
    assert found["unanswered"] == found["refused"] == 0
    # A closed loop would have found one slow request in a hundred.
    assert found["max_us"] >= STALL_SECONDS * 1e6
    assert found["p90_us"] >= STALL_SECONDS / 3 * 1e6


def test_the_slope_is_that_of_the_line() -> None:
    samples = [{"minute": minute / 4, "mib": 100 + minute / 2} for minute in range(20)]
    assert soak._slope(samples) == pytest.approx(2.0)


async def test_the_clock_in_the_loop_sees_a_loop_that_stands_still(tmp_path: Path) -> None:
    clock = lag.Clock()
    clock.start()
    await asyncio.sleep(0.05)
    time.sleep(STALL_SECONDS)
    await asyncio.sleep(0.05)
    clock.stop()
    clock.tell(tmp_path / "lag")
    found = json.loads((tmp_path / "lag").read_text())
    assert found["max_us"] >= STALL_SECONDS * 0.9e6
    assert found["ticks"] >= STALL_SECONDS * 900
