"""Redis commands and Lua scripts as values: packed once, and sent as often as needed."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
from hiredis import pack_command

from gatekeeper.errors import StoreUnavailable


class Script(msgspec.Struct, frozen=True):
    """A Lua script and the SHA-1 by which the store knows it. The reply to a `durable` script is held back until
    `STORE_REPLICAS` replicas have acknowledged its writes."""

    source: str
    sha: str
    durable: bool = False

    def command(self, keys: Sequence[bytes], arguments: Sequence[Any]) -> Command:
        """The call of this script with `keys` and `arguments`. Raises `StoreUnavailable` for an argument that cannot be
        encoded."""
        words = ("EVALSHA", self.sha, len(keys), *keys, *arguments)
        return Command(words, _packed(words), keys[0], self, self.durable)


def load_script(folder: Path, *names: str, durable: bool = False) -> Script:
    """Read `<folder>/<name>.lua` for each name, in order, and join them to one script."""
    source = "".join((folder / f"{name}.lua").read_text() for name in names)
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest(), durable)


class Command(NamedTuple):
    """One Redis command: its name and arguments as `words`, and as bytes of RESP (`packed`). `key` is its first key, by
    which a Cluster's node is found; it is empty for a command about a server. `script` is set for the call of a
    script."""

    words: tuple[Any, ...]
    packed: bytes
    key: bytes = b""
    script: Script | None = None
    durable: bool = False

    def with_source(self) -> Command:
        """The same call with the text of its script, for a server that does not know the hash."""
        assert self.script is not None  # noqa: S101 - for the type checker: only a call of a script gets NOSCRIPT
        words = ("EVAL", self.script.source, *self.words[2:])
        return self._replace(words=words, packed=_packed(words))

    def with_last(self, argument: bytes) -> Command:
        """The same call with another last argument, as long as the one that it replaces."""
        tail = b"$%d\r\n%b\r\n" % (len(argument), argument)
        words, packed, key, script, durable = self
        return Command((*words[:-1], argument), packed[: -len(tail)] + tail, key, script, durable)


def command(name: str, key: str | bytes, *arguments: Any, durable: bool = False) -> Command:
    """A command on one key. Raises `StoreUnavailable` for an argument that cannot be encoded."""
    words = (name, key, *arguments)
    packed = _packed(words)
    return Command(words, packed, key.encode() if isinstance(key, str) else key, None, durable)


def server_command(*words: Any) -> Command:
    """A command about a server, such as `ROLE`, which has no key."""
    return Command(words, _packed(words))


def _packed(words: tuple[Any, ...]) -> bytes:
    try:
        packed: bytes = pack_command(words)
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreUnavailable(f"session store cannot take an argument: {error}", kind="refused") from None
    return packed


class ReplyReceiver(Protocol):
    """Takes the outcome of one call: a future, or an object that handles it at once in a callback."""

    def done(self) -> bool:
        """Tells whether the caller has left, so that the reply is dropped."""

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...
