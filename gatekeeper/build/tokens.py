"""Settings → what verifies tokens, and what issues them."""

from __future__ import annotations

from typing import Any

from gatekeeper.auth.issued_sign_in import IssuedSignIn
from gatekeeper.auth.oauth import BackChannelLogout
from gatekeeper.auth.services import SignInServices
from gatekeeper.build.sign_in import sign_out
from gatekeeper.errors import ConfigError
from gatekeeper.settings import Settings
from gatekeeper.store.client import StoreClient
from gatekeeper.store.replay import ReplayGuard
from gatekeeper.tokens.issuer import AccessTokenIssuer
from gatekeeper.tokens.keys import FetchKeySet, JoinedKeys, JwksKeys, KeySource, StaticKeys, http_fetcher
from gatekeeper.tokens.login_check import LoginCheck, asgi_transport
from gatekeeper.tokens.logout_token import LogoutTokenVerifier
from gatekeeper.tokens.signing_keys import SigningKeys
from gatekeeper.tokens.verifier import MAX_LEEWAY_SECONDS, Verifier
from gatekeeper.tokens.verify_queue import VerifyQueue


def key_set_fetcher(settings: Settings) -> FetchKeySet:
    """The function that fetches the key set."""
    return http_fetcher(ca_file=str(settings.jwks_ca_file) if settings.jwks_ca_file else None)


def signing_keys(settings: Settings) -> SigningKeys | None:
    """The keys that sign; None where the backend issues the tokens. Raises `ConfigError`."""
    if settings.tokens != "issue":
        return None
    try:
        return SigningKeys(
            settings.signing_secrets,
            settings.signing_keys_pem,
            settings.algorithms,
            least_secret_bytes=settings.jwt_secret_floor,
        )
    except ValueError as error:
        raise ConfigError([f"GATEKEEPER_SIGNING_KEY: {error}"]) from None


def verification_keys(settings: Settings, signing: SigningKeys | None, fetch: FetchKeySet) -> KeySource:
    """Every key that tokens are verified with. Raises `ConfigError`."""
    own = signing.hmac_secrets if signing is not None else ()
    secrets = list(dict.fromkeys([*own, *settings.hmac_secrets]))
    pems = [*(signing.public_keys_pem if signing is not None else ()), *settings.public_keys_pem]
    try:
        parts: list[KeySource] = []
        if secrets or pems:
            parts.append(StaticKeys(secrets, pems, settings.algorithms, least_secret_bytes=settings.jwt_secret_floor))
        if settings.jwks_url is not None:
            parts.append(JwksKeys(settings.jwks_url, fetch=fetch, algorithms=settings.algorithms))
        return parts[0] if len(parts) == 1 else JoinedKeys(*parts)
    except ValueError as error:
        raise ConfigError([f"GATEKEEPER_JWT_…: {error}"]) from None


def token_verifier(settings: Settings, keys: KeySource, verify_queue: VerifyQueue) -> Verifier:
    """The verifier of access tokens."""
    return Verifier(
        keys=keys,
        algorithms=settings.algorithms,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        leeway_seconds=settings.jwt_leeway,
        user_claim=settings.jwt_user_claim,
        roles_claim=settings.roles_claim,
        admin_roles=settings.admin_roles,
        required_claims=settings.jwt_required_claims,
        types=settings.jwt_types,
        max_token_bytes=settings.max_header_bytes,
        verify_queue=verify_queue,
    )


def issued_sign_in(
    settings: Settings, services: SignInServices, signing: SigningKeys, application: Any
) -> IssuedSignIn:
    """Sign-ins with tokens of Gatekeeper's own. Raises `ConfigError`."""
    try:
        access_tokens = AccessTokenIssuer(
            signing,
            issuer=settings.jwt_issuer[0] if settings.jwt_issuer else None,
            audience=settings.jwt_audience[0] if settings.jwt_audience else None,
            ttl_seconds=settings.access_token_ttl,
            user_claim=settings.jwt_user_claim,
        )
        check = _login_check(settings, application) if settings.login_paths else None
    except ValueError as error:
        raise ConfigError([f"GATEKEEPER_TOKENS: {error}"]) from None
    return IssuedSignIn(
        services, sign_out(services), check=check, access_tokens=access_tokens, session_seconds=settings.session_ttl
    )


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
        refusals=settings.login_failure_status,
        transport=transport,
        ca_file=str(settings.upstream_ca_file) if settings.upstream_ca_file else None,
        uds=uds,
    )


def backchannel_logout(
    settings: Settings, services: SignInServices, keys: KeySource, client: StoreClient, verify_queue: VerifyQueue
) -> BackChannelLogout | None:
    """The receiver of logout tokens; None where it is off."""
    if settings.backchannel_issuer is None:
        return None
    tokens = LogoutTokenVerifier(
        keys=keys,
        algorithms=settings.algorithms,
        issuer=settings.backchannel_issuer,
        audience=settings.jwt_audience,
        leeway_seconds=settings.jwt_leeway,
        # A provider does not repeat what was refused, so a late clock of this host must not lose a logout. Its `exp`
        # counts: the `jti` is remembered no longer.
        early_seconds=MAX_LEEWAY_SECONDS,
        verify_queue=verify_queue,
    )
    return BackChannelLogout(
        services,
        tokens,
        ReplayGuard(client, key_prefix=settings.key_prefix, kind="logout", leeway_seconds=settings.jwt_leeway),
        sub_is_user=settings.jwt_user_claim == "sub",
        session_seconds=settings.session_ttl,
    )


def client_secrets(settings: Settings) -> dict[str, str]:
    """The secrets of the clients that may introspect and revoke tokens, by id."""
    return {client.id: client.secret.get_secret_value() for client in settings.introspection_clients}
