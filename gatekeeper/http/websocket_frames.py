"""The WebSocket library's protocol, where RFC 6455 says something else than it does, for both legs of a tunnel."""

from __future__ import annotations

from codecs import IncrementalDecoder, getincrementaldecoder
from typing import Final

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol
from websockets.server import ServerProtocol

_Utf8: Final = getincrementaldecoder("utf-8")


class _StrictProtocol(Protocol):
    """Text is checked as it comes, so that what follows text that is no UTF-8 counts no more (section 8.1); the library
    leaves that to its user, who sees a frame only when those behind it have been answered. A close may come in the
    middle of a message (section 5.4), which to the library is an error."""

    _text: IncrementalDecoder | None = None

    def recv_frame(self, frame: Frame) -> None:
        """Called by the parser for each frame. It fails the connection with 1007 for a UnicodeDecodeError."""
        opcode = frame.opcode
        if opcode is Opcode.TEXT and self.current_size is None:
            if frame.fin:
                str(frame.data, "utf-8")
            else:
                self._text = _Utf8()
                self._text.decode(frame.data)
        elif opcode is Opcode.CONT and self._text is not None:
            self._text.decode(frame.data, frame.fin)
            if frame.fin:
                self._text = None
        elif opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


class StrictClientProtocol(_StrictProtocol, ClientProtocol):
    """The leg to the backend."""


class StrictServerProtocol(_StrictProtocol, ServerProtocol):
    """The leg of the client."""
