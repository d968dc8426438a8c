"""Responses without an ASGI application: their interface, the registry that the drain asks, and the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from gatekeeper.http.types import ASGIApp, Scope

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


class ClientConnection(Protocol):
    """The connection of an exchange."""

    @property
    def writable(self) -> asyncio.Event | None:
        """None while the client takes data; else an event that is set when it has read enough, or has left."""

    def write(self, data: bytes) -> None: ...

    def call_soon(self, do: Callable[[], None]) -> None:
        """Call `do` at the end of this turn of the event loop."""

    def want_body(self) -> None:
        """Read more of the body: the application waits for it."""

    def send_continue(self) -> None:
        """Ask the client for a body that it sends only after `100 Continue`."""

    def response_complete(self) -> None:
        """The response is complete."""

    def response_failed(self) -> None:
        """The application failed: there will be no response, or no more of it."""

    def run(self, exchange: Any, app: ASGIApp | None = None) -> None:
        """Let the application respond, or `app`."""

    @property
    def responders(self) -> DirectResponders:
        """The registry of the listener."""
