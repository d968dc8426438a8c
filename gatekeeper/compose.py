"""Settings → engine: the one place that constructs the parts of the gate. Used by the sidecar and by the mounted
middleware alike; nothing here knows a server or a proxy."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from gatekeeper.client_address import TrustedProxies
from gatekeeper.dialects.router import Router
from gatekeeper.embedded import EmbeddedValkey
from gatekeeper.errors import ConfigError, KeysUnavailable, StoreUnavailable
from gatekeeper.gate import Exemptions, Gate
from gatekeeper.geo import Locator, open_locator
from gatekeeper.headers import IdentityHeaders
from gatekeeper.origin import Origins
from gatekeeper.paths import Kind, PathTable, Pattern, compile_pattern
from gatekeeper.sessions.connection import Scripts, open_client
from gatekeeper.sessions.device import warm_up
from gatekeeper.sessions.limits import Limiter, Rate
from gatekeeper.sessions.manager import Manager
from gatekeeper.sessions.store import Rules, SessionStore
from gatekeeper.settings import Settings
from gatekeeper.telemetry import AccessLog, Metrics, Mode, Telemetry
from gatekeeper.tokens.keys import Fetch, JoinedKeys, JwksKeys, Keys, StaticKeys, http_fetcher
from gatekeeper.tokens.sources import TokenSources
from gatekeeper.tokens.verifier import Verifier

_log = logging.getLogger("gatekeeper")
_PROBE_SECONDS: Final = 1.0


class Engine:
    """All that judges a request, ready to use. `start` and `aclose` belong to the event loop that uses it."""

    def __init__(
        self,
        *,
        gate: Gate,
        manager: Manager,
        router: Router,
        paths: PathTable,
        identity: IdentityHeaders,
        sources: TokenSources,
        trusted: TrustedProxies,
        origins: Origins,
        language: str,
        telemetry: Telemetry,
        scripts: Scripts,
        keys: Keys,
        embedded: EmbeddedValkey | None,
        forward_authorization: bool,
        leeway_seconds: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.gate = gate
        self.manager = manager
        self.router = router
        self.paths = paths
        self.identity = identity
        self.sources = sources
        self.trusted = trusted
        self.origins = origins
        self.language = language
        self.telemetry = telemetry
        self.forward_authorization = forward_authorization
        self.started = False
        self._scripts = scripts
        self._keys = keys
        self._embedded = embedded
        self._leeway_seconds = leeway_seconds
        self._wall_clock = wall_clock
        self._starting: asyncio.Lock | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Engine [{'started' if self.started else 'not started'}] {self._scripts!r} {self._keys!r}>"

    async def start(self) -> None:
        """Starts what runs beside the requests; a second call does nothing. Raises `EmbeddedStoreFailed`."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self.started:
                return
            await asyncio.to_thread(warm_up)
            if self._embedded is not None:
                await asyncio.to_thread(self._embedded.start)
                self._tasks.append(asyncio.create_task(self._embedded.watch()))
            self._tasks.append(asyncio.create_task(self._probe()))
            self.started = True

    async def aclose(self) -> None:
        """Ends all of it. The embedded store ends with its last user."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self.started = False
        self._starting = None
        await self._scripts.aclose()
        await self._keys.aclose()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.stop)

    async def faults(self) -> list[str]:
        """Why this engine cannot judge requests now; empty when it can. Asks the store and the keys."""
        found: list[str] = []
        try:
            skew = abs(await self._scripts.time() - self._wall_clock())
        except StoreUnavailable as error:
            self.telemetry.metrics.store_failed(error.kind)
            found.append(str(error))
        else:
            self.telemetry.metrics.store_answered()
            if skew > max(self._leeway_seconds, 1.0):
                found.append(f"the clocks of this host and of the store are {skew:.0f} s apart")
        if not self._keys.ready:
            try:
                await self._keys.refresh()
            except KeysUnavailable as error:
                found.append(str(error))
        self.telemetry.metrics.jwks_keys.set(getattr(self._keys, "key_count", 0))
        return found

    async def store_warnings(self) -> list[str]:
        """What about the store's configuration endangers sessions. Raises `StoreUnavailable`."""
        found: list[str] = []
        policy = await self._scripts.configuration("maxmemory-policy")
        if policy not in {None, "noeviction"}:
            found.append(
                f"the store's maxmemory-policy is {policy}: under pressure it forgets sessions, ended ones too; "
                "set it to noeviction"
            )
        append_only, save = [await self._scripts.configuration(name) for name in ("appendonly", "save")]
        if append_only == "no" and not save:
            found.append("the store does not persist: a restart of it forgets which sessions have ended")
        return found

    async def _probe(self) -> None:
        """Keeps the gauges true when nobody asks."""
        known: list[str] = []
        while True:
            found = await self.faults()
            if found != known:
                for fault in found or ["ready"]:
                    (_log.warning if found else _log.info)(fault)
                known = found
            await asyncio.sleep(_PROBE_SECONDS)


