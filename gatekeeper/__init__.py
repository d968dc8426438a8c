"""Gatekeeper: live sessions in front of any API that hands out JWTs."""

__version__ = "0.1.0"
