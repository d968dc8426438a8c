"""`gatekeeper check`: finds problems in the settings, and in the services that they name."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from gatekeeper.app import create_upstream
from gatekeeper.auth.requests import RequestFacts
from gatekeeper.build import build, joined_store
from gatekeeper.dialects.base import instant
from gatekeeper.errors import KeysUnavailable, StoreUnavailable, UpstreamTimeout, UpstreamUnavailable
from gatekeeper.models import Claims, Client
from gatekeeper.sessions.keys import Rules
from gatekeeper.settings import Settings, load, store_name, warnings
from gatekeeper.settings.types import env_name
from gatekeeper.store.embedded import EmbeddedStoreDown, EmbeddedStoreFailed, EmbeddedValkey
from gatekeeper.tokens import diagnosis
from gatekeeper.web.engine import Engine


async def run(*, online: bool, token_file: Path | None) -> int:
    """Prints every finding. Returns the exit code, 1 if a check failed. Raises `ConfigError` for invalid settings."""
    settings = load()
    rules = await _rules_of_server(settings) if online else None
    engine = build(settings, mode="sidecar", joins_store=True, rules=rules)
    failed = False
    try:
        if token_file is not None:
            failed = not await _check_token(settings, engine, token_file, online=online)
        for warning in warnings(settings):
            print(f"warning: {warning}")
        print("paths that Gatekeeper serves itself (switch a dialect off with GATEKEEPER_DIALECTS):")
        for claimed in engine.claimed:
            method, _, path = claimed.partition(" ")
            print(f"  {method:6} {path}")
        if settings.redis_url is None and (fault := EmbeddedValkey(settings.data_dir).fault()) is not None:
            failed = True
            print(f"failed: {fault}")
        if online:
            async for failure in _failures(settings, engine):
                failed = True
                print(f"failed: {failure}")
    finally:
        await engine.runtime.aclose()
    print("failed" if failed else "ok")
    return 1 if failed else 0


async def _rules_of_server(settings: Settings) -> Rules | None:
    """The rules of the Gatekeeper that serves; None where the store does not answer, which `_failures` reports."""
    try:
        async with joined_store(settings) as store:
            return await store.shared_rules.read()
    except (StoreUnavailable, EmbeddedStoreFailed):
        return None


async def _failures(settings: Settings, engine: Engine) -> AsyncIterator[str]:
    """Connects to the store, the key set and the backend, and yields one line for each failure. An embedded store that
    does not run is none."""
    name, runs, why = store_name(settings), True, None
    try:
        await engine.runtime.start()
    except EmbeddedStoreDown:
        name, runs = f"{name}, not running: `gatekeeper serve` starts it", False
    except EmbeddedStoreFailed as error:
        runs, why = False, str(error)
    print(f"store: {name}")
    if settings.trusted_proxies and len(settings.client_address_header) > 1:
        # Only requests show which of them a proxy sets: `serve` says so when two are there and differ.
        print(
            f"note: {env_name('client_address_header')}: of {', '.join(settings.client_address_header)} the first one "
            "that a trusted proxy sends names the client; where yours sets one and passes others on, name that one"
        )
    if why is not None:
        yield why
    for fault in await engine.readiness.faults(of_store=runs):
        yield fault
    if runs:
        await _print_store_findings(engine)
    if settings.upstream_url is not None:
        try:
            print(f"backend: {settings.upstream_url}, {await _protocol(settings, settings.upstream_url)}")
        except (UpstreamUnavailable, UpstreamTimeout) as error:
            yield f"GATEKEEPER_UPSTREAM_URL {settings.upstream_url}: {error}"


async def _print_store_findings(engine: Engine) -> None:
    try:
        for warning in await engine.readiness.store_warnings():
            print(f"warning: {warning}")
        for note in await engine.readiness.store_notes():
            print(f"note: {note}")
    except StoreUnavailable:
        pass  # already among the faults


async def _protocol(settings: Settings, url: str) -> str:
    """Open a connection to the backend and return its protocol. Raises UpstreamUnavailable or UpstreamTimeout."""
    upstream = create_upstream(settings, url)
    try:
        return await upstream.probe()
    finally:
        await upstream.aclose()


async def _check_token(settings: Settings, engine: Engine, token_file: Path, *, online: bool) -> bool:
    """Prints if a token would be accepted, which claims it has, and the setting that would change the verdict; online
    also the state of its session, which is not touched. Returns whether it would."""
    try:
        token = (await asyncio.to_thread(token_file.read_bytes)).strip()
    except OSError as error:
        print(f"failed: --token {token_file}: {error.strerror}", file=sys.stderr)
        return False
    sources = settings.effective_token_sources
    source = "header" if "header" in sources else sources[0]
    kind, _, name = source.partition(":")
    facts = RequestFacts(
        headers=[] if kind == "query" else [_presented(source, token)],
        query=name.encode() + b"=" + token if kind == "query" else b"",
        websocket=False,
        # Where a query may hold a token.
        event_stream=kind == "query",
        client=Client(ip_address="", user_agent=""),
    )
    try:
        verdict = await engine.gate.identify(facts)
    except KeysUnavailable as error:
        print(f"failed: {error}")
        return False
    text = token.decode("latin-1")
    if verdict.claims is None:
        print(f"the token is refused: {verdict.reason.code}{f' ({verdict.why})' if verdict.why else ''}")
    else:
        claims = verdict.claims
        roles = ",".join(claims.roles) or "none"
        print(f"the token is good: user {claims.user}, roles {roles}, session {claims.reference}")
    members = diagnosis.unverified_members(text)
    if members is None:
        return False
    print(f"  looked for: the user in {settings.jwt_user_claim}, roles in {settings.roles_claim}")
    print(f"  claims in the token: {diagnosis.shown_names(members)}")
    if verdict.claims is None:
        proposed = diagnosis.proposal(verdict.why, text)
    else:
        is_without = not (verdict.claims.roles or verdict.claims.is_admin)
        proposed = diagnosis.roles_proposal(members) if is_without else None
    if proposed is not None:
        print(f"  try: {proposed}")
    return verdict.claims is not None and (not online or await _check_session(engine, verdict.claims))


async def _check_session(engine: Engine, claims: Claims) -> bool:
    """Prints the state of a token's session. Returns False if it has ended."""
    try:
        await engine.runtime.start()
        session = await engine.services.manager.find(claims.user, claims.reference)
    except (StoreUnavailable, EmbeddedStoreFailed):
        print("  its session: the store does not answer")
        return True
    if session is None:
        print("  its session: the store has none yet")
    elif session.is_active:
        print(f"  its session: {session.id}, live, last active {instant(session.last_activity, digits=0)}")
    else:
        print(f"  its session: {session.id}, which has ended ({session.end_reason}): the token is refused")
    return session is None or session.is_active


def _presented(source: str, token: bytes) -> tuple[bytes, bytes]:
    """Return the header by which a request carries a token for a source other than the query."""
    kind, colon, name = source.partition(":")
    if kind == "scheme":
        return b"authorization", f"{name} ".lstrip().encode() + token
    if kind == "cookie":
        return b"cookie", f"{name}=".encode() + token
    return (name.lower().encode(), token) if kind == "header" and colon else (b"authorization", b"Bearer " + token)
