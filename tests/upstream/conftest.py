"""Each way to the backend, as for the tests of forwarding."""

from __future__ import annotations

from tests.forward.conftest import each_transport as each_transport
