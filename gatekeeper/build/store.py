"""Settings → everything that speaks to the session store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from gatekeeper.errors import ConfigError
from gatekeeper.sessions.audit import Retention
from gatekeeper.sessions.degraded import DegradedMode
from gatekeeper.sessions.geo import Locator, open_locator
from gatekeeper.sessions.keys import Rules, microseconds
from gatekeeper.sessions.login_attempts import LoginAttempts
from gatekeeper.sessions.open_streams import OpenStreams
from gatekeeper.sessions.revocations import Revocation, RevocationListener
from gatekeeper.sessions.revoked_cache import RevokedCache
from gatekeeper.sessions.script_runner import ScriptRunner
from gatekeeper.sessions.shared_rules import SharedRules
from gatekeeper.sessions.store import SessionStore
from gatekeeper.settings import Settings
from gatekeeper.store.breaker import Breaker
from gatekeeper.store.client import StoreClient
from gatekeeper.store.embedded import EmbeddedValkey, JoinedValkey
from gatekeeper.store.epoch import Epoch
from gatekeeper.store.rate_limit import Rate, RateLimiter


class StoreParts(NamedTuple):
    """The store client and what stands on it. `connect` opens a redis-py client for applications.
    `take_credentials` has new connections use the user and the password of another URL of the same store; it returns
    False for another store."""

    client: StoreClient
    runner: ScriptRunner
    epoch: Epoch
    breaker: Breaker
    sessions: SessionStore
    shared_rules: SharedRules
    embedded: EmbeddedValkey | None
    connect: Callable[[], Any]
    take_credentials: Callable[[str], bool]


@asynccontextmanager
async def joined_store(settings: Settings) -> AsyncIterator[StoreParts]:
    """The store that a Gatekeeper uses, for a command. Raises `StoreUnavailable`, and `EmbeddedStoreFailed` where none
    runs."""
    store = open_store(settings, joins=True)
    try:
        if store.embedded is not None:
            await asyncio.to_thread(store.embedded.start)
        await store.epoch.beat()
        yield store
    finally:
        await store.epoch.aclose()
        await store.breaker.aclose()
        await store.client.aclose()
        if store.embedded is not None:
            await asyncio.to_thread(store.embedded.stop)


def open_store(settings: Settings, *, joins: bool = False, rules: Rules | None = None) -> StoreParts:
    """Build the client of the store that the settings name. An embedded store is not started; with `joins` it never is,
    and one that runs is used. `rules` take the place of those of the settings. Raises `ConfigError`."""
    kind = JoinedValkey if joins else EmbeddedValkey
    embedded = kind(settings.data_dir) if settings.redis_url is None else None
    url = embedded.url if embedded is not None else settings.redis_url.get_secret_value()  # type: ignore[union-attr]
    ca_file = str(settings.store_ca_file) if settings.store_ca_file else None
    newest_url = [url]

    def connect() -> Any:
        from gatekeeper.store.redis_client import open_client

        return open_client(newest_url[-1], timeout_seconds=settings.store_timeout, ca_file=ca_file)

    def take_credentials(other: str) -> bool:
        taken = client.take_credentials(other)
        if taken:
            newest_url[:] = [other]
        return taken

    client = StoreClient(url, timeout_seconds=settings.store_timeout, ca_file=ca_file, replicas=settings.store_replicas)
    epoch = Epoch(client, key_prefix=settings.key_prefix)
    client.breaker = breaker = Breaker(epoch.beat, opens=not client.is_cluster, probe_first=True)
    runner = ScriptRunner(
        client,
        key_prefix=settings.key_prefix,
        rules=rules or _rules(settings),
        locator=_locator(settings.geo),
        epoch=epoch,
        revoked=_revoked(settings),
        retention=Retention(*settings.audit_retention),
        user_name_claim=settings.user_name_claim,
    )
    shared = SharedRules(client, epoch, key_prefix=settings.key_prefix, rules=_rules(settings))
    return StoreParts(client, runner, epoch, breaker, SessionStore(runner), shared, embedded, connect, take_credentials)


def _revoked(settings: Settings) -> RevokedCache | None:
    """The cache of ended sessions, which only a degraded process reads."""
    if settings.on_store_failure == "deny":
        return None
    return RevokedCache(kept_seconds=settings.session_ttl + settings.ended_session_ttl)


def degraded(settings: Settings, store: StoreParts) -> DegradedMode | None:
    """The rules for requests while the store is away; None where none passes."""
    if settings.on_store_failure == "deny":
        return None
    return DegradedMode(store.breaker, store.runner.revoked, most_seconds=settings.degraded_max)


def revocation_listener(store: StoreParts, streams: OpenStreams) -> RevocationListener:
    """The listener that tells open streams and the cache of the sessions that end elsewhere."""

    def on_revocation(revocation: Revocation) -> None:
        streams.revoke(revocation)
        if revocation.session_id is not None:
            store.runner.revoked.add_ended(revocation.user, revocation.session_id, revocation.reason)
        else:
            store.runner.revoked.add_all_ended(
                revocation.user, microseconds(time.time()), revocation.spared_id or None, revocation.reason
            )

    return RevocationListener(
        store.client.subscribe, store.runner, on_revocation=on_revocation, on_gap=streams.check_all
    )


def _rules(settings: Settings) -> Rules:
    return Rules(
        session_seconds=settings.session_ttl,
        idle_seconds=settings.idle_timeout,
        ended_seconds=settings.ended_session_ttl,
        device_limit=settings.device_limit,
        policy=settings.device_limit_policy,
        adopt_unknown=settings.adopts_unknown,
        leeway_seconds=settings.jwt_leeway,
        index_sids=settings.backchannel_issuer is not None,
    )


def _locator(setting: str) -> Locator:
    try:
        return open_locator(setting)
    except ValueError as error:
        raise ConfigError([f"GATEKEEPER_GEO: {error}"]) from None


def rate_limiter(settings: Settings, client: StoreClient) -> RateLimiter | None:
    """The limit on calls of Gatekeeper's own endpoints; None where it is off."""
    if settings.rate_limit is None:
        return None
    number, seconds = settings.rate_limit
    return RateLimiter(client, key_prefix=settings.key_prefix, rate=Rate(number, seconds))


def login_attempts(settings: Settings, client: StoreClient) -> LoginAttempts | None:
    """The limit on failed logins; None where it is off."""
    if settings.login_rate_limit is None:
        return None
    number, seconds = settings.login_rate_limit
    return LoginAttempts(client, key_prefix=settings.key_prefix, rate=Rate(number, seconds))
