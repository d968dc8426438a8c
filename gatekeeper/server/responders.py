"""Responses without an ASGI application: their interface, and the registry that the drain asks."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from gatekeeper.http.types import Scope

# As uvicorn looks after its own tasks and connections.
_LOOK_SECONDS: Final = 0.1


class DirectResponder(Protocol):
    """An object that responds to one request from callbacks, by `Exchange.send_head` and `Exchange.send_body`.

    `Exchange.attach` registers it, `Exchange.detach` removes it. Every method returns at once.
    """

    def client_left(self) -> None:
        """The client has disconnected: nothing more can be sent."""

    def body_arrived(self) -> None:
        """More of the request's body has arrived: `Exchange.take_body`."""

    def rejected(self, scope: Scope) -> None:
        """The server rejects the rest of the request, and words that by what is in `scope`. `client_left` follows."""

    def client_writable(self) -> None:
        """The client takes more data again, after `Exchange.is_full`."""

    def cancel(self) -> None:
        """The drain deadline has passed: respond now, or break the response off."""


class DirectResponders(set[DirectResponder]):
    """The responders of one listener that are at work, for the drain to wait for."""

    async def drain(self) -> None:
        """Return when none is left. If this is cancelled, as uvicorn does at the drain deadline, cancel them."""
        try:
            while self:  # noqa: ASYNC110 - an event would cost something with every response
                await asyncio.sleep(_LOOK_SECONDS)
        except asyncio.CancelledError:
            for responder in list(self):
                responder.cancel()
            raise
