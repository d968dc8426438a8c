"""All settings, and how they are printed and checked together. Their fields are in `proxy`, `store` and `tokens`: type,
rule, default and meaning of each.

A setting's variable is `GATEKEEPER_` and the field's name in capitals. Defaults stand in the fields as an operator
would write them and are read by the same rules. Durations are seconds as `float`; what is `off` or has no default is
`None`; lists are tuples. Secrets are pydantic's `SecretStr`: `settings.redis_url.get_secret_value()`; for keys there
are `hmac_secrets`, `public_keys_pem`, `signing_secrets` and `signing_keys_pem`.

`config/gatekeeper.env` and `docs/settings.md` are made from the fields: `python -m gatekeeper.settings.reference`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from gatekeeper.settings.conflicts import conflicts
from gatekeeper.settings.proxy import DIALECT_NAMES, ProxySettings
from gatekeeper.settings.store import StoreSettings
from gatekeeper.settings.tokens import TokenSettings

__all__ = ["DIALECT_NAMES", "Settings"]


# The fields of the last base come first, so this is the order of docs/settings.md from right to left.
class Settings(TokenSettings, StoreSettings, ProxySettings):
    """What Gatekeeper was told to do.

    Made by `gatekeeper.settings.load`. Made directly, it takes its arguments only and never the environment, and
    problems are pydantic's `ValidationError` (a `ValueError`), which shows no values.
    """

    # Not a setting: (variable, path) of every file that a secret was read from.
    secret_files: tuple[tuple[str, Path], ...] = ()

    @property
    def adopts_unknown(self) -> bool:
        """Whether a good token without a session opens one: as set, else by who issues the tokens."""
        if self.unknown_session is None:
            return self.tokens == "observe"
        return self.unknown_session == "adopt"

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # An operator's line: what was set, secrets as pydantic masks them, keys left to `gatekeeper config`.
        hidden = {"jwt_public_key", "secret_files"}
        return [(n, v) for n, v in super().__repr_args__() if n in self.model_fields_set - hidden]

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if found := list(conflicts(self)):
            raise PydanticCustomError(
                "conflict", "{text}", {"text": "; ".join(c.problem for c in found), "conflicts": found}
            )
        return self
