"""The rules that bind several settings: which keys go together, which addresses may be one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from gatekeeper.settings.grammars import ALGORITHMS, ListenAddress, is_loopback
from gatekeeper.settings.types import variable

if TYPE_CHECKING:
    from gatekeeper.settings.model import Settings


_KEYS = ("jwt_secret", "jwt_public_key", "jwks_url")


class Conflict(NamedTuple):
    """A problem that no field has by itself. `fields` are those it follows from: where one of them could not be read,
    the conflict may be none."""

    fields: frozenset[str]
    problem: str


def conflicts(settings: Settings) -> Iterator[Conflict]:
    """Every conflict between settings that are each good."""
    yield from _key_conflicts(settings)
    yield from _address_conflicts(settings)


def mixed_keys(fields: Iterable[str]) -> Conflict | None:
    """The conflict of an HMAC secret with public keys among the fields that are set, whatever they hold."""
    present = set(fields)
    given = [name for name in _KEYS if name in present]
    if len(given) < 2 or "jwt_secret" not in given:
        return None
    names = " and ".join(variable(name) for name in given)
    return Conflict(frozenset(), f"{names}: set together; accepted: HMAC secrets, or public keys and a key set")


def _key_conflicts(settings: Settings) -> Iterator[Conflict]:
    given = [variable(name) for name in _KEYS if getattr(settings, name)]
    if not given:
        yield Conflict(
            frozenset(_KEYS),
            f"{', '.join(map(variable, _KEYS))}: none is set; accepted: in one of them, the key that tokens are "
            "verified with",
        )
        return
    if mixed := mixed_keys(name for name in _KEYS if getattr(settings, name)):
        yield mixed
        return
    family = "hmac" if settings.jwt_secret else "public"
    wrong = [name for name in settings.algorithms if name not in ALGORITHMS[family]]
    if wrong:
        yield Conflict(
            frozenset({*_KEYS, "jwt_algorithms"}),
            f"{variable('jwt_algorithms')}: read {','.join(settings.algorithms)!r}, which does not fit "
            f"{' and '.join(given)}; accepted: {', '.join(ALGORITHMS[family])}",
        )


_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound


def _address_conflicts(settings: Settings) -> Iterator[Conflict]:
    listen, ops = settings.listen, settings.ops_listen
    if ops is not None and _overlap(listen, ops):
        yield Conflict(
            frozenset({"listen", "ops_listen"}),
            f"{variable('ops_listen')}: read '{ops}', which {variable('listen')} takes ('{listen}'); "
            "accepted: another address, or off",
        )
    if settings.upstream_url is not None and _reaches(_upstream_address(settings.upstream_url), listen):
        yield Conflict(
            frozenset({"listen", "upstream_url"}),
            f"{variable('upstream_url')}: read {settings.upstream_url!r}, which is Gatekeeper's own "
            f"{variable('listen')} ('{listen}'); accepted: the backend's address",
        )


def _overlap(one: ListenAddress, other: ListenAddress) -> bool:
    """Whether only one of two addresses can be listened on."""
    if one.path is not None or other.path is not None:
        return one.path == other.path
    hosts = {_host(one), _host(other)}
    return bool(one.port) and one.port == other.port and (len(hosts) == 1 or not hosts.isdisjoint(_WILDCARDS))


def _reaches(target: ListenAddress, listen: ListenAddress) -> bool:
    """Whether a connection to `target` certainly ends at `listen`: another host's name may have the same port."""
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
