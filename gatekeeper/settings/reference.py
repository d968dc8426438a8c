"""Writes config/gatekeeper.env and docs/settings.md from the settings: `python -m gatekeeper.settings.reference`.

Both files are kept in the repository; a test asserts that they are what this makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from gatekeeper.settings import Settings
from gatekeeper.settings.source import SettingInfo, setting_infos

_ENV_HEAD = """\
# Every setting of Gatekeeper. What is commented out shows the default, or an example where there is none.
# One NAME=value a line, without quotes. docs/settings.md says what is accepted.
# Made by `python -m gatekeeper.settings.reference`.
"""

_PAGE_HEAD = """\
# Settings

Gatekeeper is configured by environment variables that begin with `GATEKEEPER_`. Nothing else in the environment has an
effect: not `HTTP_PROXY`, `REQUESTS_CA_BUNDLE`, `FORWARDED_ALLOW_IPS` or `WEB_CONCURRENCY`.

The least that runs is a backend and a key to verify its tokens with:

    GATEKEEPER_UPSTREAM_URL=http://127.0.0.1:8080
    GATEKEEPER_JWT_SECRET_FILE=/run/secrets/jwt

One of `GATEKEEPER_JWT_SECRET`, `GATEKEEPER_JWT_PUBLIC_KEY` and `GATEKEEPER_JWKS_URL` is required. The last two may be
combined; the first never goes with either.

With `GATEKEEPER_TOKENS=issue` Gatekeeper issues the tokens. It signs them with `GATEKEEPER_SIGNING_KEY`, else with the
first `GATEKEEPER_JWT_SECRET`, and asks `GATEKEEPER_LOGIN_CHECK_URL` who is signing in:

    GATEKEEPER_UPSTREAM_URL=http://127.0.0.1:8080
    GATEKEEPER_TOKENS=issue
    GATEKEEPER_SIGNING_KEY_FILE=/run/secrets/signing-key
    GATEKEEPER_LOGIN_CHECK_URL=/internal/login

A signing key alone suffices then; a further key verifies what others have signed. HMAC secrets never go with public or
private keys, whichever variable they stand in. While `GATEKEEPER_TOKENS` is `observe`, what only `issue` needs has no
effect, and `gatekeeper check` says so.

[`config/gatekeeper.env`](../config/gatekeeper.env) lists all variables, ready to be uncommented. `gatekeeper config`
prints what is in effect and where it came from, secrets masked. `gatekeeper check` prints all problems and warnings.

## How values are written

- **Durations**: `250ms`, `15s`, `30m`, `24h`, `7d`, or a plain number of seconds such as `2` or `0.5`.
- **Sizes**: `64KiB` (1024 bytes each), `10MB` (1000 × 1000 bytes each), or a plain number of bytes.
- **Lists**: separated by commas. An item must not be empty or occur twice.
- **Yes and no**: `true` or `false`; also `yes`, `no`, `on`, `off`, `1`, `0`.
- **Nothing**: a variable that is set to nothing is a problem, because that is what a template leaves behind when its
  value is missing. An empty list is written `none`, a limit that is not wanted `off`, each only where the table says
  so. Only for `GATEKEEPER_TRUSTED_PROXIES`, `GATEKEEPER_PUBLIC_PATHS`, `GATEKEEPER_CORS_ORIGINS` and
  `GATEKEEPER_EXEMPT_USERS` an empty variable is `none`. No list means "everything" when it is empty.
- **Rates**: a number of calls and the time in which they may come: `50/s`, `10/15m`, `1000/h`.
- **Patterns** of paths: exact `/health`, prefix `/static/*`, glob `*/docs`, each optionally after a method and a space:
  `GET /docs/*`. `*` matches `/` too. They are not regular expressions.
- Spaces around a value are dropped, except around a secret, where they are a problem.

## Secrets

