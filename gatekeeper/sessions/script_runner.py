"""Runs the scripts on the keys of one user, with their arguments packed by name, and checks whose reply came back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.sessions.audit import Retention
from gatekeeper.sessions.events import Actor
from gatekeeper.sessions.geo import Locator, NoLocator
from gatekeeper.sessions.indexes import Indexes
from gatekeeper.sessions.keys import Keys, Rules, microseconds
from gatekeeper.sessions.opening import Openings
from gatekeeper.sessions.outbox import Outbox
from gatekeeper.sessions.recent_revocations import RecentRevocation, RecentRevocations
from gatekeeper.sessions.revoked_cache import RevokedCache
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import Command, ReplyReceiver, Script, command
from gatekeeper.store.epoch import Epoch
from gatekeeper.store.errors import unavailable_from

T = TypeVar("T")


class ScriptRunner:
    """Runs scripts. Every method that is awaited raises `StoreUnavailable`."""

    def __init__(
        self,
        redis: StoreClient,
        *,
        key_prefix: str,
        rules: Rules,
        locator: Locator | None = None,
        epoch: Epoch | None = None,
        revoked: RevokedCache | None = None,
        retention: Retention | None = None,
        user_name_claim: str | None = None,
    ) -> None:
        self._redis = redis
        self.keys: Final = Keys(key_prefix)
        self.rules: Final = rules
        # Without a beat, it never reports a loss.
        self.epoch: Final = epoch or Epoch(redis, key_prefix=key_prefix)
        self.revoked: Final = revoked or RevokedCache(most_users=0)
        self.indexes: Final = Indexes(redis, self.keys, rules)
        self.openings: Final = Openings(
            locator or NoLocator(), leeway_seconds=rules.leeway_seconds, user_name_claim=user_name_claim
        )
        self.outbox: Final = Outbox(
            redis, key_prefix=key_prefix, outbox_key=self.keys.outbox, retention=retention or Retention()
        )
        # ARGV[1] of every script.
        self.packed_rules: Final = rules.packed()
        self.recent: Final = RecentRevocations(self._prepare_again, self._run_again)
        redis.repeat_at_new_primaries(self.recent)
        self.epoch.on_loss = self.recent.data_lost

    def __repr__(self) -> str:
        return f"<ScriptRunner {self.keys!r} {self._redis!r}>"

    @property
    def replicated(self) -> bool:
        """Tells whether openings and ends wait for replicas."""
        return self._redis.replicas > 0

    async def run(
        self,
        script: Script,
        user: str,
        read: Callable[[list[Any]], T],
        arguments: Mapping[str, Any] | None = None,
        *,
        extra_key: bytes | None = None,
    ) -> T:
        """Runs a script with named arguments (`call` in Lua), and returns its reply through `read`. `extra_key` is a
        fifth key."""
        return await self._run_named(script, user, read, (), arguments or {}, extra_key)

    async def _run_named(
        self,
        script: Script,
        user: str,
        read: Callable[[list[Any]], T],
        positional: Sequence[Any],
        arguments: Mapping[str, Any],
        extra_key: bytes | None,
    ) -> T:
        return await self.run_positional(script, user, read, *positional, packed(arguments), extra_key=extra_key)

    async def run_positional(
        self,
        script: Script,
        user: str,
        read: Callable[[list[Any]], T],
        *arguments: Any,
        extra_key: bytes | None = None,
    ) -> T:
        """Runs a script with `arguments` as they are, after the rules."""
        keys = self.keys.of_user(user)
        every_key = keys if extra_key is None else (*keys, extra_key)
        reply = await self._redis.call(script.command(every_key, (self.packed_rules, *arguments)))
        return self.read_reply(keys[0], reply, read)

    async def has_records(self, user: str) -> bool:
        """Tells whether the store holds any session of a user, ended and hidden ones too."""
        return bool(await self._redis.call(command("EXISTS", self.keys.of_user(user)[0])))

    def prepare(self, script: Script, user: str, *arguments: Any) -> Command:
        """A call as of `run_positional`, packed once, for `send`."""
        return script.command(self.keys.of_user(user), (self.packed_rules, *arguments))

    async def require_clocks_to_agree(self) -> None:
        """Raises `StoreUnavailable` while the store's clock and this host's are too far apart for housekeeping."""
        if abs(await self._redis.time() - time.time()) > self.rules.clock_tolerance_seconds:
            raise clocks_apart(self.rules.clock_tolerance_seconds)

    def send(self, command: Command) -> asyncio.Future[Any]:
        """Sends a prepared call. The future holds the reply, for `read_reply`."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._redis.send(command, reply)
        return reply

    def send_for(self, reply: ReplyReceiver, command: Command) -> None:
        """Sends a prepared call, whose reply goes to `reply`."""
        self._redis.send(command, reply)

    def read_reply(self, key: bytes, reply: Any, read: Callable[[list[Any]], T]) -> T:
        """Reads the reply of a script whose first key was `key`. Raises `StoreUnavailable` for any other reply."""
        # Every script repeats its first key: another user's reply means that the connection mixes replies up.
        if not isinstance(reply, list) or not reply or reply[0] != key:
            self._redis.drop_connections(key)
            raise StoreUnavailable("reply for another key from the session store", kind="protocol")
        try:
            return read(reply)
        except (ValueError, TypeError, AttributeError, LookupError, msgspec.MsgspecError):
            if reply[1:2] == [b"doubtful"]:
                raise clocks_apart(self.rules.clock_tolerance_seconds) from None
            raise StoreUnavailable("unexpected reply from the session store", kind="protocol") from None

    async def run_audited(
        self,
        script: Script,
        user: str,
        read: Callable[[list[Any]], T],
        arguments: Mapping[str, Any],
        *positional: Any,
        actor: Actor,
        extra_key: bytes | None = None,
        indexes: Sequence[Awaitable[None]] = (),
    ) -> T:
        """Runs a script that opens or ends sessions: `arguments`, the actor among them, are its last argument, after
        `positional`. The marker of the outbox and `indexes` are written before it, in one batch where one server has
        them all."""
        named = {**arguments, "actor": actor.packed()}
        marker = self.outbox.marker(user)
        before = (self.outbox.mark(marker), *indexes)
        if not self._redis.ordered:
            await asyncio.gather(*before)
            before = ()
        running = self._run_named(script, user, read, positional, named, extra_key)
        done: T = (await asyncio.gather(*before, running))[-1]  # type: ignore[assignment]
        # Not after a failure: the script may yet run, and the marker is what leads to its entries.
        self.outbox.schedule(marker)
        return done

    # Revocations that are repeated

    def _prepare_again(self, revocation: RecentRevocation) -> Command:
        named = {**revocation.arguments, "actor": revocation.actor.packed()}
        return self.prepare(revocation.script, revocation.user, packed(named))

    async def _run_again(self, revocation: RecentRevocation) -> None:
        script, user, arguments = revocation.script, revocation.user, revocation.arguments
        while True:
            reply = await self.run_audited(script, user, list, arguments, actor=revocation.actor)
            # end_sid.lua goes step by step.
            if "from_activity" not in arguments or not (next_step := int(reply[2])):
                return
            arguments = {**arguments, "from_activity": next_step}


def clocks_apart(tolerance_seconds: float) -> StoreUnavailable:
    """Returns the error for a session that would have ended as idle or expired, while the clocks disagree."""
    text = f"the clocks of this host and of the session store are more than {tolerance_seconds:g} s apart"
    return StoreUnavailable(text, kind="clock")


def packed(arguments: Mapping[str, Any]) -> bytes:
    """A table of arguments as `cmsgpack` reads it, with this host's clock as `host`. Raises `StoreUnavailable` for one
    that cannot be encoded."""
    try:
        return msgspec.msgpack.encode({**arguments, "host": microseconds(time.time())})
    except (TypeError, ValueError, OverflowError) as error:
        raise unavailable_from(error) from None
