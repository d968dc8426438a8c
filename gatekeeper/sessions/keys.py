"""Where the sessions of a user lie in the store, and how their scripts are run.

Everything of one user lies in one hash slot. The user id is the hash tag, with the characters that would cut a tag
short percent-encoded, so two users never share a key, whatever their names are. Outside the slots stand indexes only:
each is written before the record, in one batch with it, and is a hint that the user's script confirms.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from gatekeeper.errors import StoreUnavailable
from gatekeeper.models import Claims, Client
from gatekeeper.sessions import user_agents as agents
from gatekeeper.sessions.audit import printable
from gatekeeper.sessions.device import hints_of
from gatekeeper.sessions.events import Actor
from gatekeeper.sessions.geo import Locator, NoLocator
from gatekeeper.sessions.outbox import Outbox
from gatekeeper.sessions.revoked_cache import RevokedCache
from gatekeeper.store.client import StoreClient
from gatekeeper.store.command import Command, ReplyReceiver, Script, command
from gatekeeper.store.epoch import Epoch

T = TypeVar("T")
Policy = Literal["evict_idle", "evict_oldest", "reject"]

# Numbers stay exact in Lua up to 2^53: year 9999 in microseconds is above it, year 2200 is not.
LATEST: Final = 7_258_118_400
_TAG: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})
_SESSIONS: Final = b"}:sessions"


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator decided. Seconds; `idle_seconds` and `device_limit` are None when off. `index_sids`: sessions
    are to be found by their `sid` alone, too."""

    session_seconds: float
    idle_seconds: float | None
    ended_seconds: float
    device_limit: int | None
    policy: Policy
    adopt_unknown: bool
    leeway_seconds: float
    index_sids: bool = False


def microseconds(seconds: float) -> int:
    return int(min(seconds, LATEST) * 1_000_000)


def new_id() -> int:
    return secrets.randbelow(2**53 - 1) + 1


