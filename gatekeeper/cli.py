"""The commands: settings → what runs. Exit codes: 0, 1 it failed, 2 it was used wrongly."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gatekeeper import __version__
from gatekeeper.errors import ConfigError

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
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Live sessions in front of any API that hands out JWTs."""


@app.command()
def serve() -> None:
    """Stand in front of GATEKEEPER_UPSTREAM_URL."""
    from gatekeeper.server import run
    from gatekeeper.settings import load

    raise typer.Exit(run(load(require_upstream=True)))


@app.command()
def demo() -> None:
    """An embedded store, a sample backend with three users, and the sidecar; says what to try."""
    from gatekeeper.demo.run import run

    raise typer.Exit(run())


@app.command()
def config() -> None:
    """The effective settings with their sources, secrets masked."""
    from gatekeeper.settings import describe

    rows = describe()
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
    from gatekeeper.checks import run

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


def _with_manager(work: Any) -> Any:
    """What `work` returns, given a manager over the configured store."""
    from gatekeeper.compose import build
    from gatekeeper.embedded import EmbeddedStoreFailed
    from gatekeeper.errors import StoreUnavailable
    from gatekeeper.settings import load

    async def run() -> Any:
        engine = build(load(), mode="sidecar")
        await engine.start()
        try:
            return await work(engine.manager)
        finally:
            await engine.aclose()

    try:
        return asyncio.run(run())
    except (StoreUnavailable, EmbeddedStoreFailed) as error:
        print(f"gatekeeper: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
