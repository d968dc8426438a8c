"""Settings → engine: the one place that constructs the parts of the gate. Used by the sidecar and by the mounted
middleware alike; nothing here knows a server or a proxy."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from gatekeeper.auth.gate import Exemptions, Gate
from gatekeeper.auth.issued_sign_in import IssuedSignIn
from gatekeeper.auth.oauth import BackChannelLogout, IntrospectionClients, TokenEndpoints
from gatekeeper.auth.observed_sign_in import SignInServices
from gatekeeper.auth.sign_out import SignOut
from gatekeeper.dialects import endpoints
from gatekeeper.dialects.endpoints import Endpoint, Serves
from gatekeeper.dialects.router import Router
from gatekeeper.errors import ConfigError
from gatekeeper.http.client_address import TrustedProxies
from gatekeeper.http.headers import IdentityHeaders
from gatekeeper.http.origins import Origins
from gatekeeper.http.paths import PathKind, PathTable, compile_pattern
from gatekeeper.runtime import Engine
from gatekeeper.sessions.degraded import DegradedMode
from gatekeeper.sessions.geo import Locator, open_locator
from gatekeeper.sessions.housekeeping import Housekeeping
from gatekeeper.sessions.keys import Rules, ScriptRunner, microseconds
from gatekeeper.sessions.login_attempts import LoginAttempts
from gatekeeper.sessions.manager import Manager
from gatekeeper.sessions.open_streams import OpenStreams
from gatekeeper.sessions.revocations import Revocation, RevocationListener
from gatekeeper.sessions.revoked_cache import RevokedCache
from gatekeeper.sessions.sign_ins import SignIns
from gatekeeper.sessions.store import SessionStore
from gatekeeper.settings import Settings
from gatekeeper.store.address import open_client
from gatekeeper.store.breaker import Breaker
from gatekeeper.store.client import StoreClient
from gatekeeper.store.embedded import EmbeddedValkey
from gatekeeper.store.epoch import Epoch
from gatekeeper.store.rate_limit import Rate, RateLimiter
from gatekeeper.store.replay import ReplayGuard
from gatekeeper.telemetry.access_log import AccessLog
from gatekeeper.telemetry.metrics import Metrics, Mode
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.tokens.issuer import AccessTokenIssuer
from gatekeeper.tokens.keys import FetchKeySet, JoinedKeys, JwksKeys, Keys, StaticKeys, http_fetcher
from gatekeeper.tokens.login_check import LoginCheck, asgi_transport
from gatekeeper.tokens.logout_token import LogoutTokenVerifier
from gatekeeper.tokens.signing_keys import SigningKeys
from gatekeeper.tokens.sources import TokenSources
from gatekeeper.tokens.verifier import Verifier
from gatekeeper.tokens.verify_queue import VerifyQueue


class Store(NamedTuple):
    """What speaks to the store."""

    scripts: StoreClient
    runner: ScriptRunner
    epoch: Epoch
    breaker: Breaker
    sessions: SessionStore
    embedded: EmbeddedValkey | None
    connect: Callable[[], Any]


def build(
    settings: Settings,
    *,
    mode: Mode,
    fetch: FetchKeySet | None = None,
    verify_queue: VerifyQueue | None = None,
    access_log: AccessLog | None = None,
    application: Any = None,
) -> Engine:
    """The engine that `settings` describe, not started. `fetch` gets the key set, `verify_queue` are those of
    signatures; `application` is asked for passwords where `LOGIN_CHECK_URL` is a path and there is no `UPSTREAM_URL`.
    Raises `ConfigError` for keys that cannot be used.
    """
    metrics = Metrics(mode)
    signing = _signing_keys(settings)
    keys = _keys(settings, signing, fetch or http_fetcher())
    store = open_store(settings)
    store.runner.outbox.events = metrics
    streams = OpenStreams(store.sessions, idle_seconds=settings.idle_timeout)
    manager = Manager(store.sessions, metrics)
    sources = TokenSources(settings.effective_token_sources)
    enabled = _endpoints(settings, signing)
    router = Router(
        manager,
        dialects=settings.dialects,
        error_dialect=settings.error_dialect,
        debug_for_everybody=settings.debug_endpoints,
        cookies=sources.cookie_names,
        endpoints=enabled,
    )
    verify_queue = verify_queue or VerifyQueue()
    verifier = _verifier(settings, keys, verify_queue)
    gate = Gate(
        sources=sources,
        verifier=verifier,
        store=store.sessions,
        events=metrics,
        exempt=Exemptions(settings.exempt_users),
        limiter=_limiter(settings, store.scripts),
        degraded=_degraded(settings, store),
    )
    store.breaker.add_listener(metrics.store_is_up)
    sign_ins = SignIns(store.runner, reuse_window_seconds=settings.refresh_reuse_window)
    parts = SignInServices(
        gate=gate,
        verifier=verifier,
        sign_ins=sign_ins,
        sign_out=SignOut(gate=gate, verifier=verifier, sign_ins=sign_ins, manager=manager),
        manager=manager,
        exempt=Exemptions(settings.exempt_users),
        events=metrics,
        audit_log=store.runner.outbox.audit_log,
        attempts=_attempts(settings, store.scripts),
    )
    return Engine(
        gate=gate,
        manager=manager,
        parts=parts,
        issuing=_issuing(settings, parts, signing, application) if signing is not None else None,
        provider=TokenEndpoints(parts, adopts_unknown=settings.adopts_unknown, issues=signing is not None),
        clients=IntrospectionClients(
            {client.id: client.secret.get_secret_value() for client in settings.introspection_clients}
        ),
        backchannel=_backchannel(settings, parts, keys, store.scripts, verify_queue),
        endpoints=enabled,
        key_set=signing.jwks if signing is not None else None,
        cookie_transport=signing is not None and settings.token_transport == "cookie",  # noqa: S105
        router=router,
        paths=_path_table(settings, router, enabled),
        identity=IdentityHeaders(settings.identity_headers),
        sources=sources,
        trusted=TrustedProxies(settings.trusted_proxies),
        origins=Origins(settings.cors_origins),
        language=settings.language,
        telemetry=Telemetry(metrics, access_log),
        scripts=store.scripts,
        epoch=store.epoch,
        breaker=store.breaker,
        streams=streams,
        ends=_ends(store, streams),
        housekeeping=Housekeeping(store.sessions, store.runner.outbox),
        keys=keys,
        verify_queue=verify_queue,
        embedded=store.embedded,
        connect=store.connect,
        forward_authorization=settings.forward_authorization,
        leeway_seconds=settings.jwt_leeway,
    )


def open_store(settings: Settings) -> Store:
    """What speaks to the store that `settings` name; an embedded one is not started."""
    embedded = EmbeddedValkey(settings.data_dir) if settings.redis_url is None else None
    url = embedded.url if embedded is not None else settings.redis_url.get_secret_value()  # type: ignore[union-attr]
    ca_file = str(settings.store_ca_file) if settings.store_ca_file else None
    connect = partial(open_client, url, timeout_seconds=settings.store_timeout, ca_file=ca_file)
    scripts = StoreClient(
        url, timeout_seconds=settings.store_timeout, ca_file=ca_file, replicas=settings.store_replicas
    )
    epoch = Epoch(scripts, key_prefix=settings.key_prefix)
    scripts.breaker = breaker = Breaker(epoch.beat, opens=not scripts.is_cluster, probe_first=True)
    runner = ScriptRunner(
        scripts,
        key_prefix=settings.key_prefix,
        rules=_rules(settings),
        locator=_locator(settings.geo),
        epoch=epoch,
        revoked=_revoked(settings),
    )
    return Store(scripts, runner, epoch, breaker, SessionStore(runner), embedded, connect)


def _revoked(settings: Settings) -> RevokedCache | None:
    """Remembered only where it will be asked for."""
    if settings.on_store_failure == "deny":
        return None
    return RevokedCache(kept_seconds=settings.session_ttl + settings.ended_session_ttl)


def _degraded(settings: Settings, store: Store) -> DegradedMode | None:
    if settings.on_store_failure == "deny":
        return None
    return DegradedMode(store.breaker, store.runner.revoked, most_seconds=settings.degraded_max)


def _ends(store: Store, streams: OpenStreams) -> RevocationListener:
    def on_revocation(revocation: Revocation) -> None:
        streams.revoke(revocation)
        if revocation.session_id is not None:
            store.runner.revoked.add_ended(revocation.user, revocation.session_id, revocation.reason)
        else:
            store.runner.revoked.add_all_ended(
                revocation.user, microseconds(time.time()), revocation.spared_id or None, revocation.reason
            )

    return RevocationListener(store.connect, store.runner, on_revocation=on_revocation, on_gap=streams.check_all)


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


def _signing_keys(settings: Settings) -> SigningKeys | None:
    """What signs, where Gatekeeper issues the tokens."""
    if settings.tokens != "issue":
        return None
    try:
        return SigningKeys(settings.signing_secrets, settings.signing_keys_pem, settings.algorithms)
    except ValueError as error:
        raise ConfigError([f"GATEKEEPER_SIGNING_KEY: {error}"]) from None


def _keys(settings: Settings, signing: SigningKeys | None, fetch: FetchKeySet) -> Keys:
    own = signing.hmac_secrets if signing is not None else ()
    secrets = list(dict.fromkeys([*own, *settings.hmac_secrets]))
    pems = [*(signing.public_keys_pem if signing is not None else ()), *settings.public_keys_pem]
    try:
        parts: list[Keys] = []
        if secrets or pems:
            parts.append(StaticKeys(secrets, pems, settings.algorithms))
        if settings.jwks_url is not None:
            parts.append(JwksKeys(settings.jwks_url, fetch=fetch, algorithms=settings.algorithms))
        return parts[0] if len(parts) == 1 else JoinedKeys(*parts)
    except ValueError as error:
        raise ConfigError([f"GATEKEEPER_JWT_…: {error}"]) from None


def _verifier(settings: Settings, keys: Keys, verify_queue: VerifyQueue) -> Verifier:
    return Verifier(
        keys=keys,
        algorithms=settings.algorithms,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        leeway_seconds=settings.jwt_leeway,
        user_claim=settings.jwt_user_claim,
        roles_claim=settings.roles_claim,
        admin_roles=settings.admin_roles,
        verify_queue=verify_queue,
    )


def _locator(setting: str) -> Locator:
    try:
        return open_locator(setting)
    except ValueError as error:
        raise ConfigError([f"GATEKEEPER_GEO: {error}"]) from None


def _limiter(settings: Settings, scripts: StoreClient) -> RateLimiter | None:
    if settings.rate_limit is None:
        return None
    number, seconds = settings.rate_limit
    return RateLimiter(scripts, key_prefix=settings.key_prefix, rate=Rate(number, seconds))


def _attempts(settings: Settings, scripts: StoreClient) -> LoginAttempts | None:
    if settings.login_rate_limit is None:
        return None
    number, seconds = settings.login_rate_limit
    return LoginAttempts(scripts, key_prefix=settings.key_prefix, rate=Rate(number, seconds))


def _issuing(settings: Settings, parts: SignInServices, signing: SigningKeys, application: Any) -> IssuedSignIn:
    try:
        access_tokens = AccessTokenIssuer(
            signing,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            ttl_seconds=settings.access_token_ttl,
            user_claim=settings.jwt_user_claim,
        )
        check = _login_check(settings, application) if settings.login_paths else None
    except ValueError as error:
        raise ConfigError([f"GATEKEEPER_TOKENS: {error}"]) from None
    return IssuedSignIn(parts, check=check, access_tokens=access_tokens, session_seconds=settings.session_ttl)


def _login_check(settings: Settings, application: Any) -> LoginCheck:
    where, backend = settings.login_check_url or "", settings.upstream_url or ""
    transport = uds = None
    if where.startswith("/"):
        if backend.startswith("http+unix://"):
            backend, uds = "http://localhost", backend.removeprefix("http+unix://")
        elif not backend:
            if application is None:
                problem = f"read {where!r}, a path, and GATEKEEPER_UPSTREAM_URL is not set; accepted: a URL"
                raise ConfigError([f"GATEKEEPER_LOGIN_CHECK_URL: {problem}"])
            backend, transport = "http://localhost", asgi_transport(application)
        where = backend + where
    return LoginCheck(
        where,
        timeout_seconds=settings.upstream_timeout,
        connect_timeout_seconds=settings.upstream_connect_timeout,
        user_pointer=settings.login_user_pointer,
        claims=settings.login_claims,
        transport=transport,
        ca_file=str(settings.upstream_ca_file) if settings.upstream_ca_file else None,
        uds=uds,
    )


def _backchannel(
    settings: Settings, parts: SignInServices, keys: Keys, scripts: StoreClient, verify_queue: VerifyQueue
) -> BackChannelLogout | None:
    if settings.backchannel_issuer is None:
        return None
    tokens = LogoutTokenVerifier(
        keys=keys,
        algorithms=settings.algorithms,
        issuer=settings.backchannel_issuer,
        audience=settings.jwt_audience,
        leeway_seconds=settings.jwt_leeway,
        verify_queue=verify_queue,
    )
    return BackChannelLogout(
        parts,
        tokens,
        ReplayGuard(scripts, key_prefix=settings.key_prefix, kind="logout", leeway_seconds=settings.jwt_leeway),
        sub_is_user=settings.jwt_user_claim == "sub",
        session_seconds=settings.session_ttl,
    )


def _sign_in_paths(settings: Settings) -> list[tuple[Serves, PathKind, tuple[str, ...]]]:
    """In the order in which they are asked: a login path that is public too is a login path."""
    return [
        (Serves.LOGIN, PathKind.LOGIN, settings.login_paths),
        (Serves.REFRESH, PathKind.REFRESH, settings.refresh_paths),
        (Serves.LOGOUT, PathKind.LOGOUT, settings.logout_paths),
    ]


def _endpoints(settings: Settings, signing: SigningKeys | None) -> list[Endpoint]:
    found: list[Endpoint] = []
    if signing is not None:
        for serves, _, patterns in _sign_in_paths(settings):
            found += [endpoints.by_pattern(serves, pattern) for pattern in patterns]
        if signing.jwks is not None:
            found.append(endpoints.KEYS)
    if settings.introspection_clients:
        found += [endpoints.REVOKE, endpoints.INTROSPECT]
    if settings.backchannel_issuer is not None:
        found.append(endpoints.BACKCHANNEL)
    return found


def _path_table(settings: Settings, router: Router, enabled: list[Endpoint]) -> PathTable:
    issues = settings.tokens == "issue"
    kinds = [
        *(
            (kind, [compile_pattern(text, default_method="POST") for text in patterns])
            for _, kind, patterns in _sign_in_paths(settings)
            if not issues
        ),
        (PathKind.PUBLIC, [compile_pattern(text) for text in settings.public_paths]),
    ]
    by_pattern = [endpoint for endpoint in enabled if endpoint.is_pattern]
    return PathTable(
        [*router.routes(), *(endpoint.route for endpoint in enabled if not endpoint.is_pattern)],
        kinds,
        own=[(endpoints.compiled(endpoint), endpoint.route) for endpoint in by_pattern],
    )
