"""The hop to the store: one client, scripts by their hash, and batches.

Calls that arrive in the same turn of the event loop leave in one pipeline: on a busy gate that is one write and one
read for dozens of requests. A caller waits on a future of its own, so one that is cancelled can never take, or leave
behind, another's reply (the class of CVE-2023-28858).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any, Final

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    NoScriptError,
    RedisError,
    ResponseError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from gatekeeper.errors import StoreUnavailable

SCRIPTS: Final = Path(__file__).parent / "scripts"

# Enough to keep one store process busy while the answers to the batch before are being read.
IN_FLIGHT: Final = 4
# A batch is a bounded piece of work for the store, which answers nobody else meanwhile.
BATCH: Final = 128

# Foreign exceptions become ours here and nowhere else. Order counts: the first that fits.
_KINDS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (RedisTimeoutError, "timeout"),
    (TimeoutError, "timeout"),
    (RedisConnectionError, "connection"),
    (ResponseError, "refused"),
    (RedisError, "protocol"),
    (OSError, "connection"),
)


def unavailable(error: BaseException) -> StoreUnavailable:
    """The same fault as a `StoreUnavailable`; its text holds no key, argument or password."""
    kind = next((kind for foreign, kind in _KINDS if isinstance(error, foreign)), "protocol")
    # An error reply that redis-py has no class for begins with its code.
    detail = str(error).split(" ", 1)[0] if type(error) is ResponseError else type(error).__name__
    return StoreUnavailable(f"the session store failed: {kind} ({detail})", kind=kind)


def open_client(url: str, *, timeout_seconds: float, ca_file: str | None = None) -> Redis:
    """A client of `redis://`, `rediss://` or `unix://`, which connects when first used.

    redis-py's defaults do not suit a gate: it would retry ten times, send a script again whose reply was lost, and
    raise at once when its pool is full. Here a call is tried once and is bounded in time.
    """
    options: dict[str, Any] = {"ssl_ca_certs": ca_file} if ca_file and url.startswith("rediss://") else {}
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=IN_FLIGHT + 2,
        timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        **options,
    )
    return Redis.from_pool(pool)


class Script(msgspec.Struct, frozen=True):
    """One Lua script with the law before it, and the SHA-1 by which the store knows it."""

    source: str
    sha: str


def load_script(*names: str) -> Script:
    """`scripts/<name>.lua`, one after another; sessions' own begin with their law, `common`."""
    source = "".join((SCRIPTS / f"{name}.lua").read_text() for name in names)
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


class _Call(msgspec.Struct):
    command: tuple[Any, ...]
    reply: asyncio.Future[Any]
    script: Script | None = None


class Scripts:
    """Runs scripts in batches, in the order of the calls. Bounded in time by `timeout_seconds` a call."""

    def __init__(self, client: Redis, *, timeout_seconds: float) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._waiting: deque[_Call] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._woken = False

    def __repr__(self) -> str:
        return f"<Scripts [{len(self._waiting)} waiting, {len(self._senders)} batches in flight]>"

    async def command(self, *command: Any) -> Any:
        """The answer to one plain command, sent in one batch with the scripts of this turn, in the order of the calls.
        Raises `StoreUnavailable`."""
        return await self._call(command)

    async def run(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        """The script's answer. Raises `StoreUnavailable`: whether the script ran is then unknown."""
        return await self._call(("EVALSHA", script.sha, len(keys), *keys, *arguments), script)

    async def _call(self, command: tuple[Any, ...], script: Script | None = None) -> Any:
        loop = asyncio.get_running_loop()
        call = _Call(command, loop.create_future(), script)
        self._waiting.append(call)
        if not self._woken:
            self._woken = True
            # A turn later: who asks two things at once does so by `asyncio.gather`, whose tasks begin one turn later.
            loop.call_soon(loop.call_soon, self._send_waiting)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await call.reply
        except TimeoutError as error:
            raise unavailable(error) from None

    def _send_waiting(self) -> None:
        self._woken = False
        while self._waiting and len(self._senders) < IN_FLIGHT:
            batch: list[_Call] = []
            while self._waiting and len(batch) < BATCH:
                call = self._waiting.popleft()
                if not call.reply.done():
                    batch.append(call)
            if batch:
                sender = asyncio.create_task(self._send(batch))
                self._senders.add(sender)
                sender.add_done_callback(self._sent)

    def _sent(self, sender: asyncio.Task[None]) -> None:
        self._senders.discard(sender)
        self._send_waiting()

    async def _send(self, batch: list[_Call]) -> None:
        try:
            replies = await self._pipeline(batch)
            lost = [position for position, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if lost:
                # A script that is not there has not run, so this is no repetition. Its text goes along: the store could
                # forget it again between a SCRIPT LOAD and the call.
                again = await self._pipeline([batch[position] for position in lost], with_source=True)
                for position, reply in zip(lost, again, strict=True):
                    replies[position] = reply
        except asyncio.CancelledError:
            # Only aclose() does that.
            replies = [RedisConnectionError("closed")] * len(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody must wait for a reply that cannot come
            replies = [error] * len(batch)
        for call, reply in zip(batch, replies, strict=True):
            if call.reply.done():
                continue
            if isinstance(reply, BaseException):
                call.reply.set_exception(unavailable(reply))
            else:
                call.reply.set_result(reply)

    async def _pipeline(self, calls: Sequence[_Call], *, with_source: bool = False) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            command = call.command
            if with_source and call.script is not None:
                command = ("EVAL", call.script.source, *command[2:])
            pipeline.execute_command(*command)
        async with asyncio.timeout(self._timeout_seconds):
            return await pipeline.execute(raise_on_error=False)

    async def time(self) -> float:
        """The store's clock, in seconds since 1970. Raises `StoreUnavailable`."""
        seconds, microseconds = await self._ask(self._client.time())
        return float(seconds) + float(microseconds) / 1e6

    async def configuration(self, name: str) -> str | None:
        """One parameter of the server, None where it does not tell (managed stores). Raises `StoreUnavailable`."""
        try:
            found = await self._ask(self._client.config_get(name))
        except StoreUnavailable as error:
            if error.kind == "refused":
                return None
            raise
        value = found.get(name.encode(), found.get(name))
        return value.decode() if isinstance(value, bytes) else value

    async def _ask(self, answer: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await answer
        except (RedisError, OSError, TimeoutError) as error:
            raise unavailable(error) from None

    async def aclose(self) -> None:
        """Lets the connections go. Who still waits gets `StoreUnavailable`."""
        while self._waiting:
            call = self._waiting.popleft()
            if not call.reply.done():
                call.reply.set_exception(unavailable(RedisConnectionError("closed")))
        while self._senders:
            for sender in self._senders:
                sender.cancel()
            # Once may not be enough: up to Python 3.11, wait_for() in redis-py can swallow it (cpython issue 86296).
            await asyncio.wait(self._senders, timeout=0.05)
        await self._client.aclose()
