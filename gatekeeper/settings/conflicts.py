"""Rules that bind several settings: keys that exclude each other, addresses that must differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

from gatekeeper.settings.fields import SettingFields
from gatekeeper.settings.grammars import ALGORITHMS, LOGIN_CHECK_WORDS, ListenAddress, is_loopback
from gatekeeper.settings.secrets import hmac_secret_reader, is_pem, secret_octets, signing_key_reader
from gatekeeper.settings.types import MASK, env_name

_KEYS = ("jwt_secret", "jwt_public_key", "jwks_url")
# The settings that decide the kind of key.
_ALL_KEYS = (*_KEYS, "signing_key", "tokens")


class Conflict(NamedTuple):
    """A problem of several fields together. `fields` are those it depends on: where one of them could not be read,
    the conflict is uncertain and not reported."""

    fields: frozenset[str]
    problem: str


def conflicts(settings: SettingFields) -> Iterator[Conflict]:
    """Yield every conflict between settings that are valid one by one."""
    yield from _short_secrets(settings)
    yield from _key_conflicts(settings)
    yield from _issue_conflicts(settings)
    yield from _address_conflicts(settings)


def mixed_keys(fields: Iterable[str]) -> Conflict | None:
    """Find an HMAC secret and public keys among the names of the fields that are set; their values do not matter."""
    present = set(fields)
    given = [name for name in _KEYS if name in present]
    if len(given) < 2 or "jwt_secret" not in given:
        return None
    names = " and ".join(env_name(name) for name in given)
    return Conflict(frozenset(), f"{names}: set together; accepted: either HMAC secrets, or public keys and a key set")


def _short_secrets(settings: SettingFields) -> Iterator[Conflict]:
    """Find HMAC secrets under the floor."""
    floor = settings.jwt_secret_floor
    for field, secrets, reader in (
        ("jwt_secret", settings.jwt_secret, hmac_secret_reader()),
        ("signing_key", settings.signing_key, signing_key_reader()),
    ):
        texts = [secret.get_secret_value() for secret in secrets]
        for number, text in enumerate(texts, 1):
            if is_pem(text) or (size := len(secret_octets(text))) >= floor:
                continue
            line = f"in line {number} of {len(texts)} " if len(texts) > 1 else ""
            yield Conflict(
                frozenset({field, "jwt_secret_floor"}),
                f"{env_name(field)}: read {MASK}, which {line}has {size} bytes, fewer than {floor} "
                f"({env_name('jwt_secret_floor')}); accepted: {reader.accepted}",
            )


def _key_conflicts(settings: SettingFields) -> Iterator[Conflict]:
    names = (*_KEYS, "signing_key") if settings.tokens == "issue" else _KEYS
    given = [name for name in names if getattr(settings, name)]
    found = [_missing_key(settings), mixed_keys(given), _mixed_signing_key(settings)]
    if any(found):
        yield from filter(None, found)
        return
    fitting = ALGORITHMS[settings.key_kind]
    if not set(settings.algorithms) <= set(fitting):
        yield Conflict(
            frozenset({*_ALL_KEYS, "jwt_algorithms"}),
            f"{env_name('jwt_algorithms')}: read {','.join(settings.algorithms)!r}, which does not fit "
            f"{' and '.join(map(env_name, given))}; accepted: {', '.join(fitting)}",
        )


def _missing_key(settings: SettingFields) -> Conflict | None:
    names, use = list(_KEYS), "verified with"
    if settings.tokens == "issue":
        names, use = ["signing_key", "jwt_secret"], f"signed with while {env_name('tokens')} is issue"
    if any(getattr(settings, name) for name in names):
        return None
    return Conflict(
        frozenset({*names, "tokens"}),
        f"{', '.join(map(env_name, names))}: none is set; accepted: in one of them, the key that tokens are {use}",
    )


def _mixed_signing_key(settings: SettingFields) -> Conflict | None:
    """Find signing keys of one kind beside verification keys of the other."""
    if settings.tokens == "observe" or not settings.signing_key:
        return None
    ours, theirs, names = "HMAC secrets", "public keys", ["jwt_public_key", "jwks_url"]
    if settings.signing_keys_pem:
        ours, theirs, names = "private keys", "HMAC secrets", ["jwt_secret"]
    given = " and ".join(env_name(name) for name in names if getattr(settings, name))
    if not given:
        return None
    return Conflict(
        frozenset(_ALL_KEYS),
        f"{env_name('signing_key')} and {given}: {ours} and {theirs} set together; accepted: either HMAC "
        "secrets, or private keys, public keys and a key set",
    )


def _issue_conflicts(settings: SettingFields) -> Iterator[Conflict]:
    if settings.tokens == "observe":
        return
    # Without login paths there is no password to check: the application hands out the tokens itself (docs/python.md).
    if settings.login_check_url is None and settings.login_paths:
        yield Conflict(
            frozenset({"tokens", "login_check_url", "login_paths"}),
            f"{env_name('login_check_url')}: not set while {env_name('tokens')} is issue; "
            f"accepted: {LOGIN_CHECK_WORDS}",
        )
    if settings.jwt_user_claim in settings.login_claims:
        yield Conflict(
            frozenset({"tokens", "login_claims", "jwt_user_claim"}),
            f"{env_name('login_claims')}: read {','.join(settings.login_claims)!r}, which names the claim of the user "
            f"({env_name('jwt_user_claim')} is {settings.jwt_user_claim!r}); accepted: other names",
        )


_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound


def _address_conflicts(settings: SettingFields) -> Iterator[Conflict]:
    listen, ops = settings.listen, settings.ops_listen
    if ops is not None and _overlap(listen, ops):
        yield Conflict(
            frozenset({"listen", "ops_listen"}),
            f"{env_name('ops_listen')}: read '{ops}', which overlaps {env_name('listen')} ('{listen}'); "
            "accepted: another address, or off",
        )
    if settings.upstream_url is not None and _reaches(_upstream_address(settings.upstream_url), listen):
        yield Conflict(
            frozenset({"listen", "upstream_url"}),
            f"{env_name('upstream_url')}: read {settings.upstream_url!r}, which is Gatekeeper's own "
            f"{env_name('listen')} ('{listen}'); accepted: the backend's address",
        )
    # Without a backend LISTEN is not used: the middleware's server has its own address.
    if settings.upstream_url is not None and _checks_itself(settings):
        yield Conflict(
            frozenset({"listen", "upstream_url", "tokens", "login_check_url"}),
            f"{env_name('login_check_url')}: read {settings.login_check_url!r}, which is Gatekeeper's own "
            f"{env_name('listen')} ('{listen}'); accepted: a path of the backend, or another address",
        )


def _checks_itself(settings: SettingFields) -> bool:
    url = settings.login_check_url
    if settings.tokens == "observe" or url is None or url.startswith("/"):
        return False
    return _reaches(_upstream_address(url), settings.listen)


def _overlap(one: ListenAddress, other: ListenAddress) -> bool:
    """Return true where only one of two addresses can be listened on."""
    if one.fd is not None or other.fd is not None:
        return one.fd == other.fd
    if one.path is not None or other.path is not None:
        return one.path == other.path
    hosts = {_host(one), _host(other)}
    return bool(one.port) and one.port == other.port and (len(hosts) == 1 or not hosts.isdisjoint(_WILDCARDS))


def _reaches(target: ListenAddress, listen: ListenAddress) -> bool:
    """Return true where a connection to `target` certainly reaches `listen`; the same port on another host does not."""
    if listen.fd is not None:
        return False
    if target.path is not None or listen.path is not None:
        return target.path == listen.path
    local = listen.host in _WILDCARDS and (target.host in _WILDCARDS or is_loopback(target.host))
    return target.port == listen.port and (local or _host(target) == _host(listen))


def _host(address: ListenAddress) -> str | None:
    return "127.0.0.1" if address.host == "localhost" else address.host


def _upstream_address(url: str) -> ListenAddress:
    parts = urlsplit(url)
    if parts.scheme == "http+unix":
        return ListenAddress(path=parts.path)
    return ListenAddress(host=parts.hostname, port=parts.port or (443 if parts.scheme == "https" else 80))
