"""Settings → the paths that are Gatekeeper's own, and the kind of every other one."""

from __future__ import annotations

from gatekeeper.dialects import endpoints
from gatekeeper.dialects.endpoints import Endpoint, Serves
from gatekeeper.dialects.router import Router
from gatekeeper.http.paths import PathKind, PathTable, compile_pattern
from gatekeeper.settings import Settings
from gatekeeper.tokens.signing_keys import SigningKeys


def _sign_in_paths(settings: Settings) -> list[tuple[Serves, PathKind, tuple[str, ...]]]:
    """The sign-in paths in the order in which they are tried: a login path that is public too is a login path."""
    return [
        (Serves.LOGIN, PathKind.LOGIN, settings.login_paths),
        (Serves.REFRESH, PathKind.REFRESH, settings.refresh_paths),
        (Serves.LOGOUT, PathKind.LOGOUT, settings.logout_paths),
    ]


def enabled_endpoints(settings: Settings, signing: SigningKeys | None) -> list[Endpoint]:
    """The endpoints for sign-ins and OAuth that the settings switch on."""
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


def path_table(settings: Settings, router: Router, enabled: list[Endpoint]) -> PathTable:
    """The table that tells the kind of each path."""
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
