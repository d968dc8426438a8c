"""Settings → the request pipeline."""

from __future__ import annotations

from typing import NamedTuple

from gatekeeper.auth.issued_sign_in import IssuedSignIn
from gatekeeper.auth.oauth import BackChannelLogout, IntrospectionClients, TokenEndpoints
from gatekeeper.auth.services import SignInServices
from gatekeeper.build.paths import enabled_endpoints, path_table
from gatekeeper.build.sign_in import sign_out
from gatekeeper.build.tokens import client_secrets
from gatekeeper.dialects.error_template import ErrorTemplate
from gatekeeper.dialects.router import Router
from gatekeeper.http.client_address import TrustedProxies
from gatekeeper.http.headers import IdentityHeaders
from gatekeeper.http.origins import Origins
from gatekeeper.http.paths import compile_pattern
from gatekeeper.models import Policy
from gatekeeper.settings import Settings
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.tokens.login_names import LoginNames
from gatekeeper.tokens.response_tokens import ResponseReader
from gatekeeper.tokens.signing_keys import SigningKeys
from gatekeeper.tokens.sources import TokenSources
from gatekeeper.tokens.strays import StrayPlaces
from gatekeeper.tokens.token_places import TokenPlaces
from gatekeeper.web.endpoints import Endpoints
from gatekeeper.web.opaque import OpaqueBearers
from gatekeeper.web.operations import Operations
from gatekeeper.web.pipeline import Pipeline
from gatekeeper.web.respond import Responder
from gatekeeper.web.rules import RequestRules


class WebParts(NamedTuple):
    """The pipeline and what hosts share with it. `claimed`: every path that is Gatekeeper's own, with its method."""

    pipeline: Pipeline
    rules: RequestRules
    responder: Responder
    claimed: list[str]
    clients: IntrospectionClients


def web_parts(
    settings: Settings,
    sign_in: SignInServices,
    sources: TokenSources,
    telemetry: Telemetry,
    *,
    signing: SigningKeys | None,
    issued: IssuedSignIn | None,
    backchannel: BackChannelLogout | None,
) -> WebParts:
    """The pipeline that the settings describe."""
    enabled = enabled_endpoints(settings, signing)
    router = Router(
        sign_in.manager,
        dialects=settings.dialects,
        error_dialect=settings.error_dialect,
        policy=Policy(
            device_limit=settings.device_limit,
            device_limit_policy=settings.device_limit_policy,
            idle_seconds=settings.idle_timeout,
            session_seconds=settings.session_ttl,
        ),
        change_password_url=settings.change_password_url,
        debug_for_everybody=settings.debug_endpoints,
        cookies=sources.cookie_names,
        endpoints=enabled,
        template=None if settings.error_body is None else ErrorTemplate(settings.error_body),
    )
    rules = RequestRules(
        paths=path_table(settings, router, enabled),
        sources=sources,
        strays=StrayPlaces(sources),
        identity=IdentityHeaders(settings.identity_headers),
        trusted=TrustedProxies(settings.trusted_proxies, settings.client_address_header),
        origins=Origins(settings.cors_origins),
        login_names=LoginNames(settings.login_name_fields),
        opaque=OpaqueBearers([compile_pattern(text) for text in settings.opaque_bearer_paths]),
        refresh_places=TokenPlaces(settings.refresh_token_sources),
        responses=ResponseReader(
            access_places=settings.login_token_pointers,
            refresh_places=settings.login_refresh_pointers,
            cookies=sources.cookie_names,
        ),
        forward_authorization=settings.forward_authorization,
        cookie_transport=signing is not None and settings.token_transport == "cookie",  # noqa: S105 - no token
    )
    responder = Responder(router, rules.origins, language=settings.language)
    operations = Operations(
        rules, responder, gate=sign_in.gate, sign_out=sign_out(sign_in), manager=sign_in.manager, router=router
    )
    clients = IntrospectionClients(client_secrets(settings))
    endpoints = Endpoints(
        rules,
        responder,
        issued=issued,
        key_set=signing.jwks if signing is not None else None,
        token_endpoints=TokenEndpoints(sign_in, adopts_unknown=settings.adopts_unknown, issues=signing is not None),
        clients=clients,
        backchannel=backchannel,
    )
    pipeline = Pipeline(
        rules,
        responder,
        gate=sign_in.gate,
        sign_in=sign_in,
        operations=operations,
        endpoints=endpoints,
        telemetry=telemetry,
    )
    routes = [*(endpoint.route for endpoint in enabled), *router.routes()]
    claimed = [f"{route.method} {route.template}" for route in routes]
    return WebParts(pipeline, rules, responder, claimed, clients)
