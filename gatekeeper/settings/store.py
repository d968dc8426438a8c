"""Settings of the session store and of the sessions in it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import SecretStr

from gatekeeper.settings import grammars as grammar
from gatekeeper.settings.group import SettingsGroup, setting
from gatekeeper.settings.secrets import store_url_reader
from gatekeeper.settings.types import ListReader, SettingReader, ca_file, choice, directory, duration, integer, or_off

_setting = partial(setting, group="Store and sessions")


class StoreSettings(SettingsGroup):
    """The second group of docs/settings.md: "Store and sessions"."""

    redis_url: Annotated[SecretStr | None, store_url_reader()] = _setting(
        None,
        "The address of the session store: Redis 6.2 or later, or Valkey 7.2 or later.",
        default_text="embedded Valkey",
        example="redis://127.0.0.1:6379/0",
    )
    store_ca_file: Annotated[Path | None, ca_file()] = _setting(
        None,
        "The certificate authorities for the store's certificate.",
        default_text="the system's",
        example="/etc/ssl/certs/store-ca.pem",
    )
    data_dir: Annotated[Path, directory()] = _setting(
        ".gatekeeper", "The data directory of the embedded Valkey. Processes with the same directory share one Valkey."
    )
    key_prefix: Annotated[
        str,
        SettingReader(
            parse=grammar.parse_key_prefix, accepted="1 to 64 printable ASCII characters without spaces and {}*?[]\\"
        ),
    ] = _setting("gk:", "The first characters of every key in the store.")
    store_timeout: Annotated[float, duration("10ms", "1m")] = _setting(
        "2s",
        "The longest time that one call to the store may take.",
        alias="GATEKEEPER_SESSION_CONSISTENCY_TIMEOUT_SECONDS",
    )
    store_replicas: Annotated[int, integer(0, 16)] = _setting(
        "0",
        "The number of store replicas that must confirm a new or ended session before the client gets its response. "
        "Only the number of all replicas keeps revocations over a planned failover or a partition in every case.",
    )
    on_store_failure: Annotated[Literal["deny", "allow_verified"], choice("deny", "allow_verified")] = _setting(
        "deny",
        "The treatment of requests while the store is unavailable. `deny`: 503. `allow_verified`: a request with a "
        "good token passes, with `X-Gatekeeper-Degraded: 1`, unless this process knows that its session has ended.",
    )
    degraded_max: Annotated[float, duration("1s", "24h")] = _setting(
        "5m",
        "With `ON_STORE_FAILURE=allow_verified`: the time from the first failed call in which requests pass; then 503.",
    )
    session_ttl: Annotated[float, duration("100ms", "3650d")] = _setting(
        "24h", "The longest life of a session, whether it is used or not."
    )
    idle_timeout: Annotated[float | None, or_off(duration("100ms", "3650d"))] = _setting(
        "30m", "The time without a request after which a session ends as idle."
    )
    device_limit: Annotated[int | None, or_off(integer(1, 100_000))] = _setting(
        "3", "The largest number of live sessions of one user. A lower limit takes effect at the next sign-in."
    )
    device_limit_policy: Annotated[
        Literal["evict_idle", "evict_oldest", "reject"], choice("evict_idle", "evict_oldest", "reject")
    ] = _setting(
        "evict_idle",
        "The session that gives way at the device limit: `evict_idle` ends the least recently active one, "
        "`evict_oldest` the oldest one, `reject` refuses the new one.",
    )
    exempt_users: Annotated[
        tuple[str, ...],
        ListReader(
            parse=grammar.parse_exemption,
            accepted="users, or role:<name>, separated by commas, such as backup,role:service; or none",
            none="empty",
        ),
    ] = _setting("none", "Users without device limit and idle timeout, such as service accounts.")
    unknown_session: Annotated[Literal["adopt", "reject"] | None, choice("adopt", "reject")] = _setting(
        None,
        "The treatment of a good token without a session: `adopt` opens a session, `reject` refuses the request.",
        default_text="`adopt`; `reject` when `TOKENS=issue`",
        example="reject",
    )
    geo: Annotated[
        str,
        SettingReader(parse=grammar.parse_geo, accepted="off, country, or the path of an .mmdb file"),
    ] = _setting(
        "off",
        "The source of the location that a new session records: `country`, a small data set (extra `geo`), or "
        "an `.mmdb` file.",
    )
    ended_session_ttl: Annotated[float, duration("0s", "3650d")] = _setting(
        "24h",
        "The time that the record of an ended session is kept, and at least until its last known token has expired.",
    )
