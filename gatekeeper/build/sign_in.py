"""Settings → the gate, and the services that sign people in and out."""

from __future__ import annotations

from gatekeeper.auth.gate import Exemptions, Gate
from gatekeeper.auth.renewals import Renewals
from gatekeeper.auth.services import SignInServices
from gatekeeper.auth.sign_out import SignOut
from gatekeeper.auth.standing import Standings
from gatekeeper.auth.strays import StrayTokens
from gatekeeper.build.store import StoreParts, degraded, login_attempts, rate_limiter
from gatekeeper.sessions.manager import Manager
from gatekeeper.sessions.sign_ins import SignIns
from gatekeeper.settings import Settings
from gatekeeper.telemetry.metrics import Metrics
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.tokens.sources import TokenSources
from gatekeeper.tokens.strays import StrayPlaces
from gatekeeper.tokens.token_warnings import TokenWarnings
from gatekeeper.tokens.verifier import Verifier


def sign_in_services(
    settings: Settings, store: StoreParts, verifier: Verifier, sources: TokenSources, metrics: Metrics
) -> SignInServices:
    """The gate and all that stands beside it, over one store and one verifier."""
    exempt, warnings = Exemptions(settings.exempt_users), TokenWarnings()
    sign_ins = SignIns(store.runner, reuse_window_seconds=settings.refresh_reuse_window)
    degraded_mode = degraded(settings, store)
    standings = Standings(sign_ins, degraded_mode)
    gate = Gate(
        sources=sources,
        verifier=verifier,
        store=store.sessions,
        events=metrics,
        exempt=exempt,
        limiter=rate_limiter(settings, store.client),
        warnings=warnings,
        degraded=degraded_mode,
        standings=standings,
    )
    manager = Manager(store.sessions, metrics)
    return SignInServices(
        gate=gate,
        verifier=verifier,
        strays=StrayTokens(StrayPlaces(sources), verifier, standings),
        sign_ins=sign_ins,
        manager=manager,
        exempt=exempt,
        events=metrics,
        audit_log=store.runner.outbox.audit_log,
        attempts=login_attempts(settings, store.client),
        failure_statuses=frozenset(settings.login_failure_status),
        warnings=warnings,
    )


def renewals(services: SignInServices, sources: TokenSources, telemetry: Telemetry) -> Renewals:
    """The tokens that a backend renews on any response."""
    return Renewals(services.verifier, services.sign_ins, cookies=sources.cookie_names, on_failure=telemetry.failed)


def sign_out(services: SignInServices) -> SignOut:
    """Signing out, over the same services."""
    return SignOut(gate=services.gate, verifier=services.verifier, sign_ins=services.sign_ins, manager=services.manager)
