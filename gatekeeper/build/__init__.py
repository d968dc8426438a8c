"""The composition root: settings → the parts that a host stands on. Nothing here knows a server or a proxy.

`build` constructs every part and gives each just what it needs; only hosts and commands hold the `Engine`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from typing import Any, Final

from gatekeeper.auth.issued_sign_in import IssuedSignIn
from gatekeeper.build.reload import Reload, check_keys
from gatekeeper.build.sign_in import renewals, sign_in_services
from gatekeeper.build.store import StoreParts, joined_store, open_store, revocation_listener
from gatekeeper.build.tokens import (
    backchannel_logout,
    issued_sign_in,
    key_set_fetcher,
    signing_keys,
    token_verifier,
    verification_keys,
)
from gatekeeper.build.web import web_parts
from gatekeeper.errors import StoreUnavailable
from gatekeeper.runtime import Readiness, Runtime, Service, background
from gatekeeper.sessions.housekeeping import Housekeeping
from gatekeeper.sessions.keys import Rules
from gatekeeper.sessions.open_streams import OpenStreams
from gatekeeper.settings import Settings
from gatekeeper.settings.advice import short_secrets_risk
from gatekeeper.settings.tokens import USUAL_SECRET_FLOOR
from gatekeeper.store.epoch import Epoch
from gatekeeper.telemetry.access_log import AccessLog
from gatekeeper.telemetry.metrics import Metrics, Mode
from gatekeeper.telemetry.telemetry import Telemetry
from gatekeeper.tokens.keys import FetchKeySet, KeySource
from gatekeeper.tokens.sources import TokenSources
from gatekeeper.tokens.verify_queue import VerifyQueue
from gatekeeper.web.engine import Engine
from gatekeeper.web.services import ApplicationClient, Services

__all__ = ["build", "build_sidecar", "check_keys", "joined_store", "open_store"]

_log = logging.getLogger("gatekeeper")

_FIRST_BEAT_SECONDS: Final = 1.0


def build(
    settings: Settings,
    *,
    mode: Mode,
    fetch: FetchKeySet | None = None,
    verify_queue: VerifyQueue | None = None,
    access_log: AccessLog | None = None,
    application: Any = None,
    joins_store: bool = False,
    rules: Rules | None = None,
) -> Engine:
    """Build the engine that the settings describe, not started.

    `fetch` gets the key set, `verify_queue` limits signature checks; `application` is asked for passwords where
    `LOGIN_CHECK_URL` is a path and there is no `UPSTREAM_URL`. With `joins_store`, for a command, no embedded store is
    started, and one that runs is used; `rules` are those of the Gatekeeper that serves (shared_rules.py). Raises
    `ConfigError` for keys that cannot be used.
    """
    metrics = Metrics(mode)
    telemetry = Telemetry(metrics, access_log)
    verify_queue = verify_queue or VerifyQueue()
    if settings.key_kind == "hmac" and settings.jwt_secret_floor < USUAL_SECRET_FLOOR:
        _log.warning("configuration accepts short HMAC secrets: %s", short_secrets_risk(settings.jwt_secret_floor))
    signing = signing_keys(settings)
    keys = verification_keys(settings, signing, fetch or key_set_fetcher(settings))
    store = open_store(settings, joins=joins_store, rules=rules)
    store.runner.outbox.events = metrics
    store.runner.recent.losses = metrics
    store.breaker.add_listener(metrics.store_is_up)
    sources = TokenSources(settings.effective_token_sources)
    sign_in = sign_in_services(settings, store, token_verifier(settings, keys, verify_queue), sources, metrics)
    issued = issued_sign_in(settings, sign_in, signing, application) if signing is not None else None
    web = web_parts(
        settings,
        sign_in,
        sources,
        telemetry,
        signing=signing,
        issued=issued,
        backchannel=backchannel_logout(settings, sign_in, keys, store.client, verify_queue),
    )
    streams = OpenStreams(store.sessions, idle_seconds=settings.idle_timeout)
    readiness = Readiness(
        client=store.client,
        epoch=store.epoch,
        breaker=store.breaker,
        keys=keys,
        metrics=metrics,
        leeway_seconds=settings.jwt_leeway,
        other_rules=store.shared_rules.differences,
        store_problem=(lambda: embedded.problem) if (embedded := store.embedded) is not None else lambda: None,
    )
    services = Services(
        rules=web.rules,
        language=settings.language,
        gate=sign_in.gate,
        verifier=sign_in.verifier,
        manager=sign_in.manager,
        issued=issued,
        telemetry=telemetry,
        client=ApplicationClient(store.connect),
    )
    started = _services_in_order(store, keys, streams, readiness, issued, services)
    if not joins_store:
        started.append(background(store.shared_rules.watch))
    if mode == "middleware":
        # The application may ask for it at any time, and loading it takes 0.1 s.
        started.insert(0, Service(start=services.client.prepare))
    return Engine(
        runtime=Runtime(started),
        readiness=readiness,
        pipeline=web.pipeline,
        rules=web.rules,
        responder=web.responder,
        gate=sign_in.gate,
        strays=sign_in.strays,
        streams=streams,
        telemetry=telemetry,
        verify_queue=verify_queue,
        services=services,
        renewals=renewals(sign_in, sources, telemetry) if issued is None else None,
        claimed=web.claimed,
        reload=Reload(settings, keys, signing, web.clients, store.take_credentials),
    )


def build_sidecar(settings: Settings) -> Engine:
    """Build the engine of a sidecar, with its access log on stdout."""
    text = settings.log_format == "text" or (settings.log_format is None and sys.stdout.isatty())
    return build(settings, mode="sidecar", access_log=AccessLog(text=text))


def _services_in_order(
    store: StoreParts,
    keys: KeySource,
    streams: OpenStreams,
    readiness: Readiness,
    issued: IssuedSignIn | None,
    services: Services,
) -> list[Service]:
    """Everything that starts and closes: started from the top, closed from the bottom."""
    housekeeping = Housekeeping(store.sessions, store.runner.outbox)
    telemetry = services.telemetry

    async def write_what_is_left() -> None:
        telemetry.close()

    found = [Service(close=write_what_is_left), Service(close=keys.aclose)]
    if (embedded := store.embedded) is not None:

        async def start_embedded() -> None:
            await asyncio.to_thread(embedded.start)

        async def stop_embedded() -> None:
            await asyncio.to_thread(embedded.stop)

        found += [Service(start_embedded, stop_embedded), background(embedded.watch)]
    found += [
        Service(close=services.client.aclose),
        Service(close=store.client.aclose),
        Service(close=store.epoch.aclose),
        Service(close=store.breaker.aclose),
        Service(close=store.runner.recent.aclose),
        Service(close=housekeeping.aclose),
    ]
    if issued is not None:
        found.append(Service(close=issued.aclose))
    listener = revocation_listener(store, streams)
    found += [background(run) for run in (readiness.watch, listener.listen, streams.watch, housekeeping.run)]
    return [*found, Service(start=lambda: _first_beat(store.epoch))]


async def _first_beat(epoch: Epoch) -> None:
    """Meet the store before any call is made. A silent store is waited for a moment, and no longer."""
    with suppress(StoreUnavailable, TimeoutError):
        async with asyncio.timeout(_FIRST_BEAT_SECONDS):
            await epoch.beat()
