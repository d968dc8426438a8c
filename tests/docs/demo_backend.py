"""The demo's backend as a program: `python -m tests.docs.demo_backend SECRET_FILE PORT`."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from gatekeeper.demo.backend import SampleBackend


def main() -> None:
    secret, port = sys.argv[1:]
    uvicorn.run(SampleBackend(Path(secret).read_bytes().strip()).app(), port=int(port), log_level="error")


if __name__ == "__main__":
    main()
