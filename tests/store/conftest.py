"""Every test of the client runs on Valkey and on Redis, as those of the sessions do."""

from __future__ import annotations

from tests.sessions.conftest import hand as hand
from tests.sessions.conftest import store_server as store_server
