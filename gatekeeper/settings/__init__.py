"""Settings from environment variables that begin with `GATEKEEPER_`: loaded, checked together, described.

No other variable has an effect here. The fields are in `settings/proxy.py`, `store.py` and `tokens.py`.
"""

from __future__ import annotations

from gatekeeper.settings.advice import warnings
from gatekeeper.settings.grammars import IdentityHeader, ListenAddress
from gatekeeper.settings.loader import EffectiveSetting, describe, load, store_name
from gatekeeper.settings.model import Settings
from gatekeeper.settings.secrets import IntrospectionClient

__all__ = [
    "EffectiveSetting",
    "IdentityHeader",
    "IntrospectionClient",
    "ListenAddress",
    "Settings",
    "describe",
    "load",
    "store_name",
    "warnings",
]
