"""Which server of the store a call goes to: the one there is, the master that sentinels name, or the node of a slot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.address import Address
from gatekeeper.sessions.lane import Lane
from gatekeeper.sessions.wire import Call, Server, Wire, connect

# How often it is looked who is master of what, whether or not anything seems wrong: a master that was replaced while
# it was cut off answers as before (R12).
LOOK_SECONDS: Final = 0.5
_SOON_SECONDS: Final = 0.1


class Lanes(NamedTuple):
    """To one server. A call that waits for replicas holds up what comes after it, so it has a connection of its own."""

    plain: Lane
    durable: Lane


class MakeLane(Protocol):
    """Makes a lane, but for what its route knows."""

    def __call__(self, server: Server, connect: Any, *, lost: Callable[[Lane], None], replicas: int = 0) -> Lane: ...


class Route:
    """Of one server. The other routes differ in what is overridden."""

    def __init__(self, address: Address, make_lane: MakeLane, *, timeout_seconds: float, replicas: int) -> None:
        self._address = address
        self._make_lane = make_lane
        self._timeout_seconds = timeout_seconds
        self._replicas = replicas
        # Indexes are written before records: on one connection the order of the calls is enough.
        self.ordered = True
        self._only = self._lanes_to(address.servers[0])

    def _lanes_to(self, server: Server) -> Lanes:
        connect_to = partial(self._connect, server)
        plain = self._make_lane(server, connect_to, lost=self._lost)
        if not self._replicas:
            return Lanes(plain, plain)
        return Lanes(plain, self._make_lane(server, connect_to, lost=self._lost, replicas=self._replicas))

    async def _connect(self, server: Server, make: Callable[[], Wire], deadline: float) -> Wire:
        return await connect(server, self._address.login, make, deadline)

    def lane(self, key: bytes, *, durable: bool) -> Lane:
        """That leads to the key."""
        return self._only.durable if durable else self._only.plain

    def lanes(self) -> list[Lane]:
        """All there are, each once."""
        return list(dict.fromkeys(self._only))

    async def masters(self, deadline: float) -> list[Lane]:
        """A lane to every server that has sessions. Raises `StoreUnavailable`."""
        return [self._only.plain]

    def redirect(self, lane: Lane, call: Call, text: str) -> None:
        """Sends a call where its server says, in the text of an error reply."""
        call.fail(StoreUnavailable("the session store is a cluster: redis+cluster://", kind="refused"))

    def _lost(self, lane: Lane) -> None:
        """A connection broke or could not be made."""

    def look_soon(self) -> None:
        """Something is not as it was."""

    async def aclose(self) -> None:
        for lane in self.lanes():
            await lane.aclose()


def make_route(address: Address, make_lane: MakeLane, *, timeout_seconds: float, replicas: int) -> Route:
    return Route(address, make_lane, timeout_seconds=timeout_seconds, replicas=replicas)
