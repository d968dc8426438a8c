"""The settings of the store and of the sessions in it."""

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
    """The second group of docs/settings.md."""

    redis_url: Annotated[SecretStr | None, store_url_reader()] = _setting(
        None,
        "The store: a Redis from 6.2 or a Valkey from 7.2.",
        default_text="embedded Valkey",
        example="redis://127.0.0.1:6379/0",
    )
    store_ca_file: Annotated[Path | None, ca_file()] = _setting(
        None,
        "Authorities that sign the store's certificate.",
        default_text="the system's",
        example="/etc/ssl/certs/store-ca.pem",
    )
    data_dir: Annotated[Path, directory()] = _setting(
        ".gatekeeper", "Where the embedded Valkey keeps its data; processes with one directory share one Valkey."
    )
    key_prefix: Annotated[
        str,
        SettingReader(
            parse=grammar.parse_key_prefix, accepted="1 to 64 printable ASCII characters without spaces and {}*?[]\\"
        ),
    ] = _setting("gk:", "First part of every key.")
    store_timeout: Annotated[float, duration("10ms", "1m")] = _setting(
        "2s", "Bound on one store call.", alias="GATEKEEPER_SESSION_CONSISTENCY_TIMEOUT_SECONDS"
    )
    store_replicas: Annotated[int, integer(0, 16)] = _setting(
        "0", "How many replicas must have an opening or an end before it is answered."
    )
    on_store_failure: Annotated[Literal["deny", "allow_verified"], choice("deny", "allow_verified")] = _setting(
        "deny",
        "What becomes of requests while the store does not answer: 503, or whoever has a good token passes, with "
        "`X-Gatekeeper-Degraded: 1`, unless this process was told that the session has ended.",
    )
    degraded_max: Annotated[float, duration("1s", "24h")] = _setting(
        "5m", "With `ON_STORE_FAILURE=allow_verified`: for how long from the first failed call; then 503."
    )
    session_ttl: Annotated[float, duration("100ms", "3650d")] = _setting("24h", "Absolute life of a session.")
    idle_timeout: Annotated[float | None, or_off(duration("100ms", "3650d"))] = _setting(
        "30m", "The silence after which a session ends as idle."
    )
    device_limit: Annotated[int | None, or_off(integer(1, 100_000))] = _setting(
        "3", "Live sessions per user; a lowered limit takes effect at the next sign-in."
    )
    device_limit_policy: Annotated[
        Literal["evict_idle", "evict_oldest", "reject"], choice("evict_idle", "evict_oldest", "reject")
    ] = _setting("evict_idle", "Who gives way at the limit: the least recently active, the oldest, or the newcomer.")
    exempt_users: Annotated[
        tuple[str, ...],
        ListReader(
            parse=grammar.parse_exemption,
            accepted="users, or role:<name>, separated by commas, such as backup,role:service; or none",
            none="empty",
        ),
    ] = _setting("none", "Users without device limit and idle time-out, such as service accounts.")
    unknown_session: Annotated[Literal["adopt", "reject"] | None, choice("adopt", "reject")] = _setting(
        None,
        "A good token without a session: open one, or refuse.",
        default_text="`adopt`; `reject` when `TOKENS=issue`",
        example="reject",
    )
    geo: Annotated[
        str,
        SettingReader(parse=grammar.parse_geo, accepted="off, country, or the path of an .mmdb file"),
    ] = _setting(
        "off",
        "Where a session was opened, looked up at its opening: `country` from a small data set (extra `geo`), or from "
        "an `.mmdb` file.",
    )
    ended_session_ttl: Annotated[float, duration("0s", "3650d")] = _setting(
        "24h", "How long the record of an ended session stays; at least until its last known token has expired."
    )
