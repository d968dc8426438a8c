"""The commands: settings → what runs. Exit codes: 0, 1 it failed, 2 it was used wrongly."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatekeeper import __version__
from gatekeeper.errors import ConfigError

if TYPE_CHECKING:
    from gatekeeper.sessions.audit import AuditEvent, AuditLog

app = typer.Typer(
    name="gatekeeper",
    help="Live sessions in front of any API that hands out JWTs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
sessions = typer.Typer(help="Look at and end sessions, straight in the store.", no_args_is_help=True)
app.add_typer(sessions, name="sessions")
audit = typer.Typer(help="Read the audit trail, straight from the store, as JSON lines.", no_args_is_help=True)
app.add_typer(audit, name="audit")


def main() -> None:
    """The entry point. A problem with the settings is told line by line, without a traceback."""
    # What a command has to say it prints; `serve` and `demo` set up a log of their own.
    logging.getLogger("gatekeeper").addHandler(logging.NullHandler())
    try:
        app()
    except ConfigError as error:
        print(f"gatekeeper: {len(error.problems)} problem(s) with the settings", file=sys.stderr)
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"gatekeeper {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    env_file: Annotated[
        Path | None,
        typer.Option(
            "--env-file",
            metavar="FILE",
            help="Read settings from NAME=value lines. Variables that are already set in the environment win.",
        ),
    ] = None,
) -> None:
    """Live sessions in front of any API that hands out JWTs."""
    if env_file is not None:
        from gatekeeper.settings.env_file import load_env_file

        # Into the environment itself: worker processes inherit it.
        context.obj = load_env_file(env_file, os.environ)


@app.command()
def serve() -> None:
    """Stand in front of GATEKEEPER_UPSTREAM_URL."""
    from gatekeeper.serve import run
    from gatekeeper.settings import load

    raise typer.Exit(run(load(require_upstream=True)))


@app.command()
def demo() -> None:
    """An embedded store, a sample backend with three users, and the sidecar; says what to try."""
    from gatekeeper.demo.run import run

    raise typer.Exit(run())


@app.command()
def config(context: typer.Context) -> None:
    """The effective settings with their sources, secrets masked."""
    from gatekeeper.settings import describe

    rows = describe(env_file_names=context.obj or frozenset())
    width = max(len(row[0]) for row in rows)
    for name, value, source in rows:
        print(f"{name:{width}}  {value}  ({source})")


@app.command()
def check(
    online: Annotated[bool, typer.Option("--online", help="Also ask the store, the keys and the backend.")] = False,
    token: Annotated[
        Path | None, typer.Option("--token", help="A file with a token of the backend: what would happen to it.")
    ] = None,
) -> None:
    """All problems and warnings of the settings; every path that Gatekeeper claims."""
    from gatekeeper.cli_check import run

    raise typer.Exit(asyncio.run(run(online=online, token_file=token)))


@app.command("token")
def make_token(
    sub: Annotated[str, typer.Option(help="The user.")],
    role: Annotated[list[str] | None, typer.Option(help="A role; may be given again.")] = None,
    ttl: Annotated[int, typer.Option(help="Seconds until it expires.", min=1)] = 3600,
) -> None:
    """A development token, signed with the first GATEKEEPER_JWT_SECRET, or GATEKEEPER_SIGNING_KEY if it is a secret."""
    from gatekeeper.settings import load
    from gatekeeper.tokens.issuer import development_token

    settings = load()
    secrets = settings.signing_secrets if settings.tokens == "issue" else settings.hmac_secrets
    if not secrets:
        raise ConfigError(["GATEKEEPER_JWT_SECRET: not set; a development token is signed with an HMAC secret"])
    print(
        development_token(
            secrets[0],
            algorithm=settings.algorithms[0],
            claims={
                settings.jwt_user_claim: sub,
                "iss": settings.jwt_issuer,
                "aud": settings.jwt_audience,
                settings.roles_claim: role or None,
                "iat": int(time.time()),
                "exp": int(time.time()) + ttl,
            },
        )
    )


@sessions.command("list")
def list_sessions(
    user: Annotated[str, typer.Argument(help="The user id.")],
    inactive: Annotated[bool, typer.Option("--inactive", help="Also those that ended.")] = False,
) -> None:
    """The sessions of a user, newest activity first."""
    from gatekeeper.dialects.base import instant

    for session in _with_manager(lambda manager: manager.sessions(user, include_inactive=inactive)):
        state = "live" if session.is_active else session.end_reason
        print(
            f"{session.id:<16}  {state:16}  {instant(session.last_activity, digits=0)}  "
            f"{session.ip_address:15}  {session.device.name}"
        )


@sessions.command("revoke")
def revoke_sessions(
    user: Annotated[str, typer.Argument(help="The user id.")],
    session_id: Annotated[int | None, typer.Argument(help="One session; without it, all of them.")] = None,
) -> None:
    """End one session of a user, or all of them."""
    if session_id is None:
        print(f"{_with_manager(lambda manager: manager.revoke_all(user, by_admin=True))} session(s) ended")
    elif _with_manager(lambda manager: manager.revoke(user, session_id, by_admin=True)):
        print("1 session ended")
    else:
        print("gatekeeper: no such session", file=sys.stderr)
        raise typer.Exit(1)


@audit.command("tail")
def tail_audit(
    number: Annotated[int, typer.Option("--number", "-n", help="How many of the newest.", min=0, max=100_000)] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="And then what happens, until Ctrl-C.")] = False,
) -> None:
    """The newest events, oldest first."""

    async def work(audit_log: AuditLog) -> None:
        newest = await audit_log.last(max(number, 1))
        for _, event in newest[-number:] if number else ():
            _print_event(event)
        if follow:
            async for event in audit_log.follow(newest[-1][0] if newest else None):
                _print_event(event)

    with suppress(KeyboardInterrupt):
        _with_trail(work)


@audit.command("export")
def export_audit(
    since: Annotated[str | None, typer.Option(help="From then on: 2026-11-25T08:00Z, or 24h for a day ago.")] = None,
    until: Annotated[str | None, typer.Option(help="Until before then, likewise.")] = None,
    user: Annotated[str | None, typer.Option(help="Only whom this user id concerns, or who acted under it.")] = None,
) -> None:
    """The events that the store still has, oldest first."""
    start = "-" if since is None else str(_milliseconds("--since", since))
    end = "+" if until is None else f"({_milliseconds('--until', until)}"

    async def work(audit_log: AuditLog) -> None:
        async for _, event in audit_log.read(start, end):
            if user is None or user in (event.user_id, event.actor_id):
                _print_event(event)

    _with_trail(work)


def _print_event(event: AuditEvent) -> None:
    import msgspec

    print(msgspec.json.encode(event).decode(), flush=True)


def _milliseconds(option: str, text: str) -> int:
    """An instant in ISO 8601, in UTC where it names no zone, or how long ago that was."""
    from gatekeeper.settings.types import parse_duration

    try:
        instant = datetime.fromisoformat(text)
        return int((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp() * 1000)
    except ValueError:
        pass
    try:
        return max(0, int((time.time() - parse_duration(text)) * 1000))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no instant and no duration", param_hint=option) from None


def _with_trail(work: Callable[[AuditLog], Awaitable[None]]) -> None:
    """Does `work` with the audit trail in the configured store."""
    from gatekeeper.build import open_store
    from gatekeeper.settings import load

    async def run() -> None:
        store = open_store(load())
        if store.embedded is not None:
            await asyncio.to_thread(store.embedded.start)
        try:
            await store.epoch.beat()
            await work(store.sessions.audit_log)
        finally:
            await store.epoch.aclose()
            await store.breaker.aclose()
            await store.client.aclose()
            if store.embedded is not None:
                await asyncio.to_thread(store.embedded.stop)

    _run(run)


def _with_manager(work: Any) -> Any:
    """What `work` returns, given a manager over the configured store."""
    from gatekeeper.build import build
    from gatekeeper.settings import load

    async def run() -> Any:
        engine = build(load(), mode="sidecar")
        await engine.runtime.start()
        try:
            return await work(engine.services.manager)
        finally:
            await engine.runtime.aclose()

    return _run(run)


def _run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What `work` returns. A store that does not answer is told in one line, exit code 1."""
    from gatekeeper.errors import StoreUnavailable
    from gatekeeper.store.embedded import EmbeddedStoreFailed

    try:
        return asyncio.run(work())
    except (StoreUnavailable, EmbeddedStoreFailed) as error:
        print(f"gatekeeper: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
