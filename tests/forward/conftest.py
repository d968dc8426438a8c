"""Real applications, once for all tests, bare and behind the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from gatekeeper.forward.http import Proxy
from gatekeeper.http.client_address import TrustedProxies
from gatekeeper.upstream.http1_client import Http1Upstream
from gatekeeper.upstream.http2_client import Http2Upstream
from gatekeeper.upstream.interface import Upstream
from tests.servers import datasette_process, httpbin_process, serve_asgi
from tests.system.test_http2 import nginx


class Pair(NamedTuple):
    """One application at two URLs."""

    direct: str
    proxied: str


@contextmanager
def _behind_proxy(direct: str, upstream: Upstream) -> Iterator[Pair]:
    with serve_asgi(Proxy(upstream, trusted_proxies=TrustedProxies([]))) as proxied:
        yield Pair(direct, proxied)


@pytest.fixture(scope="session", params=["http1", "http2"])
def httpbin(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """httpbin; or nginx before it, asked directly over HTTP/1.1, and by the proxy over HTTP/2."""
    with httpbin_process() as direct:
        if request.param == "http1":
            with _behind_proxy(direct, Http1Upstream(direct)) as pair:
                yield pair
        else:
            with (
                nginx(direct) as server,
                _behind_proxy(server.http1, Http2Upstream(server.plain, prior=True)) as pair,
            ):
                yield pair


@pytest.fixture(scope="session")
def datasette(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with (
        datasette_process(tmp_path_factory.mktemp("datasette")) as direct,
        _behind_proxy(direct, Http1Upstream(direct)) as pair,
    ):
        yield pair
