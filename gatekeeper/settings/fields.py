"""All settings as fields of one class, before the rules that bind several of them.

`conflicts` checks these fields and `model` attaches the checks, so neither needs to import the other.
"""

from __future__ import annotations

from gatekeeper.settings.proxy import ProxySettings
from gatekeeper.settings.store import StoreSettings
from gatekeeper.settings.tokens import TokenSettings


# pydantic puts the fields of the last base first: docs/settings.md has them in this order, from right to left.
class SettingFields(TokenSettings, StoreSettings, ProxySettings):
    """The fields of every group."""