class ScriptRunner:
    """Runs scripts on the keys of one user, and keeps the indexes. Every method raises `StoreUnavailable`."""

    def __init__(
        self,
        redis: StoreClient,
        *,
        key_prefix: str,
        rules: Rules,
        locator: Locator | None = None,
        epoch: Epoch | None = None,
        revoked: RevokedCache | None = None,
    ) -> None:
        self._redis = redis
        # Where nobody beats, nothing is ever lost.
        self.epoch: Final = epoch or Epoch(redis, key_prefix=key_prefix)
        self.revoked: Final = revoked or RevokedCache(most_users=0)
        self._prefix = key_prefix
        self._locator = locator or NoLocator()
        self._leeway_seconds = rules.leeway_seconds
        self._index_sids = rules.index_sids
        self._kept_seconds = rules.session_seconds + rules.ended_seconds
        self._due_in_seconds = min(rules.idle_seconds or rules.session_seconds, rules.session_seconds)
        # Users by the instant at which their next session may be over: a hint for a clean-up, never a fact.
        self._due_key: Final = f"{key_prefix}due".encode()
        # Users with sessions that a clean-up would take out of the lists, by when those leave by themselves.
        self._cleanable_key: Final = f"{key_prefix}cleanable".encode()
        self.outbox: Final = Outbox(redis, key_prefix=key_prefix, outbox_key=self.outbox_key)
        self.idle: Final = microseconds(rules.idle_seconds or 0)
        self.ended_ttl: Final = microseconds(rules.ended_seconds)
        self.ttl: Final = microseconds(rules.session_seconds)
        self.limit: Final = rules.device_limit or 0
        self.policy: Final[Policy] = rules.policy
        self.unknown: Final = "adopt" if rules.adopt_unknown else "reject"

    def __repr__(self) -> str:
        return f"<ScriptRunner [{self._prefix}*] {self._redis!r}>"

    @property
    def replicated(self) -> bool:
        """Whether openings and ends wait for replicas."""
        return self._redis.replicas > 0

    def keys(self, user: str) -> tuple[bytes, bytes, bytes, bytes]:
        tag = f"{self._prefix}{{{user.translate(_TAG)}}}".encode()
        return tag + b":sessions", tag + b":index", tag + b":not_before", tag + b":outbox"

    def outbox_key(self, user: str) -> bytes:
        return self.keys(user)[3]

    def user_of(self, key: bytes) -> str | None:
        """Whose `sessions` key this is; None for any other key."""
        head = f"{self._prefix}{{".encode()
        if not (key.startswith(head) and key.endswith(_SESSIONS)):
            return None
        tag = key[len(head) : -len(_SESSIONS)].decode(errors="replace")
        return tag.replace("%7D", "}").replace("%7B", "{").replace("%25", "%")

    @property
    def revocation_channel(self) -> str:
        """Where the scripts announce ends (common.lua)."""
        return f"{self._prefix}ends"

    def pairs_key(self, user: str) -> bytes:
        """The fifth key, of `rotate.lua` alone."""
        return f"{self._prefix}{{{user.translate(_TAG)}}}:pairs".encode()

    async def run(
        self, script: Script, user: str, read: Callable[[list[Any]], T], *arguments: Any, extra_key: bytes | None = None
    ) -> T:
        """What `read` makes of the script's answer; `also` is one more key of that user."""
        keys = self.keys(user)
        reply = await self._redis.call(script.command(keys if extra_key is None else (*keys, extra_key), arguments))
        return self.read_reply(keys[0], reply, read)

    def prepare(self, script: Script, user: str, *arguments: Any) -> Command:
        """A call that is made again and again, for `send`."""
        return script.command(self.keys(user), arguments)

    def send(self, call: Command) -> asyncio.Future[Any]:
        """The reply to come, for `read_reply`."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._redis.send(call, reply)
        return reply

    def send_for(self, reply: ReplyReceiver, call: Command) -> None:
        """As `send`; `reply` is told."""
        self._redis.send(call, reply)

    def read_reply(self, key: bytes, reply: Any, read: Callable[[list[Any]], T]) -> T:
        """What `read` makes of the answer of a script whose first key was `key`. Raises `StoreUnavailable`."""
        # A reply that is not this user's is a fault of the connection, whatever it says.
        if not isinstance(reply, list) or not reply or reply[0] != key:
            self._redis.drop_connections(key)
            raise StoreUnavailable("the session store answered for somebody else", kind="protocol")
        try:
            return read(reply)
        except (ValueError, TypeError, AttributeError, LookupError, msgspec.MsgspecError):
            raise StoreUnavailable("the session store answered what is not ours", kind="protocol") from None

    async def run_audited(
        self,
        script: Script,
        user: str,
        read: Callable[[list[Any]], T],
        *arguments: Any,
        actor: Actor,
        extra_key: bytes | None = None,
        indexes: Sequence[Awaitable[None]] = (),
    ) -> T:
        """As `run`, for what opens or ends sessions: `acting` is its last argument, for the audit trail. `indexes` are
        written before it, in the same batch where one server has them all."""
        marker = self.outbox.marker(user)
        before = (self.outbox.mark(marker), *indexes)
        if not self._redis.ordered:
            await asyncio.gather(*before)
            before = ()
        running = self.run(script, user, read, *arguments, actor.packed(), extra_key=extra_key)
        done: T = (await asyncio.gather(*before, running))[-1]  # type: ignore[assignment]
        # Not after a failure: the script may be yet to run, and the note is what will find its words.
        self.outbox.schedule(marker)
        return done

    def token_expires_at(self, claims: Claims) -> int:
        """Until when a token may turn up, leeway included."""
        return self.expires_at(claims.expires_at)

    def expires_at(self, seconds: float) -> int:
        """Until when a token may turn up that expires then, leeway included."""
        return microseconds(seconds + self._leeway_seconds)

    def client_details(self, client: Client) -> tuple[str | bytes, ...]:
        """What a new record holds of who opened it: address, agent, hints, city, country."""
        location = self._locator.locate(client.ip_address)
        user_agent = agents.packed(printable(client.user_agent, agents.MOST_CHARACTERS))
        hints = hints_of(client.headers)
        return (client.ip_address, user_agent, hints, location.city, location.country)

    def indexes(
        self, claims: Claims, *, refresh: str = "", refresh_expires_at: float | None = None
    ) -> list[Awaitable[None]]:
        """The indexes of a session that opens. `refresh` is the digest of a refresh token, `refresh_expires_at` when
        that expires, in seconds, if anybody tells."""
        user = claims.user.encode()
        due_at = microseconds(time.time() + self._due_in_seconds)
        due = command("ZADD", self._due_key, "LT", due_at, user, durable=True)
        before: list[Awaitable[None]] = [self._redis.call(due)]
        if refresh:
            seconds = self._kept_seconds if refresh_expires_at is None else refresh_expires_at - time.time()
            before.append(self._index(self._refresh_key(refresh), user, max(seconds, self._kept_seconds)))
        if self._index_sids and isinstance(sid := claims.claims.get("sid"), str):
            before.append(self._index(self._sid_key(sid), user, self._kept_seconds))
        return before

    async def hint(self, user: bytes, due_at: int) -> None:
        """Remembers when to look at that user's sessions, in microseconds, unless it is sooner already."""
        await self._redis.call(command("ZADD", self._due_key, "LT", due_at, user))

    async def due_users(self, now: int, most: int) -> list[bytes]:
        """Users at whom to look, until `now` in microseconds."""
        return _list(await self._redis.call(command("ZRANGEBYSCORE", self._due_key, "-inf", now, "LIMIT", 0, most)))

    async def claim(self, user: bytes, *, until: int) -> bool:
        """Takes a due user's hint away, unless another process has: then there is nothing to do. Should this one die
        before it has looked, the user is looked at again at `until`."""
        put = self._redis.call(command("ZADD", self._cleanable_key, "GT", until, user))
        taken = self._redis.call(command("ZREM", self._due_key, user))
        return bool((await asyncio.gather(put, taken))[-1])

    async def cleanable_users(self, now: int, most: int) -> list[bytes]:
        """Users whose sessions should have left the lists by `now`."""
        due = command("ZRANGEBYSCORE", self._cleanable_key, "-inf", now, "LIMIT", 0, most)
        return _list(await self._redis.call(due))

    async def take_cleanable_users(self, most: int) -> tuple[list[bytes], int]:
        """Users for a clean-up, which no other gets; and how many there are, `most` at the most."""
        users = _list(await self._redis.call(command("ZRANGE", self._cleanable_key, 0, most - 1)))
        taken = await asyncio.gather(*(self._redis.call(command("ZREM", self._cleanable_key, user)) for user in users))
        return [user for user, took in zip(users, taken, strict=True) if took], len(users)

    async def set_cleanable(self, user: bytes, until: int) -> None:
        """Until when a clean-up finds something (0: it finds nothing)."""
        if until:
            await self._redis.call(command("ZADD", self._cleanable_key, until, user))
        else:
            await self._redis.call(command("ZREM", self._cleanable_key, user))

    async def _index(self, key: bytes, user: bytes, seconds: float) -> None:
        await self._redis.call(command("SET", key, user, "PX", int(min(seconds, LATEST) * 1000) + 1, durable=True))

    async def index_refresh_token(self, digest: str, user: str) -> None:
        """Before the record knows it: a token without a record is unknown, a record without an index is lost."""
        await self._index(self._refresh_key(digest), user.encode(), self._kept_seconds)

    async def user_of_refresh_token(self, digest: str) -> str | None:
        return _text(await self._redis.call(command("GET", self._refresh_key(digest))))

    async def user_of_sid(self, sid: str) -> str | None:
        return _text(await self._redis.call(command("GET", self._sid_key(sid))))

    def _refresh_key(self, digest: str) -> bytes:
        return f"{self._prefix}refresh:{digest}".encode()

    def _sid_key(self, sid: str) -> bytes:
        return f"{self._prefix}sid:{sid}".encode()


def _list(found: Any) -> list[bytes]:
    if not isinstance(found, list):
        raise StoreUnavailable("the session store answered what is not ours", kind="protocol")
    return found


def _text(found: Any) -> str | None:
    if found is not None and not isinstance(found, bytes):
        raise StoreUnavailable("the session store answered what is not ours", kind="protocol")
    return None if found is None else found.decode(errors="replace")
