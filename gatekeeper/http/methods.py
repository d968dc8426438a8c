"""Sets of request methods (RFC 9110 section 9)."""

from __future__ import annotations

from typing import Final

SUPPORTED_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""The methods that a 405 response lists in `Allow` and that metrics count by name. TRACE and CONNECT are refused."""

ALLOWED_METHODS: Final = ", ".join(SUPPORTED_METHODS).encode()
"""The value of `Allow`."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110 section 9.2.1): sent again after a lost connection (section 9.2.2), and allowed
from any origin. TRACE is never accepted."""