def build(settings: Settings, *, mode: Mode, fetch: Fetch | None = None, access_log: AccessLog | None = None) -> Engine:
    """The engine that `settings` describe, not started. `fetch` gets the key set. Raises `ConfigError` for keys that
    cannot be used."""
    metrics = Metrics(mode)
    keys = _keys(settings, fetch or http_fetcher())
    embedded = EmbeddedValkey(settings.data_dir) if settings.redis_url is None else None
    scripts = Scripts(
        open_client(
            embedded.url if embedded is not None else _store_url(settings),
            timeout_seconds=settings.store_timeout,
            ca_file=str(settings.store_ca_file) if settings.store_ca_file else None,
        ),
        timeout_seconds=settings.store_timeout,
    )
    store = SessionStore(
        scripts, key_prefix=settings.key_prefix, rules=_rules(settings), locator=_locator(settings.geo)
    )
    manager = Manager(store, metrics)
    sources = TokenSources(settings.token_sources)
    router = Router(
        manager,
        dialects=settings.dialects,
        error_dialect=settings.error_dialect,
        debug_for_everybody=settings.debug_endpoints,
        cookies=sources.cookie_names,
    )
    verifier = Verifier(
        keys=keys,
        algorithms=settings.algorithms,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        leeway_seconds=settings.jwt_leeway,
        user_claim=settings.jwt_user_claim,
        roles_claim=settings.roles_claim,
        admin_roles=settings.admin_roles,
    )
    return Engine(
        gate=Gate(
            sources=sources,
            verifier=verifier,
            store=store,
            events=metrics,
            exempt=Exemptions(settings.exempt_users),
            limiter=_limiter(settings, scripts),
        ),
        manager=manager,
        router=router,
        paths=PathTable(router.routes(), _path_kinds(settings)),
        identity=IdentityHeaders(settings.identity_headers),
        sources=sources,
        trusted=TrustedProxies(settings.trusted_proxies),
        origins=Origins(settings.cors_origins),
        language=settings.language,
        telemetry=Telemetry(metrics, access_log),
        scripts=scripts,
        keys=keys,
        embedded=embedded,
        forward_authorization=settings.forward_authorization,
        leeway_seconds=settings.jwt_leeway,
    )


def _store_url(settings: Settings) -> str:
    assert settings.redis_url is not None  # noqa: S101 - asked only then
    return settings.redis_url.get_secret_value()


def _keys(settings: Settings, fetch: Fetch) -> Keys:
    try:
        parts: list[Keys] = []
        if settings.hmac_secrets or settings.public_keys_pem:
            parts.append(StaticKeys(settings.hmac_secrets, settings.public_keys_pem, settings.algorithms))
        if settings.jwks_url is not None:
            parts.append(JwksKeys(settings.jwks_url, fetch=fetch, algorithms=settings.algorithms))
        return parts[0] if len(parts) == 1 else JoinedKeys(*parts)
    except ValueError as error:
        raise ConfigError([f"GATEKEEPER_JWT_…: {error}"]) from None


def _locator(setting: str) -> Locator:
    try:
        return open_locator(setting)
    except ValueError as error:
        raise ConfigError([f"GATEKEEPER_GEO: {error}"]) from None


def _limiter(settings: Settings, scripts: Scripts) -> Limiter | None:
    if settings.rate_limit is None:
        return None
    number, seconds = settings.rate_limit
    return Limiter(scripts, key_prefix=settings.key_prefix, rate=Rate(number, seconds))


def _rules(settings: Settings) -> Rules:
    return Rules(
        session_seconds=settings.session_ttl,
        idle_seconds=settings.idle_timeout,
        ended_seconds=settings.ended_session_ttl,
        device_limit=settings.device_limit,
        policy=settings.device_limit_policy,
        adopt_unknown=settings.unknown_session == "adopt",
        leeway_seconds=settings.jwt_leeway,
    )


def _path_kinds(settings: Settings) -> list[tuple[Kind, list[Pattern]]]:
    """In the order in which they are asked: a login path that is public too is a login path."""
    return [
        (Kind.LOGIN, [compile_pattern(text, default_method="POST") for text in settings.login_paths]),
        (Kind.REFRESH, [compile_pattern(text, default_method="POST") for text in settings.refresh_paths]),
        (Kind.LOGOUT, [compile_pattern(text, default_method="POST") for text in settings.logout_paths]),
        (Kind.PUBLIC, [compile_pattern(text) for text in settings.public_paths]),
    ]
