"""One store for the tests of the pipeline: as for those of the Python API."""

from __future__ import annotations

from tests.middleware.conftest import store as store
