"""Settings → the secrets of an engine that runs already."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gatekeeper.auth.oauth import IntrospectionClients
from gatekeeper.build.tokens import client_secrets, key_set_fetcher, signing_keys, verification_keys
from gatekeeper.errors import ConfigError
from gatekeeper.settings import Settings
from gatekeeper.tokens.keys import JoinedKeys, JwksKeys, KeySource, StaticKeys
from gatekeeper.tokens.signing_keys import SigningKeys

_log = logging.getLogger("gatekeeper")

_RESTART = "this change needs a restart"


def check_keys(settings: Settings) -> None:
    """Raise `ConfigError` for keys that no engine could use."""
    verification_keys(settings, signing_keys(settings), key_set_fetcher(settings))


class Reload:
    """Replaces the secrets of an engine, and lets it read key sets again."""

    def __init__(
        self,
        settings: Settings,
        keys: KeySource,
        signing: SigningKeys | None,
        clients: IntrospectionClients,
        take_credentials: Callable[[str], bool],
    ) -> None:
        self._take_credentials = take_credentials
        self._algorithms = settings.algorithms
        self._knows_clients = bool(settings.introspection_clients)
        self._keys = keys
        self._signing = signing
        self._clients = clients

    def __repr__(self) -> str:
        return f"<Reload of {self._keys!r}>"

    async def __call__(self, settings: Settings) -> None:
        """Take the secrets of `settings`. Raises `ConfigError`, and has then replaced nothing."""
        signing = signing_keys(settings)
        sources = _sources(self._keys)
        found = _sources(verification_keys(settings, signing, key_set_fetcher(settings)))
        if settings.algorithms != self._algorithms or list(map(type, sources)) != list(map(type, found)):
            raise ConfigError([f"GATEKEEPER_JWT_…: the keys are of another kind; {_RESTART}"])
        if bool(settings.introspection_clients) != self._knows_clients:
            raise ConfigError([f"GATEKEEPER_INTROSPECTION_CLIENTS: switched on or off; {_RESTART}"])
        if self._signing is not None and signing is not None:
            try:
                self._signing.replace(signing)
            except ValueError as error:
                raise ConfigError([f"GATEKEEPER_SIGNING_KEY: {error}"]) from None
        if settings.redis_url is not None and not self._take_credentials(settings.redis_url.get_secret_value()):
            _log.warning("configuration needs a restart: GATEKEEPER_REDIS_URL")
        self._clients.replace(client_secrets(settings))
        for source, other in zip(sources, found, strict=True):
            if isinstance(source, StaticKeys) and isinstance(other, StaticKeys):
                source.replace(other)
        for source in sources:
            if isinstance(source, JwksKeys):
                await source.reread()


def _sources(keys: KeySource) -> tuple[KeySource, ...]:
    return keys.sources if isinstance(keys, JoinedKeys) else (keys,)