`GATEKEEPER_JWT_SECRET`, `GATEKEEPER_JWT_PUBLIC_KEY`, `GATEKEEPER_SIGNING_KEY`, `GATEKEEPER_INTROSPECTION_CLIENTS` and
`GATEKEEPER_REDIS_URL` can also be given as a file: add `_FILE` to the name, and set it to the file's path. The line
break at the end of the file is dropped. A variable and its `_FILE` together are a problem.

Several HMAC secrets are written one a line, in the variable as in the file; all of them verify. To rotate a secret, add
the new one, let the backend sign with it, and remove the old one when its last token has expired. Several public keys
are PEM blocks one after another; in a variable, line breaks may be written `\\n`.

`GATEKEEPER_SIGNING_KEY` holds HMAC secrets, or else private keys as PEM blocks one after another, without a password.
The first one signs, all of them verify. To rotate, list the new key first, and remove the old one when its last token
has expired. Where several Gatekeepers serve one API, add the new key at the end of the list first, everywhere, so that
each knows it before one signs with it.

`GATEKEEPER_INTROSPECTION_CLIENTS` holds one `id:secret` a line; the rules for HMAC secrets hold for its secrets.

An HMAC secret has at least 32 bytes. Well-known placeholders, repeated characters, keys in PEM and JSON Web Keys are
refused. A secret file that every user of the host can read is a warning of `gatekeeper check`, not a problem.

## When something is wrong

A wrong, missing or unknown setting stops the start with exit code 2. All problems are printed at once, one a line: the
variable, what was read, what is accepted; for an unknown name the nearest known one. Secrets are never shown. An alias
together with the name it stands for is a problem.

In Kubernetes a Service called `gatekeeper`, or `gatekeeper-…`, makes variables such as `GATEKEEPER_PORT`,
`GATEKEEPER_SERVICE_HOST` and `GATEKEEPER_PORT_8000_TCP_ADDR` appear in every pod. They are ignored, so the port to
listen on is part of `GATEKEEPER_LISTEN` and never `GATEKEEPER_PORT`.
"""


def env_file() -> str:
    """The text of config/gatekeeper.env."""
    return _ENV_HEAD + "".join(
        f"\n\n# {group}\n" + "".join(f"\n{_env_entry(info)}" for info in settings)
        for group, settings in groupby(setting_infos(Settings), key=lambda info: info.group)
    )


def settings_page() -> str:
    """The text of docs/settings.md."""
    return _PAGE_HEAD + "".join(
        f"\n## {group}\n\n" + "\n".join(_table(list(settings))) + "\n"
        for group, settings in groupby(setting_infos(Settings), key=lambda info: info.group)
    )


def _env_entry(info: SettingInfo) -> str:
    if info.default is not None:
        return f"# {info.meaning}\n#{info.variable}={info.default}\n"
    unset = "" if info.default_text == "none" else f" ({info.default_text})"
    return f"# {info.meaning} Not set by default{unset}; for example:\n#{info.variable}={info.example}\n"


def _table(settings: list[SettingInfo]) -> Iterator[str]:
    yield "| variable | default | meaning | accepted |"
    yield "| --- | --- | --- | --- |"
    for info in settings:
        names = "<br>".join(f"`{name}`" for name in info.names[: 2 if info.reader.secret else 1])
        unit = ", in minutes" if info.alias_unit == "m" else ""
        alias = f" Alias: `{info.alias}`{unit}." if info.alias else ""
        default = info.default_text if info.default is None else f"`{info.default}`"
        yield f"| {names} | {default} | {info.meaning}{alias} | {_cell(info.reader.accepted)} |"


def _cell(text: str) -> str:
    # What Markdown would take for emphasis, HTML or the end of a cell.
    for character in "\\|*<>[]{}":
        text = text.replace(character, f"\\{character}")
    return text


def main() -> None:
    root = Path(__file__).parent.parent.parent
    (root / "config" / "gatekeeper.env").write_text(env_file(), encoding="utf-8")
    (root / "docs" / "settings.md").write_text(settings_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
