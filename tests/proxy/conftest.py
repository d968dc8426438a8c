"""Real applications, once for all tests, bare and behind the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from gatekeeper.client_address import TrustedProxies
from gatekeeper.proxy.http import Proxy
from gatekeeper.proxy.upstream import HttpxUpstream
from tests.servers import datasette_process, httpbin_process, serve_asgi


class Pair(NamedTuple):
    """One application at two URLs."""

    direct: str
    proxied: str


def _behind_proxy(direct: str) -> Iterator[Pair]:
    with serve_asgi(Proxy(HttpxUpstream(direct), trusted_proxies=TrustedProxies([]))) as proxied:
        yield Pair(direct, proxied)


@pytest.fixture(scope="session")
def httpbin() -> Iterator[Pair]:
    with httpbin_process() as direct:
        yield from _behind_proxy(direct)


@pytest.fixture(scope="session")
def datasette(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with datasette_process(tmp_path_factory.mktemp("datasette")) as direct:
        yield from _behind_proxy(direct)
