"""Real applications, once for all tests, bare and behind the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from gatekeeper.forward.http import Proxy
from gatekeeper.http.client_address import TrustedProxies
from tests.forward.chain import TRANSPORTS, Chosen, Transport
from tests.servers import datasette_process, httpbin_process, serve_asgi


class Pair(NamedTuple):
    """One application at two URLs."""

    direct: str
    proxied: str


@pytest.fixture(params=["native", "httpx"])
def each_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Transport:
    """Runs a test once for each way to the backend."""
    transport = TRANSPORTS[request.param]
    monkeypatch.setattr(Chosen, "transport", transport)
    return transport


def _behind_proxy(direct: str, transport: str) -> Iterator[Pair]:
    with serve_asgi(Proxy(TRANSPORTS[transport](direct), trusted_proxies=TrustedProxies([]))) as proxied:
        yield Pair(direct, proxied)


@pytest.fixture(scope="session")
def httpbin_url() -> Iterator[str]:
    with httpbin_process() as direct:
        yield direct


@pytest.fixture(scope="session", params=["native", "httpx"])
def httpbin(httpbin_url: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from _behind_proxy(httpbin_url, request.param)


@pytest.fixture(scope="session")
def datasette_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with datasette_process(tmp_path_factory.mktemp("datasette")) as direct:
        yield direct


@pytest.fixture(scope="session", params=["native", "httpx"])
def datasette(datasette_url: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from _behind_proxy(datasette_url, request.param)
