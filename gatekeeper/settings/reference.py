"""Write config/gatekeeper.env and docs/settings.md from the settings: `python -m gatekeeper.settings.reference`.

Both files are in the repository; a test asserts that they are up to date.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from gatekeeper.settings import Settings
from gatekeeper.settings.source import SettingInfo, setting_infos

_ENV_HEAD = """\
# Every setting of Gatekeeper. Each line that is commented out shows the default, or an example where there is none.
#
# To load this file: gatekeeper --env-file config/gatekeeper.env serve
# `docker run --env-file` reads it too, as long as values have no quotes: Docker takes quotes as part of the value.
# Names in the comments are short: `TOKENS` is GATEKEEPER_TOKENS. docs/settings.md lists the accepted values.
#
# Written by `python -m gatekeeper.settings.reference`.
"""

_PAGE_HEAD = """\
# Settings

Gatekeeper is configured by environment variables that begin with `GATEKEEPER_`. Other variables have no effect:
`HTTP_PROXY`, `REQUESTS_CA_BUNDLE`, `FORWARDED_ALLOW_IPS` and `WEB_CONCURRENCY` are ignored.

The smallest configuration is a backend, and a key that verifies its tokens. This makes a random secret, which the
backend must sign its tokens with, and checks the settings:

```bash
(umask 077; openssl rand -base64 48 > jwt.secret)
export GATEKEEPER_UPSTREAM_URL='http://127.0.0.1:8080'
export GATEKEEPER_JWT_SECRET_FILE='./jwt.secret'
gatekeeper config
```

`GATEKEEPER_JWT_SECRET`, `GATEKEEPER_JWT_PUBLIC_KEY` or `GATEKEEPER_JWKS_URL` is required. The last two can be combined;
the first excludes both.

With `GATEKEEPER_TOKENS=issue` Gatekeeper issues the tokens. It signs them with `GATEKEEPER_SIGNING_KEY`, or else with
the first `GATEKEEPER_JWT_SECRET`. It sends the name and the password of a login to `GATEKEEPER_LOGIN_CHECK_URL`:

```bash
(umask 077; openssl rand -base64 48 > signing.secret)
unset GATEKEEPER_JWT_SECRET_FILE
export GATEKEEPER_UPSTREAM_URL='http://127.0.0.1:8080'
export GATEKEEPER_TOKENS='issue'
export GATEKEEPER_SIGNING_KEY_FILE='./signing.secret'
export GATEKEEPER_LOGIN_CHECK_URL='/internal/login'
gatekeeper config
```

The signing key is then the only key needed; a `GATEKEEPER_JWT_…` key beside it verifies tokens of other issuers. HMAC
secrets cannot be combined with public or private keys, in any of these variables. While `GATEKEEPER_TOKENS` is
`observe`, settings that only `issue` uses have no effect, and `gatekeeper check` warns about them.

[`config/gatekeeper.env`](../config/gatekeeper.env) lists all variables, commented out. Copy it, uncomment lines, and
name the copy before any command:

```bash
cp config/gatekeeper.env gatekeeper.env
gatekeeper --env-file gatekeeper.env check
```

A variable that is already set in the environment wins over the file. The file holds `NAME=value` lines, without spaces
around the `=`; blank lines and lines that begin with `#` are skipped. Quotes around a value are optional, nothing in it
is expanded, and a comment needs a line of its own. Any other line is an error that names the file and the line.
Docker's `--env-file` and systemd's `EnvironmentFile=` read the same files; for Docker, leave the quotes out.

In a shell, put values in single quotes, because `*`, spaces and `;` have a meaning there:

```bash
export GATEKEEPER_PUBLIC_PATHS='/health,GET /docs/*'
```

`gatekeeper config` prints the settings in effect and their origin, with secrets masked. `gatekeeper check` prints all
problems and warnings.

## How values are written

