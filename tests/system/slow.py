"""A backend that takes its time, and a request that is under way there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from tests.servers import ClientResponse, RawConnection, RawRequest, fetch
from tests.system.sidecar import Backend, Sidecar, bearer, eventually, hello, someone, token
from tests.waiting import HANG_SECONDS


class SlowBackend(Backend):
    """Answers `/slow` when it is released, and everything else at once."""

    def __init__(self) -> None:
        self.release = threading.Event()
        super().__init__(self._answer)

    async def _answer(self, connection: RawConnection, request: RawRequest) -> None:
        if request.target == b"/slow":
            while not self.release.is_set():  # noqa: ASYNC110 - set in another thread
                await asyncio.sleep(0.01)
        await hello(connection, request)


@contextmanager
def slow_request(backend: SlowBackend, gate: Sidecar) -> Iterator[Future[ClientResponse]]:
    """A request that is under way at the backend."""
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(fetch, gate.url, "GET", "/slow", [bearer(token(someone()))])
        try:
            eventually(lambda: any(request.target == "/slow" for request in backend.reached))
            yield under_way
        finally:
            backend.release.set()


def refuses_connections(gate: Sidecar) -> bool:
    try:
        fetch(gate.url, "GET", "/", timeout=HANG_SECONDS)
    except ConnectionError:
        return True
    return False
