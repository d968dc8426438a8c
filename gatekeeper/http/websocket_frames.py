"""The protocol of the websockets library, corrected where it differs from RFC 6455. Both sides of a tunnel use it."""

from __future__ import annotations

from codecs import IncrementalDecoder, getincrementaldecoder
from typing import Final

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol
from websockets.server import ServerProtocol

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""The largest message, in either direction and on both sides of a tunnel."""

_Utf8: Final = getincrementaldecoder("utf-8")


class _StrictProtocol(Protocol):
    """Text is checked as it arrives, so that frames behind invalid UTF-8 are ignored (section 8.1); the library leaves
    that to its user, who sees a frame only when those behind it have been handled. A close frame may come in the middle
    of a message (section 5.4), which the library takes for an error."""

    _text: IncrementalDecoder | None = None

    def recv_frame(self, frame: Frame) -> None:
        """Handle a frame. The parser calls it, and fails the connection with 1007 for a UnicodeDecodeError."""
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
    """The backend's side of a tunnel."""


class StrictServerProtocol(_StrictProtocol, ServerProtocol):
    """The client's side of a tunnel."""