- **Durations**: `250ms`, `15s`, `30m`, `24h`, `7d`, or a plain number of seconds such as `2` or `0.5`.
- **Sizes**: `64KiB` (1024 bytes each), `10MB` (1000 × 1000 bytes each), or a plain number of bytes.
- **Lists**: separated by commas. An item must not be empty or occur twice.
- **Booleans**: `true` or `false`; also `yes`, `no`, `on`, `off`, `1`, `0`.
- **Empty values**: an empty variable is a problem, since a template produces one when its value is missing. Write
  `none` for an empty list and `off` for no limit, where the tables list these words. Four settings read an empty
  variable as `none`: `GATEKEEPER_TRUSTED_PROXIES`, `GATEKEEPER_PUBLIC_PATHS`, `GATEKEEPER_CORS_ORIGINS` and
  `GATEKEEPER_EXEMPT_USERS`. An empty list never means "everything".
- **Rates**: a number of calls in a period: `50/s`, `10/15m`, `1000/h`.
- **Path patterns**: exact `/health`, prefix `/static/*`, glob `*/docs`, each optionally after a method and a space:
  `GET /docs/*`. `*` also matches `/`. They are not regular expressions.
- **Spaces** around a value are dropped. Around a secret they are a problem.
- **Names** in the columns "default" and "meaning" are short: `TOKENS` is `GATEKEEPER_TOKENS`.

## Secrets

`GATEKEEPER_JWT_SECRET`, `GATEKEEPER_JWT_PUBLIC_KEY`, `GATEKEEPER_SIGNING_KEY`, `GATEKEEPER_INTROSPECTION_CLIENTS` and
`GATEKEEPER_REDIS_URL` can also be read from a file: add `_FILE` to the name, and set it to the path of the file. The
line break at the end of the file is dropped. Setting both a variable and its `_FILE` is a problem.

Write several HMAC secrets one a line, in the variable or in the file; all of them verify. To rotate a secret, add the
new one, let the backend sign with it, and remove the old one when its last token has expired. Write several public keys
as PEM blocks one after another; in a variable, `\\n` can stand for a line break.

`GATEKEEPER_SIGNING_KEY` holds either HMAC secrets, one a line, or private keys as PEM blocks one after another, without
a password. The first one signs, all of them verify. To rotate, put the new key first, and remove the old one when its
last token has expired. Where several Gatekeepers serve one API, first add the new key at the end of every list, so that
all of them can verify its signatures before one of them signs with it.

`GATEKEEPER_INTROSPECTION_CLIENTS` holds one `id:secret` a line. Its secrets follow the rules for HMAC secrets.

An HMAC secret has at least 32 bytes. Well-known placeholders, repeated characters, PEM keys and JSON Web Keys are
refused. If every user of the host can read a secret file, `gatekeeper check` warns, and Gatekeeper starts all the same.

## When something is wrong

Where a setting is wrong, missing or unknown, Gatekeeper does not start and exits with code 2. It prints all problems at
once, one a line: the variable, the value that was read, and the accepted values; for an unknown name, the most similar
known one. Secrets are never shown. Setting both an alias and the name it stands for is a problem.

In Kubernetes, a Service named `gatekeeper` or `gatekeeper-…` adds variables such as `GATEKEEPER_PORT`,
`GATEKEEPER_SERVICE_HOST` and `GATEKEEPER_PORT_8000_TCP_ADDR` to every pod. They are ignored: set the port to listen on
in `GATEKEEPER_LISTEN`, not in `GATEKEEPER_PORT`.
"""


def env_file() -> str:
    """Return the text of config/gatekeeper.env."""
    return _ENV_HEAD + "".join(
        f"\n\n# {group}\n" + "".join(f"\n{_env_entry(info)}" for info in settings)
        for group, settings in groupby(setting_infos(Settings), key=lambda info: info.group)
    )


def settings_page() -> str:
    """Return the text of docs/settings.md."""
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
    # Characters that Markdown reads as emphasis, HTML or the end of a cell.
    for character in "\\|*<>[]{}":
        text = text.replace(character, f"\\{character}")
    return text


def main() -> None:
    """Write both files."""
    root = Path(__file__).parent.parent.parent
    (root / "config" / "gatekeeper.env").write_text(env_file(), encoding="utf-8")
    (root / "docs" / "settings.md").write_text(settings_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
