"""The settings object: every field, checked alone and together with the others.

The fields are in `proxy`, `store` and `tokens`, each with its type, rule, default and meaning. The environment variable
of a field is `GATEKEEPER_` and its name in capitals. Defaults are written as an operator would write them, and are read
by the same rules. Durations are seconds as `float`; `off` and a missing default are `None`; lists are tuples. Secrets
are pydantic's `SecretStr` (`settings.redis_url.get_secret_value()`); for keys use `hmac_secrets`, `public_keys_pem`,
`signing_secrets` and `signing_keys_pem`.

`python -m gatekeeper.settings.reference` writes `config/gatekeeper.env` and `docs/settings.md` from the fields.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from gatekeeper.settings.conflicts import conflicts
from gatekeeper.settings.fields import SettingFields


class Settings(SettingFields):
    """The configuration of one Gatekeeper, frozen.

    `gatekeeper.settings.load` makes it from the environment. The constructor reads its arguments only; it raises
    pydantic's `ValidationError` (a `ValueError`), which shows no values.
    """

    # Not a setting: (variable, path) for each file that a secret was read from.
    secret_files: tuple[tuple[str, Path], ...] = ()

    @property
    def adopts_unknown(self) -> bool:
        """True where a good token without a session opens one; by default only where the backend issues the tokens."""
        if self.unknown_session is None:
            return self.tokens == "observe"
        return self.unknown_session == "adopt"

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # For operators: only the settings that were given, secrets masked by pydantic, public keys left out.
        hidden = {"jwt_public_key", "secret_files"}
        return [(n, v) for n, v in super().__repr_args__() if n in self.model_fields_set - hidden]

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if found := list(conflicts(self)):
            raise PydanticCustomError(
                "conflict", "{text}", {"text": "; ".join(c.problem for c in found), "conflicts": found}
            )
        return self
