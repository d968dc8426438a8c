"""The session APIs that Gatekeeper speaks. A new one is a file, a line in `DIALECTS`, a name in `settings/proxy.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gatekeeper.dialects import django, express, fastapi, mockstream, native, users_me
from gatekeeper.dialects.base import Dialect

DIALECTS: Final[Mapping[str, Dialect]] = {
    dialect.name: dialect for dialect in (django, express, fastapi, mockstream, native, users_me)
}
