"""The commands and their options. `cli` runs them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gatekeeper import __version__
from gatekeeper.errors import ConfigError

if TYPE_CHECKING:
    from gatekeeper.sessions.audit_reader import AuditReader, RecordedEvent
    from gatekeeper.sessions.manager import Manager
    from gatekeeper.settings import Settings


class LongRunning(NamedTuple):
    """The commands that `cli` carries out itself; each returns the exit code."""

    serve: Callable[[Path | None, AbstractSet[str]], int]
    demo: Callable[[], int]


app = typer.Typer(
    name="gatekeeper",
    help="Live sessions in front of any API that hands out JWTs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_ENV_FILE = "gatekeeper.env_file"
_ENV_NAMES = "gatekeeper.env_names"
sessions = typer.Typer(help="List and revoke sessions, directly in the session store.", no_args_is_help=True)
app.add_typer(sessions, name="sessions")
audit = typer.Typer(help="Read the audit log as JSON lines, directly from the session store.", no_args_is_help=True)
app.add_typer(audit, name="audit")


def _version(show: bool) -> None:
    if show:
        print(f"gatekeeper {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
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
        context.meta[_ENV_NAMES] = load_env_file(env_file, os.environ)
        context.meta[_ENV_FILE] = env_file


@app.command()
def serve(context: typer.Context) -> None:
    """Run the sidecar in front of GATEKEEPER_UPSTREAM_URL."""
    long: LongRunning = context.obj
    raise typer.Exit(long.serve(context.meta.get(_ENV_FILE), context.meta.get(_ENV_NAMES, frozenset())))


@app.command()
def demo(context: typer.Context) -> None:
    """Run the sidecar with an embedded store and a sample backend with three users, and print what to try."""
    long: LongRunning = context.obj
    raise typer.Exit(long.demo())


@app.command()
def config(context: typer.Context) -> None:
    """Show the effective settings and their sources. Secrets are masked."""
    from gatekeeper.settings import describe

    rows = describe(env_file_names=context.meta.get(_ENV_NAMES, frozenset()))
    width = max(len(row[0]) for row in rows)
    for name, value, source in rows:
        print(f"{name:{width}}  {value}  ({source})")


@app.command()
def check(
    online: Annotated[
        bool, typer.Option("--online", help="Also connect to the session store, the key set and the backend.")
    ] = False,
    token: Annotated[
        Path | None,
        typer.Option("--token", help="Also check the token in this file, and show if it would be accepted."),
    ] = None,
) -> None:
    """Show problems and warnings of the settings, and every path that Gatekeeper serves itself."""
    from gatekeeper.cli_check import run

    raise typer.Exit(asyncio.run(run(online=online, token_file=token)))


@app.command("token")
def make_token(
    sub: Annotated[str, typer.Option(help="The user id.")],
    role: Annotated[list[str] | None, typer.Option(help="A role; repeat the option for more than one.")] = None,
    ttl: Annotated[int, typer.Option(help="Lifetime in seconds.", min=1)] = 3600,
) -> None:
    """Print a development token, signed with the first secret of GATEKEEPER_JWT_SECRET or GATEKEEPER_SIGNING_KEY."""
    from gatekeeper.settings import load
    from gatekeeper.tokens.issuer import development_token

    settings = load()
    secrets = settings.signing_secrets if settings.tokens == "issue" else settings.hmac_secrets
    if not secrets:
        raise ConfigError(["GATEKEEPER_JWT_SECRET: not set; set an HMAC secret to sign a development token with"])
    print(
        development_token(
            secrets[0],
            algorithm=settings.algorithms[0],
            claims={
                **dict(settings.jwt_required_claims),
                settings.jwt_user_claim: sub,
                "iss": settings.jwt_issuer[0] if settings.jwt_issuer else None,
                "aud": settings.jwt_audience[0] if settings.jwt_audience else None,
                settings.roles_claim: role or None,
                "iat": int(time.time()),
                "exp": int(time.time()) + ttl,
            },
        )
    )


@sessions.command("list")
def list_sessions(
    user: Annotated[str, typer.Argument(help="The user id.")],
    inactive: Annotated[bool, typer.Option("--inactive", help="Include sessions that have ended.")] = False,
) -> None:
    """List the sessions of a user, newest activity first."""
    from gatekeeper.dialects.base import instant

    found = _with_manager(lambda manager: manager.sessions(user, include_inactive=inactive))
    if not found:
        print(f"user {user!r}: no {'' if inactive else 'live '}session to list", file=sys.stderr)
    for session in found:
        state = "live" if session.is_active else session.end_reason
        print(
            f"{session.id:<16}  {state:16}  {instant(session.last_activity, digits=0)}  "
            f"{session.ip_address:15}  {session.device.name}"
        )


@sessions.command("revoke")
def revoke_sessions(
    user: Annotated[str, typer.Argument(help="The user id.")],
    session_id: Annotated[int | None, typer.Argument(help="The session id.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Revoke all sessions of the user.")] = False,
) -> None:
    """Revoke one session of a user, or with --all all of them."""
    if (session_id is None) is not every:
        raise typer.BadParameter("give either the id of a session or --all", param_hint="SESSION_ID")
    if session_id is None:
        ended, known = _with_manager(lambda manager: _revoke_all(manager, user))
        if known:
            print(f"{ended} session(s) ended")
            return
    elif _with_manager(lambda manager: manager.revoke(user, session_id, by_admin=True)):
        print("1 session ended")
        return
    what = "session" if every else "live session of this user with this id"
    print(f"gatekeeper: user {user!r}: the store has no {what}", file=sys.stderr)
    raise typer.Exit(1)


async def _revoke_all(manager: Manager, user: str) -> tuple[int, bool]:
    """Revokes all sessions. Returns how many, and whether the store has any session of the user, ended ones too."""
    return await manager.revoke_all(user, by_admin=True), await manager.knows(user)


@audit.command("tail")
def tail_audit(
    number: Annotated[int, typer.Option("--number", "-n", help="Number of events.", min=0, max=100_000)] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new events until Ctrl-C.")] = False,
) -> None:
    """Print the newest events, oldest first."""

    async def work(audit_log: AuditReader) -> None:
        newest, position = await audit_log.last(number)
        for event in newest:
            _print_event(event)
        if follow:
            async for event in audit_log.follow(position):
                _print_event(event)

    with suppress(KeyboardInterrupt):
        _with_audit_log(work)


@audit.command("export")
def export_audit(
    since: Annotated[
        str | None, typer.Option(help="Only events since this time: 2026-11-25T08:00Z, or 24h for the last day.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only events before this time (same forms as --since).")] = None,
    user: Annotated[
        str | None, typer.Option(help="Only events of this user id, as the user concerned or as the one who acted.")
    ] = None,
) -> None:
    """Print all events that the session store still has, by their time, oldest first."""
    start = 0 if since is None else _microseconds("--since", since)
    end = None if until is None else _microseconds("--until", until)

    async def work(audit_log: AuditReader) -> None:
        async for event in audit_log.read(start, end):
            if user is None or user in (event.user_id, event.actor_id):
                _print_event(event)

    _with_audit_log(work)


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")],
) -> None:
    """Copy the embedded session store into DIR, consistently, while it runs."""
    from gatekeeper.settings import load
    from gatekeeper.store.backup import make_backup

    settings = load(require_keys=False)
    _name_store(settings)
    _require_embedded(settings)
    with _failures_in_one_line():
        made = make_backup(settings.data_dir, folder, version=__version__)
    print(f"backed up {made.size} bytes, all that was acknowledged until {made.time}, into {folder}")


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a backup.")],
) -> None:
    """Make the backup in DIR the data of the embedded session store, while it does not run."""
    from gatekeeper.settings import load
    from gatekeeper.store.backup import restore_backup

    settings = load(require_keys=False)
    _name_store(settings)
    _require_embedded(settings)
    with _failures_in_one_line():
        restored, replaced = restore_backup(settings.data_dir, folder, key_prefix=settings.key_prefix)
    print(f"restored the sessions of {restored.time}: `gatekeeper serve` serves them")
    if replaced is not None:
        print(f"the data of before is in {replaced}", file=sys.stderr)
    print(f"sessions that have ended since {restored.time} are live again: end them once more", file=sys.stderr)


def _require_embedded(settings: Settings) -> None:
    if settings.redis_url is not None:
        print(
            "gatekeeper: GATEKEEPER_REDIS_URL is set: back that store up by its own means, such as `redis-cli --rdb`",
            file=sys.stderr,
        )
        raise typer.Exit(1)


@contextmanager
def _failures_in_one_line() -> Iterator[None]:
    """Prints a failure of the embedded store, or of a backup of it, in one line, and exits with 1."""
    from gatekeeper.store.backup import BackupFailed
    from gatekeeper.store.embedded import EmbeddedStoreFailed

    try:
        yield
    except (BackupFailed, EmbeddedStoreFailed) as error:
        print(f"gatekeeper: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _print_event(event: RecordedEvent) -> None:
    import msgspec

    print(msgspec.json.encode(event).decode(), flush=True)


def _microseconds(option: str, text: str) -> int:
    """Reads an ISO 8601 time (UTC without a zone) or a duration before now. Returns microseconds since 1970."""
    from gatekeeper.settings.types import parse_duration

    try:
        instant = datetime.fromisoformat(text)
        return round((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp() * 1_000_000)
    except ValueError:
        pass
    try:
        return max(0, int((time.time() - parse_duration(text)) * 1_000_000))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither a time such as 2026-11-25T08:00Z nor a duration such as 24h", param_hint=option
        ) from None


def _with_audit_log(work: Callable[[AuditReader], Awaitable[None]]) -> None:
    """Calls `work` with the audit log of the configured store."""
    from gatekeeper.build import joined_store
    from gatekeeper.sessions.audit_reader import AuditReader
    from gatekeeper.settings import load

    settings = load(require_keys=False)
    _name_store(settings)

    async def run() -> None:
        async with joined_store(settings) as store:
            await work(AuditReader(store.client, key_prefix=settings.key_prefix))

    _run(run)


def _with_manager(work: Any) -> Any:
    """Calls `work` with a session manager for the configured store, which judges by the rules of the Gatekeeper that
    serves, and returns its result."""
    from gatekeeper.build import build, joined_store
    from gatekeeper.settings import load

    settings = load(require_keys=False)
    _name_store(settings)

    async def run() -> Any:
        async with joined_store(settings) as store:
            rules = await store.shared_rules.read()
            for difference in store.shared_rules.between(rules):
                print(f"note: {difference}, at the Gatekeeper that serves: its settings count", file=sys.stderr)
        engine = build(settings, mode="sidecar", joins_store=True, rules=rules)
        await engine.runtime.start()
        try:
            return await work(engine.services.manager)
        finally:
            await engine.runtime.aclose()

    return _run(run)


def _name_store(settings: Settings) -> None:
    """Says on stderr which store the command asks, without a password."""
    from gatekeeper.settings import store_name

    print(f"store: {store_name(settings)}", file=sys.stderr)


def _run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Runs `work` and returns its result. Prints a failure of the store in one line, and exits with 1."""
    from gatekeeper.errors import StoreUnavailable
    from gatekeeper.store.embedded import EmbeddedStoreFailed

    try:
        return asyncio.run(work())
    except (StoreUnavailable, EmbeddedStoreFailed) as error:
        print(f"gatekeeper: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
